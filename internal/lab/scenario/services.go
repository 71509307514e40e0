package scenario

import (
	"context"
	"fmt"
	"net/netip"
	"strings"
	"time"
)

// extras are the workloads of the services scenario: a pod that is the only
// one behind its Service, a NodePort, and pods in their nodes' network.
const extras = `apiVersion: apps/v1
kind: Deployment
metadata: {name: alone, labels: {app: alone}}
spec:
  replicas: 1
  selector: {matchLabels: {app: alone}}
  template:
    metadata: {labels: {app: alone}}
    spec:
      terminationGracePeriodSeconds: 1
      containers:
      - {name: web, image: "lab.ropeway.dev/web:1", imagePullPolicy: IfNotPresent, readinessProbe: {httpGet: {path: /, port: 80}, periodSeconds: 1}}
---
apiVersion: v1
kind: Service
metadata: {name: alone}
spec: {ipFamilyPolicy: PreferDualStack, selector: {app: alone}, ports: [{port: 80}]}
---
apiVersion: v1
kind: Service
metadata: {name: outer}
spec: {type: NodePort, ipFamilyPolicy: PreferDualStack, selector: {app: test}, ports: [{port: 80, nodePort: 30080}]}
---
apiVersion: apps/v1
kind: DaemonSet
metadata: {name: on-host, labels: {app: on-host}}
spec:
  selector: {matchLabels: {app: on-host}}
  template:
    metadata: {labels: {app: on-host}}
    spec:
      hostNetwork: true
      terminationGracePeriodSeconds: 1
      containers:
      - {name: web, image: "lab.ropeway.dev/web:1", imagePullPolicy: IfNotPresent, readinessProbe: {httpGet: {path: /, port: 80}, periodSeconds: 1}}
`

// services shows what kube-proxy, the kubelet and cluster DNS need of a pod
// network, by the transport that is in force.
func (s *stage) services(ctx context.Context) error {
	if err := s.r.Step(ctx, "the test workloads are ready", s.deployExtras); err != nil {
		return err
	}
	for _, f := range s.each() {
		_ = f.step(ctx, "every node reaches a ClusterIP", f.nodesReachClusterIP)
		_ = f.step(ctx, "a NodePort answers on every node, from every node", f.nodePort)
		_ = f.step(ctx, "a pod reaches itself through its own Service", f.hairpin)
		_ = f.step(ctx, "pods reach pods in the hosts' network, and the other way round", f.hostNetwork)
	}
	_ = s.r.Step(ctx, "cluster DNS resolves a Service for a pod", s.dns)
	_ = s.r.Step(ctx, "kubectl port-forward carries data", s.portForward)
	return nil
}

func (s *stage) deployExtras(ctx context.Context) error {
	if err := s.deploy(ctx); err != nil {
		return err
	}
	if _, err := s.l.KubectlInput(ctx, strings.NewReader(extras), "apply", "-f", "-"); err != nil {
		return err
	}
	for _, what := range []string{"deploy/alone", "ds/on-host"} {
		if _, err := s.quiet(ctx, "rollout", "status", what, "--timeout=90s"); err != nil {
			return err
		}
	}
	return nil
}

// get asks for a URL from a node, a few times while kube-proxy takes notice of
// a new Service, and then once more for the record.
func (s *stage) get(ctx context.Context, node, target string) error {
	curl := []string{"curl", "-s", "-S", "-o", "/dev/null", "-w", "%{http_code}", "--max-time", "2", target}
	return s.until(ctx, 20*time.Second, func() error {
		out, err := s.l.NodeExec(ctx, node, curl...)
		if err != nil {
			return fmt.Errorf("from node %s: %w", node, err)
		}
		if string(out) != "200" {
			return fmt.Errorf("from node %s: %s answered %q", node, target, out)
		}
		return nil
	})
}

func (s *stage) nodesReachClusterIP(ctx context.Context) error {
	ip, err := s.clusterIP(ctx, "test")
	if err != nil {
		return err
	}
	for _, node := range s.nodes() {
		// Several, so that pods of both nodes are chosen.
		for range 6 {
			if err := s.get(ctx, node, url(ip, 80)); err != nil {
				return err
			}
		}
	}
	return nil
}

func (s *stage) nodePort(ctx context.Context) error {
	for _, from := range s.nodes() {
		for _, to := range s.l.Nodes() {
			for range 4 {
				if err := s.get(ctx, from, url(s.address(to).String(), 30080)); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

func (s *stage) hairpin(ctx context.Context) error {
	pods, err := s.pods(ctx, "app=alone")
	if err != nil {
		return err
	}
	ip, err := s.clusterIP(ctx, "alone")
	if err != nil {
		return err
	}
	return s.until(ctx, 20*time.Second, func() error {
		_, err := s.quiet(ctx, "exec", pods[0].name, "--", "curl", "-s", "-f", "--max-time", "2", url(ip, 80))
		return err
	})
}

func (s *stage) hostNetwork(ctx context.Context) error {
	hosts, err := s.pods(ctx, "app=on-host")
	if err != nil {
		return err
	}
	pods, err := s.pods(ctx, "app=test")
	if err != nil {
		return err
	}
	for _, h := range hosts {
		for _, p := range pods {
			for from, to := range map[string]netip.Addr{h.name: p.address, p.name: h.address} {
				if _, err := s.quiet(ctx, "exec", from, "--", "curl", "-s", "-f", "--max-time", "3", url(to.String(), 80)); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

func (s *stage) dns(ctx context.Context) error {
	pods, err := s.pods(ctx, "app=test")
	if err != nil {
		return err
	}
	return s.until(ctx, 20*time.Second, func() error {
		_, err := s.quiet(ctx, "exec", pods[0].name, "--", "curl", "-s", "-f", "--max-time", "3", "http://test.default.svc.cluster.local/")
		return err
	})
}

func (s *stage) portForward(ctx context.Context) error {
	const script = `set -e
kubectl port-forward svc/test 18080:80 >/dev/null & forward=$!
trap 'kill $forward' EXIT
for i in $(seq 300); do curl -s -f --max-time 2 http://127.0.0.1:18080/ && exit 0; sleep 0.1; done
exit 1`
	cmd, err := s.l.HostCommand(ctx, "control-plane", "sh", "-c", script)
	if err != nil {
		return err
	}
	out, err := cmd.CombinedOutput()
	if err != nil {
		return fmt.Errorf("through kubectl port-forward svc/test 18080:80: %w: %s", err, lastLine(out))
	}
	return nil
}

// url is the address of an HTTP server.
func url(ip string, port uint16) string {
	address, err := netip.ParseAddr(ip)
	if err != nil {
		return "http://" + ip + "/"
	}
	return "http://" + netip.AddrPortFrom(address, port).String() + "/"
}

package scenario

import (
	"context"
	"fmt"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"ropeway.dev/ropeway/internal/lab/vpc"
)

// chainedPods are on one node: a pod with a host port that is limited in what it
// sends, one that is limited in what it receives, and one without, beside them. What
// waits for its turn in one direction would hold up the connections in the other: so
// there are two.
const chainedPods = `apiVersion: v1
kind: Pod
metadata: {name: chained-sender, labels: {app: chained}, annotations: {kubernetes.io/egress-bandwidth: 1M}}
spec:
  nodeName: %[1]s
  terminationGracePeriodSeconds: 0
  tolerations: [{operator: Exists}]
  containers:
  - {name: web, image: "lab.ropeway.dev/web:1", imagePullPolicy: IfNotPresent, ports: [{containerPort: 80, hostPort: %[2]d}], readinessProbe: {httpGet: {path: /, port: 80}, periodSeconds: 1}}
---
apiVersion: v1
kind: Pod
metadata: {name: chained-receiver, labels: {app: chained}, annotations: {kubernetes.io/ingress-bandwidth: 1M}}
spec:
  nodeName: %[1]s
  terminationGracePeriodSeconds: 0
  tolerations: [{operator: Exists}]
  containers:
  - {name: web, image: "lab.ropeway.dev/web:1", imagePullPolicy: IfNotPresent, readinessProbe: {httpGet: {path: /, port: 80}, periodSeconds: 1}}
---
apiVersion: v1
kind: Pod
metadata: {name: unchained, labels: {app: chained}}
spec:
  nodeName: %[1]s
  terminationGracePeriodSeconds: 0
  tolerations: [{operator: Exists}]
  containers:
  - {name: web, image: "lab.ropeway.dev/web:1", imagePullPolicy: IfNotPresent, readinessProbe: {httpGet: {path: /, port: 80}, periodSeconds: 1}}
---
apiVersion: v1
kind: Pod
metadata: {name: chained-source, labels: {app: chained}}
spec:
  nodeName: %[3]s
  hostNetwork: true
  terminationGracePeriodSeconds: 0
  tolerations: [{operator: Exists}]
  containers:
  - {name: web, image: "lab.ropeway.dev/web:1", imagePullPolicy: IfNotPresent, args: ["%[4]d"], readinessProbe: {tcpSocket: {port: %[4]d}, periodSeconds: 1}}
`

const (
	// hostPort is one that the outside may reach while NodePorts are admitted.
	hostPort = 30880
	// sourcePort is that of a server in a node's own network.
	sourcePort = 8099
)

// chained shows what the plugins that are chained behind Ropeway's do with what it
// made: portmap and bandwidth, through the real runtime.
func (s *stage) chained(ctx context.Context) error {
	near, far := s.nodes()[0], s.nodes()[1]
	end := func(ctx context.Context) error {
		_, err := s.quiet(ctx, "delete", "pod", "-l", "app=chained", "--timeout=60s")
		return err
	}
	err := s.r.Step(ctx, "pods with a host port and with limits are ready, and one without beside them", func(ctx context.Context) error {
		objects := fmt.Sprintf(chainedPods, far, hostPort, near, sourcePort)
		if _, err := s.l.KubectlInput(ctx, strings.NewReader(objects), "apply", "-f", "-"); err != nil {
			return err
		}
		_, err := s.quiet(ctx, "wait", "--for=condition=Ready", "pod", "-l", "app=chained", "--timeout=90s")
		return err
	})
	if err != nil {
		_ = end(context.WithoutCancel(ctx)) // the failed step is the one to tell
		return err
	}
	_ = s.r.Step(ctx, "the host port answers: nodes, a pod, the outside; every family", s.hostPort)
	_ = s.r.Step(ctx, "what a pod sends is limited", func(ctx context.Context) error { return s.limited(ctx, s.sent) })
	_ = s.r.Step(ctx, "what a pod receives is limited", func(ctx context.Context) error { return s.limited(ctx, s.received) })
	return s.r.Step(ctx, "host port and limits go with the pods", func(ctx context.Context) error {
		if err := end(ctx); err != nil {
			return err
		}
		return s.until(ctx, 30*time.Second, func() error { return s.nothingChained(ctx, far) })
	})
}

// hostPort asks for the port on each address of the node that the pod has a family of.
func (s *stage) hostPort(ctx context.Context) error {
	if err := vpc.AdmitNodePorts(ctx, s.l.Name(), true); err != nil {
		return err
	}
	defer func() { _ = vpc.AdmitNodePorts(context.WithoutCancel(ctx), s.l.Name(), false) }()
	for _, f := range s.each() {
		target := url(f.address(s.l.Nodes()[1]).String(), hostPort)
		for _, from := range append(s.nodes(), "outside") {
			if err := s.get(ctx, from, target); err != nil {
				return err
			}
			s.note("%s: %s answers", from, target)
		}
		if _, err := s.quiet(ctx, "exec", "unchained", "--", "curl", "-s", "-f", "--max-time", "5", target); err != nil {
			return err
		}
		s.note("a pod on the same node: %s answers", target)
	}
	return nil
}

// flow is what came through in a time: of the pod that is limited, and of the one
// beside it, in bytes.
type flow struct{ limited, free int64 }

const (
	// slack is how many bytes the runtime lets a pod with this limit have before it
	// counts: it asks for as large a burst as there is, of which at this rate 21 to 34
	// MB come to the kernel (the plugin counts them in 32 bits).
	slack = 40 << 20
	// longest is for how long flows are compared at most.
	longest = time.Minute
)

// limited compares two flows at the same time, the limited pod's and that of the pod
// beside it. The other must carry so much that the burst does not count. Where the
// machine is slow that takes longer, and what is left in the queue of the time before
// has to go first.
func (s *stage) limited(ctx context.Context, run func(context.Context, time.Duration) (flow, error)) error {
	const times = 4
	for span := 4 * time.Second; ; span *= 2 {
		f, err := run(ctx, span)
		if err != nil {
			return err
		}
		s.note("in %s: %.1f MB with a limit of 1 Mbit/s, %.1f MB without", span, float64(f.limited)/1e6, float64(f.free)/1e6)
		if (f.limited == 0 || f.free < times*slack) && span < longest {
			continue
		}
		if f.limited == 0 || f.limited*times > f.free {
			return fmt.Errorf("%d bytes came through with a limit of 1 Mbit/s, and %d without, in %s", f.limited, f.free, span)
		}
		return nil
	}
}

// fetch is a command that takes as much as there is of a URL for a time, and prints
// how many bytes that were.
func fetch(target string, span time.Duration) []string {
	return []string{"curl", "-s", "-o", "/dev/null", "-w", "%{size_download}\n", "--max-time", strconv.FormatFloat(span.Seconds(), 'f', -1, 64), target + "zeros"}
}

// sent has the first node take what the pods send.
func (s *stage) sent(ctx context.Context, span time.Duration) (flow, error) {
	pods, err := s.pods(ctx, "app=chained")
	if err != nil {
		return flow{}, err
	}
	address := map[string]netip.Addr{}
	for _, p := range pods {
		address[p.name] = p.address
	}
	return flows("chained-sender", func(pod string) ([]byte, error) {
		return s.l.NodeExec(ctx, s.nodes()[0], fetch(url(address[pod].String(), 80), span)...)
	})
}

// received has the pods take what the first node sends.
func (s *stage) received(ctx context.Context, span time.Duration) (flow, error) {
	source := url(s.l.Nodes()[0].Addresses[0].Addr().String(), sourcePort)
	return flows("chained-receiver", func(pod string) ([]byte, error) {
		return s.l.Kubectl(ctx, append([]string{"exec", pod, "--"}, fetch(source, span)...)...)
	})
}

// flows runs a limited pod's and the other's at the same time. A command that ran out
// of its time fails, and prints what it got.
func flows(limited string, run func(pod string) ([]byte, error)) (flow, error) {
	got, err := atOnce([]string{limited, "unchained"}, func(pod string) (int64, error) {
		out, err := run(pod)
		n, bad := strconv.ParseInt(strings.TrimSpace(string(out)), 10, 64)
		if bad != nil {
			return 0, fmt.Errorf("pod %s: %w: %q", pod, err, out)
		}
		return n, nil
	})
	if err != nil {
		return flow{}, err
	}
	return flow{limited: got[0], free: got[1]}, nil
}

// nothingChained looks for what the plugins may have left.
func (s *stage) nothingChained(ctx context.Context, node string) error {
	const look = `nft list ruleset | grep %[1]d; (iptables-save; ip6tables-save) 2>/dev/null | grep %[1]d; ip -o link show type ifb; true`
	out, err := s.l.NodeExec(ctx, node, "sh", "-c", fmt.Sprintf(look, hostPort))
	if err == nil && len(out) > 0 {
		err = fmt.Errorf("left on node %s: %s", node, out)
	}
	return err
}

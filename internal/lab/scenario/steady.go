package scenario

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"time"

	"ropeway.dev/ropeway/internal/lab/config"
	"ropeway.dev/ropeway/internal/lab/steady"
	"ropeway.dev/ropeway/internal/lab/vpc"
)

// steadyPods are the two ends of the traffic: the server on the second node, a
// client on the first, and a Service before the server; and the server of the
// control: what is lost between the nodes themselves is lost by the machine, or by
// the programs that watch. They ask for CPU, and may have large socket buffers:
// otherwise they would be what loses packets.
const steadyPods = `apiVersion: v1
kind: Pod
metadata: {name: steady-server, labels: {app: steady}}
spec: {nodeName: %[3]s, terminationGracePeriodSeconds: 0, tolerations: [{operator: Exists}], volumes: [{name: program, hostPath: {path: %[1]s}}],
  containers: [{name: steady, image: lab.ropeway.dev/web:1, command: [/steady, %[4]s, serve, "%[5]d"], volumeMounts: [{name: program, mountPath: /steady}], resources: {requests: {cpu: 500m}}, securityContext: {capabilities: {add: [NET_ADMIN]}},
    readinessProbe: {tcpSocket: {port: %[5]d}, periodSeconds: 1}}]}
---
apiVersion: v1
kind: Pod
metadata: {name: steady-client}
spec: {nodeName: %[2]s, terminationGracePeriodSeconds: 0, tolerations: [{operator: Exists}], volumes: [{name: program, hostPath: {path: %[1]s}}],
  containers: [{name: steady, image: lab.ropeway.dev/web:1, volumeMounts: [{name: program, mountPath: /steady}], resources: {requests: {cpu: 500m}}, securityContext: {capabilities: {add: [NET_ADMIN]}}}]}
---
apiVersion: v1
kind: Pod
metadata: {name: steady-control}
spec: {nodeName: %[3]s, hostNetwork: true, terminationGracePeriodSeconds: 0, tolerations: [{operator: Exists}], volumes: [{name: program, hostPath: {path: %[1]s}}],
  containers: [{name: steady, image: lab.ropeway.dev/web:1, command: [/steady, %[4]s, serve, "%[7]d"], volumeMounts: [{name: program, mountPath: /steady}], resources: {requests: {cpu: 500m}}, securityContext: {capabilities: {add: [NET_ADMIN]}},
    readinessProbe: {tcpSocket: {port: %[7]d}, periodSeconds: 1}}]}
---
apiVersion: v1
kind: Service
metadata: {name: steady}
spec: {type: NodePort, selector: {app: steady}, ports: [{name: tcp, port: %[5]d, nodePort: %[6]d}, {name: udp, protocol: UDP, port: %[5]d, nodePort: %[6]d}]}
`

const steadyNodePort = 30900

// way is one kind of traffic that a change must not be noticed by.
type way struct {
	name   string
	host   string // a host of the lab; "" for the client pod
	target netip.AddrPort
}

// steady lets happen what must go unnoticed, under traffic of every kind. It begins
// with direct, as begin has brought it about, and so do the changes.
func (s *stage) steady(ctx context.Context, begin func(context.Context) error, events []event) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel() // ends the watchers
	var watched *watches
	err := s.r.Step(ctx, "traffic of every kind flows", func(ctx context.Context) (err error) {
		if err := begin(ctx); err != nil {
			return err
		}
		if err := vpc.AdmitNodePorts(ctx, s.l.Name(), true); err != nil {
			return err
		}
		ways, err := s.startSteady(ctx)
		if err == nil {
			watched, err = s.watchAll(ctx, ways)
		}
		return err
	})
	defer func() {
		_ = vpc.AdmitNodePorts(context.WithoutCancel(ctx), s.l.Name(), false)
		s.endSteady(context.WithoutCancel(ctx))
	}()
	if err != nil {
		return err
	}
	before, err := s.readySince(ctx)
	if err != nil {
		return err
	}
	for _, e := range events {
		_ = s.r.Step(ctx, e.name+": nothing is noticed", func(ctx context.Context) error { return s.unnoticed(ctx, watched, e) })
	}
	return s.r.Step(ctx, "every node was Ready all the time", func(ctx context.Context) error {
		after, err := s.readySince(ctx)
		if err == nil && after != before {
			err = fmt.Errorf("nodes are Ready since:\n%s\nand were so since:\n%s", after, before)
		}
		return err
	})
}

// readySince is a line for each node: whether it is Ready, since when, and whether a
// condition keeps pods from it.
func (s *stage) readySince(ctx context.Context) (string, error) {
	return s.quiet(ctx, "get", "nodes", "-o",
		`jsonpath={range .items[*]}{.metadata.name} Ready={.status.conditions[?(@.type=="Ready")].status} since {.status.conditions[?(@.type=="Ready")].lastTransitionTime}, NetworkUnavailable={.status.conditions[?(@.type=="NetworkUnavailable")].status} since {.status.conditions[?(@.type=="NetworkUnavailable")].lastTransitionTime}{"\n"}{end}`)
}

// startSteady puts both ends in place and returns the ways between them, the
// control last.
func (s *stage) startSteady(ctx context.Context) ([]way, error) {
	near, far := s.nodes()[0], s.nodes()[1]
	objects := fmt.Sprintf(steadyPods, config.Binary("ropeway-lab"), near, far, steady.Command, steady.Port, steadyNodePort, steady.ControlPort)
	if _, err := s.l.KubectlInput(ctx, strings.NewReader(objects), "apply", "-f", "-"); err != nil {
		return nil, err
	}
	if _, err := s.quiet(ctx, "wait", "--for=condition=Ready", "pod/steady-server", "pod/steady-client", "pod/steady-control", "--timeout=90s"); err != nil {
		return nil, err
	}
	var texts [2]string
	for i, ask := range [][]string{{"pod", "steady-server", "-o", "jsonpath={.status.podIP}"}, {"svc", "steady", "-o", "jsonpath={.spec.clusterIP}"}} {
		out, err := s.quiet(ctx, append([]string{"get"}, ask...)...)
		if err != nil {
			return nil, err
		}
		texts[i] = out
	}
	server, err := netip.ParseAddr(texts[0])
	if err != nil {
		return nil, err
	}
	service, err := netip.ParseAddr(texts[1])
	if err != nil {
		return nil, err
	}
	toServer, toService := netip.AddrPortFrom(server, steady.Port), netip.AddrPortFrom(service, steady.Port)
	hosts := [2]netip.Addr{s.address(s.l.Nodes()[0]), s.address(s.l.Nodes()[1])}
	return []way{
		{"pod to pod on another node", "", toServer},
		{"pod to ClusterIP", "", toService},
		{"outside to NodePort", "outside", netip.AddrPortFrom(hosts[0], steadyNodePort)},
		{"node to remote pod", near, toServer},
		{"node to ClusterIP", near, toService},
		{"node to node", near, netip.AddrPortFrom(hosts[1], steady.ControlPort)},
	}, nil
}

// endSteady takes away what startSteady put in place.
func (s *stage) endSteady(ctx context.Context) {
	_, _ = s.quiet(ctx, "delete", "pod/steady-server", "pod/steady-client", "pod/steady-control", "svc/steady", "--ignore-not-found", "--wait=false")
}

// event is something that nobody is to notice.
type event struct {
	name    string
	prepare func(context.Context) error // what has to be so before; may be nil
	happen  func(context.Context) error
	undo    func(context.Context) error // makes it possible once more; may be nil
}

// absence is how long the agents are away.
const absence = 60 * time.Second

// absences are an agent's ways to be away.
func (s *stage) absences() []event {
	return []event{
		{name: "every agent restarts", happen: s.restartAgents},
		{name: "every agent is killed with -9", happen: s.killAgents},
		{name: fmt.Sprintf("no agent for %s", absence), happen: s.removeAgents},
	}
}

// changes are those of the transport: each ordered pair once.
func (s *stage) changes() []event {
	var events []event
	transports := []string{"direct", "ipip", "vxlan", "direct", "vxlan", "ipip", "direct"}
	for i, to := range transports[1:] {
		from := transports[i]
		events = append(events, event{
			name:    fmt.Sprintf("change from %s to %s", from, to),
			prepare: func(ctx context.Context) error { return s.goBy(ctx, from) },
			happen:  func(ctx context.Context) error { return s.goBy(ctx, to) },
		})
	}
	return events
}

// goBy allows one transport alone, and returns once every peer is reached by it.
func (s *stage) goBy(ctx context.Context, transport string) error {
	patch := fmt.Sprintf(`{"spec":{"transports":[%q]}}`, transport)
	if _, err := s.quiet(ctx, "patch", "clusternetwork", "default", "--type", "merge", "-p", patch); err != nil {
		return err
	}
	return s.until(ctx, 60*time.Second, func() error { return s.everyPeerBy(ctx, transport) })
}

const agents = "app.kubernetes.io/component=agent"

func (s *stage) restartAgents(ctx context.Context) error {
	if _, err := s.quiet(ctx, "-n", "kube-system", "delete", "pod", "-l", agents, "--timeout=60s"); err != nil {
		return err
	}
	return s.agentsReady(ctx)
}

// killAgents kills each agent's process, and waits for its successor.
func (s *stage) killAgents(ctx context.Context) error {
	restarts, err := s.restarts(ctx)
	if err != nil {
		return err
	}
	for _, node := range s.nodes() {
		if _, err := s.l.NodeExec(ctx, node, "pkill", "-9", "-f", "^(/[a-z/]*)?ropeway agent"); err != nil {
			return err
		}
	}
	err = s.until(ctx, 60*time.Second, func() error {
		now, err := s.restarts(ctx)
		if err != nil {
			return err
		}
		for pod, before := range restarts {
			if now[pod] == before {
				return fmt.Errorf("the kubelet of %s has not noticed it", pod)
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	return s.agentsReady(ctx)
}

// restarts maps an agent's pod -> how often its container was started again.
func (s *stage) restarts(ctx context.Context) (map[string]string, error) {
	const format = `jsonpath={range .items[*]}{.metadata.name} {.status.containerStatuses[0].restartCount}{"\n"}{end}`
	out, err := s.quiet(ctx, "-n", "kube-system", "get", "pod", "-l", agents, "-o", format)
	if err != nil {
		return nil, err
	}
	counts := map[string]string{}
	for line := range strings.Lines(out) {
		if pod, count, ok := strings.Cut(strings.TrimSpace(line), " "); ok {
			counts[pod] = count
		}
	}
	return counts, nil
}

// removeAgents takes the agents off the nodes for a while. A pod that is made
// meanwhile starts once they are back.
func (s *stage) removeAgents(ctx context.Context) error {
	selector := func(value string) string {
		return fmt.Sprintf(`{"spec":{"template":{"spec":{"nodeSelector":{"ropeway.dev/absent":%s}}}}}`, value)
	}
	if _, err := s.quiet(ctx, "-n", "kube-system", "patch", "ds", "ropeway-agent", "-p", selector(`"yes"`)); err != nil {
		return err
	}
	back := func(ctx context.Context) error {
		_, err := s.quiet(ctx, "-n", "kube-system", "patch", "ds", "ropeway-agent", "-p", selector("null"))
		return err
	}
	_, err := s.quiet(ctx, "-n", "kube-system", "wait", "--for=delete", "pod", "-l", agents, "--timeout=60s")
	if err != nil {
		return errors.Join(err, back(ctx))
	}
	meanwhile := fmt.Sprintf(`{"apiVersion":"v1","kind":"Pod","metadata":{"name":"steady-meanwhile"},"spec":{"nodeName":%q,"terminationGracePeriodSeconds":0,
"tolerations":[{"operator":"Exists"}],"containers":[{"name":"web","image":"lab.ropeway.dev/web:1"}]}}`, s.nodes()[0])
	_, err = s.l.KubectlInput(ctx, strings.NewReader(meanwhile), "apply", "-f", "-")
	defer func() { _, _ = s.quiet(ctx, "delete", "pod", "steady-meanwhile", "--ignore-not-found", "--wait=false") }()
	select {
	case <-ctx.Done():
	case <-time.After(absence):
	}
	if err := errors.Join(err, back(context.WithoutCancel(ctx))); err != nil {
		return err
	}
	if err := s.agentsReady(ctx); err != nil {
		return err
	}
	_, err = s.quiet(ctx, "wait", "--for=condition=Ready", "pod/steady-meanwhile", "--timeout=60s")
	return err
}

func (s *stage) agentsReady(ctx context.Context) error {
	_, err := s.quiet(ctx, "-n", "kube-system", "rollout", "status", "ds/ropeway-agent", "--timeout=90s")
	return err
}

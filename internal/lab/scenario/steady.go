package scenario

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os/exec"
	"strings"
	"time"

	"ropeway.dev/ropeway/internal/lab/config"
	"ropeway.dev/ropeway/internal/lab/steady"
	"ropeway.dev/ropeway/internal/lab/vpc"
)

// steadyPods are the two ends of the traffic: the server on the second node, a
// client on the first, and a Service before the server. They ask for CPU: with
// the weight of a pod that asks for nothing they would be what loses packets.
const steadyPods = `apiVersion: v1
kind: Pod
metadata: {name: steady-server, labels: {app: steady}}
spec: {nodeName: %[3]s, terminationGracePeriodSeconds: 0, tolerations: [{operator: Exists}], volumes: [{name: program, hostPath: {path: %[1]s}}],
  containers: [{name: steady, image: lab.ropeway.dev/web:1, command: [/steady, %[4]s, serve], volumeMounts: [{name: program, mountPath: /steady}], resources: {requests: {cpu: 500m}},
    readinessProbe: {tcpSocket: {port: %[5]d}, periodSeconds: 1}}]}
---
apiVersion: v1
kind: Pod
metadata: {name: steady-client}
spec: {nodeName: %[2]s, terminationGracePeriodSeconds: 0, tolerations: [{operator: Exists}], volumes: [{name: program, hostPath: {path: %[1]s}}],
  containers: [{name: steady, image: lab.ropeway.dev/web:1, volumeMounts: [{name: program, mountPath: /steady}], resources: {requests: {cpu: 500m}}}]}
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

// steady plays what must go unnoticed: the agent restarted, killed and absent,
// and every change of transport, under traffic of every kind.
func (s *stage) steady(ctx context.Context) error {
	var ways []way
	err := s.r.Step(ctx, "traffic of every kind stands ready", func(ctx context.Context) (err error) {
		if err := s.publish(ctx); err != nil {
			return err
		}
		if err := vpc.AdmitNodePorts(ctx, s.l.Name(), true); err != nil {
			return err
		}
		ways, err = s.startSteady(ctx)
		return err
	})
	if err != nil {
		return err
	}
	defer func() {
		_ = vpc.AdmitNodePorts(context.WithoutCancel(ctx), s.l.Name(), false)
		s.endSteady(context.WithoutCancel(ctx))
	}()
	for _, e := range s.events() {
		_ = s.r.Step(ctx, e.name+": nothing is noticed", func(ctx context.Context) error { return s.unnoticed(ctx, ways, e.happen) })
	}
	return nil
}

// startSteady puts both ends in place and returns the ways between them.
func (s *stage) startSteady(ctx context.Context) ([]way, error) {
	near, far := s.nodes()[0], s.nodes()[1]
	objects := fmt.Sprintf(steadyPods, config.Binary("ropeway-lab"), near, far, steady.Command, steady.Port, steadyNodePort)
	if _, err := s.l.KubectlInput(ctx, strings.NewReader(objects), "apply", "-f", "-"); err != nil {
		return nil, err
	}
	if _, err := s.quiet(ctx, "wait", "--for=condition=Ready", "pod/steady-server", "pod/steady-client", "--timeout=60s"); err != nil {
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
	var node netip.Addr
	for _, a := range s.l.Nodes()[0].Addresses {
		if a.Addr().Is4() == server.Is4() {
			node = a.Addr()
		}
	}
	return []way{
		{"pod to pod on another node", "", toServer},
		{"pod to ClusterIP", "", toService},
		{"outside to NodePort", "outside", netip.AddrPortFrom(node, steadyNodePort)},
		{"node to remote pod", near, toServer},
		{"node to ClusterIP", near, toService},
	}, nil
}

// endSteady takes both ends away.
func (s *stage) endSteady(ctx context.Context) {
	_, _ = s.quiet(ctx, "delete", "pod/steady-server", "pod/steady-client", "svc/steady", "--ignore-not-found", "--wait=false")
}

// event is something that nobody is to notice.
type event struct {
	name   string
	happen func(context.Context) error
}

// absence is how long the agents are away.
const absence = 60 * time.Second

func (s *stage) events() []event {
	events := []event{
		{"every agent restarts", s.restartAgents},
		{"every agent is killed with -9", s.killAgents},
		{fmt.Sprintf("no agent for %s", absence), s.removeAgents},
	}
	// Each ordered pair of transports once, from direct on.
	for _, transport := range []string{"ipip", "vxlan", "direct", "vxlan", "ipip", "direct"} {
		events = append(events, event{"change to " + transport, func(ctx context.Context) error {
			patch := fmt.Sprintf(`{"spec":{"transports":[%q]}}`, transport)
			if _, err := s.quiet(ctx, "patch", "clusternetwork", "default", "--type", "merge", "-p", patch); err != nil {
				return err
			}
			return s.until(ctx, 60*time.Second, func() error { return s.everyPeerBy(ctx, transport) })
		}})
	}
	return events
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
		if err == nil && now == restarts {
			err = errors.New("the kubelets have not noticed it")
		}
		return err
	})
	if err != nil {
		return err
	}
	return s.agentsReady(ctx)
}

// restarts returns the agents' restart counts.
func (s *stage) restarts(ctx context.Context) (string, error) {
	return s.quiet(ctx, "-n", "kube-system", "get", "pod", "-l", agents, "-o", "jsonpath={.items[*].status.containerStatuses[0].restartCount}")
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

// unnoticed lets something happen while every way is watched.
func (s *stage) unnoticed(ctx context.Context, ways []way, happen func(context.Context) error) error {
	return s.underTraffic(ctx, ways, steady.Result.Clean, happen)
}

// underTraffic lets something happen while every way is watched, and wants each
// result to be well.
func (s *stage) underTraffic(ctx context.Context, ways []way, well func(steady.Result) bool, happen func(context.Context) error) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var watches []*watch
	for _, w := range ways {
		one, err := s.watch(ctx, w)
		if err != nil {
			return err
		}
		watches = append(watches, one)
	}
	err := happen(ctx)
	time.Sleep(time.Second) // what comes late of it
	for _, w := range watches {
		result, failed := w.end()
		if failed == nil && !well(result) {
			failed = fmt.Errorf("%s: %s", w.name, result)
		}
		if failed == nil {
			s.note("%s: %s", w.name, result)
		}
		err = errors.Join(err, failed)
	}
	return err
}

// watch is a watcher at work.
type watch struct {
	name  string
	stop  io.Closer
	lines *bufio.Scanner
	done  chan error
}

// watcher is the command that watches a way.
func (s *stage) watcher(ctx context.Context, w way) (*exec.Cmd, error) {
	argv := []string{config.Binary("ropeway-lab"), steady.Command, "watch", w.target.String()}
	switch w.host {
	case "":
		argv[0] = "/steady"
		return s.l.KubectlCommand(ctx, append([]string{"exec", "-i", "steady-client", "--"}, argv...)...)
	case "outside":
		argv[0] = s.l.Binary("ropeway-lab")
	}
	return s.l.HostCommand(ctx, w.host, argv...)
}

// watch starts a watcher and returns once it watches.
func (s *stage) watch(ctx context.Context, w way) (*watch, error) {
	cmd, err := s.watcher(ctx, w)
	if err != nil {
		return nil, err
	}
	stop, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	out, written := io.Pipe()
	var complaints strings.Builder
	cmd.Stdout, cmd.Stderr, cmd.WaitDelay = written, &complaints, 5*time.Second
	one := &watch{name: w.name, stop: stop, lines: bufio.NewScanner(out), done: make(chan error, 1)}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	go func() {
		err := cmd.Wait()
		if err != nil {
			err = fmt.Errorf("%w: %s", err, strings.TrimSpace(complaints.String()))
		}
		written.Close()
		one.done <- err
	}()
	if !one.lines.Scan() {
		return nil, fmt.Errorf("%s: %w", w.name, errors.Join(errors.New("the watcher did not begin"), <-one.done))
	}
	return one, nil
}

// end stops the watcher and returns what it saw.
func (w *watch) end() (steady.Result, error) {
	var result steady.Result
	w.stop.Close()
	if !w.lines.Scan() {
		return result, fmt.Errorf("%s: %w", w.name, errors.Join(errors.New("the watcher did not end"), <-w.done))
	}
	if err := json.Unmarshal(w.lines.Bytes(), &result); err != nil {
		return result, fmt.Errorf("%s: reading %q: %w", w.name, w.lines.Text(), err)
	}
	return result, <-w.done
}

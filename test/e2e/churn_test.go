//go:build e2e

package e2e

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"ropeway.dev/ropeway/internal/lab"
)

// TestNothingLeaks is about churn, and these say how much of it.
var (
	churnSteps = flag.Int("churn", 120, "creations and deletions of pods in TestNothingLeaks")
	churnSeed  = flag.Uint64("churn-seed", 0, "start of the chances in TestNothingLeaks; 0 takes a new one and prints it")
)

// churnKills is how often an agent is killed in TestNothingLeaks, at least.
const churnKills = 4

// churnPatience is how long that is waited for.
const churnPatience = 8 * time.Minute

// TestNothingLeaks: after hundreds of pods that come and go in every order, while
// an agent is killed every few seconds, the nodes and the API hold what they held
// before. Most pods are sandboxes for which the installed plugin is run as a
// runtime would; beside them a Deployment grows and shrinks, for the real
// runtime's part and the chained plugins'.
func TestNothingLeaks(t *testing.T) {
	seed := *churnSeed
	if seed == 0 {
		seed = rand.Uint64()
	}
	t.Logf("each node's sandboxes come and go as before with: -run TestNothingLeaks -churn %d -churn-seed %d", *churnSteps, seed)
	before := holdingsAtRest(t)

	ctx, stop := context.WithCancel(t.Context())
	enough := time.Now().Add(churnPatience)
	var kills atomic.Int32
	var beside, churn sync.WaitGroup
	beside.Go(func() { killAgents(ctx, &kills) })
	beside.Go(func() { growAndShrink(ctx, t) })
	const workers = 4
	for w := range workers {
		c := &churner{t: t, node: cluster.Nodes()[w%len(cluster.Nodes())].Name, prefix: fmt.Sprintf("churn-%d-", w), random: rand.New(rand.NewPCG(seed, uint64(w)))}
		churn.Go(func() {
			for i := 0; i < *churnSteps/workers || kills.Load() < churnKills && time.Now().Before(enough); i++ {
				c.step()
			}
			c.end()
		})
	}
	churn.Wait()
	stop()
	beside.Wait()
	if t.Logf("agents were killed %d times", kills.Load()); kills.Load() < churnKills {
		t.Errorf("that is not often enough, want %d: an agent that was killed did not come back soon", churnKills)
	}
	kubectl(t, cluster, "delete", "deploy", "churn", "--timeout=120s")
	kubectl(t, cluster, "wait", "--for=delete", "pod", "-l", "app=churn", "--timeout=120s")
	kubectl(t, cluster, "-n", "kube-system", "rollout", "status", "ds/ropeway-agent", "--timeout=180s")
	eventually(t, 120*time.Second, func() error { return before.differFrom(holdings(t)) })
}

// churner makes and removes sandboxes on a node.
type churner struct {
	t      *testing.T
	node   string
	prefix string
	random *rand.Rand
	live   []string
	made   int
	// failed and interrupted are ADDs.
	failed, interrupted int
}

// step makes a sandbox, or removes one in one of the ways in which runtimes do.
func (c *churner) step() {
	if len(c.live) < 8 && (len(c.live) == 0 || c.random.IntN(3) > 0) {
		c.add()
		return
	}
	i := c.random.IntN(len(c.live))
	name := c.live[i]
	c.live = slices.Delete(c.live, i, i+1)
	c.del(name)
}

// add makes a sandbox. Where ADD fails, or is killed half-way, a runtime DELs.
func (c *churner) add() {
	c.made++
	name := fmt.Sprint(c.prefix, c.made)
	if _, err := cluster.NodeExec(context.Background(), c.node, "ip", "netns", "add", name); err != nil {
		c.t.Error(err)
		return
	}
	var under []string
	if c.random.IntN(8) == 0 {
		under = []string{"timeout", "-s", "KILL", fmt.Sprintf("0.%03d", 1+c.random.IntN(40))}
	}
	_, err := invoke(c.node, "ADD", name, under...)
	switch {
	case err == nil:
		c.live = append(c.live, name)
		return
	case under != nil:
		c.interrupted++
	default:
		c.failed++
	}
	c.del(name)
}

// del never fails, whatever became of the sandbox.
func (c *churner) del(name string) {
	gone := c.random.IntN(2) == 0 // the namespace goes first
	remove := func() {
		if _, err := cluster.NodeExec(context.Background(), c.node, "ip", "netns", "del", name); err != nil {
			c.t.Error(err)
		}
	}
	if gone {
		remove()
	}
	for range 1 + c.random.IntN(2) {
		if _, err := invoke(c.node, "DEL", name); err != nil {
			c.t.Errorf("DEL of %s (its namespace gone: %t): %v", name, gone, err)
		}
	}
	if !gone {
		remove()
	}
}

// end removes what is left. An ADD waits for an agent that is on its way back, so
// most must have gone well.
func (c *churner) end() {
	for _, name := range c.live {
		c.del(name)
	}
	c.t.Logf("node %s: %d sandboxes made, %d ADDs interrupted, %d failed", c.node, c.made, c.interrupted, c.failed)
	if c.failed > c.made/2 {
		c.t.Errorf("node %s: %d of %d ADDs failed: the plugin does not wait for its agent", c.node, c.failed, c.made)
	}
}

// killAgents kills agents with -9, each node's in turn, the next a few seconds after
// the one before is back. Its pod goes too, or the kubelet would let each agent wait
// longer than the one before.
func killAgents(ctx context.Context, kills *atomic.Int32) {
	tick := time.NewTicker(6 * time.Second)
	defer tick.Stop()
	for i := 0; ; {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		node := cluster.Nodes()[i%len(cluster.Nodes())]
		if !agentAnswers(ctx, node) {
			continue
		}
		if _, err := cluster.NodeExec(ctx, node.Name, "pkill", "-9", "-f", "^(/[a-z/]*)?ropeway agent"); err == nil {
			kills.Add(1)
			i++
		}
		_, _ = cluster.Kubectl(ctx, "-n", "kube-system", "delete", "pod", "-l", "app.kubernetes.io/component=agent",
			"--field-selector", "spec.nodeName="+node.Name, "--grace-period=0", "--force", "--wait=false") // the next turn tries again
	}
}

// agentAnswers tells whether a node's agent says that it is ready.
func agentAnswers(ctx context.Context, node lab.Node) bool {
	_, err := cluster.NodeExec(ctx, node.Name, "curl", "-s", "-f", "--max-time", "2", agentURL(node)+"/readyz")
	return err == nil
}

// agentURL is where a node's agent serves health and state.
func agentURL(node lab.Node) string {
	return "http://" + netip.AddrPortFrom(node.Addresses[0].Addr(), 9797).String()
}

// churnDeployment has a limit of bandwidth, which makes a device beside each pod.
const churnDeployment = `apiVersion: apps/v1
kind: Deployment
metadata: {name: churn}
spec:
  replicas: 0
  selector: {matchLabels: {app: churn}}
  template:
    metadata: {labels: {app: churn}, annotations: {kubernetes.io/egress-bandwidth: 100M}}
    spec: {terminationGracePeriodSeconds: 0, containers: [{name: web, image: "lab.ropeway.dev/web:1", imagePullPolicy: IfNotPresent}]}
`

// growAndShrink has a Deployment go up and down.
func growAndShrink(ctx context.Context, t *testing.T) {
	if _, err := cluster.KubectlInput(ctx, strings.NewReader(churnDeployment), "apply", "-f", "-"); err != nil {
		t.Error(err)
		return
	}
	tick := time.NewTicker(5 * time.Second)
	defer tick.Stop()
	for i := 1; ; i++ {
		if _, err := cluster.Kubectl(ctx, "scale", "deploy/churn", fmt.Sprint("--replicas=", i%2*4)); err != nil && ctx.Err() == nil {
			t.Error(err)
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// invoke runs the installed plugin as a container runtime would, by a command that
// runs a command where one is given, and returns its answer.
func invoke(node, verb, sandbox string, under ...string) (string, error) {
	const conf = `{"cniVersion":"1.0.0","name":"k8s-pod-network","type":"ropeway","ipam":{"type":"ropeway-ipam"}}`
	line := slices.Concat([]string{"env", "CNI_COMMAND=" + verb, "CNI_CONTAINERID=" + sandbox,
		"CNI_NETNS=/run/netns/" + sandbox, "CNI_IFNAME=eth0", "CNI_PATH=/opt/cni/bin"}, under, []string{"/opt/cni/bin/ropeway"})
	cmd, err := cluster.HostCommand(context.Background(), node, line...)
	if err != nil {
		return "", err
	}
	cmd.Stdin = strings.NewReader(conf)
	out, err := cmd.Output()
	if exit, ok := errors.AsType[*exec.ExitError](err); ok {
		err = fmt.Errorf("%w: %s%s", err, out, exit.Stderr)
	}
	return string(out), err
}

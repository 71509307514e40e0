//go:build e2e

package e2e

import (
	"context"
	"flag"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestPodsUnderEveryFault is about these.
var (
	faultySteps = flag.Int("faulty-churn", 0, "creations and deletions of pods in TestPodsUnderEveryFault; 0 leaves it out")
	faultySeed  = flag.Uint64("faulty-churn-seed", 0, "start of the chances in TestPodsUnderEveryFault; 0 takes a new one and prints it")
)

const (
	faultySlots = 10 // pods at most
	faultyEvery = 8  // steps from one fault to the next
	faultyLast  = 5  // steps that a fault lasts which does not end by itself
	faultyCheck = 5  // faults from one look at everything to the next
)

// TestPodsUnderEveryFault makes and deletes pods through kubelet and containerd,
// while agents and controllers are killed, the API server stands still or is slow, a
// node is switched off and on, its disk is full, and its state is wiped. At each
// rest no address is had twice, and every pod is ready and reached from the nodes;
// at the end nodes and API hold what they held before.
//
// It plays with processes what TestCrashSchedule plays faster without kubelets.
func TestPodsUnderEveryFault(t *testing.T) {
	if *faultySteps == 0 {
		t.Skip("no steps: give -faulty-churn (docs/development.md)")
	}
	seed := *faultySeed
	if seed == 0 {
		seed = rand.Uint64()
	}
	t.Logf("replay with: -run TestPodsUnderEveryFault -faulty-churn %d -faulty-churn-seed %d", *faultySteps, seed)
	before := holdingsAtRest(t).nameless()
	f := &faulty{t: t, random: rand.New(rand.NewPCG(seed, 0)), live: map[string]bool{}, counts: map[string]int{}}
	faults := f.faults()
	begun := 0
	for i := range *faultySteps {
		if i%faultyEvery == faultyEvery/2 {
			f.begin(faults[begun%len(faults)])
			begun++
		}
		f.step()
		f.age()
		if i%(faultyEvery*faultyCheck) == faultyEvery*faultyCheck-1 {
			f.rest()
		}
	}
	f.rest()
	f.clear()
	t.Logf("%d faults; pods: %v", begun, f.counts)
	eventually(t, 3*time.Minute, func() error { return before.differFrom(holdings(t).nameless()) })
}

// faulty is a run of TestPodsUnderEveryFault.
type faulty struct {
	t      *testing.T
	random *rand.Rand
	live   map[string]bool // name -> it is wanted
	counts map[string]int

	undo func() // ends the fault that is there
	left int    // steps that it lasts still
}

// step makes a pod, or takes one away, in one of the ways in which people do.
func (f *faulty) step() {
	name := fmt.Sprintf("faulty-%d", f.random.IntN(faultySlots))
	way := f.random.IntN(4)
	switch {
	case !f.live[name]:
		f.count("made")
		f.live[name] = true
		f.create(name)
	case way == 0: // its successor comes while its sandbox lives, maybe elsewhere
		f.count("replaced by force")
		f.kubectl("delete", "pod", name, "--force", "--grace-period=0", "--wait=false")
		f.create(name)
	case way == 1:
		f.count("deleted by force")
		f.live[name] = false
		f.kubectl("delete", "pod", name, "--force", "--grace-period=0", "--wait=false")
	default:
		f.count("deleted")
		f.live[name] = false
		f.kubectl("delete", "pod", name, "--wait=false")
	}
}

func (f *faulty) count(what string) { f.counts[what]++ }

func (f *faulty) node() string {
	return cluster.Nodes()[f.random.IntN(len(cluster.Nodes()))].Name
}

// kubectl tries until the API server, which may be slow, does as it is told.
func (f *faulty) kubectl(args ...string) {
	f.t.Helper()
	eventually(f.t, 2*time.Minute, func() error {
		_, err := cluster.Kubectl(f.t.Context(), args...)
		if err != nil && args[0] == "delete" && strings.Contains(err.Error(), "not found") {
			return nil // an earlier try was heard
		}
		return err
	})
}

// create makes a pod, once one of that name is not in its way any more.
func (f *faulty) create(name string) {
	f.t.Helper()
	yaml := pod(name, f.node(), "")
	eventually(f.t, 2*time.Minute, func() error {
		_, err := cluster.KubectlInput(f.t.Context(), strings.NewReader(yaml), "create", "-f", "-")
		if err == nil || !strings.Contains(err.Error(), "AlreadyExists") {
			return err
		}
		leaves, failed := cluster.Kubectl(f.t.Context(), "get", "pod", name, "-o", "jsonpath={.metadata.deletionTimestamp}")
		if failed == nil && len(leaves) == 0 {
			return nil // an earlier try was heard
		}
		return err
	})
}

// fault is something that happens to a cluster.
type fault struct {
	name string
	do   func(node string) (undo func()) // nil: it ends by itself
}

// faults are all of them, in an order that chance decides.
func (f *faulty) faults() []fault {
	all := []fault{
		{"agent killed", f.killAgent}, {"controllers killed", f.killControllers},
		{"API server stopped", f.stopAPIServer}, {"API server killed", f.killAPIServer}, {"API server slow", f.slowAPIServer},
		{"node rebooted", f.reboot}, {"disk full", f.fillDisk}, {"state wiped", f.wipe},
	}
	f.random.Shuffle(len(all), func(i, j int) { all[i], all[j] = all[j], all[i] })
	return all
}

func (f *faulty) begin(one fault) {
	f.end()
	node := f.node()
	f.t.Logf("%s: %s (%s)", time.Now().Format(time.TimeOnly), one.name, node)
	f.undo, f.left = one.do(node), faultyLast
}

// age ends a fault that has lasted long enough.
func (f *faulty) age() {
	if f.left--; f.left <= 0 {
		f.end()
	}
}

func (f *faulty) end() {
	if f.undo != nil {
		f.undo()
	}
	f.undo = nil
}

func (f *faulty) killAgent(node string) func() {
	f.kill(node, "agent")
	return nil
}

// kill ends a program of Ropeway's on a node, and its pod, or kubelet would wait
// longer each time before it starts it again.
func (f *faulty) kill(node, program string) {
	// It may be on its way back from the fault before.
	_, _ = cluster.NodeExec(f.t.Context(), node, "pkill", "-9", "-f", "^(/[a-z/]*)?ropeway "+program)
	f.kubectl("-n", "kube-system", "delete", "pod", "-l", "app.kubernetes.io/component="+program,
		"--field-selector", "spec.nodeName="+node, "--grace-period=0", "--force", "--wait=false")
}

func (f *faulty) killControllers(string) func() {
	for _, n := range cluster.Nodes() {
		f.kill(n.Name, "controller")
	}
	return nil
}

// stopAPIServer has it stand still while an agent is killed and a pod's container ends.
func (f *faulty) stopAPIServer(node string) func() {
	signal := f.apiServer()
	signal(unix.SIGSTOP)
	defer signal(unix.SIGCONT)
	_, _ = cluster.NodeExec(f.t.Context(), node, "pkill", "-9", "-f", "^(/[a-z/]*)?ropeway agent")
	_, _ = cluster.NodeExec(f.t.Context(), node, "sh", "-c", "sleep 8")
	return nil
}

func (f *faulty) killAPIServer(string) func() {
	if err := cluster.Restart(f.t.Context(), "control-plane", "kube-apiserver", unix.SIGKILL); err != nil {
		f.t.Fatal(err)
	}
	return nil
}

// slowAPIServer has it stand still most of the time.
func (f *faulty) slowAPIServer(string) func() {
	signal := f.apiServer()
	ctx, cancel := context.WithCancel(f.t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		for tick := time.NewTicker(150 * time.Millisecond); ; {
			signal(unix.SIGSTOP)
			<-tick.C
			signal(unix.SIGCONT)
			select {
			case <-ctx.Done():
				tick.Stop()
				return
			case <-time.After(50 * time.Millisecond):
			}
		}
	}()
	return func() { cancel(); <-done }
}

// apiServer sends signals to the API server.
func (f *faulty) apiServer() func(unix.Signal) {
	status, err := cluster.Status(f.t.Context())
	if err != nil {
		f.t.Fatal(err)
	}
	for _, host := range status.Hosts {
		for _, p := range host.Programs {
			if p.Name == "kube-apiserver" && p.PID != 0 {
				return func(s unix.Signal) {
					if err := unix.Kill(p.PID, s); err != nil {
						f.t.Errorf("kube-apiserver: %v", err)
					}
				}
			}
		}
	}
	f.t.Fatal("the lab has no process kube-apiserver")
	return nil
}

func (f *faulty) reboot(node string) func() {
	if err := cluster.Reboot(f.t.Context(), node); err != nil {
		f.t.Fatal(err)
	}
	return nil
}

// fillDisk leaves hardly a byte of the file system with the node's state.
func (f *faulty) fillDisk(node string) func() {
	const (
		full  = `mount -o remount,size=$(( ($(df -k --output=used /run | tail -1) + 64) * 1024 )) /run && head -c 1M /dev/zero > /run/filler`
		drain = `rm -f /run/filler; mount -o remount,size=50% /run`
	)
	// head fails, as everybody does who writes there now.
	_, _ = cluster.NodeExec(f.t.Context(), node, "sh", "-c", full)
	if out, err := cluster.NodeExec(f.t.Context(), node, "sh", "-c", `[ "$(df -k --output=avail /run | tail -1)" -lt 64 ]`); err != nil {
		f.t.Errorf("the disk of %s is not full: %v %s", node, err, out)
	}
	f.killAgent(node)
	return func() {
		if _, err := cluster.NodeExec(context.Background(), node, "sh", "-c", drain); err != nil {
			f.t.Error(err)
		}
	}
}

func (f *faulty) wipe(node string) func() {
	if _, err := cluster.NodeExec(f.t.Context(), node, "sh", "-c", "rm -rf /run/ropeway/*"); err != nil {
		f.t.Error(err)
	}
	f.killAgent(node)
	return nil
}

// rest waits until everything is well again, and looks at all pods.
func (f *faulty) rest() {
	f.end()
	var names []string
	for name, wanted := range f.live {
		if wanted {
			names = append(names, "pod/"+name)
		}
	}
	slices.Sort(names)
	eventually(f.t, 5*time.Minute, func() error {
		for _, args := range [][]string{
			{"wait", "--for=condition=Ready", "node", "--all", "--timeout=1s"},
			{"-n", "kube-system", "rollout", "status", "ds/ropeway-agent", "--timeout=1s"},
			{"-n", "kube-system", "rollout", "status", "deploy/ropeway-controller", "--timeout=1s"},
			append([]string{"wait", "--for=condition=Ready", "--timeout=1s", "node/" + cluster.Nodes()[0].Name}, names...),
		} {
			if _, err := cluster.Kubectl(f.t.Context(), args...); err != nil {
				return err
			}
		}
		return f.leaving()
	})
	noAddressTwice(f.t)
	for _, name := range names {
		address := kubectl(f.t, cluster, "get", name, "-o", "jsonpath={.status.podIP}")
		for _, n := range cluster.Nodes() {
			eventually(f.t, 30*time.Second, func() error {
				_, err := cluster.NodeExec(f.t.Context(), n.Name, "ping", "-c1", "-W2", address)
				return err
			})
		}
	}
}

// leaving names pods that are on their way out still.
func (f *faulty) leaving() error {
	out, err := cluster.Kubectl(f.t.Context(), "get", "pods", "-o", `jsonpath={range .items[*]}{.metadata.name} {.metadata.deletionTimestamp}{"\n"}{end}`)
	for line := range strings.Lines(string(out)) {
		if name, since, _ := strings.Cut(strings.TrimSpace(line), " "); since != "" {
			return fmt.Errorf("pod %s is on its way out since %s", name, since)
		}
	}
	return err
}

// clear deletes all pods.
func (f *faulty) clear() {
	for name := range f.live {
		f.kubectl("delete", "pod", name, "--ignore-not-found", "--timeout=60s")
	}
}

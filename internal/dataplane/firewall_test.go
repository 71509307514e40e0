package dataplane

import (
	"context"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"ropeway.dev/ropeway/internal/plan"
)

// wall is a firewall that forwards nothing, loaded in one transaction in the place
// of what there was of it.
const wall = `nft -f - <<X
table inet wall
delete table inet wall
table inet wall {
	set ours { type ipv4_addr; elements = { 192.0.2.1 }; }
	chain forward { type filter hook forward priority 0; policy drop; }
	chain input { type filter hook input priority 0; tcp dport 22 accept; }
	chain more { counter; }
}
X`

// TestFirewallsAreTold: what another program does to our table, or to a chain that
// forwarded packets pass, is told; what it does elsewhere, and what Set itself
// writes, is not.
func TestFirewallsAreTold(t *testing.T) {
	f := newFabric(t, 2, plan.IPIP, plan.VXLAN)
	f.setAll()
	n := f.nodes[0]
	n.dataplane.firewalls.pause = 20 * time.Millisecond
	var changes <-chan struct{}
	if err := n.ns.Do(func() error { changes = n.dataplane.Changes(t.Context()); return nil }); err != nil {
		t.Fatal(err)
	}
	for _, cause := range []string{
		"nft flush ruleset", "nft flush chain inet ropeway nat", "nft delete element inet ropeway nodes4 '{ 192.168.2.2 }'",
		wall, "nft add rule inet wall forward counter drop", "nft flush chain inet wall forward",
		"nft add chain inet wall forward '{ policy accept; }'", "nft add chain inet wall forward '{ policy drop; }'",
		"iptables-nft -P FORWARD DROP", "ip6tables-nft -A FORWARD -j REJECT",
	} {
		if _, err := n.set(); err != nil {
			t.Fatal(err)
		}
		drain(changes)
		f.sh(n.ns, cause)
		if !within(changes, 3*time.Second) {
			t.Errorf("not told: %s", cause)
		}
	}
	drain(changes)
	f.sh(n.ns, "nft flush chain inet ropeway nat")
	within(changes, 3*time.Second)
	if r, err := n.set(); err != nil || !r.Changed { // the whole table
		t.Fatalf("Set: %v, %+v", err, r)
	}
	f.sh(n.ns, "nft add element inet wall ours '{ 192.0.2.2 }'; nft add rule inet wall more drop; nft flush chain inet wall input; "+
		"nft add table ip kube-proxy; nft add chain ip kube-proxy pre '{ type nat hook prerouting priority 0; }'; nft delete table ip kube-proxy")
	f.network.Masquerade = false
	if r, err := n.set(); err != nil || !r.Changed { // a chain of it
		t.Fatalf("Set: %v, %+v", err, r)
	}
	if within(changes, 300*time.Millisecond) {
		t.Error("told of what forwards nothing, or of our own")
	}
}

// within reports whether something is told before the time is over.
func within(changes <-chan struct{}, d time.Duration) bool {
	select {
	case <-changes:
		return true
	case <-time.After(d):
		return false
	}
}

// TestFirewallAppearsUnderTraffic: pods go on through a firewall that is started,
// reloaded, or takes all rules with it, as soon as the kernel has told of it.
func TestFirewallAppearsUnderTraffic(t *testing.T) {
	f := newFabric(t, 2, plan.IPIP, plan.VXLAN)
	f.setAll()
	n := f.nodes[0]
	a, b := n.addPod(1500), f.nodes[1].addPod(1500)
	s := f.stream(a, b, 1000)
	stop := n.answerChanges()
	for name, harm := range map[string]string{
		"started": wall, "reloaded": wall,
		"iptables": "iptables-nft -P FORWARD DROP",
		"flushed":  "nft flush ruleset",
	} {
		f.sh(n.ns, harm)
		eventually(t, name+": the guards are there", func() bool {
			out, _ := f.run(n.ns, "nft list chain inet ropeway from_pods")
			return strings.Contains(out, "not the pod's address")
		})
		eventually(t, name+": pods are reached", func() bool {
			_, err := f.run(a.ns, "ping -q -c 1 -W 0.2 "+b.v4.String())
			return err == nil
		})
		before := s.received.Load()
		eventually(t, name+": the stream goes on", func() bool { return s.received.Load() > before+50 })
	}
	stop()
	close(s.stop)
	<-s.done
}

// answerChanges calls Set whenever the kernel tells of a change, as an agent does,
// until it is stopped.
func (n *testNode) answerChanges() (stop func()) {
	n.f.t.Helper()
	ctx, cancel := context.WithCancel(n.f.t.Context())
	var changes <-chan struct{}
	if err := n.ns.Do(func() error { changes = n.dataplane.Changes(ctx); return nil }); err != nil {
		n.f.t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			select {
			case <-ctx.Done():
				return
			case <-changes:
				if _, err := n.set(); err != nil {
					n.f.t.Errorf("Set after a change: %v", err)
				}
			}
		}
	}()
	return func() { cancel(); <-done }
}

// TestForwardPolicyThatAppears: a Set sees a chain that closed a moment before,
// also where nobody listens to changes; and looks at none while nothing changes.
func TestForwardPolicyThatAppears(t *testing.T) {
	f := newFabric(t, 2, plan.IPIP, plan.VXLAN)
	f.setAll()
	n := f.nodes[0]
	a, b := n.addPod(1500), f.nodes[1].addPod(1500)
	for _, harm := range []string{wall, "nft flush chain inet wall forward", "iptables-nft -P FORWARD DROP"} {
		f.sh(n.ns, harm)
		if r, err := n.set(); err != nil || !r.Changed {
			t.Errorf("%s: Set: %v, %+v", harm, err, r)
		}
		f.ping(a.ns, b.v4.String())
	}
	n.set()
	err := n.ns.Do(func() error {
		if n.dataplane.firewalls.due() {
			t.Error("nothing changed, and other programs' chains are to be looked at")
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// TestPaced: calls that come too fast are one.
func TestPaced(t *testing.T) {
	var done atomic.Int32
	p := &paced{pause: time.Hour, do: func() { done.Add(1) }}
	p.call()
	eventually(t, "the first call is answered at once", func() bool { return done.Load() == 1 })
	for range 100 {
		p.call()
	}
	if n := done.Load(); n != 1 || !p.armed {
		t.Errorf("100 calls within the pause were answered %d times", n-1)
	}
}

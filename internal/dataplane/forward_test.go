package dataplane

import (
	"context"
	"strings"
	"testing"

	"ropeway.dev/ropeway/internal/plan"
)

// TestForwardPolicyDrop: where docker, ufw, firewalld or a person lets nothing be
// forwarded, pods are let through by two marked rules, which Clean takes away.
func TestForwardPolicyDrop(t *testing.T) {
	for name, c := range map[string]struct{ drop, list string }{
		"iptables-nft":    {"iptables-nft -P FORWARD DROP; ip6tables-nft -P FORWARD DROP", "iptables-nft -S FORWARD; ip6tables-nft -S FORWARD"},
		"iptables-legacy": {"iptables-legacy -P FORWARD DROP; ip6tables-legacy -P FORWARD DROP", "iptables-legacy -S FORWARD; ip6tables-legacy -S FORWARD"},
		"a firewall's own chains": {"iptables-nft -P FORWARD DROP; ip6tables-nft -P FORWARD DROP; for t in iptables-nft ip6tables-nft; do $t -N wall; $t -A FORWARD -j wall; $t -A wall -i docker0 -j ACCEPT; $t -A FORWARD -j DROP; done",
			"iptables-nft -S FORWARD; iptables-nft -S wall; ip6tables-nft -S FORWARD; ip6tables-nft -S wall"},
		"nftables, and a last rule that rejects": {"nft 'add table inet firewalld; add chain inet firewalld filter_FORWARD { type filter hook forward priority 10; policy accept; }; add rule inet firewalld filter_FORWARD ct state established,related accept; add rule inet firewalld filter_FORWARD reject with icmpx admin-prohibited'",
			"nft list chain inet firewalld filter_FORWARD"},
		"iptables-nft, and a last rule that rejects":  {"for t in iptables-nft ip6tables-nft; do $t -A FORWARD -m conntrack --ctstate ESTABLISHED -j ACCEPT; $t -A FORWARD -j REJECT; done", "iptables-nft -S FORWARD; ip6tables-nft -S FORWARD"},
		"iptables-legacy, and a last rule that drops": {"for t in iptables-legacy ip6tables-legacy; do $t -A FORWARD -i docker0 -j ACCEPT; $t -A FORWARD -j DROP; done", "iptables-legacy -S FORWARD; ip6tables-legacy -S FORWARD"},
		"nftables": {"nft 'add table inet wall; add chain inet wall forward { type filter hook forward priority 0; policy drop; }'", "nft list chain inet wall forward"},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFabric(t, 2, plan.IPIP, plan.VXLAN)
			n := f.nodes[0]
			n.dataplane = n.open(Options{KeepForward: true})
			f.sh(n.ns, c.drop)
			before := f.sh(n.ns, c.list)
			f.setAll()
			a, b, near := n.addPod(1500), f.nodes[1].addPod(1500), n.addPod(1500)
			if now := f.sh(n.ns, c.list); now != before {
				t.Errorf("with KeepForward the chain became\n%s", now)
			}
			f.noPing(a.ns, b.v4.String())

			n.dataplane = n.open(Options{})
			f.setAll()
			f.ping(a.ns, b.v4.String())
			f.ping(b.ns, a.v6.String())
			f.ping(a.ns, near.v4.String())
			once := f.sh(n.ns, c.list)
			if !strings.Contains(once, "rwp") {
				t.Errorf("its own tool shows no rule of ours:\n%s", once)
			}
			n.dataplane = n.open(Options{})
			if r, err := n.set(); err != nil || r.Changed {
				t.Errorf("Set again: %+v, %v", r, err)
			}
			if again := f.sh(n.ns, c.list); strings.Count(again, "rwp") != strings.Count(once, "rwp") {
				t.Errorf("Set again left\n%s", again)
			}
			if err := n.ns.Do(func() error { return n.dataplane.Clean(context.Background()) }); err != nil {
				t.Fatal(err)
			}
			if after := f.sh(n.ns, c.list); after != before {
				t.Errorf("after Clean the chain is\n%s\nbefore it was\n%s", after, before)
			}
		})
	}
}

// TestOnlyClosedChains: a chain that ends with a rule that lets something through,
// or that has a condition, is left alone.
func TestOnlyClosedChains(t *testing.T) {
	for rule, closed := range map[string]bool{
		"drop # handle 4": true,
		"counter packets 12 bytes 840 drop # handle 4":                           true,
		"reject with icmpx admin-prohibited # handle 4":                          true,
		`log prefix "no: " level warn counter packets 0 bytes 0 drop # handle 4`: true,
		`counter packets 0 bytes 0 xt target "REJECT" # handle 4`:                true,
		`iifname "eth0" drop # handle 4`:                                         false,
		"ct state invalid counter packets 0 bytes 0 drop # handle 4":             false,
		"jump wall # handle 4":                                                   false,
		"accept # handle 4":                                                      false,
		`counter packets 0 bytes 0 jump "drops" comment "drop " # handle 4`:      false,
	} {
		if got := endsClosed([]string{"accept # handle 3", rule}); got != closed {
			t.Errorf("%s: %t, want %t", rule, got, closed)
		}
	}
	if endsClosed(nil) {
		t.Error("a chain without rules is open")
	}
}

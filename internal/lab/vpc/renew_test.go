package vpc

import (
	"errors"
	"net/netip"
	"os/exec"
	"strings"
	"testing"
)

// TestRenew: a host has lost all that it made in its namespace, also what hung on its
// end of the wire, and is reached as before, by what the VPC had routed to it, too.
func TestRenew(t *testing.T) {
	onVPC := threeHosts(newLab())
	bringLabUp(t, onVPC)
	if err := SetRoute(t.Context(), onVPC.Lab, Route{Dst: netip.MustParsePrefix("10.244.9.0/24"), Host: "c"}); err != nil {
		t.Fatal(err)
	}
	t.Run("VPC", func(t *testing.T) { renewed(t, onVPC) })
	onVPC.in(t, "c", func() error { return exec.Command("ip", "addr", "add", "10.244.9.1/32", "dev", "lo").Run() })
	if out, ok := onVPC.ping(t, "a", "10.244.9.1"); !ok {
		t.Errorf("the VPC's route to the host is lost:\n%s", out)
	}
	t.Run("switch", func(t *testing.T) { renewed(t, onSwitch(t)) })
}

// renewed renews host c, which has made all kinds of things.
func renewed(t *testing.T, spec Spec) {
	const made, look = `set -e
ip link add past type veth peer name past-peer
ip addr add 10.9.9.9/32 dev lo
ip addr add fd00:9::9/128 dev eth0
ip route add unreachable 10.9.0.0/16
nft add table inet past
tc qdisc add dev eth0 clsact
ip rule add from 10.9.0.0/16 table 9
sysctl -q -w net.ipv4.conf.eth0.rp_filter=2`,
		`ip -o link; ip -o addr; ip route; ip rule; nft list tables; tc qdisc; sysctl net.ipv4.conf.eth0.rp_filter`
	shell := func(script string) string {
		var out []byte
		spec.in(t, "c", func() (err error) {
			out, err = exec.Command("sh", "-c", script).CombinedOutput()
			return err
		})
		return string(out)
	}
	words := []string{"past", "10.9.9.9", "fd00:9::9", "10.9.0.0/16", "clsact", "rp_filter = 2"}
	shell(made)
	for _, word := range words {
		if out := shell(look); !strings.Contains(out, word) {
			t.Fatalf("the test has not made %q, or does not find it:\n%s", word, out)
		}
	}
	if err := Renew(t.Context(), spec.Lab, "c"); err != nil {
		t.Fatal(err)
	}
	out := shell(look)
	for _, word := range words {
		if strings.Contains(out, word) {
			t.Errorf("%q is still there:\n%s", word, out)
		}
	}
	for _, p := range spec.Hosts[2].Addresses {
		if out, ok := spec.ping(t, "a", p.Addr().String()); !ok {
			t.Errorf("the host is not reached at %s:\n%s", p.Addr(), out)
		}
	}
	if out, ok := spec.ping(t, "c", "8.8.8.8"); !ok {
		t.Errorf("the host does not reach the outside:\n%s", out)
	}
}

func TestRenewOfNobody(t *testing.T) {
	spec := threeHosts(newLab())
	bringLabUp(t, spec)
	if err := Renew(t.Context(), spec.Lab, "nobody"); err == nil || !strings.Contains(err.Error(), "nobody") {
		t.Errorf("Renew of a host that is none: %v", err)
	}
	if err := Renew(t.Context(), newLab(), "a"); !errors.Is(err, ErrNotUp) {
		t.Errorf("Renew in a lab that is not up: %v", err)
	}
}

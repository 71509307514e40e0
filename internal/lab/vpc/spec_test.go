package vpc

import (
	"net/netip"
	"strings"
	"testing"
)

func TestSpecIsValidated(t *testing.T) {
	for _, c := range []struct {
		name   string
		change func(*Spec)
		want   string // part of the error; empty for none
	}{
		{"as it is", func(*Spec) {}, ""},
		{"no PodCIDRs", func(s *Spec) { s.PodCIDRs = nil }, ""},
		{"no hosts", func(s *Spec) { s.Hosts = nil }, "no hosts"},
		{"lab name", func(s *Spec) { s.Lab = "../x" }, `lab name "../x"`},
		{"MTU too small", func(s *Spec) { s.MTU = 1000 }, "MTU 1000"},
		{"host name", func(s *Spec) { s.Hosts[0].Name = "A_b" }, `host "A_b"`},
		{"reserved host name", func(s *Spec) { s.Hosts[0].Name = OutsideHost }, "host outside: its name"},
		{"same host name", func(s *Spec) { s.Hosts[1].Name = "a" }, "host a: its name"},
		{"same namespace", func(s *Spec) { s.Hosts[1].Netns = s.Hosts[0].Netns }, "host b: its name or its namespace"},
		{"the VPC's namespace", func(s *Spec) { s.Hosts[1].Netns = vpcNetns(s.Lab) }, "host b: its name or its namespace"},
		{"foreign namespace", func(s *Spec) { s.Hosts[0].Netns = "docker-1" }, "must begin with rwlab-x-"},
		{"namespace is a path", func(s *Spec) { s.Hosts[0].Netns = "rwlab-x-/../y" }, "must begin with"},
		{"no address", func(s *Spec) { s.Hosts[0].Addresses = nil }, "host a: no address"},
		{"no length", func(s *Spec) { s.Hosts[0].Addresses = prefixes("192.168.0.1/32") }, "too small"},
		{"subnet address", func(s *Spec) { s.Hosts[0].Addresses = prefixes("192.168.0.0/24") }, "subnet's own address"},
		{"gateway address", func(s *Spec) { s.Hosts[0].Addresses = prefixes("192.168.0.253/24") }, "its gateway"},
		{"multicast", func(s *Spec) { s.Hosts[0].Addresses = prefixes("224.0.0.1/24") }, "want a unicast address"},
		{"the zero prefix", func(s *Spec) { s.Hosts[0].Addresses = []netip.Prefix{{}} }, "want a unicast address"},
		{"same address", func(s *Spec) { s.Hosts[1].Addresses = prefixes("192.168.0.1/24") }, "host b: address 192.168.0.1/24: host a has it already"},
		{"overlapping subnets", func(s *Spec) { s.Hosts[1].Addresses = prefixes("192.168.0.130/25") }, "subnets 192.168.0.0/24 and 192.168.0.128/25 overlap"},
		{"on the outside's address", func(s *Spec) { s.Hosts[0].Addresses = prefixes("8.8.8.1/24") }, "outside world"},
		{"pods in a subnet", func(s *Spec) { s.PodCIDRs = prefixes("192.168.0.0/16") }, "pod CIDR 192.168.0.0/16 overlaps the subnet 192.168.0.0/24"},
		{"pod CIDR with host bits", func(s *Spec) { s.PodCIDRs = prefixes("10.244.0.1/16") }, "pod CIDR 10.244.0.1/16"},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := threeHosts("x")
			c.change(&s)
			err := s.validate()
			if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
				t.Errorf("got %v, want %q", err, c.want)
			}
		})
	}
}

// TestAllFaultsAtOnce: a user mends a broken Spec in one go.
func TestAllFaultsAtOnce(t *testing.T) {
	s := threeHosts("x")
	s.MTU, s.Hosts[0].Name, s.Hosts[1].Addresses = 5, "A", nil
	err := s.validate()
	for _, want := range []string{"MTU 5", `host "A"`, "host b: no address"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want it to name %q, too", err, want)
		}
	}
}

func TestGateways(t *testing.T) {
	for subnet, want := range map[string]string{
		"192.168.0.1/24":    "192.168.0.253",
		"10.0.0.1/16":       "10.0.255.253",
		"10.0.0.1/29":       "10.0.0.5",
		"10.0.0.129/25":     "10.0.0.253",
		"10.0.0.1/25":       "10.0.0.125",
		"fd00:1::1/64":      "fe80::1",
		"fd00:192:168::1/9": "fe80::1",
	} {
		if got := gatewayOf(netip.MustParsePrefix(subnet)).String(); got != want {
			t.Errorf("gateway of %s: %s, want %s", subnet, got, want)
		}
	}
}

// TestHostsRecord: what is recorded on a wire must fit in what the kernel keeps.
func TestHostsRecord(t *testing.T) {
	s := threeHosts("x")
	wires, err := plan(s)
	if err != nil || len(wires) != 4 || wires[0].Host != OutsideHost || wires[1].mtu != DefaultMTU {
		t.Fatalf("plan: %v, %v", wires, err)
	}
	s.Hosts[2].Name = strings.Repeat("long-", 60) + "name"
	if _, err := plan(s); err == nil || !strings.Contains(err.Error(), "more than the 255 that the kernel keeps") {
		t.Errorf("a record that does not fit: %v", err)
	}
	if a, b := wires[1].mac().String(), wires[2].mac().String(); a == b || !strings.HasPrefix(a, "00:16:3e:") {
		t.Errorf("MACs of two hosts: %s and %s", a, b)
	}
}

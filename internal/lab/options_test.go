package lab

import (
	"net/netip"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"ropeway.dev/ropeway/internal/lab/config"
)

func prefixes(t testing.TB, value string) []netip.Prefix {
	t.Helper()
	p, err := ParseCIDRs("--test", value)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func TestDefaultsAreTheScenarios(t *testing.T) {
	o := DefaultOptions().complete()
	if err := o.Validate(); err != nil {
		t.Fatal(err)
	}
	if got := joinPrefixes(o.PodCIDRs) + " " + joinPrefixes(o.ServiceCIDRs); got != "10.244.0.0/16 172.21.0.0/16" {
		t.Errorf("networks are %s", got)
	}
	if nodeName(1) != "cn-chengdu.i-2vcxxr" || nodeName(2) != "cn-chengdu.i-2vcxxs" {
		t.Errorf("nodes are %s, %s", nodeName(1), nodeName(2))
	}
}

func TestValidate(t *testing.T) {
	for _, c := range []struct {
		name   string
		change func(*Options)
		// want are parts of the error; none means that the options are good.
		want []string
	}{
		{name: "eight nodes", change: func(o *Options) { o.Nodes = 8 }},
		{name: "one node", change: func(o *Options) { o.Nodes = 1 }, want: []string{"--nodes 1", "2 to 8"}},
		{name: "nine nodes", change: func(o *Options) { o.Nodes = 9 }, want: []string{"--nodes 9", "2 to 8"}},
		{name: "a switch", change: func(o *Options) { o.Fabric = Switch }},
		{name: "unknown fabric", change: func(o *Options) { o.Fabric = "hub" }, want: []string{`--fabric "hub"`, "vpc or switch"}},
		{name: "test network on a switch", change: func(o *Options) { o.Fabric, o.TestNetwork = Switch, true }, want: []string{"--test-network needs --fabric vpc"}},
		{name: "external", change: func(o *Options) { o.CloudProvider = External }},
		{name: "unknown cloud provider", change: func(o *Options) { o.CloudProvider = "aws" }, want: []string{`--cloud-provider "aws"`, "give external"}},
		{name: "external on a switch", change: func(o *Options) { o.CloudProvider, o.Fabric = External, Switch }, want: []string{"--cloud-provider needs --fabric vpc"}},
		{name: "iptables", change: func(o *Options) { o.ProxyMode = "iptables" }},
		{name: "unknown proxy mode", change: func(o *Options) { o.ProxyMode = "ipvs" }, want: []string{`--proxy-mode "ipvs"`, "nftables or iptables"}},
		{name: "unknown family", change: func(o *Options) { o.Family = "ipx" }, want: []string{`--ip-family "ipx"`, "ipv4, ipv6 or dual"}},
		{name: "name with a dash", change: func(o *Options) { o.Name = "a-b" }, want: []string{`lab name "a-b"`}},
		{name: "no name", change: func(o *Options) { o.Name = "" }, want: []string{`lab name ""`}},
		{name: "name that is a path", change: func(o *Options) { o.Name = "../x" }, want: []string{"lab name"}},
		{name: "ipv6", change: func(o *Options) { o.Family = IPv6 }},
		{name: "dual", change: func(o *Options) { o.Family = Dual }},
		{name: "dual in the other order", change: func(o *Options) {
			o.Family, o.PodCIDRs = Dual, prefixes(t, "fd00:1::/48,10.1.0.0/16")
		}},
		{name: "dual with one pod CIDR", change: func(o *Options) { o.Family, o.PodCIDRs = Dual, prefixes(t, "10.1.0.0/16") },
			want: []string{"--pod-cidr 10.1.0.0/16", "one IPv4 and one IPv6"}},
		{name: "IPv6 pods in an IPv4 cluster", change: func(o *Options) { o.PodCIDRs = prefixes(t, "fd00:1::/48") },
			want: []string{"--pod-cidr fd00:1::/48", "one IPv4 prefix"}},
		{name: "two IPv4 service CIDRs", change: func(o *Options) { o.ServiceCIDRs = prefixes(t, "172.21.0.0/16,172.22.0.0/16") },
			want: []string{"--service-cidr 172.21.0.0/16,172.22.0.0/16"}},
		{name: "host bits", change: func(o *Options) { o.PodCIDRs = prefixes(t, "10.244.1.0/16") },
			want: []string{"--pod-cidr 10.244.1.0/16", "did you mean 10.244.0.0/16"}},
		{name: "pods and services overlap", change: func(o *Options) { o.PodCIDRs = prefixes(t, "172.21.128.0/17") },
			want: []string{"--pod-cidr 172.21.128.0/17 overlaps --service-cidr 172.21.0.0/16"}},
		{name: "services in the VPC", change: func(o *Options) { o.ServiceCIDRs = prefixes(t, "192.168.16.0/20") },
			want: []string{"--service-cidr 192.168.16.0/20 overlaps the VPC's range"}},
		{name: "pods in the VPC", change: func(o *Options) { o.PodCIDRs = prefixes(t, "192.168.0.0/20") },
			want: []string{"--pod-cidr 192.168.0.0/20 overlaps the VPC's range"}},
		{name: "as many node CIDRs as nodes", change: func(o *Options) { o.Nodes, o.PodCIDRs = 4, prefixes(t, "10.244.0.0/22") }},
		{name: "too few node CIDRs", change: func(o *Options) { o.Nodes, o.PodCIDRs = 5, prefixes(t, "10.244.0.0/22") },
			want: []string{"does not hold a /24 for each of 5 nodes", "--allocate-node-cidrs=false"}},
		{name: "few addresses but no node CIDRs", change: func(o *Options) {
			o.Nodes, o.AllocateNodeCIDRs, o.PodCIDRs = 5, false, prefixes(t, "10.244.0.0/26")
		}},
		{name: "too many node CIDRs", change: func(o *Options) { o.PodCIDRs = prefixes(t, "8.0.0.0/7") }, want: []string{"too large", "/8 or longer"}},
		{name: "too small for DNS", change: func(o *Options) { o.ServiceCIDRs = prefixes(t, "172.21.0.0/29") }, want: []string{"cluster DNS"}},
		{name: "too large for the API server", change: func(o *Options) {
			o.Family, o.ServiceCIDRs = IPv6, prefixes(t, "fd00:10:21::/64")
		}, want: []string{"--service-cidr fd00:10:21::/64", "/108 or longer"}},
		{name: "bare with a test network", change: func(o *Options) { o.Bare, o.TestNetwork = true, true }, want: []string{"one of them"}},
		{name: "everything at once", change: func(o *Options) { o.Name, o.Nodes, o.ProxyMode = "X", 0, "" },
			want: []string{"lab name", "--nodes 0", "--proxy-mode"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			o := DefaultOptions()
			c.change(&o)
			err := o.Validate()
			if len(c.want) == 0 && err != nil {
				t.Fatalf("Validate: %v", err)
			}
			if len(c.want) > 0 && err == nil {
				t.Fatalf("Validate passed, want an error with %q", c.want)
			}
			for _, part := range c.want {
				if !strings.Contains(err.Error(), part) {
					t.Errorf("error %q does not say %q", err, part)
				}
			}
		})
	}
}

func TestParseCIDRs(t *testing.T) {
	if got, err := ParseCIDRs("--pod-cidr", ""); got != nil || err != nil {
		t.Errorf("nothing is %v, %v; want the defaults to stand in", got, err)
	}
	if got := joinPrefixes(prefixes(t, "10.0.0.0/8 , fd00::/48")); got != "10.0.0.0/8,fd00::/48" {
		t.Errorf("got %s", got)
	}
	for _, bad := range []string{"10.0.0.0", "10.0.0/8", "a/8", "10.0.0.0/33", ","} {
		if _, err := ParseCIDRs("--pod-cidr", bad); err == nil || !strings.Contains(err.Error(), "--pod-cidr") {
			t.Errorf("ParseCIDRs(%q): error %v does not name the flag", bad, err)
		}
	}
}

func TestDefaultCache(t *testing.T) {
	for _, c := range []struct {
		env  map[string]string
		want string
	}{
		{map[string]string{"ROPEWAY_LAB_CACHE": "/a", "XDG_CACHE_HOME": "/b", "HOME": "/c"}, "/a"},
		{map[string]string{"XDG_CACHE_HOME": "/b", "HOME": "/c"}, "/b/ropeway-lab"},
		{map[string]string{"HOME": "/c"}, "/c/.cache/ropeway-lab"},
	} {
		if got := DefaultCache(func(name string) string { return c.env[name] }); got != c.want {
			t.Errorf("DefaultCache(%v) = %s, want %s", c.env, got, c.want)
		}
	}
}

// Options that pass describe a lab whose networks are all apart and whose
// cluster DNS has an address, whatever was asked for.
func TestValidOptionsMakeSenseProperty(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		o := DefaultOptions()
		o.Nodes = rapid.IntRange(0, 10).Draw(t, "nodes")
		o.AllocateNodeCIDRs = rapid.Bool().Draw(t, "allocate")
		draw := func(label string) []netip.Prefix {
			addr := netip.AddrFrom4([4]byte{
				byte(rapid.SampledFrom([]int{10, 172, 192}).Draw(t, label+"0")), byte(rapid.SampledFrom([]int{0, 21, 168, 244}).Draw(t, label+"1")), 0, 0,
			})
			return []netip.Prefix{netip.PrefixFrom(addr, rapid.IntRange(4, 30).Draw(t, label+"bits")).Masked()}
		}
		o.PodCIDRs, o.ServiceCIDRs = draw("pods"), draw("services")
		if o.Validate() != nil {
			return
		}
		m := drawn(o)
		all := []netip.Prefix{o.PodCIDRs[0], o.ServiceCIDRs[0]}
		for _, h := range m.Hosts {
			for _, a := range h.Addresses {
				all = append(all, a.Masked())
			}
		}
		for i, a := range all {
			for _, b := range all[i+1:] {
				if a.Overlaps(b) {
					t.Fatalf("%s overlaps %s", a, b)
				}
			}
		}
		if dns := clusterOf(m).DNSAddress(); !o.ServiceCIDRs[0].Contains(dns) {
			t.Fatalf("cluster DNS at %s is outside %s", dns, o.ServiceCIDRs[0])
		}
		if mask := config.NodeMask(o.PodCIDRs[0]); o.AllocateNodeCIDRs && 1<<(mask-o.PodCIDRs[0].Bits()) < o.Nodes {
			t.Fatalf("%s does not hold %d times /%d", o.PodCIDRs[0], o.Nodes, mask)
		}
	})
}

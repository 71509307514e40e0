package config

import (
	"flag"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"sigs.k8s.io/yaml"
)

var rewrite = flag.Bool("rewrite", false, "write what is rendered into testdata")

func clusters() map[string]Cluster {
	addr, prefix := netip.MustParseAddr, netip.MustParsePrefix
	return map[string]Cluster{
		"ipv4": {
			Addresses: []netip.Addr{addr("192.168.0.10")}, PodCIDRs: []netip.Prefix{prefix("10.244.0.0/16")},
			ServiceCIDRs: []netip.Prefix{prefix("172.21.0.0/16")}, AllocateNodeCIDRs: true, ProxyMode: "nftables",
		},
		"ipv6-without-node-cidrs": {
			Addresses: []netip.Addr{addr("fd00:192:168::10")}, PodCIDRs: []netip.Prefix{prefix("fd00:10:244::/48")},
			ServiceCIDRs: []netip.Prefix{prefix("fd00:10:21::/112")}, ProxyMode: "iptables",
		},
		"dual": {
			Addresses:    []netip.Addr{addr("192.168.0.10"), addr("fd00:192:168::10")},
			PodCIDRs:     []netip.Prefix{prefix("10.244.0.0/16"), prefix("fd00:10:244::/48")},
			ServiceCIDRs: []netip.Prefix{prefix("172.21.0.0/16"), prefix("fd00:10:21::/112")}, AllocateNodeCIDRs: true, ProxyMode: "nftables",
		},
	}
}

// render is everything that depends on the cluster, as one text.
func render(c Cluster) string {
	var b strings.Builder
	section := func(name, text string) { b.WriteString("-- " + name + " --\n" + strings.TrimRight(text, "\n") + "\n") }
	command := func(argv []string) { section(filepath.Base(argv[0])+" command", strings.Join(argv, "\n")) }
	command(Etcd())
	command(APIServer(c))
	command(ControllerManager(c))
	command(Scheduler())
	section("containerd", Containerd())
	section("kubelet", Kubelet(c, c.Addresses[0]))
	command(KubeletCommand("node-a", c.Addresses, false))
	command(KubeletCommand("node-a", c.Addresses, true))
	section("kube-proxy", KubeProxy(c, "node-a"))
	section("node", Node(c, "node-a", 0, false))
	section("node of a cloud", Node(c, "node-b", 1, true))
	section("dns", DNS(c, "lab.ropeway.dev/coredns:1.2.3"))
	section("server", c.Server())
	return b.String()
}

func TestNodeCIDR(t *testing.T) {
	for _, tt := range []struct {
		pods string
		node int
		want string
	}{
		{"10.244.0.0/16", 0, "10.244.0.0/24"},
		{"10.244.0.0/16", 255, "10.244.255.0/24"},
		{"10.0.0.0/8", 257, "10.1.1.0/24"},
		{"10.244.255.0/24", 0, "10.244.255.0/24"},
		{"fd00:10:244::/48", 1, "fd00:10:244:1::/64"},
		{"fd00::/32", 1 << 16, "fd00:0:1::/64"},
	} {
		if got := NodeCIDR(netip.MustParsePrefix(tt.pods), tt.node); got.String() != tt.want {
			t.Errorf("node %d of %s has %s, want %s", tt.node, tt.pods, got, tt.want)
		}
	}
}

func TestRendered(t *testing.T) {
	for name, c := range clusters() {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join("testdata", name+".txt")
			got := render(c)
			if *rewrite {
				if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			if got != string(want) {
				t.Errorf("%s differs; look at it and run `go test -rewrite`:\n%s", path, firstDifference(got, string(want)))
			}
		})
	}
}

func firstDifference(got, want string) string {
	a, b := strings.Split(got, "\n"), strings.Split(want, "\n")
	for i := range min(len(a), len(b)) {
		if a[i] != b[i] {
			return "got  " + a[i] + "\nwant " + b[i]
		}
	}
	return "one is longer than the other"
}

// No one without credentials gets anything, from the API server or a kubelet.
func TestNothingIsOpen(t *testing.T) {
	for name, c := range clusters() {
		api := strings.Join(APIServer(c), " ")
		for _, want := range []string{"--anonymous-auth=false", "--authorization-mode=Node,RBAC", "--enable-admission-plugins=NodeRestriction"} {
			if !strings.Contains(api, want) {
				t.Errorf("%s: the API server has no %s", name, want)
			}
		}
		var kubelet struct {
			Authentication struct {
				Anonymous struct{ Enabled *bool }
				Webhook   struct{ Enabled bool }
			}
			Authorization struct{ Mode string }
			ReadOnlyPort  int
		}
		if err := yaml.Unmarshal([]byte(Kubelet(c, c.Addresses[0])), &kubelet); err != nil {
			t.Fatal(err)
		}
		open := kubelet.Authentication.Anonymous.Enabled
		if open == nil || *open || !kubelet.Authentication.Webhook.Enabled || kubelet.Authorization.Mode != "Webhook" || kubelet.ReadOnlyPort != 0 {
			t.Errorf("%s: the kubelet is open: %+v", name, kubelet)
		}
	}
}

func TestYAMLIsWellFormed(t *testing.T) {
	for name, c := range clusters() {
		for i, document := range strings.Split(DNS(c, "image"), "\n---\n") {
			var object struct {
				Kind     string
				Metadata struct{ Name string }
			}
			if err := yaml.UnmarshalStrict([]byte(document), &map[string]any{}); err != nil {
				t.Errorf("%s: DNS document %d: %v", name, i, err)
			}
			if err := yaml.Unmarshal([]byte(document), &object); err != nil || object.Kind == "" || object.Metadata.Name == "" {
				t.Errorf("%s: DNS document %d: %+v, %v", name, i, object, err)
			}
		}
		if err := yaml.UnmarshalStrict([]byte(KubeProxy(c, "n")), &map[string]any{}); err != nil {
			t.Errorf("%s: kube-proxy: %v", name, err)
		}
	}
}

func TestServiceAddress(t *testing.T) {
	for _, c := range []struct {
		cidr string
		n    int
		want string
	}{
		{"172.21.0.0/16", 1, "172.21.0.1"}, {"172.21.0.0/16", 10, "172.21.0.10"},
		{"fd00:10:21::/112", 10, "fd00:10:21::a"}, {"10.0.0.248/29", 1, "10.0.0.249"},
	} {
		if got := ServiceAddress(netip.MustParsePrefix(c.cidr), c.n); got.String() != c.want {
			t.Errorf("ServiceAddress(%s, %d) = %s, want %s", c.cidr, c.n, got, c.want)
		}
	}
}

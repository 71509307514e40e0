package podlink

import (
	"errors"
	"net/netip"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"ropeway.dev/ropeway/internal/cniwire"
)

// Two releases must agree on these, or DEL of the newer does not find what ADD
// of the older made.
func TestNamesAreForever(t *testing.T) {
	got := HostLinkName("k8s-pod-network", "0123456789abcdef", "eth0")
	if want := "rwp71195381b520"; got != want {
		t.Errorf("HostLinkName = %q, want %q", got, want)
	}
	if len(got) > 15 {
		t.Errorf("%q is longer than a link's name may be", got)
	}
	if HostLinkName("a", "b", "eth0") == HostLinkName("a", "b", "eth1") {
		t.Error("two interfaces of one container have one name")
	}
}

func TestMACsAreLocalUnicastAndDiffer(t *testing.T) {
	a := cniwire.Attachment{Network: "n", ContainerID: "c", IfName: "eth0"}
	host, pod := mac(a, "host"), mac(a, "pod")
	for _, m := range [][]byte{host, pod} {
		if m[0]&1 != 0 || m[0]&2 == 0 {
			t.Errorf("%x is not a locally administered unicast address", m)
		}
	}
	if host.String() == pod.String() {
		t.Error("both ends have one address")
	}
}

func TestAlias(t *testing.T) {
	long := strings.Repeat("x", 200)
	a := cniwire.Attachment{Network: "net", ContainerID: "c1", IfName: "eth0"}
	tests := []struct {
		name string
		a    cniwire.Attachment
		pod  cniwire.Pod
		want string
		err  error
	}{
		{"complete", a, cniwire.Pod{Namespace: "ns", Name: "p", UID: "u"}, "ropeway1 net c1 eth0 u ns/p", nil},
		{"outside Kubernetes", a, cniwire.Pod{}, "ropeway1 net c1 eth0 - -", nil},
		{"the pod's name does not fit", a, cniwire.Pod{Namespace: "ns", Name: long + long, UID: "u"}, "ropeway1 net c1 eth0 u -", nil},
		{"its UID does not fit either", a, cniwire.Pod{UID: long + long}, "ropeway1 net c1 eth0 - -", nil},
		{"a UID with a space", a, cniwire.Pod{UID: "u v"}, "ropeway1 net c1 eth0 - -", nil},
		{"a name with a slash", a, cniwire.Pod{Namespace: "a/b", Name: "c"}, "ropeway1 net c1 eth0 - -", nil},
		{"the attachment does not fit", cniwire.Attachment{Network: long, ContainerID: long, IfName: "eth0"}, cniwire.Pod{}, "", ErrAliasTooLong},
		{"a space in the interface's name", cniwire.Attachment{Network: "n", ContainerID: "c", IfName: "e 0"}, cniwire.Pod{}, "", ErrInvalid},
		{"no container", cniwire.Attachment{Network: "n", IfName: "eth0"}, cniwire.Pod{}, "", ErrInvalid},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := Alias(tt.a, tt.pod)
			if got != tt.want || !errors.Is(err, tt.err) {
				t.Errorf("Alias = %q, %v; want %q, %v", got, err, tt.want, tt.err)
			}
		})
	}
}

func TestAliasComesBack(t *testing.T) {
	name := rapid.StringMatching(`[a-zA-Z0-9][a-zA-Z0-9_.\-]{0,80}`)
	rapid.Check(t, func(t *rapid.T) {
		a := cniwire.Attachment{
			Network:     name.Draw(t, "network"),
			ContainerID: name.Draw(t, "container"),
			IfName:      rapid.StringMatching(`[a-z0-9.@\-]{1,15}`).Draw(t, "interface"),
		}
		p := cniwire.Pod{
			Namespace: rapid.StringMatching(`[a-z]([a-z\-]{0,61}[a-z])?`).Draw(t, "namespace"),
			Name:      rapid.StringMatching(`[a-z]([a-z.\-]{0,100}[a-z])?`).Draw(t, "name"),
			UID:       rapid.StringMatching(`[0-9a-f]{8}-[0-9a-f]{27}`).Draw(t, "uid"),
		}
		alias, err := Alias(a, p)
		if err != nil {
			t.Fatal(err)
		}
		if len(alias) > maxAlias {
			t.Fatalf("%d bytes", len(alias))
		}
		gotA, gotP, err := ParseAlias(alias)
		if err != nil || gotA != a {
			t.Fatalf("%q reads as %+v, %v", alias, gotA, err)
		}
		if gotP != p && (gotP.Name != "" || gotP.Namespace != "" || gotP.UID != p.UID && gotP.UID != "") {
			t.Fatalf("%q reads as %+v, want %+v or less", alias, gotP, p)
		}
	})
}

func TestParseAliasRefusesOthers(t *testing.T) {
	for _, s := range []string{"", "uplink to rack 7", "ropeway1 net c1 eth0", "ropeway1 net  eth0 - -", "ropeway2 n c e - -"} {
		if a, _, err := ParseAlias(s); err == nil {
			t.Errorf("%q reads as %+v", s, a)
		}
	}
	if _, p, err := ParseAlias("ropeway1 n c e u ns/p later fields"); err != nil || p.Name != "p" {
		t.Errorf("an alias of a later release: %+v, %v", p, err)
	}
}

func TestConfigValidate(t *testing.T) {
	good := func() Config {
		return Config{
			Attachment: cniwire.Attachment{Network: "n", ContainerID: "c", IfName: "eth0"},
			MTU:        1500, Addresses: []netip.Addr{netip.MustParseAddr("10.0.0.2"), netip.MustParseAddr("fd00::2")},
		}
	}
	if err := good().validate(); err != nil {
		t.Fatal(err)
	}
	addr := func(s string) func(*Config) {
		return func(c *Config) { c.Addresses = []netip.Addr{netip.MustParseAddr(s)} }
	}
	tests := []struct {
		name  string
		spoil func(*Config)
		want  string // in the error
	}{
		{"no container", func(c *Config) { c.Attachment.ContainerID = "" }, "container id"},
		{"no address", func(c *Config) { c.Addresses = nil }, "no address"},
		{"MTU 0", func(c *Config) { c.MTU = 0 }, "MTU of 0"},
		{"MTU too large", func(c *Config) { c.MTU = 65536 }, "MTU of 65536"},
		{"MTU too small for IPv6", func(c *Config) { c.MTU = 1279 }, "RFC 8200"},
		{"queues", func(c *Config) { c.Queues = -1 }, "queues"},
		{"twice", func(c *Config) { c.Addresses = append(c.Addresses, c.Addresses[0]) }, "twice"},
		{"zone", addr("fe80::1%eth0"), "no address for a pod"},
		{"mapped", addr("::ffff:10.0.0.1"), "no address for a pod"},
		{"multicast", addr("ff02::1"), "no address for a pod"},
		{"loopback", addr("127.0.0.1"), "no address for a pod"},
		{"link-local", addr("169.254.1.1"), "no address for a pod"},
		{"unspecified", addr("0.0.0.0"), "no address for a pod"},
		{"invalid", func(c *Config) { c.Addresses = []netip.Addr{{}} }, "no address for a pod"},
		{"route with host bits", func(c *Config) { c.Routes = []netip.Prefix{netip.MustParsePrefix("10.1.2.3/8")} }, "host bits"},
		{"route of another family", func(c *Config) {
			c.Addresses = c.Addresses[:1]
			c.Routes = []netip.Prefix{netip.MustParsePrefix("::/0")}
		}, "family"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			c := good()
			tt.spoil(&c)
			err := c.validate()
			if !errors.Is(err, ErrInvalid) || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v, want ErrInvalid with %q", err, tt.want)
			}
		})
	}
}

// A link's alias is anybody's to write.
func FuzzParseAlias(f *testing.F) {
	f.Add("ropeway1 net c1 eth0 u ns/p")
	f.Add("ropeway1 net c1 eth0 - -")
	f.Add("ropeway1     ")
	f.Fuzz(func(t *testing.T, alias string) {
		a, p, err := ParseAlias(alias)
		if err != nil {
			return
		}
		if a.Network == "" || a.ContainerID == "" || a.IfName == "" {
			t.Fatalf("%q reads as %+v", alias, a)
		}
		again, err := Alias(a, p)
		if err != nil {
			return // longer than an alias can be, or with a tab
		}
		if b, _, err := ParseAlias(again); err != nil || b != a {
			t.Fatalf("%q becomes %q: %+v, %v", alias, again, b, err)
		}
	})
}

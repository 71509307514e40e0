package podlink

import (
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"github.com/containernetworking/plugins/pkg/netlinksafe"
	"github.com/vishvananda/netlink"

	"ropeway.dev/ropeway/internal/cniwire"
	"ropeway.dev/ropeway/internal/dataplane/podlink/netnstest"
	"ropeway.dev/ropeway/internal/dataplane/podlink/rtnl"
)

// A sandbox of the former plugin can be deleted; nothing else may be.
func TestDelOfASandboxThatCalicoMade(t *testing.T) {
	for _, tt := range []struct {
		host    string
		deleted bool
	}{{"cali0123456789a", true}, {"veth0123", false}} {
		t.Run(tt.host, func(t *testing.T) {
			node(t)
			pod := netnstest.New(t)
			ns, err := os.Open(pod.Path())
			if err != nil {
				t.Fatal(err)
			}
			defer ns.Close()
			attrs := netlink.NewLinkAttrs()
			attrs.Name = tt.host
			if err := netlink.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: "eth0", PeerNamespace: netlink.NsFd(int(ns.Fd()))}); err != nil {
				t.Fatal(err)
			}
			if err := Del(cniwire.Attachment{Network: "k8s-pod-network", ContainerID: "old", IfName: "eth0"}, pod.Path()); err != nil {
				t.Fatal(err)
			}
			if links, err := netlinksafe.LinkList(); err != nil || slices.ContainsFunc(links, func(l netlink.Link) bool { return l.Attrs().Name == tt.host }) == tt.deleted {
				t.Errorf("deleted: want %v; %v", tt.deleted, err)
			}
		})
	}
}

// CNI specification 1.1.0, CHECK: each difference is found.
func TestCheckFinds(t *testing.T) {
	ip := func(args ...string) func() error {
		return func() error {
			out, err := exec.Command("ip", args...).CombinedOutput()
			if err != nil {
				return fmt.Errorf("ip %v: %w: %s", args, err, out)
			}
			return nil
		}
	}
	host := HostLinkName("rwt", "a", "eth0")
	for _, tt := range []struct {
		name  string
		inPod bool
		spoil func() error
		want  string
	}{
		{"MTU", false, ip("link", "set", host, "mtu", "1400"), "1400"},
		{"the pod's MTU", true, ip("link", "set", "eth0", "mtu", "1400"), "1400"},
		{"host end down", false, ip("link", "set", host, "down"), "is down"},
		{"alias", false, ip("link", "set", host, "alias", "mine"), "alias"},
		{"host end's MAC", false, ip("link", "set", host, "address", "02:00:00:00:00:09"), "02:00:00:00:00:09"},
		{"address", true, ip("addr", "del", "10.88.0.2/32", "dev", "eth0"), "address 10.88.0.2"},
		{"IPv6 address", true, ip("addr", "del", "fd88::2/128", "dev", "eth0"), "address fd88::2"},
		{"default route", true, ip("route", "del", "default"), "route to 0.0.0.0/0"},
		{"IPv6 default route", true, ip("-6", "route", "del", "default"), "route to ::/0"},
		{"gateway neighbour", true, ip("neigh", "del", "169.254.1.1", "dev", "eth0"), "neighbour 169.254.1.1"},
		{"gateway forged", true, ip("neigh", "replace", "fe80::1", "lladdr", "02:00:00:00:00:09", "dev", "eth0", "nud", "permanent"), "neighbour fe80::1"},
		{"gateway not permanent", true, ip("neigh", "replace", "169.254.1.1", "lladdr", "02:00:00:00:00:09", "dev", "eth0", "nud", "reachable"), "neighbour 169.254.1.1"},
		{"host neighbour", false, ip("neigh", "del", "10.88.0.2", "dev", host), "neighbour 10.88.0.2"},
		{"host route", false, ip("route", "del", "10.88.0.2"), "route to 10.88.0.2"},
		{"host route of others", false, ip("route", "replace", "10.88.0.2", "dev", host, "proto", "static"), "route to 10.88.0.2"},
		{"link", false, ip("link", "del", host), host},
		{"another interface", true, ip("link", "set", "eth0", "name", "eth7"), "eth0"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			node(t)
			pod := netnstest.New(t)
			c := config(pod, "a", "10.88.0.2", "fd88::2")
			mustAdd(t, c)
			do := tt.spoil
			if tt.inPod {
				do = func() error { return pod.Do(tt.spoil) }
			}
			if err := do(); err != nil {
				t.Fatal(err)
			}
			if err := Check(c); err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("Check = %v, want %q in it", err, tt.want)
			}
		})
	}
}

func TestListTellsEverythingFromTheKernel(t *testing.T) {
	node(t)
	p1, p2 := netnstest.New(t), netnstest.New(t)
	c1, c2 := config(p1, "a", "10.88.0.2", "fd88::2"), config(p2, "b", "10.88.0.3")
	mustAdd(t, c1)
	mustAdd(t, c2)
	stranger := netlink.NewLinkAttrs()
	stranger.Name = "veth-stranger"
	if err := netlink.LinkAdd(&netlink.Veth{LinkAttrs: stranger, PeerName: "stranger-peer"}); err != nil {
		t.Fatal(err)
	}
	links, err := List()
	if err != nil {
		t.Fatal(err)
	}
	got := map[cniwire.Attachment]cniwire.Pod{}
	addrs := map[cniwire.Attachment][]netip.Addr{}
	for _, l := range links {
		a, p, err := ParseAlias(l.Alias)
		if err != nil {
			t.Errorf("%s: %v", l.Name, err)
		}
		got[a], addrs[a] = p, l.Addresses
	}
	for _, c := range []Config{c1, c2} {
		if got[c.Attachment] != c.Pod || !slices.Equal(addrs[c.Attachment], c.Addresses) {
			t.Errorf("%+v: pod %+v, addresses %v", c.Attachment, got[c.Attachment], addrs[c.Attachment])
		}
	}
	if len(links) != 2 {
		t.Errorf("%d links, want 2", len(links))
	}
}

// A link that is made while the node is read: what leads to a pod is never seen
// without whose it is, or an agent that starts just then would take the address
// for somebody else's.
func TestListDuringAnAdd(t *testing.T) {
	node(t)
	c := config(netnstest.New(t), "a", "10.88.0.2")
	sandbox, err := Open(c.Attachment, c.Netns)
	if err != nil {
		t.Fatal(err)
	}
	defer sandbox.Close()
	host, err := rtnl.Open()
	if err != nil {
		t.Fatal(err)
	}
	defer host.Close()
	var links []Link
	begun, wired, listed := make(chan struct{}), make(chan struct{}), make(chan error, 1)
	w := &wiring{Config: c, netns: sandbox.netns, host: sandbox.host, after: func(step string) error {
		if step != "create the veth" {
			return nil
		}
		go func() {
			var err error
			links, err = list(host, func() { close(begun); <-wired })
			listed <- err
		}()
		<-begun
		return nil
	}}
	_, err = w.add()
	close(wired)
	if err != nil {
		t.Fatal(err)
	}
	if err := <-listed; err != nil {
		t.Fatal(err)
	}
	for _, l := range links {
		if _, _, err := ParseAlias(l.Alias); err != nil && len(l.Addresses) > 0 {
			t.Errorf("%v leads to %s: %v", l.Addresses, l.Name, err)
		}
	}
}

// CNI specification 1.1.0, GC: what the runtime does not know any more goes,
// of this network only.
func TestDelStale(t *testing.T) {
	node(t)
	p1, p2, p3 := netnstest.New(t), netnstest.New(t), netnstest.New(t)
	keep, stale, other := config(p1, "a", "10.88.0.2"), config(p2, "b", "10.88.0.3"), config(p3, "c", "10.88.0.4")
	other.Attachment.Network = "another"
	for _, c := range []Config{keep, stale, other} {
		mustAdd(t, c)
	}
	gone, err := DelStale("rwt", []cniwire.Attachment{keep.Attachment})
	if err != nil || !slices.Equal(gone, []cniwire.Attachment{stale.Attachment}) {
		t.Errorf("DelStale = %v, %v", gone, err)
	}
	for _, c := range []Config{keep, other} {
		if err := Check(c); err != nil {
			t.Errorf("%s: %v", c.Attachment.ContainerID, err)
		}
	}
}

package main

import (
	"net"
	"os"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"ropeway.dev/ropeway/internal/cniwire"
	"ropeway.dev/ropeway/internal/dataplane/podlink"
)

// Invariant 6, and CNI specification 1.1.0, section 2, DEL: it needs no agent,
// no namespace and no sound configuration.
func TestDelWithoutTheAgent(t *testing.T) {
	for _, ipam := range []string{`{"type": "ropeway-ipam"}`, `{"type": "host-local", "ranges": [[{"subnet": "usePodCidr", "rangeStart": "10.88.0.10"}], [{"subnet": "usePodCidrIPv6"}]]}`} {
		t.Run(ipam, func(t *testing.T) {
			n := newNode(t, "10.88.0.0/24", "fd88::/64")
			list := conflist(t, "0.3.1", `{"type": "ropeway", "ipam": `+ipam+`}`)
			before := n.state()
			p := n.pod("c1")
			n.mustAdd(list, p)
			n.agent.Close()
			p.Close() // the namespace is gone as well
			start := time.Now()
			n.mustDel(list, p)
			if took := time.Since(start); took >= cniwire.DialTimeout {
				t.Errorf("DEL took %s", took)
			}
			if after := n.state(); after != before {
				t.Errorf("left:\n%s\nbefore:\n%s", after, before)
			}
			stones, err := cniwire.ReadTombstones(cniwire.TombstoneDir)
			want := cniwire.Attachment{Network: "rwt-net", ContainerID: "c1", IfName: "eth0"}
			if err != nil || len(stones) != 1 || stones[0].Attachment != want || stones[0].Pod.UID != "uid-c1" {
				t.Errorf("tombstones %+v, %v", stones, err)
			}
		})
	}
}

func TestDelWhenTheAgentRefuses(t *testing.T) {
	n := newNode(t, "10.88.0.0/24")
	list, p := conflist(t, "1.0.0"), n.pod("c1")
	n.mustAdd(list, p)
	n.agent.FailNext(cniwire.Del, &cniwire.Error{Code: cniwire.CodeInternal, Msg: "the journal's disk is full"})
	n.mustDel(list, p)
	if stones, err := cniwire.ReadTombstones(cniwire.TombstoneDir); err != nil || len(stones) != 1 {
		t.Errorf("tombstones %+v, %v", stones, err)
	}
}

func TestDelOfWhatIsNotUnderstood(t *testing.T) {
	n := newNode(t, "10.88.0.0/24")
	p := n.pod("c1")
	for _, conf := range []string{
		`"mtu": "large", "policy": 7, "device_type": "netkit"`,
		`"ipam": ["calico-ipam"]`,
		`"ipam": {"type": "spiderpool"}`,
		`"ipam": {"type": "rwt-absent"}`,
		`"socket": 7`,
	} {
		n.mustAdd(conflist(t, "1.0.0"), p)
		conf = `{"cniVersion": "1.0.0", "name": "rwt-net", "type": "ropeway", ` + conf + `}`
		if _, failure := n.run(run{verb: "DEL", netns: p.Path(), args: "broken", conf: conf}); failure != nil {
			t.Errorf("%s: %v", conf, failure)
		}
		if links, err := podlink.List(); err != nil || len(links) != 0 || len(n.agent.Held()) != 0 {
			t.Errorf("%s: links %v, held %v, %v", conf, links, n.agent.Held(), err)
		}
	}
}

// The address is free only once nothing uses it (invariant 1).
func TestDelUnwiresBeforeItReleases(t *testing.T) {
	n := newNode(t)
	n.agent.Close()
	name := podlink.HostLinkName("rwt-net", "c1", "eth0")
	released := false
	n.startAgent(func(req cniwire.Request) {
		if req.Verb != cniwire.Del {
			return
		}
		released = true
		_ = n.ns.Do(func() error {
			link, err := netlink.LinkByName(name)
			if err == nil && link.Attrs().Flags&net.FlagUp != 0 {
				t.Error("the address is released while the link is up")
			}
			routes, err := netlink.RouteListFiltered(netlink.FAMILY_ALL, &netlink.Route{Protocol: podlink.RouteProtocol}, netlink.RT_FILTER_PROTOCOL)
			if err != nil || len(routes) > 0 {
				t.Errorf("the address is released while the node routes to it: %v, %v", routes, err)
			}
			return nil
		})
	}, "10.88.0.0/24")
	list, p := conflist(t, "1.0.0"), n.pod("c1")
	n.mustAdd(list, p)
	n.mustDel(list, p)
	n.agent.Close()
	if !released {
		t.Error("the agent heard nothing")
	}
}

// An agent that reaps gets the link: DEL has taken it out of use and does not
// wait for its end; the namespace can be used again at once.
func TestDelLeavesTheLinkToTheAgent(t *testing.T) {
	n := newNode(t)
	n.agent.Close()
	reap := make(chan struct{})
	n.reap = func() {
		<-reap
		if err := n.ns.Do(podlink.Reap); err != nil {
			t.Error(err)
		}
	}
	n.startAgent(nil, "10.88.0.0/24")
	before := n.state()
	list, p := conflist(t, "1.1.0"), n.pod("c1")
	link := podlink.HostLinkName("rwt-net", "c1", "eth0")
	n.mustAdd(list, p)
	n.mustDel(list, p)
	left, err := netlink.LinkByName(link)
	if err != nil || left.Attrs().Flags&net.FlagUp != 0 {
		t.Errorf("the link should be there, and down: %v, %v", left, err)
	}
	if _, held := n.agent.Held()[cniwire.Attachment{Network: "rwt-net", ContainerID: "c1", IfName: "eth0"}]; held {
		t.Error("the address is held")
	}
	p.rt.ContainerID = "c2"
	n.mustAdd(list, p) // the former link goes now
	if _, err := netlink.LinkByName(link); err == nil {
		t.Error("the former link is still there")
	}
	if err := n.cni.CheckNetworkList(t.Context(), list, p.rt); err != nil {
		t.Error(err)
	}
	n.mustDel(list, p)
	close(reap)
	n.agent.Close() // waits for the reaping
	if after := n.state(); after != before {
		t.Errorf("left:\n%s\nbefore:\n%s", after, before)
	}
}

// An ADD that fails when the agent cannot take the address back either.
func TestFailedAddLeavesATombstone(t *testing.T) {
	n := newNode(t, "10.88.0.0/24")
	n.agent.FailNext(cniwire.Del, &cniwire.Error{Code: cniwire.CodeInternal, Msg: "not now"})
	p := n.pod("c1")
	if _, err := n.add(conflist(t, "1.0.0", `{"type": "ropeway", "mtu": 70000}`), p); code(err) != cniwire.CodeInvalidConfig {
		t.Fatal(err)
	}
	if stones, err := cniwire.ReadTombstones(cniwire.TombstoneDir); err != nil || len(stones) != 1 || stones[0].Attachment.ContainerID != "c1" {
		t.Errorf("tombstones %+v, %v", stones, err)
	}
}

// A pod that the calico plugin made can be deleted after the take-over.
func TestDelOfCalicosPod(t *testing.T) {
	n := newNode(t)
	p := n.pod("c1")
	ns, err := os.Open(p.Path())
	if err != nil {
		t.Fatal(err)
	}
	defer ns.Close()
	attrs := netlink.NewLinkAttrs()
	attrs.Name = "cali0123456789a"
	if err := netlink.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: "eth0", PeerNamespace: netlink.NsFd(int(ns.Fd()))}); err != nil {
		t.Fatal(err)
	}
	if _, failure := n.run(run{name: "calico", verb: "DEL", netns: p.Path(), conf: `{"cniVersion": "0.3.1", "name": "k8s-pod-network", "type": "calico", "ipam": {"type": "calico-ipam"}}`}); failure != nil {
		t.Fatal(failure)
	}
	if _, err := netlink.LinkByName(attrs.Name); err == nil {
		t.Error("the link is still there")
	}
}

package podlink

import (
	"testing"

	"ropeway.dev/ropeway/internal/cniwire"
	"ropeway.dev/ropeway/internal/dataplane/podlink/netnstest"
)

// A DEL has answered: nothing reaches the pod any more and the node does not
// route to it, though the link itself is removed later, with others.
func TestRetireThenReap(t *testing.T) {
	n := node(t)
	before := snapshot(t)
	var configs []Config
	for id, addrs := range map[string][]string{"a": {"10.88.0.2", "fd88::2"}, "b": {"10.88.0.3"}, "c": {"fd88::4"}} {
		c := config(netnstest.New(t), id, addrs...)
		mustAdd(t, c)
		configs = append(configs, c)
	}
	keep := config(netnstest.New(t), "keep", "10.88.0.5", "fd88::5")
	mustAdd(t, keep)
	for _, c := range configs {
		for range 2 {
			if left, err := Retire(c.Attachment, c.Netns); !left || err != nil {
				t.Fatalf("left %v, %v", left, err)
			}
		}
		for _, a := range c.Addresses {
			if ping(n, a.String()) == nil {
				t.Errorf("%s still answers", a)
			}
		}
		if err := Check(c); err == nil {
			t.Error("CHECK finds nothing amiss")
		}
	}
	if links, err := List(); err != nil || len(links) != 1 {
		t.Errorf("%v, %v; want the one that is in use", links, err)
	}
	if left, err := Retire(cniwire.Attachment{Network: "rwt", ContainerID: "none", IfName: "eth0"}, ""); left || err != nil {
		t.Errorf("what is not there: %v, %v", left, err)
	}
	for range 2 {
		if err := Reap(); err != nil {
			t.Fatal(err)
		}
	}
	if err := Check(keep); err != nil {
		t.Errorf("the pod that lives was harmed: %v", err)
	}
	if err := Del(keep.Attachment, keep.Netns); err != nil {
		t.Fatal(err)
	}
	if after := snapshot(t); after != before {
		t.Errorf("left:\n%s\nbefore:\n%s", after, before)
	}
}

// The runtime uses a namespace again before the former link is removed.
func TestAddInPlaceOfARetiredLink(t *testing.T) {
	for _, tt := range []struct{ name, second string }{{"the same attachment", "a"}, {"another container", "b"}} {
		t.Run(tt.name, func(t *testing.T) {
			n := node(t)
			pod := netnstest.New(t)
			first := config(pod, "a", "10.88.0.2", "fd88::2")
			mustAdd(t, first)
			if _, err := Retire(first.Attachment, first.Netns); err != nil {
				t.Fatal(err)
			}
			second := config(pod, tt.second, "10.88.0.3", "fd88::3")
			mustAdd(t, second)
			for _, a := range second.Addresses {
				if err := ping(n, a.String()); err != nil {
					t.Error(err)
				}
			}
			if err := Reap(); err != nil {
				t.Fatal(err)
			}
			if err := Check(second); err != nil {
				t.Error(err)
			}
		})
	}
}

package routes

import (
	"context"
	"strings"
	"testing"
	"time"

	"ropeway.dev/ropeway/internal/cloud"
)

// noList is a cloud that lists no instances.
type noList struct{ *cloud.Fake }

func (n noList) Instances() cloud.Instances { return refusingList{n.Fake.Instances()} }

type refusingList struct{ cloud.Instances }

func (refusingList) List(context.Context) ([]cloud.Instance, error) {
	return nil, &cloud.Error{Class: cloud.Forbidden, Action: "DescribeInstances", Code: "Forbidden.RAM"}
}

// A node that can only be found by its address holds up nobody but itself when
// instances cannot be listed.
func TestInstancesThatCannotBeListed(t *testing.T) {
	b := newBench(t, 20)
	b.in.Wants[19].ProviderID = ""
	b.p.cfg.Make = b.maker(noList{b.cloud})
	b.set()
	b.run(10 * time.Minute)
	b.counts(map[State]int{Published: 19, NoInstance: 1})
	if p := b.problem(ReasonForbidden); p == nil || !strings.Contains(p.Message, "DescribeInstances") {
		t.Errorf("the refusal is not told: %+v", b.p.Status().Problems)
	}
	if p := b.problem(ReasonNoInstance); p == nil || p.Node != "node-019" || !strings.Contains(p.Message, "DescribeInstances") {
		t.Errorf("the node does not say why: %+v", b.p.Status().Problems)
	}
}

// byAddress makes all nodes ones that are known by their address.
func (b *bench) byAddress() {
	for i := range b.in.Wants {
		b.in.Wants[i].ProviderID = ""
		b.cloud.AddInstances(cloud.Instance{ID: instance(i), Addresses: b.in.Wants[i].Addresses})
	}
	b.set()
	b.run(time.Minute)
}

// replace gives node 1's address to another instance.
func (b *bench) replace() {
	b.cloud.Release(instance(1))
	b.cloud.AddInstances(cloud.Instance{ID: "i-new", Addresses: b.in.Wants[1].Addresses})
}

// leadsTo checks where the entry of node i leads.
func (b *bench) leadsTo(i int, hop string) {
	b.Helper()
	for _, e := range b.cloud.Entries() {
		if e.Dst == dst(i) && e.NextHop != hop {
			b.Errorf("node %d's entry leads to %s, want %s", i, e.NextHop, hop)
		}
	}
}

// An instance that is replaced by one with the same address: by a new Node, or
// beneath one that stays.
func TestSameAddressOfAnotherInstance(t *testing.T) {
	for name, c := range map[string]struct {
		uid    string
		within time.Duration
	}{"another Node": {"uid-new", 10 * time.Second}, "the same Node": {"uid-001", 6 * time.Minute}} {
		t.Run(name, func(t *testing.T) {
			b := newBench(t, 3)
			b.byAddress()
			b.replace()
			b.in.Wants[1].UID = c.uid
			b.set()
			b.run(c.within)
			b.leadsTo(1, "i-new")
			b.counts(map[State]int{Published: 3})
		})
	}
}

// The cloud refuses an instance that is gone: the address is looked for anew.
func TestBadNextHopOfAnAddress(t *testing.T) {
	b := newBench(t, 3)
	b.byAddress()
	b.replace()
	b.cloud.Remove(cloud.Key{Table: table, Dst: dst(1)})
	b.p.Look()
	b.run(20 * time.Second)
	if !b.has(1) {
		t.Error("no entry 20 s after the old instance was refused")
	}
	b.leadsTo(1, "i-new")
}

// A node that comes while the tables cannot be read is told by its instance, or
// by why that is not known, and not as one of no instance at all.
func TestNewNodeWhileReadingFails(t *testing.T) {
	for class, instance := range map[cloud.Class]string{cloud.Lost: instance(9), cloud.Unauthenticated: ""} {
		t.Run(class.String(), func(t *testing.T) {
			b := newBench(t, 3)
			b.run(10 * time.Second)
			for range 100 {
				b.cloud.Fail("List", &cloud.Error{Class: class, Action: "DescribeRouteEntryList"}, false)
			}
			b.run(2 * time.Minute)
			b.in.Wants = append(b.in.Wants, want(9))
			b.set()
			b.p.step(t.Context())
			b.counts(map[State]int{NoInstance: 0, Missing: 1})
			if r := b.p.Status().Rows[3]; r.Instance != instance || instance == "" && r.Message == "" {
				t.Errorf("the new node's row is %+v", r)
			}
			for _, p := range b.p.Status().Problems {
				if p.Message == "" || p.Node != "" {
					t.Errorf("problem %+v", p)
				}
			}
		})
	}
}

package dataplane

import (
	"context"
	"errors"
	"net/netip"
	"testing"

	"ropeway.dev/ropeway/internal/plan"
)

// TestFakeKeepsTheContract: what is true of Linux is true of the Fake, so that
// tests of the agent mean something.
func TestFakeKeepsTheContract(t *testing.T) {
	ctx := context.Background()
	f := NewFake()
	if o, err := f.Observe(ctx); err != nil || len(o.Routes)+len(o.Sources) != 0 {
		t.Errorf("a new one: %+v, %v", o, err)
	}
	want := goldenState()
	want.Transports = []plan.Transport{plan.IPIP, plan.VXLAN}
	want.MTU = plan.MTUPolicy{Mode: plan.MTUSmallest}
	want.Routes = []plan.Route{
		{Dst: netip.MustParsePrefix("10.244.2.0/24"), Transport: plan.IPIP, Outer: addr("192.168.2.2")},
		{Dst: netip.MustParsePrefix("10.244.3.0/24"), Transport: plan.VXLAN, Outer: addr("192.168.3.2")},
	}
	boom := errors.New("boom")
	f.Fail(boom)
	if _, err := f.Set(ctx, want); !errors.Is(err, boom) || len(f.States()) != 0 || !f.Cleaned() {
		t.Errorf("a Set that fails: %v", err)
	}
	for i, changed := range []bool{true, false} {
		r, err := f.Set(ctx, want)
		if err != nil || r.Changed != changed || r.PodMTU != 1450 || len(r.Uplinks) != 1 || len(r.Failed) != 0 {
			t.Errorf("Set %d: %+v, %v", i, r, err)
		}
	}
	o, err := f.Observe(ctx)
	if err != nil || len(o.Routes) != 2 || len(o.Sources) != 2 ||
		o.Routes[0].Device != "eth0" || o.Routes[0].MTU != 1480 || o.Routes[1].Device != VXLANDeviceName || o.Routes[1].MTU != 1450 {
		t.Errorf("Observe: %+v, %v", o, err)
	}
	f.Refuse(plan.IPIP, "no eBPF")
	if r, err := f.Set(ctx, want); err != nil || r.Refuses[plan.IPIP] != "no eBPF" || r.Failed[want.Routes[0].Dst] == "" {
		t.Errorf("Set with a transport refused: %+v, %v", r, err)
	}
	if o, _ := f.Observe(ctx); len(o.Routes) != 1 {
		t.Errorf("Observe with a transport refused: %+v", o)
	}
	f.Refuse(plan.IPIP, "")
	f.SetPods(PodLink{Name: "rwp1"})
	if err := f.Clean(ctx); err != nil || !f.Cleaned() {
		t.Errorf("Clean: %v", err)
	}
	if o, _ := f.Observe(ctx); len(o.Routes) != 0 || len(o.Pods) != 1 {
		t.Errorf("Observe after Clean: %+v", o)
	}
	if r, err := f.Set(ctx, want); err != nil || !r.Changed {
		t.Errorf("Set after Clean: %+v, %v", r, err)
	}
	f.Change()
	f.Change()
	select {
	case <-f.Changes(ctx):
	default:
		t.Error("Change was not told")
	}
	gone, cancel := context.WithCancel(ctx)
	cancel()
	if _, err := f.Set(gone, want); !errors.Is(err, context.Canceled) {
		t.Errorf("Set after the end: %v", err)
	}
}

package cloud

import (
	"context"
	"fmt"
	"slices"
	"strings"
)

// fakeInstances are a Fake's machines.
type fakeInstances struct{ f *Fake }

// AddInstances makes machines. A next hop must be one of them if there are any.
// An empty Region means the Fake's.
func (f *Fake) AddInstances(in ...Instance) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, i := range in {
		if i.Region == "" {
			i.Region = f.region
		}
		f.instances = append(f.instances, i)
	}
}

// ChangeInstance lets a function change a machine, if it is there.
func (f *Fake) ChangeInstance(id string, change func(*Instance)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for i := range f.instances {
		if f.instances[i].ID == id {
			change(&f.instances[i])
		}
	}
}

// Release ends machines.
func (f *Fake) Release(ids ...string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.instances = slices.DeleteFunc(f.instances, func(i Instance) bool { return slices.Contains(ids, i.ID) })
}

// Hide leaves machines out of every answer, though they are there, as for
// credentials that may not see them; none ends that.
func (f *Fake) Hide(ids ...string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.hidden = map[string]bool{}
	for _, id := range ids {
		f.hidden[id] = true
	}
}

// CheckAddresses lets machines' interfaces drop what is not their own, until
// AllowForwarding.
func (f *Fake) CheckAddresses(ids ...string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.checking == nil {
		f.checking = map[string]bool{}
	}
	for _, id := range ids {
		f.checking[id] = true
	}
}

// Parse reads region.instance and fake://region.instance.
func (i fakeInstances) Parse(providerID string) (string, bool) {
	id, ok := strings.CutPrefix(strings.TrimPrefix(providerID, "fake://"), i.f.region+".")
	return id, ok && id != "" && !strings.Contains(id, "/")
}

// ProviderID is region.instance.
func (i fakeInstances) ProviderID(instance string) string { return i.f.region + "." + instance }

// List is Instances.List.
func (i fakeInstances) List(ctx context.Context) ([]Instance, error) {
	return i.shown(ctx, "Instances", 0, func(Instance) bool { return true })
}

// Describe is Instances.Describe.
func (i fakeInstances) Describe(ctx context.Context, ids []string) ([]Instance, error) {
	if len(ids) > MaxDescribe {
		return nil, &Error{Class: Permanent, Action: "Describe", Code: "InvalidParameter", Message: fmt.Sprintf("%d instances; %d are the most", len(ids), MaxDescribe)}
	}
	return i.shown(ctx, "Describe", len(ids), func(in Instance) bool { return slices.Contains(ids, in.ID) })
}

func (i fakeInstances) shown(ctx context.Context, action string, count int, fits func(Instance) bool) ([]Instance, error) {
	i.f.mu.Lock()
	defer i.f.mu.Unlock()
	if hit, failed := i.f.begin(ctx, action, count); failed {
		return nil, hit.err
	}
	var out []Instance
	for _, in := range i.f.instances {
		if fits(in) && !i.f.hidden[in.ID] {
			out = append(out, in)
		}
	}
	return out, nil
}

// AllowForwarding is Instances.AllowForwarding.
func (i fakeInstances) AllowForwarding(ctx context.Context, of []Instance) ([]string, error) {
	i.f.mu.Lock()
	defer i.f.mu.Unlock()
	hit, failed := i.f.begin(ctx, "AllowForwarding", len(of))
	if failed && !hit.commit {
		return nil, hit.err
	}
	var changed []string
	for _, in := range of {
		if i.f.checking[in.ID] {
			delete(i.f.checking, in.ID)
			changed = append(changed, in.ID)
		}
	}
	return changed, hit.err
}

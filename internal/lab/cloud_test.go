package lab

import (
	"encoding/json"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"ropeway.dev/ropeway/internal/lab/cgroup"
	"ropeway.dev/ropeway/internal/lab/ledger"
	"ropeway.dev/ropeway/internal/lab/openapi"
)

// The scenario's node names are the cloud's provider ids: REGION.INSTANCE.
func TestNodesAreInstances(t *testing.T) {
	for _, family := range []Family{IPv4, IPv6, Dual} {
		m := drawn(options(func(o *Options) { o.Family, o.Nodes = family, 3 }))
		spec := cloudSpec(m, openapi.AccessKey{ID: "x", Secret: "y"})
		var names []string
		for i, in := range spec.Instances {
			names = append(names, spec.Region+"."+in.ID)
			v := spec.VSwitches[i]
			for _, a := range in.Addresses {
				if in.VSwitch != v.ID || !v.CIDR.Contains(a) && !v.IPv6CIDR.Contains(a) {
					t.Errorf("%s: %s of %s is not in its vSwitch %+v", family, a, in.ID, v)
				}
				if !slices.ContainsFunc(spec.CIDRs, func(p netip.Prefix) bool { return p.Contains(a) }) {
					t.Errorf("%s: %s of %s is not in the VPC's %v", family, a, in.ID, spec.CIDRs)
				}
			}
		}
		if got := strings.Join(names[1:], " "); got != "cn-chengdu.i-2vcxxr cn-chengdu.i-2vcxxs cn-chengdu.i-2vcxxt" {
			t.Errorf("%s: instances are %s", family, got)
		}
		if len(spec.CIDRs) != len(m.PodCIDRs) || !slices.Equal(spec.Allowed, m.PodCIDRs) {
			t.Errorf("%s: the VPC has %v and lets %v in", family, spec.CIDRs, spec.Allowed)
		}
		if spec.Instances[0].Host != controlPlaneHost {
			t.Errorf("%s: the control plane is no instance, its nodes could not ask the metadata service", family)
		}
		if _, err := openapi.New(spec, openapi.Options{}); err != nil {
			t.Error(err)
		}
	}
}

// The cloud is where the vendor's is, and no cluster may use its addresses.
func TestCloudsAddresses(t *testing.T) {
	m := drawn(options(func(o *Options) { o.Family = Dual }))
	h, _ := m.Host(cloudHost)
	if !slices.Contains(addrs(*h), netip.MustParseAddr("100.100.100.200")) {
		t.Errorf("no metadata service at its well-known address: %v", h.Addresses)
	}
	for _, a := range h.Addresses {
		if !slices.ContainsFunc(cloudRange(), func(p netip.Prefix) bool { return p.Contains(a.Addr()) }) {
			t.Errorf("%s is not in the cloud's own range", a)
		}
	}
	o := options(func(o *Options) { o.PodCIDRs = []netip.Prefix{netip.MustParsePrefix("100.64.0.0/16")} })
	if err := o.Validate(); err == nil || !strings.Contains(err.Error(), "100.64.0.0/16 overlaps the cloud's own range") {
		t.Errorf("pods in the cloud's own range: %v", err)
	}
	l := &Lab{store: "/store", manifest: m}
	if l.CloudEndpoint() != "100.100.0.10" {
		t.Errorf("endpoint %s", l.CloudEndpoint())
	}
	l.manifest = drawn(options(func(o *Options) { o.Family = IPv6 }))
	if l.CloudEndpoint() != "[fd00:100::10]" {
		t.Errorf("endpoint %s", l.CloudEndpoint())
	}
}

func TestCloudReachesTheVPC(t *testing.T) {
	o := options(func(o *Options) { o.Store = ledger.Store(t.TempDir()) })
	m := drawn(o)
	h, _ := m.Host(cloudHost)
	spec := describe(m, *h, "/lab", cgroup.Layout{})
	want := "/run/netns/rwlab-lab-vpc"
	found := false
	for _, b := range spec.Binds {
		found = found || b.Source == want && b.Target == want
	}
	if !found {
		t.Errorf("the cloud does not see the VPC's namespace: %+v", spec.Binds)
	}
	if err := os.MkdirAll(filepath.Join(h.Dir, "run"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := writeCloud(m); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(h.Dir, "run", "cloud-spec.json")
	info, err := os.Stat(path)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Fatalf("the description holds a secret: %v, %v", info.Mode(), err)
	}
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var written struct {
		Lab  string
		Spec openapi.Spec
	}
	if err := json.Unmarshal(data, &written); err != nil || written.Lab != "lab" || len(written.Spec.Key.Secret) < 20 {
		t.Errorf("the description is %+v, %v", written, err)
	}
	if _, err := (&Lab{manifest: &ledger.Manifest{Name: "old"}}).Cloud(); err == nil || !strings.Contains(err.Error(), "has no cloud") {
		t.Errorf("a lab without a cloud: %v", err)
	}
}

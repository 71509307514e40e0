package laststate

import (
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"ropeway.dev/ropeway/internal/ipam"
	"ropeway.dev/ropeway/internal/plan"
)

// sample has every kind of field that a state has, and some that are empty.
func sample() State {
	cidr := netip.MustParsePrefix("10.244.1.0/26")
	network := plan.Network{ClusterID: "c", PodCIDRs: []netip.Prefix{netip.MustParsePrefix("10.244.0.0/16")},
		BlockBits: map[plan.Family]int{plan.IPv4: 26}, Transports: []plan.Transport{plan.IPIP}, VXLANPort: 4789, VXLANVNI: 4096,
		MTU: plan.MTUPolicy{Mode: plan.MTUPerRoute}, Masquerade: true}
	other := plan.Node{Name: "b", UID: "ub", Ready: true, Addresses: []netip.Addr{netip.MustParseAddr("192.168.1.10")}, Blocks: []netip.Prefix{netip.MustParsePrefix("10.244.2.0/26")}}
	own := plan.Node{Name: "a", UID: "ua", Ready: true, Addresses: []netip.Addr{netip.MustParseAddr("192.168.0.10")}, Blocks: []netip.Prefix{cidr}}
	return State{BootID: "boot", Node: "a", NodeUID: "ua", Network: network,
		Plan:    plan.Compute(plan.Snapshot{Self: "a", Network: network, Nodes: []plan.Node{own, other}}),
		Ranges:  []ipam.Range{ipam.RangeFor(cidr, ipam.Block, plan.SourceOf(cidr))},
		Sources: []netip.Addr{plan.SourceOf(cidr)}, PodMTU: 1500,
		Refuses: map[plan.Transport]string{plan.VXLAN: "no vxlan"}, ProvenUID: "ua"}
}

func TestRoundTrip(t *testing.T) {
	path := filepath.Join(t.TempDir(), "state")
	if got, err := Load(path); got != nil || err != nil {
		t.Fatalf("no file: got %v, %v, want nothing", got, err)
	}
	want := sample()
	if err := Save(path, want); err != nil {
		t.Fatal(err)
	}
	got, err := Load(path)
	if err != nil {
		t.Fatal(err)
	}
	want.Version = version
	if !reflect.DeepEqual(*got, want) {
		t.Errorf("got  %+v\nwant %+v", *got, want)
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v, want 0600", info.Mode(), err)
	}
}

func TestDamageIsFound(t *testing.T) {
	path := filepath.Join(t.TempDir(), "state")
	if err := Save(path, sample()); err != nil {
		t.Fatal(err)
	}
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	tests := map[string][]byte{
		"empty":      {},
		"cut off":    whole[:len(whole)-10],
		"no header":  whole[10:],
		"one bit":    []byte(strings.Replace(string(whole), `"PodMTU":1500`, `"PodMTU":1501`, 1)),
		"other file": []byte("hello\n"),
	}
	for name, content := range tests {
		t.Run(name, func(t *testing.T) {
			if err := os.WriteFile(path, content, 0o600); err != nil {
				t.Fatal(err)
			}
			got, err := Load(path)
			if got != nil || !errors.Is(err, ErrUnusable) {
				t.Fatalf("got %v, %v, want ErrUnusable", got, err)
			}
			if kept, err := os.ReadFile(path + ".unusable"); err != nil || string(kept) != string(content) {
				t.Errorf("the file was not kept aside: %v", err)
			}
			if again, err := Load(path); again != nil || err != nil {
				t.Errorf("afterwards: got %v, %v, want nothing", again, err)
			}
		})
	}
}

func TestLaterVersionIsNotRead(t *testing.T) {
	body := `{"Version":99}`
	if _, err := parse[State]([]byte(header + checksum([]byte(body)) + "\n" + body)); err == nil || !strings.Contains(err.Error(), "version 99") {
		t.Errorf("got %v, want the version named", err)
	}
}

// TestKilledWhileSaving: a temporary file of a killed agent is no state, and
// does not stand in the way.
func TestKilledWhileSaving(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "state")
	if err := Save(path, sample()); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, ".state.tmp"), []byte("ropeway-sta"), 0o600); err != nil {
		t.Fatal(err)
	}
	if got, err := Load(path); err != nil || got.NodeUID != "ua" {
		t.Fatalf("got %v, %v", got, err)
	}
	if err := Save(path, sample()); err != nil {
		t.Fatal(err)
	}
}

func TestBootID(t *testing.T) {
	a, err := BootID()
	if err != nil || len(a) != 36 {
		t.Errorf("got %q, %v, want a UUID", a, err)
	}
}

// A state is what was written, or nothing: it decides what the kernel keeps
// while the API server is away.
func FuzzParse(f *testing.F) {
	for _, body := range []string{`{}`, `{"version":1,"node":"n"}`, `null`, `[]`, `{"version":99}`} {
		f.Add([]byte(header + checksum([]byte(body)) + "\n" + body))
		f.Add([]byte(body)) // see below
	}
	f.Add([]byte(header))
	f.Fuzz(func(t *testing.T, data []byte) {
		if s, err := parse[State](data); (s == nil) == (err == nil) {
			t.Fatalf("%v, %v", s, err)
		}
		// With its checksum, so that what is behind it is tried too.
		s, err := parse[State](append([]byte(header+checksum(data)+"\n"), data...))
		if (s == nil) == (err == nil) {
			t.Fatalf("%v, %v", s, err)
		}
		if s != nil && s.Version > version {
			t.Fatalf("a state of version %d is taken", s.Version)
		}
	})
}

package bpf

import (
	"errors"
	"maps"
	"net/netip"
	"slices"
	"testing"

	"github.com/cilium/ebpf"
	"pgregory.net/rapid"

	"ropeway.dev/ropeway/internal/dataplane/podlink/netnstest"
)

// TestObjectAndGoAgree: the counters' names and the maps' keys and values are
// written down twice, in C and in Go.
func TestObjectAndGoAgree(t *testing.T) {
	spec, err := loadRopeway()
	if err != nil {
		t.Fatal(err)
	}
	if n := spec.Maps[ropewayMapCounters].MaxEntries; int(n) != len(events) {
		t.Errorf("the programs count %d events, and %d have names", n, len(events))
	}
	for name, sizes := range map[string][2]uint32{
		ropewayMapDestinations: {20, 8},
		ropewayMapSources:      {20, 32},
		ropewayMapPodNetwork:   {20, 4},
		ropewayMapNodes:        {16, 4},
		ropewayMapSettings:     {4, 8},
	} {
		if m := spec.Maps[name]; m.KeySize != sizes[0] || m.ValueSize != sizes[1] {
			t.Errorf("map %s has keys of %d bytes and values of %d, want %v", name, m.KeySize, m.ValueSize, sizes)
		}
	}
	for name, p := range spec.Programs {
		if p.License != "Apache-2.0" {
			t.Errorf("program %s has licence %q", name, p.License)
		}
	}
}

// TestKeysHoldPrefixes: a key of the kernel's trie is the prefix that it was made
// of, and IPv4 and IPv6 never meet.
func TestKeysHoldPrefixes(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		length := rapid.SampledFrom([]int{4, 16}).Draw(t, "length")
		bytes := rapid.SliceOfN(rapid.Byte(), length, length).Draw(t, "address")
		a, _ := netip.AddrFromSlice(bytes)
		if a.Is4In6() {
			t.Skip("no prefix of ours is of this form")
		}
		p := netip.PrefixFrom(a, rapid.IntRange(0, a.BitLen()).Draw(t, "bits")).Masked()
		k := keyOf(p)
		if k.prefix() != p {
			t.Fatalf("%v became %v", p, k.prefix())
		}
		if a.Is4() && k.Bits < 96 {
			t.Fatalf("%v covers addresses of IPv6", p)
		}
	})
}

// TestReadWithoutBatches: a map that the kernel does not read many entries of in a
// call, as tries before Linux 5.13, is read one by one; and a trie that it does,
// either way.
func TestReadWithoutBatches(t *testing.T) {
	netnstest.NeedRoot(t)
	spec, err := loadRopeway()
	if err != nil {
		t.Fatal(err)
	}
	trie, err := ebpf.NewMap(spec.Maps[ropewayMapDestinations])
	if err != nil {
		t.Fatal(err)
	}
	defer trie.Close()
	want := map[lpmKey]endpoint{}
	for i := range readAtOnce + 10 {
		key := keyOf(netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(i >> 8), byte(i), 0}), 24))
		want[key] = endpoint{Remote: [4]byte{192, 0, 2, byte(i)}}
		if err := trie.Put(key, want[key]); err != nil {
			t.Fatal(err)
		}
	}
	for name, read := range map[string]func(*ebpf.Map) (map[lpmKey]endpoint, error){
		"many": readMany[lpmKey, endpoint], "each": readEach[lpmKey, endpoint],
	} {
		if got, err := read(trie); err != nil || !maps.Equal(got, want) {
			t.Errorf("%s: %d of %d entries are as they were written: %v", name, len(got), len(want), err)
		}
	}
	// A map of devices (loopback's here) has no batches in any kernel so far.
	devices, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.DevMapHash, KeySize: 4, ValueSize: 4, MaxEntries: 4})
	if err != nil {
		t.Fatal(err)
	}
	defer devices.Close()
	if err := devices.Put(uint32(7), uint32(1)); err != nil {
		t.Fatal(err)
	}
	if _, err := readMany[uint32, uint32](devices); !errors.Is(err, ebpf.ErrNotSupported) {
		t.Fatalf("many entries of a map of devices: %v; the test needs another map", err)
	}
	if got, err := read[uint32, uint32](devices); err != nil || !maps.Equal(got, map[uint32]uint32{7: 1}) {
		t.Errorf("%v, %v", got, err)
	}
}

// TestContentsLeaveOutNonsense: what a map cannot say is not written as
// something else.
func TestContentsLeaveOutNonsense(t *testing.T) {
	prefix, addr := netip.MustParsePrefix, netip.MustParseAddr
	c := State{
		Destinations: map[netip.Prefix]Endpoint{
			prefix("10.244.2.0/24"): {addr("192.168.2.2"), addr("192.168.1.2")},
			prefix("10.244.3.0/24"): {addr("fd00::3"), addr("192.168.1.2")},
			prefix("fd00:244::/64"): {addr("192.168.2.2"), addr("192.168.1.2")},
			prefix("10.244.4.0/24"): {Remote: addr("192.168.4.2")},
			prefix("10.244.5.0/24"): {Remote: addr("fd00::5")},
		},
		Sources: map[netip.Prefix][]netip.Addr{prefix("10.244.2.0/24"): {addr("192.168.2.2"), addr("fd00::2")}},
		Own:     []netip.Addr{addr("192.168.1.2")},
		Peers:   []netip.Addr{addr("192.168.2.2"), addr("fd00::2"), addr("192.168.1.2")},
		Port:    4789,
	}.contents()
	if len(c.destinations) != 2 {
		t.Errorf("destinations %v: want the IPv4 ones by IPv4 only", c.destinations)
	}
	if bare := c.destinations[keyOf(prefix("10.244.4.0/24"))]; bare != (endpoint{Remote: [4]byte{192, 168, 4, 2}}) {
		t.Errorf("bare destination %v", bare)
	}
	o := c.sources[keyOf(prefix("10.244.2.0/24"))]
	if o.IPv4 != addr("192.168.2.2").As16() || o.IPv6 != addr("fd00::2").As16() {
		t.Errorf("owner %v", o)
	}
	if c.nodes[addr("192.168.1.2").As16()] != roleSelf || c.nodes[addr("fd00::2").As16()] != rolePeer {
		t.Errorf("nodes %v", c.nodes)
	}
	if port := c.settings[0].Port; !slices.Equal(port[:], []byte{4789 >> 8, 4789 & 0xff, 0, 0}) {
		t.Errorf("port %v is not in network byte order", port)
	}
}

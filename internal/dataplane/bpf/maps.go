package bpf

import (
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"path/filepath"

	"github.com/cilium/ebpf"
)

// State is what the programs go by. Its prefixes are masked, its addresses
// without the IPv4-in-IPv6 form and without zones.
type State struct {
	// Destinations maps other nodes' IPv4 CIDRs -> where to send packets to
	// them when they leave by an uplink, or that they stay as they are.
	Destinations map[netip.Prefix]Endpoint
	// Sources maps other nodes' CIDRs -> the fabric addresses of the owner, at
	// most one per family.
	Sources map[netip.Prefix][]netip.Addr
	// Own and Peers are addresses in the fabric.
	Own, Peers []netip.Addr
	// PodCIDRs are the whole pod network.
	PodCIDRs []netip.Prefix
	VNI      uint32
	Port     uint16
}

// Endpoint is the two ends of a tunnel, both IPv4. Without a Local one there is
// no tunnel: packets to the node Remote stay as they are.
type Endpoint struct {
	Remote, Local netip.Addr
}

// Bare reports whether packets stay as they are.
func (e Endpoint) Bare() bool { return !e.Local.IsValid() }

// The maps' keys and values, as ropeway.bpf.c has them.
type (
	address  [16]byte
	endpoint struct{ Remote, Local [4]byte }
	owner    struct{ IPv4, IPv6 address }
	settings struct {
		VNI  uint32
		Port [4]byte
	}
	lpmKey struct {
		Bits    uint32
		Address address
	}
)

// Roles of nodes.
const (
	rolePeer uint32 = 1
	roleSelf uint32 = 2
)

// contents are the maps as they should be: key -> value.
type contents struct {
	destinations map[lpmKey]endpoint
	sources      map[lpmKey]owner
	nodes        map[address]uint32
	podNetwork   map[lpmKey]uint32
	settings     map[uint32]settings
}

// contents translates a State. What has no meaning to a map is left out.
func (s State) contents() contents {
	c := contents{
		destinations: make(map[lpmKey]endpoint, len(s.Destinations)),
		sources:      make(map[lpmKey]owner, len(s.Sources)),
		nodes:        make(map[address]uint32, len(s.Peers)+len(s.Own)),
		podNetwork:   make(map[lpmKey]uint32, len(s.PodCIDRs)),
		settings:     map[uint32]settings{0: {VNI: s.VNI, Port: [4]byte{byte(s.Port >> 8), byte(s.Port)}}},
	}
	for p, e := range s.Destinations {
		switch {
		case !p.Addr().Is4() || !e.Remote.Is4():
		case e.Bare():
			c.destinations[keyOf(p)] = endpoint{Remote: e.Remote.As4()}
		case e.Local.Is4():
			c.destinations[keyOf(p)] = endpoint{e.Remote.As4(), e.Local.As4()}
		}
	}
	for p, addrs := range s.Sources {
		var o owner
		for _, a := range addrs {
			if a.Is4() {
				o.IPv4 = a.As16()
			} else {
				o.IPv6 = a.As16()
			}
		}
		c.sources[keyOf(p)] = o
	}
	for _, a := range s.Peers {
		c.nodes[a.As16()] = rolePeer
	}
	for _, a := range s.Own {
		c.nodes[a.As16()] = roleSelf
	}
	for _, p := range s.PodCIDRs {
		c.podNetwork[keyOf(p)] = 1
	}
	return c
}

func keyOf(p netip.Prefix) lpmKey {
	bits := p.Bits()
	if p.Addr().Is4() {
		bits += 96
	}
	return lpmKey{uint32(bits), p.Addr().As16()}
}

func (k lpmKey) prefix() netip.Prefix {
	a := netip.AddrFrom16(k.Address)
	if a.Is4In6() && k.Bits >= 96 {
		return netip.PrefixFrom(a.Unmap(), int(k.Bits)-96)
	}
	return netip.PrefixFrom(a, int(k.Bits))
}

// Fill adds and replaces what differs from s, and deletes nothing yet.
func (t *Tunnel) Fill(s State) (changed bool, err error) {
	return t.eachMap(s, true)
}

// Prune deletes what s does not have.
func (t *Tunnel) Prune(s State) (changed bool, err error) {
	return t.eachMap(s, false)
}

func (t *Tunnel) eachMap(s State, fill bool) (bool, error) {
	c := s.contents()
	var errs []error
	changed := false
	note := func(ch bool, err error) {
		changed = changed || ch
		errs = append(errs, err)
	}
	// The guards know a node before a packet of its can be accepted.
	note(adjust(t.maps.Settings, c.settings, fill))
	note(adjust(t.maps.PodNetwork, c.podNetwork, fill))
	note(adjust(t.maps.Nodes, c.nodes, fill))
	note(adjust(t.maps.Sources, c.sources, fill))
	note(adjust(t.maps.Destinations, c.destinations, fill))
	return changed, errors.Join(errs...)
}

// adjust makes one step of a map towards want: with fill, add and replace;
// without, delete what is too much.
func adjust[K, V comparable](m *ebpf.Map, want map[K]V, fill bool) (changed bool, err error) {
	have, err := read[K, V](m)
	if err != nil {
		return false, err
	}
	if fill {
		for k, v := range want {
			if old, ok := have[k]; ok && old == v {
				continue
			}
			if err := m.Put(k, v); err != nil {
				return changed, fmt.Errorf("write eBPF map %s (it has %d of at most %d entries): %w",
					nameOf(m), len(have), m.MaxEntries(), err)
			}
			changed = true
		}
		return changed, nil
	}
	for k := range have {
		if _, ok := want[k]; ok || m.Type() == ebpf.Array {
			continue
		}
		if err := m.Delete(k); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			return changed, fmt.Errorf("delete from eBPF map %s: %w", nameOf(m), err)
		}
		changed = true
	}
	return changed, nil
}

// readAtOnce is how many entries one call reads.
const readAtOnce = 1024

// read returns all of a map.
func read[K, V comparable](m *ebpf.Map) (map[K]V, error) {
	have, err := readMany[K, V](m)
	if errors.Is(err, ebpf.ErrNotSupported) {
		have, err = readEach[K, V](m)
	}
	if err != nil {
		return nil, fmt.Errorf("read eBPF map %s: %w", nameOf(m), err)
	}
	return have, nil
}

// readMany reads many entries in a call: in a large cluster each Set reads
// thousands. Of tries, kernels before 5.13 do not support it.
func readMany[K, V comparable](m *ebpf.Map) (map[K]V, error) {
	have := map[K]V{}
	var (
		cursor ebpf.MapBatchCursor
		size   = min(int(m.MaxEntries()), readAtOnce)
		keys   = make([]K, size)
		values = make([]V, size)
	)
	for {
		n, err := m.BatchLookup(&cursor, keys, values, nil)
		for i := range n {
			have[keys[i]] = values[i]
		}
		switch {
		case errors.Is(err, ebpf.ErrKeyNotExist): // that was the last
			return have, nil
		case err != nil:
			return nil, err
		}
	}
}

// readEach reads one entry in a call.
func readEach[K, V comparable](m *ebpf.Map) (map[K]V, error) {
	have := map[K]V{}
	var key K
	var value V
	entries := m.Iterate()
	for entries.Next(&key, &value) {
		have[key] = value
	}
	return have, entries.Err()
}

func nameOf(m *ebpf.Map) string {
	info, err := m.Info()
	if err != nil {
		return m.String()
	}
	return info.Name
}

// Destinations reads from the kernel where packets to each CIDR are sent.
func (t *Tunnel) Destinations() (map[netip.Prefix]Endpoint, error) {
	have, err := read[lpmKey, endpoint](t.maps.Destinations)
	if err != nil {
		return nil, err
	}
	out := make(map[netip.Prefix]Endpoint, len(have))
	for k, v := range have {
		e := Endpoint{Remote: netip.AddrFrom4(v.Remote)}
		if v.Local != [4]byte{} {
			e.Local = netip.AddrFrom4(v.Local)
		}
		out[k.prefix()] = e
	}
	return out, nil
}

// PinnedDestinations is Destinations without a Tunnel. It is empty if nothing
// is pinned.
func PinnedDestinations(pinDir string) (map[netip.Prefix]Endpoint, error) {
	m, err := ebpf.LoadPinnedMap(filepath.Join(pinDir, layout, ropewayMapDestinations), &ebpf.LoadPinOptions{ReadOnly: true})
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("open pinned eBPF map: %w", err)
	}
	defer m.Close()
	t := Tunnel{maps: ropewayMaps{Destinations: m}}
	return t.Destinations()
}

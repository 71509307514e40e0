package routes

import "net/netip"

// wantTree finds wants by destination, and the one around a narrower one.
type wantTree struct {
	wants    map[netip.Prefix]*Want
	shortest int // prefix length
}

func newWantTree(wants []Want) wantTree {
	t := wantTree{wants: make(map[netip.Prefix]*Want, len(wants)), shortest: 128}
	for i := range wants {
		t.wants[wants[i].Dst] = &wants[i]
		t.shortest = min(t.shortest, wants[i].Dst.Bits())
	}
	return t
}

func (t wantTree) has(dst netip.Prefix) bool { return t.wants[dst] != nil }

// around returns the narrowest want that dst is a part of.
func (t wantTree) around(dst netip.Prefix) (*Want, bool) {
	for bits := dst.Bits() - 1; bits >= t.shortest; bits-- {
		if w := t.wants[netip.PrefixFrom(dst.Addr(), bits).Masked()]; w != nil {
			return w, true
		}
	}
	return nil, false
}

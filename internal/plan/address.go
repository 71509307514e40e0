package plan

import (
	"crypto/sha256"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

// VTEPMAC returns the address of the vxlan device of the node with this UID.
// It is unicast and locally administered (IEEE 802, section 8.4), and the same
// on every node that computes it, so that a peer is reachable by vxlan before
// its agent has said anything.
func VTEPMAC(uid string) MAC {
	sum := sha256.Sum256([]byte("ropeway vtep\x00" + uid))
	mac := MAC(sum[:6])
	mac[0] = mac[0]&^0x01 | 0x02
	return mac
}

// String writes the address as Linux does: six pairs of hex digits.
func (m MAC) String() string {
	return fmt.Sprintf("%02x:%02x:%02x:%02x:%02x:%02x", m[0], m[1], m[2], m[3], m[4], m[5])
}

// ParseMAC reads what MAC.String writes.
func ParseMAC(text string) (MAC, error) {
	var mac MAC
	pairs := strings.Split(text, ":")
	if len(pairs) != len(mac) {
		return MAC{}, fmt.Errorf("MAC address %q: want six pairs of hex digits such as 02:00:5e:00:53:01", text)
	}
	for i, pair := range pairs {
		octet, err := strconv.ParseUint(pair, 16, 8)
		if err != nil || len(pair) != 2 {
			return MAC{}, fmt.Errorf("MAC address %q: %q is not two hex digits", text, pair)
		}
		mac[i] = byte(octet)
	}
	return mac, nil
}

// SourceOf returns the address of a node's first range that the node keeps for
// itself: the one behind the base address, or the base address where the range
// has no other. It is invalid if the range is.
func SourceOf(p netip.Prefix) netip.Addr {
	if !p.IsValid() {
		return netip.Addr{}
	}
	base := p.Masked().Addr()
	if next := base.Next(); p.Contains(next) {
		return next
	}
	return base
}

// OfFamily returns the first of the addresses that is of the family, or the
// invalid address.
func OfFamily(addrs []netip.Addr, f Family) netip.Addr {
	for _, a := range addrs {
		if a.IsValid() && FamilyOf(a) == f {
			return a
		}
	}
	return netip.Addr{}
}

// containedInAny reports whether one of the prefixes has the address.
func containedInAny(prefixes []netip.Prefix, a netip.Addr) bool {
	return slices.ContainsFunc(prefixes, func(p netip.Prefix) bool { return p.Contains(a) })
}

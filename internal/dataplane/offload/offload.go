// Package offload reads and sets the offload features of network devices: what
// the kernel leaves to a device, or to a later moment. It works in the network
// namespace of the thread. The messages are documented in the kernel's
// networking/ethtool-netlink, FEATURES_GET and FEATURES_SET.
package offload

import (
	"bytes"
	"fmt"
	"maps"
	"slices"

	"golang.org/x/sys/unix"

	"ropeway.dev/ropeway/internal/dataplane/podlink/rtnl"
)

// Features returns the names of a link's features in one set: ETHTOOL_A_FEATURES_HW (those that can be changed)
// or ETHTOOL_A_FEATURES_ACTIVE. Kernels before 5.7 have no such interface: the error is unix.ENOENT.
func Features(link int, set uint16) ([]string, error) {
	reply, err := ask(link, unix.ETHTOOL_MSG_FEATURES_GET, func(*rtnl.Batch) {})
	if err != nil {
		return nil, fmt.Errorf("read the offload features of link %d: %w", link, err)
	}
	var names []string
	for kind, bitset := range rtnl.GenericAttrs(reply) {
		if kind == set {
			names = append(names, bitNames(bitset)...)
		}
	}
	return names, nil
}

// bitNames returns the names of the bits in a verbose bitset.
func bitNames(bitset []byte) []string {
	var names []string
	each(bitset, unix.ETHTOOL_A_BITSET_BITS, func(bits []byte) {
		each(bits, unix.ETHTOOL_A_BITSET_BITS_BIT, func(bit []byte) {
			each(bit, unix.ETHTOOL_A_BITSET_BIT_NAME, func(name []byte) {
				names = append(names, string(bytes.TrimRight(name, "\x00")))
			})
		})
	})
	return names
}

func each(data []byte, kind uint16, f func([]byte)) {
	for k, value := range rtnl.Attrs(data) {
		if k == kind {
			f(value)
		}
	}
}

// Change switches features of a link, by the names that ethtool -k shows; want maps
// feature -> on. Names that the kernel does not know are an error. Kernels before
// 5.7 have no such interface: the error is unix.ENOENT.
func Change(link int, want map[string]bool) error {
	_, err := ask(link, unix.ETHTOOL_MSG_FEATURES_SET, func(b *rtnl.Batch) {
		b.Nest(unix.ETHTOOL_A_FEATURES_WANTED|unix.NLA_F_NESTED, nil, func() {
			b.Nest(unix.ETHTOOL_A_BITSET_BITS|unix.NLA_F_NESTED, nil, func() {
				for _, name := range slices.Sorted(maps.Keys(want)) {
					addBit(b, name, want[name])
				}
			})
		})
	})
	if err != nil {
		return fmt.Errorf("set the offload features of link %d: %w", link, err)
	}
	return nil
}

func addBit(b *rtnl.Batch, name string, on bool) {
	b.Nest(unix.ETHTOOL_A_BITSET_BITS_BIT|unix.NLA_F_NESTED, nil, func() {
		b.String(unix.ETHTOOL_A_BITSET_BIT_NAME, name)
		if on {
			b.Attr(unix.ETHTOOL_A_BITSET_BIT_VALUE, nil)
		}
	})
}

// ask sends a command about a link, with what fill adds, and returns the reply.
func ask(link int, command uint8, fill func(*rtnl.Batch)) ([]byte, error) {
	ethtool, err := rtnl.OpenGeneric(unix.ETHTOOL_GENL_NAME, unix.ETHTOOL_GENL_VERSION)
	if err != nil {
		return nil, fmt.Errorf("%w (Linux 5.7 or later has ethtool's)", err)
	}
	defer ethtool.Close()
	var b rtnl.Batch
	ethtool.Begin(&b, command)
	b.Nest(unix.ETHTOOL_A_FEATURES_HEADER|unix.NLA_F_NESTED, nil, func() {
		b.Uint32(unix.ETHTOOL_A_HEADER_DEV_INDEX, uint32(link))
	})
	fill(&b)
	answers, err := ethtool.Do(&b)
	if err != nil {
		return nil, err
	}
	return answers[0].Body, nil
}

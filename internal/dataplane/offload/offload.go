// Package offload reads and sets the offload features of network devices: what
// the kernel leaves to a device, or to a later moment. It works in the network
// namespace of the thread.
package offload

import (
	"bytes"
	"fmt"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// Features returns the names of a link's features in one set: ETHTOOL_A_FEATURES_HW (those that can be changed)
// or ETHTOOL_A_FEATURES_ACTIVE. The message is documented in the kernel's networking/ethtool-netlink, FEATURES_GET.
func Features(link int, set uint16) ([]string, error) {
	req, err := request(unix.ETHTOOL_MSG_FEATURES_GET, link)
	if err != nil {
		return nil, err
	}
	replies, err := req.Execute(unix.NETLINK_GENERIC, 0)
	if err != nil {
		return nil, fmt.Errorf("read the offload features of link %d (the kernel needs ethtool netlink, 5.7 or later): %w", link, err)
	}
	var names []string
	for _, reply := range replies {
		attrs, err := nl.ParseRouteAttr(reply[nl.SizeofGenlmsg:])
		if err != nil {
			return nil, fmt.Errorf("parse the offload features of link %d: %w", link, err)
		}
		for _, a := range attrs {
			if a.Attr.Type&^unix.NLA_F_NESTED == set {
				names = append(names, bitNames(a.Value)...)
			}
		}
	}
	return names, nil
}

// bitNames returns the names of the bits in a verbose bitset.
func bitNames(bitset []byte) []string {
	var names []string
	eachAttr(bitset, unix.ETHTOOL_A_BITSET_BITS, func(bits []byte) {
		eachAttr(bits, unix.ETHTOOL_A_BITSET_BITS_BIT, func(bit []byte) {
			eachAttr(bit, unix.ETHTOOL_A_BITSET_BIT_NAME, func(name []byte) {
				names = append(names, string(bytes.TrimRight(name, "\x00")))
			})
		})
	})
	return names
}

func eachAttr(data []byte, kind uint16, f func([]byte)) {
	attrs, err := nl.ParseRouteAttr(data)
	if err != nil {
		return // the kernel's own message: what cannot be read is not there
	}
	for _, a := range attrs {
		if a.Attr.Type&^unix.NLA_F_NESTED == kind {
			f(a.Value)
		}
	}
}

// Change switches features of a link, by the names that ethtool -k shows; want maps
// feature -> on. Names that the kernel does not know are an error.
func Change(link int, want map[string]bool) error {
	req, err := request(unix.ETHTOOL_MSG_FEATURES_SET, link)
	if err != nil {
		return err
	}
	wanted := nl.NewRtAttr(unix.ETHTOOL_A_FEATURES_WANTED|unix.NLA_F_NESTED, nil)
	bits := wanted.AddRtAttr(unix.ETHTOOL_A_BITSET_BITS|unix.NLA_F_NESTED, nil)
	for name, on := range want {
		bit := bits.AddRtAttr(unix.ETHTOOL_A_BITSET_BITS_BIT|unix.NLA_F_NESTED, nil)
		bit.AddRtAttr(unix.ETHTOOL_A_BITSET_BIT_NAME, nl.ZeroTerminated(name))
		if on {
			bit.AddRtAttr(unix.ETHTOOL_A_BITSET_BIT_VALUE, nil)
		}
	}
	req.AddData(wanted)
	if _, err := req.Execute(unix.NETLINK_GENERIC, 0); err != nil {
		return fmt.Errorf("set the offload features of link %d: %w", link, err)
	}
	return nil
}

func request(command uint8, link int) (*nl.NetlinkRequest, error) {
	family, err := netlink.GenlFamilyGet("ethtool")
	if err != nil {
		return nil, fmt.Errorf("find the kernel's ethtool netlink family (5.7 or later): %w", err)
	}
	req := nl.NewNetlinkRequest(int(family.ID), unix.NLM_F_ACK)
	req.AddData(&nl.Genlmsg{Command: command, Version: unix.ETHTOOL_GENL_VERSION})
	header := nl.NewRtAttr(unix.ETHTOOL_A_FEATURES_HEADER|unix.NLA_F_NESTED, nil)
	header.AddRtAttr(unix.ETHTOOL_A_HEADER_DEV_INDEX, nl.Uint32Attr(uint32(link)))
	req.AddData(header)
	return req, nil
}

package vpc

import (
	"encoding/json"
	"errors"
	"fmt"
	"hash/fnv"
	"net"
	"net/netip"
	"strings"

	"github.com/containernetworking/plugins/pkg/netlinksafe"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"ropeway.dev/ropeway/internal/dataplane/offload"
)

// hostLink is the name of the wire's end in a host.
const hostLink = "eth0"

// maxAlias is the kernel's limit for a link's alias in bytes.
const maxAlias = 255

// wire is a veth pair between the VPC's namespace and a host's. What is exported is recorded as JSON in the alias of
// the VPC's end, before the host's namespace is made: that record is all that Down and the route table know of hosts.
type wire struct {
	Host      string         `json:"host"`
	Netns     string         `json:"netns"`
	Addresses []netip.Prefix `json:"addresses"`

	link  string // name in the VPC's namespace
	index int    // interface index there, known once laid
	mtu   int
	// alone is set where every wire has a MAC of its own at the VPC's end, as a switch's ports do.
	alone bool
}

// plan turns a valid Spec into wires, the one to the outside first.
func plan(spec Spec) ([]*wire, error) {
	mtu := spec.MTU
	if mtu == 0 {
		mtu = DefaultMTU
	}
	outside := &wire{Host: OutsideHost, Netns: OutsideNetns(spec.Lab), link: OutsideHost, mtu: mtu, alone: spec.Switch}
	for _, a := range outsideAddresses() {
		outside.Addresses = append(outside.Addresses, netip.PrefixFrom(a, a.BitLen()))
	}
	wires := []*wire{outside}
	for i, h := range spec.Hosts {
		wires = append(wires, &wire{Host: h.Name, Netns: h.Netns, Addresses: h.Addresses, link: fmt.Sprintf("wire%d", i), mtu: mtu, alone: spec.Switch})
	}
	for _, w := range wires {
		alias, err := w.alias()
		if err != nil {
			return nil, err
		}
		if len(alias) > maxAlias {
			return nil, fmt.Errorf("host %s: name, namespace and addresses take %d bytes, more than the %d that the kernel keeps: "+
				"choose a shorter name or fewer addresses", w.Host, len(alias), maxAlias)
		}
	}
	return wires, nil
}

func (w *wire) alias() (string, error) {
	text, err := json.Marshal(w)
	if err != nil {
		return "", fmt.Errorf("encode host %s: %w", w.Host, err)
	}
	return string(text), nil
}

// everybody is the MAC that the VPC answers for every address.
func everybody() net.HardwareAddr { return net.HardwareAddr{0xee, 0xff, 0xff, 0xff, 0xff, 0xff} }

func (w *wire) mac() net.HardwareAddr { return MAC(w.Host) }

// MAC is the MAC of a host's eth0: made from the host's name, so that it is the same each time.
func MAC(host string) net.HardwareAddr {
	h := fnv.New32a()
	h.Write([]byte(host))
	sum := h.Sum32()
	return net.HardwareAddr{0x00, 0x16, 0x3e, byte(sum >> 16), byte(sum >> 8), byte(sum)}
}

// address returns the host's first address of a family.
func (w *wire) address(is6 bool) (netip.Addr, bool) {
	for _, p := range w.Addresses {
		if p.Addr().Is6() == is6 {
			return p.Addr(), true
		}
	}
	return netip.Addr{}, false
}

// configureFabricNetns prepares the VPC's namespace, in which the thread is.
func configureFabricNetns() error {
	return setSysctls([]sysctl{
		{"ipv4.ip_forward", "1"}, // the fabric's route lookups want it
		{"ipv6.conf.all.forwarding", "1"},
		{"ipv6.conf.default.addr_gen_mode", "1"}, // no address of its own, so nothing to send
		{"ipv6.conf.default.accept_ra", "0"},
	})
}

// lay makes the wire and the host's namespace. The VPC's end stays down until the fabric is on it.
func (w *wire) lay(lab string) error {
	if err := inNetns(vpcNetns(lab), w.create); err != nil {
		return err
	}
	return w.settle(lab)
}

func (w *wire) create() error {
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MTU = w.link, w.mtu
	if !w.alone {
		attrs.HardwareAddr = everybody()
	}
	veth := netlink.NewVeth(attrs)
	veth.PeerName, veth.PeerHardwareAddr, veth.PeerMTU = hostLink, w.mac(), uint32(w.mtu)
	if err := netlink.LinkAdd(veth); err != nil {
		return fmt.Errorf("make the wire %s: %w", w.link, err)
	}
	link, err := netlinksafe.LinkByName(w.link)
	if err != nil {
		return fmt.Errorf("find the wire %s: %w", w.link, err)
	}
	w.index = link.Attrs().Index
	alias, err := w.alias()
	if err != nil {
		return err
	}
	if err := netlink.LinkSetAlias(link, alias); err != nil {
		return fmt.Errorf("record the host on the wire %s: %w", w.link, err)
	}
	return setWireFeatures(w.index)
}

// configureHost sets up the host's end, in whose namespace the thread is.
func (w *wire) configureHost() error {
	if err := setSysctls([]sysctl{
		{"ipv6.conf.all.accept_ra", "0"}, {"ipv6.conf.default.accept_ra", "0"},
		{"ipv6.conf.all.accept_dad", "0"}, {"ipv6.conf.default.accept_dad", "0"},
		{"ipv6.conf." + hostLink + ".accept_ra", "0"}, {"ipv6.conf." + hostLink + ".accept_dad", "0"},
		{"ipv6.conf.default.dad_transmits", "0"}, {"ipv6.conf." + hostLink + ".dad_transmits", "0"},
	}); err != nil {
		return err
	}
	link, err := netlinksafe.LinkByName(hostLink)
	if err != nil {
		return fmt.Errorf("find %s: %w", hostLink, err)
	}
	if err := setWireFeatures(link.Attrs().Index); err != nil {
		return err
	}
	if err := bringUp("lo"); err != nil {
		return err
	}
	for _, p := range w.Addresses {
		addr := &netlink.Addr{IPNet: ipNet(p)}
		if p.Addr().Is6() {
			addr.Flags = unix.IFA_F_NODAD
		}
		if err := netlink.AddrAdd(link, addr); err != nil {
			return fmt.Errorf("add the address %s: %w", p, err)
		}
	}
	if err := bringUp(hostLink); err != nil {
		return err
	}
	return w.addDefaultRoutes(link.Attrs().Index)
}

func (w *wire) addDefaultRoutes(link int) error {
	for _, p := range w.Addresses {
		route := &netlink.Route{LinkIndex: link, Gw: gatewayOf(p).AsSlice()}
		if p.Addr().Is4() {
			route.Dst = ipNet(netip.PrefixFrom(netip.IPv4Unspecified(), 0))
		} else {
			route.Dst = ipNet(netip.PrefixFrom(netip.IPv6Unspecified(), 0))
		}
		if p.IsSingleIP() { // the outside: its gateway is on no subnet of its own
			route.Flags = int(netlink.FLAG_ONLINK)
		}
		// A host with two addresses of a family has one default route, through the first one's gateway.
		if err := netlink.RouteAdd(route); err != nil && !errors.Is(err, unix.EEXIST) {
			return fmt.Errorf("add the default route via %s: %w", route.Gw, err)
		}
	}
	return nil
}

// connect brings the VPC's end up and makes the host's own addresses known. The thread is in the VPC's namespace.
func (w *wire) connect() error {
	if err := bringUp(w.link); err != nil {
		return err
	}
	for _, p := range w.Addresses {
		ip := p.Addr()
		neigh := &netlink.Neigh{LinkIndex: w.index, IP: ip.AsSlice(), HardwareAddr: w.mac(), State: netlink.NUD_PERMANENT, Family: family(ip.Is6())}
		if err := netlink.NeighSet(neigh); err != nil {
			return fmt.Errorf("add the neighbour %s: %w", ip, err)
		}
		own := &netlink.Route{LinkIndex: w.index, Dst: ipNet(netip.PrefixFrom(ip, ip.BitLen())), Priority: metricHost, Scope: netlink.SCOPE_LINK}
		if err := netlink.RouteAdd(own); err != nil {
			return fmt.Errorf("add the route to %s: %w", ip, err)
		}
	}
	return nil
}

func bringUp(name string) error {
	link, err := netlinksafe.LinkByName(name)
	if err != nil {
		return fmt.Errorf("find %s: %w", name, err)
	}
	if err := netlink.LinkSetUp(link); err != nil {
		return fmt.Errorf("bring %s up: %w", name, err)
	}
	return nil
}

// listWires reads the wires of a lab from the kernel.
func listWires(lab string) ([]*wire, error) {
	var wires []*wire
	err := inNetns(vpcNetns(lab), func() error {
		var err error
		wires, err = listWiresHere()
		return err
	})
	return wires, err
}

// listWiresHere is listWires on a thread that is in the VPC's namespace.
func listWiresHere() ([]*wire, error) {
	links, err := netlinksafe.LinkList()
	if err != nil {
		return nil, fmt.Errorf("list the wires: %w", err)
	}
	var wires []*wire
	for _, l := range links {
		w := &wire{link: l.Attrs().Name, index: l.Attrs().Index, mtu: l.Attrs().MTU}
		if l.Type() != "veth" || l.Attrs().Alias == "" {
			continue // lo, or the trace of an Up that was killed before it made a host
		}
		if err := json.Unmarshal([]byte(l.Attrs().Alias), w); err != nil {
			return nil, fmt.Errorf("read the record on the wire %s: %w", w.link, err)
		}
		wires = append(wires, w)
	}
	return wires, nil
}

// wireOf finds a host's wire.
func wireOf(wires []*wire, host string) (*wire, error) {
	for _, w := range wires {
		if w.Host == host {
			return w, nil
		}
	}
	return nil, fmt.Errorf("no host %q on the VPC: name one that it was made with", host)
}

func family(is6 bool) int {
	if is6 {
		return netlink.FAMILY_V6
	}
	return netlink.FAMILY_V4
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

// setWireFeatures makes a link of the thread's namespace behave like a wire: what is sent is cut to the MTU before it
// leaves, as by a network card without segmentation offload, and what is received is put together by GRO. Checksum
// offload stays, as clouds' virtual cards have it.
func setWireFeatures(link int) error {
	features, err := offload.Features(link, unix.ETHTOOL_A_FEATURES_HW)
	if err != nil {
		return err
	}
	want := map[string]bool{"rx-gro": true}
	for _, f := range features {
		if isSegmentation(f) {
			want[f] = false
		}
	}
	return offload.Change(link, want)
}

// isSegmentation reports whether a feature lets packets larger than the MTU onto a wire.
func isSegmentation(feature string) bool {
	return strings.HasPrefix(feature, "tx-") && (strings.Contains(feature, "segmentation") || strings.Contains(feature, "gso"))
}

package rtnl

import (
	"encoding/binary"
	"net"
	"net/netip"

	"golang.org/x/sys/unix"
)

// OperUp is the operational state of a link that carries packets (RFC 2863).
const OperUp = 6

// Link is what of a link is of interest here.
type Link struct {
	Index     int
	Flags     uint32 // IFF_*
	Name      string
	Kind      string // "veth"
	Alias     string
	Group     uint32
	MTU       int // bytes
	MAC       net.HardwareAddr
	OperState uint8
	Peer      int // the index of a veth's other end, in the namespace that it is in
}

// LinkHead is the fixed part of a message about a link (struct ifinfomsg); mask
// says which flags are meant.
func LinkHead(index int, flags, mask uint32) []byte {
	head := make([]byte, unix.SizeofIfInfomsg)
	binary.NativeEndian.PutUint32(head[4:], uint32(index))
	binary.NativeEndian.PutUint32(head[8:], flags)
	binary.NativeEndian.PutUint32(head[12:], mask)
	return head
}

// skipStats (RTEXT_FILTER_SKIP_STATS) spares the kernel the counters of a link.
const skipStats = 1 << 3

// GetLink asks for one link: by index, or, if that is 0, by name.
func (b *Batch) GetLink(index int, name string) {
	b.Begin(unix.RTM_GETLINK, 0, LinkHead(index, 0, 0))
	b.Uint32(unix.IFLA_EXT_MASK, skipStats)
	if index == 0 {
		b.String(unix.IFLA_IFNAME, name)
	}
}

// Link looks up one link: by index, or, if that is 0, by name. If there is none,
// the error is unix.ENODEV.
func (c *Conn) Link(index int, name string) (Link, error) {
	var b Batch
	b.GetLink(index, name)
	answers, err := c.Do(&b)
	if err != nil {
		return Link{}, err
	}
	return ParseLink(answers[0].Body)
}

// Links lists all links of the namespace.
func (c *Conn) Links() ([]Link, error) {
	var b Batch
	b.Begin(unix.RTM_GETLINK, unix.NLM_F_DUMP, LinkHead(0, 0, 0))
	b.Uint32(unix.IFLA_EXT_MASK, skipStats)
	return listed(c, &b, ParseLink)
}

// listed makes a dump and reads what is listed.
func listed[T any](c *Conn, b *Batch, parse func([]byte) (T, error)) ([]T, error) {
	bodies, err := c.Dump(b)
	if err != nil {
		return nil, err
	}
	out := make([]T, 0, len(bodies))
	for _, body := range bodies {
		v, err := parse(body)
		if err != nil {
			return nil, err
		}
		out = append(out, v)
	}
	return out, nil
}

// ParseLink reads an RTM_NEWLINK.
func ParseLink(body []byte) (Link, error) {
	if len(body) < unix.SizeofIfInfomsg {
		return Link{}, errShort
	}
	l := Link{Index: int(int32(binary.NativeEndian.Uint32(body[4:]))), Flags: binary.NativeEndian.Uint32(body[8:])}
	for kind, value := range Attrs(body[unix.SizeofIfInfomsg:]) {
		switch kind {
		case unix.IFLA_IFNAME:
			l.Name = text(value)
		case unix.IFLA_IFALIAS:
			l.Alias = text(value)
		case unix.IFLA_GROUP:
			l.Group = number(value)
		case unix.IFLA_MTU:
			l.MTU = int(number(value))
		case unix.IFLA_ADDRESS:
			l.MAC = append(net.HardwareAddr(nil), value...)
		case unix.IFLA_OPERSTATE:
			if len(value) > 0 {
				l.OperState = value[0]
			}
		case unix.IFLA_LINK:
			l.Peer = int(number(value))
		case unix.IFLA_LINKINFO:
			l.Kind = kindOf(value)
		}
	}
	return l, nil
}

func kindOf(info []byte) string {
	for kind, value := range Attrs(info) {
		if kind == unix.IFLA_INFO_KIND {
			return text(value)
		}
	}
	return ""
}

// family is a's for the kernel.
func family(a netip.Addr) byte {
	if a.Is4() {
		return unix.AF_INET
	}
	return unix.AF_INET6
}

// AddAddress gives a link an address that is alone in its prefix; usable at
// once: an IPv6 one without duplicate address detection.
func (b *Batch) AddAddress(link int, a netip.Addr) {
	head := make([]byte, unix.SizeofIfAddrmsg)
	head[0], head[1] = family(a), byte(a.BitLen())
	binary.NativeEndian.PutUint32(head[4:], uint32(link))
	b.Begin(unix.RTM_NEWADDR, unix.NLM_F_CREATE|unix.NLM_F_EXCL, head)
	b.Attr(unix.IFA_LOCAL, a.AsSlice())
	b.Attr(unix.IFA_ADDRESS, a.AsSlice())
	if a.Is6() {
		b.Uint32(unix.IFA_FLAGS, unix.IFA_F_NODAD|unix.IFA_F_NOPREFIXROUTE)
	}
}

// Addresses lists the addresses of one link.
func (c *Conn) Addresses(link int) ([]netip.Addr, error) {
	head := make([]byte, unix.SizeofIfAddrmsg)
	var b Batch
	b.Begin(unix.RTM_GETADDR, unix.NLM_F_DUMP, head)
	type addressOn struct {
		link    int
		address netip.Addr
	}
	all, err := listed(c, &b, func(body []byte) (addressOn, error) {
		if len(body) < unix.SizeofIfAddrmsg {
			return addressOn{}, errShort
		}
		on := addressOn{link: int(binary.NativeEndian.Uint32(body[4:]))}
		for kind, value := range Attrs(body[unix.SizeofIfAddrmsg:]) {
			// IFA_ADDRESS is the other end's on a point-to-point link.
			if kind == unix.IFA_LOCAL || kind == unix.IFA_ADDRESS && !on.address.IsValid() {
				on.address, _ = netip.AddrFromSlice(value)
			}
		}
		return on, nil
	})
	var out []netip.Addr
	for _, on := range all {
		if on.link == link && on.address.IsValid() {
			out = append(out, on.address)
		}
	}
	return out, err
}

// Neighbour is who has an address on a link.
type Neighbour struct {
	Link    int
	State   uint16 // NUD_*
	Address netip.Addr
	MAC     net.HardwareAddr
}

func neighbourHead(n Neighbour) []byte {
	head := make([]byte, unix.SizeofNdMsg)
	if n.Address.IsValid() {
		head[0] = family(n.Address)
	}
	binary.NativeEndian.PutUint32(head[4:], uint32(n.Link))
	binary.NativeEndian.PutUint16(head[8:], n.State)
	return head
}

// SetNeighbour writes an entry that never expires, in place of one that may be there.
func (b *Batch) SetNeighbour(link int, a netip.Addr, mac net.HardwareAddr) {
	b.Begin(unix.RTM_NEWNEIGH, unix.NLM_F_CREATE|unix.NLM_F_REPLACE, neighbourHead(Neighbour{Link: link, State: unix.NUD_PERMANENT, Address: a}))
	b.Attr(unix.NDA_DST, a.AsSlice())
	b.Attr(unix.NDA_LLADDR, mac)
}

// Neighbours lists those of one link: address -> neighbour.
func (c *Conn) Neighbours(link int) (map[netip.Addr]Neighbour, error) {
	var b Batch
	b.Begin(unix.RTM_GETNEIGH, unix.NLM_F_DUMP, make([]byte, unix.SizeofNdMsg))
	b.Uint32(unix.NDA_IFINDEX, uint32(link))
	list, err := listed(c, &b, parseNeighbour)
	out := make(map[netip.Addr]Neighbour, len(list))
	for _, n := range list {
		if n.Link == link && n.Address.IsValid() {
			out[n.Address] = n
		}
	}
	return out, err
}

func parseNeighbour(body []byte) (Neighbour, error) {
	if len(body) < unix.SizeofNdMsg {
		return Neighbour{}, errShort
	}
	n := Neighbour{Link: int(binary.NativeEndian.Uint32(body[4:])), State: binary.NativeEndian.Uint16(body[8:])}
	for kind, value := range Attrs(body[unix.SizeofNdMsg:]) {
		switch kind {
		case unix.NDA_DST:
			n.Address, _ = netip.AddrFromSlice(value)
		case unix.NDA_LLADDR:
			n.MAC = append(net.HardwareAddr(nil), value...)
		}
	}
	return n, nil
}

// Route is one of the main table.
type Route struct {
	Dst      netip.Prefix
	Via      netip.Addr // invalid: on the link itself
	Link     int
	Protocol uint8 // RTPROT_*
	Kind     uint8 // RTN_*; 0 for RTN_UNICAST when it is added
}

func routeHead(family byte, r Route) []byte {
	head := make([]byte, unix.SizeofRtMsg)
	head[0], head[1] = family, byte(max(r.Dst.Bits(), 0))
	head[4], head[5] = unix.RT_TABLE_MAIN, r.Protocol
	return head
}

// AddRoute adds a route that is not there yet (unix.EEXIST). One with a gateway
// takes it as on the link, whatever other routes say.
func (b *Batch) AddRoute(r Route) {
	head := routeHead(family(r.Dst.Addr()), r)
	head[6], head[7] = unix.RT_SCOPE_LINK, unix.RTN_UNICAST
	if r.Via.IsValid() {
		head[6] = unix.RT_SCOPE_UNIVERSE
		binary.NativeEndian.PutUint32(head[8:], unix.RTNH_F_ONLINK)
	}
	b.Begin(unix.RTM_NEWROUTE, unix.NLM_F_CREATE|unix.NLM_F_EXCL, head)
	if r.Dst.Bits() > 0 {
		b.Attr(unix.RTA_DST, r.Dst.Addr().AsSlice())
	}
	if r.Via.IsValid() {
		b.Attr(unix.RTA_GATEWAY, r.Via.AsSlice())
	}
	b.Uint32(unix.RTA_OIF, uint32(r.Link))
}

// Routes lists the routes of the main table that keep accepts, of the protocol
// (0: of all).
func (c *Conn) Routes(protocol uint8, keep func(Route) bool) ([]Route, error) {
	var out []Route
	for _, f := range []byte{unix.AF_INET, unix.AF_INET6} {
		var b Batch
		b.Begin(unix.RTM_GETROUTE, unix.NLM_F_DUMP, routeHead(f, Route{Protocol: protocol}))
		list, err := listed(c, &b, parseRoute)
		if err != nil {
			return nil, err
		}
		for _, r := range list {
			// A kernel without IPv6 answers with what it has.
			if r.Dst.IsValid() && family(r.Dst.Addr()) == f && (protocol == 0 || r.Protocol == protocol) && keep(r) {
				out = append(out, r)
			}
		}
	}
	return out, nil
}

// Reach says how the kernel would send to an address: the route that it takes.
func (c *Conn) Reach(a netip.Addr) (Route, error) {
	head := make([]byte, unix.SizeofRtMsg)
	head[0], head[1] = family(a), byte(a.BitLen())
	var b Batch
	b.Begin(unix.RTM_GETROUTE, 0, head)
	b.Attr(unix.RTA_DST, a.AsSlice())
	answers, err := c.Do(&b)
	if err != nil {
		return Route{}, err
	}
	return parseAnyRoute(answers[0].Body)
}

// parseRoute reads an RTM_NEWROUTE; one that is not of the main table has no Dst.
func parseRoute(body []byte) (Route, error) {
	r, err := parseAnyRoute(body)
	if err == nil && body[4] != unix.RT_TABLE_MAIN {
		r.Dst = netip.Prefix{}
	}
	return r, err
}

func parseAnyRoute(body []byte) (Route, error) {
	if len(body) < unix.SizeofRtMsg {
		return Route{}, errShort
	}
	r := Route{Protocol: body[5], Kind: body[7]}
	dst := netip.IPv4Unspecified()
	if body[0] == unix.AF_INET6 {
		dst = netip.IPv6Unspecified()
	}
	for kind, value := range Attrs(body[unix.SizeofRtMsg:]) {
		switch kind {
		case unix.RTA_DST:
			if a, ok := netip.AddrFromSlice(value); ok {
				dst = a
			}
		case unix.RTA_GATEWAY:
			r.Via, _ = netip.AddrFromSlice(value)
		case unix.RTA_OIF:
			r.Link = int(number(value))
		}
	}
	r.Dst = netip.PrefixFrom(dst, int(body[1]))
	return r, nil
}

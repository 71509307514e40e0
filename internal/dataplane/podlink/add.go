package podlink

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"time"

	"github.com/containernetworking/plugins/pkg/netlinksafe"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"ropeway.dev/ropeway/internal/cniwire"
)

// Add wires the pod, all or nothing: after an error, nothing of it is left.
// Errors: ErrExists and ErrInterfaceExists (what was there is untouched),
// ErrNoNetns, ErrHostNetns, ErrInvalid, ErrAliasTooLong, *TakenError.
//
// The host's route comes after all the others, so that the first packet finds a
// finished pod.
func Add(cfg Config) (Result, error) {
	return (&wiring{Config: cfg}).add()
}

// TakenError: the node has a route to one of the addresses already.
type TakenError struct {
	Address netip.Addr
	Link    string // the link that the route leads to, or its number
}

// Error implements error.
func (e *TakenError) Error() string {
	return fmt.Sprintf("the node already routes %s to %s: another pod, or what is left of one, holds the address; see `ip -d link show %s`", e.Address, e.Link, e.Link)
}

// wiring is one Add under way.
type wiring struct {
	Config
	// before, if set, is called before each step; its error is the step's. For
	// tests of what a failure leaves.
	before func(step string) error

	result    Result
	alias     string
	host, pod netlinksafe.Handle
	netns     *os.File
	hostIndex int
	podIndex  int
}

// step is one change of the kernel.
type step struct {
	name string
	do   func() error
}

// steps are in order; the first creates the link that the others hang on.
func (w *wiring) steps() []step {
	return []step{
		{"create the veth", w.create},
		{"mark the host end", w.mark},
		{"prepare the pod's namespace", w.prepare},
		{"assign the pod's addresses", w.assign},
		{"set the pod's interface up", w.up},
		{"write the gateway into the pod", w.gateway},
		{"route the pod's packets", w.podRoutes},
		{"write the pod into the node's neighbours", w.hostNeighbours},
		{"route to the pod", w.hostRoutes},
		{"wait until the pod can be reached", w.settle},
	}
}

func (w *wiring) add() (Result, error) {
	if err := w.validate(); err != nil {
		return Result{}, err
	}
	alias, err := Alias(w.Attachment, w.Pod)
	if err != nil {
		return Result{}, err
	}
	w.alias = alias
	w.result = Result{HostName: hostLinkName(w.Attachment), HostMAC: mac(w.Attachment, "host"), PodMAC: mac(w.Attachment, "pod")}
	if err := w.open(); err != nil {
		return Result{}, err
	}
	defer w.close()
	for i, s := range w.steps() {
		err := w.run(s)
		if err == nil {
			continue
		}
		if i > 0 {
			err = errors.Join(err, w.undo())
		}
		return Result{}, fmt.Errorf("wiring %s of container %s: %s: %w", w.Attachment.IfName, w.Attachment.ContainerID, s.name, err)
	}
	return w.result, nil
}

func (w *wiring) run(s step) error {
	if w.before != nil {
		if err := w.before(s.name); err != nil {
			return err
		}
	}
	return s.do()
}

func (w *wiring) open() error {
	var err error
	if w.netns, err = openNetns(w.Netns); err != nil {
		return err
	}
	if w.host, err = netlinksafe.NewHandle(unix.NETLINK_ROUTE); err != nil {
		w.close()
		return fmt.Errorf("opening netlink on the node: %w", err)
	}
	if w.pod, err = handleIn(w.netns); err != nil {
		w.close()
		return err
	}
	return nil
}

func (w *wiring) close() {
	w.pod.Close()
	w.host.Close()
	w.netns.Close()
}

// undo removes the link, and with it everything that hangs on it.
func (w *wiring) undo() error {
	err := w.host.LinkDel(&netlink.GenericLink{LinkAttrs: netlink.LinkAttrs{Index: w.hostIndex}})
	if err != nil && !errors.Is(err, unix.ENODEV) {
		return fmt.Errorf("and what was made could not be removed: deleting %s: %w", w.result.HostName, err)
	}
	return nil
}

// create makes both ends by one message, the pod's directly in its namespace.
// The host end is up at once; it has no carrier, hence does nothing, until the
// pod's end is up too.
func (w *wiring) create() error {
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MTU, attrs.HardwareAddr, attrs.Flags = w.result.HostName, w.MTU, w.result.HostMAC, net.FlagUp
	attrs.NumTxQueues, attrs.NumRxQueues = w.Queues, w.Queues
	veth := &netlink.Veth{
		LinkAttrs: attrs, PeerName: w.Attachment.IfName, PeerHardwareAddr: w.result.PodMAC,
		PeerNamespace: netlink.NsFd(int(w.netns.Fd())), PeerTxQLen: -1, PeerMTU: uint32(w.MTU),
		PeerNumTxQueues: uint32(w.Queues), PeerNumRxQueues: uint32(w.Queues),
	}
	err := w.host.LinkAdd(veth)
	if errors.Is(err, unix.EEXIST) {
		return w.whichExists()
	}
	if err != nil {
		return err
	}
	w.hostIndex = veth.Index // LinkAdd has looked it up
	if w.hostIndex == 0 {
		return fmt.Errorf("%s is gone again", w.result.HostName)
	}
	return nil
}

func (w *wiring) whichExists() error {
	_, err := w.host.LinkByName(w.result.HostName)
	if err == nil {
		return exists(w.result.HostName)
	}
	return fmt.Errorf("%w: %s", ErrInterfaceExists, w.Attachment.IfName)
}

// addrGenModeNone is IN6_ADDR_GEN_MODE_NONE of linux/if_link.h.
const addrGenModeNone = 1

// mark says on the link whose it is, and keeps the kernel from giving the host
// end an IPv6 address of its own: nobody talks to that end, and its duplicate
// address detection and listener reports would only be noise in every pod.
func (w *wiring) mark() error {
	link := &netlink.GenericLink{LinkAttrs: netlink.LinkAttrs{Index: w.hostIndex}}
	if err := w.host.LinkSetAlias(link, w.alias); err != nil {
		return err
	}
	err := w.host.LinkSetIP6AddrGenMode(link, addrGenModeNone)
	if errors.Is(err, unix.EAFNOSUPPORT) && !w.has(netip.IPv6Unspecified()) {
		return nil // a kernel without IPv6, for a pod without IPv6
	}
	return err
}

// prepare sets what the namespaces need to carry the pod's packets.
func (w *wiring) prepare() error {
	link, err := w.pod.LinkByName(w.Attachment.IfName)
	if err != nil {
		return fmt.Errorf("looking up %s in the pod: %w", w.Attachment.IfName, err)
	}
	w.podIndex = link.Attrs().Index
	v6 := w.has(netip.IPv6Unspecified())
	if v6 {
		if err := enableIPv6(w.result.HostName); err != nil {
			return err
		}
	}
	if !v6 && w.Forwarding == nil {
		return nil
	}
	return inNetns(w.netns, func() error {
		if v6 {
			if err := enableIPv6(w.Attachment.IfName); err != nil {
				return err
			}
		}
		return w.setForwarding()
	})
}

func (w *wiring) setForwarding() error {
	if w.Forwarding == nil {
		return nil
	}
	value := "0"
	if *w.Forwarding {
		value = "1"
	}
	if err := writeSysctl("net/ipv4/ip_forward", value); err != nil {
		return err
	}
	err := writeSysctl("net/ipv6/conf/all/forwarding", value)
	if errors.Is(err, os.ErrNotExist) {
		return nil // a kernel without IPv6 forwards none
	}
	return err
}

// enableIPv6 undoes net.ipv6.conf.default.disable_ipv6=1 for one interface of
// the thread's namespace; the kernel refuses IPv6 addresses otherwise.
func enableIPv6(link string) error {
	key := "net/ipv6/conf/" + link + "/disable_ipv6"
	old, err := os.ReadFile("/proc/sys/" + key)
	if err != nil {
		return fmt.Errorf("the pod has an IPv6 address, and the kernel no IPv6: boot without ipv6.disable=1: %w", err)
	}
	if strings.TrimSpace(string(old)) == "0" {
		return nil
	}
	return writeSysctl(key, "0")
}

func writeSysctl(key, value string) error {
	if err := os.WriteFile("/proc/sys/"+key, []byte(value), 0o644); err != nil {
		return fmt.Errorf("setting %s to %s: %w", key, value, err)
	}
	return nil
}

// assign gives the pod its addresses, usable at once: duplicate address
// detection has nobody to ask on this link, and would delay IPv6 by a second.
func (w *wiring) assign() error {
	for _, a := range w.Addresses {
		addr := &netlink.Addr{LinkIndex: w.podIndex, IPNet: hostPrefix(a)}
		if a.Is6() {
			addr.Flags = unix.IFA_F_NODAD | unix.IFA_F_NOPREFIXROUTE
		}
		if err := w.pod.AddrAdd(&netlink.GenericLink{LinkAttrs: netlink.LinkAttrs{Index: w.podIndex}}, addr); err != nil {
			return fmt.Errorf("%s: %w", a, err)
		}
	}
	return nil
}

func (w *wiring) up() error {
	return w.pod.LinkSetUp(&netlink.GenericLink{LinkAttrs: netlink.LinkAttrs{Index: w.podIndex}})
}

// gateway makes the next hop known, forever, one per family of the addresses.
func (w *wiring) gateway() error {
	for _, gw := range w.gateways() {
		if err := w.pod.NeighSet(permanent(w.podIndex, gw, w.result.HostMAC)); err != nil {
			return fmt.Errorf("%s: %w", gw, err)
		}
	}
	return nil
}

func (c Config) gateways() []netip.Addr {
	var out []netip.Addr
	for _, family := range []netip.Addr{netip.IPv4Unspecified(), netip.IPv6Unspecified()} {
		if c.has(family) {
			out = append(out, Gateway(family))
		}
	}
	return out
}

func permanent(link int, a netip.Addr, mac net.HardwareAddr) *netlink.Neigh {
	family := unix.AF_INET
	if a.Is6() {
		family = unix.AF_INET6
	}
	return &netlink.Neigh{LinkIndex: link, Family: family, State: netlink.NUD_PERMANENT, IP: a.AsSlice(), HardwareAddr: mac}
}

// podRoutes leads out of the pod. Onlink, since no route to the gateway is
// needed where its link-layer address is known.
func (w *wiring) podRoutes() error {
	for _, dst := range w.Destinations() {
		err := w.pod.RouteAdd(&netlink.Route{
			LinkIndex: w.podIndex, Dst: ipNet(dst), Gw: Gateway(dst.Addr()).AsSlice(), Flags: int(netlink.FLAG_ONLINK),
		})
		if errors.Is(err, unix.EEXIST) {
			return fmt.Errorf("the pod already has a route to %s by another interface: say in ipam.routes what this one is for: %w", dst, err)
		}
		if err != nil {
			return fmt.Errorf("%s: %w", dst, err)
		}
	}
	return nil
}

func (w *wiring) hostNeighbours() error {
	for _, a := range w.Addresses {
		if err := w.host.NeighSet(permanent(w.hostIndex, a, w.result.PodMAC)); err != nil {
			return fmt.Errorf("%s: %w", a, err)
		}
	}
	return nil
}

func (w *wiring) hostRoutes() error {
	for _, a := range w.Addresses {
		err := w.host.RouteAdd(&netlink.Route{
			LinkIndex: w.hostIndex, Dst: hostPrefix(a), Scope: netlink.SCOPE_LINK, Protocol: RouteProtocol,
		})
		if errors.Is(err, unix.EEXIST) {
			return &TakenError{Address: a, Link: w.routedTo(a)}
		}
		if err != nil {
			return fmt.Errorf("%s: %w", a, err)
		}
	}
	return nil
}

// settleTimeout bounds settle; the kernel needs the lock that all changes of
// links share, so that a busy node is slower than the usual millisecond.
const settleTimeout = 5 * time.Second

// settle waits until the pod answers: the kernel connects the two ends, and
// makes an IPv6 address local even without duplicate address detection, from
// work queues, and drops packets until then. A pod that was answered ADD must
// be reachable.
func (w *wiring) settle() error {
	if err := waitUp(w.host, w.hostIndex, settleTimeout); err != nil {
		return fmt.Errorf("the host end: %w", err)
	}
	if err := waitUp(w.pod, w.podIndex, settleTimeout); err != nil {
		return fmt.Errorf("the pod's end: %w", err)
	}
	for _, a := range w.Addresses {
		if a.Is6() {
			if err := waitLocal(w.pod, a, settleTimeout); err != nil {
				return err
			}
		}
	}
	return nil
}

// waitUp waits until a link's queues are active, which the kernel does after
// both ends are up.
func waitUp(h netlinksafe.Handle, index int, timeout time.Duration) error {
	const pause = 200 * time.Microsecond
	for deadline := time.Now().Add(timeout); ; time.Sleep(pause) {
		link, err := h.LinkByIndex(index)
		if err != nil {
			return fmt.Errorf("looking whether it is up: %w", err)
		}
		if link.Attrs().OperState == netlink.OperUp {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("the kernel has not activated %s for %s: %w", link.Attrs().Name, timeout, os.ErrDeadlineExceeded)
		}
	}
}

func waitLocal(h netlinksafe.Handle, a netip.Addr, timeout time.Duration) error {
	const pause = 500 * time.Microsecond
	for deadline := time.Now().Add(timeout); ; time.Sleep(pause) {
		routes, err := h.RouteGet(a.AsSlice())
		if err == nil && len(routes) > 0 && routes[0].Type == unix.RTN_LOCAL {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("the kernel has not taken %s into use for %s (%w)", a, timeout, errors.Join(err, os.ErrDeadlineExceeded))
		}
	}
}

// routedTo names the link that a host route to a leads to, for a person.
func (w *wiring) routedTo(a netip.Addr) string {
	routes, err := w.host.RouteListFiltered(familyOf(a), &netlink.Route{Dst: hostPrefix(a)}, netlink.RT_FILTER_DST)
	if err != nil || len(routes) == 0 {
		return "another link"
	}
	link, err := w.host.LinkByIndex(routes[0].LinkIndex)
	if err != nil {
		return fmt.Sprintf("link %d", routes[0].LinkIndex)
	}
	return link.Attrs().Name
}

func familyOf(a netip.Addr) int {
	if a.Is4() {
		return netlink.FAMILY_V4
	}
	return netlink.FAMILY_V6
}

// Precheck finds, without changing anything, what would make Add fail before
// it begins: ErrExists, ErrNoNetns, ErrHostNetns.
func Precheck(a cniwire.Attachment, netns string) error {
	ns, err := openNetns(netns)
	if err != nil {
		return err
	}
	defer ns.Close()
	host, err := netlinksafe.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return fmt.Errorf("opening netlink on the node: %w", err)
	}
	defer host.Close()
	name := hostLinkName(a)
	if _, err := host.LinkByName(name); err == nil {
		return exists(name)
	} else if !notFound(err) {
		return fmt.Errorf("looking up %s: %w", name, err)
	}
	return nil
}

func exists(name string) error {
	return fmt.Errorf("%w (%s): DEL it first (CNI specification 1.1.0, ADD)", ErrExists, name)
}

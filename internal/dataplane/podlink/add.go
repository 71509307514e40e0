package podlink

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"ropeway.dev/ropeway/internal/cniwire"
	"ropeway.dev/ropeway/internal/dataplane/podlink/rtnl"
)

// Add wires the pod, all or nothing: after an error, nothing of it is left.
// Errors: ErrExists and ErrInterfaceExists (what was there is untouched),
// ErrNoNetns, ErrHostNetns, ErrInvalid, ErrAliasTooLong, *TakenError.
//
// The host's route comes after all the others, so that the first packet finds a
// finished pod.
func Add(cfg Config) (Result, error) {
	s, err := Open(cfg.Attachment, cfg.Netns)
	if err != nil {
		return Result{}, err
	}
	defer s.Close()
	return s.Add(cfg)
}

// Sandbox is a pod that is about to be wired.
type Sandbox struct {
	attachment cniwire.Attachment
	netns      *netns
	host       *rtnl.Conn
}

// Open finds, without changing anything, what would make an Add fail before it
// begins: ErrExists, ErrNoNetns, ErrHostNetns. The caller closes the Sandbox.
func Open(a cniwire.Attachment, path string) (*Sandbox, error) {
	ns, err := openNetns(path)
	if err != nil {
		return nil, err
	}
	s := &Sandbox{attachment: a, netns: ns}
	if s.host, err = rtnl.Open(); err == nil {
		err = s.vacant()
	}
	if err != nil {
		s.Close()
		return nil, err
	}
	return s, nil
}

// vacant is ErrExists if the attachment has a link already, other than one that
// waits to be reaped.
func (s *Sandbox) vacant() error {
	name := hostLinkName(s.attachment)
	link, err := s.host.Link(0, name)
	switch {
	case notFound(err):
		return nil
	case err != nil:
		return fmt.Errorf("looking up %s: %w", name, err)
	case retired(link):
		return nil
	}
	return exists(name)
}

func exists(name string) error {
	return fmt.Errorf("%w (%s): DEL it first (CNI specification 1.1.0, ADD)", ErrExists, name)
}

// Close lets go of the namespace and the node; the pod stays as it is.
func (s *Sandbox) Close() {
	s.netns.Close()
	s.host.Close()
}

// Add is the package's Add for the attachment that was opened.
func (s *Sandbox) Add(cfg Config) (Result, error) {
	if cfg.Attachment != s.attachment || cfg.Netns != s.netns.path {
		return Result{}, fmt.Errorf("%w: %+v in %s was opened, not %+v in %s", ErrInvalid, s.attachment, s.netns.path, cfg.Attachment, cfg.Netns)
	}
	return (&wiring{Config: cfg, netns: s.netns, host: s.host}).add()
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
	netns     *netns
	host, pod *rtnl.Conn
	// after, if set, is called after each step; its error is the step's. For
	// tests of what a failure leaves.
	after func(step string) error

	result    Result
	alias     string
	hostIndex int // 0 until there is a link
	podIndex  int
	hostUp    bool // see settle
	podUp     bool
}

// step is one change of the kernel.
type step struct {
	name string
	do   func() error
}

// steps are in order; the first creates the link that the others hang on. Each
// is one exchange with the kernel, whatever number of changes it makes.
func (w *wiring) steps() []step {
	return []step{
		{"create the veth", w.create},
		{"prepare the namespaces", w.prepare},
		{"mark the host end", w.mark},
		{"wire the pod's end", w.podEnd},
		{"wire the host end", w.hostEnd},
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
	if w.pod, err = w.netns.conn(); err != nil {
		return Result{}, err
	}
	defer w.pod.Close()
	for _, s := range w.steps() {
		err := s.do()
		if err == nil && w.after != nil {
			err = w.after(s.name)
		}
		if err != nil {
			return Result{}, fmt.Errorf("wiring %s of container %s: %s: %w", w.Attachment.IfName, w.Attachment.ContainerID, s.name, errors.Join(err, w.undo()))
		}
	}
	return w.result, nil
}

// undo removes the link, and with it everything that hangs on it.
func (w *wiring) undo() error {
	if w.hostIndex == 0 {
		return nil
	}
	if err := delLink(w.host, w.hostIndex); err != nil {
		return fmt.Errorf("and what was made could not be removed: deleting %s: %w", w.result.HostName, err)
	}
	return nil
}

// create makes both ends by one message, the pod's directly in its namespace.
// The host end is up at once; it has no carrier, hence does nothing, until the
// pod's end is up too.
func (w *wiring) create() error {
	err := w.newLink()
	if errors.Is(err, unix.EEXIST) {
		var reaped bool
		if reaped, err = w.reapFormer(); reaped {
			err = w.newLink()
		}
	}
	return err
}

// vethInfoPeer is VETH_INFO_PEER of linux/veth.h.
const vethInfoPeer = 1

func (w *wiring) newLink() error {
	var b rtnl.Batch
	b.Begin(unix.RTM_NEWLINK, unix.NLM_F_CREATE|unix.NLM_F_EXCL, rtnl.LinkHead(0, unix.IFF_UP, unix.IFF_UP))
	w.describe(&b, w.result.HostName, w.result.HostMAC)
	b.Nest(unix.IFLA_LINKINFO, nil, func() {
		b.String(unix.IFLA_INFO_KIND, "veth")
		b.Nest(unix.IFLA_INFO_DATA, nil, func() {
			b.Nest(vethInfoPeer, rtnl.LinkHead(0, 0, 0), func() {
				w.describe(&b, w.Attachment.IfName, w.result.PodMAC)
				b.Uint32(unix.IFLA_NET_NS_FD, uint32(w.netns.fd))
			})
		})
	})
	b.GetLink(0, w.result.HostName)
	answers, err := w.host.Do(&b)
	if answers == nil {
		return err
	}
	if answers[0].Err != nil {
		return answers[0].Err
	}
	if err != nil {
		return fmt.Errorf("%s is gone again: %w", w.result.HostName, err)
	}
	link, err := rtnl.ParseLink(answers[1].Body)
	w.hostIndex, w.podIndex = link.Index, link.Peer
	return err
}

func (w *wiring) describe(b *rtnl.Batch, name string, mac []byte) {
	b.String(unix.IFLA_IFNAME, name)
	b.Uint32(unix.IFLA_MTU, uint32(w.MTU))
	b.Attr(unix.IFLA_ADDRESS, mac)
	if w.Queues > 0 {
		b.Uint32(unix.IFLA_NUM_TX_QUEUES, uint32(w.Queues))
		b.Uint32(unix.IFLA_NUM_RX_QUEUES, uint32(w.Queues))
	}
}

// reapFormer removes what keeps the names taken, if that is a link that waits
// to be reaped: the runtime uses the namespace again, at once. Otherwise the
// error says what is there.
func (w *wiring) reapFormer() (bool, error) {
	if link, err := w.host.Link(0, w.result.HostName); err == nil {
		if !retired(link) {
			return false, exists(w.result.HostName)
		}
		return true, delLink(w.host, link.Index)
	}
	taken := fmt.Errorf("%w: %s", ErrInterfaceExists, w.Attachment.IfName)
	mine, err := w.pod.Link(0, w.Attachment.IfName)
	if err != nil || mine.Kind != "veth" {
		return notFound(err), taken // gone meanwhile: try again
	}
	link, err := w.host.Link(mine.Peer, "")
	if err != nil || !retired(link) || link.Peer != mine.Index {
		return false, taken
	}
	return true, delLink(w.host, link.Index)
}

// prepare sets what the namespaces need to carry the pod's packets.
func (w *wiring) prepare() error {
	v6 := w.has(netip.IPv6Unspecified())
	if v6 {
		if err := enableIPv6(w.result.HostName); err != nil {
			return err
		}
	}
	return w.netns.do(func() error {
		if err := segmentTunnels(w.podIndex); err != nil {
			return err
		}
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

// addrGenModeNone is IN6_ADDR_GEN_MODE_NONE of linux/if_link.h.
const addrGenModeNone = 1

// mark says on the link whose it is, and keeps the kernel from giving the host
// end an IPv6 address of its own: nobody talks to that end, and its duplicate
// address detection and listener reports would only be noise in every pod.
func (w *wiring) mark() error {
	var b errand
	b.Begin(unix.RTM_SETLINK, 0, rtnl.LinkHead(w.hostIndex, 0, 0))
	b.Attr(unix.IFLA_IFALIAS, []byte(w.alias))
	b.is("alias", nil)
	b.Begin(unix.RTM_SETLINK, 0, rtnl.LinkHead(w.hostIndex, 0, 0))
	b.Nest(unix.IFLA_AF_SPEC, nil, func() {
		b.Nest(unix.AF_INET6, nil, func() { b.Attr(unix.IFLA_INET6_ADDR_GEN_MODE, []byte{addrGenModeNone}) })
	})
	b.is("no IPv6 address of its own", func(err error) error {
		if errors.Is(err, unix.EAFNOSUPPORT) && !w.has(netip.IPv6Unspecified()) {
			return nil // a kernel without IPv6, for a pod without IPv6
		}
		return err
	})
	return b.run(w.host)
}

// podEnd gives the pod its addresses, sets its interface up, makes the next
// hop known, forever, and leads out of the pod by it.
func (w *wiring) podEnd() error {
	var b errand
	for _, a := range w.Addresses {
		b.AddAddress(w.podIndex, a)
		b.is("address "+a.String(), nil)
	}
	b.Begin(unix.RTM_SETLINK, 0, rtnl.LinkHead(w.podIndex, unix.IFF_UP, unix.IFF_UP))
	b.is("up", nil)
	for _, gw := range w.gateways() {
		b.SetNeighbour(w.podIndex, gw, w.result.HostMAC)
		b.is("neighbour "+gw.String(), nil)
	}
	for _, dst := range w.Destinations() {
		b.AddRoute(rtnl.Route{Dst: dst, Via: Gateway(dst.Addr()), Link: w.podIndex, Protocol: unix.RTPROT_BOOT})
		b.is("route", func(err error) error {
			if errors.Is(err, unix.EEXIST) {
				return fmt.Errorf("the pod already has a route to %s by another interface: say in ipam.routes what this one is for: %w", dst, err)
			}
			return fmt.Errorf("%s: %w", dst, err)
		})
	}
	var err error
	w.podUp, err = b.runAndLook(w.pod, w.podIndex)
	return err
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

// hostEnd tells the node who has the addresses, and routes to them.
func (w *wiring) hostEnd() error {
	var b errand
	for _, a := range w.Addresses {
		b.SetNeighbour(w.hostIndex, a, w.result.PodMAC)
		b.is("neighbour "+a.String(), nil)
	}
	for _, a := range w.Addresses {
		b.AddRoute(rtnl.Route{Dst: alone(a), Link: w.hostIndex, Protocol: RouteProtocol})
		b.is("route", func(err error) error {
			if errors.Is(err, unix.EEXIST) {
				return &TakenError{Address: a, Link: w.routedTo(a)}
			}
			return fmt.Errorf("%s: %w", a, err)
		})
	}
	var err error
	w.hostUp, err = b.runAndLook(w.host, w.hostIndex)
	return err
}

// routedTo names the link that a host route to a leads to, for a person.
func (w *wiring) routedTo(a netip.Addr) string {
	routes, err := w.host.Routes(0, func(r rtnl.Route) bool { return r.Dst == alone(a) })
	if err != nil || len(routes) == 0 {
		return "another link"
	}
	link, err := w.host.Link(routes[0].Link, "")
	if err != nil {
		return fmt.Sprintf("link %d", routes[0].Link)
	}
	return link.Name
}

// errand is a batch with what each message is for.
type errand struct {
	rtnl.Batch
	what    []string
	explain []func(error) error
}

// is says what the message that was begun last is, for a person, and how to
// read its failure; nil leaves it as it is.
func (e *errand) is(what string, explain func(error) error) {
	e.what, e.explain = append(e.what, what), append(e.explain, explain)
}

// run returns the first failure.
func (e *errand) run(c *rtnl.Conn) error {
	_, err := e.answers(c)
	return err
}

// runAndLook is run, and looks whether the link is up afterwards.
func (e *errand) runAndLook(c *rtnl.Conn, link int) (up bool, err error) {
	e.GetLink(link, "")
	e.is("looking up the link", nil)
	answers, err := e.answers(c)
	if err != nil {
		return false, err
	}
	l, err := rtnl.ParseLink(answers[len(answers)-1].Body)
	return l.OperState == rtnl.OperUp, err
}

func (e *errand) answers(c *rtnl.Conn) ([]rtnl.Answer, error) {
	answers, err := c.Do(&e.Batch)
	if answers == nil {
		return nil, err
	}
	for i, a := range answers {
		if a.Err == nil {
			continue
		}
		err := fmt.Errorf("%s: %w", e.what[i], a.Err)
		if e.explain[i] != nil {
			err = e.explain[i](a.Err)
		}
		if err != nil {
			return answers, err
		}
	}
	return answers, nil
}

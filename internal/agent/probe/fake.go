package probe

import (
	"cmp"
	"net/netip"
	"sync"

	"ropeway.dev/ropeway/internal/plan"
)

// FakeFabric carries probes between its Wires without a kernel, for tests. It
// says for each transport whether it passes.
type FakeFabric struct {
	mu      sync.Mutex
	blocked map[plan.Transport]bool
	oneWay  map[netip.Addr]plan.Transport // pod-network address -> what does not reach it
	losing  map[plan.Transport]int        // how many messages more are lost
	carried map[plan.Transport]int        // how many passed
	failing error                         // of Send
	drop    func(p Path, message []byte) bool
	stray   func(p Path) netip.Addr
	routers byte       // between any two nodes
	detour  netip.Addr // that one router more lies on the way to
	mangle  func(message []byte) []byte
	ports   map[netip.Addr]*fakeWire // pod-network address -> who listens on it
}

// NewFakeFabric returns a fabric that passes everything.
func NewFakeFabric() *FakeFabric {
	return &FakeFabric{blocked: map[plan.Transport]bool{}, oneWay: map[netip.Addr]plan.Transport{}, losing: map[plan.Transport]int{},
		carried: map[plan.Transport]int{}, ports: map[netip.Addr]*fakeWire{}}
}

// Block makes the fabric drop a transport, or pass it again.
func (f *FakeFabric) Block(t plan.Transport, blocked bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.blocked[t] = blocked
}

// BlockTo makes the fabric drop a transport towards one pod-network address; ""
// drops nothing more.
func (f *FakeFabric) BlockTo(a netip.Addr, t plan.Transport) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.oneWay[a] = t
}

// Lose makes the fabric drop the next n messages of a transport.
func (f *FakeFabric) Lose(t plan.Transport, n int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.losing[t] = n
}

// Losing returns how many messages are still to be lost.
func (f *FakeFabric) Losing(t plan.Transport) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.losing[t]
}

// Carried returns how many messages of a transport passed so far.
func (f *FakeFabric) Carried(t plan.Transport) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.carried[t]
}

// Fail makes every Send fail; nil ends that.
func (f *FakeFabric) Fail(err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.failing = err
}

// Drop makes the fabric drop what the function says, beside everything else; nil
// ends that.
func (f *FakeFabric) Drop(drop func(p Path, message []byte) bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.drop = drop
}

// Stray makes the fabric lead packets of a hop limit of 1 to another router than
// the node, which says so; the function returns who that is, or the invalid
// address.
func (f *FakeFabric) Stray(stray func(p Path) netip.Addr) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.stray = stray
}

// Routers says how many routers packets pass.
func (f *FakeFabric) Routers(n byte) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.routers = n
}

// Detour makes packets to one address pass a router more.
func (f *FakeFabric) Detour(a netip.Addr) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.detour = a
}

// Mangle makes the fabric change every message that passes.
func (f *FakeFabric) Mangle(change func(message []byte) []byte) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.mangle = change
}

// Wire returns one node's connection to the fabric.
func (f *FakeFabric) Wire() Wire { return &fakeWire{fabric: f, received: make(chan Datagram, 256)} }

type fakeWire struct {
	fabric   *FakeFabric
	received chan Datagram
}

// Received implements Wire.
func (w *fakeWire) Received() <-chan Datagram { return w.received }

// Listen implements Wire.
func (w *fakeWire) Listen(addresses []netip.Addr) error {
	w.fabric.mu.Lock()
	defer w.fabric.mu.Unlock()
	for a, other := range w.fabric.ports {
		if other == w {
			delete(w.fabric.ports, a)
		}
	}
	for _, a := range addresses {
		w.fabric.ports[a] = w
	}
	return nil
}

// Send implements Wire.
func (w *fakeWire) Send(p Path, message []byte) error {
	f := w.fabric
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.failing != nil {
		return f.failing
	}
	if f.stray != nil && p.Hops == 1 {
		if router := f.stray(p); router.IsValid() {
			deliver(w, Datagram{From: router, Message: message, Stray: true})
			return nil
		}
	}
	kind := p.Transport
	if p.InnerSrc == p.OuterSrc && p.InnerDst == p.OuterDst {
		kind = plain
	}
	to := f.ports[p.InnerDst]
	if to == nil || f.blocked[kind] || f.oneWay[p.InnerDst] == kind || f.drop != nil && f.drop(p, message) {
		return nil
	}
	if f.losing[kind] > 0 {
		f.losing[kind]--
		return nil
	}
	if f.mangle != nil {
		message = f.mangle(message)
	}
	f.carried[kind]++
	deliver(to, Datagram{From: p.InnerSrc, Port: cmp.Or(p.SrcPort, Port), Message: message, Hops: cmp.Or(p.Hops, fullHops) - f.passed(p)})
	return nil
}

// passed counts the routers that see a packet's own header. The caller holds the
// lock.
func (f *FakeFabric) passed(p Path) byte {
	switch {
	case p.Transport != plan.Direct:
		return 0
	case p.InnerDst == f.detour:
		return f.routers + 1
	default:
		return f.routers
	}
}

func deliver(to *fakeWire, d Datagram) {
	select {
	case to.received <- d:
	default: // nobody reads there any more
	}
}

package probe

import (
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

// Mangle makes the fabric change every message that passes.
func (f *FakeFabric) Mangle(change func(message []byte) []byte) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.mangle = change
}

// Wire returns one node's connection to the fabric.
func (f *FakeFabric) Wire() Wire { return &fakeWire{fabric: f, received: make(chan Datagram, 64)} }

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
	to := f.ports[p.InnerDst]
	if to == nil || f.blocked[p.Transport] || f.oneWay[p.InnerDst] == p.Transport {
		return nil
	}
	if f.losing[p.Transport] > 0 {
		f.losing[p.Transport]--
		return nil
	}
	if f.mangle != nil {
		message = f.mangle(message)
	}
	f.carried[p.Transport]++
	select {
	case to.received <- Datagram{From: p.InnerSrc, Message: message}:
	default: // nobody reads there any more
	}
	return nil
}

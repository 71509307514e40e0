package cniwire

import (
	"context"
	"fmt"
	"maps"
	"net/netip"
	"path/filepath"
	"slices"
	"sync"
)

// FakeAgent answers on a real socket as an agent would, from memory, and
// remembers what it was asked. For tests and the lab. It is safe for
// concurrent use.
type FakeAgent struct {
	// Socket is the path that it listens on.
	Socket string

	mu        sync.Mutex
	ranges    []netip.Prefix // at most one per family
	mtu       int
	nodeCIDRs []netip.Prefix
	routes    []Route
	held      map[Attachment][]netip.Addr // attachment -> addresses
	ipam      map[Attachment]string       // attachment -> ipam.type
	requests  []Request
	failures  map[Verb][]*Error // verb -> the next answers
	observe   func(Request)
	reap      func()
	reaping   sync.WaitGroup
	stop      context.CancelFunc
	done      chan struct{}
}

// FakeConfig is what a FakeAgent hands out.
type FakeConfig struct {
	Ranges    []netip.Prefix // at most one per family; its base and the one after it are never handed out
	MTU       int            // bytes; 1500 if zero
	NodeCIDRs []netip.Prefix // the answer to Node
	Routes    []Route        // of what it answers to Add
	// Observe, if set, is called with each request before it is answered, one
	// at a time.
	Observe func(Request)
	// Reap, if set, is called after each Del of a retired link, while others
	// may be answered; if it is not, the plugin removes the link itself.
	Reap func()
}

// NewFakeAgent starts an agent that listens on cni.sock in dir.
func NewFakeAgent(dir string, cfg FakeConfig) (*FakeAgent, error) {
	if cfg.MTU == 0 {
		cfg.MTU = 1500
	}
	f := &FakeAgent{
		Socket: filepath.Join(dir, filepath.Base(SocketPath)),
		ranges: cfg.Ranges, mtu: cfg.MTU, nodeCIDRs: cfg.NodeCIDRs, routes: cfg.Routes,
		held: map[Attachment][]netip.Addr{}, ipam: map[Attachment]string{}, failures: map[Verb][]*Error{},
		observe: cfg.Observe, reap: cfg.Reap,
		done: make(chan struct{}),
	}
	ln, err := Listen(f.Socket)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(context.Background())
	f.stop = cancel
	go func() {
		defer close(f.done)
		_ = Serve(ctx, ln, f.handle)
	}()
	return f, nil
}

// Close stops the agent; its socket stays and refuses, as after a crash.
func (f *FakeAgent) Close() {
	f.stop()
	<-f.done
	f.reaping.Wait()
}

// FailNext makes the next request with that verb fail with e.
func (f *FakeAgent) FailNext(verb Verb, e *Error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.failures[verb] = append(f.failures[verb], e)
}

// Held returns the bindings: attachment -> addresses.
func (f *FakeAgent) Held() map[Attachment][]netip.Addr {
	f.mu.Lock()
	defer f.mu.Unlock()
	return maps.Clone(f.held)
}

// Requests returns what was asked so far, in order.
func (f *FakeAgent) Requests() []Request {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.requests)
}

func (f *FakeAgent) handle(_ context.Context, req Request) Response {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.requests = append(f.requests, req)
	if f.observe != nil {
		f.observe(req)
	}
	if next := f.failures[req.Verb]; len(next) > 0 {
		f.failures[req.Verb] = next[1:]
		return Response{Error: next[0]}
	}
	resp := Response{AgentVersion: "fake"}
	switch req.Verb {
	case Add:
		return f.add(req)
	case Del:
		f.forget(req.Attachment)
		if resp.Reaps = req.Retired && f.reap != nil; resp.Reaps {
			f.reaping.Go(f.reap)
		}
	case Check:
		addrs, ok := f.held[req.Attachment]
		if !ok {
			resp.Error = &Error{Code: CodeMismatch, Msg: "no address is recorded for this attachment"}
		}
		resp.Addresses = addrs
	case GC:
		for a := range f.held {
			if a.Network == req.Attachment.Network && !slices.Contains(req.Valid, a) {
				f.forget(a)
			}
		}
	case Node:
		resp.NodeCIDRs = f.nodeCIDRs
	}
	return resp
}

func (f *FakeAgent) forget(a Attachment) {
	delete(f.held, a)
	delete(f.ipam, a)
}

func (f *FakeAgent) add(req Request) Response {
	resp := Response{AgentVersion: "fake", MTU: f.mtu}
	addrs, ok := f.held[req.Attachment]
	switch {
	case ok:
	case len(req.Addresses) > 0:
		if taken := f.taken(); slices.ContainsFunc(req.Addresses, func(a netip.Addr) bool { return taken[a] }) {
			return Response{Error: &Error{Code: CodeNoAddress, Msg: fmt.Sprintf("one of %v is held by another pod", req.Addresses)}}
		}
		addrs = req.Addresses
	default:
		for _, r := range f.ranges {
			if len(req.Families) > 0 && !slices.Contains(req.Families, familyOf(r.Addr())) {
				continue
			}
			a, err := f.free(r)
			if err != nil {
				return Response{Error: err}
			}
			addrs = append(addrs, a)
		}
	}
	f.held[req.Attachment], f.ipam[req.Attachment] = addrs, req.IPAM
	resp.Addresses, resp.Routes = addrs, f.routes
	for _, a := range addrs {
		for _, r := range f.ranges {
			if r.Contains(a) {
				resp.Subnets = append(resp.Subnets, r.Masked())
				resp.Gateways = append(resp.Gateways, r.Masked().Addr().Next())
			}
		}
	}
	return resp
}

func (f *FakeAgent) taken() map[netip.Addr]bool {
	taken := map[netip.Addr]bool{}
	for _, addrs := range f.held {
		for _, a := range addrs {
			taken[a] = true
		}
	}
	return taken
}

func (f *FakeAgent) free(r netip.Prefix) (netip.Addr, *Error) {
	taken := f.taken()
	for a := r.Masked().Addr().Next().Next(); r.Contains(a); a = a.Next() {
		if !taken[a] {
			return a, nil
		}
	}
	return netip.Addr{}, &Error{Code: CodeNoAddress, Msg: fmt.Sprintf("no free address in %s", r)}
}

func familyOf(a netip.Addr) string {
	if a.Is4() {
		return FamilyIPv4
	}
	return FamilyIPv6
}

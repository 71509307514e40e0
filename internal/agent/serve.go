package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"syscall"
	"time"

	"ropeway.dev/ropeway/internal/agent/addresses"
	"ropeway.dev/ropeway/internal/agent/lease"
	"ropeway.dev/ropeway/internal/cniwire"
	"ropeway.dev/ropeway/internal/dataplane/podlink"
	"ropeway.dev/ropeway/internal/ipam"
	"ropeway.dev/ropeway/internal/ipam/pool"
	"ropeway.dev/ropeway/internal/kube"
	"ropeway.dev/ropeway/internal/plan"
)

// server answers the CNI plugin. While the node has free addresses, nothing in
// it waits for the API server.
type server struct {
	book    *addresses.Book
	pods    podAPI
	board   *board
	wait    time.Duration // how long an ADD waits for what it needs
	more    func()        // asks for another block, without waiting
	sharer  *sharer
	lacking lacking
	version string
	metrics *metrics
	log     *slog.Logger
}

// tryEvery is how often a waiting request looks again though nothing happened.
const tryEvery = 500 * time.Millisecond

// trySoon is how often for what comes any moment, and wakes nobody.
const trySoon = 10 * time.Millisecond

// later is an error that time may mend: a lease is on its way, or the API server
// has not answered yet.
type later struct {
	why string
	// soon asks for another look within milliseconds.
	soon bool
	// lacks names what all lack that fail with it, until something changes; empty for
	// what is the request's own affair.
	lacks string
}

func (e *later) Error() string { return e.why }

// handle answers one request.
func (s *server) handle(ctx context.Context, req cniwire.Request) cniwire.Response {
	start := time.Now()
	resp, err := s.answer(ctx, req)
	if err != nil {
		resp = cniwire.Response{Error: wireError(err)}
		s.tell(req, resp.Error)
		s.log.Warn("cannot serve the CNI plugin", "verb", req.Verb, "network", req.Attachment.Network, "container", req.Attachment.ContainerID,
			"pod", req.Pod.Namespace+"/"+req.Pod.Name, "code", resp.Error.Code, "err", err)
	}
	resp.AgentVersion = s.version
	s.metrics.request(req.Verb, resp.Error, time.Since(start))
	return resp
}

// tell records on the pod why it gets no address.
func (s *server) tell(req cniwire.Request, e *cniwire.Error) {
	if req.Verb != cniwire.Add || req.Pod.Name == "" {
		return
	}
	if words, known := s.pods.PodWords(req.Pod.Namespace, req.Pod.Name, req.Pod.UID); known {
		s.pods.PodEvent(kube.Pod{Namespace: req.Pod.Namespace, Name: req.Pod.Name, UID: words.UID}, true, "NoAddress", e.Error())
	}
}

func (s *server) answer(ctx context.Context, req cniwire.Request) (cniwire.Response, error) {
	switch req.Verb {
	case cniwire.Add:
		defer s.sharer.forget(keyOf(req.Attachment))
		return s.waiting(ctx, req, s.add)
	case cniwire.Node:
		return s.waiting(ctx, req, s.node)
	case cniwire.Del:
		if req.Retired {
			return cniwire.Response{Reaps: true}, s.book.Retire(keyOf(req.Attachment))
		}
		return cniwire.Response{}, s.book.Release(keyOf(req.Attachment))
	case cniwire.Check:
		return s.check(req)
	case cniwire.Status:
		return cniwire.Response{}, s.status()
	case cniwire.GC:
		return cniwire.Response{}, s.gc(req)
	default:
		return cniwire.Response{}, &cniwire.Error{Code: cniwire.CodeDecode, Msg: fmt.Sprintf("the agent does not know the verb %q", req.Verb)}
	}
}

// waiting tries until it does not fail with a *later, for a bounded time: the
// runtime tries again after an error, but much later than is needed.
func (s *server) waiting(ctx context.Context, req cniwire.Request, try func(service, cniwire.Request) (cniwire.Response, error)) (cniwire.Response, error) {
	ctx, cancel := context.WithTimeout(ctx, s.wait)
	defer cancel()
	for {
		current, changed, turn := s.board.look()
		resp, err := try(current, req)
		wait, ok := errors.AsType[*later](err)
		if !ok {
			return resp, err
		}
		if wait.lacks != "" {
			s.lacking.note(wait.lacks, turn)
		}
		if !s.worthATry(ctx, wait, changed) {
			return cniwire.Response{}, err
		}
	}
}

// worthATry waits until what a request waits for may be there; false if ctx ends
// before.
func (s *server) worthATry(ctx context.Context, wait *later, changed <-chan struct{}) bool {
	again := tryEvery
	if wait.soon {
		again = trySoon
	}
	timer := time.NewTimer(again)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return false
		case <-timer.C: // an address has rested for long enough
			return true
		case <-changed:
		}
		var turn uint64
		if _, changed, turn = s.board.look(); wait.lacks == "" || !s.lacking.knows(wait.lacks, turn) {
			return true
		}
	}
}

// add gives a pod its addresses (CNI specification 1.1.0, section 3, ADD). The
// same attachment gets the same addresses again.
func (s *server) add(now service, req cniwire.Request) (cniwire.Response, error) {
	if now.notReady != "" {
		return cniwire.Response{}, &later{why: now.notReady}
	}
	addrs, from, err := s.addressesFor(now, req)
	if err != nil {
		return cniwire.Response{}, err
	}
	a := req.Attachment
	resp := cniwire.Response{Addresses: addrs, MTU: now.podMTU, HostInterface: podlink.HostLinkName(a.Network, a.ContainerID, a.IfName)}
	for _, addr := range addrs {
		subnet, gateway := from.answerFor(now, addr)
		resp.Subnets, resp.Gateways = append(resp.Subnets, subnet), append(resp.Gateways, gateway)
		if p := from.pool(addr); p != nil {
			for _, r := range p.Routes {
				if r.Dst.Addr().Is4() != addr.Is4() {
					continue
				}
				resp.Routes = append(resp.Routes, cniwire.Route{Dst: r.Dst, Via: r.Via})
			}
		}
	}
	return resp, nil
}

// addressesFor records what another IPAM plugin gave, or gives addresses itself.
func (s *server) addressesFor(now service, req cniwire.Request) ([]netip.Addr, wanted, error) {
	owner := ipam.Owner{Namespace: req.Pod.Namespace, Name: req.Pod.Name, UID: req.Pod.UID}
	if len(req.Addresses) > 0 {
		if err := receivable(now, req); err != nil {
			return nil, wanted{}, err
		}
		return req.Addresses, wanted{}, s.book.Record(keyOf(req.Attachment), owner, req.Addresses, req.Netns)
	}
	// What is held is answered again without asking what it is held for: neither
	// pools nor the pod's words take an address back.
	if held, ok := s.book.AddressesOf(keyOf(req.Attachment)); ok && len(held) > 0 {
		w, err := givenFrom(now, held)
		return held, w, err
	}
	w, err := s.wantsOf(now, req)
	if err != nil {
		return nil, w, err
	}
	addrs, err := s.book.Allocate(keyOf(req.Attachment), owner, w.wants, req.Netns)
	if ipam.IsExhausted(err) {
		err = s.exhausted(now, req, w, s.explain(now, w, err))
	}
	return addrs, w, err
}

// receivable refuses an address that another IPAM plugin gave and that no other
// node would send to this one: such a pod would be up and unreachable.
func receivable(now service, req cniwire.Request) error {
	for _, a := range req.Addresses {
		if slices.Contains(now.sources, a) {
			return &cniwire.Error{Code: cniwire.CodeNoAddress,
				Msg: fmt.Sprintf("ipam.type %s gave the address %s, which is the node's own in the pod network: exclude it in the plugin's range (rangeStart)", req.IPAM, a)}
		}
		if _, ok := now.owns(a); ok {
			continue
		}
		hint := "make its range one of them"
		if !now.nodeCIDRMode && slices.ContainsFunc(now.nodeCIDRs, func(p netip.Prefix) bool { return p.Contains(a) }) {
			hint = "it is of the node's podCIDR: set the ClusterNetwork's addressSource to NodeCIDR, or ipam.type to ropeway-ipam"
		}
		return &cniwire.Error{Code: cniwire.CodeInvalidConfig,
			Msg: fmt.Sprintf("ipam.type %s gave the address %s, which is in none of this node's CIDRs %v, so no other node could reach the pod: %s", req.IPAM, a, now.cidrs, hint)}
	}
	return nil
}

// familiesOf returns the families that a pod gets.
func familiesOf(now service, req cniwire.Request) ([]plan.Family, error) {
	if len(req.Families) == 0 {
		return now.families, nil
	}
	has := lease.Families(now.podCIDRs)
	var families []plan.Family
	for _, f := range req.Families {
		if !slices.Contains(has, plan.Family(f)) {
			return nil, &cniwire.Error{Code: cniwire.CodeInvalidConfig,
				Msg: fmt.Sprintf("the plugin's configuration asks for %s, and the ClusterNetwork has no such podCIDR: add one, or take it out of the conflist (assign_ipv4, assign_ipv6)", f)}
		}
		families = append(families, plan.Family(f))
	}
	return families, nil
}

// lease has single addresses leased for what is wanted, if any will do.
func (s *server) lease(key ipam.Key, w wanted) bool {
	any := false
	for _, n := range w.needs {
		if len(n.Pools) > 0 || n.Exact.IsValid() {
			s.sharer.need(key, n)
			any = true
		}
	}
	return any
}

// exhausted turns the allocator's error into one that time mends, if a block is
// on its way.
func (s *server) exhausted(now service, req cniwire.Request, w wanted, err error) error {
	if _, spoken := errors.AsType[*cniwire.Error](err); spoken {
		return err
	}
	if s.lease(keyOf(req.Attachment), w) {
		if len(w.pools) > 0 {
			err = fmt.Errorf("%w: delete pods, enlarge the pool, or name another beside it", err)
		}
		return &later{why: err.Error(), lacks: w.common()}
	}
	if now.nodeCIDRMode {
		return &cniwire.Error{Code: cniwire.CodeNoAddress,
			Msg: fmt.Sprintf("the node's podCIDR has no free address: %v; give nodes larger podCIDRs (kube-controller-manager's --node-cidr-mask-size), or set the ClusterNetwork's addressSource to Blocks", err)}
	}
	if now.leaseProblem != "" {
		return &cniwire.Error{Code: cniwire.CodeNoAddress, Msg: fmt.Sprintf("%v, and %s", err, now.leaseProblem)}
	}
	s.more()
	return &later{why: fmt.Sprintf("%v; another block is being leased", err), lacks: w.common()}
}

// node answers what usePodCidr and usePodCidrIPv6 stand for.
func (s *server) node(now service, _ cniwire.Request) (cniwire.Response, error) {
	switch {
	case now.notReady != "":
		return cniwire.Response{}, &later{why: now.notReady}
	case now.nodeCIDRProblem != "":
		return cniwire.Response{}, &cniwire.Error{Code: cniwire.CodeInvalidConfig, Msg: now.nodeCIDRProblem}
	case len(now.nodeCIDRs) == 0:
		return cniwire.Response{}, &later{why: "the node has no podCIDR, which usePodCidr stands for: start kube-controller-manager with --allocate-node-cidrs=true, or set ipam.type to ropeway-ipam"}
	}
	return cniwire.Response{NodeCIDRs: now.nodeCIDRs}, nil
}

// check says what addresses an attachment has (CNI specification, CHECK).
func (s *server) check(req cniwire.Request) (cniwire.Response, error) {
	addrs, held := s.book.AddressesOf(keyOf(req.Attachment))
	if !held {
		return cniwire.Response{}, &cniwire.Error{Code: cniwire.CodeMismatch,
			Msg: fmt.Sprintf("no address is recorded for interface %s of container %s in network %s: delete the pod so that it is made anew", req.Attachment.IfName, req.Attachment.ContainerID, req.Attachment.Network)}
	}
	now, _ := s.board.get()
	a := req.Attachment
	return cniwire.Response{Addresses: addrs, MTU: now.podMTU, HostInterface: podlink.HostLinkName(a.Network, a.ContainerID, a.IfName)}, nil
}

// status is nil if an ADD would be served (CNI specification 1.1.0, STATUS).
// A node whose addresses are all in use is not unavailable: a runtime that
// heard so would mark the node NotReady, and its pods would be evicted.
func (s *server) status() error {
	now, _ := s.board.get()
	if now.notReady == "" {
		return nil
	}
	return &cniwire.Error{Code: cniwire.CodeNotAvailable, Msg: now.notReady}
}

// gc frees what the runtime no longer knows (CNI specification 1.1.0, GC).
func (s *server) gc(req cniwire.Request) error {
	valid := make([]ipam.Key, 0, len(req.Valid))
	for _, a := range req.Valid {
		a.Network = req.Attachment.Network
		valid = append(valid, keyOf(a))
	}
	freed, err := s.book.Retain(req.Attachment.Network, valid)
	for _, key := range freed {
		s.log.Info("freed the addresses of a container that the runtime no longer knows", "network", key.Network, "container", key.ContainerID, "interface", key.IfName)
	}
	return err
}

// wireError turns an error into one of the specification's.
func wireError(err error) *cniwire.Error {
	if spoken, ok := errors.AsType[*cniwire.Error](err); ok {
		return spoken
	}
	if wait, ok := errors.AsType[*later](err); ok {
		return &cniwire.Error{Code: cniwire.CodeTryAgainLater, Msg: wait.why}
	}
	switch {
	case addresses.IsConflict(err), pool.IsRefused(err):
		return &cniwire.Error{Code: cniwire.CodeNoAddress, Msg: err.Error()}
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EROFS), errors.Is(err, syscall.EIO):
		return &cniwire.Error{Code: cniwire.CodeIO,
			Msg: err.Error() + ": the node must be able to write down who holds an address; make room on, or make writable, the file system of " + cniwire.RunDir}
	}
	return &cniwire.Error{Code: cniwire.CodeInternal, Msg: err.Error()}
}

func keyOf(a cniwire.Attachment) ipam.Key {
	return ipam.Key{Network: a.Network, ContainerID: a.ContainerID, IfName: a.IfName}
}

package dataplane

import (
	"context"
	"encoding/binary"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// firewalls is what is known of those who write to nftables beside Set. A firewall
// that is reloaded may take our table with it, and drop what is forwarded: its
// transactions are watched, and Set is asked for when one of them touched our table
// or a chain that forwarded packets pass. kube-proxy's many ones touch neither.
type firewalls struct {
	pause time.Duration // between two times that Set is asked for

	writing sync.Mutex
	made    []uint32 // the generations that our own latest transactions made

	mu      sync.Mutex
	forward map[forwardID]bool // other programs' chains, as of the last look
	watched bool               // what changes in them is told
	changed bool               // one of them was changed after the last look
	at      uint32             // the generation of the last look
	looked  time.Time          // when that was; zero if it failed
}

// forwardID names another program's base chain at the forward hook.
type forwardID struct {
	family      byte // unix.NFPROTO_*
	table, name string
}

// transact runs one transaction of ours, and remembers that it is.
func (f *firewalls) transact(run func() error) error {
	f.writing.Lock()
	defer f.writing.Unlock()
	before, _ := tableGeneration()
	err := run()
	// If somebody else's came between, none of both is taken for ours: that costs
	// a look.
	if after, told := tableGeneration(); told && after == before+1 {
		const remembered = 32
		f.made = append(f.made, after)
		f.made = f.made[max(0, len(f.made)-remembered):]
	}
	return err
}

// own reports whether a transaction was ours. It waits for one that is under way.
func (f *firewalls) own(generation uint32) bool {
	f.writing.Lock()
	defer f.writing.Unlock()
	return slices.Contains(f.made, generation)
}

// forwardEvery is how often other programs' chains are looked at in any case: they
// are many where kube-proxy uses nftables, and iptables-legacy tells nothing.
const forwardEvery = time.Minute

// due reports whether other programs' forward chains are to be looked at.
func (f *firewalls) due() bool {
	generation, told := tableGeneration()
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.changed || time.Since(f.looked) >= forwardEvery || !f.watched && told && generation != f.at
}

// look begins a look: what changes from now on is for the next one.
func (f *firewalls) look() {
	generation, _ := tableGeneration()
	f.mu.Lock()
	defer f.mu.Unlock()
	f.changed, f.at, f.looked = false, generation, time.Time{}
}

// found says which chains there are, before their rules are read.
func (f *firewalls) found(chains []forwardChain) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.forward = map[forwardID]bool{}
	for _, c := range chains {
		f.forward[c.id()] = true
	}
}

// seen ends a look that succeeded.
func (f *firewalls) seen() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.looked = time.Now()
}

func (f *firewalls) forget() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.looked = time.Time{}
}

func (f *firewalls) change() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.changed = true
}

func (f *firewalls) watch(now bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.watched = now
}

func (f *firewalls) knows(c forwardID) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.forward[c]
}

// transaction is what somebody's transaction, whose messages are still coming in,
// has touched.
type transaction struct{ ours, forward bool }

// Attributes of linux/netfilter/nf_tables.h: the first one of every message that
// matters here is the name of the table.
const (
	nftaTable = 1
	// What a device's or a chain's hook is: NF_INET_FORWARD.
	hookForward = 2
)

// nftablesMessage splits a message. ok is false if it is none of nftables.
func nftablesMessage(m syscall.NetlinkMessage) (kind, family byte, attrs map[uint16][]byte, ok bool) {
	if m.Header.Type>>8 != unix.NFNL_SUBSYS_NFTABLES || len(m.Data) < nl.SizeofNfgenmsg {
		return 0, 0, nil, false
	}
	list, err := nl.ParseRouteAttr(m.Data[nl.SizeofNfgenmsg:])
	if err != nil {
		return 0, 0, nil, false
	}
	attrs = make(map[uint16][]byte, len(list))
	for _, a := range list {
		attrs[a.Attr.Type&nl.NLA_TYPE_MASK] = a.Value
	}
	return byte(m.Header.Type), m.Data[0], attrs, true
}

// note takes in one message of a transaction.
func (t *transaction) note(f *firewalls, kind, family byte, attrs map[uint16][]byte) {
	id := forwardID{family: family, table: text(attrs[nftaTable])}
	switch {
	case family == unix.NFPROTO_INET && id.table == tableName:
		t.ours = true
	case family != unix.NFPROTO_IPV4 && family != unix.NFPROTO_IPV6 && family != unix.NFPROTO_INET:
	case kind == unix.NFT_MSG_NEWCHAIN: // or another policy for it
		t.forward = t.forward || isForwardHook(attrs[unix.NFTA_CHAIN_HOOK])
	case kind == unix.NFT_MSG_NEWRULE, kind == unix.NFT_MSG_DELRULE:
		id.name = text(attrs[unix.NFTA_RULE_CHAIN])
		t.forward = t.forward || f.knows(id)
	}
}

func isForwardHook(hook []byte) bool {
	attrs, err := nl.ParseRouteAttr(hook)
	if err != nil {
		return false
	}
	for _, a := range attrs {
		if a.Attr.Type&nl.NLA_TYPE_MASK == unix.NFTA_HOOK_HOOKNUM && len(a.Value) == 4 {
			return binary.BigEndian.Uint32(a.Value) == hookForward
		}
	}
	return false
}

func text(b []byte) string { return strings.TrimRight(string(b), "\x00") }

// firewallBuffer has room for what kube-proxy writes at its start, in bytes.
const firewallBuffer = 4 << 20

// watchFirewalls tells of other programs' transactions.
func (l *Linux) watchFirewalls(ctx context.Context, tell func()) {
	soon := &paced{pause: l.firewalls.pause, do: tell}
	var t transaction
	s := l.listener("firewalls", unix.NETLINK_NETFILTER, unix.NFNLGRP_NFTABLES)
	open := s.open
	s.open = func() (receiver, error) {
		socket, err := open()
		if sized, ok := socket.(*nl.NetlinkSocket); ok && err == nil {
			if err := sized.SetReceiveBufferSize(firewallBuffer, true); err != nil {
				l.log.Debug("a small buffer for changes of firewalls", "err", err)
			}
		}
		return socket, err
	}
	s.deaf = func(now bool) { l.firewalls.watch(!now) }
	s.lost = func() {
		l.firewalls.change()
		soon.call()
	}
	s.heard = func(messages []syscall.NetlinkMessage) {
		for _, m := range messages {
			kind, family, attrs, ok := nftablesMessage(m)
			if ok && kind != unix.NFT_MSG_NEWGEN {
				t.note(l.firewalls, kind, family, attrs)
			} else if ok { // it ends the transaction
				l.firewallWrote(t, attrs[unix.NFTA_GEN_ID], soon)
				t = transaction{}
			}
		}
	}
	s.start(ctx, func() {})
}

// firewallWrote asks for a Set after a transaction that Set has to answer.
func (l *Linux) firewallWrote(t transaction, generation []byte, soon *paced) {
	if !t.ours && !t.forward || len(generation) == 4 && l.firewalls.own(binary.BigEndian.Uint32(generation)) {
		return
	}
	if t.forward {
		l.firewalls.change()
	}
	soon.call()
}

// firewallPause is how often at most a Set is asked for because of firewalls: one
// that undoes what Set does again and again must not keep the node busy.
const firewallPause = time.Second

// paced does something when it is called: at once, but not again before a pause.
// Calls in between are one.
type paced struct {
	pause time.Duration
	do    func()

	mu    sync.Mutex
	last  time.Time
	armed bool
}

func (p *paced) call() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.armed {
		return
	}
	p.armed = true
	time.AfterFunc(max(0, p.pause-time.Since(p.last)), func() {
		p.mu.Lock()
		p.armed, p.last = false, time.Now()
		p.mu.Unlock()
		p.do()
	})
}

package scale

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/containernetworking/plugins/pkg/ns"
)

// echoPort is an UDP port of the bench's own.
const echoPort = 7001

// Pings sends small UDP packets from one node's pod-network address to
// another's, where this process sends them back, at a fixed rate, and knows of
// each whether it came back.
type Pings struct {
	every time.Duration
	out   *net.UDPConn
	back  *net.UDPConn
	stop  context.CancelFunc
	done  sync.WaitGroup

	mu      sync.Mutex
	sent    []time.Time
	answers []bool // by number
	last    time.Time
	changed chan struct{} // closed with each answer
}

// StartPings begins at once, also while the other node has no such address
// yet. The caller calls Stop.
func (h *Hosts) StartPings(ctx context.Context, from, to int, every time.Duration) (*Pings, error) {
	p := &Pings{every: every, changed: make(chan struct{})}
	var err error
	// The answering side listens on every address: the one that is meant comes
	// with the agent.
	if p.back, err = h.listen(to, netip.AddrPortFrom(netip.IPv4Unspecified(), echoPort)); err != nil {
		return nil, err
	}
	if p.out, err = h.listen(from, netip.AddrPortFrom(Source(from), 0)); err != nil {
		return nil, errors.Join(err, p.back.Close())
	}
	ctx, p.stop = context.WithCancel(ctx)
	for _, work := range []func(){p.echo, p.receive, func() { p.send(ctx, netip.AddrPortFrom(Source(to), echoPort)) }} {
		p.done.Go(work)
	}
	return p, nil
}

func (h *Hosts) listen(i int, at netip.AddrPort) (conn *net.UDPConn, err error) {
	err = ns.WithNetNSPath(h.Netns(i), func(ns.NetNS) (err error) {
		conn, err = net.ListenUDP("udp4", net.UDPAddrFromAddrPort(at))
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("open a socket on node %d: %w", i, err)
	}
	return conn, nil
}

func (p *Pings) echo() {
	buf := make([]byte, 16)
	for {
		n, from, err := p.back.ReadFromUDPAddrPort(buf)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err == nil {
			p.back.WriteToUDPAddrPort(buf[:n], from)
		}
	}
}

func (p *Pings) send(ctx context.Context, to netip.AddrPort) {
	tick := time.NewTicker(p.every)
	defer tick.Stop()
	for {
		p.mu.Lock()
		number := len(p.sent)
		p.sent, p.answers = append(p.sent, time.Now()), append(p.answers, false)
		p.mu.Unlock()
		// An error is a ping that is not answered.
		p.out.WriteToUDPAddrPort([]byte{byte(number >> 24), byte(number >> 16), byte(number >> 8), byte(number)}, to)
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

func (p *Pings) receive() {
	buf := make([]byte, 16)
	for {
		n, _, err := p.out.ReadFromUDPAddrPort(buf)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil || n != 4 {
			continue
		}
		number := int(buf[0])<<24 | int(buf[1])<<16 | int(buf[2])<<8 | int(buf[3])
		p.mu.Lock()
		if number < len(p.answers) {
			p.answers[number], p.last = true, time.Now()
		}
		close(p.changed)
		p.changed = make(chan struct{})
		p.mu.Unlock()
	}
}

// AwaitAnswer waits for an answer to a ping that was sent after a time, and
// returns when it came.
func (p *Pings) AwaitAnswer(ctx context.Context, after time.Time, most time.Duration) (time.Time, error) {
	ctx, cancel := context.WithTimeout(ctx, most)
	defer cancel()
	for {
		p.mu.Lock()
		changed, last, answered := p.changed, p.last, p.answeredAfter(after)
		p.mu.Unlock()
		if answered {
			return last, nil
		}
		select {
		case <-ctx.Done():
			return time.Time{}, fmt.Errorf("no answer within %s: %w", most, ctx.Err())
		case <-changed:
		}
	}
}

func (p *Pings) answeredAfter(t time.Time) bool {
	for i := len(p.sent) - 1; i >= 0 && p.sent[i].After(t); i-- {
		if p.answers[i] {
			return true
		}
	}
	return false
}

// Gap is the longest time, among pings sent after a moment, from one that was
// not answered to the next one that was.
func (p *Pings) Gap(after time.Time) time.Duration {
	p.mu.Lock()
	defer p.mu.Unlock()
	var longest time.Duration
	begun := time.Time{}
	for i, sent := range p.sent {
		switch {
		case sent.Before(after):
		case !p.answers[i] && begun.IsZero():
			begun = sent
		case p.answers[i] && !begun.IsZero():
			longest = max(longest, sent.Sub(begun))
			begun = time.Time{}
		}
	}
	return longest
}

// grace is how long the last pings may take.
const grace = 500 * time.Millisecond

// Stop ends sending, waits for the last answers, and returns how many pings were
// sent and lost.
func (p *Pings) Stop() (sent, lost int) {
	p.stop()
	time.Sleep(grace)
	p.out.Close()
	p.back.Close()
	p.done.Wait()
	for _, ok := range p.answers {
		if !ok {
			lost++
		}
	}
	return len(p.sent), lost
}

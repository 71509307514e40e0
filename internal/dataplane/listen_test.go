package dataplane

import (
	"context"
	"errors"
	"log/slog"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// brokenSocket is told one message, and then fails.
type brokenSocket struct{ told, closed atomic.Bool }

func (s *brokenSocket) Receive() ([]syscall.NetlinkMessage, *unix.SockaddrNetlink, error) {
	if !s.told.Swap(true) {
		return []syscall.NetlinkMessage{{}}, nil, nil
	}
	return nil, nil, errors.New("the socket is broken")
}

func (s *brokenSocket) Close() { s.closed.Store(true) }

// TestListenerGoesOn: a socket that fails, or cannot be opened, is followed by
// another one; that something may have been missed is said each time.
func TestListenerGoesOn(t *testing.T) {
	var opened, heard, lost atomic.Int32
	var hears atomic.Bool
	done := make(chan struct{})
	first := &brokenSocket{}
	s := &listener{
		what: "tests", log: slog.New(slog.DiscardHandler), pause: time.Millisecond,
		open: func() (receiver, error) {
			switch opened.Add(1) {
			case 1:
				return first, nil
			case 2:
				return nil, errors.New("no more sockets")
			}
			return &brokenSocket{}, nil
		},
		heard: func([]syscall.NetlinkMessage) { heard.Add(1) },
		lost:  func() { lost.Add(1) },
		deaf:  func(now bool) { hears.Store(!now) },
		done:  func() { close(done) },
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	prepared := false
	s.start(ctx, func() { prepared = hears.Load() })
	if !prepared {
		t.Error("the first socket was not open when the caller prepared")
	}
	eventually(t, "later sockets are opened, and told", func() bool { return heard.Load() >= 3 })
	if !first.closed.Load() {
		t.Error("the broken socket was not closed")
	}
	cancel()
	<-done
	if o, h, l := opened.Load(), heard.Load(), lost.Load(); h != o-1 || l != o-2 {
		t.Errorf("%d sockets were opened, %d told something, and %d losses were said", o, h, l)
	}
}

// TestListenerEndsWithItsContext: also where its socket is never told anything.
func TestListenerEndsWithItsContext(t *testing.T) {
	f := newFabric(t, 1)
	n := f.nodes[0]
	done := make(chan struct{})
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	err := n.ns.Do(func() error {
		s := n.dataplane.listener("links", unix.NETLINK_ROUTE, unix.RTNLGRP_LINK)
		release := s.done
		s.done = func() { release(); close(done) }
		s.heard, s.lost = func([]syscall.NetlinkMessage) {}, func() {}
		s.start(ctx, func() {})
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	cancel()
	select {
	case <-done:
	case <-time.After(5 * time.Second):
		t.Error("it goes on")
	}
}

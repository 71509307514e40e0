package dataplane

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"syscall"
	"time"

	"github.com/vishvananda/netlink/nl"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// receiver is a netlink socket that is told of changes.
type receiver interface {
	Receive() ([]syscall.NetlinkMessage, *unix.SockaddrNetlink, error)
	Close()
}

// listener is told by the kernel of one kind of changes. When its socket fails it
// opens another, for as long as it takes.
type listener struct {
	what  string // the kind, for the log
	log   *slog.Logger
	pause time.Duration // before another socket is opened
	open  func() (receiver, error)
	heard func([]syscall.NetlinkMessage)
	lost  func()     // anything may have changed: something was told that nobody heard
	deaf  func(bool) // whether nothing is told from now on; may be nil
	done  func()     // it has ended; may be nil
}

// reopenAfter is how long nothing is told after a socket failed. The caller of
// Changes calls Set now and then in any case.
const reopenAfter = 5 * time.Second

// listener returns one whose sockets are in the network namespace of the calling
// thread, whichever thread opens them.
func (l *Linux) listener(what string, protocol int, groups ...uint) *listener {
	here, err := netns.Get()
	if err != nil { // a process of one namespace is in it anyway
		l.log.Warn("cannot keep hold of the network namespace", "err", err)
		here = netns.None()
	}
	return &listener{
		what: what, log: l.log, pause: reopenAfter,
		open: func() (receiver, error) {
			socket, err := nl.SubscribeAt(here, netns.None(), protocol, groups...)
			if err != nil {
				return nil, fmt.Errorf("subscribe to changes of %s: %w", what, err)
			}
			return socket, nil
		},
		done: func() {
			if here.IsOpen() {
				here.Close()
			}
		},
	}
}

// start listens until ctx ends. What happens after it returns is told. Between the
// opening of the first socket and what that is told, prepare runs on the caller's
// thread.
func (s *listener) start(ctx context.Context, prepare func()) {
	socket, err := s.open()
	s.hears(err == nil)
	prepare()
	go func() {
		if s.done != nil {
			defer s.done()
		}
		for {
			if err == nil {
				err = s.hear(ctx, socket)
			}
			if ctx.Err() != nil {
				return
			}
			s.hears(false)
			s.log.Warn("changes are not told for a while", "of", s.what, "err", err, "trying again in", s.pause)
			select {
			case <-ctx.Done():
				return
			case <-time.After(s.pause):
			}
			if socket, err = s.open(); err == nil {
				s.hears(true)
				s.lost()
			}
		}
	}()
}

func (s *listener) hears(now bool) {
	if s.deaf != nil {
		s.deaf(!now)
	}
}

// hear passes on what the socket is told until that fails or ctx ends.
func (s *listener) hear(ctx context.Context, socket receiver) error {
	stop := context.AfterFunc(ctx, socket.Close)
	defer func() {
		if stop() {
			socket.Close()
		}
	}()
	for {
		messages, _, err := socket.Receive()
		switch {
		case err == nil:
			s.heard(messages)
		case lostMessages(err):
			s.lost()
		default:
			return err
		}
	}
}

// lostMessages reports whether the socket's buffer was too small for what
// happened: anything may have changed.
func lostMessages(err error) bool {
	return errors.Is(err, unix.ENOBUFS) || errors.Is(err, unix.EINTR) || errors.Is(err, unix.EAGAIN)
}

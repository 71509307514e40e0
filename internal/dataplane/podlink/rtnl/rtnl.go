// Package rtnl speaks rtnetlink (linux/netlink.h, linux/rtnetlink.h)
// synchronously, on a blocking socket of one network namespace: several
// messages by one system call, answers without a poller. The CNI plugin starts
// once for every pod, and spends its time in system calls and in switches
// between threads; this package needs the fewest of both, and little code to be
// loaded. Generic netlink (linux/genetlink.h), which offload features need, goes
// the same way. Everything else uses the netlink library.
package rtnl

import (
	"encoding/binary"
	"errors"
	"fmt"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// answerTimeout bounds the wait for an answer that does not come: the kernel
// answers before the system call that asked returns, so it is never reached.
const answerTimeout = 30 * time.Second

// Conn is a socket in the network namespace of the thread that opened it,
// wherever it is used from. It is not safe for concurrent use.
type Conn struct {
	fd  int
	seq uint32
	buf []byte
}

// Error is the kernel's refusal of one message.
type Error struct {
	Errno syscall.Errno
	Text  string // the kernel's own explanation, often empty
}

// Error implements error.
func (e *Error) Error() string {
	if e.Text == "" {
		return e.Errno.Error()
	}
	return e.Errno.Error() + " (" + e.Text + ")"
}

// Unwrap gives the number, for errors.Is.
func (e *Error) Unwrap() error { return e.Errno }

// errShort is a message of the kernel's that is not as long as it says.
var errShort = errors.New("the kernel's answer is cut short")

// Open opens a socket in the calling thread's network namespace.
func Open() (*Conn, error) { return dial(unix.NETLINK_ROUTE) }

func dial(protocol int) (*Conn, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, protocol)
	if err != nil {
		return nil, fmt.Errorf("opening a netlink socket: %w", err)
	}
	timeout := unix.NsecToTimeval(int64(answerTimeout))
	err = errors.Join(
		unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &timeout),
		unix.SetsockoptInt(fd, unix.SOL_NETLINK, unix.NETLINK_EXT_ACK, 1), // the kernel explains its errors
	)
	if err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("setting up a netlink socket: %w", err)
	}
	// Dumps are filtered by the kernel where it can (since 4.20).
	_ = unix.SetsockoptInt(fd, unix.SOL_NETLINK, unix.NETLINK_GET_STRICT_CHK, 1)
	return &Conn{fd: fd, buf: make([]byte, 32<<10)}, nil
}

// Close closes the socket. It may be called on nil, and twice.
func (c *Conn) Close() {
	if c != nil && c.fd >= 0 {
		unix.Close(c.fd)
		c.fd = -1
	}
}

// Answer is what came of one message of a batch.
type Answer struct {
	Err  error // *Error if the kernel refused it
	Body []byte
}

// Do sends all messages of the batch at once and returns an answer for each,
// in order. The kernel works through a batch one by one, and goes on after a
// message that it refuses. The error is the first answer's that has one; a
// failure of the socket gives no answers.
func (c *Conn) Do(b *Batch) ([]Answer, error) {
	if len(b.heads) == 0 {
		return nil, nil
	}
	first := c.seq + 1
	c.seq += uint32(len(b.heads))
	b.seal(first)
	if err := c.send(b.bytes); err != nil {
		return nil, err
	}
	answers := make([]Answer, len(b.heads))
	for done := false; !done; {
		data, err := c.receive()
		if err != nil {
			return nil, err
		}
		if done, err = collect(data, first, answers); err != nil {
			return nil, err
		}
	}
	for _, a := range answers {
		if a.Err != nil {
			return answers, a.Err
		}
	}
	return answers, nil
}

// collect puts messages of the kernel's where they belong, and reports whether
// the last answer, which alone comes in any case, was among them.
func collect(data []byte, first uint32, answers []Answer) (done bool, err error) {
	for len(data) > 0 {
		var m message
		if m, data, err = next(data); err != nil {
			return false, err
		}
		i := int(m.seq - first)
		if m.seq < first || i >= len(answers) {
			continue
		}
		if m.kind != unix.NLMSG_ERROR {
			answers[i].Body = append([]byte(nil), m.body...)
			continue
		}
		refused, err := parseError(m)
		if err != nil {
			return false, err
		}
		if refused != nil {
			answers[i].Err = refused
		}
		done = done || i == len(answers)-1
	}
	return done, nil
}

// interrupted is how often a dump is tried again that the kernel interrupted
// since what it lists changed meanwhile: such a dump may lack entries.
const interrupted = 20

// ErrInterrupted: the list changed under each attempt to read it.
var ErrInterrupted = errors.New("the kernel's list changes too fast to be read")

// Dump sends a batch of one message, which asks for a list, and returns the
// bodies of what is listed; all, or an error.
func (c *Conn) Dump(b *Batch) ([][]byte, error) {
	for range interrupted {
		c.seq++
		b.seal(c.seq)
		if err := c.send(b.bytes); err != nil {
			return nil, err
		}
		list, err := c.list()
		if !errors.Is(err, ErrInterrupted) {
			return list, err
		}
	}
	return nil, ErrInterrupted
}

func (c *Conn) list() ([][]byte, error) {
	var out [][]byte
	changed := false
	for {
		data, err := c.receive()
		if err != nil {
			return nil, err
		}
		for len(data) > 0 {
			var m message
			if m, data, err = next(data); err != nil {
				return nil, err
			}
			if m.seq != c.seq {
				continue
			}
			changed = changed || m.flags&unix.NLM_F_DUMP_INTR != 0
			switch m.kind {
			case unix.NLMSG_DONE:
				return out, ended(m, changed)
			case unix.NLMSG_ERROR:
				refused, err := parseError(m)
				if refused != nil {
					err = refused
				}
				return out, err
			default:
				out = append(out, append([]byte(nil), m.body...))
			}
		}
	}
}

// ended is how a dump ended: its last message carries an error number.
func ended(m message, changed bool) error {
	if len(m.body) >= 4 {
		if number := int32(binary.NativeEndian.Uint32(m.body)); number < 0 {
			return &Error{Errno: syscall.Errno(-number)}
		}
	}
	if changed {
		return ErrInterrupted
	}
	return nil
}

func (c *Conn) send(data []byte) error {
	for {
		err := unix.Sendto(c.fd, data, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK})
		if !errors.Is(err, unix.EINTR) {
			return wrapped("asking the kernel by netlink", err)
		}
	}
}

func (c *Conn) receive() ([]byte, error) {
	for {
		n, _, err := unix.Recvfrom(c.fd, c.buf, unix.MSG_TRUNC)
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil:
			return nil, wrapped("reading the kernel's answer", err)
		case n > len(c.buf):
			return nil, fmt.Errorf("reading the kernel's answer: it has %d bytes, and only %d were expected", n, len(c.buf))
		default:
			return c.buf[:n], nil
		}
	}
}

func wrapped(what string, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%s: %w", what, err)
}

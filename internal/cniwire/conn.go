package cniwire

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"syscall"
	"time"
)

// conn is the client's end of a connection: a blocking socket. The plugin has
// one exchange to make and nothing else to do meanwhile; package net would
// start a poller and threads for it, which take longer than the agent does.
type conn struct {
	fd    int
	ctx   context.Context
	until time.Time
}

// slice is how long one wait in the kernel lasts; ctx is looked at in between.
const slice = 50 * time.Millisecond

// dial connects, at once or not at all. The connection ends with ctx, and after
// AnswerTimeout.
func dial(ctx context.Context, socket string) (*conn, error) {
	fd, err := syscall.Socket(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC|syscall.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, os.NewSyscallError("socket", err)
	}
	timeout := syscall.NsecToTimeval(int64(slice))
	for _, step := range []func() error{
		// Not blocking, since a full backlog would make it wait without end.
		func() error {
			return os.NewSyscallError("connect", syscall.Connect(fd, &syscall.SockaddrUnix{Name: socket}))
		},
		func() error { return syscall.SetNonblock(fd, false) },
		func() error { return syscall.SetsockoptTimeval(fd, syscall.SOL_SOCKET, syscall.SO_RCVTIMEO, &timeout) },
		func() error { return syscall.SetsockoptTimeval(fd, syscall.SOL_SOCKET, syscall.SO_SNDTIMEO, &timeout) },
	} {
		if err := step(); err != nil {
			syscall.Close(fd)
			return nil, err
		}
	}
	if err := trusted(fd, socket); err != nil {
		syscall.Close(fd)
		return nil, err
	}
	return &conn{fd: fd, ctx: ctx, until: earlier(time.Now().Add(AnswerTimeout), ctx)}, nil
}

// ErrNotRoot: somebody else listens where the agent should.
var ErrNotRoot = errors.New("the socket is not the agent's")

// trusted refuses what a process without the plugin's own rights answers: what
// it says would be done to the node's network as root.
func trusted(fd int, socket string) error {
	peer, err := syscall.GetsockoptUcred(fd, syscall.SOL_SOCKET, syscall.SO_PEERCRED)
	if err != nil {
		return os.NewSyscallError("getsockopt", err)
	}
	if peer.Uid != 0 && int(peer.Uid) != os.Geteuid() {
		return fmt.Errorf("%w: process %d of user %d listens at %s; stop it, and restart the ropeway agent of this node", ErrNotRoot, peer.Pid, peer.Uid, socket)
	}
	return nil
}

func (c *conn) close() { syscall.Close(c.fd) }

// Read implements io.Reader.
func (c *conn) Read(p []byte) (int, error) {
	n, err := c.patiently("read", func() (int, error) { return syscall.Read(c.fd, p) })
	if n == 0 && err == nil && len(p) > 0 {
		return 0, io.EOF
	}
	return n, err
}

// Write implements io.Writer.
func (c *conn) Write(p []byte) (int, error) {
	done := 0
	for done < len(p) {
		n, err := c.patiently("write", func() (int, error) {
			// Not write(2): the agent's end may be gone, and the signal for that
			// would end the process.
			return syscall.SendmsgN(c.fd, p[done:], nil, nil, syscall.MSG_NOSIGNAL)
		})
		if err != nil {
			return done, err
		}
		done += n
	}
	return done, nil
}

// patiently tries until the kernel has something to say, or the time is over.
func (c *conn) patiently(what string, try func() (int, error)) (int, error) {
	for {
		n, err := try()
		switch {
		case errors.Is(err, syscall.EINTR):
		case errors.Is(err, syscall.EAGAIN):
			if ended := c.ctx.Err(); ended != nil {
				return 0, ended
			}
			if !time.Now().Before(c.until) {
				return 0, fmt.Errorf("the agent took the request and gave no answer: %w", context.DeadlineExceeded)
			}
		case err != nil:
			return 0, os.NewSyscallError(what, err)
		default:
			return n, nil
		}
	}
}

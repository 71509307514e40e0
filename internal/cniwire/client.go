package cniwire

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"syscall"
	"time"
)

// AnswerTimeout is how long the plugin waits for the answer of an agent that
// has taken its request. It is longer than the agent itself ever waits.
const AnswerTimeout = 30 * time.Second

const (
	firstPause = 10 * time.Millisecond
	lastPause  = 250 * time.Millisecond
)

// UnavailableError says that no agent answered.
type UnavailableError struct {
	Socket string
	Waited time.Duration
	Err    error // what was seen last
}

// Error implements error.
func (e *UnavailableError) Error() string {
	return fmt.Sprintf("the ropeway agent on this node has not answered at %s for %s (%v); see what it does: "+
		"kubectl -n kube-system get pods -o wide -l app.kubernetes.io/name=ropeway,app.kubernetes.io/component=agent",
		e.Socket, e.Waited.Round(100*time.Millisecond), e.Err)
}

// Unwrap gives what was seen last.
func (e *UnavailableError) Unwrap() error { return e.Err }

// Call sends one request to the agent that listens on socket and returns its
// answer. It sets the request's version.
//
// While the socket is missing or refuses, or the agent goes away before it
// answered (a restart), Call tries again until DialTimeout has passed or ctx
// ends, whichever is first: every verb may be repeated. The error is then an
// *UnavailableError. An answer that is an error is returned as *Error,
// together with the response.
func Call(ctx context.Context, socket string, req Request) (Response, error) {
	start := time.Now()
	req.Version = Version
	dialing, cancel := context.WithTimeout(ctx, DialTimeout)
	defer cancel()
	for pause := firstPause; ; pause = min(2*pause, lastPause) {
		resp, err := exchange(ctx, dialing, socket, req)
		if err == nil {
			return resp, resp.failure()
		}
		if !transient(err) {
			return Response{}, unanswered(err, socket, start)
		}
		select {
		case <-dialing.Done():
			return Response{}, &UnavailableError{Socket: socket, Waited: time.Since(start), Err: err}
		case <-time.After(pause):
		}
	}
}

// failure is what the response says went wrong, or nil.
func (r Response) failure() error {
	if !Compatible(r.Version) {
		return &Error{
			Code: CodeIncompatibleVersion,
			Msg:  fmt.Sprintf("the agent speaks version %d of the node's protocol and this plugin version %d: restart the ropeway agent of this node, it installs the plugin that fits", r.Version, Version),
		}
	}
	if r.Error != nil {
		return r.Error
	}
	return nil
}

// exchange dials (bounded by dialing), and speaks once (bounded by ctx and
// AnswerTimeout).
func exchange(ctx, dialing context.Context, socket string, req Request) (Response, error) {
	conn, err := new(net.Dialer).DialContext(dialing, "unix", socket)
	if err != nil {
		return Response{}, err
	}
	defer conn.Close()
	deadline := time.Now().Add(AnswerTimeout)
	if d, ok := ctx.Deadline(); ok && d.Before(deadline) {
		deadline = d
	}
	if err := conn.SetDeadline(deadline); err != nil {
		return Response{}, fmt.Errorf("setting a deadline on the agent's socket: %w", err)
	}
	stop := context.AfterFunc(ctx, func() { conn.SetDeadline(time.Unix(1, 0)) }) // ends a read that waits
	defer stop()
	if err := writeMessage(conn, req); err != nil {
		return Response{}, err
	}
	var resp Response
	if err := readMessage(conn, &resp); err != nil {
		return Response{}, err
	}
	return resp, nil
}

// transient reports whether err is what a missing or restarting agent looks
// like. EAGAIN is a full backlog of a unix socket.
func transient(err error) bool {
	for _, is := range []error{
		syscall.ENOENT, syscall.ECONNREFUSED, syscall.EAGAIN, syscall.ECONNRESET, syscall.EPIPE,
		io.EOF, io.ErrUnexpectedEOF,
	} {
		if errors.Is(err, is) {
			return true
		}
	}
	return false
}

func unanswered(err error, socket string, start time.Time) error {
	var timeout net.Error
	if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) || errors.As(err, &timeout) && timeout.Timeout() {
		return &UnavailableError{Socket: socket, Waited: time.Since(start), Err: err}
	}
	var spoken *Error
	if errors.As(err, &spoken) {
		return spoken
	}
	return fmt.Errorf("asking the ropeway agent at %s: %w", socket, err)
}

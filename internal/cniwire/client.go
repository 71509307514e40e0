package cniwire

import (
	"context"
	"errors"
	"fmt"
	"io"
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

// UnsureError is an error of Call's that leaves open whether an agent has served the
// request: one took it and went away before it answered. Whoever asked for something
// has to give it back.
type UnsureError struct{ Err error }

// Error implements error.
func (e *UnsureError) Error() string { return e.Err.Error() }

// Unwrap gives what Call ended with.
func (e *UnsureError) Unwrap() error { return e.Err }

// Call sends one request to the agent that listens on socket and returns its
// answer. It sets the request's version.
//
// While the socket is missing or refuses, or the agent goes away before it
// answered (a restart), Call tries again until DialTimeout has passed or ctx
// ends, whichever is first: every verb may be repeated. The error is then an
// *UnavailableError. An answer that is an error is returned as *Error,
// together with the response. Either is wrapped into an *UnsureError where an
// earlier try, or the last, was taken and not answered.
//
// Of ctx, only the deadline is looked at as long as nobody has to wait: what
// ctx stands for need not begin to watch before.
func Call(ctx context.Context, socket string, req Request) (Response, error) {
	start := time.Now()
	req.Version = Version
	until := earlier(start.Add(DialTimeout), ctx)
	taken := false // by an agent that has not answered
	sure := func(err error) error {
		if err == nil || !taken {
			return err
		}
		return &UnsureError{err}
	}
	for pause := firstPause; ; pause = min(2*pause, lastPause) {
		resp, sent, err := exchange(ctx, socket, req)
		if err == nil {
			return resp, sure(resp.failure())
		}
		taken = taken || sent
		if !transient(err) {
			return Response{}, sure(unanswered(err, socket, start))
		}
		select {
		case <-ctx.Done():
			return Response{}, sure(&UnavailableError{Socket: socket, Waited: time.Since(start), Err: err})
		case <-time.After(min(pause, time.Until(until))):
		}
		if !time.Now().Before(until) {
			return Response{}, sure(&UnavailableError{Socket: socket, Waited: time.Since(start), Err: err})
		}
	}
}

func earlier(t time.Time, ctx context.Context) time.Time {
	if d, ok := ctx.Deadline(); ok && d.Before(t) {
		return d
	}
	return t
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

// exchange speaks once, bounded by ctx and AnswerTimeout. sent says that the agent
// may have the whole request.
func exchange(ctx context.Context, socket string, req Request) (resp Response, sent bool, err error) {
	c, err := dial(ctx, socket)
	if err != nil {
		return Response{}, false, err
	}
	defer c.close()
	if err := writeMessage(c, req); err != nil {
		return Response{}, false, err
	}
	if err := readMessage(c, &resp); err != nil {
		return Response{}, true, err
	}
	return resp, true, nil
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
	if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return &UnavailableError{Socket: socket, Waited: time.Since(start), Err: err}
	}
	var spoken *Error
	if errors.As(err, &spoken) {
		return spoken
	}
	return fmt.Errorf("asking the ropeway agent at %s: %w", socket, err)
}

package cniwire

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"sync"
	"time"
)

// requestTimeout is how long a client may take to say what it wants.
const requestTimeout = 10 * time.Second

// Handler answers one request. Its ctx ends when the server stops or the
// client goes away. Handlers run at the same time as one another.
type Handler func(ctx context.Context, req Request) Response

// Listen makes the agent's socket at path, which only root may use. The socket
// appears complete, by a rename, and takes the place of one that a former
// agent left, so that a plugin never finds a half-made one.
func Listen(path string) (net.Listener, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return nil, fmt.Errorf("making the directory of the plugin's socket: %w", err)
	}
	temp := fmt.Sprintf("%s.%d", path, os.Getpid())
	if err := os.Remove(temp); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("removing a former socket: %w", err)
	}
	ln, err := net.ListenUnix("unix", &net.UnixAddr{Name: temp, Net: "unix"})
	if err != nil {
		return nil, fmt.Errorf("listening for the CNI plugin: %w", err)
	}
	// The name changes below; closing must not remove the one of a successor.
	ln.SetUnlinkOnClose(false)
	if err := os.Chmod(temp, 0o600); err != nil {
		ln.Close()
		return nil, fmt.Errorf("closing the plugin's socket to others than root: %w", err)
	}
	if err := os.Rename(temp, path); err != nil {
		ln.Close()
		return nil, fmt.Errorf("putting the plugin's socket in its place: %w", err)
	}
	return ln, nil
}

// Serve answers the requests that arrive on ln until ctx ends, and returns nil
// once the last handler has answered. It closes ln. Requests that are
// malformed, too long or of an incompatible version are answered with an error
// without asking handle.
func Serve(ctx context.Context, ln net.Listener, handle Handler) error {
	var running sync.WaitGroup
	defer running.Wait()
	stop := context.AfterFunc(ctx, func() { ln.Close() })
	defer stop()
	defer ln.Close()
	for {
		conn, err := ln.Accept()
		switch {
		case ctx.Err() != nil:
			if conn != nil {
				conn.Close()
			}
			return nil
		case errors.Is(err, net.ErrClosed):
			return fmt.Errorf("serving the CNI plugin: %w", err)
		case err != nil: // out of file descriptors, for instance: wait, do not die
			select {
			case <-ctx.Done():
			case <-time.After(lastPause):
			}
			continue
		}
		running.Go(func() { serveOne(ctx, conn, handle) })
	}
}

func serveOne(ctx context.Context, conn net.Conn, handle Handler) {
	defer conn.Close()
	if err := conn.SetReadDeadline(time.Now().Add(requestTimeout)); err != nil {
		return
	}
	resp := answer(ctx, conn, handle)
	resp.Version = Version
	if err := conn.SetWriteDeadline(time.Now().Add(requestTimeout)); err != nil {
		return
	}
	if err := writeMessage(conn, resp); errors.Is(err, ErrTooLong) {
		_ = writeMessage(conn, Response{Version: Version, Error: &Error{Code: CodeInternal, Msg: err.Error()}})
	}
}

func answer(ctx context.Context, conn net.Conn, handle Handler) Response {
	var req Request
	stop := context.AfterFunc(ctx, func() { conn.SetReadDeadline(time.Unix(1, 0)) }) // a server that stops waits for nobody
	err := readMessage(conn, &req)
	stop()
	if err != nil {
		var spoken *Error
		if !errors.As(err, &spoken) {
			spoken = &Error{Code: CodeIO, Msg: "the agent could not read the request", Details: err.Error()}
		}
		return Response{Error: spoken}
	}
	if bad := req.Validate(); bad != nil {
		return Response{Error: bad}
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	go untilGone(conn, cancel)
	return handle(ctx, req)
}

// untilGone ends a request whose client has gone away: the client says nothing
// more after its request, so that a read returns only then.
func untilGone(conn net.Conn, cancel context.CancelFunc) {
	defer cancel()
	if err := conn.SetReadDeadline(time.Time{}); err != nil {
		return
	}
	_, _ = conn.Read(make([]byte, 1))
}

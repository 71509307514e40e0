package scale

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/containernetworking/plugins/pkg/ns"
	"golang.org/x/sys/unix"
)

// relay makes a port of this machine's loopback one of a namespace's, and counts
// what comes back through it.
type relay struct {
	port     net.Listener
	to       string
	received atomic.Int64 // bytes, encrypted
	mu       sync.Mutex
	open     map[net.Conn]bool // nil once closed
	off      bool              // nothing is carried
}

// newRelay listens in a namespace on the address that it connects to here.
func newRelay(netns, address string) (*relay, error) {
	r := &relay{to: address, open: map[net.Conn]bool{}}
	_, port, err := net.SplitHostPort(address)
	if err != nil {
		return nil, err
	}
	err = ns.WithNetNSPath(netns, func(ns.NetNS) error {
		// No connection from here may have it for its own port meanwhile.
		err := os.WriteFile("/proc/sys/net/ipv4/ip_local_reserved_ports", []byte(port), 0o644)
		// A program that is just being started has what is open here, a listener
		// that was closed too, until it runs.
		for end := time.Now().Add(10 * time.Second); err == nil; <-time.After(20 * time.Millisecond) {
			r.port, err = net.Listen("tcp4", address)
			if err == nil || !errors.Is(err, unix.EADDRINUSE) || time.Now().After(end) {
				break
			}
			err = nil
		}
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("listen on %s in %s: %w", address, netns, err)
	}
	go r.accept()
	return r, nil
}

func (r *relay) accept() {
	for {
		conn, err := r.port.Accept()
		if err != nil {
			return
		}
		go r.carry(conn)
	}
}

// carry carries one connection, both ways.
func (r *relay) carry(inside net.Conn) {
	defer inside.Close()
	outside, err := net.Dial("tcp4", r.to)
	if err != nil {
		return
	}
	defer outside.Close()
	if !r.keep(inside, outside) {
		return
	}
	go func() {
		io.Copy(outside, inside)
		outside.Close()
	}()
	io.Copy(inside, io.TeeReader(outside, counter{&r.received}))
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.open, inside)
	delete(r.open, outside)
}

// keep remembers connections, so that close and cut end them.
func (r *relay) keep(conns ...net.Conn) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.open == nil || r.off {
		return false
	}
	for _, c := range conns {
		r.open[c] = true
	}
	return true
}

// cut ends what is carried and carries nothing more, until it is called with
// false.
func (r *relay) cut(off bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.off = off; off {
		r.end()
	}
}

// end ends the connections. The caller holds mu.
func (r *relay) end() {
	for c := range r.open {
		c.Close() // some have ended by themselves
	}
}

func (r *relay) close() error {
	errs := []error{r.port.Close()}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.end()
	r.open = nil
	return errors.Join(errs...)
}

// counter counts what is written to it.
type counter struct{ n *atomic.Int64 }

func (c counter) Write(p []byte) (int, error) {
	c.n.Add(int64(len(p)))
	return len(p), nil
}

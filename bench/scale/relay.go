package scale

import (
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"sync/atomic"

	"github.com/containernetworking/plugins/pkg/ns"
)

// relay makes a port of this machine's loopback one of a namespace's, and counts
// what comes back through it.
type relay struct {
	port     net.Listener
	to       string
	received atomic.Int64 // bytes, encrypted
	mu       sync.Mutex
	open     map[net.Conn]bool // nil once closed
}

// newRelay listens in a namespace on the address that it connects to here.
func newRelay(netns, address string) (*relay, error) {
	r := &relay{to: address, open: map[net.Conn]bool{}}
	err := ns.WithNetNSPath(netns, func(ns.NetNS) (err error) {
		r.port, err = net.Listen("tcp4", address)
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

// keep remembers connections, so that close ends them.
func (r *relay) keep(conns ...net.Conn) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, c := range conns {
		if r.open != nil {
			r.open[c] = true
		}
	}
	return r.open != nil
}

func (r *relay) close() error {
	errs := []error{r.port.Close()}
	r.mu.Lock()
	defer r.mu.Unlock()
	for c := range r.open {
		c.Close() // some have ended by themselves
	}
	r.open = nil
	return errors.Join(errs...)
}

// counter counts what is written to it.
type counter struct{ n *atomic.Int64 }

func (c counter) Write(p []byte) (int, error) {
	c.n.Add(int64(len(p)))
	return len(p), nil
}

package podlink

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"ropeway.dev/ropeway/internal/dataplane/podlink/rtnl"
)

// settleTimeout bounds settle; the kernel needs the lock that all changes of
// links share, so that a busy node is slower than the usual millisecond.
const settleTimeout = 5 * time.Second

// settle waits until the pod answers: the kernel connects the two ends, and
// makes an IPv6 address local even without duplicate address detection, from
// work queues, and drops packets until then. A pod that was answered ADD must
// be reachable. Since 6.9 the kernel does the first at once when it is asked
// for the link, so that there is nothing left to wait for.
func (w *wiring) settle() error {
	if !w.hostUp {
		if err := waitUp(w.host, w.hostIndex, settleTimeout); err != nil {
			return fmt.Errorf("the host end: %w", err)
		}
	}
	if !w.podUp {
		if err := waitUp(w.pod, w.podIndex, settleTimeout); err != nil {
			return fmt.Errorf("the pod's end: %w", err)
		}
	}
	for _, a := range w.Addresses {
		if a.Is6() {
			if err := waitLocal(w.pod, a, settleTimeout); err != nil {
				return err
			}
		}
	}
	return nil
}

// waitUp waits until a link's queues are active, which the kernel does after
// both ends are up.
func waitUp(c *rtnl.Conn, index int, timeout time.Duration) error {
	const pause = 200 * time.Microsecond
	for deadline := time.Now().Add(timeout); ; time.Sleep(pause) {
		link, err := c.Link(index, "")
		if err != nil {
			return fmt.Errorf("looking whether it is up: %w", err)
		}
		if link.OperState == rtnl.OperUp {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("the kernel has not activated %s for %s: %w", link.Name, timeout, os.ErrDeadlineExceeded)
		}
	}
}

func waitLocal(c *rtnl.Conn, a netip.Addr, timeout time.Duration) error {
	const pause = 200 * time.Microsecond
	for deadline := time.Now().Add(timeout); ; time.Sleep(pause) {
		route, err := c.Reach(a)
		if err == nil && route.Kind == unix.RTN_LOCAL {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("the kernel has not taken %s into use for %s (%w)", a, timeout, errors.Join(err, os.ErrDeadlineExceeded))
		}
	}
}

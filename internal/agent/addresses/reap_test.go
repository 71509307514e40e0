package addresses

import (
	"errors"
	"net/netip"
	"strings"
	"testing"
	"time"

	"ropeway.dev/ropeway/internal/ipam"
)

// scarce is a range of one address.
func scarce() ipam.Range { return ipam.Range{Prefix: netip.MustParsePrefix("10.244.9.9/32")} }

// The address of a retired link is nobody's until the link is gone, however
// scarce addresses are (invariant 1).
func TestRetiredAddressWaitsForItsLink(t *testing.T) {
	b := newBench(t, t.TempDir())
	book := b.open()
	defer book.Close()
	book.SetRanges([]ipam.Range{scarce()})
	now := time.Now()
	book.now = func() time.Time { return now }
	allocate := func(pod string) error {
		_, err := book.Allocate(key(pod), ipam.Owner{}, []ipam.Want{{Family: ipam.IPv4}}, "")
		return err
	}
	if err := errors.Join(allocate("p1"), book.Retire(key("p1"))); err != nil {
		t.Fatal(err)
	}
	now = now.Add(time.Hour)
	b.kernel.reapErr = errors.New("the kernel is busy")
	if err := allocate("p2"); err == nil || !strings.Contains(err.Error(), "whose link cannot be removed") {
		t.Errorf("got %v", err)
	}
	if book.Count() != 0 {
		t.Errorf("the failed ADD holds %v", book.Bindings())
	}
	if err := book.Record(key("p2"), ipam.Owner{}, []netip.Addr{scarce().Prefix.Addr()}, ""); err == nil {
		t.Error("another IPAM plugin may give it")
	}
	b.kernel.reapErr = nil
	now = now.Add(time.Hour)
	reaped := b.kernel.reaped
	if err := allocate("p2"); err != nil || b.kernel.reaped != reaped+1 {
		t.Errorf("%v; the links were reaped %d times", err, b.kernel.reaped-reaped)
	}
}

func TestReapLetsAddressesGo(t *testing.T) {
	b := newBench(t, t.TempDir())
	book := b.open()
	defer book.Close()
	book.SetRanges([]ipam.Range{scarce()})
	now := time.Now()
	book.now = func() time.Time { return now }
	_, err := book.Allocate(key("p1"), ipam.Owner{}, []ipam.Want{{Family: ipam.IPv4}}, "")
	if err := errors.Join(err, book.Retire(key("p1"))); err != nil {
		t.Fatal(err)
	}
	select {
	case <-book.Retired():
	default:
		t.Error("nobody is told that a link waits")
	}
	b.kernel.reapErr = errors.New("the kernel is busy")
	if err := book.Reap(); err == nil || len(book.unreaped) != 1 {
		t.Errorf("a reaping that failed: %v, %v wait", err, book.unreaped)
	}
	b.kernel.reapErr = nil
	if err := book.Reap(); err != nil || len(book.unreaped) != 0 {
		t.Errorf("%v; %v wait", err, book.unreaped)
	}
}

// An agent that died between the end of a pod and the removal of its link has
// written nothing down: the next one begins with removing what there is.
func TestOpenReaps(t *testing.T) {
	b := newBench(t, t.TempDir())
	b.open().Close()
	if b.kernel.reaped != 1 {
		t.Errorf("links were reaped %d times", b.kernel.reaped)
	}
	b.kernel.reapErr = errors.New("the kernel is busy")
	if book, err := Open(b.options); err == nil {
		book.Close()
		t.Error("the book opens though links that hold addresses may be left")
	}
}

package routes

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"ropeway.dev/ropeway/internal/cloud"
)

// An entry of ours that nobody wants is removed when
//   - two listings of the cloud have shown it so, StaleAfter apart,
//   - the API server itself (not the cache) says that nobody wants it,
//   - it is one of few: a restored etcd or a wrong cache makes many entries
//     look unwanted at once.
//
// What would take away or repoint more than a tenth of our entries, and more
// than two, waits for a person's word; in the mode Withdraw everything does.
// The word is a token made of exactly those entries, so that it never means more
// than what the person has seen, and of the time since when something waits, so
// that it is used up: what is wanted again, or gone, and waits another time needs
// another word, whatever annotation is still there. The condition RoutesWithheld
// carries that time from leader to leader (Input.WithheldSince), and goes when
// nothing waits any more.
//
// Entries for single addresses (Input.Diverted) are no part of that: no pod is reached
// by them, and a StatefulSet that ends leaves many at once.

const (
	bulkFew     = 2
	bulkPortion = 10 // one in so many
)

// sighting is since when an own entry has been seen to be unwanted.
type sighting struct {
	since    time.Time
	listings int
}

// guard remembers what has been seen and said.
type guard struct {
	seen     map[cloud.Key]sighting
	approved map[string]bool // what the person has agreed to, and is not done yet
	since    time.Time       // when something began to wait for a word; zero: nothing does
	begun    bool            // since is this term's own, no longer the condition's
}

func newGuard() *guard {
	return &guard{seen: map[cloud.Key]sighting{}, approved: map[string]bool{}}
}

// note takes in the stale entries of a new listing.
func (g *guard) note(stale []cloud.RouteEntry, now time.Time) {
	next := make(map[cloud.Key]sighting, len(stale))
	for _, e := range stale {
		s, known := g.seen[e.Key()]
		if !known {
			s.since = now
		}
		s.listings++
		next[e.Key()] = s
	}
	g.seen = next
}

// forget drops what is wanted again, so that it starts anew.
func (g *guard) forget(stale []cloud.RouteEntry) {
	now := make(map[cloud.Key]bool, len(stale))
	for _, e := range stale {
		now[e.Key()] = true
	}
	for key := range g.seen {
		if !now[key] {
			delete(g.seen, key)
		}
	}
}

// confirmed returns the entries that have been seen unwanted often and long
// enough.
func (g *guard) confirmed(stale []cloud.RouteEntry, after time.Duration, now time.Time) []cloud.RouteEntry {
	return slices.DeleteFunc(slices.Clone(stale), func(e cloud.RouteEntry) bool {
		s := g.seen[e.Key()]
		return s.listings < 2 || now.Sub(s.since) < after
	})
}

// due returns when the next listing can confirm something; zero if nothing
// waits for one.
func (g *guard) due(after time.Duration) time.Time {
	var first time.Time
	for _, s := range g.seen {
		if at := s.since.Add(after); first.IsZero() || at.Before(first) {
			first = at
		}
	}
	return first
}

// withheld is what waits for a person's word.
type withheld struct {
	count int
	token string
	since time.Time
}

// allow returns the removals and replacements that may be done, given how many
// entries are ours, and what is withheld. Entries that are stale but not yet
// confirmed count too: what is wrong in bulk comes to light in bulk.
func (g *guard) allow(d decision, ours int, in Input, now time.Time) (remove []cloud.RouteEntry, replace []cloud.RouteChange, w withheld) {
	names := make([]string, 0, len(d.stale)+len(d.replace))
	free := func(dst netip.Prefix) bool { return in.Mode != Withdraw && in.diverts(dst) }
	for _, e := range d.stale {
		if !free(e.Dst) {
			names = append(names, removal(e))
		}
	}
	for _, c := range d.replace {
		if !free(c.Dst) {
			names = append(names, replacement(c))
		}
	}
	g.retain(names)
	if in.Mode != Withdraw {
		ours -= d.singles
	}
	few := len(names) <= bulkFew || len(names)*bulkPortion <= ours
	if few && in.Mode != Withdraw {
		g.nothingWaits()
		return d.stale, d.replace, withheld{}
	}
	if g.waiting(names) > 0 {
		g.wait(in, now)
		if w = (withheld{token: tokenOf(g.since, names), since: g.since}); w.token == in.Confirmed {
			for _, name := range names {
				g.approved[name] = true
			}
		}
	}
	if w.count = g.waiting(names); w.count == 0 {
		g.nothingWaits()
		w = withheld{}
	}
	for _, e := range d.stale {
		if free(e.Dst) || g.approved[removal(e)] {
			remove = append(remove, e)
		}
	}
	for _, c := range d.replace {
		if free(c.Dst) || g.approved[replacement(c)] {
			replace = append(replace, c)
		}
	}
	return remove, replace, w
}

// retain forgets the word for what is wanted again or done.
func (g *guard) retain(names []string) {
	next := make(map[string]bool, len(g.approved))
	for _, name := range names {
		if g.approved[name] {
			next[name] = true
		}
	}
	g.approved = next
}

// waiting counts the names that the person has not agreed to.
func (g *guard) waiting(names []string) int {
	n := 0
	for _, name := range names {
		if !g.approved[name] {
			n++
		}
	}
	return n
}

// wait notes since when something waits: an earlier leader may have said it.
func (g *guard) wait(in Input, now time.Time) {
	if g.since.IsZero() && !g.begun {
		g.since = in.WithheldSince
	}
	if g.since.IsZero() {
		g.since = now
	}
	g.since, g.begun = g.since.UTC().Truncate(time.Second), true
}

func (g *guard) nothingWaits() { g.since, g.begun = time.Time{}, true }

// lapse forgets what was said of entries that nobody looks at for now.
func (g *guard) lapse() {
	g.retain(nil)
	g.nothingWaits()
}

func removal(e cloud.RouteEntry) string { return "- " + e.Key().String() + " " + e.NextHop }

func replacement(c cloud.RouteChange) string { return "~ " + c.Key().String() + " " + c.NextHop }

// tokenOf is short enough to type, and different for different sets and times.
func tokenOf(since time.Time, names []string) string {
	slices.Sort(names)
	h := sha256.New()
	fmt.Fprintln(h, since.Unix())
	for _, name := range names {
		fmt.Fprintln(h, name)
	}
	return hex.EncodeToString(h.Sum(nil)[:5])
}

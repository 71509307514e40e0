package routes

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
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
// The word is a token made of exactly
// those entries, so that it never means more than what the person has seen.

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
	approved map[string]bool // what the person has agreed to
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
}

// allow returns the removals and replacements that may be done, given how many
// entries are ours, and what is withheld. Entries that are stale but not yet
// confirmed count too: what is wrong in bulk comes to light in bulk.
func (g *guard) allow(d decision, ours int, in Input) (remove []cloud.RouteEntry, replace []cloud.RouteChange, w withheld) {
	count := len(d.stale) + len(d.replace)
	names := make([]string, 0, count)
	for _, e := range d.stale {
		names = append(names, removal(e))
	}
	for _, c := range d.replace {
		names = append(names, replacement(c))
	}
	few := count <= bulkFew || count*bulkPortion <= ours
	if few && in.Mode != Withdraw {
		return d.stale, d.replace, withheld{}
	}
	token := tokenOf(names)
	if in.Confirmed == token {
		for _, name := range names {
			g.approved[name] = true
		}
	}
	for _, e := range d.stale {
		if g.approved[removal(e)] {
			remove = append(remove, e)
		}
	}
	for _, c := range d.replace {
		if g.approved[replacement(c)] {
			replace = append(replace, c)
		}
	}
	if held := count - len(remove) - len(replace); held > 0 {
		w = withheld{count: held, token: token}
	}
	return remove, replace, w
}

func removal(e cloud.RouteEntry) string { return "- " + e.Key().String() + " " + e.NextHop }

func replacement(c cloud.RouteChange) string { return "~ " + c.Key().String() + " " + c.NextHop }

// tokenOf is short enough to type, and different for different sets.
func tokenOf(names []string) string {
	slices.Sort(names)
	h := sha256.New()
	for _, name := range names {
		fmt.Fprintln(h, name)
	}
	return hex.EncodeToString(h.Sum(nil)[:5])
}

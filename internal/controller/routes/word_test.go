package routes

import (
	"testing"
	"time"
)

// next makes the bench's Planner another leader's, which knows of the one before
// what the condition RoutesWithheld says.
func (b *bench) next() {
	b.in.WithheldSince = b.p.Status().WithheldSince
	b.start()
}

// TestWordIsUsedUp: the word for a withdrawal, which stays in its annotation, is
// no word for another one of the same entries.
func TestWordIsUsedUp(t *testing.T) {
	for name, other := range map[string]func(*bench){"the same leader": func(*bench) {}, "another leader": (*bench).next} {
		t.Run(name, func(t *testing.T) {
			b := newBench(t, 30)
			b.run(10 * time.Second)
			wants := b.in.Wants
			withdraw := func(where string, left int) {
				b.in.Mode, b.in.Wants = Withdraw, nil
				b.set()
				b.run(10 * time.Minute)
				if n := len(b.cloud.Entries()); n != left {
					t.Fatalf("%s: %d entries are left, want %d", where, n, left)
				}
			}
			withdraw("without a word", 30)
			b.in.Confirmed = b.p.Status().Token
			withdraw("with it", 0)
			b.in.Mode, b.in.Wants = Write, wants
			b.set()
			b.run(time.Minute)
			other(b)
			b.run(time.Minute)
			b.in.Wants = wants[:10] // a restored etcd
			b.set()
			b.run(10 * time.Minute)
			if n := len(b.cloud.Entries()); n != 30 {
				t.Fatalf("the word for one withdrawal made another: %d entries are left", n)
			}
			other(b)
			withdraw("with the word of before", 30)
		})
	}
}

// TestWordThatCameTooLate: direct is back before the entries are gone, so that
// nothing comes of the word, then or later.
func TestWordThatCameTooLate(t *testing.T) {
	b := newBench(t, 30)
	b.run(10 * time.Second)
	wants := b.in.Wants
	b.in.Mode, b.in.Wants = Withdraw, nil
	b.set()
	b.run(10 * time.Second) // not long enough for a withdrawal
	b.in.Confirmed = b.p.Status().Token
	b.set()
	b.run(time.Second)
	b.in.Mode, b.in.Wants = Write, wants
	b.set()
	b.run(time.Minute)
	b.in.Mode, b.in.Wants = Withdraw, nil
	b.set()
	b.run(10 * time.Minute)
	if n := len(b.cloud.Entries()); n != 30 || b.p.Status().Token == b.in.Confirmed || b.p.Status().Withheld != 30 {
		t.Errorf("%d entries are left, %d wait, for the token %s that was said before: %v", n, b.p.Status().Withheld, b.p.Status().Token, b.in.Confirmed)
	}
}

// TestWordOutlivesItsLeader: what a person has read of one leader, the next takes
// for an answer.
func TestWordOutlivesItsLeader(t *testing.T) {
	b := newBench(t, 30)
	b.run(10 * time.Second)
	b.in.Mode, b.in.Wants = Withdraw, nil
	b.set()
	b.run(5 * time.Minute)
	b.in.Confirmed = b.p.Status().Token
	b.next()
	b.run(10 * time.Minute)
	if n := len(b.cloud.Entries()); n != 0 {
		t.Errorf("%d entries are left", n)
	}
}

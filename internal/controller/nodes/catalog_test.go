package nodes

import (
	"context"
	"testing"
	"time"

	"ropeway.dev/ropeway/internal/cloud"
)

// slowCloud takes its time to list no instance.
type slowCloud struct {
	cloud.Instances
	now   *time.Time
	takes time.Duration
	lists int
}

func (c *slowCloud) List(context.Context) ([]cloud.Instance, error) {
	c.lists++
	*c.now = c.now.Add(c.takes)
	return nil, nil
}

// TestSearchesShareALookAgain: many nodes without an instance, looked for one after
// the other, cost one more list and not one each, however long a list takes.
func TestSearchesShareALookAgain(t *testing.T) {
	for _, takes := range []time.Duration{0, 10 * time.Second} {
		now := time.Unix(1000, 0)
		slow := &slowCloud{now: &now, takes: takes}
		c := &catalog{cloud: slow, now: func() time.Time { return now }, timeout: time.Minute}
		nobody := func() (cloud.Instance, bool) { return cloud.Instance{}, false }
		for range 20 {
			if _, found, err := c.search(t.Context(), nobody); err != nil || found {
				t.Fatal(found, err)
			}
		}
		if slow.lists > 2 {
			t.Errorf("a list takes %s: 20 searches made %d", takes, slow.lists)
		}
		now = now.Add(again + time.Second)
		before := slow.lists
		if _, _, err := c.search(t.Context(), nobody); err != nil || slow.lists != before+1 {
			t.Errorf("a list takes %s: %d more after a while, %v", takes, slow.lists-before, err)
		}
	}
}

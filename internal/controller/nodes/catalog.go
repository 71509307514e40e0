package nodes

import (
	"context"
	"fmt"
	"net/netip"
	"sync"
	"time"

	"ropeway.dev/ropeway/internal/cloud"
)

// catalog remembers what the cloud says of its instances, so that many nodes
// cost few calls. It is safe for concurrent use; one caller asks, the others
// wait for the same answer.
type catalog struct {
	cloud   cloud.Instances
	now     func() time.Time
	timeout time.Duration

	mu     sync.Mutex
	listed time.Time // when the last list was asked for; zero: never
	ended  time.Time // when it was there
	byID   map[string]cloud.Instance
	byAddr map[netip.Addr]string
	failed time.Time // when a list failed last
	err    error
}

const (
	// again is how soon a failed list, or one that lacks something, is
	// repeated.
	again = 2 * time.Second
	// fresh is how old a list may be for what changes seldom.
	fresh = time.Minute
	// anew takes no list that was made before.
	anew = -1
)

// list makes sure that the list is not older than maxAge.
func (c *catalog) list(ctx context.Context, maxAge time.Duration) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	now := c.now()
	if !c.listed.IsZero() && now.Sub(c.listed) <= maxAge {
		return nil
	}
	// Many that find nothing come one after the other: a list that takes long is
	// not made anew for each.
	if maxAge == again && !c.listed.IsZero() && now.Sub(c.ended) <= again {
		return nil
	}
	if c.err != nil && now.Sub(c.failed) < again {
		return c.err
	}
	ctx, cancel := context.WithTimeout(ctx, c.timeout)
	defer cancel()
	found, err := c.cloud.List(ctx)
	if err != nil {
		c.failed, c.err = c.now(), fmt.Errorf("list the instances of the VPC: %w", err)
		return c.err
	}
	c.listed, c.ended, c.err = now, c.now(), nil
	c.byID = make(map[string]cloud.Instance, len(found))
	c.byAddr = make(map[netip.Addr]string, len(found))
	for _, in := range found {
		c.byID[in.ID] = in
		for _, a := range in.Addresses {
			c.byAddr[a.Unmap()] = in.ID
		}
	}
	return nil
}

// get returns an instance of the list.
func (c *catalog) get(id string) (cloud.Instance, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	in, found := c.byID[id]
	return in, found
}

// at returns the instance of the list that has one of the addresses.
func (c *catalog) at(addresses []netip.Addr) (cloud.Instance, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, a := range addresses {
		if id, found := c.byAddr[a.Unmap()]; found {
			return c.byID[id], true
		}
	}
	return cloud.Instance{}, false
}

// search looks into the list by a function, and into a newer one if it does not
// find anything.
func (c *catalog) search(ctx context.Context, find func() (cloud.Instance, bool)) (cloud.Instance, bool, error) {
	for _, age := range []time.Duration{fresh, again} {
		if err := c.list(ctx, age); err != nil {
			return cloud.Instance{}, false, err
		}
		if in, found := find(); found {
			return in, true, nil
		}
	}
	return cloud.Instance{}, false, nil
}

// describe asks for instances by their ids, in as many calls as it takes.
func (c *catalog) describe(ctx context.Context, ids []string) (map[string]cloud.Instance, error) {
	out := make(map[string]cloud.Instance, len(ids))
	ctx, cancel := context.WithTimeout(ctx, c.timeout)
	defer cancel()
	for start := 0; start < len(ids); start += cloud.MaxDescribe {
		found, err := c.cloud.Describe(ctx, ids[start:min(start+cloud.MaxDescribe, len(ids))])
		if err != nil {
			return nil, fmt.Errorf("ask for instances by their ids: %w", err)
		}
		for _, in := range found {
			out[in.ID] = in
		}
	}
	return out, nil
}

package nodes

import (
	"context"
	"maps"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"ropeway.dev/ropeway/internal/cloud"
)

// round is one look at the cloud for all silent nodes together.
type round struct {
	began     time.Time
	described map[string]cloud.Instance // by id
	looks     map[types.UID]look
	weighed   map[types.UID]bool
	err       error
	next      time.Time // no round before
}

// look returns a round that is not too old, and makes one if need be. The
// lifecycle controller asks node by node, every few seconds.
func (i *instances) look(ctx context.Context) (*round, error) {
	i.mu.Lock()
	last := i.round
	i.mu.Unlock()
	if last != nil && i.now().Before(last.next) {
		return last, last.err
	}
	r := &round{began: i.now(), looks: map[types.UID]look{}, weighed: map[types.UID]bool{}}
	r.err = i.fill(ctx, r)
	// However slow the cloud is, most of the time it is left alone.
	r.next = i.now().Add(max(i.every, 2*i.now().Sub(r.began)))
	i.mu.Lock()
	defer i.mu.Unlock()
	i.round = r
	return r, r.err
}

// fill asks by id for what the silent nodes should be, and lists the VPC where
// that does not show all.
func (i *instances) fill(ctx context.Context, r *round) error {
	nodes, err := i.nodes()
	if err != nil {
		return err
	}
	i.forget(nodes)
	suspects, witnesses := i.sort(nodes)
	if r.described, err = i.catalog.describe(ctx, idsOf(suspects)); err != nil {
		return err
	}
	common := look{at: r.began, nodes: len(nodes)}
	if slices.ContainsFunc(suspects, func(s party) bool { _, shown := r.described[s.id]; return !shown }) {
		// After the answers by id, so that both were given while all
		// suspects were silent.
		if err := i.catalog.list(ctx, anew); err != nil {
			return err
		}
		if err := i.testify(ctx, &common, witnesses); err != nil {
			return err
		}
	}
	for _, s := range suspects {
		if _, shown := r.described[s.id]; !shown && !i.lists(s.id) {
			common.absent = append(common.absent, s.node.Name)
		}
	}
	slices.Sort(common.absent)
	for _, s := range suspects {
		l := common
		_, l.described = r.described[s.id]
		l.listed = !l.described && i.lists(s.id)
		r.looks[s.node.UID] = l
	}
	return nil
}

func (i *instances) lists(id string) bool {
	_, found := i.catalog.get(id)
	return found
}

// testify finds out which nodes that are certainly there the answers show.
func (i *instances) testify(ctx context.Context, l *look, witnesses []party) error {
	var unlisted []party
	for _, w := range witnesses {
		if i.lists(w.id) {
			l.witnesses++
		} else {
			unlisted = append(unlisted, w)
		}
	}
	elsewhere, err := i.catalog.describe(ctx, idsOf(unlisted)) // in another VPC
	if err != nil {
		return err
	}
	for _, w := range unlisted {
		if _, shown := elsewhere[w.id]; !shown {
			l.unseen = append(l.unseen, w.node.Name)
		}
	}
	slices.Sort(l.unseen)
	return nil
}

// party is a node and the instance that it says to be.
type party struct {
	node *corev1.Node
	id   string
}

func idsOf(parties []party) []string {
	out := make([]string, 0, len(parties))
	for _, p := range parties {
		out = append(out, p.id)
	}
	return out
}

// sort tells silent nodes from those that are certainly there.
func (i *instances) sort(nodes []*corev1.Node) (suspects, witnesses []party) {
	for _, n := range nodes {
		id, err := i.named(n)
		if err != nil {
			continue // no instance to look for
		}
		switch ready(n) {
		case corev1.ConditionTrue:
			witnesses = append(witnesses, party{n, id})
		case corev1.ConditionUnknown:
			suspects = append(suspects, party{n, id})
		}
	}
	return suspects, witnesses
}

// forget drops what is known of Nodes that are gone, or that speak again: whoever
// judged one when it was silent may have come to an end after it was acquitted.
func (i *instances) forget(nodes []*corev1.Node) {
	open := make(map[types.UID]bool, len(nodes))
	for _, n := range nodes {
		open[n.UID] = silent(n)
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	maps.DeleteFunc(i.suspects, func(uid types.UID, _ *suspicion) bool { return !open[uid] })
	maps.DeleteFunc(i.verdicts, func(uid types.UID, _ verdict) bool { return !open[uid] })
}

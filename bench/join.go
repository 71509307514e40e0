package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"ropeway.dev/ropeway/api/v1alpha1"
	"ropeway.dev/ropeway/bench/scale"
)

const (
	// joins is how often a node joins and its route is deleted by hand.
	joins     = 3
	pingEvery = 10 * time.Millisecond
	// slowDelay is the cloud's while a deleted route is missed: longer than
	// the target, so that it is the tunnel that heals and not the route that
	// Ropeway publishes again.
	slowDelay = 6 * time.Second
	patience1 = 30 * time.Second
)

// join lets a node join again and again, among real agents of those that prove
// it and of one more, which watches; deletes its route by hand; and in the end
// changes the transport.
func (s *scaleRun) join(ctx context.Context, cloud *scale.Cloud) error {
	var tunnel, direct, healed []float64
	for i := range joins {
		j := &joining{scaleRun: s, cloud: cloud}
		err := j.play(ctx, i == joins-1)
		if err != nil {
			return fmt.Errorf("join %d: %w", i+1, errors.Join(err, j.end()))
		}
		tunnel, direct, healed = append(tunnel, j.tunnel.Seconds()), append(direct, j.direct.Seconds()), append(healed, j.healed.Seconds())
		s.say("scale: a node joined %d: by tunnel %.2f s after its agent's start, direct %.2f s after Available; its route deleted: by tunnel again after %.2f s",
			s.small-1, tunnel[i], direct[i], healed[i])
		if err := j.end(); err != nil {
			return err
		}
	}
	s.samples["scale.join.tunnel"] = sample{values: tunnel, detail: "from the start of the agent's process, on an empty kernel, to the answer of another node's packet"}
	s.samples["scale.join.direct"] = sample{values: direct, detail: "from the cloud's Available to the route for bare packets on a node that is none of those that prove it"}
	s.samples["scale.deleted"] = sample{values: healed, detail: "from the first packet lost after the deletion at the console to the first that arrives again"}
	return nil
}

// joining is one node that joins.
type joining struct {
	*scaleRun
	cloud *scale.Cloud
	agent *scale.Agent
	pings *scale.Pings

	tunnel, direct, healed time.Duration
}

// play is one join; the last one's node is there for changes of the transport.
func (j *joining) play(ctx context.Context, last bool) error {
	if err := j.removeJoiner(ctx); err != nil {
		return err
	}
	if err := j.arrive(ctx); err != nil {
		return err
	}
	if err := j.loseRoute(ctx); err != nil || !last {
		return err
	}
	j.pings.Stop()
	j.pings = nil
	return j.changeTransport(ctx)
}

// end ends what the join has started.
func (j *joining) end() error {
	if j.pings != nil {
		j.pings.Stop()
	}
	if j.agent == nil {
		return nil
	}
	return j.agent.Stop()
}

// removeJoiner makes the cluster as if the joiner had never been.
func (j *joining) removeJoiner(ctx context.Context) error {
	node := j.real.joiner
	if err := errors.Join(j.cluster.Remove(ctx, node), j.hosts.Clean(ctx, node), j.cloud.SetDelay(ctx, 0)); err != nil {
		return err
	}
	if err := j.cloud.DeleteByHand(ctx, node); err != nil {
		return err
	}
	err := poll(ctx, patience1, "nobody knows the joiner any more", func() (bool, error) {
		known, err := j.hosts.Knows(j.real.observer, node)
		return !known, err
	})
	return errors.Join(err, j.cloud.SetDelay(ctx, cloudDelay))
}

// arrive registers the joiner and starts its agent.
func (j *joining) arrive(ctx context.Context) (err error) {
	from, node := j.real.observer, j.real.joiner
	if j.pings, err = j.hosts.StartPings(ctx, from, node, pingEvery); err != nil {
		return err
	}
	if _, err := j.cluster.Register(ctx, node); err != nil {
		return err
	}
	if j.agent, err = j.hosts.StartAgent(ctx, node); err != nil {
		return err
	}
	answered, err := j.pings.AwaitAnswer(ctx, j.agent.Started, patience1)
	if err != nil {
		return fmt.Errorf("by tunnel: %w", err)
	}
	j.tunnel = answered.Sub(j.agent.Started)
	if bare, err := j.hosts.Bare(from, node); bare || err != nil {
		return errors.Join(err, errors.New("the joiner's first packets were not tunnelled"))
	}
	return j.awaitDirect(ctx)
}

// awaitDirect waits until the observer reaches the joiner by direct.
func (j *joining) awaitDirect(ctx context.Context) error {
	what := "the observer reaches the joiner by direct"
	err := pollEvery(ctx, pingEvery, patience1, what, func() (bool, error) { return j.hosts.Bare(j.real.observer, j.real.joiner) })
	if err != nil {
		return err
	}
	seen := time.Now()
	available, ok := j.cloud.AvailableSince(j.real.joiner)
	if !ok {
		return errors.New("direct is in use without a route in the cloud")
	}
	j.direct = seen.Sub(available)
	return nil
}

// loseRoute deletes the joiner's route at the console.
func (j *joining) loseRoute(ctx context.Context) error {
	before := time.Now()
	if err := errors.Join(j.cloud.SetDelay(ctx, 0), j.cloud.DeleteByHand(ctx, j.real.joiner), j.cloud.SetDelay(ctx, slowDelay)); err != nil {
		return err
	}
	// What was on its way at the deletion may still have been answered.
	if _, err := j.pings.AwaitAnswer(ctx, time.Now().Add(100*time.Millisecond), patience1); err != nil {
		return err
	}
	j.healed = j.pings.Gap(before)
	if j.healed == 0 {
		return errors.New("no packet was lost: the deletion did nothing")
	}
	return j.awaitAgain(ctx)
}

// awaitAgain waits until the route is published again and in use.
func (j *joining) awaitAgain(ctx context.Context) error {
	return poll(ctx, time.Minute, "the deleted route is published again and in use", func() (bool, error) {
		_, there := j.cloud.AvailableSince(j.real.joiner)
		bare, err := j.hosts.Bare(j.real.observer, j.real.joiner)
		return there && bare, err
	})
}

// changeTransport changes the transport of the live cluster, there and back,
// while packets go.
func (j *joining) changeTransport(ctx context.Context) error {
	pings, err := j.hosts.StartPings(ctx, j.real.observer, j.real.joiner, pingEvery/2)
	if err != nil {
		return err
	}
	if _, err := pings.AwaitAnswer(ctx, time.Now(), patience1); err != nil {
		return err
	}
	steps := [][]v1alpha1.Transport{
		{v1alpha1.TransportIPIP}, {v1alpha1.TransportVXLAN}, {v1alpha1.TransportDirect, v1alpha1.TransportIPIP}, {v1alpha1.TransportVXLAN}, {v1alpha1.TransportDirect, v1alpha1.TransportIPIP},
	}
	for _, transports := range steps {
		if err = j.changeTo(ctx, transports); err != nil {
			break
		}
	}
	sent, lost := pings.Stop()
	j.samples["scale.change"] = sample{values: []float64{float64(lost)}, detail: fmt.Sprintf("of %d packets, one each %s, during %d changes: %v", sent, pingEvery/2, len(steps), steps)}
	j.say("scale: %d changes of transport: %d of %d packets lost", len(steps), lost, sent)
	return err
}

func (j *joining) changeTo(ctx context.Context, transports []v1alpha1.Transport) error {
	if err := j.cluster.Configure(ctx, j.cloud, transports...); err != nil {
		return err
	}
	err := poll(ctx, time.Minute, fmt.Sprintf("%v in use", transports), func() (bool, error) {
		for _, ends := range [][2]int{{j.real.observer, j.real.joiner}, {j.real.joiner, j.real.observer}} {
			transport, err := j.hosts.Transport(ends[0], ends[1])
			if err != nil || transport != string(transports[0]) {
				return false, err
			}
		}
		return true, nil
	})
	return errors.Join(err, sleep(ctx, time.Second))
}

package scenario

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"ropeway.dev/ropeway/internal/lab"
)

// nextRelease is the build tag of a release that comes after this one: its maps,
// journal, saved state and messages are of other versions.
const nextRelease = "ropeway_next"

// upgrade changes the release that runs for the next one, and back, under traffic.
func (s *stage) upgrade(ctx context.Context) error {
	now, err := s.quiet(ctx, "-n", "kube-system", "get", "ds", "ropeway-agent", "-o", "jsonpath={.spec.template.spec.containers[0].image}")
	if err != nil {
		return err
	}
	colon := strings.LastIndex(now, ":")
	if colon < 0 {
		return fmt.Errorf("the agents' image %q has no tag", now)
	}
	next := now + "-next"
	if err := s.r.Step(ctx, "the next release is built, and its image on every node", func(ctx context.Context) error {
		return s.importNext(ctx, next[colon+1:])
	}); err != nil {
		return err
	}
	before, err := s.layouts(ctx)
	if err != nil {
		return err
	}
	up := func(ctx context.Context) error { return s.release(ctx, next) }
	down := func(ctx context.Context) error { return s.release(ctx, now) }
	err = s.steady(ctx, s.publish, []event{
		{name: "upgrade to a release with other layouts", happen: up, undo: down},
		{name: "downgrade to what was there", undo: up, happen: func(ctx context.Context) error {
			return errors.Join(s.differs(ctx, before), down(ctx))
		}},
	})
	if err != nil {
		return errors.Join(err, s.release(context.WithoutCancel(ctx), now))
	}
	return s.r.Step(ctx, "API server, journals and kernels agree about every address, and every layout is as before", func(ctx context.Context) error {
		after, err := s.layouts(ctx)
		if err != nil {
			return err
		}
		if after != before {
			return fmt.Errorf("the layouts are %s, were %s", after, before)
		}
		return s.ropeway(ctx, "ipam", "check")
	})
}

func (s *stage) importNext(ctx context.Context, version string) error {
	p := s.product
	p.Version, p.Tags = version, nextRelease
	archive, err := p.Image(ctx)
	if err != nil {
		return err
	}
	return s.l.ImportImage(ctx, archive)
}

// release changes the image of agents and controllers, and returns once all run it.
func (s *stage) release(ctx context.Context, image string) error {
	workloads := []string{"ds/ropeway-agent", "deploy/ropeway-controller"}
	for _, workload := range workloads {
		if _, err := s.kubectl(ctx, "-n", "kube-system", "set", "image", workload, "*="+image); err != nil {
			return err
		}
	}
	for _, workload := range workloads {
		if _, err := s.quiet(ctx, "-n", "kube-system", "rollout", "status", workload, "--timeout=3m"); err != nil {
			return err
		}
	}
	return nil
}

// layouts are the versions of what the nodes' agents have left on them.
func (s *stage) layouts(ctx context.Context) (string, error) {
	var all []string
	for _, node := range s.l.Nodes() {
		one, err := s.layoutsOf(ctx, node)
		if err != nil {
			return "", err
		}
		all = append(all, one)
	}
	return strings.Join(all, "; "), nil
}

func (s *stage) layoutsOf(ctx context.Context, node lab.Node) (string, error) {
	const look = `cd /run/ropeway && head -n1 journal && grep -ao '"Version":[0-9]*' state | head -n1 && cd /sys/fs/bpf/ropeway && ls -d v*`
	out, err := s.l.NodeExec(ctx, node.Name, "sh", "-ec", look)
	if err != nil {
		return "", fmt.Errorf("which layouts node %s has: %w", node.Name, err)
	}
	return node.Name + ": " + strings.Join(strings.Fields(string(out)), " "), nil
}

// differs wants every node to have come to other layouts.
func (s *stage) differs(ctx context.Context, before string) error {
	return s.until(ctx, time.Minute, func() error {
		now, err := s.layouts(ctx)
		if err != nil {
			return err
		}
		old := strings.Split(before, "; ")
		for i, one := range strings.Split(now, "; ") {
			words, were := strings.Fields(one), strings.Fields(old[i])
			if len(words) != len(were) {
				return fmt.Errorf("the layouts are %s, were %s", one, old[i])
			}
			for k := 1; k < len(words); k++ {
				if words[k] == were[k] && words[k] != "ropeway-journal" {
					return fmt.Errorf("the layouts are %s, were %s: %s has not changed", one, old[i], words[k])
				}
			}
		}
		return nil
	})
}

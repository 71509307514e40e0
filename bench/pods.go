package main

import (
	"context"
	"fmt"
	"strings"
	"time"

	"ropeway.dev/ropeway/internal/lab"
)

const (
	podsPerNode = 100
	podsTurns   = 5
	podsPatient = 5 * time.Minute
)

// podsDeployment fills one node: as many pods as it takes, on the pod network or
// on the node's own.
const podsDeployment = `apiVersion: apps/v1
kind: Deployment
metadata: {name: rwbench}
spec:
  replicas: %d
  selector: {matchLabels: {app: rwbench}}
  template:
    metadata: {labels: {app: rwbench}}
    spec:
      nodeName: %s
      hostNetwork: %v
      automountServiceAccountToken: false
      terminationGracePeriodSeconds: 0
      tolerations: [{operator: Exists}]
      containers: [{name: sleeper, image: lab.ropeway.dev/web:1, command: [sleep, "3600"]}]
`

// pods has a Deployment fill a node until all its pods are Running, on the pod
// network and on the node's own in turn.
func (b *bench) pods(ctx context.Context, l *lab.Lab) error {
	node := l.Nodes()[0].Name
	took := map[bool][]float64{}
	loaded := false
	for turn := range podsTurns + 1 { // the first is for the caches
		for _, hostNetwork := range []bool{turn%2 == 0, turn%2 != 0} {
			load := loadAverage()
			seconds, err := b.fill(ctx, l, node, hostNetwork)
			if err != nil {
				return err
			}
			if turn == 0 {
				continue
			}
			took[hostNetwork] = append(took[hostNetwork], seconds)
			loaded = loaded || turn == 1 && load > 2 // later ones see this one's own load
			b.say("pods: %d pods (hostNetwork: %v) run after %s s", podsPerNode, hostNetwork, number(seconds))
		}
	}
	b.samples["pods.running"] = sample{values: ratios(took[false], took[true]), loaded: loaded,
		detail: fmt.Sprintf("%d pods on one node run after %s s on the pod network, %s s with hostNetwork (medians of %d)",
			podsPerNode, number(median(took[false])), number(median(took[true])), podsTurns)}
	return nil
}

// fill returns how many seconds a Deployment takes until all its pods are Running,
// and leaves nothing of it.
func (b *bench) fill(ctx context.Context, l *lab.Lab, node string, hostNetwork bool) (float64, error) {
	ctx, cancel := context.WithTimeout(ctx, podsPatient)
	defer cancel()
	manifest := fmt.Sprintf(podsDeployment, podsPerNode, node, hostNetwork)
	began := time.Now()
	if _, err := l.KubectlInput(ctx, strings.NewReader(manifest), "apply", "-f", "-"); err != nil {
		return 0, err
	}
	line := fmt.Sprintf("--timeout=%s", podsPatient)
	if _, err := l.Kubectl(ctx, "rollout", "status", "deploy/rwbench", line); err != nil {
		return 0, fmt.Errorf("%d pods (hostNetwork: %v) do not run: %w", podsPerNode, hostNetwork, err)
	}
	seconds := time.Since(began).Seconds()
	if _, err := l.Kubectl(ctx, "delete", "deploy", "rwbench", "--cascade=foreground", line); err != nil {
		return 0, err
	}
	_, err := l.Kubectl(ctx, "wait", "--for=delete", "pod", "-l", "app=rwbench", line)
	return seconds, err
}

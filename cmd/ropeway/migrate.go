package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"ropeway.dev/ropeway/internal/agent"
	"ropeway.dev/ropeway/internal/agent/addresses"
	"ropeway.dev/ropeway/internal/install/report"
	"ropeway.dev/ropeway/internal/kube"
)

func newMigrate(g *global) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "migrate",
		Short: "Take over what another product has left",
		Args:  cobra.NoArgs,
		RunE:  func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(newMigrateAddresses(g))
	return cmd
}

func newMigrateAddresses(g *global) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "addresses",
		Short: "Take over the addresses that host-local and Spiderpool gave: running pods keep theirs",
		Long: "Take over host-local's files on every node (/var/lib/cni/networks) and what the SpiderIPPools' status.allocatedIPs says:\n" +
			"what running pods have is held in the nodes' journals from then on; files of host-local's whose sandboxes are gone, by\n" +
			"the kernel and the runtime's notes, are removed. Each node's agent decides about its own. It may be run again. Exit\n" +
			"code 1 at a conflict, or if a node could not be asked.",
		Example: "  ropeway migrate addresses --dry-run",
		Args:    cobra.NoArgs,
	}
	dryRun := cmd.Flags().Bool("dry-run", false, "say what would be done, and change nothing")
	nodes := cmd.Flags().StringSlice("node", nil, "this node's only; can be repeated")
	output := outputFlag(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		format, err := report.ParseFormat(*output)
		if err != nil {
			return err
		}
		ctx, cancel := context.WithTimeout(cmd.Context(), 4*readLimit)
		defer cancel()
		m, err := g.migrateAddresses(ctx, *nodes, *dryRun)
		if err != nil {
			return err
		}
		return writeJudged(cmd.OutOrStdout(), format, m)
	}
	return cmd
}

func (g *global) migrateAddresses(ctx context.Context, nodes []string, dryRun bool) (report.Migration, error) {
	objects, pods, err := g.addressView(ctx)
	if err != nil {
		return report.Migration{}, err
	}
	agents, err := g.agents(ctx)
	if err != nil {
		return report.Migration{}, err
	}
	claims, rest, err := report.SpiderClaims(objects, pods)
	if err != nil {
		return report.Migration{}, err
	}
	if nodes, err = chosen(objects, nodes); err != nil {
		return report.Migration{}, err
	}
	m := report.Migration{DryRun: dryRun, Addresses: rest, NotAsked: map[string]string{}}
	var mu sync.Mutex
	var group errgroup.Group
	group.SetLimit(atOnce)
	for _, node := range nodes {
		group.Go(func() error {
			taken, err := takeOver(ctx, agents, node, agent.TakeOverRequest{Claims: claims[node], DryRun: dryRun})
			mu.Lock()
			defer mu.Unlock()
			for _, t := range taken {
				m.Addresses = append(m.Addresses, report.MigratedOnNode{Node: node, Taken: t})
			}
			if err != nil {
				m.NotAsked[node] = err.Error()
			}
			return nil
		})
	}
	return m, group.Wait()
}

func takeOver(ctx context.Context, agents *kube.Agents, node string, request agent.TakeOverRequest) ([]addresses.Taken, error) {
	answer, err := askAgent(ctx, agents, node, agent.PathTakeOver, request)
	if err == nil && answer.Error != "" {
		err = errors.New(answer.Error)
	}
	return answer.Taken, err
}

// chosen returns the nodes that are meant: those named, or all that have agents.
func chosen(o *kube.Objects, named []string) ([]string, error) {
	var all []string
	for _, n := range o.Nodes {
		if n.Labels["kubernetes.io/os"] != "windows" {
			all = append(all, n.Name)
		}
	}
	if len(named) == 0 {
		return all, nil
	}
	for _, n := range named {
		if !slices.Contains(all, n) {
			return nil, fmt.Errorf("--node: there is no node %q that runs Linux: kubectl get nodes lists them", n)
		}
	}
	return named, nil
}

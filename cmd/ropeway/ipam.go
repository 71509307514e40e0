package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"ropeway.dev/ropeway/internal/agent"
	"ropeway.dev/ropeway/internal/agent/addresses"
	"ropeway.dev/ropeway/internal/few"
	"ropeway.dev/ropeway/internal/install/report"
	"ropeway.dev/ropeway/internal/kube"
)

func newIPAM(g *global) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "ipam",
		Short: "Show pod addresses, who has them, and what does not fit together",
		Args:  cobra.NoArgs,
		RunE:  func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(newIPAMShow(g), newIPAMPools(g), newIPAMBlocks(g), newIPAMWho(g), newIPAMCheck(g), newIPAMRelease(g))
	return cmd
}

// showing makes a command that reads objects and pods, and writes a report.
func (g *global) showing(cmd *cobra.Command, make func(*kube.Objects, []kube.PodAddress, []string) (table, error)) *cobra.Command {
	output := outputFlag(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		format, err := report.ParseFormat(*output)
		if err != nil {
			return err
		}
		ctx, cancel := context.WithTimeout(cmd.Context(), readLimit)
		defer cancel()
		objects, pods, err := g.addressView(ctx)
		if err != nil {
			return err
		}
		t, err := make(objects, pods, args)
		if err != nil {
			return err
		}
		return report.Write(cmd.OutOrStdout(), format, t, t.Table)
	}
	return cmd
}

func (g *global) addressView(ctx context.Context) (*kube.Objects, []kube.PodAddress, error) {
	objects, err := g.view(ctx)
	if err != nil {
		return nil, nil, err
	}
	cfg, err := kube.RESTConfig(g.kubeconfig, g.context)
	if err != nil {
		return nil, nil, err
	}
	pods, err := kube.PodAddresses(ctx, cfg)
	return objects, pods, err
}

func newIPAMShow(g *global) *cobra.Command {
	return g.showing(&cobra.Command{Use: "show [NODE...]", Short: "Show how many addresses are in use, per node, pool and namespace"},
		func(o *kube.Objects, pods []kube.PodAddress, nodes []string) (table, error) {
			return report.UsageOf(o, pods, nodes)
		})
}

func newIPAMPools(g *global) *cobra.Command {
	return g.showing(&cobra.Command{Use: "pools", Short: "Show every pool of both kinds, its use, and what is wrong with it", Args: cobra.NoArgs},
		func(o *kube.Objects, _ []kube.PodAddress, _ []string) (table, error) { return report.PoolsOf(o), nil })
}

func newIPAMBlocks(g *global) *cobra.Command {
	return g.showing(&cobra.Command{Use: "blocks", Short: "Show every lease, whose it is, and its use", Args: cobra.NoArgs},
		func(o *kube.Objects, pods []kube.PodAddress, _ []string) (table, error) {
			return report.BlocksOf(o, pods), nil
		})
}

// agents is the way to the nodes' agents.
func (g *global) agents(ctx context.Context) (*kube.Agents, error) {
	cfg, err := kube.RESTConfig(g.kubeconfig, g.context)
	if err != nil {
		return nil, err
	}
	return kube.FindAgents(ctx, cfg)
}

// viewOf asks one node what it knows of addresses.
func viewOf(ctx context.Context, agents *kube.Agents, node string) (addresses.View, error) {
	text, err := agents.Get(ctx, node, agent.PathAddresses)
	if err != nil {
		return addresses.View{}, err
	}
	var answer agent.AddressesAnswer
	if err := json.Unmarshal(text, &answer); err != nil {
		return addresses.View{}, fmt.Errorf("read the answer of node %s's agent (is it of another version?): %w", node, err)
	}
	return answer.View, nil
}

// atOnce is how many agents are asked at the same time.
const atOnce = 16

// viewsOf asks many nodes; why maps those that did not answer -> why.
func viewsOf(ctx context.Context, agents *kube.Agents, nodes []string) (views map[string]addresses.View, why map[string]string) {
	views, why = map[string]addresses.View{}, map[string]string{}
	var mu sync.Mutex
	var group errgroup.Group
	group.SetLimit(atOnce)
	for _, node := range nodes {
		group.Go(func() error {
			view, err := viewOf(ctx, agents, node)
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				why[node] = err.Error()
			} else {
				views[node] = view
			}
			return nil
		})
	}
	_ = group.Wait() // nothing in it fails
	return views, why
}

// parseAddress reads an argument.
func parseAddress(text string) (netip.Addr, error) {
	a, err := netip.ParseAddr(text)
	if err != nil || a.Zone() != "" {
		return netip.Addr{}, fmt.Errorf("%q is not an address such as 10.244.1.7", text)
	}
	return a.Unmap(), nil
}

func newIPAMWho(g *global) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "who IP",
		Short: "Say whose an address is: node, pool, pod, container, link",
		Args:  cobra.ExactArgs(1),
	}
	output := outputFlag(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		format, err := report.ParseFormat(*output)
		if err != nil {
			return err
		}
		a, err := parseAddress(args[0])
		if err != nil {
			return err
		}
		ctx, cancel := context.WithTimeout(cmd.Context(), readLimit)
		defer cancel()
		who, _, err := g.who(ctx, a, cmd.ErrOrStderr())
		if err != nil {
			return err
		}
		return report.Write(cmd.OutOrStdout(), format, who, who.Table)
	}
	return cmd
}

// who finds out everything about an address; nodes that do not answer are
// complained about.
func (g *global) who(ctx context.Context, a netip.Addr, complain io.Writer) (report.Who, *kube.Agents, error) {
	objects, pods, err := g.addressView(ctx)
	if err != nil {
		return report.Who{}, nil, err
	}
	agents, err := g.agents(ctx)
	if err != nil {
		return report.Who{}, nil, err
	}
	who := report.WhoOf(objects, pods, a)
	var all []string
	for _, n := range objects.Nodes {
		all = append(all, n.Name)
	}
	views, silent := lookFor(a, who.Ask(), all, func(nodes []string) (map[string]addresses.View, map[string]string) {
		return viewsOf(ctx, agents, nodes)
	})
	for _, node := range slices.Sorted(maps.Keys(silent)) {
		fmt.Fprintf(complain, "! node %s does not answer: %s\n", node, silent[node])
		who.Silent = append(who.Silent, node)
	}
	for _, node := range slices.Sorted(maps.Keys(views)) {
		who.Add(node, views[node])
	}
	return who, agents, nil
}

// lookFor asks the nodes that should know of an address, if there are any, and then
// all others where none of these holds it: it may be held where it is sent no more,
// or not yet. Where all of the first are silent the others are not waited for.
func lookFor(a netip.Addr, first, all []string, ask func(nodes []string) (map[string]addresses.View, map[string]string)) (views map[string]addresses.View, silent map[string]string) {
	views, silent = ask(first)
	if heldIn(views, a) || len(views) == 0 && len(silent) > 0 {
		return views, silent
	}
	others := slices.DeleteFunc(slices.Clone(all), func(node string) bool { return slices.Contains(first, node) })
	more, alsoSilent := ask(others)
	maps.Copy(views, more)
	maps.Copy(silent, alsoSilent)
	return views, silent
}

func heldIn(views map[string]addresses.View, a netip.Addr) bool {
	for _, v := range views {
		for _, h := range v.Holdings {
			for _, held := range h.Addresses {
				if held == a {
					return true
				}
			}
		}
	}
	return false
}

// lasting is how long a difference has to last: pods come and go while agents
// and API server are asked one after another.
const lasting = 3 * time.Second

func newIPAMCheck(g *global) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "check",
		Short: "Compare the API server, the nodes' journals and their kernels; exit code 1 at any difference",
		Long: "Compare what the API server, the nodes' journals, their kernels and host-local's files say of addresses, and name every\n" +
			"difference that is still there after some seconds. Exit code 1 if there is any, or if a node could not be asked.",
		Args: cobra.NoArgs,
	}
	output := outputFlag(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		format, err := report.ParseFormat(*output)
		if err != nil {
			return err
		}
		c, err := g.compareTwice(cmd.Context())
		if err != nil {
			return err
		}
		return writeJudged(cmd.OutOrStdout(), format, c)
	}
	return cmd
}

func (g *global) compareTwice(ctx context.Context) (report.Comparison, error) {
	first, err := g.compare(ctx)
	if err != nil || !first.Failed() {
		return first, err
	}
	select {
	case <-ctx.Done():
		return report.Comparison{}, ctx.Err()
	case <-time.After(lasting):
	}
	second, err := g.compare(ctx)
	return second.Both(first), err
}

func (g *global) compare(ctx context.Context) (report.Comparison, error) {
	ctx, cancel := context.WithTimeout(ctx, 2*readLimit)
	defer cancel()
	agents, err := g.agents(ctx)
	if err != nil {
		return report.Comparison{}, err
	}
	w := report.Witnesses{}
	if w.Objects, w.Pods, err = g.addressView(ctx); err != nil {
		return report.Comparison{}, err
	}
	nodes, err := chosen(w.Objects, nil)
	if err != nil {
		return report.Comparison{}, err
	}
	w.Views, w.Silent = viewsOf(ctx, agents, nodes)
	return report.Compare(w)
}

func newIPAMRelease(g *global) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "release IP",
		Short: "Free a leaked address; refused, with the reason, while anything speaks for its pod",
		Long: "Free an address whose pod is gone and that is held all the same. The node's agent looks at its kernel, at the sandbox's\n" +
			"network namespace, at the runtime's notes and at the API server, and refuses while any of them speaks for the pod.",
		Args: cobra.ExactArgs(1),
	}
	gone := cmd.Flags().Bool("sandbox-gone", false, "you have looked, and the node's runtime does not know the container; counts only where the node itself does not know")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		a, err := parseAddress(args[0])
		if err != nil {
			return err
		}
		ctx, cancel := context.WithTimeout(cmd.Context(), readLimit)
		defer cancel()
		who, agents, err := g.who(ctx, a, cmd.ErrOrStderr())
		if err != nil {
			return err
		}
		if err := releasable(who); err != nil {
			return err
		}
		h := who.Holders[0]
		answer, err := askAgent(ctx, agents, h.Node, agent.PathRelease, agent.ReleaseRequest{Address: a, Holder: h.Key, SandboxGone: *gone})
		if err != nil {
			return err
		}
		if answer.Error != "" {
			return fmt.Errorf("%s is not released: %s", a, answer.Error)
		}
		fmt.Fprintf(cmd.OutOrStdout(), "%s is free: node %s held it for container %s\n", a, h.Node, h.Key.ContainerID)
		return nil
	}
	return cmd
}

// releasable says why an address is not for a person to release, if the API
// server alone says so.
func releasable(w report.Who) error {
	if len(w.Holders) == 0 && len(w.Silent) > 0 {
		return fmt.Errorf("%s may be held on a node that does not answer (%s): look at its agent first", w.Address, few.Join(w.Silent, ", "))
	}
	if len(w.Holders) == 0 {
		return fmt.Errorf("%s is held by no pod: %s; there is nothing to release", w.Address, w.What)
	}
	if len(w.Holders) > 1 {
		return fmt.Errorf("%s has several holders: ropeway ipam check names them; delete the pods", w.Address)
	}
	for _, p := range w.Pods {
		if p.State == "is there" && p.Node == w.Holders[0].Node {
			return fmt.Errorf("%s is not released: pod %s/%s on node %s has it: delete the pod", w.Address, p.Namespace, p.Name, p.Node)
		}
	}
	return nil
}

// askAgent asks a node's agent, by its own socket, to change something.
func askAgent(ctx context.Context, agents *kube.Agents, node, path string, request any) (agent.AdminAnswer, error) {
	var answer agent.AdminAnswer
	text, err := json.Marshal(request)
	if err != nil {
		return answer, fmt.Errorf("write the request: %w", err)
	}
	out, err := agents.Run(ctx, node, strings.NewReader(string(text)), "/usr/bin/ropeway", "ask-agent", path)
	if err != nil {
		return answer, err
	}
	if err := json.Unmarshal(out, &answer); err != nil {
		return answer, fmt.Errorf("read the answer of node %s's agent (is it of another version?): %w", node, err)
	}
	return answer, nil
}

// newAskAgent is what runs in the agent's container.
func newAskAgent() *cobra.Command {
	c := agent.Config{}
	c.Defaults()
	cmd := &cobra.Command{
		Use:    "ask-agent PATH",
		Short:  "Send standard input to this node's agent, and print its answer (ropeway ipam and migrate run it)",
		Hidden: true,
		Args:   cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if !strings.HasPrefix(args[0], "/") {
				return errors.New("the path begins with a slash, like " + agent.PathRelease)
			}
			answer, err := agent.Ask(cmd.Context(), c.RunDir, args[0], cmd.InOrStdin())
			if err != nil {
				return err
			}
			_, err = cmd.OutOrStdout().Write(answer)
			return err
		},
	}
	cmd.Flags().StringVar(&c.RunDir, "run-dir", c.RunDir, "where the agent's socket is")
	return cmd
}

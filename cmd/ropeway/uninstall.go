package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"ropeway.dev/ropeway/internal/few"
	"ropeway.dev/ropeway/internal/install"
)

// uninstallCommand is `ropeway uninstall`.
type uninstallCommand struct {
	env                     environment
	g                       *global
	image                   string
	yes, abandon, cleanOnly bool
	deletePools             bool
	timeout                 time.Duration
}

const uninstallLong = `Ends the agents and controllers, takes Ropeway off every node (conflist, plugins,
links, routes, rules, BPF programs; files that were taken over are put back), and
deletes its objects and CRDs. Pods that run lose their network for good, and the
kubelet cannot end them before a pod network is installed again: drain first, or
delete them afterwards. It can be run again after a failure.`

func newUninstall(env environment, g *global) *cobra.Command {
	c := &uninstallCommand{env: env, g: g}
	cmd := &cobra.Command{
		Use: "uninstall", Short: "Remove Ropeway from a cluster and from its nodes",
		Long: uninstallLong, Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return c.run(cmd.Context()) },
	}
	f := cmd.Flags()
	f.BoolVarP(&c.yes, "yes", "y", false, "do not ask")
	f.BoolVar(&c.deletePools, "delete-pools", false, "address pools (AddressPool, SpiderIPPool, SpiderReservedIP) may go with their CRDs; --yes alone deletes none")
	f.BoolVar(&c.abandon, "abandon-lost-nodes", false, "go on although the kubelet of some nodes does not answer; they are left as they are")
	f.BoolVar(&c.cleanOnly, "clean-nodes", false, "clean the nodes also when no object of Ropeway's is in the cluster")
	f.StringVar(&c.image, "image", install.DefaultImage+":"+version, "image that cleans the nodes, if the agents' is not to be seen any more")
	f.DurationVar(&c.timeout, "timeout", 5*time.Minute, "how long to wait")
	return cmd
}

func (c *uninstallCommand) run(ctx context.Context) error {
	cluster, err := c.g.connect(c.env.stderr)
	if err != nil {
		return err
	}
	looking, cancel := context.WithTimeout(ctx, c.timeout)
	defer cancel()
	removal, err := install.PlanRemoval(looking, cluster, c.image)
	if err != nil {
		return err
	}
	if len(removal.Found) == 0 && !c.cleanOnly {
		fmt.Fprintln(c.env.stdout, "Ropeway is not installed on this cluster (--clean-nodes cleans the nodes all the same)")
		return nil
	}
	if err := c.confirm(ctx, removal); err != nil {
		return err
	}
	// From here: a person may take long to answer.
	ctx, cancel = context.WithTimeout(ctx, c.timeout)
	defer cancel()
	say := elapsed(c.env.stdout)
	if err := install.Uninstall(ctx, cluster, removal, c.abandon, say); err != nil {
		return err
	}
	say("Ropeway is uninstalled: nothing of it is left in the cluster or on %d nodes", len(removal.Nodes))
	if removal.Pods > 0 {
		say("%d pods ran on its network and have none now: delete them once a pod network is installed again", removal.Pods)
	}
	return nil
}

// confirm says what will go, and asks unless told not to.
func (c *uninstallCommand) confirm(ctx context.Context, r *install.Removal) error {
	fmt.Fprintf(c.env.stdout, "This removes Ropeway from %d nodes and %d objects from the cluster. %d running pods use the pod network and lose it.\n",
		len(r.Nodes), len(r.Found), r.Pods)
	if len(r.Pools) > 0 {
		fmt.Fprintf(c.env.stdout, "%d address pools go with their CRDs: %s. To keep them: kubectl get addresspools,spiderippools,spiderreservedips -o yaml\n", len(r.Pools), few.Join(r.Pools, ", "))
	}
	if c.yes && len(r.Pools) > 0 && !c.deletePools {
		return errors.New("nothing was done: say --delete-pools beside --yes, or delete the pools before")
	}
	if c.yes {
		return nil
	}
	if !c.env.terminal {
		return errors.New("nothing was done: say --yes, since nobody can be asked here")
	}
	fmt.Fprint(c.env.stdout, "Go on? [y/N] ")
	answer, err := c.answer(ctx)
	if err != nil {
		return fmt.Errorf("nothing was done: read the answer: %w", err)
	}
	if answer = strings.ToLower(strings.TrimSpace(answer)); answer != "y" && answer != "yes" {
		return errors.New("nothing was done")
	}
	return nil
}

// answer reads a line, or stops at the context's end (Ctrl-C). The read itself
// cannot be ended: it is left behind, and ends with the process.
func (c *uninstallCommand) answer(ctx context.Context) (string, error) {
	type line struct {
		text string
		err  error
	}
	read := make(chan line, 1)
	go func() {
		text, err := bufio.NewReader(c.env.stdin).ReadString('\n')
		read <- line{text, err}
	}()
	select {
	case <-ctx.Done():
		return "", ctx.Err()
	case l := <-read:
		return l.text, l.err
	}
}

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	"ropeway.dev/ropeway/internal/lab"
	"ropeway.dev/ropeway/internal/lab/product"
)

func newUp(g *global) *cobra.Command {
	o := lab.DefaultOptions()
	var family, fabric, podCIDR, serviceCIDR string
	cmd := &cobra.Command{
		Use:   "up",
		Short: "Boot a lab",
		Example: "  ropeway-lab up\n  ropeway-lab up --nodes 4 --ip-family dual\n" +
			"  ropeway-lab up --name other --bare --allocate-node-cidrs=false",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) (err error) {
			o.Name, o.Cache, o.Family = g.name, g.cache, lab.Family(family)
			o.Fabric = lab.Fabric(fabric)
			if o.PodCIDRs, err = lab.ParseCIDRs("--pod-cidr", podCIDR); err != nil {
				return err
			}
			if o.ServiceCIDRs, err = lab.ParseCIDRs("--service-cidr", serviceCIDR); err != nil {
				return err
			}
			o.Progress = elapsed(cmd.OutOrStdout(), time.Now)
			ropeway, err := g.ropeway(o.Progress)
			if err != nil {
				return err
			}
			err = o.Validate()
			if err == nil && !o.Bare && !o.TestNetwork {
				err = ropeway.Validate()
			}
			if err != nil {
				return err
			}
			o.Install = product.Installer(ropeway)
			l, err := lab.Up(cmd.Context(), o)
			if err != nil {
				return err
			}
			o.Progress(fmt.Sprintf("lab %q is up; try: ropeway-lab --name %s kubectl get nodes", l.Name(), l.Name()))
			return nil
		},
	}
	f := cmd.Flags()
	f.IntVar(&o.Nodes, "nodes", o.Nodes, "number of nodes, 2 to 8")
	f.StringVar(&podCIDR, "pod-cidr", "", "pod network, one prefix for each family separated by a comma (default 10.244.0.0/16, fd00:10:244::/48)")
	f.StringVar(&serviceCIDR, "service-cidr", "", "addresses of Services, likewise (default 172.21.0.0/16, fd00:10:21::/112)")
	f.StringVar(&family, "ip-family", string(o.Family), "ipv4, ipv6 or dual")
	f.StringVar(&fabric, "fabric", string(o.Fabric), "vpc (as the cloud's, with the cloud) or switch (a layer-2 network without one)")
	f.BoolVar(&o.AllocateNodeCIDRs, "allocate-node-cidrs", o.AllocateNodeCIDRs, "let the controller-manager give each node podCIDRs")
	f.StringVar(&o.CloudProvider, "cloud-provider", "", "external: kubelets wait for a cloud controller, and Ropeway is installed as one")
	f.StringVar(&o.ProxyMode, "proxy-mode", o.ProxyMode, "mode of kube-proxy: nftables or iptables")
	f.BoolVar(&o.Bare, "bare", false, "install no pod network")
	f.BoolVar(&o.KeepOnFailure, "keep-on-failure", false, "when it fails, leave everything in place to look at")
	f.BoolVar(&o.TestNetwork, "test-network", false, "install the reference plugins ptp and host-local as the pod network")
	if err := f.MarkHidden("test-network"); err != nil {
		panic(err) // The flag is defined one line above.
	}
	return cmd
}

// elapsed returns a progress printer that heads each line with the time since
// its making.
func elapsed(w io.Writer, now func() time.Time) func(string) {
	began := now()
	return func(line string) {
		fmt.Fprintf(w, "%7.1fs  %s\n", now().Sub(began).Seconds(), line)
	}
}

func newDown(g *global) *cobra.Command {
	return &cobra.Command{
		Use:   "down",
		Short: "Take a lab down and leave nothing of it",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			began := time.Now()
			ctx, cancel := context.WithTimeout(cmd.Context(), downLimit)
			defer cancel()
			err := lab.Down(ctx, g.name)
			if errors.Is(err, lab.ErrNotFound) {
				fmt.Fprintf(cmd.OutOrStdout(), "there is no lab %q; nothing to take down\n", g.name)
				return nil
			}
			if err != nil {
				return err
			}
			fmt.Fprintf(cmd.OutOrStdout(), "lab %q is down (%.1fs)\n", g.name, time.Since(began).Seconds())
			return nil
		},
	}
}

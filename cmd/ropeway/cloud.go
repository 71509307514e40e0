package main

import (
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"ropeway.dev/ropeway/internal/cloud"
	"ropeway.dev/ropeway/internal/cloud/alibaba"
)

func newCloud() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "cloud",
		Short: "What the cloud has to allow",
		Args:  cobra.NoArgs,
		RunE:  func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(newCloudPolicy())
	return cmd
}

func newCloudPolicy() *cobra.Command {
	d := cloud.Duties{Routes: true, Nodes: true}
	cmd := &cobra.Command{
		Use:   "policy",
		Short: "Print the least RAM policy for the controller's role or user",
		Long: `Prints the least RAM policy of Alibaba Cloud with which the controller can do
its work, as the console takes it. Leave out what another program does
(spec.cloud.routes, spec.cloud.nodes).`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if d == (cloud.Duties{}) {
				return errors.New("--routes=false and --nodes=false leave nothing to allow")
			}
			_, err := fmt.Fprintln(cmd.OutOrStdout(), alibaba.Policy(d))
			return err
		},
	}
	cmd.Flags().BoolVar(&d.Routes, "routes", true, "the controller publishes routes")
	cmd.Flags().BoolVar(&d.Nodes, "nodes", true, "the controller looks after the nodes' instances")
	return cmd
}

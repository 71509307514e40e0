package main

import (
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"ropeway.dev/ropeway/api/v1alpha1"
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
	routes, nodes := whoDoes(v1alpha1.DutyRopeway), whoDoes(v1alpha1.DutyRopeway)
	cmd := &cobra.Command{
		Use:   "policy",
		Short: "Print the least RAM policy for the controller's role or user",
		Long: `Prints the least RAM policy of Alibaba Cloud with which the controller can do
its work, as the console takes it. Say what spec.cloud says: routes that another
program publishes (external) are still looked at.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			d := cloud.Duties{Check: routes.is(v1alpha1.DutyExternal), Routes: routes.is(v1alpha1.DutyRopeway), Nodes: nodes.is(v1alpha1.DutyRopeway)}
			if d == (cloud.Duties{}) {
				return fmt.Errorf("--routes %s and --nodes %s leave nothing to allow", &routes, &nodes)
			}
			_, err := fmt.Fprintln(cmd.OutOrStdout(), alibaba.Policy(d))
			return err
		},
	}
	for name, flag := range map[string]*whoDoes{"routes": &routes, "nodes": &nodes} {
		cmd.Flags().Var(flag, name, "as spec.cloud."+name+" says it: ropeway, external, off")
	}
	return cmd
}

// whoDoes is a flag that says who does a part of the cloud's work.
type whoDoes v1alpha1.CloudDuty

func (w *whoDoes) is(d v1alpha1.CloudDuty) bool { return v1alpha1.CloudDuty(*w) == d }

// String is pflag's.
func (w *whoDoes) String() string { return string(*w) }

// Type is pflag's.
func (w *whoDoes) Type() string { return "who" }

// Set is pflag's. Earlier releases took true and false.
func (w *whoDoes) Set(text string) error {
	switch d := v1alpha1.CloudDuty(text); {
	case text == "true":
		*w = whoDoes(v1alpha1.DutyRopeway)
	case text == "false":
		*w = whoDoes(v1alpha1.DutyExternal)
	case d == v1alpha1.DutyRopeway || d == v1alpha1.DutyExternal || d == v1alpha1.DutyOff:
		*w = whoDoes(d)
	default:
		return errors.New("give ropeway, external or off, as in spec.cloud of the ClusterNetwork")
	}
	return nil
}

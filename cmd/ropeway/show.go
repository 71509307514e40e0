package main

import (
	"context"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	"ropeway.dev/ropeway/internal/install"
	"ropeway.dev/ropeway/internal/install/report"
	"ropeway.dev/ropeway/internal/kube"
)

// readLimit bounds what only reads the cluster.
const readLimit = 30 * time.Second

func outputFlag(cmd *cobra.Command) *string {
	return cmd.Flags().StringP("output", "o", "", "json, yaml, wide; a table if empty")
}

func (g *global) view(ctx context.Context) (*kube.Objects, error) {
	ctx, cancel := context.WithTimeout(ctx, readLimit)
	defer cancel()
	cfg, err := kube.RESTConfig(g.kubeconfig, g.context)
	if err != nil {
		return nil, err
	}
	view, err := kube.ClusterView(ctx, cfg)
	if err != nil {
		return nil, fmt.Errorf("%w (is Ropeway installed? ropeway doctor says)", err)
	}
	return &view.Objects, nil
}

func newStatus(g *global) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "status [NODE...]",
		Short: "Show each node's part: addresses, CIDRs, pods, transports, problems",
	}
	output := outputFlag(cmd)
	cmd.RunE = func(cmd *cobra.Command, nodes []string) error {
		format, err := report.ParseFormat(*output)
		if err != nil {
			return err
		}
		view, err := g.view(cmd.Context())
		if err != nil {
			return err
		}
		s, err := report.StatusOf(view, nodes)
		if err != nil {
			return err
		}
		return report.Write(cmd.OutOrStdout(), format, s, s.Table)
	}
	return cmd
}

func newPlan(g *global) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "plan",
		Short: "Show who owns which CIDR, how each node reaches it and why, and what would change",
		Example: `  ropeway plan --node cn-chengdu.i-2vcxxr
  ropeway plan --transports vxlan   # what this would change`,
		Args: cobra.NoArgs,
	}
	nodes := cmd.Flags().StringSlice("node", nil, "show this node's only; can be repeated")
	transports := cmd.Flags().StringSlice("transports", nil, "suppose that these are allowed, and show what would change")
	output := outputFlag(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		format, err := report.ParseFormat(*output)
		if err != nil {
			return err
		}
		view, err := g.view(cmd.Context())
		if err != nil {
			return err
		}
		p, err := report.PlanOf(view, *nodes, report.WhatIf{Transports: *transports})
		if err != nil {
			return err
		}
		return report.Write(cmd.OutOrStdout(), format, p, p.Table)
	}
	return cmd
}

func newDoctor(env environment, g *global) *cobra.Command {
	look := doctorCloud{keys: env.cloud}
	cmd := &cobra.Command{
		Use:   "doctor",
		Short: "Say what is wrong, where, and what to do; exit code 1 if anything is",
		Long: "Say what is wrong, where, and what to do; exit code 1 if anything is. It changes nothing. In a cluster without Ropeway it looks\n" +
			"at what is there: other pod networks, a vendor's route controller, and, with --cloud, the cloud's own side.",
		Args: cobra.NoArgs,
	}
	look.flags(cmd)
	output := outputFlag(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		format, err := report.ParseFormat(*output)
		if err != nil {
			return err
		}
		if err := look.check(); err != nil {
			return err
		}
		d, err := g.diagnose(cmd, &look)
		if err != nil {
			return err
		}
		return writeJudged(cmd.OutOrStdout(), format, d)
	}
	return cmd
}

// table is what a report is, beside data.
type table interface {
	Table(w io.Writer, wide bool) error
}

// judged is a report that may say that something is wrong.
type judged interface {
	table
	Failed() bool
}

// writeJudged writes a report; its error ends the command with code 1 if
// something is wrong.
func writeJudged(w io.Writer, format report.Format, j judged) error {
	if err := report.Write(w, format, j, j.Table); err != nil {
		return err
	}
	if j.Failed() {
		return errSaid
	}
	return nil
}

func (g *global) diagnose(cmd *cobra.Command, look *doctorCloud) (report.Diagnosis, error) {
	ctx, cancel := context.WithTimeout(cmd.Context(), readLimit)
	defer cancel()
	cluster, err := g.connect(cmd.ErrOrStderr())
	if err != nil {
		return report.Diagnosis{}, err
	}
	survey, err := install.Look(ctx, cluster)
	if err != nil {
		return report.Diagnosis{}, err
	}
	inCloud, stop := context.WithTimeout(ctx, readLimit/2) // the rest is for the cluster
	defer stop()
	seen, cloudErr := look.look(inCloud, survey)
	if len(survey.OwnCRDs) == 0 && len(survey.Pods) == 0 {
		d := report.Elsewhere(survey, seen)
		d.CloudFailed(cloudErr)
		return d, nil
	}
	var view *kube.Objects
	if len(survey.OwnCRDs) > 0 {
		if view, err = g.view(ctx); err != nil && len(survey.MissingCRDs()) == 0 {
			return report.Diagnosis{}, err
		}
	}
	d := report.Doctor(survey, view)
	if seen != nil {
		d.Surroundings(seen)
	}
	d.CloudFailed(cloudErr)
	return d, nil
}

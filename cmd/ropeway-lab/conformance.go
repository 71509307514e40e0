package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	"ropeway.dev/ropeway/internal/lab"
	"ropeway.dev/ropeway/internal/lab/conformance"
	"ropeway.dev/ropeway/internal/lab/product"
)

// conformanceLab is the lab that is booted for the specs, unless --name says another.
const conformanceLab = "conformance"

func newConformance(g *global) *cobra.Command {
	var o conformance.Options
	cmd := &cobra.Command{
		Use:   "conformance",
		Short: "Play Kubernetes' own end-to-end specs on a lab",
		Long: "conformance plays specs of the upstream test binary: on the lab of --name if it is up, else on one that it\n" +
			"boots and takes down. Without --focus: the pod network, and Services upon it.",
		Example: "  ropeway-lab conformance\n  ropeway-lab conformance --focus 'Granular Checks: Pods'",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if !cmd.Flags().Changed("name") {
				g.name = conformanceLab
			}
			o.Cache, o.Out, o.Progress = g.cache, cmd.OutOrStdout(), elapsed(cmd.OutOrStdout(), time.Now)
			if err := o.Validate(); err != nil {
				return err
			}
			return playSpecs(cmd.Context(), g, o, cmd.OutOrStdout())
		},
	}
	cmd.Flags().StringVar(&o.Focus, "focus", "", "regular expression of the names of the specs")
	cmd.Flags().IntVar(&o.Processes, "processes", 0, "specs at a time (default 4)")
	return cmd
}

// playSpecs plays on the lab that is up, or on one for the occasion.
func playSpecs(ctx context.Context, g *global, o conformance.Options, out io.Writer) (err error) {
	programs, err := o.Prepare(ctx)
	if err != nil {
		return err
	}
	l, err := lab.Open(g.name)
	if err == nil {
		return o.Run(ctx, l, programs)
	}
	if !errors.Is(err, lab.ErrNotFound) {
		return err
	}
	options := lab.DefaultOptions()
	options.Name, options.Cache, options.Progress = g.name, g.cache, o.Progress
	ropeway, err := g.ropeway(o.Progress)
	if err != nil {
		return err
	}
	options.Install = product.Installer(ropeway)
	if l, err = lab.Up(ctx, options); err != nil {
		return err
	}
	began := time.Now()
	defer func() {
		err = errors.Join(err, takeDown(ctx, l, out, err != nil))
		fmt.Fprintf(out, "conformance: %s in %.0fs\n", outcome(err), time.Since(began).Seconds())
	}()
	return o.Run(ctx, l, programs)
}

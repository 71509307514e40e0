package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"ropeway.dev/ropeway/internal/lab"
	"ropeway.dev/ropeway/internal/lab/product"
	"ropeway.dev/ropeway/internal/lab/scenario"
)

// version is set by the linker.
var version = "v0.1.0-dev"

// downLimit bounds taking the lab down after a Ctrl-C.
const downLimit = 2 * time.Minute

// demoScenarios are what `demo` plays, in order: the reference scenario's
// "install", "tunnel mode", "non-tunnel mode, host-local" and "pools" rows. The
// document's files are for IPv4; with IPv6 the tunnel mode is played, and what
// Kubernetes needs upon it. Protocol 41 is not spoken: with IPv6 alone there is no
// IP in IP.
func demoScenarios(f lab.Family) []string {
	switch f {
	case lab.IPv6:
		return []string{"install", "tunnel-vxlan", "services", "chained"}
	case lab.Dual:
		return []string{"install", "tunnel-ipip", "tunnel-vxlan", "services", "chained"}
	}
	return []string{"install", "tunnel-ipip", "tunnel-vxlan", "routed-host-local", "routed-pools"}
}

func newDemo(g *global) *cobra.Command {
	var keep bool
	var family string
	cmd := &cobra.Command{
		Use:     "demo",
		Short:   "Boot a lab, install Ropeway, play the reference scenario, take all down",
		Example: "  ropeway-lab demo\n  ropeway-lab demo --ip-family dual",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			o := lab.DefaultOptions()
			o.Family = lab.Family(family)
			o.Name, o.Cache, o.Progress = g.name, g.cache, elapsed(cmd.OutOrStdout(), time.Now)
			if err := o.Validate(); err != nil {
				return err
			}
			return demo(cmd.Context(), g, o, cmd.OutOrStdout(), keep)
		},
	}
	cmd.Flags().BoolVar(&keep, "keep", false, "leave the lab up afterwards")
	cmd.Flags().StringVar(&family, "ip-family", string(lab.IPv4), "ipv4, ipv6 or dual")
	return cmd
}

// demo boots, plays and takes down; whatever happens in between, the lab goes.
func demo(ctx context.Context, g *global, o lab.Options, out io.Writer, keep bool) (err error) {
	began := time.Now()
	ropeway, err := g.ropeway(o.Progress)
	if err != nil {
		return err
	}
	if err := ropeway.Validate(); err != nil {
		return err
	}
	o.Install = product.Installer(ropeway)
	l, err := lab.Up(ctx, o)
	if err != nil {
		return err
	}
	defer func() {
		if keep {
			fmt.Fprintf(out, "\nthe lab stays up; take it down with: ropeway-lab --name %s down\n", g.name)
			return
		}
		err = errors.Join(err, takeDown(ctx, l, out, err != nil))
		fmt.Fprintf(out, "demo: %s in %.0fs\n", outcome(err), time.Since(began).Seconds())
	}()
	report := scenario.NewReport(out)
	var stopped error
	for _, name := range demoScenarios(o.Family) {
		s, err := scenario.Find(name)
		if err != nil {
			return err
		}
		report.Title(s.Name + ": " + s.Doc)
		if stopped = s.Run(ctx, scenario.Bed{Lab: l, Product: ropeway}, report); stopped != nil {
			break
		}
	}
	return errors.Join(stopped, report.Summary())
}

// takeDown takes the lab down, also when the context has ended by Ctrl-C. The
// logs of a failed run are kept beside, and named.
func takeDown(ctx context.Context, l *lab.Lab, out io.Writer, failed bool) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), downLimit)
	defer cancel()
	if failed {
		if kept, err := l.KeepLogs(ctx); err == nil {
			fmt.Fprintf(out, "the logs are in %s\n", kept)
		} else {
			fmt.Fprintf(out, "the logs could not be kept: %v\n", err)
		}
	}
	if err := l.Down(ctx); err != nil {
		return err
	}
	fmt.Fprintf(out, "the lab is down; nothing of it is left\n")
	return nil
}

func outcome(err error) string {
	if err != nil {
		return "FAILED"
	}
	return "all passed"
}

// ropeway is the product as `up` and `demo` put it on a lab: the program beside
// this one, in an image built from this checkout.
func (g *global) ropeway(progress func(string)) (product.Config, error) {
	self, err := os.Executable()
	if err != nil {
		return product.Config{}, fmt.Errorf("find this program: %w", err)
	}
	return product.Config{
		Program:  filepath.Join(filepath.Dir(self), "ropeway"),
		Version:  version,
		Cache:    filepath.Join(g.cache, "image"),
		Progress: progress,
	}, nil
}

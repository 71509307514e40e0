package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/spf13/cobra"

	"ropeway.dev/ropeway/internal/controller/routes"
	"ropeway.dev/ropeway/internal/install/report"
	"ropeway.dev/ropeway/internal/kube"
)

func newRoutes(g *global) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "routes",
		Short: "Show each destination: its entry in the cloud's route tables, and its transport and why",
		Args:  cobra.NoArgs,
	}
	from := cmd.Flags().String("node", "", "show the transports as this node has them (default: the first)")
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
		status, err := g.cloudRoutes(cmd.Context())
		if err != nil {
			fmt.Fprintf(cmd.ErrOrStderr(), "! what the cloud has is not known: %v\n", err)
		}
		r, err := report.RoutesOf(view, status, *from)
		if err != nil {
			return err
		}
		return report.Write(cmd.OutOrStdout(), format, r, r.Table)
	}
	cmd.AddCommand(newRoutesMark(g, "adopt", "Take entries that others made, and that are right, for this cluster's own",
		routes.AdoptAnnotation, routes.ReleaseAnnotation),
		newRoutesMark(g, "release", "Let entries of this cluster go: they stay, and nobody here withdraws them",
			routes.ReleaseAnnotation, routes.AdoptAnnotation),
		newRoutesWithdraw(g), newRoutesConfirm(g))
	return cmd
}

// cloudRoutes asks the leading controller. nil without an error means that it
// has nothing to say.
func (g *global) cloudRoutes(ctx context.Context) (*routes.Status, error) {
	ctx, cancel := context.WithTimeout(ctx, readLimit)
	defer cancel()
	cfg, err := kube.RESTConfig(g.kubeconfig, g.context)
	if err != nil {
		return nil, err
	}
	text, err := kube.AskController(ctx, cfg, "v1/routes")
	if err != nil {
		return nil, err
	}
	var s routes.Status
	if err := json.Unmarshal(text, &s); err != nil {
		return nil, fmt.Errorf("read the controller's answer (is it of another version?): %w", err)
	}
	return &s, nil
}

// newRoutesMark makes adopt and release: each puts destinations into its own
// annotation and takes them out of the other's. Where that says all, it goes on to,
// but for those that are named here.
func newRoutesMark(g *global, name, short, own, other string) *cobra.Command {
	cmd := &cobra.Command{Use: name + " (CIDR... | --all)", Short: short}
	all := cmd.Flags().Bool("all", false, "all that there are, and that will be")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		chosen := routes.Selection{All: *all}
		for _, text := range args {
			p, err := netip.ParsePrefix(text)
			if err != nil {
				return fmt.Errorf("%q is not a CIDR such as 10.244.1.0/24", text)
			}
			chosen.Dsts = append(chosen.Dsts, p.Masked())
		}
		if !chosen.All && len(chosen.Dsts) == 0 {
			return errors.New("name the destinations, or give --all")
		}
		err := g.annotate(cmd.Context(), func(a map[string]string) {
			put(a, own, plus(routes.ParseSelection(a[own]), chosen))
			put(a, other, minus(routes.ParseSelection(a[other]), chosen))
		})
		if err == nil {
			fmt.Fprintf(cmd.OutOrStdout(), "the controller will %s: %s; ropeway routes -o wide shows the owners\n", name, chosen)
		}
		return err
	}
	return cmd
}

func plus(a, b routes.Selection) routes.Selection {
	a.All = a.All || b.All
	for _, d := range b.Dsts {
		if !a.Names(d) {
			a.Dsts = append(a.Dsts, d)
		}
	}
	return a
}

func minus(a, b routes.Selection) routes.Selection {
	if b.All {
		return routes.Selection{}
	}
	a.Dsts = slices.DeleteFunc(a.Dsts, b.Names)
	return a
}

// put writes a selection; an empty one takes the annotation away.
func put(annotations map[string]string, key string, s routes.Selection) {
	if text := s.String(); text != "" {
		annotations[key] = text
	} else {
		delete(annotations, key)
	}
}

// newRoutesWithdraw only asks: the controller looks whether anybody needs the
// routes, and wants a second word before it removes the first.
func newRoutesWithdraw(g *global) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "withdraw",
		Short: "Ask for the removal of this cluster's entries, once the configuration needs none",
		Long: "Ask for the removal of this cluster's entries from the cloud's route tables. Nothing happens while spec.transports\n" +
			"allows direct or a node still uses it. The controller then names a token, and removes the entries after\n" +
			"ropeway routes confirm TOKEN. Entries that others made stay.",
		Args: cobra.NoArgs,
	}
	cancel := cmd.Flags().Bool("cancel", false, "take the request back")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		err := g.annotate(cmd.Context(), func(a map[string]string) {
			delete(a, routes.ConfirmAnnotation) // the word for another request
			if *cancel {
				delete(a, routes.WithdrawAnnotation)
			} else {
				a[routes.WithdrawAnnotation] = "requested"
			}
		})
		if err == nil && *cancel {
			fmt.Fprintln(cmd.OutOrStdout(), "taken back: entries stay")
		} else if err == nil {
			fmt.Fprintln(cmd.OutOrStdout(), "asked for; within some minutes ropeway routes says what stands in the way, or names the token for ropeway routes confirm")
		}
		return err
	}
	return cmd
}

func newRoutesConfirm(g *global) *cobra.Command {
	return &cobra.Command{
		Use:   "confirm TOKEN",
		Short: "Say that a withdrawal of many routes at once is meant; the condition RoutesWithheld names the token",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			status, err := g.cloudRoutes(cmd.Context())
			if err != nil {
				return fmt.Errorf("see what waits for a word: %w", err)
			}
			if err := confirms(status, args[0]); err != nil {
				return err
			}
			if err := g.annotate(cmd.Context(), func(a map[string]string) { a[routes.ConfirmAnnotation] = args[0] }); err != nil {
				return err
			}
			fmt.Fprintf(cmd.OutOrStdout(), "said: the controller withdraws or changes %d routes within some minutes, and nothing that comes to it later; ropeway routes shows how far it is\n",
				status.Withheld)
			return nil
		},
	}
}

// confirms says whether a token is the word that the controller waits for.
func confirms(s *routes.Status, token string) error {
	switch {
	case s == nil || s.Withheld == 0:
		return fmt.Errorf("nothing waits for a word, so %s confirms nothing: see ropeway routes", token)
	case s.Token != token:
		return fmt.Errorf("%s is not the token of what waits now, which is %s (%d routes): see ropeway routes whether those are meant", token, s.Token, s.Withheld)
	}
	return nil
}

func (g *global) annotate(ctx context.Context, edit func(map[string]string)) error {
	ctx, cancel := context.WithTimeout(ctx, readLimit)
	defer cancel()
	cfg, err := kube.RESTConfig(g.kubeconfig, g.context)
	if err != nil {
		return err
	}
	return kube.EditAnnotations(ctx, cfg, edit)
}

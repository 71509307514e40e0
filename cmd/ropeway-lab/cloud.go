package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"ropeway.dev/ropeway/internal/lab/openapi"
)

func newCloud(g *global) *cobra.Command {
	var format string
	cmd := &cobra.Command{
		Use:   "cloud",
		Short: "Look at the lab's cloud, change it by hand, and let things go wrong in it",
		Long: "Each lab has a cloud with the API of Alibaba Cloud (Vpc 2016-04-28, Ecs 2014-05-26) in front of its VPC, and\n" +
			"the instances' metadata service at 100.100.100.200. Without a further word, `cloud` shows it.",
		Example: "  ropeway-lab cloud\n" +
			"  ropeway-lab cloud call vpc DeleteRouteEntry RouteTableId=vtb-2vclab DestinationCidrBlock=10.244.1.0/24\n" +
			"  ropeway-lab cloud set delay=5s quota=3\n" +
			"  ropeway-lab cloud fault --kind error --action 'CreateRoute*' --code Throttling.User --times 3",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			snap, endpoint, err := g.cloudSnapshot(cmd.Context())
			if err != nil {
				return err
			}
			if format == "json" {
				return printJSON(cmd.OutOrStdout(), snap)
			}
			if format != "" {
				return fmt.Errorf("-o %q: give json, or leave it out", format)
			}
			return printCloud(cmd.OutOrStdout(), snap, endpoint)
		},
	}
	cmd.Flags().StringVarP(&format, "output", "o", "", "json, or tables when left out")
	cmd.AddCommand(newCloudCall(g), newCloudSet(g), newCloudFault(g), newCloudCalls(g), newCloudCredentials(g))
	return cmd
}

func (g *global) cloud() (*openapi.Client, error) {
	l, err := g.open()
	if err != nil {
		return nil, err
	}
	return l.Cloud()
}

func (g *global) cloudSnapshot(ctx context.Context) (openapi.Snapshot, string, error) {
	l, err := g.open()
	if err != nil {
		return openapi.Snapshot{}, "", err
	}
	client, err := l.Cloud()
	if err != nil {
		return openapi.Snapshot{}, "", err
	}
	snap, err := client.Snapshot(ctx)
	return snap, l.CloudEndpoint(), err
}

func printJSON(w io.Writer, value any) error {
	encoder := json.NewEncoder(w)
	encoder.SetIndent("", "  ")
	return encoder.Encode(value)
}

func printCloud(w io.Writer, s openapi.Snapshot, endpoint string) error {
	fmt.Fprintf(w, "endpoint  http://%s (region %s, VPC %s)\n", endpoint, s.Spec.Region, s.Spec.VPC)
	fmt.Fprintf(w, "settings  delay %s, latency %s, quota %d\n\n", s.Settings.Delay, s.Settings.Latency, s.Settings.Quota)
	table := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(table, "TABLE\tDESTINATION\tNEXT HOP\tSTATUS\tDESCRIPTION")
	for _, t := range s.Tables {
		if !slices.ContainsFunc(s.Entries, func(e openapi.Entry) bool { return e.Table == t.ID }) {
			fmt.Fprintf(table, "%s\t(no custom entry)\t\t\t\n", t.ID)
		}
	}
	for _, e := range s.Entries {
		fmt.Fprintf(table, "%s\t%s\t%s\t%s\t%s\n", e.Table, e.Dst, e.NextHop, e.Status, e.Description)
	}
	fmt.Fprintln(table, "\t\t\t\t\nINSTANCE\tHOST\tSTATUS\tINTERFACE\tSOURCE CHECK")
	for _, in := range s.Instances {
		fmt.Fprintf(table, "%s\t%s\t%s\t%s\t%t\n", in.ID, in.Host, in.Status, in.Interface, in.SourceDestCheck)
	}
	fmt.Fprintln(table, "\t\t\t\t\nRULE\tPROTOCOL\tPORTS\tSOURCE\tPOLICY")
	for _, r := range s.Rules {
		fmt.Fprintf(table, "%s\t%s\t%s\t%s\t%s\n", r.ID, r.Protocol, r.Ports, r.Source, r.Policy)
	}
	if err := table.Flush(); err != nil {
		return fmt.Errorf("print the cloud: %w", err)
	}
	for _, f := range s.Faults {
		fmt.Fprintf(w, "fault %d: %s on %s, %s, hit %d times\n", f.ID, f.Kind, cmpOr(f.Action, "all actions"), cmpOr(f.Code, "no code"), f.Hits)
	}
	return nil
}

func cmpOr(text, otherwise string) string {
	if text == "" {
		return otherwise
	}
	return text
}

// apiVersions are the products' versions: name -> version.
func apiVersions() map[string]string {
	return map[string]string{"vpc": "2016-04-28", "ecs": "2014-05-26", "sts": "2015-04-01"}
}

func newCloudCall(g *global) *cobra.Command {
	return &cobra.Command{
		Use:   "call PRODUCT ACTION [NAME=VALUE...]",
		Short: "Do any action of the API (vpc, ecs) as a person at the console would",
		Args:  cobra.MinimumNArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			version, found := apiVersions()[args[0]]
			if !found {
				return fmt.Errorf("product %q: give vpc, ecs or sts", args[0])
			}
			parameters := map[string]string{}
			for _, arg := range args[2:] {
				name, value, found := strings.Cut(arg, "=")
				if !found {
					return fmt.Errorf("parameter %q: give NAME=VALUE", arg)
				}
				parameters[name] = value
			}
			client, err := g.cloud()
			if err != nil {
				return err
			}
			out, err := client.Call(cmd.Context(), version, args[1], parameters)
			if err != nil {
				return err
			}
			return printJSON(cmd.OutOrStdout(), json.RawMessage(out))
		},
	}
}

// settingNames are what `cloud set` takes: name -> what it does with a value.
func settingNames() map[string]func(*openapi.Settings, string) error {
	flag := func(at func(*openapi.Settings) *bool) func(*openapi.Settings, string) error {
		return func(s *openapi.Settings, value string) (err error) {
			*at(s), err = strconv.ParseBool(value)
			return err
		}
	}
	span := func(at func(*openapi.Settings) *openapi.Duration) func(*openapi.Settings, string) error {
		return func(s *openapi.Settings, value string) error { return at(s).UnmarshalText([]byte(value)) }
	}
	return map[string]func(*openapi.Settings, string) error{
		"delay":           span(func(s *openapi.Settings) *openapi.Duration { return &s.Delay }),
		"latency":         span(func(s *openapi.Settings) *openapi.Duration { return &s.Latency }),
		"credential-life": span(func(s *openapi.Settings) *openapi.Duration { return &s.CredentialLife }),
		"key-disabled":    flag(func(s *openapi.Settings) *bool { return &s.KeyDisabled }),
		"role-detached":   flag(func(s *openapi.Settings) *bool { return &s.RoleDetached }),
		"token-required":  flag(func(s *openapi.Settings) *bool { return &s.TokenRequired }),
		"quota": func(s *openapi.Settings, value string) (err error) {
			if s.Quota, err = strconv.Atoi(value); err != nil || s.Quota < 0 {
				return fmt.Errorf("want a number of entries in a route table, not %q", value)
			}
			return nil
		},
		"allow": func(s *openapi.Settings, value string) error {
			s.Allow = nil
			if value != "" {
				s.Allow = strings.Split(value, ",")
			}
			return nil
		},
	}
}

func newCloudSet(g *global) *cobra.Command {
	names := slices.Sorted(maps.Keys(settingNames()))
	return &cobra.Command{
		Use:   "set NAME=VALUE...",
		Short: "Change how the cloud behaves: " + strings.Join(names, ", "),
		Args:  cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			var edits []func(*openapi.Settings)
			for _, arg := range args {
				name, value, given := strings.Cut(arg, "=")
				apply, found := settingNames()[name]
				if !found {
					return fmt.Errorf("setting %q: give one of %s", name, strings.Join(names, ", "))
				}
				if !given {
					return fmt.Errorf("setting %s: give %s=VALUE", name, name)
				}
				if err := apply(&openapi.Settings{}, value); err != nil {
					return fmt.Errorf("setting %s: %w", arg, err)
				}
				edits = append(edits, func(s *openapi.Settings) { _ = apply(s, value) }) // it went well above
			}
			client, err := g.cloud()
			if err != nil {
				return err
			}
			return client.Change(cmd.Context(), func(s *openapi.Settings) {
				for _, edit := range edits {
					edit(s)
				}
			})
		},
	}
}

func newCloudFault(g *global) *cobra.Command {
	var f openapi.Fault
	var kind, cidr string
	var delay, retryAfter time.Duration
	var clear bool
	cmd := &cobra.Command{
		Use:   "fault",
		Short: "Let calls go wrong, or end all faults with --clear",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			f.Kind, f.Delay, f.RetryAfter = openapi.FaultKind(kind), openapi.Duration(delay), openapi.Duration(retryAfter)
			if cidr != "" {
				p, err := netip.ParsePrefix(cidr)
				if err != nil {
					return fmt.Errorf("--cidr %q: give a prefix such as 10.244.1.0/24: %w", cidr, err)
				}
				f.CIDR = p
			}
			if err := f.Validate(); err != nil && !clear {
				return err
			}
			client, err := g.cloud()
			if err != nil {
				return err
			}
			if clear {
				return client.ClearFaults(cmd.Context())
			}
			made, err := client.Inject(cmd.Context(), f)
			if err == nil {
				fmt.Fprintf(cmd.OutOrStdout(), "fault %d\n", made.ID)
			}
			return err
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&kind, "kind", string(openapi.FaultError), "error, timeout, commit-timeout, slow, empty or entry")
	flags.StringVar(&f.Action, "action", "", "which actions, such as CreateRoute*; all when left out")
	flags.StringVar(&f.Code, "code", "", "the error's code, such as Throttling.User, InternalError or Forbidden.RAM")
	flags.IntVar(&f.Status, "status", 0, "the error's HTTP status, when not the code's usual one")
	flags.StringVar(&f.Message, "message", "", "the error's message")
	flags.StringVar(&cidr, "cidr", "", "for entry and slow: which destinations; all when left out")
	flags.DurationVar(&delay, "delay", 0, "how long it takes")
	flags.DurationVar(&retryAfter, "retry-after", 0, "what whoever is throttled is told to wait")
	flags.IntVar(&f.Skip, "skip", 0, "calls that pass first")
	flags.IntVar(&f.Times, "times", 0, "calls that are hit then; all when 0")
	flags.Float64Var(&f.Probability, "probability", 0, "of a hit, 0 to 1; always when 0")
	flags.BoolVar(&clear, "clear", false, "end all faults")
	return cmd
}

func newCloudCalls(g *global) *cobra.Command {
	var forget bool
	cmd := &cobra.Command{
		Use:   "calls",
		Short: "List the last calls of the API, and how many there were",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			client, err := g.cloud()
			if err != nil {
				return err
			}
			if forget {
				return client.ForgetCalls(cmd.Context())
			}
			snap, err := client.Snapshot(cmd.Context())
			if err != nil {
				return err
			}
			return printCalls(cmd.OutOrStdout(), snap)
		},
	}
	cmd.Flags().BoolVar(&forget, "forget", false, "start counting anew")
	return cmd
}

func printCalls(w io.Writer, s openapi.Snapshot) error {
	table := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(table, "TIME\tACTION\tENTRIES\tRESULT\tTOOK\tBY")
	for _, c := range s.Calls {
		fmt.Fprintf(table, "%s\t%s\t%d\t%s\t%s\t%s\n", c.Time.Local().Format(time.TimeOnly), c.Action, c.Entries, cmpOr(c.Code, "OK"),
			time.Duration(c.Duration).Round(time.Millisecond), c.Principal)
	}
	fmt.Fprintln(table, "\t\t\t\t\t\nACTION\tRESULT\tCALLS\t\t\t")
	for _, action := range slices.Sorted(maps.Keys(s.Counts)) {
		for _, code := range slices.Sorted(maps.Keys(s.Counts[action])) {
			fmt.Fprintf(table, "%s\t%s\t%d\t\t\t\n", action, code, s.Counts[action][code])
		}
	}
	if err := table.Flush(); err != nil {
		return fmt.Errorf("print the calls: %w", err)
	}
	return nil
}

func newCloudCredentials(g *global) *cobra.Command {
	return &cobra.Command{
		Use:   "credentials",
		Short: "Print the AccessKey of the lab's cloud, for a Secret",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			snap, _, err := g.cloudSnapshot(cmd.Context())
			if err != nil {
				return err
			}
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "accessKeyID=%s\naccessKeySecret=%s\n", snap.Spec.Key.ID, snap.Spec.Key.Secret)
			return err
		},
	}
}

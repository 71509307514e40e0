package main

import (
	"encoding/json"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"runtime"
	"strconv"

	"github.com/spf13/cobra"

	"ropeway.dev/ropeway/internal/lab"
	"ropeway.dev/ropeway/internal/lab/launch"
	"ropeway.dev/ropeway/internal/lab/openapi"
	"ropeway.dev/ropeway/internal/lab/pidone"
	"ropeway.dev/ropeway/internal/lab/steady"
	"ropeway.dev/ropeway/internal/lab/vendorccm"
	"ropeway.dev/ropeway/internal/lab/vpc"
)

// hidden are the commands that the lab runs this program as.
func hidden() []*cobra.Command {
	return []*cobra.Command{
		vendorccm.NewCommand(),
		{
			Use: launch.LaunchCommand, Hidden: true, Args: cobra.ExactArgs(1),
			RunE: func(_ *cobra.Command, args []string) error { return launch.Launch(args[0]) },
		},
		{
			Use: launch.InitCommand, Hidden: true, Args: cobra.ExactArgs(1),
			RunE: func(cmd *cobra.Command, args []string) error {
				spec, err := pidone.ReadSpec(args[0])
				if err != nil {
					return err
				}
				return pidone.Run(cmd.Context(), spec, slog.New(slog.NewTextHandler(os.Stderr, nil)))
			},
		},
		{
			Use: lab.CloudCommand, Hidden: true, Args: cobra.NoArgs,
			RunE: func(cmd *cobra.Command, _ []string) error {
				return openapi.Run(cmd.Context(), lab.CloudDir(), slog.New(slog.NewTextHandler(os.Stderr, nil)))
			},
		},
		{
			Use: lab.OutsideCommand, Hidden: true, Args: cobra.NoArgs,
			RunE: func(cmd *cobra.Command, _ []string) error {
				if err := vpc.ServeOutside(cmd.Context()); err != nil {
					return fmt.Errorf("serve the world outside the lab: %w", err)
				}
				return nil
			},
		},
		{
			Use: steady.Command + " serve PORT | watch ADDRESS:PORT", Hidden: true, Args: cobra.ExactArgs(2),
			RunE: func(cmd *cobra.Command, args []string) error {
				runtime.GOMAXPROCS(1) // it sleeps a thousand times a second: what it measures needs the CPUs
				if args[0] == "serve" {
					port, err := strconv.Atoi(args[1])
					if err != nil {
						return fmt.Errorf("serve: %w", err)
					}
					return steady.Serve(cmd.Context(), port, func() { fmt.Println(steady.Serving) })
				}
				server, err := netip.ParseAddrPort(args[1])
				if err != nil {
					return fmt.Errorf("watch: %w", err)
				}
				return steady.Watch(cmd.Context(), server, steady.Shared(5), os.Stdin, os.Stdout)
			},
		},
		{
			Use: steady.CountersCommand, Hidden: true, Args: cobra.NoArgs,
			RunE: func(*cobra.Command, []string) error {
				counters, err := steady.ReadCounters()
				if err != nil {
					return err
				}
				return json.NewEncoder(os.Stdout).Encode(counters)
			},
		},
	}
}

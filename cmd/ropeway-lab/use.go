package main

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"ropeway.dev/ropeway/internal/lab"
	"ropeway.dev/ropeway/internal/lab/scenario"
)

func newStatus(g *global) *cobra.Command {
	var format string
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Show what a lab consists of, and where its logs are",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if format != "" && format != "json" {
				return fmt.Errorf("-o %q: give json, or leave it out", format)
			}
			l, err := g.open()
			if err != nil {
				return err
			}
			s, err := l.Status(cmd.Context())
			if err != nil {
				return err
			}
			if format == "" {
				return s.Print(cmd.OutOrStdout())
			}
			encoder := json.NewEncoder(cmd.OutOrStdout())
			encoder.SetIndent("", "  ")
			return encoder.Encode(s)
		},
	}
	cmd.Flags().StringVarP(&format, "output", "o", "", "json, or a table when left out")
	return cmd
}

func newKubectl(g *global) *cobra.Command {
	return &cobra.Command{
		Use:     "kubectl ARGS...",
		Short:   "Run kubectl on the lab as its administrator",
		Example: "  ropeway-lab kubectl get pods -A -o wide\n  ropeway-lab kubectl --name other get nodes",
		// Flags belong to kubectl, but for --name in front of the others.
		DisableFlagParsing: true,
		RunE: func(cmd *cobra.Command, args []string) error {
			args, err := g.takeName(args)
			if err != nil {
				return err
			}
			l, err := g.open()
			if err != nil {
				return err
			}
			line, err := l.KubectlLine(args...)
			if err != nil {
				return err
			}
			return become(line, l.Environment("control-plane", os.Environ()))
		},
	}
}

// takeName reads --name where cobra does not parse flags; only in front of
// what is passed on, since kubectl's own arguments may hold the same words.
func (g *global) takeName(args []string) ([]string, error) {
	if len(args) > 0 {
		if value, found := strings.CutPrefix(args[0], "--name="); found {
			g.name = value
			args = args[1:]
		} else if args[0] == "--name" {
			if len(args) < 2 {
				return nil, fmt.Errorf("--name needs a value")
			}
			g.name, args = args[1], args[2:]
		}
	}
	if len(args) > 0 && args[0] == "--" {
		args = args[1:]
	}
	return args, nil
}

func newExec(g *global) *cobra.Command {
	var namespace, container string
	cmd := &cobra.Command{
		Use:   "exec NODE|POD [-n NAMESPACE] [--] COMMAND...",
		Short: "Run a command on a node or in a pod",
		Long: "exec runs a command in all namespaces of a node (or in the network namespace of \"control-plane\" and\n" +
			"\"outside\"), else in a pod, as kubectl exec does.",
		Example: "  ropeway-lab exec cn-chengdu.i-2vcxxr ip route\n  ropeway-lab exec POD -n default -- ip addr\n" +
			"  ropeway-lab exec outside curl http://192.168.1.11:30080",
		Args: cobra.MinimumNArgs(2),
		RunE: func(_ *cobra.Command, args []string) error {
			l, err := g.open()
			if err != nil {
				return err
			}
			line, err := execLine(l, args[0], namespace, container, args[1:])
			if err != nil {
				return err
			}
			return become(line, l.Environment(args[0], os.Environ()))
		},
	}
	// The command's own flags are not ours.
	cmd.Flags().SetInterspersed(false)
	cmd.Flags().StringVarP(&namespace, "namespace", "n", "default", "namespace of the pod")
	cmd.Flags().StringVarP(&container, "container", "c", "", "container of the pod")
	return cmd
}

// execLine chooses between a host and a pod. Flags of ours may stand behind
// the name as well, as kubectl's users write them.
func execLine(l *lab.Lab, target, namespace, container string, command []string) ([]string, error) {
	for len(command) > 1 && (command[0] == "-n" || command[0] == "-c") {
		if command[0] == "-n" {
			namespace = command[1]
		} else {
			container = command[1]
		}
		command = command[2:]
	}
	if len(command) > 0 && command[0] == "--" {
		command = command[1:]
	}
	if len(command) == 0 {
		return nil, fmt.Errorf("exec %s: no command was given", target)
	}
	if slices.Contains(l.HostNames(), target) {
		return l.HostLine(target, command...)
	}
	args := []string{"exec", "-n", namespace, "-i"}
	if terminal(os.Stdin) && terminal(os.Stdout) {
		args = append(args, "-t")
	}
	if container != "" {
		args = append(args, "-c", container)
	}
	return l.KubectlLine(append(append(args, target, "--"), command...)...)
}

func terminal(f *os.File) bool {
	_, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	return err == nil
}

// become replaces this process, so that the terminal, stdin, signals and the
// exit code are the command's own.
func become(line, environ []string) error {
	path, err := exec.LookPath(line[0])
	if err != nil {
		return fmt.Errorf("run %s: %w; apt-get install util-linux", line[0], err)
	}
	if err := syscall.Exec(path, line, environ); err != nil {
		return fmt.Errorf("run %s: %w", strings.Join(line, " "), err)
	}
	return nil
}

func newScenario(g *global) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "scenario NAME",
		Short: "Play a scenario on a lab that is up",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			s, err := scenario.Find(args[0])
			if err != nil {
				return err
			}
			l, err := g.open()
			if err != nil {
				return err
			}
			ropeway, err := g.ropeway(func(string) {})
			if err != nil {
				return err
			}
			return scenario.Play(cmd.Context(), s, scenario.Bed{Lab: l, Product: ropeway}, scenario.NewReport(cmd.OutOrStdout()))
		},
	}
	cmd.Long = "scenario plays one of:\n"
	for _, s := range scenario.All() {
		cmd.Long += fmt.Sprintf("  %-18s %s\n", s.Name, s.Doc)
	}
	return cmd
}

func newImage(g *global) *cobra.Command {
	image := &cobra.Command{Use: "image", Short: "Images of a lab's nodes"}
	image.AddCommand(&cobra.Command{
		Use:     "load FILE...",
		Short:   "Import image archives (OCI layouts in a tar) into every node",
		Example: "  make image && ropeway-lab image load bin/ropeway-image.tar",
		Args:    cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			l, err := g.open()
			if err != nil {
				return err
			}
			for _, file := range args {
				if err := l.ImportImage(cmd.Context(), file); err != nil {
					return err
				}
				fmt.Fprintf(cmd.OutOrStdout(), "%s is on %d nodes\n", file, len(l.Nodes()))
			}
			return nil
		},
	})
	return image
}

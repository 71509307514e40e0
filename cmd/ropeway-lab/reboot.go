package main

import (
	"fmt"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
)

func newReboot(g *global) *cobra.Command {
	return &cobra.Command{
		Use:   "reboot NODE",
		Short: "Switch a node off and on again",
		Long: "reboot ends a node as a power cut does, its pods included, and boots it: /run, the BPF file system and the\n" +
			"network namespace are new, what lies on its disk (/var/lib, /etc/cni, /opt/cni) is as it was left.",
		Example: "  ropeway-lab reboot cn-chengdu.i-2vcxxr",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			l, err := g.open()
			if err != nil {
				return err
			}
			began := time.Now()
			if err := l.Reboot(cmd.Context(), args[0]); err != nil {
				return err
			}
			fmt.Fprintf(cmd.OutOrStdout(), "the programs of node %s run again (%.1fs)\n", args[0], time.Since(began).Seconds())
			return nil
		},
	}
}

func newRestart(g *global) *cobra.Command {
	var kill bool
	cmd := &cobra.Command{
		Use:   "restart HOST PROGRAM",
		Short: "Restart a program of a host: containerd, kubelet, kube-apiserver, ...",
		Long:  "restart ends one of the programs that `status` lists, and waits until its successor is ready. Pods stay.",
		Example: "  ropeway-lab restart cn-chengdu.i-2vcxxr containerd\n" +
			"  ropeway-lab restart control-plane kube-apiserver --kill",
		Args: cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			l, err := g.open()
			if err != nil {
				return err
			}
			signal := unix.SIGTERM
			if kill {
				signal = unix.SIGKILL
			}
			began := time.Now()
			if err := l.Restart(cmd.Context(), args[0], args[1], signal); err != nil {
				return err
			}
			fmt.Fprintf(cmd.OutOrStdout(), "%s on host %s is ready again (%.1fs)\n", args[1], args[0], time.Since(began).Seconds())
			return nil
		},
	}
	cmd.Flags().BoolVar(&kill, "kill", false, "by SIGKILL instead of SIGTERM")
	return cmd
}

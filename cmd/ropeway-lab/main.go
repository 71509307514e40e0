// Command ropeway-lab boots, shows and takes down real Kubernetes clusters in
// a box, for developers and newcomers; it is never shipped to nodes.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"

	"ropeway.dev/ropeway/internal/lab"
)

func main() {
	ends := []os.Signal{os.Interrupt, syscall.SIGTERM}
	if !signal.Ignored(syscall.SIGHUP) { // as nohup has it
		ends = append(ends, syscall.SIGHUP)
	}
	// Whoever reads what is printed (tee, less) may end before this program, by the
	// same Ctrl-C: that must not end it before the lab is down. A write then fails,
	// and no more. (A handler, since what is ignored is inherited by what runs here.)
	signal.Notify(make(chan os.Signal, 1), syscall.SIGPIPE)
	ctx, stop := signal.NotifyContext(context.Background(), ends...)
	// Further signals change nothing: taking a lab down takes a few seconds
	// and must not be cut short by an impatient second Ctrl-C.
	defer stop()
	err := newRoot(lab.DefaultCache(os.Getenv)).ExecuteContext(ctx)
	if err == nil {
		return
	}
	fmt.Fprintln(os.Stderr, "ropeway-lab:", err)
	os.Exit(1)
}

// global holds the flags that every command takes.
type global struct {
	name  string
	cache string
}

func (g *global) open() (*lab.Lab, error) { return lab.Open(g.name) }

func newRoot(cache string) *cobra.Command {
	g := &global{cache: cache}
	root := &cobra.Command{
		Use:   "ropeway-lab",
		Short: "Real Kubernetes clusters in a box, on a network like a cloud's VPC",
		Long: "ropeway-lab boots a real Kubernetes cluster on this machine: etcd, the control plane and nodes with\n" +
			"containerd, kubelet and kube-proxy, each in namespaces of its own, on a network that behaves like a\n" +
			"cloud's VPC. `up` boots it, `down` leaves nothing of it behind.",
		SilenceUsage:  true,
		SilenceErrors: true,
	}
	root.CompletionOptions.HiddenDefaultCmd = true
	root.PersistentFlags().StringVar(&g.name, "name", lab.DefaultOptions().Name, "name of the lab; several labs live side by side")
	root.AddCommand(newUp(g), newDown(g), newStatus(g), newKubectl(g), newExec(g), newReboot(g), newRestart(g), newScenario(g), newImage(g), newCloud(g), newDemo(g), newConformance(g))
	root.AddCommand(hidden()...)
	return root
}

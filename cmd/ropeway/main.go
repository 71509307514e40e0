// Command ropeway is Ropeway's one program: what runs on nodes (agent,
// controller, node-clean) and what a person runs at a terminal (install,
// uninstall, status, plan, routes, ipam, migrate, cloud, doctor, version).
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"ropeway.dev/ropeway/internal/cloud/alibaba"
)

// version is the release, set by the linker.
var version = "v0.1.0-dev"

// environment is what main reads of the process's surroundings, so that
// nothing else has to.
type environment struct {
	nodeName, podName string
	gc                string // how garbage is collected, where somebody has said so
	stdin             io.Reader
	stdout, stderr    io.Writer
	terminal          bool      // stdin is one: a person can be asked
	cloud             cloudKeys // the person's, for doctor
	// controllerKeys are the cloud's credentials for the controller, by the keys
	// of the Secret that they stand for; nil without any.
	controllerKeys map[string][]byte
}

func main() {
	os.Exit(run())
}

func run() int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	// Only a terminal has settings; /dev/null is a character device too.
	_, noTerminal := unix.IoctlGetTermios(int(os.Stdin.Fd()), unix.TCGETS)
	env := environment{
		nodeName: os.Getenv("NODE_NAME"), podName: os.Getenv("POD_NAME"), gc: os.Getenv("GOGC") + os.Getenv("GOMEMLIMIT"),
		stdin: os.Stdin, stdout: os.Stdout, stderr: os.Stderr,
		terminal: noTerminal == nil,
		cloud: cloudKeys{
			id: os.Getenv("ALIBABA_CLOUD_ACCESS_KEY_ID"), secret: os.Getenv("ALIBABA_CLOUD_ACCESS_KEY_SECRET"), token: os.Getenv("ALIBABA_CLOUD_SECURITY_TOKEN"),
		},
		controllerKeys: controllerKeys(os.Getenv),
	}
	err := secretsStaySecret(os.Getenv("DEBUG"))
	if err == nil {
		err = newRoot(env).ExecuteContext(ctx)
	}
	switch {
	case err == nil:
		return 0
	case errors.Is(err, errSaid):
		return 1
	}
	fmt.Fprintln(os.Stderr, "ropeway:", err)
	return 1
}

// controllerKeys reads an AccessKey under the names that the vendor's libraries know,
// or those of its cloud controller manager.
func controllerKeys(getenv func(string) string) map[string][]byte {
	for _, prefix := range []string{"ALIBABA_CLOUD_", ""} {
		keys := map[string][]byte{}
		for key, name := range map[string]string{
			alibaba.SecretKeyID: "ACCESS_KEY_ID", alibaba.SecretKeySecret: "ACCESS_KEY_SECRET", alibaba.SecretToken: "SECURITY_TOKEN",
		} {
			if value := getenv(prefix + name); value != "" {
				keys[key] = []byte(value)
			}
		}
		if keys[alibaba.SecretKeyID] != nil {
			return keys
		}
	}
	return nil
}

// secretsStaySecret refuses the value of DEBUG that makes the cloud vendor's
// library print every request, security tokens included, before any code of
// ours runs.
func secretsStaySecret(debug string) error {
	for _, word := range strings.Split(debug, ",") {
		switch word {
		case "dara", "tea", "credential": // its packages' names for themselves
			return fmt.Errorf("the environment has DEBUG=%s, with which the cloud vendor's library prints credentials: unset it", debug)
		}
	}
	return nil
}

// errSaid ends a command with code 1 that has printed why.
var errSaid = errors.New("what is wrong has been printed")

// global are the flags that every command has.
type global struct {
	kubeconfig, context string
}

func newRoot(env environment) *cobra.Command {
	g := &global{}
	root := &cobra.Command{
		Use:           "ropeway",
		Short:         "The pod network for Kubernetes clusters that you run yourself in a cloud",
		SilenceUsage:  true,
		SilenceErrors: true,
		Args:          cobra.NoArgs,
		RunE:          func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	root.SetIn(env.stdin)
	root.SetOut(env.stdout)
	root.SetErr(env.stderr)
	root.CompletionOptions.HiddenDefaultCmd = true
	root.PersistentFlags().StringVar(&g.kubeconfig, "kubeconfig", "", "path of the kubeconfig (default: KUBECONFIG, then ~/.kube/config)")
	root.PersistentFlags().StringVar(&g.context, "context", "", "context of the kubeconfig")
	root.AddGroup(&cobra.Group{ID: "person", Title: "At a terminal:"}, &cobra.Group{ID: "node", Title: "In the cluster (the manifests run these):"})
	for _, cmd := range []*cobra.Command{newInstall(env, g), newUninstall(env, g), newStatus(g), newPlan(g), newRoutes(g), newIPAM(g), newMigrate(g), newCloud(), newDoctor(env, g), newVersion()} {
		cmd.GroupID = "person"
		root.AddCommand(cmd)
	}
	for _, cmd := range []*cobra.Command{newAgent(env, g), newController(env, g), newNodeClean(env), newAskAgent()} {
		cmd.GroupID = "node"
		root.AddCommand(cmd)
	}
	root.SetHelpCommandGroupID("person")
	return root
}

func newVersion() *cobra.Command {
	return &cobra.Command{
		Use:   "version",
		Short: "Print the version",
		Args:  cobra.NoArgs,
		Run:   func(cmd *cobra.Command, _ []string) { fmt.Fprintln(cmd.OutOrStdout(), version) },
	}
}

// newLog makes the log of a long-running command: one event per line.
func newLog(w io.Writer, level string) (*slog.Logger, error) {
	var l slog.Level
	if err := l.UnmarshalText([]byte(level)); err != nil {
		return nil, fmt.Errorf("--log-level: want debug, info, warn or error, not %q", level)
	}
	return slog.New(slog.NewTextHandler(w, &slog.HandlerOptions{Level: l})), nil
}

package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"ropeway.dev/ropeway/api/v1alpha1"
	"ropeway.dev/ropeway/internal/agent"
	"ropeway.dev/ropeway/internal/cloud"
	"ropeway.dev/ropeway/internal/cloud/alibaba"
	"ropeway.dev/ropeway/internal/controller"
	"ropeway.dev/ropeway/internal/dataplane/podlink"
	"ropeway.dev/ropeway/internal/kube"
	"ropeway.dev/ropeway/internal/resident"
)

// hostFlags are where a node's directories are, as seen from the container.
func hostFlags(cmd *cobra.Command, c *agent.Config) {
	cmd.Flags().StringVar(&c.BinDir, "cni-bin-dir", c.BinDir, "where the container runtime looks for plugins, as seen from here")
	cmd.Flags().StringVar(&c.ConfDir, "cni-conf-dir", c.ConfDir, "where it looks for conflists")
	cmd.Flags().StringVar(&c.RunDir, "run-dir", c.RunDir, "socket, journal and state")
}

func newAgent(env environment, g *global) *cobra.Command {
	c := agent.Config{NodeName: env.nodeName, Version: version}
	c.Defaults()
	var level, configDir string
	cmd := &cobra.Command{
		Use:   "agent",
		Short: "Run a node's part of the pod network",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			var err error
			if c.Log, err = newLog(cmd.ErrOrStderr(), level); err != nil {
				return err
			}
			c.Kubeconfig, c.Context = g.kubeconfig, g.context
			if err := readConfigDir(configDir, &c); err != nil {
				return err
			}
			go resident.Keep(cmd.Context(), env.gc != "")
			return agent.Run(cmd.Context(), c)
		},
	}
	hostFlags(cmd, &c)
	cmd.Flags().StringVar(&c.NodeName, "node-name", c.NodeName, "name of this node's Node object (NODE_NAME)")
	cmd.Flags().StringVar(&c.ConfName, "cni-conf-name", c.ConfName, "file name of the conflist")
	cmd.Flags().StringVar(&c.PluginSource, "plugin-source", c.PluginSource, "directory of the plugins in the image")
	cmd.Flags().StringVar(&c.ListenAddress, "listen", c.ListenAddress, "address of health, metrics and state")
	cmd.Flags().StringArrayVar(&c.TakeOver, "take-over", nil, "name of another product's plugin to answer to")
	cmd.Flags().StringVar(&configDir, "config-dir", "", "directory with cni_network_config and veth_mtu (the ConfigMap)")
	cmd.Flags().StringVar(&level, "log-level", "info", "debug, info, warn or error")
	return cmd
}

// readConfigDir reads the ConfigMap as the kubelet mounts it. Keys that are
// not there leave the agent's defaults.
func readConfigDir(dir string, c *agent.Config) error {
	if dir == "" {
		return nil
	}
	template := filepath.Join(dir, "cni_network_config")
	switch _, err := os.Stat(template); {
	case err == nil:
		c.ConflistTemplateFile = template
	case !errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("read the conflist template: %w", err)
	}
	text, err := os.ReadFile(filepath.Join(dir, "veth_mtu"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("read the pods' MTU: %w", err)
	}
	value := strings.TrimSpace(string(text))
	if value == "" {
		return nil
	}
	if c.VethMTU, err = strconv.Atoi(value); err != nil {
		return fmt.Errorf("veth_mtu in the ConfigMap is %q: want a number of bytes, or 0 to find out", value)
	}
	return nil
}

func newController(env environment, g *global) *cobra.Command {
	c := controller.Config{Identity: env.podName, Version: version, CloudKeys: env.controllerKeys,
		Providers: map[string]cloud.New{string(v1alpha1.CloudAlibaba): alibaba.New}}
	c.Defaults()
	var level string
	cmd := &cobra.Command{
		Use:   "controller",
		Short: "Run the cluster's part: proofs, leases of nodes that are gone, conditions",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			var err error
			if c.Log, err = newLog(cmd.ErrOrStderr(), level); err != nil {
				return err
			}
			if c.API, err = kube.RESTConfig(g.kubeconfig, g.context); err != nil {
				return err
			}
			kube.LogAll(c.Log)
			go resident.Keep(cmd.Context(), env.gc != "")
			return controller.Run(cmd.Context(), c)
		},
	}
	cmd.Flags().StringVar(&c.Identity, "identity", c.Identity, "what tells this replica from the others (POD_NAME)")
	cmd.Flags().StringVar(&c.Listen, "listen", c.Listen, "address of health and metrics")
	cmd.Flags().StringVar(&level, "log-level", "info", "debug, info, warn or error")
	return cmd
}

func newNodeClean(env environment) *cobra.Command {
	c := agent.Config{NodeName: env.nodeName, Version: version}
	c.Defaults()
	var waitOnly bool
	cmd := &cobra.Command{
		Use:   "node-clean",
		Short: "Take Ropeway off this node (uninstall runs it on each)",
		Long: `Removes from this node what the agent and the plugin made: conflist, plugins,
links, routes, rules, BPF programs and state; files of others that were taken over
are put back. Where an agent runs, nothing is touched and it fails. Pods on this
node lose their network.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if waitOnly {
				<-cmd.Context().Done()
				return nil
			}
			var err error
			if c.Log, err = newLog(cmd.ErrOrStderr(), "info"); err != nil {
				return err
			}
			if err := agent.Clean(cmd.Context(), c, removePodLinks); err != nil {
				return err
			}
			fmt.Fprintln(cmd.OutOrStdout(), "this node is clean")
			return nil
		},
	}
	hostFlags(cmd, &c)
	cmd.Flags().BoolVar(&waitOnly, "wait-only", false, "clean nothing; wait to be ended")
	if err := cmd.Flags().MarkHidden("wait-only"); err != nil {
		panic(err) // the flag is defined above
	}
	return cmd
}

// removePodLinks removes the links of the pods that still run: without routes
// and rules they carry nothing, and nobody would remove them later.
func removePodLinks() error {
	links, err := podlink.List()
	if err != nil {
		return fmt.Errorf("look for pods' links: %w", err)
	}
	var errs []error
	for _, l := range links {
		attachment, _, err := podlink.ParseAlias(l.Alias)
		if err == nil {
			err = podlink.Del(attachment, "")
		}
		errs = append(errs, err)
	}
	return errors.Join(append(errs, podlink.Reap())...)
}

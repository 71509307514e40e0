package agent

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"path/filepath"
	"strings"
	"time"

	"ropeway.dev/ropeway/internal/agent/hostinstall"
	"ropeway.dev/ropeway/internal/cniwire"
)

// Config is what an agent has to be told. Defaults fills in the rest.
type Config struct {
	// NodeName is the name of the node's Node object (the kubelet's).
	NodeName string
	// Kubeconfig and Context say where the API server is; both empty: the
	// pod's service account.
	Kubeconfig, Context string

	// BinDir and ConfDir are where the container runtime looks for plugins and
	// conflists, as seen from the agent. ConfName is our conflist's file name.
	BinDir, ConfDir, ConfName string
	// PluginSource is the directory of the plugins in the image.
	PluginSource string
	// TakeOver are other products' plugin names that Ropeway answers to.
	TakeOver []string
	// ConflistTemplateFile is read again and again, so that a changed ConfigMap
	// is followed; if it is empty, ConflistTemplate is the text, and if that
	// is empty too, hostinstall.DefaultTemplate.
	ConflistTemplateFile, ConflistTemplate string
	// VethMTU replaces the placeholder __CNI_MTU__, in bytes; 0: each pod gets
	// what the agent works out.
	VethMTU int

	// RunDir holds the socket, the journal, tombstones and the last state.
	RunDir string
	// HostLocalDir is where host-local keeps its files; beside it the runtime's
	// CNI library keeps its own. A file goes once its sandbox has gone.
	HostLocalDir string
	// ListenAddress serves health, metrics and the node's state over HTTP.
	ListenAddress string
	// Version is the agent's release.
	Version string
	Log     *slog.Logger

	timing timing
}

// timing are the agent's intervals, which tests shorten.
type timing struct {
	addWait  time.Duration // how long an ADD waits for what it needs
	lock     time.Duration // how long a new agent waits for the one before it to end
	resync   time.Duration // between looks at everything, if nothing happens
	settle   time.Duration // between a change and the look that it causes
	gather   time.Duration // between a need of single addresses and the decision on it
	reap     time.Duration // between the end of a pod and the removal of its link
	retryMin time.Duration // after a failure; doubled up to retryMax
	retryMax time.Duration
	// retryAsked is about how long a failure is rested from where somebody asks.
	retryAsked time.Duration
	call       time.Duration // bound of one call of the API server
	tombstones time.Duration // between looks at what ended without a word
}

// Defaults fills in what is not set.
func (c *Config) Defaults() {
	setDefault(&c.BinDir, "/host/opt/cni/bin")
	setDefault(&c.ConfDir, "/host/etc/cni/net.d")
	setDefault(&c.ConfName, "10-ropeway.conflist")
	setDefault(&c.PluginSource, "/opt/ropeway/cni")
	setDefault(&c.RunDir, cniwire.RunDir)
	setDefault(&c.HostLocalDir, "/var/lib/cni/networks")
	setDefault(&c.ListenAddress, ":9797")
	setDefault(&c.Version, "devel")
	if c.Log == nil {
		c.Log = slog.Default()
	}
	setDefault(&c.timing.addWait, 15*time.Second)
	setDefault(&c.timing.lock, 30*time.Second)
	setDefault(&c.timing.resync, 30*time.Second)
	setDefault(&c.timing.settle, 50*time.Millisecond)
	setDefault(&c.timing.gather, 20*time.Millisecond)
	setDefault(&c.timing.reap, 250*time.Millisecond)
	setDefault(&c.timing.retryMin, 500*time.Millisecond)
	setDefault(&c.timing.retryMax, 30*time.Second)
	setDefault(&c.timing.retryAsked, 3*time.Second)
	setDefault(&c.timing.call, 10*time.Second)
	setDefault(&c.timing.tombstones, time.Second)
}

func setDefault[T comparable](field *T, value T) {
	var zero T
	if *field == zero {
		*field = value
	}
}

// Validate says everything that is wrong with the configuration.
func (c *Config) Validate() error {
	var errs []error
	if c.NodeName == "" {
		errs = append(errs, errors.New("no node name: give the name of this node's Node object (in the DaemonSet: NODE_NAME from spec.nodeName)"))
	}
	for _, dir := range []struct{ name, path string }{
		{"plugin directory", c.BinDir}, {"conflist directory", c.ConfDir}, {"run directory", c.RunDir},
	} {
		if !filepath.IsAbs(dir.path) {
			errs = append(errs, fmt.Errorf("the %s %q is not an absolute path", dir.name, dir.path))
		}
	}
	if c.ConfName != filepath.Base(c.ConfName) || filepath.Ext(c.ConfName) != ".conflist" {
		errs = append(errs, fmt.Errorf("the conflist's name %q is not a file name that ends in .conflist: the runtime would not read it", c.ConfName))
	}
	if _, _, err := net.SplitHostPort(c.ListenAddress); err != nil {
		errs = append(errs, fmt.Errorf("the listen address %q is not host:port: %w", c.ListenAddress, err))
	}
	if c.VethMTU != 0 && (c.VethMTU < 576 || c.VethMTU > 65535) {
		errs = append(errs, fmt.Errorf("the pods' MTU %d is not in 576..65535: use 0 to have it worked out", c.VethMTU))
	}
	for _, name := range c.TakeOver {
		if name == "" || strings.ContainsAny(name, "/ ") {
			errs = append(errs, fmt.Errorf("%q is no plugin's name to take over", name))
		}
	}
	return errors.Join(errs...)
}

func (c *Config) host() hostinstall.Host {
	return hostinstall.Host{BinDir: c.BinDir, ConfDir: c.ConfDir, ConfName: c.ConfName,
		PluginSource: c.PluginSource, TakeOver: c.TakeOver}
}

// resultDirs are where the CNI libraries of the runtime and of Multus note
// attachments.
func (c *Config) resultDirs() []string {
	cni := filepath.Dir(c.HostLocalDir)
	return []string{filepath.Join(cni, "results"), filepath.Join(cni, "multus", "results")}
}

// inRunDir is the path of one of the agent's files.
func (c *Config) inRunDir(name string) string { return filepath.Join(c.RunDir, name) }

// Names of the agent's files in RunDir. The plugin knows the first two, as
// cniwire.SocketPath and cniwire.TombstoneDir.
const (
	socketName    = "cni.sock"
	tombstoneName = "tombstones"
	stateName     = "state"
	wordsName     = "pod-words"
	journalName   = "journal"
	netnsName     = "sandboxes"
	bootName      = "boot-id"
	adminName     = "agent.sock"
)

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"ropeway.dev/ropeway/api/spiderpool/v2beta1"
	"ropeway.dev/ropeway/api/v1alpha1"
	"ropeway.dev/ropeway/internal/calico"
	"ropeway.dev/ropeway/internal/install"
	"ropeway.dev/ropeway/internal/kube"
)

// installCommand is `ropeway install`.
type installCommand struct {
	env     environment
	g       *global
	options install.Options

	transports    []string
	addressSource string
	nat           bool
	calicoFiles   []string
	apply, wait   bool
	offline       bool
	timeout       time.Duration
}

const installLong = `Renders the CRDs, RBAC, ConfigMap, DaemonSet and Deployment of Ropeway, and its
ClusterNetwork. Without --apply they are printed. With --apply they are applied,
and the command waits until every agent and controller is ready and every node is
proven reachable.

What is not said by a flag is taken from the cluster: first from what is installed
there, so that running install again changes only what it is told to, and the
version. With --offline no cluster is asked.`

const installExample = `  ropeway install --pod-cidr 10.244.0.0/16 --apply
  ropeway install --calico-manifest calico.yaml            # what would become of it
  ropeway install --transports direct,ipip,vxlan --address-source NodeCIDR --cloud alibaba --cloud-region cn-chengdu --cloud-vpc vpc-2vc --apply
  ropeway install --registry registry.example.com --apply  # through a mirror`

func newInstall(env environment, g *global) *cobra.Command {
	c := &installCommand{env: env, g: g}
	c.options.Version = version
	cmd := &cobra.Command{
		Use: "install", Short: "Print or apply what installs Ropeway on a cluster",
		Long: installLong, Example: installExample, Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if cmd.Flags().Changed("nat-outgoing") {
				c.options.Masquerade = &c.nat
			}
			return c.run(cmd.Context())
		},
	}
	c.networkFlags(cmd)
	c.cloudFlags(cmd)
	o, f := &c.options, cmd.Flags()
	f.StringVar(&o.Image, "image", "", "the image's reference (default "+install.DefaultImage+")")
	f.StringVar(&o.Version, "version", o.Version, "the image's tag, where --image has none")
	f.StringVar(&o.Registry, "registry", "", "a registry or mirror in place of docker.io, like registry.example.com")
	f.StringVar(&o.APIServer, "api-server", "", "host:port at which nodes reach the API server (default: the kubeconfig's server)")
	f.StringArrayVar(&o.TakeOver, "take-over", nil, "answer to this name of another product's plugin too: calico, calico-ipam, spiderpool; none takes back what is installed")
	f.StringVar(&o.CNIBinDir, "cni-bin-dir", "", "the nodes' directory of plugins (default /opt/cni/bin)")
	f.StringVar(&o.CNIConfDir, "cni-conf-dir", "", "the nodes' directory of conflists (default /etc/cni/net.d)")
	f.StringVar(&o.LogLevel, "log-level", "", "of agents and controllers: debug, info, warn, error (default info)")
	f.StringArrayVar(&c.calicoFiles, "calico-manifest", nil, "read Calico's ConfigMap, environment or calico.yaml from this file (- for stdin); can be repeated; flags win")
	f.BoolVar(&o.AcceptNoPolicy, "accept-no-policy", false, "install beside NetworkPolicies although this version does not enforce them")
	f.BoolVar(&c.apply, "apply", false, "apply to the cluster and wait, instead of printing")
	f.BoolVar(&c.wait, "wait", true, "with --apply: wait until all is ready and reachable")
	f.DurationVar(&c.timeout, "timeout", 5*time.Minute, "with --apply: how long to wait")
	f.BoolVar(&c.offline, "offline", false, "print without asking a cluster: defaults stand where no flag does")
	cmd.MarkFlagsMutuallyExclusive("offline", "apply")
	return cmd
}

// networkFlags are what becomes the ClusterNetwork.
func (c *installCommand) networkFlags(cmd *cobra.Command) {
	o, f := &c.options, cmd.Flags()
	f.StringSliceVar(&o.PodCIDRs, "pod-cidr", nil, "range of the pods' addresses; repeat for IPv6 or further ranges (default: the cluster's, else "+install.DefaultPodCIDR+")")
	f.StringVar(&c.addressSource, "address-source", "", "Blocks, leased to nodes on demand, or NodeCIDR, the nodes' podCIDRs (default Blocks)")
	f.Int32Var(&o.BlockSizeIPv4, "block-size", 0, "prefix length of IPv4 blocks (default 26)")
	f.Int32Var(&o.BlockSizeIPv6, "block-size-ipv6", 0, "prefix length of IPv6 blocks (default 122)")
	f.StringSliceVar(&c.transports, "transports", nil, "allowed ways between nodes, the preferred first: direct, ipip, vxlan (default ipip,vxlan)")
	f.StringVar(&o.MTU, "mtu", "", "perRoute, smallest, or the pods' MTU in bytes (default perRoute)")
	f.BoolVar(&c.nat, "nat-outgoing", true, "translate pods' addresses where they leave the pod network")
	f.Int32Var(&o.VXLANPort, "vxlan-port", 0, "UDP port of vxlan (default 4789)")
	f.Int32Var(&o.VXLANVNI, "vxlan-vni", 0, "VNI of vxlan (default 4096)")
}

// cloudFlags are what becomes the ClusterNetwork's cloud.
func (c *installCommand) cloudFlags(cmd *cobra.Command) {
	cloud, f := &c.options.Cloud, cmd.Flags()
	f.StringVar((*string)(&cloud.Provider), "cloud", "", "the cloud whose routes and instances Ropeway deals with: alibaba (default none)")
	f.StringVar(&cloud.RegionID, "cloud-region", "", "the cloud's region, like cn-chengdu")
	f.StringVar(&cloud.VPCID, "cloud-vpc", "", "the id of the VPC that the nodes are in")
	f.StringSliceVar(&cloud.RouteTableIDs, "cloud-route-table", nil, "route table to publish pods' ranges in; can be repeated (default the VPC's only one; with several, name them)")
	f.StringSliceVar(&cloud.VPCCIDRs, "cloud-vpc-cidr", nil, "range towards which pods keep their addresses once the VPC leads to them; can be repeated (default none)")
	f.StringVar((*string)(&cloud.Routes), "cloud-routes", "", "who publishes routes: ropeway, external, off (default ropeway)")
	f.StringVar((*string)(&cloud.Nodes), "cloud-nodes", "", "who tells Kubernetes about the nodes' instances: ropeway, external, off (default external)")
	f.StringVar((*string)(&cloud.LoadBalancers), "cloud-load-balancers", "", "who makes load balancers: external, off (default external)")
	f.StringVar(&cloud.Endpoint, "cloud-endpoint", "", "host of the cloud's API, where it is not the region's for machines of the VPC; from elsewhere {product}.{region}.aliyuncs.com")
	f.StringVar(&cloud.CredentialsSecret, "cloud-secret", "", "Secret in "+install.Namespace+" with accessKeyID and accessKeySecret (default: the controller's environment, else the RAM role of its instance)")
}

func (c *installCommand) run(ctx context.Context) error {
	for _, t := range c.transports {
		c.options.Transports = append(c.options.Transports, v1alpha1.Transport(strings.TrimSpace(t)))
	}
	c.options.AddressSource = v1alpha1.AddressSource(c.addressSource)
	if err := c.options.Validate(); err != nil {
		return err
	}
	if err := c.readCalico(); err != nil {
		return err
	}
	if c.apply {
		return c.applyTo(ctx)
	}
	return c.print(ctx)
}

// readCalico reads the manifests, reports on every key, and stops at refused
// ones.
func (c *installCommand) readCalico() error {
	if len(c.calicoFiles) == 0 {
		return nil
	}
	var documents []calico.Document
	for _, name := range c.calicoFiles {
		text, err := c.readFile(name)
		if err != nil {
			return fmt.Errorf("--calico-manifest: %w", err)
		}
		documents = append(documents, calico.Document{Name: name, Data: text})
	}
	wanted, report, err := calico.Read(documents...)
	if err != nil {
		return fmt.Errorf("--calico-manifest: %w", err)
	}
	fmt.Fprintf(c.talk(), "%s\n", report)
	if refused := report.Refused(); len(refused) > 0 {
		return fmt.Errorf("--calico-manifest: %d of its keys are refused (the lines above say why and what to do); nothing was done", len(refused))
	}
	c.options.AddCalico(wanted)
	return nil
}

func (c *installCommand) readFile(name string) ([]byte, error) {
	if name == "-" {
		return io.ReadAll(c.env.stdin)
	}
	return os.ReadFile(name)
}

// talk is where everything goes that is not YAML.
func (c *installCommand) talk() io.Writer {
	if c.apply {
		return c.env.stdout
	}
	return c.env.stderr
}

func (c *installCommand) note(format string, args ...any) {
	fmt.Fprintf(c.talk(), format+"\n", args...)
}

// print renders to stdout. The cluster is asked what is installed and what the
// flags leave open; it need not be there.
func (c *installCommand) print(ctx context.Context) error {
	var survey *install.Survey
	if !c.offline {
		var err error
		if survey, err = c.lookIfThere(ctx); err != nil {
			return err
		}
	}
	settings, notes, err := install.Resolve(c.options, survey)
	if err != nil {
		return err
	}
	for _, n := range notes {
		c.note("note: %s", n)
	}
	if survey != nil {
		if left := install.CleanerLeft(survey); len(left) > 0 {
			return fmt.Errorf("nothing is printed: %s", left[0])
		}
		for _, f := range install.Preflight(settings, survey, c.acceptsNoPolicy(survey)) {
			c.note("%s: %s", severity(f), f)
		}
	}
	m, err := install.Render(settings)
	if err != nil {
		return err
	}
	if survey != nil && len(survey.AnothersCRDs) > 0 {
		c.note("note: left out, since they are there and another's: %s", strings.Join(survey.AnothersCRDs, ", "))
		m = m.Without(survey.AnothersCRDs)
	}
	text, err := m.YAML(header(settings))
	if err != nil {
		return err
	}
	_, err = c.env.stdout.Write(text)
	return err
}

func header(s install.Settings) string {
	return "Ropeway " + s.Version + ", rendered by ropeway install.\n" +
		"kubectl apply -f - refuses the ClusterNetwork until the CRDs are established:\n" +
		"apply twice, or let ropeway install --apply do it in order and wait.\n" +
		"Leave out the CRDs of " + v2beta1.GroupVersion.Group + " where Spiderpool's own are in the cluster."
}

func severity(f install.Finding) string {
	if f.Stops {
		return "--apply would stop"
	}
	return "warning"
}

// lookIfThere surveys the cluster if there is one, and says so if not. One that does not
// answer may have an installation, which what is printed from defaults would change.
func (c *installCommand) lookIfThere(ctx context.Context) (*install.Survey, error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	cluster, err := c.g.connect(c.env.stderr)
	if errors.Is(err, kube.ErrNoConfig) {
		c.note("note: no cluster was asked (%v): defaults stand where no flag does", err)
		return nil, nil
	}
	var survey *install.Survey
	if err == nil {
		survey, err = install.Look(ctx, cluster)
	}
	if err != nil {
		return nil, fmt.Errorf("nothing is printed, since the cluster could not be asked what it has: %w (--offline prints from flags and defaults alone)", err)
	}
	return survey, nil
}

func (g *global) connect(warnings io.Writer) (*install.Cluster, error) {
	cfg, err := kube.RESTConfig(g.kubeconfig, g.context)
	if err != nil {
		return nil, err
	}
	return install.Connect(cfg, warnings)
}

// applyTo applies and waits.
func (c *installCommand) applyTo(ctx context.Context) error {
	cluster, err := c.g.connect(c.env.stderr)
	if err != nil {
		return err
	}
	survey, err := install.Look(ctx, cluster)
	if err != nil {
		return err
	}
	settings, notes, err := install.Resolve(c.options, survey)
	if err != nil {
		return err
	}
	for _, n := range notes {
		c.note("note: %s", n)
	}
	if err := c.preflight(settings, survey); err != nil {
		return err
	}
	m, err := install.Render(settings)
	if err != nil {
		return err
	}
	say := elapsed(c.env.stdout)
	if err := install.Apply(ctx, cluster, m, say); err != nil {
		return err
	}
	if !c.wait {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, c.timeout)
	defer cancel()
	if err := install.WaitReady(ctx, cluster, say); err != nil {
		return err
	}
	say("Ropeway %s is installed; ropeway status shows it", settings.Version)
	return nil
}

func (c *installCommand) preflight(s install.Settings, survey *install.Survey) error {
	findings := install.Preflight(s, survey, c.acceptsNoPolicy(survey))
	var errs []error
	for _, f := range findings {
		if f.Stops {
			errs = append(errs, errors.New(f.String()))
		} else {
			c.note("warning: %s", f)
		}
	}
	if len(errs) == 0 {
		return nil
	}
	return fmt.Errorf("nothing was applied:\n%w", errors.Join(errs...))
}

// acceptsNoPolicy reports whether NetworkPolicies are only warned of: also where
// Ropeway is installed already, since what runs enforces none of them either.
func (c *installCommand) acceptsNoPolicy(survey *install.Survey) bool {
	return c.options.AcceptNoPolicy || survey.Installed.Image != ""
}

// elapsed prints lines with the time since now.
func elapsed(w io.Writer) install.Progress {
	start := time.Now()
	return func(format string, args ...any) {
		fmt.Fprintf(w, "%6.1fs  %s\n", time.Since(start).Seconds(), fmt.Sprintf(format, args...))
	}
}

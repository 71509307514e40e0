package lab

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"ropeway.dev/ropeway/internal/lab/config"
	"ropeway.dev/ropeway/internal/lab/ledger"
)

// Family says which address families a lab's cluster has.
type Family string

// The families of a cluster.
const (
	IPv4 Family = "ipv4"
	IPv6 Family = "ipv6"
	Dual Family = "dual" // both, IPv4 first
)

// has4 and has6 say which families are in.
func (f Family) has4() bool { return f != IPv6 }
func (f Family) has6() bool { return f != IPv4 }

// Fabric is what connects a lab's hosts.
type Fabric string

// The fabrics.
const (
	// VPC is a network like the cloud's, with the cloud in front of it.
	VPC Fabric = "vpc"
	// Switch is an ordinary layer-2 network with a router; there is no cloud.
	Switch Fabric = "switch"
)

// External is the value of Options.CloudProvider.
const External = "external"

// Bounds of Options.Nodes.
const (
	MinNodes = 2
	MaxNodes = 8
)

// Installer puts a pod network on a running cluster whose nodes have none. It
// returns when what it installed is in force, or why it is not.
type Installer func(ctx context.Context, l *Lab) error

// Options describe the lab to boot. Start from DefaultOptions.
type Options struct {
	// Name tells labs apart; see ledger.CheckName.
	Name string
	// Nodes is the number of nodes, MinNodes to MaxNodes.
	Nodes int
	// Family is the address family, or both.
	Family Family
	// Fabric is what connects the hosts.
	Fabric Fabric
	// PodCIDRs and ServiceCIDRs hold one prefix for each family, in any
	// order; the defaults of the families when nil.
	PodCIDRs     []netip.Prefix
	ServiceCIDRs []netip.Prefix
	// AllocateNodeCIDRs makes the controller-manager give each node podCIDRs.
	AllocateNodeCIDRs bool
	// CloudProvider is "external" where kubelets wait for a cloud controller,
	// which Ropeway then is, or empty.
	CloudProvider string
	// ProxyMode is kube-proxy's mode, "nftables" or "iptables".
	ProxyMode string
	// Bare leaves the nodes without a pod network, and hence not ready.
	Bare bool
	// KeepOnFailure leaves everything in place when `up` fails, to look at.
	KeepOnFailure bool
	// TestNetwork installs the reference plugins ptp and host-local, with
	// routes in the VPC, as the pod network: for tests of the lab itself.
	TestNetwork bool
	// Install puts the pod network on the cluster, unless Bare or
	// TestNetwork; without it the lab stays bare.
	Install Installer

	// Progress receives a line for each step; it may be nil.
	Progress func(line string)
	// Store holds the labs' directories.
	Store ledger.Store
	// Cache keeps programs and images between labs; see DefaultCache.
	Cache string
	// Source is the Ropeway checkout; found from the working directory when
	// empty.
	Source string
}

// DefaultOptions are the options of a plain `ropeway-lab up`, but for Cache.
func DefaultOptions() Options {
	return Options{
		Name: "lab", Nodes: MinNodes, Family: IPv4, Fabric: VPC, AllocateNodeCIDRs: true, ProxyMode: "nftables",
		Store: ledger.DefaultStore,
	}
}

// DefaultCache returns the cache directory that the environment asks for:
// ROPEWAY_LAB_CACHE, else ropeway-lab below XDG_CACHE_HOME or ~/.cache. Only
// main programs read the environment; getenv is os.Getenv there.
func DefaultCache(getenv func(string) string) string {
	if dir := getenv("ROPEWAY_LAB_CACHE"); dir != "" {
		return dir
	}
	if dir := getenv("XDG_CACHE_HOME"); dir != "" {
		return filepath.Join(dir, "ropeway-lab")
	}
	home := getenv("HOME")
	if home == "" {
		home = "/root"
	}
	return filepath.Join(home, ".cache", "ropeway-lab")
}

// vpcRange returns the addresses of the VPC, which clusters must stay out of.
func vpcRange() []netip.Prefix {
	return []netip.Prefix{netip.MustParsePrefix("192.168.0.0/16"), netip.MustParsePrefix("fd00:192:168::/48")}
}

// defaultPodCIDRs and defaultServiceCIDRs are the scenario's, with IPv6
// ranges that read alike.
func (f Family) defaultPodCIDRs() []netip.Prefix {
	return f.pick("10.244.0.0/16", "fd00:10:244::/48")
}

func (f Family) defaultServiceCIDRs() []netip.Prefix {
	return f.pick("172.21.0.0/16", "fd00:10:21::/112")
}

func (f Family) pick(v4, v6 string) []netip.Prefix {
	var prefixes []netip.Prefix
	if f.has4() {
		prefixes = append(prefixes, netip.MustParsePrefix(v4))
	}
	if f.has6() {
		prefixes = append(prefixes, netip.MustParsePrefix(v6))
	}
	return prefixes
}

// complete fills in what follows from other options and puts IPv4 first.
func (o Options) complete() Options {
	if o.PodCIDRs == nil {
		o.PodCIDRs = o.Family.defaultPodCIDRs()
	}
	if o.ServiceCIDRs == nil {
		o.ServiceCIDRs = o.Family.defaultServiceCIDRs()
	}
	ipv4First := func(a, b netip.Prefix) int { return a.Addr().BitLen() - b.Addr().BitLen() }
	o.PodCIDRs = slices.SortedStableFunc(slices.Values(o.PodCIDRs), ipv4First)
	o.ServiceCIDRs = slices.SortedStableFunc(slices.Values(o.ServiceCIDRs), ipv4First)
	if o.Fabric == "" {
		o.Fabric = VPC
	}
	if o.Progress == nil {
		o.Progress = func(string) {}
	}
	return o
}

// Validate names every fault of the options at once, by the flag that sets it.
func (o Options) Validate() error {
	o = o.complete()
	errs := []error{ledger.CheckName(o.Name)}
	if o.Nodes < MinNodes || o.Nodes > MaxNodes {
		errs = append(errs, fmt.Errorf("--nodes %d: give %d to %d", o.Nodes, MinNodes, MaxNodes))
	}
	if o.ProxyMode != "nftables" && o.ProxyMode != "iptables" {
		errs = append(errs, fmt.Errorf("--proxy-mode %q: give nftables or iptables", o.ProxyMode))
	}
	if o.Fabric != VPC && o.Fabric != Switch {
		errs = append(errs, fmt.Errorf("--fabric %q: give vpc or switch", o.Fabric))
	}
	if o.CloudProvider != "" && o.CloudProvider != External {
		errs = append(errs, fmt.Errorf("--cloud-provider %q: give external, or leave it out", o.CloudProvider))
	}
	if o.CloudProvider != "" && (o.Fabric == Switch || o.TestNetwork) {
		errs = append(errs, errors.New("--cloud-provider needs --fabric vpc and Ropeway: somebody has to make the nodes known"))
	}
	if o.TestNetwork && o.Fabric == Switch {
		errs = append(errs, errors.New("--test-network needs --fabric vpc: it is routed by the VPC"))
	}
	if o.Bare && o.TestNetwork {
		errs = append(errs, errors.New("--bare and --test-network: give one of them"))
	}
	if o.TestNetwork && !o.AllocateNodeCIDRs {
		errs = append(errs, errors.New("--test-network needs --allocate-node-cidrs=true: it takes each node's podCIDRs"))
	}
	switch o.Family {
	case IPv4, IPv6, Dual:
		errs = append(errs, o.validateCIDRs()...)
	default:
		errs = append(errs, fmt.Errorf("--ip-family %q: give ipv4, ipv6 or dual", o.Family))
	}
	return errors.Join(errs...)
}

func (o Options) validateCIDRs() []error {
	errs := o.validateFamilies("--pod-cidr", o.PodCIDRs)
	errs = append(errs, o.validateFamilies("--service-cidr", o.ServiceCIDRs)...)
	if len(errs) > 0 {
		return errs
	}
	for _, p := range o.PodCIDRs {
		if o.AllocateNodeCIDRs {
			errs = append(errs, checkNodeCIDRs(p, o.Nodes))
		}
	}
	for _, p := range o.ServiceCIDRs {
		errs = append(errs, checkServiceCIDR(p))
	}
	named := []struct {
		flag     string
		prefixes []netip.Prefix
	}{{"the VPC's range", vpcRange()}, {"the cloud's own range", cloudRange()}, {"--service-cidr", o.ServiceCIDRs}, {"--pod-cidr", o.PodCIDRs}}
	for i, a := range named {
		for _, b := range named[i+1:] {
			errs = append(errs, checkApart(a.flag, a.prefixes, b.flag, b.prefixes))
		}
	}
	return errs
}

// validateFamilies wants exactly one prefix for each family of the cluster.
func (o Options) validateFamilies(flag string, prefixes []netip.Prefix) []error {
	var errs []error
	count4, count6 := 0, 0
	for _, p := range prefixes {
		if !p.IsValid() || p.Masked() != p {
			errs = append(errs, fmt.Errorf("%s %s: the bits after the prefix length must be zero; did you mean %s?", flag, p, p.Masked()))
		}
		if p.Addr().Is4() {
			count4++
		} else {
			count6++
		}
	}
	want := map[bool]int{true: 1}
	if count4 != want[o.Family.has4()] || count6 != want[o.Family.has6()] {
		errs = append(errs, fmt.Errorf("%s %s: with --ip-family %s give %s", flag, joinPrefixes(prefixes), o.Family,
			map[Family]string{IPv4: "one IPv4 prefix", IPv6: "one IPv6 prefix", Dual: "one IPv4 and one IPv6 prefix, separated by a comma"}[o.Family]))
	}
	return errs
}

// checkNodeCIDRs holds the controller-manager's own limits: at most 2^16
// node CIDRs in the pod CIDR, and at least one for each node.
func checkNodeCIDRs(p netip.Prefix, nodes int) error {
	bits := config.NodeMask(p) - p.Bits()
	if bits > 16 {
		return fmt.Errorf("--pod-cidr %s: it is too large for node CIDRs of /%d, give /%d or longer", p, config.NodeMask(p), config.NodeMask(p)-16)
	}
	if bits < 0 || 1<<bits < nodes {
		return fmt.Errorf("--pod-cidr %s: it does not hold a /%d for each of %d nodes; give a shorter prefix, fewer nodes, or --allocate-node-cidrs=false",
			p, config.NodeMask(p), nodes)
	}
	return nil
}

// checkServiceCIDR holds the API server's own limits (at most 2^20 IPv6
// addresses, and hence Kubernetes' habit of /112) and room for cluster DNS.
func checkServiceCIDR(p netip.Prefix) error {
	length := p.Addr().BitLen() - p.Bits()
	switch {
	case length < 4:
		return fmt.Errorf("--service-cidr %s: cluster DNS takes its tenth address, give /%d or shorter", p, p.Addr().BitLen()-4)
	case length > 20:
		return fmt.Errorf("--service-cidr %s: the API server takes /%d or longer", p, p.Addr().BitLen()-20)
	}
	return nil
}

func checkApart(flagA string, a []netip.Prefix, flagB string, b []netip.Prefix) error {
	for _, x := range a {
		for _, y := range b {
			if x.Overlaps(y) {
				return fmt.Errorf("%s %s overlaps %s %s: choose another", flagB, y, flagA, x)
			}
		}
	}
	return nil
}

func joinPrefixes(prefixes []netip.Prefix) string {
	var texts []string
	for _, p := range prefixes {
		texts = append(texts, p.String())
	}
	return strings.Join(texts, ",")
}

var comma = regexp.MustCompile(`\s*,\s*`)

// ParseCIDRs reads the value of --pod-cidr and --service-cidr: prefixes
// separated by commas; nothing is nil.
func ParseCIDRs(flag, value string) ([]netip.Prefix, error) {
	if value == "" {
		return nil, nil
	}
	var prefixes []netip.Prefix
	for _, text := range comma.Split(value, -1) {
		p, err := netip.ParsePrefix(text)
		if err != nil {
			return nil, fmt.Errorf("%s %q: give a prefix such as 10.244.0.0/16: %w", flag, text, err)
		}
		prefixes = append(prefixes, p)
	}
	return prefixes, nil
}

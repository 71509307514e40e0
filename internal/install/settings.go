package install

import (
	"encoding/json"
	"fmt"
	"net"
	"net/netip"
	"reflect"
	"slices"
	"strings"

	"ropeway.dev/ropeway/api/v1alpha1"
	"ropeway.dev/ropeway/internal/agent/hostinstall"
)

// Settings are an installation with nothing left open: what Render takes.
type Settings struct {
	Namespace          string
	Image, Version     string
	Network            v1alpha1.ClusterNetworkSpec
	APIServerHost      string // empty: through the Service
	APIServerPort      string
	Conflist           string
	TakeOver           []string
	CNIBinDir          string
	CNIConfDir         string
	LogLevel           string
	VethMTU            string // of the ConfigMap: bytes, or 0
	ControllerReplicas int
	AgentPort          int
	ControllerPort     int
}

// What stands where nothing else was asked for.
const (
	defaultBinDir   = "/opt/cni/bin"
	defaultConfDir  = "/etc/cni/net.d"
	defaultLogLevel = "info"
	defaultVethMTU  = "0"
)

// DefaultCloudSecret is the Secret that the controller may read where the
// ClusterNetwork names none.
const DefaultCloudSecret = "ropeway-cloud"

// CloudSecret names the Secret with the cloud's credentials.
func (s Settings) CloudSecret() string {
	if s.Network.Cloud == nil {
		return DefaultCloudSecret
	}
	return orElse(s.Network.Cloud.CredentialsSecret, DefaultCloudSecret)
}

// KeepsNodes says whether the controller looks after the nodes' instances, for
// which it needs rights on Nodes.
func (s Settings) KeepsNodes() bool { return s.Network.Cloud.KeepsNodes() }

// Resolve finds what the options leave open: in what is installed, in the cluster,
// or in the defaults. survey is nil when there is no cluster to
// look at. The notes say, as sentences, what was found or assumed.
func Resolve(o Options, survey *Survey) (Settings, []string, error) {
	if err := o.Validate(); err != nil {
		return Settings{}, nil, err
	}
	var notes []string
	if survey != nil {
		notes = o.addInstalled(survey.Installed)
		notes = append(notes, firstNotes(survey)...)
		notes = append(notes, otherServer(o, survey)...)
	}
	if slices.Equal(o.TakeOver, []string{takeOverNone}) {
		o.TakeOver = nil
	}
	image, err := imageReference(o.Image, o.Version, o.Registry)
	if err != nil {
		return Settings{}, nil, err
	}
	s := Settings{
		Namespace: Namespace, Image: image, Version: labelVersion(o.Version),
		Conflist: orElse(o.Conflist, hostinstall.DefaultTemplate), TakeOver: o.TakeOver,
		CNIBinDir: orElse(o.CNIBinDir, defaultBinDir), CNIConfDir: orElse(o.CNIConfDir, defaultConfDir),
		LogLevel: orElse(o.LogLevel, defaultLogLevel), VethMTU: defaultVethMTU, ControllerReplicas: 2,
		AgentPort: AgentPort, ControllerPort: ControllerPort,
	}
	if survey != nil {
		overrideIfSet(&s.VethMTU, survey.Installed.VethMTU)
	}
	conflist, err := hostinstall.Render(s.Conflist, hostinstall.Values{NodeName: "node"})
	if err != nil {
		return Settings{}, nil, fmt.Errorf("the conflist would be refused by every agent: %w", err)
	}
	var more []string
	if s.Network, more, err = resolveNetwork(o, survey); err != nil {
		return Settings{}, append(notes, more...), err
	}
	notes = append(notes, more...)
	if err := checkFamilies(conflist, s.Network.PodCIDRs); err != nil {
		return Settings{}, notes, err
	}
	if s.APIServerHost, s.APIServerPort, more, err = resolveAPIServer(o, survey); err != nil {
		return Settings{}, notes, err
	}
	notes = append(notes, more...)
	if survey != nil && len(survey.Nodes) == 1 {
		s.ControllerReplicas = 1
		notes = append(notes, "one controller instead of two, since the cluster has one node")
	}
	return s, notes, nil
}

// firstNotes says what changes for pods that run on the cluster already.
func firstNotes(survey *Survey) []string {
	if survey.Network != nil {
		return nil
	}
	return []string{"pods reach the cloud's metadata service no more, so those that use the role of their instance lose it: spec.metadataAccess.namespaces of the ClusterNetwork opens it to theirs"}
}

// otherServer says that the API server's address that is installed stays, where the
// kubeconfig has another.
func otherServer(o Options, survey *Survey) []string {
	host, port, err := SplitAPIServer(survey.Server)
	if survey.Installed.APIServer == "" || o.APIServer != survey.Installed.APIServer || err != nil || isLoopback(host) {
		return nil
	}
	if yours := net.JoinHostPort(host, port); yours != o.APIServer {
		return []string{fmt.Sprintf("--api-server stays %s, as it is installed, and your kubeconfig has %s: --api-server %s changes it", o.APIServer, yours, yours)}
	}
	return nil
}

// checkFamilies refuses a conflist whose ipam asks for a family (assign_ipv4,
// assign_ipv6, as calico-ipam has them) that the pod network does not have: no pod
// would get its addresses.
func checkFamilies(conflist []byte, podCIDRs []string) error {
	var list struct {
		Plugins []struct{ IPAM map[string]any }
	}
	if err := json.Unmarshal(conflist, &list); err != nil {
		return fmt.Errorf("the conflist: %w", err)
	}
	for i, plugin := range list.Plugins {
		for key, is := range map[string]func(netip.Addr) bool{"assign_ipv4": netip.Addr.Is4, "assign_ipv6": netip.Addr.Is6} {
			has := slices.ContainsFunc(podCIDRs, func(cidr string) bool {
				p, err := netip.ParsePrefix(cidr)
				return err == nil && is(p.Addr())
			})
			if fmt.Sprint(plugin.IPAM[key]) == "true" && !has {
				return fmt.Errorf("plugins[%d].ipam.%s of the conflist asks for addresses that the pod network %s does not have: give a --pod-cidr of that family too, or take it out of the conflist",
					i, key, strings.Join(podCIDRs, ", "))
			}
		}
	}
	return nil
}

// labelVersion makes a version fit a label's value.
func labelVersion(v string) string {
	v = strings.Map(func(r rune) rune {
		if r == '.' || r == '-' || r == '_' || r >= '0' && r <= '9' || r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' {
			return r
		}
		return '_'
	}, v)
	return strings.Trim(v[:min(len(v), 63)], "._-")
}

// resolveNetwork starts from what the cluster has: an installation that is run
// again changes only what it is told to.
func resolveNetwork(o Options, survey *Survey) (v1alpha1.ClusterNetworkSpec, []string, error) {
	var spec v1alpha1.ClusterNetworkSpec
	var notes []string
	if survey != nil && survey.Network != nil {
		spec = *survey.Network.Spec.DeepCopy()
		notes = append(notes, "the cluster's ClusterNetwork stays as it is, but for what the flags say")
	}
	override(&spec, o)
	if len(spec.PodCIDRs) == 0 {
		cidrs, note, err := survey.podCIDRs()
		if err != nil {
			return spec, notes, err
		}
		spec.PodCIDRs = cidrs
		notes = append(notes, note)
	}
	v1alpha1.Defaults(&spec)
	notes = append(notes, directNotes(spec)...)
	if err := v1alpha1.Validate(&spec); err != nil {
		return spec, notes, fmt.Errorf("the pod network that was asked for cannot be: %w", err)
	}
	return spec, notes, nil
}

func override(spec *v1alpha1.ClusterNetworkSpec, o Options) {
	if len(o.PodCIDRs) > 0 {
		spec.PodCIDRs = o.PodCIDRs
	}
	if len(o.Transports) > 0 {
		spec.Transports = o.Transports
	}
	if mtu, err := parseMTU(o.MTU); err == nil && mtu != nil {
		spec.MTU = mtu
	}
	if o.Masquerade != nil {
		spec.NAT.Outgoing = o.Masquerade
	}
	overrideIfSet(&spec.AddressSource, o.AddressSource)
	overrideIfSet(&spec.BlockSize.IPv4, o.BlockSizeIPv4)
	overrideIfSet(&spec.BlockSize.IPv6, o.BlockSizeIPv6)
	overrideIfSet(&spec.VXLAN.Port, o.VXLANPort)
	overrideIfSet(&spec.VXLAN.VNI, o.VXLANVNI)
	overrideCloud(spec, o.Cloud)
}

// overrideCloud changes what was spoken of.
func overrideCloud(spec *v1alpha1.ClusterNetworkSpec, asked v1alpha1.CloudSpec) {
	cloud := v1alpha1.CloudSpec{}
	if spec.Cloud != nil {
		cloud = *spec.Cloud
	}
	overrideIfSet(&cloud.Provider, asked.Provider)
	overrideIfSet(&cloud.RegionID, asked.RegionID)
	overrideIfSet(&cloud.VPCID, asked.VPCID)
	overrideIfSet(&cloud.Endpoint, asked.Endpoint)
	overrideIfSet(&cloud.Routes, asked.Routes)
	overrideIfSet(&cloud.Nodes, asked.Nodes)
	overrideIfSet(&cloud.LoadBalancers, asked.LoadBalancers)
	overrideIfSet(&cloud.CredentialsSecret, asked.CredentialsSecret)
	if len(asked.RouteTableIDs) > 0 {
		cloud.RouteTableIDs = asked.RouteTableIDs
	}
	if len(asked.VPCCIDRs) > 0 {
		cloud.VPCCIDRs = asked.VPCCIDRs
	}
	if spec.Cloud != nil || !reflect.DeepEqual(cloud, v1alpha1.CloudSpec{}) {
		spec.Cloud = &cloud
	}
}

// directNotes says what the direct transport needs beside being allowed.
func directNotes(spec v1alpha1.ClusterNetworkSpec) []string {
	if !slices.Contains(spec.Transports, v1alpha1.TransportDirect) {
		return nil
	}
	var notes []string
	switch c := spec.Cloud; {
	case c == nil || c.Provider == "" || c.Routes == v1alpha1.DutyOff:
		notes = append(notes, "direct needs a fabric that leads to the nodes' pod ranges by itself, such as a common layer-2 network or routes that somebody else makes: --cloud alibaba lets Ropeway make those of a VPC")
	case !c.KeepsNodes():
		// A VPC drops what an interface sends from addresses that are not its own.
		notes = append(notes, "direct needs SourceDestCheck switched off at the interface of every instance, of new ones too: --cloud-nodes ropeway lets Ropeway see to it")
	}
	return notes
}

func overrideIfSet[T comparable](to *T, value T) {
	var zero T
	if value != zero {
		*to = value
	}
}

// resolveAPIServer finds an address that nodes can reach without the Service,
// which kube-proxy has to set up first.
func resolveAPIServer(o Options, survey *Survey) (host, port string, notes []string, err error) {
	if o.APIServer != "" {
		host, port, err = SplitAPIServer(o.APIServer)
		return host, port, nil, err
	}
	if survey == nil || survey.Server == "" {
		return "", "", []string{"agents reach the API server through the Service kubernetes: give --api-server host:port for a direct way"}, nil
	}
	host, port, err = SplitAPIServer(survey.Server)
	if err == nil && !isLoopback(host) {
		return host, port, nil, nil
	}
	if len(survey.APIServers) == 0 {
		return "", "", nil, fmt.Errorf("the kubeconfig's server %s is no address that nodes can reach: give --api-server host:port", survey.Server)
	}
	host, port, err = net.SplitHostPort(survey.APIServers[0])
	note := fmt.Sprintf("agents reach the API server at %s, since the kubeconfig's %s is this machine's own: --api-server sets another", survey.APIServers[0], survey.Server)
	return host, port, []string{note}, err
}

func isLoopback(host string) bool {
	a, err := netip.ParseAddr(host)
	return host == "localhost" || err == nil && a.IsLoopback()
}

// podCIDRs finds the cluster's pod ranges, and says from where. It is called
// for a nil Survey too.
func (s *Survey) podCIDRs() (cidrs []string, note string, err error) {
	if s == nil {
		return []string{DefaultPodCIDR}, "pod CIDR " + DefaultPodCIDR + ", the default: --pod-cidr sets another", nil
	}
	if len(s.PodSubnets) > 0 {
		return s.PodSubnets, fmt.Sprintf("pod CIDRs %s, from %s", strings.Join(s.PodSubnets, ", "), s.PodSubnetsFrom), nil
	}
	outside := outsideOf([]string{DefaultPodCIDR}, s.Nodes)
	if len(outside) > 0 {
		return nil, "", fmt.Errorf("what the cluster's pod network is cannot be found out, and %s, the default, does not hold the nodes' podCIDRs (%s): give --pod-cidr, the --cluster-cidr of kube-controller-manager",
			DefaultPodCIDR, strings.Join(firstFew(outside), ", "))
	}
	return []string{DefaultPodCIDR}, "pod CIDR " + DefaultPodCIDR + ", the default, since nothing in the cluster says another: --pod-cidr does", nil
}

// firstFew shortens a list for a sentence.
func firstFew(list []string) []string {
	const few = 5
	if len(list) <= few {
		return list
	}
	return append(slices.Clone(list[:few]), fmt.Sprintf("and %d more", len(list)-few))
}

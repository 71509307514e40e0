// Package install renders, applies and removes an installation of Ropeway, and
// looks at a cluster for whoever installs: what it looks like (Survey), what
// stands in the way (Preflight), what is wrong afterwards (doctor, below). What
// it decides is decided by pure functions over a Survey; reading and writing
// the cluster are kept apart from them.
package install

import (
	"errors"
	"fmt"
	"net"
	"path"
	"slices"
	"strconv"
	"strings"

	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/apimachinery/pkg/util/validation"

	"ropeway.dev/ropeway/api/v1alpha1"
	"ropeway.dev/ropeway/internal/calico"
)

// Names of what is installed.
const (
	Namespace      = "kube-system"
	AgentName      = "ropeway-agent"
	ControllerName = "ropeway-controller"
	ConfigName     = "ropeway-config"
	CleanerName    = "ropeway-clean"

	// LabelName and its value are on everything that is ours.
	LabelName      = "app.kubernetes.io/name"
	LabelComponent = "app.kubernetes.io/component"
	LabelVersion   = "app.kubernetes.io/version"
	LabelManagedBy = "app.kubernetes.io/managed-by"
	ProductName    = "ropeway"

	// AgentPort and ControllerPort serve health and metrics on the node.
	AgentPort      = 9797
	ControllerPort = 9799
)

// DefaultImage is the image's reference, without a tag.
const DefaultImage = "docker.io/ropeway/ropeway"

// DefaultPodCIDR is taken when nothing says otherwise.
const DefaultPodCIDR = "10.244.0.0/16"

// Options are what a person asks for. A zero field was not spoken of: Resolve
// finds it in the cluster, or takes the default.
type Options struct {
	Image    string // reference; with a tag or digest, or without
	Version  string // tag, for an Image without one
	Registry string // replaces docker.io in the image's reference

	PodCIDRs      []string
	AddressSource v1alpha1.AddressSource
	BlockSizeIPv4 int32
	BlockSizeIPv6 int32
	Transports    []v1alpha1.Transport
	VXLANPort     int32
	VXLANVNI      int32
	MTU           string // perRoute, smallest, or a number of bytes
	Masquerade    *bool
	Cloud         v1alpha1.CloudSpec

	APIServer  string   // host:port, for agents and controller
	TakeOver   []string // names of other products' plugins to answer to
	Conflist   string   // template of the CNI configuration
	CNIBinDir  string
	CNIConfDir string
	LogLevel   string
	// AcceptNoPolicy installs beside NetworkPolicies that are not enforced.
	AcceptNoPolicy bool
}

// AddCalico fills the fields that were not spoken of with what a Calico
// installation asks for. Those that were spoken of win.
func (o *Options) AddCalico(c calico.Installation) {
	setIfZero(&o.Registry, c.Registry)
	setIfZero(&o.AddressSource, c.AddressSource)
	setIfZero(&o.BlockSizeIPv4, c.BlockSizeIPv4)
	setIfZero(&o.BlockSizeIPv6, c.BlockSizeIPv6)
	setIfZero(&o.VXLANPort, c.VXLANPort)
	setIfZero(&o.VXLANVNI, c.VXLANVNI)
	setIfZero(&o.Masquerade, c.Masquerade)
	setIfZero(&o.Conflist, c.Conflist)
	setIfZero(&o.CNIBinDir, c.CNIBinDir)
	setIfZero(&o.CNIConfDir, c.CNIConfDir)
	setIfZero(&o.LogLevel, c.LogLevel)
	if c.MTU != 0 {
		setIfZero(&o.MTU, strconv.Itoa(c.MTU))
	}
	if c.APIServerHost != "" {
		setIfZero(&o.APIServer, net.JoinHostPort(c.APIServerHost, orElse(c.APIServerPort, "443")))
	}
	if len(o.PodCIDRs) == 0 {
		o.PodCIDRs = c.PodCIDRs
	}
	if len(o.Transports) == 0 {
		o.Transports = c.Transports
	}
	for _, name := range c.TakeOver {
		if !slices.Contains(o.TakeOver, name) {
			o.TakeOver = append(o.TakeOver, name)
		}
	}
}

func setIfZero[T comparable](to *T, value T) {
	var zero T
	if *to == zero {
		*to = value
	}
}

func orElse(s, other string) string {
	if s == "" {
		return other
	}
	return s
}

// Validate says everything that is wrong with what was asked for, by the name
// of the flag; what can only be judged with the cluster is Preflight's.
func (o *Options) Validate() error {
	var errs []error
	for _, cidr := range o.PodCIDRs {
		if _, err := v1alpha1.ParsePodCIDR(cidr); err != nil {
			errs = append(errs, fmt.Errorf("--pod-cidr: %w", err))
		}
	}
	for _, t := range o.Transports {
		switch t {
		case v1alpha1.TransportDirect, v1alpha1.TransportIPIP, v1alpha1.TransportVXLAN:
		default:
			errs = append(errs, fmt.Errorf("--transports: %q is not a transport: direct, ipip and vxlan are", t))
		}
	}
	switch o.AddressSource {
	case "", v1alpha1.AddressesFromBlocks, v1alpha1.AddressesFromNodeCIDR:
	default:
		errs = append(errs, fmt.Errorf("--address-source: want %s or %s, not %q", v1alpha1.AddressesFromBlocks, v1alpha1.AddressesFromNodeCIDR, o.AddressSource))
	}
	if _, err := parseMTU(o.MTU); err != nil {
		errs = append(errs, err)
	}
	return errors.Join(append(errs, o.validateHost()...)...)
}

// validateHost judges what is about nodes and images.
func (o *Options) validateHost() []error {
	var errs []error
	if _, err := imageReference(o.Image, o.Version, o.Registry); err != nil {
		errs = append(errs, err)
	}
	if o.APIServer != "" {
		if _, _, err := SplitAPIServer(o.APIServer); err != nil {
			errs = append(errs, fmt.Errorf("--api-server: %w", err))
		}
	}
	for _, name := range o.TakeOver {
		if !slices.Contains([]string{"calico", "calico-ipam", "spiderpool"}, name) && (name != takeOverNone || len(o.TakeOver) > 1) {
			errs = append(errs, fmt.Errorf("--take-over: %q cannot be answered to: calico, calico-ipam and spiderpool can; none alone takes back what is installed", name))
		}
	}
	for flag, dir := range map[string]string{"--cni-bin-dir": o.CNIBinDir, "--cni-conf-dir": o.CNIConfDir} {
		if dir != "" && (!path.IsAbs(dir) || path.Clean(dir) == "/") {
			errs = append(errs, fmt.Errorf("%s: want the absolute path of a directory on the nodes, not %q", flag, dir))
		}
	}
	if !slices.Contains([]string{"", "debug", "info", "warn", "error"}, o.LogLevel) {
		errs = append(errs, fmt.Errorf("--log-level: want debug, info, warn or error, not %q", o.LogLevel))
	}
	return errs
}

// parseMTU reads --mtu; empty is nil.
func parseMTU(s string) (*intstr.IntOrString, error) {
	switch s {
	case "":
		return nil, nil
	case v1alpha1.MTUPerRoute, v1alpha1.MTUSmallest:
		v := intstr.FromString(s)
		return &v, nil
	}
	n, err := strconv.Atoi(s)
	if err != nil || n < 1280 || n > 65535 {
		return nil, fmt.Errorf("--mtu: want %s, %s, or a number of bytes from 1280 to 65535, not %q", v1alpha1.MTUPerRoute, v1alpha1.MTUSmallest, s)
	}
	v := intstr.FromInt32(int32(n))
	return &v, nil
}

// imageReference puts the image's reference together. The registry replaces
// the first part of it, docker.io or whatever host stands there, as
// s?docker.io?MIRROR? does in a manifest.
func imageReference(image, version, registry string) (string, error) {
	image = orElse(image, DefaultImage)
	_, tagged := cutTag(image)
	switch {
	case strings.ContainsAny(image, " \t\n") || strings.Contains(image, "://"):
		return "", fmt.Errorf("--image: want a reference like %s:v1, not %q", DefaultImage, image)
	case !tagged && version == "":
		return "", fmt.Errorf("--version: the image %s has no tag: give one", image)
	case !tagged:
		image += ":" + version
	}
	if registry == "" {
		return image, nil
	}
	registry = strings.TrimSuffix(registry, "/")
	if strings.ContainsAny(registry, " \t\n@") || strings.Contains(registry, "://") || registry == "" {
		return "", fmt.Errorf("--registry: want a host, with a path or without, like registry.example.com, not %q", registry)
	}
	if host, rest, found := strings.Cut(image, "/"); found && isRegistryHost(host) {
		image = rest
	}
	return registry + "/" + image, nil
}

// takeOverNone is --take-over's word for no name at all, where one is installed.
const takeOverNone = "none"

// cutTag separates a tag, a digest or both from a reference.
func cutTag(image string) (name string, tagged bool) {
	if name, _, found := strings.Cut(image, "@"); found {
		name, _ = cutTag(name) // it may have both
		return name, true
	}
	slash := strings.LastIndex(image, "/")
	if colon := strings.LastIndex(image, ":"); colon > slash {
		return image[:colon], true
	}
	return image, false
}

// isRegistryHost tells a registry's host from the first part of a path, by
// docker's own rule.
func isRegistryHost(s string) bool {
	return s == "localhost" || strings.ContainsAny(s, ".:")
}

// SplitAPIServer reads host:port, https://host:port, or a host alone, whose
// port is then 443 (6443 where no scheme is given).
func SplitAPIServer(s string) (host, port string, err error) {
	rest, isURL := strings.CutPrefix(s, "https://")
	if strings.Contains(rest, "://") {
		return "", "", fmt.Errorf("want https, not %q", s)
	}
	rest, _, _ = strings.Cut(rest, "/")
	port = "6443"
	if isURL {
		port = "443"
	}
	host = strings.Trim(rest, "[]")
	if h, p, err := net.SplitHostPort(rest); err == nil {
		host, port = h, p
	}
	if n, err := strconv.Atoi(port); err != nil || n < 1 || n > 65535 {
		return "", "", fmt.Errorf("want host:port, not %q", s)
	}
	if net.ParseIP(host) == nil && len(validation.IsDNS1123Subdomain(host)) > 0 {
		return "", "", fmt.Errorf("want the host's name or address, then the port, not %q", s)
	}
	return host, port, nil
}

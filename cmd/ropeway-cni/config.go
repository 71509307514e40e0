package main

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"

	"github.com/containernetworking/cni/pkg/types"

	"ropeway.dev/ropeway/internal/cniwire"
)

// netConf is the plugin's part of a network configuration. Calico's fields
// keep their names and meaning. Those of Calico's that are not here are
// harmless, since what they tune does not exist: datastore_type, nodename,
// nodename_file, kubernetes, etcd_*, qps, burst, ipam_lock_file,
// require_mtu_file, readiness_gates and policy_setup_timeout_seconds (the agent
// itself holds ADD back until the node is ready), log_* (there is no log: see
// the command's comment), and what only Windows reads.
type netConf struct {
	CNIVersion string    `json:"cniVersion"`
	Name       string    `json:"name"`
	IPAM       ipamConf  `json:"ipam"`
	DNS        types.DNS `json:"dns"`

	// Socket is the agent's; for a node whose /run is elsewhere, and for tests.
	Socket string `json:"socket"`
	// MTU of the pod's interface in bytes; 0 leaves it to the agent.
	MTU       int `json:"mtu"`
	NumQueues int `json:"num_queues"`
	Policy    struct {
		Type string `json:"type"`
	} `json:"policy"`
	ContainerSettings struct {
		AllowIPForwarding *bool `json:"allow_ip_forwarding"`
	} `json:"container_settings"`
	IncludeDefaultRoutes bool `json:"include_default_routes"`

	// The rest is refused where it is used.
	DeviceType       string         `json:"device_type"`
	DataplaneOptions map[string]any `json:"dataplane_options"`
	FeatureControl   struct {
		IPAddrsNoIPAM bool `json:"ip_addrs_no_ipam"`
		FloatingIPs   bool `json:"floating_ips"`
	} `json:"feature_control"`
	RuntimeConfig struct {
		IPs []string `json:"ips"`
	} `json:"runtimeConfig"`
	Args struct {
		CNI struct {
			IPs []string `json:"ips"`
		} `json:"cni"`
	} `json:"args"`

	// Plugins is a conflist's; the runtime gives a plugin its own section.
	Plugins json.RawMessage `json:"plugins"`

	raw []byte
}

// ipamConf is the ipam section: ours and Calico's keys, and those of
// host-local's that the plugin itself looks at.
type ipamConf struct {
	Type                 string     `json:"type"`
	AssignIPv4           *flag      `json:"assign_ipv4"` // if only the other is there: true
	AssignIPv6           *flag      `json:"assign_ipv6"` // if only the other is there: false
	IPv4Pools            []string   `json:"ipv4_pools"`
	IPv6Pools            []string   `json:"ipv6_pools"`
	Routes               []dstRoute `json:"routes"`
	IncludeDefaultRoutes bool       `json:"include_default_routes"`

	// Spiderpool's keys. Those that are not here are harmless, since what they
	// tune does not exist: log_*, ipam_unix_socket_path.
	DefaultIPv4Pools  []string `json:"default_ipv4_ippool"`
	DefaultIPv6Pools  []string `json:"default_ipv6_ippool"`
	CleanGateway      bool     `json:"clean_gateway"`
	MatchMasterSubnet bool     `json:"match_master_subnet"`
}

// pools are the address pools that the configuration names, by family.
func (i ipamConf) pools() (ipv4, ipv6 []string) {
	return slices.Concat(i.IPv4Pools, i.DefaultIPv4Pools), slices.Concat(i.IPv6Pools, i.DefaultIPv6Pools)
}

// dstRoute is a route of the pod; its gateway is always the pod's only one.
type dstRoute struct {
	Dst netip.Prefix `json:"dst"`
}

// flag is a boolean that Calico writes as a string.
type flag bool

// UnmarshalJSON takes true, false, "true" and "false".
func (f *flag) UnmarshalJSON(data []byte) error {
	switch strings.ToLower(strings.Trim(string(data), `"`)) {
	case "true":
		*f = true
	case "false":
		*f = false
	default:
		return fmt.Errorf("%s is neither true nor false", data)
	}
	return nil
}

// served reports whether the agent allocates for this ipam.type.
func served(ipamType string) bool {
	return ipamType == "" || cniwire.IsServed(ipamType)
}

// readConf reads and validates the configuration of everything but DEL.
func readConf(stdin []byte) (*netConf, error) {
	c := &netConf{raw: stdin}
	if err := json.Unmarshal(stdin, c); err != nil {
		return nil, types.NewError(cniwire.CodeDecode,
			fmt.Sprintf("the network configuration on standard input is not understood (%v): correct the plugin's section of the conflist", err), "")
	}
	if c.Socket == "" {
		c.Socket = cniwire.SocketPath
	}
	if err := c.validate(); err != nil {
		return nil, err
	}
	return c, nil
}

// readConfLeniently reads what DEL needs and nothing else: an attachment that
// was made must be deletable whatever became of its configuration.
func readConfLeniently(stdin []byte) *netConf {
	if c := (&netConf{}); json.Unmarshal(stdin, c) == nil && (c.Socket == "" || filepath.IsAbs(c.Socket)) {
		if c.Socket == "" {
			c.Socket = cniwire.SocketPath
		}
		c.raw = stdin
		return c // what ADD reads
	}
	var min struct {
		CNIVersion string          `json:"cniVersion"`
		Name       string          `json:"name"`
		Socket     json.RawMessage `json:"socket"`
		IPAM       json.RawMessage `json:"ipam"`
	}
	c := &netConf{raw: stdin}
	if err := json.Unmarshal(stdin, &min); err == nil {
		c.CNIVersion, c.Name = min.CNIVersion, min.Name
		_ = json.Unmarshal(min.Socket, &c.Socket)
		var ipam struct {
			Type string `json:"type"`
		}
		if err := json.Unmarshal(min.IPAM, &ipam); err == nil {
			c.IPAM.Type = ipam.Type
		}
	}
	if !filepath.IsAbs(c.Socket) {
		c.Socket = cniwire.SocketPath
	}
	return c
}

// tombstones is the directory beside the socket.
func (c *netConf) tombstones() string {
	return filepath.Join(filepath.Dir(c.Socket), filepath.Base(cniwire.TombstoneDir))
}

// validate refuses what would otherwise be ignored in silence: every message
// names the field, what it has, and what to do.
func (c *netConf) validate() error {
	where := fmt.Sprintf(" in the CNI configuration of network %q", c.Name)
	switch {
	case len(c.Plugins) > 0:
		return invalid("the configuration on standard input is a whole list (it has plugins)" + where + ": the runtime must pass the plugin's own section (CNI specification 1.1.0, section 3)")
	case !filepath.IsAbs(c.Socket):
		return invalid(fmt.Sprintf("socket is %q%s: give an absolute path, or leave it out for %s", c.Socket, where, cniwire.SocketPath))
	case c.MTU < 0:
		return invalid(fmt.Sprintf("mtu is %d%s: give a size in bytes, or 0 for the agent's choice", c.MTU, where))
	case c.DeviceType != "" && c.DeviceType != "veth":
		return invalid(fmt.Sprintf("device_type is %q%s: only veth is served, use that or leave it out", c.DeviceType, where))
	case c.Policy.Type != "" && c.Policy.Type != "k8s":
		return invalid(fmt.Sprintf("policy.type is %q%s: only k8s is known, use that or leave policy out", c.Policy.Type, where))
	case len(c.DataplaneOptions) > 0:
		return invalid("dataplane_options is set" + where + ": other dataplanes are not served, remove it")
	case c.FeatureControl.IPAddrsNoIPAM || c.FeatureControl.FloatingIPs:
		return invalid("feature_control turns on ip_addrs_no_ipam or floating_ips" + where + ": neither annotation is served, remove it")
	}
	return c.IPAM.validate(c, where)
}

func (i ipamConf) validate(c *netConf, where string) error {
	switch {
	case strings.ContainsRune(i.Type, filepath.Separator):
		return invalid(fmt.Sprintf("ipam.type is %q%s: give the name of a plugin, not a path", i.Type, where))
	case !served(i.Type):
		return nil // the delegated plugin judges the rest
	case slices.ContainsFunc(slices.Concat(i.IPv4Pools, i.IPv6Pools), isCIDR):
		return invalid("ipam.ipv4_pools or ipam.ipv6_pools has a CIDR" + where + ": name address pools (kubectl get addresspools,spiderippools)")
	case i.CleanGateway:
		return invalid("ipam.clean_gateway is set" + where + ": it is not served, remove it")
	case i.MatchMasterSubnet:
		return invalid("ipam.match_master_subnet is set" + where + ": it is not served, name pools in default_ipv4_ippool instead")
	case len(i.families()) == 0 && i.AssignIPv4 != nil:
		return invalid("ipam.assign_ipv4 is false and ipam.assign_ipv6 is not true" + where + ": no address family is left, set one of them to true")
	}
	return nil
}

func isCIDR(text string) bool {
	_, err := netip.ParsePrefix(text)
	return err == nil
}

// exact returns the addresses that the runtime asks for: CNI_ARGS' IP, the
// capability ips, or args.cni.ips.
func (c *netConf) exact(arg string) ([]netip.Addr, error) {
	asked := slices.Concat(c.RuntimeConfig.IPs, c.Args.CNI.IPs)
	if arg != "" {
		asked = append(asked, strings.Split(arg, ",")...)
	}
	var out []netip.Addr
	for _, text := range asked {
		addr, err := netip.ParseAddr(text)
		if p, perr := netip.ParsePrefix(text); perr == nil {
			addr, err = p.Addr(), nil // with the length of its subnet
		}
		if err != nil {
			return nil, invalid(fmt.Sprintf("the address %q is asked for (capability ips, args.cni.ips, or CNI_ARGS' IP) in network %q, and it is none: correct it", text, c.Name))
		}
		if slices.ContainsFunc(out, func(o netip.Addr) bool { return o.Is4() == addr.Is4() && o != addr }) {
			return nil, invalid(fmt.Sprintf("two addresses of one family are asked for in network %q: an interface gets one", c.Name))
		}
		if !slices.Contains(out, addr) {
			out = append(out, addr)
		}
	}
	return out, nil
}

// families are those that the configuration asks for; nil is what the network
// has.
func (i ipamConf) families() []string {
	if i.AssignIPv4 == nil && i.AssignIPv6 == nil {
		return nil
	}
	var out []string
	if i.AssignIPv4 == nil || bool(*i.AssignIPv4) {
		out = append(out, cniwire.FamilyIPv4)
	}
	if i.AssignIPv6 != nil && bool(*i.AssignIPv6) {
		out = append(out, cniwire.FamilyIPv6)
	}
	return out
}

// routes are the destinations of the pod's routes, from ours (the ipam section)
// or from what a delegated plugin answered; none means all.
func (c *netConf) routes(answered []*types.Route, addrs []netip.Addr) ([]netip.Prefix, error) {
	var out []netip.Prefix
	add := func(p netip.Prefix) {
		if p = p.Masked(); !slices.Contains(out, p) {
			out = append(out, p)
		}
	}
	for _, r := range c.IPAM.Routes {
		if !r.Dst.IsValid() {
			return nil, invalid(fmt.Sprintf("ipam.routes of network %q has a route without dst: give it one, such as 0.0.0.0/0", c.Name))
		}
		add(r.Dst)
	}
	for _, r := range answered {
		p, err := prefixOf(&r.Dst)
		if err != nil {
			return nil, fmt.Errorf("a route of the IPAM plugin %s: %w", c.IPAM.Type, err)
		}
		add(p)
	}
	if len(out) > 0 && (c.IncludeDefaultRoutes || c.IPAM.IncludeDefaultRoutes) {
		for _, a := range addrs {
			add(everything(a))
		}
	}
	return out, nil
}

// podArgs are the keys of CNI_ARGS that matter (Kubernetes' runtimes set them).
type podArgs struct {
	types.CommonArgs
	K8S_POD_NAMESPACE          types.UnmarshallableString //nolint:revive,stylecheck // the names are the wire's
	K8S_POD_NAME               types.UnmarshallableString //nolint:revive,stylecheck
	K8S_POD_UID                types.UnmarshallableString //nolint:revive,stylecheck
	K8S_POD_INFRA_CONTAINER_ID types.UnmarshallableString //nolint:revive,stylecheck // the container id again
	IP                         types.UnmarshallableString // a fixed address
}

// podOf reads CNI_ARGS (CNI conventions: unknown keys are an error, unless
// IgnoreUnknown=1, which runtimes set).
func podOf(args string) (cniwire.Pod, string, error) {
	var a podArgs
	if err := types.LoadArgs(args, &a); err != nil {
		return cniwire.Pod{}, "", types.NewError(cniwire.CodeInvalidEnvironment, fmt.Sprintf("CNI_ARGS is %q: %v", args, err), "")
	}
	return cniwire.Pod{Namespace: string(a.K8S_POD_NAMESPACE), Name: string(a.K8S_POD_NAME), UID: string(a.K8S_POD_UID)}, string(a.IP), nil
}

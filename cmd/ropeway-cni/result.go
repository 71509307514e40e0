package main

import (
	"fmt"
	"net"
	"net/netip"

	"github.com/containernetworking/cni/pkg/types"
	types100 "github.com/containernetworking/cni/pkg/types/100"
	cniversion "github.com/containernetworking/cni/pkg/version"

	"ropeway.dev/ropeway/internal/dataplane/podlink"
)

// everything is the prefix that holds all addresses of a's family.
func everything(a netip.Addr) netip.Prefix {
	if a.Is4() {
		return netip.PrefixFrom(netip.IPv4Unspecified(), 0)
	}
	return netip.PrefixFrom(netip.IPv6Unspecified(), 0)
}

// prefixOf converts, keeping host bits.
func prefixOf(n *net.IPNet) (netip.Prefix, error) {
	a, ok := netip.AddrFromSlice(n.IP)
	ones, bits := n.Mask.Size()
	if !ok || bits == 0 {
		return netip.Prefix{}, fmt.Errorf("%s is no address with a mask", n)
	}
	a = a.Unmap()
	if bits != a.BitLen() {
		return netip.Prefix{}, fmt.Errorf("the mask of %s is of another family", n)
	}
	return netip.PrefixFrom(a, ones), nil
}

func ipNet(p netip.Prefix) net.IPNet {
	return net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

// addressesOf are those of a result that belong to the interface, in order; nil
// takes those of no interface (an IPAM plugin's).
func addressesOf(ips []*types100.IPConfig, iface *int) ([]netip.Addr, error) {
	var out []netip.Addr
	for _, ip := range ips {
		if iface != nil && (ip.Interface == nil || *ip.Interface != *iface) {
			continue
		}
		p, err := prefixOf(&ip.Address)
		if err != nil {
			return nil, err
		}
		out = append(out, p.Addr())
	}
	return out, nil
}

// wired is the result of an ADD that made an interface (CNI specification
// 1.1.0, section 5, "ADD Success"), appended to that of a plugin before ours,
// if there was one. It is kept in the latest form; printing converts.
func (j *job) wired(prev *types100.Result, cfg podlink.Config, made podlink.Result, dns types.DNS) *types100.Result {
	out := &types100.Result{CNIVersion: types100.ImplementedSpecVersion}
	if prev != nil {
		out.Interfaces, out.IPs, out.Routes, out.DNS = prev.Interfaces, prev.IPs, prev.Routes, prev.DNS
	}
	mtu := 0 // of the 1.1.0 result only
	if ok, err := cniversion.GreaterThanOrEqualTo(j.conf.CNIVersion, "1.1.0"); err == nil && ok {
		mtu = cfg.MTU
	}
	pod := len(out.Interfaces) + 1
	out.Interfaces = append(out.Interfaces,
		&types100.Interface{Name: made.HostName, Mac: made.HostMAC.String(), Mtu: mtu},
		&types100.Interface{Name: cfg.Attachment.IfName, Mac: made.PodMAC.String(), Mtu: mtu, Sandbox: cfg.Netns})
	for _, a := range cfg.Addresses {
		out.IPs = append(out.IPs, &types100.IPConfig{
			Interface: types100.Int(pod), Address: ipNet(netip.PrefixFrom(a, a.BitLen())), Gateway: podlink.Gateway(a).AsSlice(),
		})
	}
	for _, dst := range cfg.Destinations() {
		out.Routes = append(out.Routes, &types.Route{Dst: ipNet(dst), GW: podlink.Gateway(dst.Addr()).AsSlice()})
	}
	// The configuration's DNS goes before the IPAM plugin's.
	if !j.conf.DNS.IsEmpty() {
		dns = j.conf.DNS
	}
	if !dns.IsEmpty() {
		out.DNS = dns
	}
	return out
}

// print writes the result in the version that the configuration asks for.
func (j *job) print(result *types100.Result) error {
	converted, err := result.GetAsVersion(j.conf.CNIVersion)
	if err != nil {
		return fmt.Errorf("putting the result into the form of CNI version %q: %w", j.conf.CNIVersion, err)
	}
	if err := converted.PrintTo(j.stdout); err != nil {
		return types.NewError(types.ErrIOFailure, fmt.Sprintf("printing the result: %v", err), "")
	}
	return nil
}

// previous is the result of the plugins before ours in the list (ADD), or of
// the ADD (CHECK); nil if there is none.
func (c *netConf) previous() (*types100.Result, error) {
	conf := types.PluginConf{CNIVersion: c.CNIVersion}
	if err := decodePrev(c.raw, &conf); err != nil {
		return nil, err
	}
	if conf.PrevResult == nil {
		return nil, nil
	}
	return types100.GetResult(conf.PrevResult)
}

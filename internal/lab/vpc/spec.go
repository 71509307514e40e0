package vpc

import (
	"errors"
	"fmt"
	"net/netip"
	"regexp"
	"strings"
)

// OutsideHost is the name of the outside world where hosts are listed.
const OutsideHost = "outside"

// outsideAddresses are the addresses that answer behind the VPC.
func outsideAddresses() []netip.Addr {
	return []netip.Addr{netip.MustParseAddr("8.8.8.8"), netip.MustParseAddr("2001:4860:4860::8888")}
}

// gatewayIPv6 is the next hop of every host's IPv6 default route. Link-local, as router advertisements have it.
func gatewayIPv6() netip.Addr { return netip.MustParseAddr("fe80::1") }

// gatewayOf is the default gateway of a subnet: for IPv4 the third address from its end (.253 of a /24, as Alibaba
// Cloud has it), for IPv6 the same link-local address everywhere.
func gatewayOf(subnet netip.Prefix) netip.Addr {
	if subnet.Addr().Is6() {
		return gatewayIPv6()
	}
	a := subnet.Masked().Addr().As4()
	for i := subnet.Bits(); i < 32; i++ {
		a[i/8] |= 1 << (7 - i%8)
	}
	return netip.AddrFrom4(a).Prev().Prev()
}

var (
	labName  = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,30}[a-z0-9])?$`)
	hostName = regexp.MustCompile(`^[a-z0-9]([a-z0-9.-]*[a-z0-9])?$`)
)

func vpcNetns(lab string) string { return "rwlab-" + lab + "-vpc" }

// Netns is the name of the namespace of a lab's VPC itself, which whoever changes it from inside another mount
// namespace has to see in /run/netns.
func Netns(lab string) string { return vpcNetns(lab) }

// OutsideNetns is the name of the namespace behind a lab's VPC, in which 8.8.8.8 and 2001:4860:4860::8888 answer
// ping and ServeOutside is to be run.
func OutsideNetns(lab string) string { return "rwlab-" + lab + "-out" }

func validateLab(lab string) error {
	if !labName.MatchString(lab) {
		return fmt.Errorf("lab name %q: want at most 32 lower-case letters, digits and inner hyphens", lab)
	}
	return nil
}

// validate names every fault of a Spec at once.
func (s Spec) validate() error {
	errs := []error{validateLab(s.Lab)}
	if len(s.Hosts) == 0 {
		errs = append(errs, errors.New("no hosts: give at least one"))
	}
	if s.MTU != 0 && (s.MTU < 1280 || s.MTU > 65535) {
		errs = append(errs, fmt.Errorf("MTU %d: want 1280 to 65535 bytes, or 0 for %d", s.MTU, DefaultMTU))
	}
	for _, p := range s.PodCIDRs {
		if !p.IsValid() || p != p.Masked() {
			errs = append(errs, fmt.Errorf("pod CIDR %v: want an address without host bits and a length", p))
		}
	}
	names, netnses := map[string]bool{OutsideHost: true}, map[string]bool{vpcNetns(s.Lab): true, OutsideNetns(s.Lab): true}
	for _, h := range s.Hosts {
		if !hostName.MatchString(h.Name) {
			errs = append(errs, fmt.Errorf("host %q: the name must be a DNS name in lower case", h.Name))
		}
		if !strings.HasPrefix(h.Netns, "rwlab-"+s.Lab+"-") || strings.Contains(h.Netns, "/") {
			errs = append(errs, fmt.Errorf("host %s: namespace %q must begin with rwlab-%s-", h.Name, h.Netns, s.Lab))
		}
		if names[h.Name] || netnses[h.Netns] {
			errs = append(errs, fmt.Errorf("host %s: its name or its namespace %s is taken: give each host its own", h.Name, h.Netns))
		}
		names[h.Name], netnses[h.Netns] = true, true
	}
	if errs = append(errs, s.validateAddresses()...); s.Switch {
		errs = append(errs, s.validateSwitch()...)
	}
	return errors.Join(errs...)
}

// validateAddresses looks for addresses that cannot be told apart by a route table.
func (s Spec) validateAddresses() []error {
	var errs []error
	var subnets []netip.Prefix
	owner := map[netip.Addr]string{}
	for _, h := range s.Hosts {
		if len(h.Addresses) == 0 {
			errs = append(errs, fmt.Errorf("host %s: no address: give at least one", h.Name))
		}
		for _, p := range h.Addresses {
			if err := checkAddress(p, owner); err != nil {
				errs = append(errs, fmt.Errorf("host %s: %w", h.Name, err))
				continue
			}
			owner[p.Addr()] = h.Name
			subnets = append(subnets, p.Masked())
		}
	}
	for i, a := range subnets {
		for _, b := range subnets[:i] {
			if a != b && a.Overlaps(b) {
				errs = append(errs, fmt.Errorf("subnets %s and %s overlap: hosts share one subnet or have different ones", b, a))
			}
		}
		for _, p := range s.PodCIDRs {
			if a.Overlaps(p) {
				errs = append(errs, fmt.Errorf("pod CIDR %s overlaps the subnet %s of a host: choose another", p, a))
			}
		}
	}
	return errs
}

func checkAddress(p netip.Prefix, owner map[netip.Addr]string) error {
	switch a := p.Addr(); {
	case !p.IsValid() || a.Is4In6() || a.Zone() != "" || !a.IsGlobalUnicast():
		return fmt.Errorf("address %v: want a unicast address with the length of its subnet", p)
	case a.Is4() && p.Bits() > 29, a.Is6() && p.Bits() > 126:
		return fmt.Errorf("address %s: the subnet is too small for hosts and a gateway (at most /29 or /126)", p)
	case a == p.Masked().Addr() || a == gatewayOf(p):
		return fmt.Errorf("address %s: it is the subnet's own address or its gateway", p)
	case owner[a] != "":
		return fmt.Errorf("address %s: host %s has it already", p, owner[a])
	}
	for _, out := range outsideAddresses() {
		if p.Contains(out) {
			return fmt.Errorf("address %s: its subnet contains %s of the outside world", p, out)
		}
	}
	return nil
}

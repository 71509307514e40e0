package vpc

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"strings"

	"github.com/containernetworking/plugins/pkg/netlinksafe"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// With Spec.Switch the lab's network is what stands in a rack instead of a cloud: the wires end in a bridge, hosts find
// one another by ordinary ARP and neighbour discovery, and one router, in the same namespace, has the gateway's address
// and the outside behind it. Nobody looks at sources, and the router knows the hosts' subnet only: what hosts route to
// one another they must route themselves.

// switchLink is the name of the bridge in the network's namespace.
const switchLink = "switch"

// ErrSwitch is returned by what only a VPC has.
var ErrSwitch = errors.New("the lab's network is a switch, which has no route table, no security group and no source check: bring a lab up with --fabric vpc")

// validateSwitch wants what makes one layer-2 network: a subnet for each family, which all hosts are in.
func (s Spec) validateSwitch() []error {
	var errs []error
	subnets := map[bool]netip.Prefix{} // IPv6 -> of the first host
	for _, h := range s.Hosts {
		for _, p := range h.Addresses {
			first, known := subnets[p.Addr().Is6()]
			if !known {
				subnets[p.Addr().Is6()] = p.Masked()
			} else if first != p.Masked() {
				errs = append(errs, fmt.Errorf("host %s: %s is not in the subnet %s: hosts on a switch share one", h.Name, p, first))
			}
		}
	}
	return errs
}

// startSwitch puts the wires together, and the router beside them.
func startSwitch(ctx context.Context, spec Spec) error {
	return inNetns(vpcNetns(spec.Lab), func() error {
		wires, err := listWiresHere()
		if err != nil {
			return err
		}
		bridge, err := addBridge(wires[0].mtu)
		if err != nil {
			return err
		}
		if _, err := runNft(ctx, switchRules(wires, spec.PodCIDRs), "-f", "-"); err != nil {
			return err
		}
		for _, w := range wires {
			if err := w.plug(bridge); err != nil {
				return fmt.Errorf("wire of host %s: %w", w.Host, err)
			}
		}
		return addSubnets(bridge, spec.Hosts[0].Addresses)
	})
}

// addSubnets puts the router into the subnets that all hosts are in. Its IPv6 address is link-local, as with router
// advertisements, so that the subnet takes a route.
func addSubnets(bridge netlink.Link, addresses []netip.Prefix) error {
	for _, p := range addresses {
		if err := addRouterAddress(bridge, p); err != nil {
			return err
		}
		if p.Addr().Is4() {
			continue
		}
		subnet := &netlink.Route{LinkIndex: bridge.Attrs().Index, Dst: ipNet(p.Masked()), Scope: netlink.SCOPE_LINK}
		if err := netlink.RouteAdd(subnet); err != nil {
			return fmt.Errorf("add the route to %s: %w", p.Masked(), err)
		}
	}
	return nil
}

func addBridge(mtu int) (netlink.Link, error) {
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MTU = switchLink, mtu
	snooping := false
	if err := netlink.LinkAdd(&netlink.Bridge{LinkAttrs: attrs, MulticastSnooping: &snooping}); err != nil {
		return nil, fmt.Errorf("make the switch (CONFIG_BRIDGE is needed): %w", err)
	}
	bridge, err := netlinksafe.LinkByName(switchLink)
	if err != nil {
		return nil, fmt.Errorf("find the switch: %w", err)
	}
	return bridge, netlink.LinkSetUp(bridge)
}

// plug connects a host's wire to the switch, and the outside's to the router.
func (w *wire) plug(bridge netlink.Link) error {
	link, err := netlinksafe.LinkByName(w.link)
	if err != nil {
		return err
	}
	if w.Host != OutsideHost {
		if err := netlink.LinkSetMaster(link, bridge); err != nil {
			return fmt.Errorf("plug it into the switch: %w", err)
		}
		return netlink.LinkSetUp(link)
	}
	if err := netlink.LinkSetUp(link); err != nil {
		return err
	}
	for _, p := range w.Addresses {
		if err := addRouterAddress(link, p); err != nil {
			return err
		}
		own := &netlink.Route{LinkIndex: w.index, Dst: ipNet(p), Scope: netlink.SCOPE_LINK}
		if err := netlink.RouteAdd(own); err != nil {
			return fmt.Errorf("add the route to %s: %w", p, err)
		}
	}
	return nil
}

// addRouterAddress makes the router the gateway of an address's subnet.
func addRouterAddress(link netlink.Link, p netip.Prefix) error {
	a := &netlink.Addr{IPNet: ipNet(netip.PrefixFrom(gatewayOf(p), p.Bits()))}
	if p.Addr().Is6() {
		a = &netlink.Addr{IPNet: ipNet(netip.PrefixFrom(gatewayOf(p), 64)), Flags: unix.IFA_F_NODAD}
	}
	if err := netlink.AddrAdd(link, a); err != nil {
		return fmt.Errorf("add the router's address %s: %w", a, err)
	}
	return nil
}

// switchCounters are the counters that a switch has, of those that a VPC has.
func switchCounters() []string {
	return []string{"forwarded", "proto-4", "proto-41", "udp-4789", "pod-cidr-bare"}
}

// switchRules count what hosts put on their wires, before the switch has it.
func switchRules(wires []*wire, podCIDRs []netip.Prefix) string {
	var b strings.Builder
	b.WriteString("table netdev rwlab {\n")
	for _, c := range switchCounters() {
		fmt.Fprintf(&b, "\tcounter %s {\n\t}\n", c)
	}
	var devices []string
	for _, w := range wires {
		if w.Host != OutsideHost {
			devices = append(devices, w.link)
		}
	}
	fmt.Fprintf(&b, "\tchain wires {\n\t\ttype filter hook ingress devices = { %s } priority 0; policy accept;\n", strings.Join(devices, ", "))
	b.WriteString("\t\tmeta protocol != { ip, ip6 } return\n\t\tcounter name forwarded\n" +
		"\t\tmeta l4proto 4 counter name proto-4 return\n\t\tmeta l4proto 41 counter name proto-41 return\n" +
		"\t\tudp dport 4789 counter name udp-4789 return\n")
	for _, p := range podCIDRs {
		word := "ip"
		if p.Addr().Is6() {
			word = "ip6"
		}
		for _, end := range []string{"saddr", "daddr"} {
			fmt.Fprintf(&b, "\t\t%s %s %s counter name pod-cidr-bare return\n", word, end, p)
		}
	}
	b.WriteString("\t}\n}\n")
	return b.String()
}

// isSwitch tells whether the network in whose namespace the thread is has a switch.
func isSwitch() bool {
	_, err := netlinksafe.LinkByName(switchLink)
	return err == nil
}

// hasSwitch is isSwitch for a lab; what else may be wrong is found by what is done next.
func hasSwitch(lab string) bool {
	found := false
	_ = inNetns(vpcNetns(lab), func() error { found = isSwitch(); return nil })
	return found
}

// countSwitch reads a switch's counters; packets count as GRO put them together.
func countSwitch(ctx context.Context, lab string) (map[string]uint64, error) {
	var out []byte
	err := inNetns(vpcNetns(lab), func() (err error) {
		out, err = runNft(ctx, "", "-j", "list", "counters", "table", "netdev", "rwlab")
		return err
	})
	if err != nil {
		return nil, err
	}
	return parseCounters(out)
}

// parseCounters reads nft's list of named counters: name -> packets.
func parseCounters(listing []byte) (map[string]uint64, error) {
	var parsed struct {
		Nftables []struct {
			Counter *struct {
				Name    string `json:"name"`
				Packets uint64 `json:"packets"`
			} `json:"counter"`
		} `json:"nftables"`
	}
	if err := json.Unmarshal(listing, &parsed); err != nil {
		return nil, fmt.Errorf("read the counters: %w", err)
	}
	counters := map[string]uint64{}
	for _, item := range parsed.Nftables {
		if item.Counter != nil {
			counters[item.Counter.Name] = item.Counter.Packets
		}
	}
	return counters, nil
}

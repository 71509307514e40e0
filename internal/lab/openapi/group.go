package openapi

import (
	"fmt"
	"net/netip"
	"strconv"
	"strings"
)

// blocked translates the security group's rules into the switches of the
// lab's fabric, which tells three kinds of traffic apart (package vpc, Block):
// protocol 4 and VXLAN between hosts, and bare packets from pods. A kind passes
// when the rules let all of it in; what only rules for parts of a range would
// let in, or what a rule drops a part of, is blocked, rather than let in more
// than the rules say. Rules have one priority here, so that Drop goes first.
func (s *Server) blocked() map[string]bool {
	hosts, pods := s.spec.CIDRs, s.spec.Allowed
	return map[string]bool{
		"ipip":     !s.allAllowed(hosts, noRule, 0),
		"vxlan":    !s.allAllowed(hosts, "UDP", 4789),
		"pod-cidr": !s.allAllowed(pods, everything, 0),
	}
}

// What is asked of rules besides a protocol that they have a value for.
const (
	everything = "ALL"
	// noRule is a protocol that only rules for all of them are about.
	noRule = "IPIP"
)

func (s *Server) allAllowed(sources []netip.Prefix, protocol string, port int) bool {
	for _, source := range sources {
		if !s.allowed(source, protocol, port) {
			return false
		}
	}
	return true
}

func (s *Server) allowed(source netip.Prefix, protocol string, port int) bool {
	accepted := false
	for _, r := range s.state.Rules {
		if r.Policy != "Drop" {
			accepted = accepted || r.covers(source, protocol, port)
		} else if r.touches(source, protocol, port) {
			return false
		}
	}
	return accepted
}

// covers says whether the rule is about all packets of a kind.
func (r Rule) covers(source netip.Prefix, protocol string, port int) bool {
	from, err := netip.ParsePrefix(r.Source)
	if err != nil || from.Bits() > source.Bits() || !from.Contains(source.Addr()) {
		return false
	}
	return r.Protocol == everything || r.matches(protocol, port)
}

// touches says whether the rule is about any packet of a kind.
func (r Rule) touches(source netip.Prefix, protocol string, port int) bool {
	from, err := netip.ParsePrefix(r.Source)
	if err != nil || !from.Overlaps(source) {
		return false
	}
	return r.Protocol == everything || protocol == everything || r.matches(protocol, port)
}

// matches compares protocol and port, where the rule has them.
func (r Rule) matches(protocol string, port int) bool {
	low, high, err := parsePorts(r.Ports)
	return err == nil && r.Protocol == protocol && (low == -1 || low <= port && port <= high)
}

// parsePorts reads a range such as 4789/4789; -1/-1 is all.
func parsePorts(text string) (low, high int, err error) {
	a, b, _ := strings.Cut(text, "/")
	if low, err = strconv.Atoi(a); err != nil {
		return 0, 0, fmt.Errorf("port range %q: %w", text, err)
	}
	if high, err = strconv.Atoi(b); err != nil {
		return 0, 0, fmt.Errorf("port range %q: %w", text, err)
	}
	return low, high, nil
}

// readRule reads a rule from the parameters of AuthorizeSecurityGroup and
// RevokeSecurityGroup.
func readRule(p params) (Rule, error) {
	r := Rule{
		Protocol: strings.ToUpper(p["IpProtocol"]), Ports: first(p["PortRange"], "-1/-1"),
		Source: first(p["SourceCidrIp"], p["Ipv6SourceCidrIp"]), Policy: "Accept",
	}
	if strings.EqualFold(p["Policy"], "drop") {
		r.Policy = "Drop"
	}
	switch r.Protocol {
	case "TCP", "UDP", "ICMP", "ICMPV6", "GRE", "ALL":
	case "":
		return Rule{}, missing("IpProtocol")
	default: // there is no value for IPIP
		return Rule{}, bad("InvalidIpProtocol.ValueNotSupported", "The specified IpProtocol %q is not supported.", p["IpProtocol"])
	}
	if _, _, err := parsePorts(r.Ports); err != nil {
		return Rule{}, bad("InvalidPortRange.Malformed", "The specified PortRange %q is not valid.", r.Ports)
	}
	source, refused := parseDst(r.Source)
	if refused != nil {
		return Rule{}, bad("InvalidSourceCidrIp.Malformed", "The specified SourceCidrIp %q is not valid.", r.Source)
	}
	r.Source = source.String()
	return r, nil
}

func (r Rule) same(other Rule) bool {
	r.ID, other.ID = "", ""
	return r == other
}

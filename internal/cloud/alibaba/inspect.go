package alibaba

import (
	"cmp"
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"ropeway.dev/ropeway/internal/cloud"
)

var _ cloud.Inspector = (*Provider)(nil)

// Inspect implements cloud.Inspector, with reading calls only: those for the
// tables, two for each MaxDescribe of nodes, and one for each security group.
func (p *Provider) Inspect(ctx context.Context, nodes []string, pods []netip.Prefix) ([]cloud.Finding, error) {
	written, err := p.usedTables(ctx)
	if err != nil {
		return nil, err
	}
	tables, err := p.describeTables(ctx)
	if err != nil {
		return nil, err
	}
	var machines []instance
	var interfaces []networkInterface
	for some := range slices.Chunk(nodes, cloud.MaxDescribe) {
		found, err := (instances{p}).byID(ctx, some)
		if err != nil {
			return nil, err
		}
		var ids []string
		for _, m := range found {
			ids = append(ids, m.primary().ID)
		}
		theirs, err := p.describeInterfaces(ctx, ids)
		if err != nil {
			return nil, err
		}
		machines, interfaces = append(machines, found...), append(interfaces, theirs...)
	}
	groups, err := p.describeGroups(ctx, interfaces)
	if err != nil {
		return nil, err
	}
	var out []cloud.Finding
	for _, m := range machines {
		if m.Status != "Running" {
			out = append(out, cloud.Finding{Problem: cloud.NotRunning, Instance: m.ID,
				Message: fmt.Sprintf("instance %s is %s", m.ID, m.Status), Remedy: "start it, or remove its Node"})
		}
	}
	for _, ni := range interfaces {
		out = append(out, ni.findings(tables, written, groups, pods)...)
	}
	slices.SortFunc(out, func(a, b cloud.Finding) int {
		return cmp.Or(cmp.Compare(a.Instance, b.Instance), cmp.Compare(a.Problem, b.Problem), cmp.Compare(a.Message, b.Message))
	})
	return out, nil
}

// networkInterface is one of DescribeNetworkInterfaces'.
type networkInterface struct {
	ID               string `json:"NetworkInterfaceId"`
	Instance         string `json:"InstanceId"`
	VSwitch          string `json:"VSwitchId"`
	SourceDestCheck  bool
	SecurityGroupIDs struct {
		SecurityGroupID []string `json:"SecurityGroupId"`
	} `json:"SecurityGroupIds"`
}

// describeInterfaces asks for interfaces by their ids, at most MaxDescribe; empty
// ids are left out.
func (p *Provider) describeInterfaces(ctx context.Context, ids []string) ([]networkInterface, error) {
	const action = "DescribeNetworkInterfaces"
	params := map[string]string{"MaxResults": "100"}
	for _, id := range ids {
		if id != "" {
			params["NetworkInterfaceId."+strconv.Itoa(len(params))] = id
		}
	}
	if len(params) == 1 {
		return nil, nil
	}
	var all []networkInterface
	err := pages(action, func(token string) (string, error) {
		if token != "" {
			params["NextToken"] = token
		}
		var answer struct {
			NextToken            string
			NetworkInterfaceSets struct{ NetworkInterfaceSet []networkInterface }
		}
		if err := p.call.read(ctx, ecsAPI(), action, params, &answer); err != nil {
			return "", err
		}
		for _, ni := range answer.NetworkInterfaceSets.NetworkInterfaceSet {
			if slices.Contains(ids, ni.ID) { // an API that does not know the parameter answers with everything
				all = append(all, ni)
			}
		}
		return answer.NextToken, nil
	})
	return all, err
}

// rule is one inbound rule of a security group.
type rule struct {
	Protocol   string `json:"IpProtocol"`
	Policy     string // Accept or Drop
	Priority   string // 1 is the strongest
	Source     string `json:"SourceCidrIp"`
	SourceIPv6 string `json:"Ipv6SourceCidrIp"`
}

// describeGroups reads the inbound rules of all groups of the interfaces.
func (p *Provider) describeGroups(ctx context.Context, interfaces []networkInterface) (map[string][]rule, error) {
	const action = "DescribeSecurityGroupAttribute"
	groups := map[string][]rule{}
	for _, ni := range interfaces {
		for _, id := range ni.SecurityGroupIDs.SecurityGroupID {
			if _, known := groups[id]; known {
				continue
			}
			groups[id] = nil
			err := pages(action, func(token string) (string, error) {
				params := map[string]string{"SecurityGroupId": id, "Direction": "ingress", "NicType": "intranet"}
				if token != "" {
					params["NextToken"] = token
				}
				var answer struct {
					NextToken   string
					Permissions struct{ Permission []rule }
				}
				if err := p.call.read(ctx, ecsAPI(), action, params, &answer); err != nil {
					return "", err
				}
				groups[id] = append(groups[id], answer.Permissions.Permission...)
				return answer.NextToken, nil
			})
			if err != nil {
				return nil, err
			}
		}
	}
	return groups, nil
}

func (ni networkInterface) findings(tables []routeTable, written []string, groups map[string][]rule, pods []netip.Prefix) []cloud.Finding {
	var out []cloud.Finding
	add := func(problem cloud.Problem, remedy, format string, args ...any) {
		out = append(out, cloud.Finding{Problem: problem, Instance: ni.Instance, Message: fmt.Sprintf(format, args...), Remedy: remedy})
	}
	if ni.SourceDestCheck {
		add(cloud.SourceDestCheck, "switch SourceDestCheck of interface "+ni.ID+" off",
			"interface %s of instance %s checks source and destination, and drops pods' packets", ni.ID, ni.Instance)
	}
	at := slices.IndexFunc(tables, func(t routeTable) bool { return slices.Contains(t.VSwitchIDs.VSwitchID, ni.VSwitch) })
	if at >= 0 && !slices.Contains(written, tables[at].ID) {
		add(cloud.OtherRouteTable, "add "+tables[at].ID+" to spec.cloud.routeTableIDs of the ClusterNetwork",
			"vSwitch %s of instance %s is bound to route table %s, which is not written", ni.VSwitch, ni.Instance, tables[at].ID)
	}
	var rules []rule
	for _, id := range ni.SecurityGroupIDs.SecurityGroupID {
		rules = append(rules, groups[id]...)
	}
	for _, pod := range pods {
		if !admits(rules, pod) {
			ids := strings.Join(ni.SecurityGroupIDs.SecurityGroupID, ", ")
			add(cloud.SecurityGroup, fmt.Sprintf("add an inbound rule to security group %s that accepts all protocols from %s", ids, pod),
				"the security group %s of instance %s does not allow inbound from %s", ids, ni.Instance, pod)
		}
	}
	return out
}

// admits reports whether the rules let everything of a range in. Rules hold by
// priority, and Drop before Accept where that is equal; one that accepts less
// than all protocols, or a part of the range, is not counted for it.
func admits(rules []rule, pods netip.Prefix) bool {
	ordered := slices.Clone(rules)
	slices.SortStableFunc(ordered, func(a, b rule) int {
		return cmp.Or(cmp.Compare(a.priority(), b.priority()), cmp.Compare(a.drops(), b.drops())*-1)
	})
	for _, r := range ordered {
		source, ok := r.source(pods.Addr().Is6())
		switch {
		case !ok || !source.Overlaps(pods):
		case r.drops() == 1:
			return false
		case source.Bits() <= pods.Bits() && (strings.EqualFold(r.Protocol, "all") || r.Protocol == "-1"):
			return true
		}
	}
	return false
}

func (r rule) priority() int {
	if n, err := strconv.Atoi(r.Priority); err == nil {
		return n
	}
	return 1 // the API's default
}

func (r rule) drops() int {
	if strings.EqualFold(r.Policy, "Drop") {
		return 1
	}
	return 0
}

func (r rule) source(six bool) (netip.Prefix, bool) {
	text := r.Source
	if six {
		text = r.SourceIPv6
	}
	if text == "" {
		return netip.Prefix{}, false
	}
	return parseDst(text)
}

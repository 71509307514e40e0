package openapi

import (
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

// ecsActions are those of Ecs 2014-05-26: name -> action.
func ecsActions() map[string]action {
	return map[string]action{
		"DescribeRegions":                   {run: (*Server).describeRegions},
		"DescribeZones":                     {run: (*Server).describeZones},
		"DescribeInstances":                 {run: (*Server).describeInstances},
		"DescribeInstanceStatus":            {run: (*Server).describeInstanceStatus},
		"RunInstances":                      {run: (*Server).runInstances},
		"StartInstance":                     {run: (*Server).startInstance},
		"StopInstance":                      {run: (*Server).stopInstance},
		"DeleteInstance":                    {run: (*Server).deleteInstance},
		"DescribeNetworkInterfaces":         {run: (*Server).describeNetworkInterfaces},
		"DescribeNetworkInterfaceAttribute": {run: (*Server).describeNetworkInterfaceAttribute},
		"ModifyNetworkInterfaceAttribute":   {run: (*Server).modifyNetworkInterfaceAttribute},
		"DescribeSecurityGroups":            {run: (*Server).describeSecurityGroups},
		"DescribeSecurityGroupAttribute":    {run: (*Server).describeSecurityGroupAttribute},
		"AuthorizeSecurityGroup":            {run: (*Server).authorizeSecurityGroup},
		"RevokeSecurityGroup":               {run: (*Server).revokeSecurityGroup},
	}
}

func (s *Server) describeZones(c *call) (answer, error) {
	zones := map[string]bool{}
	for _, v := range s.spec.VSwitches {
		zones[v.Zone] = true
	}
	all := []answer{}
	for _, id := range slices.Sorted(maps.Keys(zones)) {
		if !c.elsewhere {
			all = append(all, answer{"ZoneId": id, "LocalName": id})
		}
	}
	return answer{"Zones": answer{"Zone": all}}, nil
}

// zone is where an instance runs.
func (s *Server) zone(in Instance) string {
	for _, v := range s.spec.VSwitches {
		if v.ID == in.VSwitch {
			return v.Zone
		}
	}
	return ""
}

// byFamily are an instance's addresses.
func (in Instance) byFamily() (v4, v6 []string) {
	v4, v6 = []string{}, []string{}
	for _, a := range in.Addresses {
		if a.Is4() {
			v4 = append(v4, a.String())
		} else {
			v6 = append(v6, a.String())
		}
	}
	return v4, v6
}

func (s *Server) instanceAnswer(in Instance) answer {
	v4, v6 := in.byFamily()
	ipv6 := []answer{}
	for _, a := range v6 {
		ipv6 = append(ipv6, answer{"Ipv6Address": a})
	}
	tags := []answer{}
	for _, key := range slices.Sorted(maps.Keys(in.Tags)) {
		tags = append(tags, answer{"TagKey": key, "TagValue": in.Tags[key]})
	}
	primary := ""
	if len(v4) > 0 {
		primary = v4[0]
	}
	public, elastic := []string{}, ""
	for i, a := range in.Public {
		if i == 0 {
			public = append(public, a.String())
		} else {
			elastic = a.String()
		}
	}
	return answer{
		"InstanceId": in.ID, "InstanceName": in.Host, "HostName": in.Host, "RegionId": s.spec.Region, "ZoneId": s.zone(in),
		"InstanceType": in.Type, "InstanceTypeFamily": "ecs.g7", "Status": in.Status, "InstanceNetworkType": "vpc",
		"InstanceChargeType": "PostPaid", "SpotStrategy": "NoSpot", "OSType": "linux", "Cpu": 2, "Memory": 8192,
		"VpcAttributes": answer{
			"VpcId": s.spec.VPC, "VSwitchId": in.VSwitch, "NatIpAddress": "", "PrivateIpAddress": answer{"IpAddress": v4},
		},
		"PublicIpAddress": answer{"IpAddress": public}, "InnerIpAddress": answer{"IpAddress": []string{}},
		"EipAddress":       answer{"AllocationId": "", "IpAddress": elastic, "InternetChargeType": ""},
		"SecurityGroupIds": answer{"SecurityGroupId": []string{s.spec.SecurityGroup}},
		"NetworkInterfaces": answer{"NetworkInterface": []answer{{
			"NetworkInterfaceId": in.Interface, "Type": "Primary", "MacAddress": in.MAC, "PrimaryIpAddress": primary,
			"Ipv6Sets":      answer{"Ipv6Set": ipv6},
			"PrivateIpSets": answer{"PrivateIpSet": privateSets(v4)},
		}}},
		"Tags": answer{"Tag": tags}, "CreationTime": "2026-01-01T00:00Z",
	}
}

func privateSets(v4 []string) []answer {
	sets := []answer{}
	for i, a := range v4 {
		sets = append(sets, answer{"PrivateIpAddress": a, "Primary": i == 0})
	}
	return sets
}

// wantsInstance applies the filters of DescribeInstances.
func (s *Server) wantsInstance(p params, in Instance, ids, addresses []string) bool {
	if ids != nil && !slices.Contains(ids, in.ID) {
		return false
	}
	if addresses != nil && !slices.ContainsFunc(in.Addresses, func(a netip.Addr) bool { return slices.Contains(addresses, a.String()) }) {
		return false
	}
	for _, tag := range p.objects("Tag") {
		if value, found := in.Tags[tag["Key"]]; !found || tag["Value"] != "" && tag["Value"] != value {
			return false
		}
	}
	name := p["InstanceName"] == "" || in.Host == p["InstanceName"]
	zone := p["ZoneId"] == "" || p.asked("ZoneId", s.zone(in))
	return name && zone && p.asked("VpcId", s.spec.VPC) && p.asked("VSwitchId", in.VSwitch) &&
		p.asked("Status", in.Status) && p.asked("InstanceNetworkType", "vpc") && p.asked("SecurityGroupId", s.spec.SecurityGroup)
}

// describeInstances pages by number, or by token where MaxResults or NextToken
// is given. Addresses of IPv6 are not looked up by PrivateIpAddresses.
func (s *Server) describeInstances(c *call) (answer, error) {
	if _, err := c.params.need("RegionId"); err != nil {
		return nil, err
	}
	ids, err := c.params.jsonList("InstanceIds")
	if err != nil {
		return nil, err
	}
	addresses, err := c.params.jsonList("PrivateIpAddresses")
	if err != nil {
		return nil, err
	}
	var all []Instance
	for _, in := range s.state.Instances {
		if !c.elsewhere && s.wantsInstance(c.params, in, ids, addresses) {
			all = append(all, in)
		}
	}
	if c.params["MaxResults"] == "" && c.params["NextToken"] == "" {
		return numbered(c, all, s.instanceAnswer, "Instances", "Instance")
	}
	return tokened(c, all, s.instanceAnswer, "Instances", "Instance")
}

// tokened is a list by token as the ECS API has it.
func tokened[T any](c *call, all []T, render func(T) answer, wrapper, element string) (answer, error) {
	p, err := c.params.tokenPage("MaxResults")
	if err != nil {
		return nil, err
	}
	part, next := cut(all, p)
	return answer{wrapper: answer{element: rendered(part, render)}, "TotalCount": len(all), "NextToken": next}, nil
}

func (s *Server) describeInstanceStatus(c *call) (answer, error) {
	ids := c.params.list("InstanceId")
	var all []answer
	for _, in := range s.state.Instances {
		if (len(ids) == 0 || slices.Contains(ids, in.ID)) && c.params.asked("ZoneId", s.zone(in)) {
			all = append(all, answer{"InstanceId": in.ID, "Status": in.Status})
		}
	}
	return numbered(c, all, asIs, "InstanceStatuses", "InstanceStatus")
}

// runInstances makes an instance on a host that has none any more, since the
// lab has no more machines than it was made with; PrivateIpAddress says which.
func (s *Server) runInstances(c *call) (answer, error) {
	address, err := netip.ParseAddr(c.params["PrivateIpAddress"])
	if err != nil {
		return nil, missing("PrivateIpAddress")
	}
	if taken, found := s.state.instanceAt(address); found {
		return nil, bad("InvalidPrivateIpAddress.Duplicated", "The address %s belongs to instance %s.", address, taken.ID)
	}
	for _, in := range s.spec.Instances {
		if slices.Contains(in.Addresses, address) {
			in.ID, in.Interface, in.Status = s.state.id("i"), s.state.id("eni"), "Running"
			s.state.Instances = append(s.state.Instances, in)
			s.changed(c)
			return answer{"InstanceIdSets": answer{"InstanceIdSet": []string{in.ID}}}, nil
		}
	}
	return nil, bad("InvalidPrivateIpAddress.Mismatch", "No host of the lab has the address %s.", address)
}

// changed makes the rest follow a change that is not the route tables'.
func (s *Server) changed(c *call) {
	s.save()
	s.follow(c.ctx)
}

// oneInstance finds the instance that a call is about.
func (s *Server) oneInstance(c *call) (*Instance, error) {
	id, err := c.params.need("InstanceId")
	if err != nil {
		return nil, err
	}
	in, found := s.state.instance(id)
	if !found || in.ID != id || c.elsewhere {
		return nil, notFound("InvalidInstanceId.NotFound", "The specified InstanceId does not exist.")
	}
	return in, nil
}

// setStatus changes an instance at once; the passing states are left out.
func (s *Server) setStatus(c *call, from, to string) (answer, error) {
	in, err := s.oneInstance(c)
	if err != nil {
		return nil, err
	}
	if in.Status != from {
		return nil, refuse(403, "IncorrectInstanceStatus", "The current status of the resource does not support this operation.")
	}
	in.Status = to
	s.changed(c)
	return nil, nil
}

func (s *Server) startInstance(c *call) (answer, error) { return s.setStatus(c, "Stopped", "Running") }
func (s *Server) stopInstance(c *call) (answer, error)  { return s.setStatus(c, "Running", "Stopped") }

// deleteInstance needs Force while the instance runs. Entries with it as next
// hop stay, and lead nowhere.
func (s *Server) deleteInstance(c *call) (answer, error) {
	in, err := s.oneInstance(c)
	if err != nil {
		return nil, err
	}
	force, err := c.params.flag("Force")
	if err != nil {
		return nil, err
	}
	if in.Status != "Stopped" && !force {
		return nil, refuse(403, "IncorrectInstanceStatus", "The current status of the resource does not support this operation.")
	}
	id := in.ID
	s.state.Instances = slices.DeleteFunc(s.state.Instances, func(o Instance) bool { return o.ID == id })
	s.changed(c)
	return nil, nil
}

func (s *Server) interfaceAnswer(in Instance) answer {
	v4, v6 := in.byFamily()
	sets := []answer{}
	for _, a := range v6 {
		sets = append(sets, answer{"Ipv6Address": a})
	}
	primary := ""
	if len(v4) > 0 {
		primary = v4[0]
	}
	return answer{
		"NetworkInterfaceId": in.Interface, "InstanceId": in.ID, "Type": "Primary", "Status": "InUse", "MacAddress": in.MAC,
		"VpcId": s.spec.VPC, "VSwitchId": in.VSwitch, "ZoneId": s.zone(in), "PrivateIpAddress": primary,
		"PrivateIpSets":    answer{"PrivateIpSet": privateSets(v4)},
		"Ipv6Sets":         answer{"Ipv6Set": sets},
		"SecurityGroupIds": answer{"SecurityGroupId": []string{s.spec.SecurityGroup}},
		"SourceDestCheck":  in.SourceDestCheck, "OwnerId": s.spec.Account, "Description": "", "NetworkInterfaceName": in.Interface,
		"CreationTime": "2026-01-01T00:00:00Z",
	}
}

func (s *Server) describeNetworkInterfaces(c *call) (answer, error) {
	ids, addresses := c.params.list("NetworkInterfaceId"), c.params.list("PrivateIpAddress")
	if len(ids) > maxPage || len(addresses) > maxPage {
		return nil, bad("InvalidParameter", "At most %d values can be asked for at once.", maxPage)
	}
	var all []Instance
	for _, in := range s.state.Instances {
		p := c.params
		v4, _ := in.byFamily()
		here := len(addresses) == 0 || slices.ContainsFunc(v4, func(a string) bool { return slices.Contains(addresses, a) })
		if !c.elsewhere && here && (len(ids) == 0 || slices.Contains(ids, in.Interface)) && p.asked("InstanceId", in.ID) &&
			p.asked("Status", "InUse") && p.asked("Type", "Primary") && p.asked("VSwitchId", in.VSwitch) && p.asked("VpcId", s.spec.VPC) {
			all = append(all, in)
		}
	}
	if c.params["MaxResults"] == "" && c.params["NextToken"] == "" {
		return numbered(c, all, s.interfaceAnswer, "NetworkInterfaceSets", "NetworkInterfaceSet")
	}
	return tokened(c, all, s.interfaceAnswer, "NetworkInterfaceSets", "NetworkInterfaceSet")
}

// oneInterface finds the instance whose interface a call is about.
func (s *Server) oneInterface(c *call) (*Instance, error) {
	id, err := c.params.need("NetworkInterfaceId")
	if err != nil {
		return nil, err
	}
	in, found := s.state.instance(id)
	if !found || in.Interface != id || c.elsewhere {
		return nil, notFound("InvalidEniId.NotFound", "The specified NetworkInterfaceId does not exist.")
	}
	return in, nil
}

func (s *Server) describeNetworkInterfaceAttribute(c *call) (answer, error) {
	in, err := s.oneInterface(c)
	if err != nil {
		return nil, err
	}
	return s.interfaceAnswer(*in), nil
}

func (s *Server) modifyNetworkInterfaceAttribute(c *call) (answer, error) {
	in, err := s.oneInterface(c)
	if err != nil {
		return nil, err
	}
	if c.params["SourceDestCheck"] != "" {
		on, err := c.params.flag("SourceDestCheck")
		if err != nil {
			return nil, err
		}
		in.SourceDestCheck = on
		s.changed(c)
	}
	return nil, nil
}

func (s *Server) describeSecurityGroups(c *call) (answer, error) {
	var all []answer
	if c.params.asked("VpcId", s.spec.VPC) && c.params.asked("SecurityGroupId", s.spec.SecurityGroup) {
		all = append(all, answer{
			"SecurityGroupId": s.spec.SecurityGroup, "SecurityGroupName": "lab", "SecurityGroupType": "enterprise", "VpcId": s.spec.VPC,
			"Description": "", "EcsCount": len(s.state.Instances), "CreationTime": "2026-01-01T00:00:00Z",
		})
	}
	return numbered(c, all, asIs, "SecurityGroups", "SecurityGroup")
}

// group makes sure that a call is about the one security group.
func (s *Server) group(c *call) error {
	id, err := c.params.need("SecurityGroupId")
	if err != nil {
		return err
	}
	if id != s.spec.SecurityGroup || c.elsewhere {
		return notFound("InvalidSecurityGroupId.NotFound", "The specified SecurityGroupId does not exist.")
	}
	return nil
}

func (s *Server) describeSecurityGroupAttribute(c *call) (answer, error) {
	if err := s.group(c); err != nil {
		return nil, err
	}
	all := []answer{}
	for _, r := range s.state.Rules {
		v4, v6 := r.Source, ""
		if strings.Contains(r.Source, ":") {
			v4, v6 = "", r.Source
		}
		all = append(all, answer{
			"SecurityGroupRuleId": r.ID, "IpProtocol": r.Protocol, "PortRange": r.Ports, "SourceCidrIp": v4, "Ipv6SourceCidrIp": v6,
			"Policy": r.Policy, "Direction": "ingress", "NicType": "intranet", "Priority": strconv.Itoa(1), "SourceGroupId": "",
			"DestCidrIp": "", "SourcePortRange": "", "Description": "", "CreateTime": "2026-01-01T00:00:00Z",
		})
	}
	if strings.EqualFold(c.params["Direction"], "egress") {
		all = []answer{}
	}
	// An advanced group, which lets nothing in without a rule, not even from its own
	// members: so is the fabric's.
	return answer{
		"SecurityGroupId": s.spec.SecurityGroup, "SecurityGroupName": "lab", "VpcId": s.spec.VPC, "RegionId": s.spec.Region,
		"InnerAccessPolicy": "Drop", "Description": "", "Permissions": answer{"Permission": all},
	}, nil
}

// rulesOf reads the rules of a call: one from its own parameters, or several
// from Permissions.N.
func rulesOf(p params) ([]Rule, error) {
	sources := p.objects("Permissions")
	if len(sources) == 0 {
		sources = []params{p}
	}
	var rules []Rule
	for _, source := range sources {
		r, err := readRule(source)
		if err != nil {
			return nil, err
		}
		rules = append(rules, r)
	}
	return rules, nil
}

func (s *Server) authorizeSecurityGroup(c *call) (answer, error) {
	if err := s.group(c); err != nil {
		return nil, err
	}
	rules, err := rulesOf(c.params)
	if err != nil {
		return nil, err
	}
	for _, r := range rules {
		if !slices.ContainsFunc(s.state.Rules, r.same) {
			r.ID = s.state.id("sgr")
			s.state.Rules = append(s.state.Rules, r)
		}
	}
	s.changed(c)
	return nil, nil
}

// revokeSecurityGroup removes rules by id or by what they say; one that is not
// there is no error, as the page says.
func (s *Server) revokeSecurityGroup(c *call) (answer, error) {
	if err := s.group(c); err != nil {
		return nil, err
	}
	ids := c.params.list("SecurityGroupRuleId")
	var rules []Rule
	if len(ids) == 0 {
		var err error
		if rules, err = rulesOf(c.params); err != nil {
			return nil, err
		}
	}
	s.state.Rules = slices.DeleteFunc(s.state.Rules, func(r Rule) bool {
		return slices.Contains(ids, r.ID) || slices.ContainsFunc(rules, r.same)
	})
	s.changed(c)
	return nil, nil
}

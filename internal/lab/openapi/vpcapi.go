package openapi

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"
)

// vpcPage is the largest page of the Vpc API's lists by number.
const vpcPage = 50

// vpcActions are those of Vpc 2016-04-28: name -> action.
func vpcActions() map[string]action {
	return map[string]action{
		"DescribeRegions":           {run: (*Server).describeRegions},
		"DescribeVpcs":              {page: vpcPage, run: (*Server).describeVpcs},
		"DescribeVpcAttribute":      {run: (*Server).describeVpcAttribute},
		"DescribeVSwitches":         {page: vpcPage, run: (*Server).describeVSwitches},
		"DescribeVSwitchAttributes": {run: (*Server).describeVSwitchAttributes},
		"DescribeRouteTableList":    {page: vpcPage, run: (*Server).describeRouteTableList},
		"DescribeRouteTables":       {page: vpcPage, run: (*Server).describeRouteTables},
		"DescribeRouteEntryList":    {run: (*Server).describeRouteEntryList},
		"CreateRouteTable":          {writes: true, run: (*Server).createRouteTable},
		"DeleteRouteTable":          {writes: true, run: (*Server).deleteRouteTable},
		"AssociateRouteTable":       {writes: true, run: (*Server).associateRouteTable},
		"UnassociateRouteTable":     {writes: true, run: (*Server).unassociateRouteTable},
		"CreateRouteEntry":          {writes: true, run: (*Server).createRouteEntry},
		"CreateRouteEntries":        {writes: true, run: (*Server).createRouteEntries},
		"ModifyRouteEntry":          {writes: true, run: (*Server).modifyRouteEntry},
		"DeleteRouteEntry":          {writes: true, run: (*Server).deleteRouteEntry},
		"DeleteRouteEntries":        {writes: true, run: (*Server).deleteRouteEntries},
	}
}

func (s *Server) describeRegions(*call) (answer, error) {
	var all []answer
	for _, id := range regions() {
		all = append(all, answer{"RegionId": id, "LocalName": id, "RegionEndpoint": "vpc." + id + ".aliyuncs.com"})
	}
	return answer{"Regions": answer{"Region": all}}, nil
}

// router is the id of the VPC's router.
func (s *Server) router() string { return "vrt-" + strings.TrimPrefix(s.spec.VPC, "vpc-") }

func (s *Server) vpcAnswer() answer {
	a := answer{
		"VpcId": s.spec.VPC, "RegionId": s.spec.Region, "Status": "Available", "VpcName": "lab", "Description": "",
		"VRouterId": s.router(), "IsDefault": false, "OwnerId": s.spec.Account, "ResourceGroupId": "",
		"CidrBlock": "", "Ipv6CidrBlock": "", "CreationTime": "2026-01-01T00:00:00Z",
	}
	var more []string
	for _, cidr := range s.spec.CIDRs {
		switch {
		case cidr.Addr().Is6():
			a["Ipv6CidrBlock"] = cidr.String()
		case a["CidrBlock"] == "":
			a["CidrBlock"] = cidr.String()
		default:
			more = append(more, cidr.String())
		}
	}
	a["SecondaryCidrBlocks"] = answer{"SecondaryCidrBlock": list(more)}
	var vswitches []string
	for _, v := range s.spec.VSwitches {
		vswitches = append(vswitches, v.ID)
	}
	a["VSwitchIds"] = answer{"VSwitchId": list(vswitches)}
	return a
}

// list makes an empty JSON array of no elements.
func list[T any](values []T) []T {
	if values == nil {
		return []T{}
	}
	return values
}

// numbered is a list by page number: what is asked for, with the totals. Only
// the page is rendered: accounts have thousands of instances.
func numbered[T any](c *call, all []T, render func(T) answer, wrapper, element string) (answer, error) {
	p, err := c.params.numberPage(c.page)
	if err != nil {
		return nil, err
	}
	if c.elsewhere {
		all = nil
	}
	part, _ := cut(all, p)
	return answer{
		wrapper: answer{element: rendered(part, render)}, "TotalCount": len(all), "PageNumber": p.number, "PageSize": p.size,
	}, nil
}

// rendered puts each element of a page on the wire.
func rendered[T any](part []T, render func(T) answer) []answer {
	answers := []answer{}
	for _, element := range part {
		answers = append(answers, render(element))
	}
	return answers
}

// asIs renders what is an answer already.
func asIs(a answer) answer { return a }

// asked says whether a filter is absent or has the value; it may be a list
// separated by commas.
func (p params) asked(name, value string) bool {
	return p[name] == "" || slices.Contains(strings.Split(p[name], ","), value)
}

func (s *Server) describeVpcs(c *call) (answer, error) {
	var all []answer
	if c.params.asked("VpcId", s.spec.VPC) {
		a := s.vpcAnswer()
		a["RouterTableIds"] = answer{"RouterTableIds": s.tableIDs()}
		all = append(all, a)
	}
	return numbered(c, all, asIs, "Vpcs", "Vpc")
}

func (s *Server) tableIDs() []string {
	var ids []string
	for _, t := range s.state.Tables {
		ids = append(ids, t.ID)
	}
	return ids
}

func (s *Server) describeVpcAttribute(c *call) (answer, error) {
	id, err := c.params.need("VpcId")
	if err != nil {
		return nil, err
	}
	if id != s.spec.VPC || c.elsewhere {
		return nil, notFound("InvalidVpcId.NotFound", "Specified VPC does not exist.")
	}
	return s.vpcAnswer(), nil
}

func (s *Server) vswitchAnswer(v VSwitch) answer {
	a := answer{
		"VSwitchId": v.ID, "VpcId": s.spec.VPC, "ZoneId": v.Zone, "Status": "Available", "VSwitchName": v.ID,
		"CidrBlock": "", "Ipv6CidrBlock": "", "Description": "", "IsDefault": false, "AvailableIpAddressCount": 200,
		"CreationTime": "2026-01-01T00:00:00Z",
	}
	if v.CIDR.IsValid() {
		a["CidrBlock"] = v.CIDR.String()
	}
	if v.IPv6CIDR.IsValid() {
		a["Ipv6CidrBlock"] = v.IPv6CIDR.String()
	}
	table, _ := s.state.table(s.tableOf(v.ID))
	a["RouteTable"] = answer{"RouteTableId": table.ID, "RouteTableType": table.kind()}
	return a
}

func (t RouteTable) kind() string {
	if t.System {
		return "System"
	}
	return "Custom"
}

func (s *Server) describeVSwitches(c *call) (answer, error) {
	var all []answer
	for _, v := range s.spec.VSwitches {
		p := c.params
		if p.asked("VpcId", s.spec.VPC) && p.asked("VSwitchId", v.ID) && p.asked("ZoneId", v.Zone) && p.asked("RouteTableId", s.tableOf(v.ID)) {
			all = append(all, s.vswitchAnswer(v))
		}
	}
	return numbered(c, all, asIs, "VSwitches", "VSwitch")
}

func (s *Server) describeVSwitchAttributes(c *call) (answer, error) {
	id, err := c.params.need("VSwitchId")
	if err != nil {
		return nil, err
	}
	for _, v := range s.spec.VSwitches {
		if v.ID == id && !c.elsewhere {
			return s.vswitchAnswer(v), nil
		}
	}
	return nil, notFound("InvalidVSwitchId.NotFound", "Specified virtual switch does not exist.")
}

// boundTo lists the vSwitches of a table; the system's are those that no
// custom table has.
func (s *Server) boundTo(t RouteTable) []string {
	ids := []string{}
	for _, v := range s.spec.VSwitches {
		if s.tableOf(v.ID) == t.ID {
			ids = append(ids, v.ID)
		}
	}
	return ids
}

func (s *Server) describeRouteTableList(c *call) (answer, error) {
	var all []answer
	for _, t := range s.state.Tables {
		p := c.params
		if !p.asked("VpcId", s.spec.VPC) || !p.asked("RouteTableId", t.ID) || !p.asked("RouterType", "VRouter") ||
			!p.asked("RouterId", s.router()) || !p.asked("RouteTableName", t.Name) || !p.asked("RouteTableType", t.kind()) {
			continue
		}
		all = append(all, answer{
			"RouteTableId": t.ID, "RouteTableType": t.kind(), "RouteTableName": t.Name, "AssociateType": "VSwitch",
			"VSwitchIds": answer{"VSwitchId": s.boundTo(t)}, "Status": "Available", "VpcId": s.spec.VPC,
			"RouterId": s.router(), "RouterType": "VRouter", "Description": "", "OwnerId": s.spec.Account,
			"CreationTime": "2026-01-01T00:00:00Z", "RoutePropagationEnable": true,
		})
	}
	return numbered(c, all, asIs, "RouterTableList", "RouterTableListType")
}

// describeRouteTables is the older list that holds the entries.
func (s *Server) describeRouteTables(c *call) (answer, error) {
	var all []answer
	for _, t := range s.state.Tables {
		if !c.params.asked("RouteTableId", t.ID) || !c.params.asked("VRouterId", s.router()) || !c.params.asked("RouterId", s.router()) {
			continue
		}
		all = append(all, answer{
			"RouteTableId": t.ID, "RouteTableType": t.kind(), "VRouterId": s.router(), "Status": "Available",
			"VSwitchIds": answer{"VSwitchId": s.boundTo(t)}, "RouteEntrys": answer{"RouteEntry": rendered(s.entriesOf(t), s.entryAnswer)},
			"CreationTime": "2026-01-01T00:00:00Z",
		})
	}
	return numbered(c, all, asIs, "RouteTables", "RouteTable")
}

// listed is an entry of a table: a custom one, or one of the system's.
type listed struct {
	*Entry
	system string // the kind of next hop of a system entry: local or service
}

// entriesOf are the entries of a table: the custom ones, then the system's.
func (s *Server) entriesOf(t RouteTable) []listed {
	var all []listed
	for _, e := range s.state.Entries {
		if e.Table == t.ID {
			all = append(all, listed{Entry: e})
		}
	}
	system := func(id string, dst netip.Prefix, kind string) {
		if dst.IsValid() {
			all = append(all, listed{system: kind, Entry: &Entry{ID: id, Table: t.ID, Dst: dst, NextHopType: kind, Status: Available, Modified: longAgo()}})
		}
	}
	for _, v := range s.spec.VSwitches {
		system("rte-local-"+v.ID, v.CIDR, "local")
		system("rte-local6-"+v.ID, v.IPv6CIDR, "local")
	}
	system("rte-service-"+t.ID, services(), "service")
	return all
}

// longAgo is when everything was made that was there from the start.
func longAgo() time.Time { return time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC) }

func ipVersion(cidr string) string {
	if strings.Contains(cidr, ":") {
		return "ipv6"
	}
	return "ipv4"
}

// entryAnswer puts an entry on the wire.
func (s *Server) entryAnswer(e listed) answer {
	kind, origin, enabled, region := "Custom", "CustomCreate", 0, s.spec.Region
	if in, found := s.state.instance(e.NextHop); found && in.Status == "Running" {
		enabled = 1
	}
	if e.system != "" {
		kind, origin, enabled, region = "System", "SystemCreate", 1, ""
	}
	return answer{
		"RouteEntryId": e.ID, "RouteTableId": e.Table, "DestinationCidrBlock": e.Dst.String(), "Type": kind,
		"Status": string(e.Status), "RouteEntryName": e.Name, "Description": e.Description,
		"IpVersion": ipVersion(e.Dst.String()), "Origin": origin, "GmtModified": gmt(e.Modified),
		"InstanceId": e.NextHop, "NextHopType": e.NextHopType,
		"NextHops": answer{"NextHop": []answer{{
			"NextHopId": e.NextHop, "NextHopType": e.NextHopType, "NextHopRegionId": region, "Weight": 0, "Enabled": enabled,
		}}},
	}
}

// describeRouteEntryList clamps MaxResult at 100, as the page says.
func (s *Server) describeRouteEntryList(c *call) (answer, error) {
	id, err := c.params.need("RouteTableId")
	if err != nil {
		return nil, err
	}
	t, found := s.state.table(id)
	if !found || c.elsewhere {
		return nil, notFound("InvalidRouteTableId.NotFound", "Specified route table %q does not exist.", id)
	}
	p, err := c.params.tokenPage("MaxResult")
	if err != nil {
		return nil, err
	}
	destinations := c.params.list("DestCidrBlockList")
	if len(destinations) > 20 {
		return nil, bad("InvalidParameter", "DestCidrBlockList has more than 20 values.")
	}
	all := slices.DeleteFunc(s.entriesOf(*t), func(e listed) bool { return !c.params.wantsEntry(e, destinations) })
	part, next := cut(all, p)
	return answer{"RouteEntrys": answer{"RouteEntry": rendered(part, s.entryAnswer)}, "NextToken": next}, nil
}

// wantsEntry applies the filters of DescribeRouteEntryList.
func (p params) wantsEntry(e listed, destinations []string) bool {
	kind := "Custom"
	if e.system != "" {
		kind = "System"
	}
	is := func(parameter, value string) bool { return p[parameter] == "" || p[parameter] == value }
	if !is("RouteEntryType", kind) || !is("RouteEntryId", e.ID) || !is("RouteEntryName", e.Name) ||
		!is("NextHopId", e.NextHop) || !is("NextHopType", e.NextHopType) {
		return false
	}
	if p["DestinationCidrBlock"] == "" && p["IpVersion"] == "" && len(destinations) == 0 {
		return true
	}
	dst := e.Dst.String()
	return is("DestinationCidrBlock", dst) && (p["IpVersion"] == "" || strings.EqualFold(p["IpVersion"], ipVersion(dst))) &&
		(len(destinations) == 0 || slices.Contains(destinations, dst))
}

func (s *Server) createRouteTable(c *call) (answer, error) {
	if id := c.params["VpcId"]; id != s.spec.VPC || c.elsewhere {
		return nil, notFound("InvalidVpcId.NotFound", "Specified VPC does not exist.")
	}
	const most = 9
	if len(s.state.Tables) > most {
		return nil, bad("QuotaExceeded.RouteTable", "The number of route tables exceeds the quota of %d.", most)
	}
	t := RouteTable{ID: s.state.id("vtb"), Name: c.params["RouteTableName"]}
	t.Number = s.state.Sequence
	s.state.Tables = append(s.state.Tables, t)
	return answer{"RouteTableId": t.ID}, nil
}

// custom finds the custom table that a call is about.
func (s *Server) custom(c *call) (*RouteTable, error) {
	t, found := s.state.table(c.params["RouteTableId"])
	if !found || c.elsewhere {
		return nil, notFound("InvalidRouteTableId.NotFound", "Specified route table %q does not exist.", c.params["RouteTableId"])
	}
	if t.System {
		return nil, bad("OperationDenied.SystemRouteTable", "The operation is not allowed for a system route table.")
	}
	return t, nil
}

func (s *Server) deleteRouteTable(c *call) (answer, error) {
	t, err := s.custom(c)
	if err != nil {
		return nil, err
	}
	if len(t.VSwitches) > 0 || s.used(t.ID) > 0 {
		return nil, bad("DependencyViolation", "The route table %s has vSwitches or custom entries.", t.ID)
	}
	s.state.Tables = slices.DeleteFunc(s.state.Tables, func(o RouteTable) bool { return o.ID == t.ID })
	return nil, nil
}

func (s *Server) associateRouteTable(c *call) (answer, error) {
	t, err := s.custom(c)
	if err != nil {
		return nil, err
	}
	id := c.params["VSwitchId"]
	if !slices.ContainsFunc(s.spec.VSwitches, func(v VSwitch) bool { return v.ID == id }) {
		return nil, notFound("InvalidVSwitchId.NotFound", "Specified virtual switch does not exist.")
	}
	if bound := s.tableOf(id); bound != s.spec.RouteTable {
		return nil, bad("OperationDenied.RouteTableAssociated", "The vSwitch %s is bound to route table %s.", id, bound)
	}
	t.VSwitches = append(t.VSwitches, id)
	return nil, nil
}

func (s *Server) unassociateRouteTable(c *call) (answer, error) {
	t, err := s.custom(c)
	if err != nil {
		return nil, err
	}
	i := slices.Index(t.VSwitches, c.params["VSwitchId"])
	if i < 0 {
		return nil, notFound("InvalidVSwitchId.NotFound", "The vSwitch is not bound to the route table.")
	}
	t.VSwitches = slices.Delete(t.VSwitches, i, i+1)
	return nil, nil
}

// summary is the principal part of a request, for client tokens.
func (w wanted) summary() string { return fmt.Sprintf("%+v", w) }

package alibaba

import (
	"fmt"
	"maps"
	"net/netip"
	"strings"
	"testing"

	"ropeway.dev/ropeway/internal/cloud"
	"ropeway.dev/ropeway/internal/lab/openapi"
)

func TestAdmits(t *testing.T) {
	accept := func(protocol, source, priority string) rule {
		return rule{Protocol: protocol, Policy: "Accept", Source: source, Priority: priority}
	}
	drop := func(protocol, source, priority string) rule {
		return rule{Protocol: protocol, Policy: "Drop", Source: source, Priority: priority}
	}
	for name, c := range map[string]struct {
		rules []rule
		want  bool
	}{
		"nothing":                        {nil, false},
		"the range":                      {[]rule{accept("ALL", "10.244.0.0/16", "1")}, true},
		"a larger one":                   {[]rule{accept("All", "10.0.0.0/8", "100")}, true},
		"a part":                         {[]rule{accept("ALL", "10.244.0.0/24", "1")}, false},
		"another":                        {[]rule{accept("ALL", "172.16.0.0/12", "1")}, false},
		"one protocol":                   {[]rule{accept("TCP", "0.0.0.0/0", "1")}, false},
		"by a group":                     {[]rule{accept("ALL", "", "1")}, false},
		"dropped before":                 {[]rule{accept("ALL", "10.0.0.0/8", "2"), drop("UDP", "10.244.7.0/24", "1")}, false},
		"dropped at equal priority":      {[]rule{accept("ALL", "10.0.0.0/8", "1"), drop("ALL", "10.0.0.0/8", "1")}, false},
		"dropped behind":                 {[]rule{drop("ALL", "0.0.0.0/0", "100"), accept("ALL", "10.0.0.0/8", "1")}, true},
		"another is dropped":             {[]rule{drop("ALL", "192.168.0.0/16", "1"), accept("ALL", "10.0.0.0/8", "1")}, true},
		"IPv4 rules say nothing of IPv6": {[]rule{{Protocol: "ALL", Policy: "Accept", SourceIPv6: "::/0"}}, false},
	} {
		if got := admits(c.rules, prefix("10.244.0.0/16")); got != c.want {
			t.Errorf("%s: %v, want %v", name, got, c.want)
		}
	}
	if !admits([]rule{{Protocol: "ALL", Policy: "Accept", SourceIPv6: "fd00::/8"}}, prefix("fd00:10::/48")) {
		t.Error("an IPv6 rule does not let IPv6 in")
	}
}

func TestLabInspect(t *testing.T) {
	pods := []netip.Prefix{prefix("10.244.0.0/16")}
	nodes := []string{"i-1", "i-2"}
	for name, c := range map[string]struct {
		change func(*openapi.Spec)
		want   string
	}{
		"all well":             {func(*openapi.Spec) {}, "[]"},
		"a machine is no node": {func(s *openapi.Spec) { s.Instances[2].SourceDestCheck = true }, "[]"},
		"source check":         {func(s *openapi.Spec) { s.Instances[1].SourceDestCheck = true }, "[SourceDestCheck i-2]"},
		"security group":       {func(s *openapi.Spec) { s.Allowed = nil }, "[SecurityGroup i-1 SecurityGroup i-2]"},
		"stopped":              {func(s *openapi.Spec) { s.Instances[0].Status = "Stopped" }, "[NotRunning i-1]"},
	} {
		t.Run(name, func(t *testing.T) {
			l := newLab(t, func(s *openapi.Spec) { s.Allowed = pods; c.change(s) })
			found, err := l.provider().Inspect(t.Context(), nodes, pods)
			if err != nil {
				t.Fatal(err)
			}
			got := []string{}
			for _, f := range found {
				got = append(got, fmt.Sprint(f.Problem, " ", f.Instance))
			}
			if fmt.Sprint(got) != c.want {
				t.Errorf("found %v, want %s", got, c.want)
			}
		})
	}
}

// TestInspectAsksForTheNodesOnly: of the thousands of machines of a VPC a few are
// concerned.
func TestInspectAsksForTheNodesOnly(t *testing.T) {
	s := newStub(t)
	s.on("DescribeInstances", reply{body: `{"Instances":{"Instance":[{"InstanceId":"i-1","Status":"Running","NetworkInterfaces":{"NetworkInterface":[
		{"NetworkInterfaceId":"eni-1","Type":"Primary"},{"NetworkInterfaceId":"eni-7","Type":"Secondary"}]}},{"InstanceId":"i-8","Status":"Stopped"}]}}`})
	s.on("DescribeNetworkInterfaces", reply{body: `{"NetworkInterfaceSets":{"NetworkInterfaceSet":[
		{"NetworkInterfaceId":"eni-1","InstanceId":"i-1","SourceDestCheck":true},{"NetworkInterfaceId":"eni-8","InstanceId":"i-8","SourceDestCheck":true}]}}`})
	found, err := s.provider().Inspect(t.Context(), []string{"i-1", "i-2"}, nil)
	if err != nil || len(found) != 1 || found[0].Instance != "i-1" {
		t.Errorf("found %v, %v", found, err)
	}
	for action, want := range map[string]map[string]string{
		"DescribeInstances":         {"RegionId": testRegion, "InstanceIds": `["i-1","i-2"]`, "MaxResults": "100"},
		"DescribeNetworkInterfaces": {"RegionId": testRegion, "NetworkInterfaceId.1": "eni-1", "MaxResults": "100"},
	} {
		if calls := s.calls(action); len(calls) != 1 || !maps.Equal(calls[0].params, want) {
			t.Errorf("asked %v", calls)
		}
	}
}

func TestLabInspectOtherRouteTable(t *testing.T) {
	l := newLab(t, func(s *openapi.Spec) {
		s.Allowed = []netip.Prefix{prefix("10.244.0.0/16")}
		s.VSwitches = append(s.VSwitches, openapi.VSwitch{ID: "vsw-b", Zone: testRegion + "-b", CIDR: prefix("172.16.1.0/24")})
		s.Instances[1].VSwitch = "vsw-b"
	})
	l.call("2016-04-28", "CreateRouteTable", map[string]string{"VpcId": testVPC, "RouteTableName": "own"})
	own := l.snapshot().Tables[1].ID
	l.call("2016-04-28", "AssociateRouteTable", map[string]string{"RouteTableId": own, "VSwitchId": "vsw-b"})

	if _, err := l.provider().Routes().List(t.Context()); !cloud.Is(err, cloud.Permanent) || !strings.Contains(err.Error(), own) {
		t.Errorf("two tables and none named: %v", err)
	}
	p := l.provider(func(o *Options) { o.Tables = []string{testTable} })
	found, err := p.Inspect(t.Context(), []string{"i-1", "i-2"}, []netip.Prefix{prefix("10.244.0.0/16")})
	if err != nil || len(found) != 1 || found[0].Problem != cloud.OtherRouteTable || found[0].Instance != "i-2" || !strings.Contains(found[0].Message, own) || !strings.Contains(found[0].Remedy, own) {
		t.Errorf("found %v, %v", found, err)
	}

	// Both tables are written by one call each way.
	p = l.provider(func(o *Options) { o.Tables = []string{testTable, own} })
	one, two := change("10.244.1.0/24", "i-1"), change("10.244.1.0/24", "i-1")
	two.Table = own
	results, err := p.Routes().Apply(t.Context(), []cloud.RouteChange{one, two})
	mustAll(t, results, err)
	entries := list(t, p)
	if len(entries) != 2 || entries[0].Table == entries[1].Table {
		t.Errorf("entries %v", entries)
	}
	results, err = p.Routes().Withdraw(t.Context(), entries)
	mustAll(t, results, err)
	if rest := list(t, p); len(rest) != 0 {
		t.Errorf("left %v", rest)
	}
}

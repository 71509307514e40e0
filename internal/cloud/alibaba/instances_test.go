package alibaba

import (
	"fmt"
	"maps"
	"strings"
	"testing"

	"ropeway.dev/ropeway/internal/cloud"
)

func TestParseProviderID(t *testing.T) {
	i := newStub(t).provider().Instances()
	for text, want := range map[string]string{
		"cn-chengdu.i-2vc1":                "i-2vc1",
		"alicloud://cn-chengdu.i-2vc1":     "i-2vc1",
		"cn-beijing.i-2ze1":                "", // another region's
		"alicloud://cn-beijing.i-2ze1":     "",
		"ack-hybrid://cn-chengdu.i-2vc1":   "",
		"aws:///eu-1a/i-0a":                "",
		"":                                 "",
		"i-2vc1":                           "",
		"cn-chengdu.":                      "",
		"cn-chengdu":                       "",
		"cn-chengdu.i-2vc1.x":              "",
		"alicloud://alicloud://cn-chengdu": "",
	} {
		if got, ok := i.Parse(text); got != want || ok != (want != "") {
			t.Errorf("Parse(%q) = %q, %v; want %q", text, got, ok, want)
		}
	}
}

func TestInstances(t *testing.T) {
	s := newStub(t)
	s.on("DescribeInstances",
		reply{body: `{"NextToken":"n","Instances":{"Instance":[{"InstanceId":"i-1","ZoneId":"cn-chengdu-a","InstanceType":"ecs.g7.large","Status":"Running",
			"VpcAttributes":{"VpcId":"vpc-2vc1","PrivateIpAddress":{"IpAddress":["172.16.0.1"]}},
			"HostName":"node-1","RegionId":"cn-chengdu","InstanceChargeType":"PrePaid","SpotStrategy":"NoSpot",
			"PublicIpAddress":{"IpAddress":["203.0.113.7"]},"EipAddress":{"IpAddress":"203.0.113.8"},
			"Tags":{"Tag":[{"TagKey":"team","TagValue":"x"},{"TagKey":"ack.alibabacloud.com/nodepool-id","TagValue":"np1"}]},
			"NetworkInterfaces":{"NetworkInterface":[
				{"Type":"Secondary","PrimaryIpAddress":"172.16.9.1"},
				{"NetworkInterfaceId":"eni-1","Type":"Primary","PrimaryIpAddress":"172.16.0.1","PrivateIpSets":{"PrivateIpSet":[{"PrivateIpAddress":"172.16.0.1","Primary":true},{"PrivateIpAddress":"172.16.0.77"}]},
				 "Ipv6Sets":{"Ipv6Set":[{"Ipv6Address":"2408::1"}]}}]}}]}}`},
		reply{body: `{"NextToken":"","Instances":{"Instance":[
			{"InstanceId":"i-2","Status":"Stopped","VpcAttributes":{"VpcId":"vpc-2vc1"}},
			{"InstanceId":"i-3","Status":"Running","VpcAttributes":{"VpcId":"vpc-other"}}]}}`})
	found, err := s.provider().Instances().List(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	got := fmt.Sprintf("%+v", found)
	want := "[{ID:i-1 Host:node-1 Addresses:[172.16.0.1 172.16.0.77 2408::1 172.16.9.1] Primary:3 Public:[203.0.113.7 203.0.113.8] Interface:eni-1 " +
		"VPC:vpc-2vc1 Region:cn-chengdu Zone:cn-chengdu-a Type:ecs.g7.large Labels:map[node.alibabacloud.com/instance-charge-type:PrePaid " +
		"node.alibabacloud.com/nodepool-id:np1 node.alibabacloud.com/spot-strategy:NoSpot] Running:true Stopped:false} " +
		"{ID:i-2 Host: Addresses:[] Primary:0 Public:[] Interface: VPC:vpc-2vc1 Region: Zone: Type: Labels:map[] Running:false Stopped:true}]"
	if got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	calls := s.calls("DescribeInstances")
	first := map[string]string{"RegionId": testRegion, "VpcId": testVPC, "InstanceNetworkType": "vpc", "MaxResults": "100"}
	if len(calls) != 2 || !maps.Equal(calls[0].params, first) || calls[1].params["NextToken"] != "n" || calls[0].version != "2014-05-26" {
		t.Errorf("asked %v", calls)
	}
	if !strings.HasPrefix(calls[0].header.Get("Authorization"), "ACS3-HMAC-SHA256 Credential=LTAItest,") {
		t.Errorf("signed as %q", calls[0].header.Get("Authorization"))
	}
}

// TestDescribeAsksForIds: without a filter by VPC, so that an instance that was
// moved is not taken for one that is gone; never for more than it was asked.
func TestDescribeAsksForIds(t *testing.T) {
	s := newStub(t)
	s.on("DescribeInstances", reply{body: `{"Instances":{"Instance":[{"InstanceId":"i-2","VpcAttributes":{"VpcId":"vpc-other"}},{"InstanceId":"i-9"}]}}`})
	found, err := s.provider().Instances().Describe(t.Context(), []string{"i-1", "i-2"})
	if err != nil || len(found) != 1 || found[0].ID != "i-2" || found[0].VPC != "vpc-other" {
		t.Errorf("%+v, %v", found, err)
	}
	want := map[string]string{"RegionId": testRegion, "InstanceIds": `["i-1","i-2"]`, "MaxResults": "100"}
	if calls := s.calls("DescribeInstances"); len(calls) != 1 || !maps.Equal(calls[0].params, want) {
		t.Errorf("asked %v", calls)
	}
	if _, err := s.provider().Instances().Describe(t.Context(), make([]string, cloud.MaxDescribe+1)); !cloud.Is(err, cloud.Permanent) {
		t.Errorf("too many: %v", err)
	}
}

// TestAllowForwarding: only interfaces that check are changed, those behind one that
// fails too.
func TestAllowForwarding(t *testing.T) {
	s := newStub(t)
	s.on("DescribeNetworkInterfaces", reply{body: `{"NetworkInterfaceSets":{"NetworkInterfaceSet":[
		{"NetworkInterfaceId":"eni-1","SourceDestCheck":true},{"NetworkInterfaceId":"eni-2","SourceDestCheck":false},{"NetworkInterfaceId":"eni-3","SourceDestCheck":true}]}}`})
	s.on("ModifyNetworkInterfaceAttribute", reply{status: 403, body: `{"Code":"Forbidden.RAM","Message":"no"}`}, reply{body: `{"RequestId":"r"}`})
	changed, err := s.provider().Instances().AllowForwarding(t.Context(), []cloud.Instance{
		{ID: "i-0"}, {ID: "i-1", Interface: "eni-1"}, {ID: "i-2", Interface: "eni-2"}, {ID: "i-3", Interface: "eni-3"}})
	if fmt.Sprint(changed) != "[i-3]" || !cloud.Is(err, cloud.Forbidden) || !strings.Contains(err.Error(), "eni-1 of instance i-1") {
		t.Errorf("changed %v, %v", changed, err)
	}
	asked := s.calls("DescribeNetworkInterfaces")
	want := map[string]string{"RegionId": testRegion, "MaxResults": "100", "NetworkInterfaceId.1": "eni-1", "NetworkInterfaceId.2": "eni-2", "NetworkInterfaceId.3": "eni-3"}
	if len(asked) != 1 || !maps.Equal(asked[0].params, want) {
		t.Errorf("asked %v", asked)
	}
	for i, eni := range []string{"eni-1", "eni-3"} {
		want := map[string]string{"RegionId": testRegion, "NetworkInterfaceId": eni, "SourceDestCheck": "false"}
		if calls := s.calls("ModifyNetworkInterfaceAttribute"); len(calls) != 2 || !maps.Equal(calls[i].params, want) {
			t.Errorf("changed by %v", calls)
		}
	}
}

package alibaba

import (
	"fmt"
	"maps"
	"strings"
	"testing"
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
			"NetworkInterfaces":{"NetworkInterface":[
				{"Type":"Secondary","PrimaryIpAddress":"172.16.9.1"},
				{"Type":"Primary","PrimaryIpAddress":"172.16.0.1","PrivateIpSets":{"PrivateIpSet":[{"PrivateIpAddress":"172.16.0.1","Primary":true},{"PrivateIpAddress":"172.16.0.77"}]},
				 "Ipv6Sets":{"Ipv6Set":[{"Ipv6Address":"2408::1"}]}}]}}]}}`},
		reply{body: `{"NextToken":"","Instances":{"Instance":[
			{"InstanceId":"i-2","Status":"Stopped","VpcAttributes":{"VpcId":"vpc-2vc1"}},
			{"InstanceId":"i-3","Status":"Running","VpcAttributes":{"VpcId":"vpc-other"}}]}}`})
	found, err := s.provider().Instances().List(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	got := fmt.Sprint(found)
	want := "[{i-1 [172.16.0.1 172.16.0.77 2408::1 172.16.9.1] cn-chengdu-a ecs.g7.large true} {i-2 []   false}]"
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

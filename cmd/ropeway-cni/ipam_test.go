package main

import (
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/containernetworking/cni/libcni"
	"sigs.k8s.io/yaml"

	"ropeway.dev/ropeway/internal/cniwire"
)

// CNI specification 1.1.0, section 4: the real host-local, with Calico's
// literals for the node's CIDRs.
func TestDelegatesToHostLocal(t *testing.T) {
	for _, tt := range []struct {
		name   string
		ranges []string
		ipam   string
		want   []string // addresses
		routes int
	}{
		{"a subnet of its own", nil, `"subnet": "10.77.0.0/24"`, []string{"10.77.0.2"}, 1},
		{"usePodCidr", []string{"10.244.1.0/24"}, `"subnet": "usePodCidr"`, []string{"10.244.1.2"}, 1},
		{"ranges", []string{"10.244.1.0/24"}, `"ranges": [[{"subnet": "usePodCidr"}]]`, []string{"10.244.1.2"}, 1},
		{"with a start", []string{"10.244.1.0/24"}, `"ranges": [[{"subnet": "usePodCidr", "rangeStart": "10.244.1.100"}]]`, []string{"10.244.1.100"}, 1},
		{"dual", []string{"fd44::/64", "10.244.1.0/24"}, `"ranges": [[{"subnet": "usePodCidr"}], [{"subnet": "usePodCidrIPv6"}]]`, []string{"10.244.1.2", "fd44::2"}, 2},
		{"with routes", []string{"10.244.1.0/24"}, `"subnet": "usePodCidr", "routes": [{"dst": "10.0.0.0/8"}, {"dst": "172.16.0.0/12", "gw": "10.244.1.9"}, {"dst": "192.168.0.0/16"}]`, []string{"10.244.1.2"}, 3},
	} {
		t.Run(tt.name, func(t *testing.T) {
			n := newNode(t, tt.ranges...)
			before := n.state()
			list, p := conflist(t, "1.0.0", `{"type": "ropeway", "ipam": {"type": "host-local", `+tt.ipam+`}}`), n.pod("c1")
			result := n.mustAdd(list, p)
			if got := fmt.Sprint(addrs(t, result)); got != "["+strings.Join(tt.want, " ")+"]" {
				t.Errorf("addresses %s, want %v", got, tt.want)
			}
			if len(result.Routes) != tt.routes {
				t.Errorf("routes %v, want %d", result.Routes, tt.routes)
			}
			held := n.agent.Held()[cniwire.Attachment{Network: "rwt-net", ContainerID: "c1", IfName: "eth0"}]
			if fmt.Sprint(held) != fmt.Sprint(addrs(t, result)) {
				t.Errorf("the agent recorded %v", held)
			}
			if err := n.cni.CheckNetworkList(t.Context(), list, p.rt); err != nil {
				t.Errorf("CHECK: %v", err)
			}
			n.mustDel(list, p)
			n.mustDel(list, p)
			if after := n.state(); after != before || len(n.agent.Held()) != 0 {
				t.Errorf("left, or held %v:\n%s", n.agent.Held(), after)
			}
		})
	}
}

func TestNodeWithoutCIDR(t *testing.T) {
	n := newNode(t, "10.244.1.0/24")
	_, err := n.add(conflist(t, "1.0.0", `{"type": "ropeway", "ipam": {"type": "host-local", "ranges": [[{"subnet": "usePodCidrIPv6"}]]}}`), n.pod("c1"))
	if code(err) != cniwire.CodeTryAgainLater || !strings.Contains(err.Error(), "spec.podCIDRs") || !strings.Contains(err.Error(), "--allocate-node-cidrs") {
		t.Errorf("got %v", err)
	}
}

// TestToHostLocalWithLivePods: host-local does not know the addresses of pods that
// run, and the ADD passes over them. Where it has nothing else, the ADD says so.
func TestToHostLocalWithLivePods(t *testing.T) {
	n := newNode(t, "10.88.0.0/29")
	before := conflist(t, "1.0.0", `{"type": "ropeway", "ipam": {"type": "ropeway-ipam"}}`)
	after := conflist(t, "1.0.0", `{"type": "ropeway", "ipam": {"type": "host-local", "subnet": "usePodCidr"}}`)
	old := []*pod{n.pod("old1"), n.pod("old2"), n.pod("old3")}
	for _, p := range old {
		n.mustAdd(before, p)
	}
	for id, want := range map[string]string{"new1": "10.88.0.5"} {
		if got := addrs(t, n.mustAdd(after, n.pod(id))); len(got) != 1 || got[0].String() != want {
			t.Errorf("%s has %v, want %s", id, got, want)
		}
	}
	n.mustAdd(after, n.pod("new2"))
	state, held := n.state(), len(n.agent.Held())
	if _, err := n.add(after, n.pod("new3")); code(err) != cniwire.CodeNoAddress || !strings.Contains(err.Error(), "held by") {
		t.Errorf("with no address left: %v", err)
	}
	if now := n.state(); now != state || len(n.agent.Held()) != held {
		t.Errorf("left:\n%s\nwant\n%s", now, state)
	}
	n.mustDel(before, old[0]) // made by our allocator, removed under host-local's list as well
	n.mustDel(after, old[1])
	for range 2 {
		n.mustAdd(after, n.pod(fmt.Sprint("later", len(n.agent.Held()))))
	}
}

// Failures of the delegated plugin come through, and nothing is left.
func TestDelegateFails(t *testing.T) {
	n := newNode(t, "10.88.0.0/24")
	script := func(name, text string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(n.bin, name), []byte("#!/bin/sh\n"+text), 0o755); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { os.Remove(filepath.Join(n.bin, name)) })
	}
	// What they were asked, last: each may have taken an address before it failed.
	verbs := filepath.Join(t.TempDir(), "verbs")
	note := "echo $CNI_COMMAND > " + verbs + "; [ $CNI_COMMAND = DEL ] && exit 0; "
	script("rwt-says", note+`echo '{"cniVersion": "1.0.0", "code": 123, "msg": "the pool is empty"}'; exit 1`)
	script("rwt-dies", note+`echo oops; exit 3`)
	script("rwt-garbage", note+`echo '[]'`)
	script("rwt-nothing", `[ $CNI_COMMAND = DEL ] || echo '{}'`)
	for _, tt := range []struct {
		ipam string
		code uint
		want string
	}{
		{"rwt-says", 123, "the pool is empty"},
		{"rwt-dies", cniwire.CodeInternal, "oops"},
		{"rwt-garbage", cniwire.CodeDecode, "rwt-garbage"},
		{"rwt-nothing", cniwire.CodeNoAddress, "gave no address"},
		{"rwt-absent", cniwire.CodeInvalidConfig, "not in CNI_PATH"},
		{"../rwt", cniwire.CodeInvalidConfig, "not a path"},
	} {
		before := n.state()
		_, err := n.add(conflist(t, "1.0.0", fmt.Sprintf(`{"type": "ropeway", "ipam": {"type": %q}}`, tt.ipam)), n.pod("c1"))
		if code(err) != tt.code || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: %v (code %d), want code %d and %q", tt.ipam, err, code(err), tt.code, tt.want)
		}
		if n.state() != before || len(n.agent.Held()) != 0 {
			t.Errorf("%s left something", tt.ipam)
		}
		if last, err := os.ReadFile(verbs); slices.Contains([]string{"rwt-says", "rwt-dies", "rwt-garbage"}, tt.ipam) && string(last) != "DEL\n" {
			t.Errorf("%s was asked %q last (%v), want DEL", tt.ipam, last, err)
		}
		_ = os.Remove(verbs) // of the next one
	}
}

// CNI specification 1.1.0, section 4, from the other side: another main plugin
// asks ours for addresses.
func TestUnderAnotherMainPlugin(t *testing.T) {
	for _, tt := range []struct {
		name, plugin string
		ranges       []string
	}{
		{"ropeway-ipam", `{"type": "ptp", "ipam": {"type": "ropeway-ipam"}}`, []string{"10.88.0.0/24", "fd88::/64"}},
		{"calico-ipam", `{"type": "ptp", "mtu": 1400, "ipam": {"type": "calico-ipam", "assign_ipv4": "true"}}`, []string{"10.88.0.0/24"}},
		{"spiderpool", `{"type": "ptp", "ipam": {"type": "spiderpool", "default_ipv4_ippool": ["p"]}}`, []string{"10.88.0.0/24"}},
		{"macvlan", `{"type": "macvlan", "master": "rwt-up", "mode": "bridge", "ipam": {"type": "spiderpool"}}`, []string{"10.88.0.0/24"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			n := newNode(t, tt.ranges...)
			if strings.Contains(tt.plugin, "rwt-up") {
				master(t)
			}
			list := conflist(t, "1.1.0", tt.plugin)
			if err := n.cni.GetStatusNetworkList(t.Context(), list); err != nil {
				t.Errorf("STATUS: %v", err)
			}
			p1, p2 := n.pod("c1"), n.pod("c2")
			result := n.mustAdd(list, p1)
			if len(result.IPs) != len(tt.ranges) {
				t.Fatalf("addresses %v", result.IPs)
			}
			for i, ip := range result.IPs {
				r := netip.MustParsePrefix(tt.ranges[i])
				ones, _ := ip.Address.Mask.Size()
				if ones != r.Bits() || ip.Gateway.String() != r.Addr().Next().String() {
					t.Errorf("address %v by %v, want the length and the node's address of %s", ip.Address, ip.Gateway, r)
				}
			}
			n.mustAdd(list, p2)
			if err := n.ping(p1, "10.88.0.3"); err != nil {
				t.Error(err)
			}
			if err := n.cni.CheckNetworkList(t.Context(), list, p1.rt); err != nil {
				t.Errorf("CHECK: %v", err)
			}
			n.mustDel(list, p1)
			if len(n.agent.Held()) != 1 {
				t.Errorf("the agent holds %v", n.agent.Held())
			}
			n.agent.Close()
			n.mustDel(list, p2)
			if stones, err := cniwire.ReadTombstones(cniwire.TombstoneDir); err != nil || len(stones) != 1 {
				t.Errorf("tombstones %v, %v", stones, err)
			}
		})
	}
}

// master makes an uplink for the plugins that need one, with its other end up.
func master(t *testing.T) {
	t.Helper()
	for _, args := range []string{"link add rwt-up type veth peer name rwt-far", "link set rwt-up up", "link set rwt-far up"} {
		if out, err := exec.Command("ip", strings.Fields(args)...).CombinedOutput(); err != nil {
			t.Fatalf("ip %s: %v: %s", args, err, out)
		}
	}
}

// TestPoolRoutesUnderAnotherMainPlugin: the routes of a pool reach the pod, each
// by its own router, beside the default route by the gateway.
func TestPoolRoutesUnderAnotherMainPlugin(t *testing.T) {
	n := newNode(t)
	n.agent.Close()
	n.startAgentWith(cniwire.FakeConfig{
		Ranges: []netip.Prefix{netip.MustParsePrefix("10.88.0.0/24")},
		Routes: []cniwire.Route{{Dst: netip.MustParsePrefix("192.0.2.0/24"), Via: netip.MustParseAddr("10.88.0.200")}},
	})
	master(t)
	list := conflist(t, "1.1.0", `{"type": "macvlan", "master": "rwt-up", "mode": "bridge", "ipam": {"type": "spiderpool"}}`)
	p := n.pod("c1")
	result := n.mustAdd(list, p)
	if len(result.Routes) != 2 || result.Routes[1].Dst.String() != "192.0.2.0/24" || result.Routes[1].GW.String() != "10.88.0.200" {
		t.Errorf("routes of the answer: %v", result.Routes)
	}
	err := p.Do(func() error {
		out, err := exec.Command("ip", "route").CombinedOutput()
		for _, want := range []string{"192.0.2.0/24 via 10.88.0.200 ", "default via 10.88.0.1 "} {
			if !strings.Contains(string(out), want) {
				t.Errorf("the pod's routes lack %q:\n%s", want, out)
			}
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
	n.mustDel(list, p)
}

// Whatever would be ignored is refused: what, where, what to do (invariant 8).
func TestRefused(t *testing.T) {
	n := newNode(t, "10.88.0.0/24", "fd88::/64")
	p := n.pod("c1")
	for _, tt := range []struct {
		fields string
		args   string
		want   []string
	}{
		{`"mtu": -1`, "", []string{"mtu is -1", "rwt-net", "bytes"}},
		{`"device_type": "netkit"`, "", []string{"device_type", "netkit", "veth"}},
		{`"policy": {"type": "calico"}`, "", []string{"policy.type", "k8s"}},
		{`"dataplane_options": {"type": "grpc"}`, "", []string{"dataplane_options", "remove it"}},
		{`"feature_control": {"floating_ips": true}`, "", []string{"floating_ips", "remove it"}},
		{`"socket": "cni.sock"`, "", []string{"socket", "absolute"}},
		{`"ipam": {"type": "spiderpool", "clean_gateway": true}`, "", []string{"clean_gateway", "remove it"}},
		{`"ipam": {"type": "spiderpool", "match_master_subnet": true}`, "", []string{"match_master_subnet", "default_ipv4_ippool"}},
		{`"ipam": {"type": "calico-ipam", "ipv4_pools": ["10.0.0.0/24"]}`, "", []string{"ipv4_pools", "name address pools"}},
		{`"ipam": {"type": "calico-ipam", "assign_ipv4": "false"}`, "", []string{"assign_ipv4", "assign_ipv6"}},
		{`"ipam": {"type": "ropeway-ipam", "routes": [{"gw": "10.0.0.1"}]}`, "", []string{"dst"}},
		{`"runtimeConfig": {"ips": ["10.0.0.seven"]}`, "", []string{"10.0.0.seven", "correct it"}},
		{`"args": {"cni": {"ips": ["10.0.0.7", "10.0.0.8"]}}`, "", []string{"two addresses of one family"}},
		{`"num_queues": 5000`, "", []string{"queues"}},
		{`"mtu": 1500`, "IP=10.0.0.7.7", []string{"10.0.0.7.7", "CNI_ARGS"}},
	} {
		conf := `{"cniVersion": "1.0.0", "name": "rwt-net", "type": "ropeway", ` + tt.fields + `}`
		_, failure := n.run(run{verb: "ADD", netns: p.Path(), args: tt.args, conf: conf})
		if failure == nil || failure.Code != 7 {
			t.Errorf("%s: %+v, want code 7", tt.fields, failure)
			continue
		}
		for _, want := range tt.want {
			if !strings.Contains(failure.Msg, want) {
				t.Errorf("%s: %q does not say %q", tt.fields, failure.Msg, want)
			}
		}
	}
	for _, tt := range []struct {
		conf, args string
		code       uint
	}{
		{`{"cniVersion": "1.0.0", "name": "rwt-net", "mtu": "large"}`, "", 6},
		{`{"cniVersion": "1.0.0", "name": "rwt-net", "ipam": {"assign_ipv4": "maybe"}}`, "", 6},
		{`{"cniVersion": "9.0.0", "name": "rwt-net"}`, "", 1},
		{`{"cniVersion": "1.0.0", "name": "rwt-net"}`, "UNKNOWN=1", 4},
	} {
		if _, failure := n.run(run{verb: "ADD", netns: p.Path(), args: tt.args, conf: tt.conf}); failure == nil || failure.Code != tt.code {
			t.Errorf("%s: %+v, want code %d", tt.conf, failure, tt.code)
		}
	}
	if len(n.agent.Held()) != 0 {
		t.Errorf("the agent holds %v", n.agent.Held())
	}
}

// An agent of the former release does not say the subnet of an address.
func TestLeaseOfAnOlderAgent(t *testing.T) {
	n := newNode(t, "10.88.0.0/24")
	j := &job{plugin: &plugin{signals: t.Context}, args: n.skelArgs("c1"), conf: &netConf{Socket: n.agent.Socket}}
	got, err := j.lease(t.Context(), cniwire.Response{Addresses: []netip.Addr{netip.MustParseAddr("10.88.0.9")}})
	if err != nil || got.IPs[0].Address.String() != "10.88.0.9/24" || got.IPs[0].Gateway.String() != "10.88.0.1" {
		t.Errorf("%+v, %v", got, err)
	}
	if _, err := j.lease(t.Context(), cniwire.Response{Addresses: []netip.Addr{netip.MustParseAddr("10.99.0.9")}}); err == nil || !strings.Contains(err.Error(), "restart the ropeway agent") {
		t.Errorf("an address of no CIDR: %v", err)
	}
}

// The reference scenario's configurations, unchanged but for the placeholders,
// which the installer fills in.
func TestScenarioConflists(t *testing.T) {
	fill := strings.NewReplacer("__KUBERNETES_NODE_NAME__", "cn-chengdu.i-2vcxxr", "__CNI_MTU__", "0", "__KUBECONFIG_FILEPATH__", "/etc/cni/net.d/ropeway-kubeconfig-not-needed")
	for _, file := range []string{"calico-config.host-local.yaml", "calico-config.spiderpool.yaml"} {
		t.Run(file, func(t *testing.T) {
			n := newNode(t, "10.244.0.0/24")
			list, err := libcni.NetworkConfFromBytes([]byte(fill.Replace(scenarioConfig(t, file))))
			if err != nil {
				t.Fatal(err)
			}
			p := n.pod("c1")
			result, err := n.add(list, p)
			if err != nil {
				t.Fatal(err)
			}
			if got := addrs(t, result); len(got) != 1 || got[0].String() != "10.244.0.2" {
				t.Errorf("addresses %v", got)
			}
			n.mustDel(list, p)
			if len(n.agent.Held()) != 0 {
				t.Errorf("the agent holds %v", n.agent.Held())
			}
		})
	}
}

func scenarioConfig(t *testing.T, file string) string {
	t.Helper()
	data, err := os.ReadFile(filepath.Join("..", "..", "test", "scenario", file))
	if err != nil {
		t.Fatal(err)
	}
	var configMap struct {
		Data map[string]string `json:"data"`
	}
	if err := yaml.Unmarshal(data, &configMap); err != nil {
		t.Fatal(err)
	}
	return configMap.Data["cni_network_config"]
}

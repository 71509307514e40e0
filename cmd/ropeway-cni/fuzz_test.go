package main

import (
	"encoding/json"
	"testing"

	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/types"

	"ropeway.dev/ropeway/internal/cniwire"
	"ropeway.dev/ropeway/internal/dataplane/podlink"
)

// Whatever a runtime passes is taken or refused with a code and a sentence; what
// ADD takes, DEL understands the same way.
func FuzzConf(f *testing.F) {
	for _, s := range []string{
		`{"cniVersion": "1.1.0", "name": "n", "type": "ropeway"}`,
		`{"cniVersion": "0.3.1", "name": "k8s-pod-network", "type": "calico", "mtu": 1440, "ipam": {"type": "calico-ipam", "assign_ipv4": "true"}}`,
		`{"name": "n", "ipam": {"type": "host-local", "ranges": [[{"subnet": "usePodCidr"}], [{"subnet": "usePodCidrIPv6"}]], "routes": [{"dst": "0.0.0.0/0"}]}}`,
		`{"cniVersion": "1.0.0", "name": "n", "prevResult": {"cniVersion": "1.0.0", "ips": [{"address": "10.0.0.2/32", "interface": 0}]}}`,
		`{"name": "n", "cni.dev/valid-attachments": [{"containerID": "c", "ifname": "eth0"}]}`,
		`{"name": "n", "ipam": ["x"], "socket": 7}`, `null`, `[]`, `{`, "\x00", `{"ipam": {"subnet": {"subnet": []}, "ranges": [[7]]}}`,
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, stdin []byte) {
		lenient := readConfLeniently(stdin)
		_ = dummyCIDRs(stdin)
		conf, err := readConf(stdin)
		if err != nil {
			if e := coded(err); e.Code == 0 || e.Msg == "" || len(e.Msg) > 2*longest {
				t.Fatalf("refused with %+v", e)
			}
			return
		}
		if conf.Name != lenient.Name || conf.IPAM.Type != lenient.IPAM.Type || conf.Socket != lenient.Socket {
			t.Fatalf("ADD reads %q, %q, %q and DEL %q, %q, %q", conf.Name, conf.IPAM.Type, conf.Socket, lenient.Name, lenient.IPAM.Type, lenient.Socket)
		}
		if prev, err := conf.previous(); err == nil && prev != nil {
			j := &job{plugin: &plugin{}, args: &skel.CmdArgs{}, conf: conf, att: cniwire.Attachment{Network: conf.Name, ContainerID: "c", IfName: "eth0"}}
			_, _ = j.expected(prev)
			_, _ = j.wired(prev, podlink.Config{}, podlink.Result{}, types.DNS{}).GetAsVersion(conf.CNIVersion)
		}
		_, _ = conf.validAttachments()
		_, _ = conf.routes(nil, nil)
	})
}

// Numbers and unknown keys of a delegated plugin's section go through as they are.
func FuzzEachSubnet(f *testing.F) {
	f.Add([]byte(`{"ipam": {"subnet": "usePodCidr", "x": 12345678901234567890, "ranges": [[{"subnet": "usePodCidr"}]]}}`))
	f.Fuzz(func(t *testing.T, conf []byte) {
		once, err := eachSubnet(conf, func(s string) string { return s })
		if err != nil {
			return
		}
		twice, err := eachSubnet(once, func(s string) string { return s })
		if err != nil || string(twice) != string(once) {
			t.Fatalf("%s became %s, %v", once, twice, err)
		}
	})
}

func FuzzArgs(f *testing.F) {
	f.Add("IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=p;K8S_POD_UID=u;IP=10.0.0.2")
	f.Add("=;=")
	f.Add("K8S_POD_NAME")
	f.Fuzz(func(t *testing.T, args string) {
		if _, _, err := podOf(args); err != nil && coded(err).Code != types.ErrInvalidEnvironmentVariables {
			t.Fatalf("%q: %v", args, err)
		}
	})
}

// What another IPAM plugin prints.
func FuzzResult(f *testing.F) {
	for _, s := range []string{
		`{"cniVersion": "1.0.0", "ips": [{"address": "10.0.0.2/24", "gateway": "10.0.0.1"}], "routes": [{"dst": "0.0.0.0/0"}], "dns": {}}`,
		`{"ip4": {"ip": "10.0.0.2/24"}}`, `{"cniVersion": "0.2.0", "ip4": {"ip": "10.0.0.2/24"}}`, `null`, `{"cniVersion": 7}`, ``,
	} {
		f.Add([]byte(s), "1.0.0")
		f.Add([]byte(s), "0.3.1")
	}
	f.Fuzz(func(t *testing.T, printed []byte, version string) {
		result, err := parseResult(printed, version)
		if err != nil {
			return
		}
		_, _ = addressesOf(result.IPs, nil)
		for _, r := range result.Routes {
			_, _ = prefixOf(&r.Dst)
		}
		if _, err := json.Marshal(result); err != nil {
			t.Fatalf("%s is taken and cannot be written: %v", printed, err)
		}
	})
}

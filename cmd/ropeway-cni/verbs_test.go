package main

import (
	"context"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/types"

	"ropeway.dev/ropeway/internal/cniwire"
	"ropeway.dev/ropeway/internal/dataplane/podlink"
)

// CNI specification 1.1.0, section 2, STATUS: code 50 when ADD cannot be served.
func TestStatus(t *testing.T) {
	n := newNode(t, "10.88.0.0/24")
	conf := func(ipam string) string {
		return `{"cniVersion": "1.1.0", "name": "rwt-net", "type": "ropeway", "ipam": ` + ipam + `}`
	}
	for _, tt := range []struct {
		name, ipam string
		fail       *cniwire.Error
		code       uint
	}{
		{"ready", `{}`, nil, 0},
		{"delegated", `{"type": "host-local", "subnet": "usePodCidr"}`, nil, 0},
		{"the node has no such CIDR", `{"type": "host-local", "subnet": "usePodCidrIPv6"}`, nil, 50},
		{"the agent is not ready", `{}`, &cniwire.Error{Code: 50, Msg: "no lease"}, 50},
		{"the agent says later", `{}`, &cniwire.Error{Code: 11, Msg: "no lease"}, 50},
		{"no such plugin", `{"type": "nowhere"}`, nil, 7},
		{"pools", `{"type": "spiderpool"}`, nil, 0},
		{"refused", `{"type": "spiderpool", "clean_gateway": true}`, nil, 7},
	} {
		if tt.fail != nil {
			n.agent.FailNext(cniwire.Status, tt.fail)
		}
		_, failure := n.run(run{verb: "STATUS", conf: conf(tt.ipam)})
		if failure == nil && tt.code != 0 || failure != nil && failure.Code != tt.code {
			t.Errorf("%s: %+v, want code %d", tt.name, failure, tt.code)
		}
	}
	n.agent.Close()
	start := time.Now()
	for _, name := range []string{"ropeway", "ropeway-ipam"} {
		if _, failure := n.run(run{name: name, verb: "STATUS", conf: conf(`{}`)}); failure == nil || failure.Code != 50 || !strings.Contains(failure.Msg, "kubectl") {
			t.Errorf("without an agent: %+v", failure)
		}
	}
	if took := time.Since(start); took >= cniwire.DialTimeout {
		t.Errorf("STATUS without an agent took %s", took)
	}
}

// A runtime whose STATUS fails makes its node NotReady: while an agent is restarted or
// upgraded an ADD waits for it, and STATUS says nothing. One that stays away is told.
func TestStatusWhileTheAgentIsAway(t *testing.T) {
	n := newNode(t, "10.88.0.0/24")
	if err := cniwire.MarkReady(cniwire.RunDir); err != nil {
		t.Fatal(err)
	}
	status := func(name, ipam string) *types.Error {
		_, failure := n.run(run{name: name, verb: "STATUS", conf: `{"cniVersion": "1.1.0", "name": "rwt-net", "type": "ropeway", "ipam": ` + ipam + `}`})
		return failure
	}
	n.agent.FailNext(cniwire.Status, &cniwire.Error{Code: 50, Msg: "the agent is starting"})
	if failure := status("ropeway", `{}`); failure != nil {
		t.Errorf("an agent that starts: %+v", failure)
	}
	if failure := status("ropeway", `{"type": "host-local", "subnet": "usePodCidrIPv6"}`); failure == nil || failure.Code != 50 {
		t.Errorf("the node has no such CIDR: %+v", failure)
	}
	n.agent.Close()
	for name, ipam := range map[string]string{"ropeway": `{"type": "host-local", "subnet": "usePodCidr"}`, "ropeway-ipam": `{}`} {
		if failure := status(name, ipam); failure != nil {
			t.Errorf("%s without an agent since a moment ago: %+v", name, failure)
		}
	}
	long := time.Now().Add(-cniwire.ReadyFor - time.Second)
	if err := os.Chtimes(cniwire.RunDir+"/ready", long, long); err != nil {
		t.Fatal(err)
	}
	if failure := status("ropeway", `{}`); failure == nil || failure.Code != 50 {
		t.Errorf("without an agent for long: %+v", failure)
	}
}

// CHECK under the name of an IPAM plugin compares what is held with what was given.
func TestIPAMCheckCompares(t *testing.T) {
	n := newNode(t, "10.88.0.0/24")
	p := n.pod("c1")
	conf := func(prev string) string {
		return `{"cniVersion": "1.0.0", "name": "rwt-net", "type": "ptp", "ipam": {"type": "ropeway-ipam"}` + prev + `}`
	}
	if out, failure := n.run(run{name: "ropeway-ipam", verb: "ADD", netns: p.Path(), conf: conf("")}); failure != nil || !strings.Contains(out, "10.88.0.2") {
		t.Fatalf("ADD: %s %+v", out, failure)
	}
	for prev, code := range map[string]uint{
		"": 7,
		`, "prevResult": {"cniVersion": "1.0.0", "ips": [{"address": "10.88.0.2/24"}, {"address": "fd00::9/64"}]}`: 0,
		`, "prevResult": {"cniVersion": "1.0.0", "ips": [{"address": "10.88.0.9/24"}]}`:                            cniwire.CodeMismatch,
	} {
		_, failure := n.run(run{name: "ropeway-ipam", verb: "CHECK", netns: p.Path(), conf: conf(prev)})
		if failure == nil && code != 0 || failure != nil && failure.Code != code {
			t.Errorf("%s: %+v, want code %d", prev, failure, code)
		}
	}
}

// CNI specification 1.1.0, section 2, CHECK.
func TestCheckFinds(t *testing.T) {
	for _, tt := range []struct {
		name  string
		spoil func(*node, *pod) error
		code  uint
		want  string
	}{
		{"the link", func(*node, *pod) error {
			return exec.Command("ip", "link", "del", podlink.HostLinkName("rwt-net", "c1", "eth0")).Run()
		}, cniwire.CodeInternal, "not wired"},
		{"the agent's record", func(n *node, _ *pod) error {
			_, err := cniwire.Call(context.Background(), n.agent.Socket, cniwire.Request{Verb: cniwire.Del, Attachment: cniwire.Attachment{Network: "rwt-net", ContainerID: "c1", IfName: "eth0"}})
			return err
		}, cniwire.CodeMismatch, "no address is recorded"},
		{"a delegated record", func(*node, *pod) error {
			return os.RemoveAll("/var/lib/cni/networks/rwt-net")
		}, types.ErrInternal, "host-local"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			n := newNode(t, "10.88.0.0/24")
			ipam := `{}`
			if strings.HasPrefix(tt.name, "a delegated") {
				ipam = `{"type": "host-local", "subnet": "usePodCidr"}`
			}
			list, p := conflist(t, "0.4.0", `{"type": "ropeway", "ipam": `+ipam+`}`), n.pod("c1")
			n.mustAdd(list, p)
			if err := n.cni.CheckNetworkList(t.Context(), list, p.rt); err != nil {
				t.Fatalf("CHECK before: %v", err)
			}
			if err := tt.spoil(n, p); err != nil {
				t.Fatal(err)
			}
			err := n.cni.CheckNetworkList(t.Context(), list, p.rt)
			if code(err) != tt.code || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("CHECK after: %v (code %d), want code %d and %q", err, code(err), tt.code, tt.want)
			}
		})
	}
}

func TestCheckNeedsTheResult(t *testing.T) {
	n := newNode(t, "10.88.0.0/24")
	p := n.pod("c1")
	for _, prev := range []string{`null`, `{"cniVersion": "1.0.0"}`, `{"cniVersion": "1.0.0", "ips": 7}`} {
		_, failure := n.run(run{verb: "CHECK", netns: p.Path(), conf: `{"cniVersion": "1.0.0", "name": "rwt-net", "type": "ropeway", "prevResult": ` + prev + `}`})
		if failure == nil || !strings.Contains(failure.Msg, "prevResult") {
			t.Errorf("%s: %+v", prev, failure)
		}
	}
}

// CNI specification 1.1.0, section 2, GC.
func TestGC(t *testing.T) {
	n := newNode(t, "10.88.0.0/24")
	list := conflist(t, "1.1.0")
	keep, stale := n.pod("keep"), n.pod("stale")
	n.mustAdd(list, keep)
	n.mustAdd(list, stale)
	gc := func(valid string) *types.Error {
		_, failure := n.run(run{verb: "GC", conf: `{"cniVersion": "1.1.0", "name": "rwt-net", "type": "ropeway"` + valid + `}`})
		return failure
	}
	if failure := gc(""); failure == nil || failure.Code != 7 || len(n.agent.Held()) != 2 {
		t.Errorf("a GC that names nothing: %+v", failure)
	}
	if failure := gc(`, "cni.dev/valid-attachments": [{"containerID": "keep", "ifname": "eth0"}]`); failure != nil {
		t.Fatal(failure)
	}
	links, err := podlink.List()
	if err != nil || len(links) != 1 || len(n.agent.Held()) != 1 {
		t.Errorf("links %v, held %v, %v", links, n.agent.Held(), err)
	}
	if err := n.cni.CheckNetworkList(t.Context(), list, keep.rt); err != nil {
		t.Errorf("the valid one was harmed: %v", err)
	}
	if err := n.cni.GCNetworkList(t.Context(), list, &libcni.GCArgs{ValidAttachments: []types.GCAttachment{{ContainerID: "keep", IfName: "eth0"}}}); err != nil {
		t.Errorf("GC through libcni: %v", err)
	}
	n.agent.FailNext(cniwire.GC, &cniwire.Error{Code: cniwire.CodeInternal, Msg: "not now"})
	if failure := gc(`, "cni.dev/valid-attachments": []`); failure == nil || !strings.Contains(failure.Msg, "not now") {
		t.Errorf("the agent's failure is not reported: %+v", failure)
	}
	if links, err := podlink.List(); err != nil || len(links) != 0 {
		t.Errorf("GC stopped at the agent's failure: %v, %v", links, err)
	}
}

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/types"
	"github.com/vishvananda/netlink"

	"ropeway.dev/ropeway/internal/cniwire"
	"ropeway.dev/ropeway/internal/dataplane/podlink"
)

// CNI specification, section 2 (ADD) and section 5 (Success): the result has the
// form of the version that was asked for.
func TestResultHasTheRequestedVersion(t *testing.T) {
	for _, version := range []string{"0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"} {
		t.Run(version, func(t *testing.T) {
			n := newNode(t, "10.88.0.0/24", "fd88::/64")
			p := n.pod("c1")
			conf := fmt.Sprintf(`{"cniVersion": %q, "name": "rwt-net", "type": "ropeway", "dns": {"nameservers": ["10.96.0.10"]}}`, version)
			out, failure := n.run(run{verb: "ADD", netns: p.Path(), conf: conf})
			if failure != nil {
				t.Fatal(failure)
			}
			var got struct {
				CNIVersion string `json:"cniVersion"`
				Interfaces []struct {
					Name, Mac, Sandbox string
					Mtu                int
				} `json:"interfaces"`
				IPs []struct {
					Version   string
					Address   netip.Prefix
					Gateway   netip.Addr
					Interface *int
				} `json:"ips"`
				IP4    struct{ IP netip.Prefix } `json:"ip4"`
				IP6    struct{ IP netip.Prefix } `json:"ip6"`
				Routes []struct {
					Dst netip.Prefix
					GW  netip.Addr
				} `json:"routes"`
				DNS types.DNS `json:"dns"`
			}
			if err := json.Unmarshal([]byte(out), &got); err != nil {
				t.Fatal(err)
			}
			if got.CNIVersion != version || len(got.DNS.Nameservers) != 1 {
				t.Errorf("version %q, dns %+v: %s", got.CNIVersion, got.DNS, out)
			}
			if version == "0.2.0" {
				if got.IP4.IP.Bits() != 32 || got.IP6.IP.Bits() != 128 {
					t.Errorf("ip4 %v, ip6 %v", got.IP4, got.IP6)
				}
				return
			}
			if len(got.Interfaces) != 2 || got.Interfaces[1].Name != "eth0" || got.Interfaces[1].Sandbox != p.Path() || got.Interfaces[0].Sandbox != "" ||
				got.Interfaces[0].Name != podlink.HostLinkName("rwt-net", "c1", "eth0") || got.Interfaces[1].Mac == "" {
				t.Errorf("interfaces: %+v", got.Interfaces)
			}
			if len(got.IPs) != 2 || len(got.Routes) != 2 {
				t.Fatalf("ips %+v, routes %+v", got.IPs, got.Routes)
			}
			for _, ip := range got.IPs {
				if ip.Interface == nil || *ip.Interface != 1 || ip.Address.Bits() != ip.Address.Addr().BitLen() || ip.Gateway != podlink.Gateway(ip.Address.Addr()) {
					t.Errorf("address %+v", ip)
				}
				if version < "1" && ip.Version == "" {
					t.Errorf("address %+v lacks the family that %s has", ip, version)
				}
			}
			if wantMTU := map[bool]int{true: 1480}[version == "1.1.0"]; got.Interfaces[1].Mtu != wantMTU {
				t.Errorf("mtu %d in a result of %s, want %d", got.Interfaces[1].Mtu, version, wantMTU)
			}
		})
	}
}

// CNI specification 1.1.0, section 2, VERSION.
func TestVersion(t *testing.T) {
	n := newNode(t)
	for _, name := range append(ipamNames(), "ropeway", "calico") {
		out, failure := n.run(run{name: name, verb: "VERSION"})
		if failure != nil {
			t.Fatal(failure)
		}
		for _, version := range []string{"0.3.1", "0.4.0", "1.0.0", "1.1.0"} {
			if !strings.Contains(out, `"`+version+`"`) {
				t.Errorf("%s does not list %s: %s", name, version, out)
			}
		}
	}
}

// The life of a pod, as a runtime leads it: STATUS, ADD, CHECK, DEL, DEL, GC, in
// each version of the conflist. The library calls only what the version has:
// CHECK from 0.4.0 on, STATUS and GC from 1.1.0 on.
func TestLifeOfAPod(t *testing.T) {
	dual := []string{"10.88.0.0/24", "fd88::/64"}
	chain := []string{
		`{"type": "ropeway"}`, `{"type": "portmap", "snat": true, "capabilities": {"portMappings": true}}`,
		`{"type": "bandwidth", "capabilities": {"bandwidth": true}}`, `{"type": "tuning"}`,
	}
	for _, tt := range []struct {
		name, version string
		ranges        []string
		plugins       []string
	}{
		{"IPv4", "1.1.0", dual[:1], nil},
		{"IPv6", "1.1.0", dual[1:], nil},
		{"dual", "1.1.0", dual, nil},
		{"as calico with calico-ipam", "0.3.1", dual[:1], []string{`{"type": "calico", "ipam": {"type": "calico-ipam"}}`}},
		{"chained 0.3.1", "0.3.1", dual, chain},
		{"chained 0.4.0", "0.4.0", dual, chain},
		{"chained 1.0.0", "1.0.0", dual, chain},
		{"chained 1.1.0", "1.1.0", dual, chain},
	} {
		t.Run(tt.name, func(t *testing.T) {
			n := newNode(t, tt.ranges...)
			before := n.state()
			list := conflist(t, tt.version, tt.plugins...)
			if err := n.cni.GetStatusNetworkList(t.Context(), list); err != nil {
				t.Errorf("STATUS: %v", err)
			}
			p := n.pod("c1")
			result := n.mustAdd(list, p)
			if got := addrs(t, result); len(got) != len(tt.ranges) {
				t.Errorf("addresses %v", got)
			}
			if tt.version >= "0.4.0" {
				if err := n.cni.CheckNetworkList(t.Context(), list, p.rt); err != nil {
					t.Errorf("CHECK: %v", err)
				}
			}
			valid := &libcni.GCArgs{ValidAttachments: []types.GCAttachment{{ContainerID: "c1", IfName: "eth0"}}}
			if err := n.cni.GCNetworkList(t.Context(), list, valid); err != nil {
				t.Errorf("GC: %v", err)
			}
			held := n.agent.Held()[cniwire.Attachment{Network: "rwt-net", ContainerID: "c1", IfName: "eth0"}]
			if !slices.Equal(held, addrs(t, result)) {
				t.Errorf("the agent holds %v", held)
			}
			n.mustDel(list, p)
			n.mustDel(list, p) // section 2, DEL: more than once is accepted
			if len(n.agent.Held()) != 0 {
				t.Errorf("the agent still holds %v", n.agent.Held())
			}
			if after := n.state(); after != before {
				t.Errorf("left:\n%s\nbefore:\n%s", after, before)
			}
		})
	}
}

func TestPodsOfOneNodeReachOneAnother(t *testing.T) {
	n := newNode(t, "10.88.0.0/24", "fd88::/64")
	list := conflist(t, "1.0.0")
	p1, p2 := n.pod("c1"), n.pod("c2")
	n.mustAdd(list, p1)
	for _, a := range addrs(t, n.mustAdd(list, p2)) {
		if err := n.ping(p1, a.String()); err != nil {
			t.Error(err)
		}
	}
}

// What the node's agent and a person can read from the kernel: whose link it is.
func TestPodIsNamedEverywhere(t *testing.T) {
	n := newNode(t, "10.88.0.0/24")
	n.mustAdd(conflist(t, "1.0.0"), n.pod("c1"))
	want := cniwire.Pod{Namespace: "default", Name: "pod-c1", UID: "uid-c1"}
	links, err := podlink.List()
	if err != nil || len(links) != 1 {
		t.Fatalf("%v, %v", links, err)
	}
	if _, got, err := podlink.ParseAlias(links[0].Alias); err != nil || got != want {
		t.Errorf("alias %q: %v", links[0].Alias, err)
	}
	if req := n.agent.Requests()[0]; req.Pod != want || req.Verb != cniwire.Add {
		t.Errorf("request %+v", req)
	}
}

func TestSettingsOfTheInterface(t *testing.T) {
	n := newNode(t, "10.88.0.0/24", "fd88::/64")
	list := conflist(t, "1.1.0", `{"type": "ropeway", "mtu": 1300, "num_queues": 2, "container_settings": {"allow_ip_forwarding": false},
		"ipam": {"type": "calico-ipam", "assign_ipv4": "true", "routes": [{"dst": "10.0.0.0/8"}]}, "include_default_routes": true,
		"log_level": "info", "datastore_type": "kubernetes", "nodename": "n", "policy": {"type": "k8s"}, "kubernetes": {"kubeconfig": "/none"}}`)
	p := n.pod("c1")
	result := n.mustAdd(list, p)
	if got := addrs(t, result); len(got) != 1 || !got[0].Is4() {
		t.Errorf("assign_ipv4 only: addresses %v", got)
	}
	if len(result.Routes) != 2 || result.Interfaces[1].Mtu != 1300 {
		t.Errorf("routes %v, mtu %d", result.Routes, result.Interfaces[1].Mtu)
	}
	err := p.Do(func() error {
		link, err := netlink.LinkByName("eth0")
		if err != nil {
			return err
		}
		forward, err := os.ReadFile("/proc/sys/net/ipv4/ip_forward")
		if link.Attrs().MTU != 1300 || link.Attrs().NumTxQueues != 2 || strings.TrimSpace(string(forward)) != "0" {
			t.Errorf("mtu %d, queues %d, ip_forward %s", link.Attrs().MTU, link.Attrs().NumTxQueues, forward)
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
	if err := n.cni.CheckNetworkList(t.Context(), list, p.rt); err != nil {
		t.Errorf("CHECK: %v", err)
	}
}

// CNI specification 1.1.0, section 3: a plugin that is not the first keeps what
// those before it made.
func TestBehindAnotherPlugin(t *testing.T) {
	n := newNode(t, "10.88.0.0/24")
	p := n.pod("c1")
	conf := fmt.Sprintf(`{"cniVersion": "1.0.0", "name": "rwt-net", "type": "ropeway", "prevResult": {"cniVersion": "1.0.0",
		"interfaces": [{"name": "lo0", "sandbox": %q}], "ips": [{"interface": 0, "address": "192.0.2.1/24"}], "dns": {"domain": "example.org"}}}`, p.Path())
	out, failure := n.run(run{verb: "ADD", netns: p.Path(), conf: conf})
	if failure != nil {
		t.Fatal(failure)
	}
	result, err := parseResult([]byte(out), "1.0.0")
	if err != nil {
		t.Fatal(err)
	}
	if len(result.Interfaces) != 3 || len(result.IPs) != 2 || *result.IPs[0].Interface != 0 || *result.IPs[1].Interface != 2 || result.DNS.Domain != "example.org" {
		t.Errorf("result: %s", out)
	}
}

// CNI specification 1.1.0, section 2, ADD, and section 5: all or nothing, and
// the code says what it was.
func TestAddAllOrNothing(t *testing.T) {
	full, err := os.OpenFile("/dev/full", os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer full.Close()
	const ours, hostLocal = `"ipam": {"type": "ropeway-ipam"}`, `"ipam": {"type": "host-local", "subnet": "usePodCidr"}`
	for _, tt := range []struct {
		name  string
		spoil func(*node, *run, *pod)
		extra string
		code  uint
		want  string // in the message
	}{
		{"the agent cannot write it down", func(n *node, _ *run, _ *pod) {
			n.agent.FailNext(cniwire.Add, &cniwire.Error{Code: cniwire.CodeIO, Msg: "the journal's disk is full"})
		}, "", cniwire.CodeIO, "disk is full"},
		{"the agent is not ready", func(n *node, _ *run, _ *pod) {
			n.agent.FailNext(cniwire.Add, &cniwire.Error{Code: cniwire.CodeTryAgainLater, Msg: "no lease yet"})
		}, "", 11, "no lease yet"},
		{"the interface exists in the pod", func(n *node, _ *run, p *pod) {
			if err := p.Do(func() error {
				return netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "eth0"}, PeerName: "x"})
			}); err != nil {
				n.t.Fatal(err)
			}
		}, "", cniwire.CodeMismatch, "eth0"},
		{"the address is routed elsewhere", func(n *node, _ *run, _ *pod) {
			if out, err := exec.Command("ip", "route", "add", "10.88.0.2/32", "dev", "lo").CombinedOutput(); err != nil {
				n.t.Fatalf("%v: %s", err, out)
			}
		}, "", cniwire.CodeMismatch, "10.88.0.2"},
		{"an MTU that no link can have", nil, `"mtu": 70000`, cniwire.CodeInvalidConfig, "70000"},
		{"a route of a family that the pod lacks", nil, `"include_default_routes": false`, cniwire.CodeInvalidConfig, "::/0"},
		{"nobody reads the result", func(_ *node, r *run, _ *pod) { r.stdout = full }, "", 0, ""},
		{"no namespace", func(_ *node, r *run, _ *pod) { r.netns = "/run/netns/none" }, "", types.ErrInvalidNetNS, "/run/netns/none"},
		{"the node's namespace", func(_ *node, r *run, _ *pod) { r.netns = "/proc/self/ns/net" }, "", types.ErrInvalidNetNS, "own"},
	} {
		for _, ipam := range []string{ours, hostLocal} {
			t.Run(tt.name+" "+ipam, func(t *testing.T) {
				n := newNode(t, "10.88.0.0/24")
				p := n.pod("c1")
				fields := []string{`"cniVersion": "1.1.0", "name": "rwt-net", "type": "ropeway"`, ipam}
				if strings.Contains(tt.want, "::/0") {
					fields[1] = strings.TrimSuffix(ipam, "}") + `, "routes": [{"dst": "::/0"}]}`
				}
				if tt.extra != "" {
					fields = append(fields, tt.extra)
				}
				r := run{verb: "ADD", netns: p.Path(), conf: "{" + strings.Join(fields, ",") + "}"}
				if tt.spoil != nil {
					tt.spoil(n, &r, p)
				}
				before := n.state()
				_, failure := n.run(r)
				if failure == nil || failure.Code != tt.code || !strings.Contains(failure.Msg+failure.Details, tt.want) {
					t.Fatalf("got %+v, want code %d and %q", failure, tt.code, tt.want)
				}
				if held := n.agent.Held(); len(held) != 0 {
					t.Errorf("the agent still holds %v", held)
				}
				if after := n.state(); after != before {
					t.Errorf("left:\n%s\nbefore:\n%s", after, before)
				}
			})
		}
	}
}

// Invariant 1: the address of a wired pod is not given away by an ADD that
// repeats it without a DEL.
func TestAddTwiceKeepsTheFirst(t *testing.T) {
	for _, ipam := range []string{`{"type": "ropeway-ipam"}`, `{"type": "host-local", "subnet": "10.88.0.0/24"}`} {
		t.Run(ipam, func(t *testing.T) {
			n := newNode(t, "10.88.0.0/24")
			list := conflist(t, "1.0.0", `{"type": "ropeway", "ipam": `+ipam+`}`)
			p := n.pod("c1")
			n.mustAdd(list, p)
			held, state := n.agent.Held(), n.state()
			if _, err := n.add(list, p); code(err) != cniwire.CodeMismatch || !strings.Contains(err.Error(), "DEL it first") {
				t.Errorf("the second ADD: %v", err)
			}
			if len(n.agent.Held()) != len(held) || n.state() != state {
				t.Errorf("the first was harmed: the agent holds %v, want %v; the node\n%s\nwant\n%s", n.agent.Held(), held, n.state(), state)
			}
		})
	}
}

// An ADD that is interrupted while it waits ends soon, says so, and takes
// nothing.
func TestAddIsInterrupted(t *testing.T) {
	n := newNode(t)
	p := n.pod("c1")
	socket := filepath.Join(t.TempDir(), "cni.sock")
	hung, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	defer hung.Close()
	before := n.state()
	terminate := func(cmd *exec.Cmd) {
		cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	}
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		// The first answer is none, so that the plugin has to wait, and catches signals.
		if conn, err := hung.Accept(); err == nil {
			conn.Close()
		}
		if conn, err := hung.Accept(); err == nil {
			defer conn.Close()
		}
		cancel()
		<-t.Context().Done()
	}()
	start := time.Now()
	_, failure := n.run(run{ctx: ctx, verb: "ADD", netns: p.Path(), before: terminate,
		conf: fmt.Sprintf(`{"cniVersion": "1.0.0", "name": "rwt-net", "type": "ropeway", "socket": %q}`, socket)})
	if failure == nil || failure.Code != cniwire.CodeTryAgainLater || time.Since(start) > addTimeout/2 {
		t.Errorf("got %+v after %s", failure, time.Since(start))
	}
	if after := n.state(); after != before {
		t.Errorf("left:\n%s", after)
	}
}

// An agent allocates and dies before it answers; the next one refuses. The ADD fails,
// and its address is free.
func TestAddWhoseAnswerIsLost(t *testing.T) {
	n := newNode(t)
	p := n.pod("c1")
	// Where all of the test's threads see it: /run is the first one's.
	agent, err := cniwire.NewFakeAgent(t.TempDir(), cniwire.FakeConfig{Ranges: []netip.Prefix{netip.MustParsePrefix("10.88.0.0/24")}})
	if err != nil {
		t.Fatal(err)
	}
	defer agent.Close()
	socket := filepath.Join(t.TempDir(), "cni.sock")
	between, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	var calls sync.WaitGroup
	defer calls.Wait()
	defer between.Close()
	calls.Go(func() {
		for first := true; ; first = false {
			conn, err := between.Accept()
			if err != nil {
				return
			}
			passOn(t, conn, agent.Socket, first)
			if first {
				if len(agent.Held()) != 1 {
					t.Error("the first try has not allocated: this test shows nothing")
				}
				agent.FailNext(cniwire.Add, &cniwire.Error{Code: cniwire.CodeInvalidConfig, Msg: "another mind"})
			}
		}
	})
	_, failure := n.run(run{verb: "ADD", netns: p.Path(), conf: fmt.Sprintf(`{"cniVersion": "1.0.0", "name": "rwt-net", "type": "ropeway", "socket": %q}`, socket)})
	if failure == nil || failure.Code != cniwire.CodeInvalidConfig || !strings.Contains(failure.Msg, "another mind") {
		t.Errorf("got %+v", failure)
	}
	if held := agent.Held(); len(held) != 0 {
		t.Errorf("the agent still holds %v", held)
	}
}

// passOn passes a request on to a socket, and its answer back, unless that is to get
// lost.
func passOn(t *testing.T, conn net.Conn, socket string, lost bool) {
	t.Helper()
	defer conn.Close()
	agent, err := net.Dial("unix", socket)
	if err != nil {
		t.Error(err)
		return
	}
	defer agent.Close()
	asked := make(chan struct{})
	go func() {
		defer close(asked)
		_, _ = io.Copy(agent, conn) // until the plugin has its answer, and closes
	}()
	var answer io.Writer = conn
	if lost {
		answer = io.Discard
	}
	if _, err := io.Copy(answer, agent); err != nil {
		t.Error(err)
	}
	conn.Close()
	<-asked
}

// An IPAM plugin whose result cannot be printed keeps nothing either.
func TestIPAMAddNobodyReads(t *testing.T) {
	n := newNode(t, "10.88.0.0/24")
	full, err := os.OpenFile("/dev/full", os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer full.Close()
	_, failure := n.run(run{name: "ropeway-ipam", verb: "ADD", netns: n.pod("c1").Path(), stdout: full, conf: `{"cniVersion": "1.0.0", "name": "rwt-net", "type": "ptp", "ipam": {"type": "ropeway-ipam"}}`})
	if held := n.agent.Held(); failure == nil || len(held) != 0 {
		t.Errorf("got %+v, and the agent holds %v", failure, held)
	}
}

// A plugin that is started before the agent waits for it (a restart, an upgrade).
func TestAddWaitsForTheAgent(t *testing.T) {
	n := newNode(t)
	p := n.pod("c1")
	dir := t.TempDir()
	late := func(*exec.Cmd) {
		go func() {
			agent, err := cniwire.NewFakeAgent(dir, cniwire.FakeConfig{Ranges: []netip.Prefix{netip.MustParsePrefix("10.88.0.0/24")}})
			if err != nil {
				t.Error(err)
				return
			}
			t.Cleanup(agent.Close)
		}()
	}
	conf := fmt.Sprintf(`{"cniVersion": "1.0.0", "name": "rwt-net", "type": "ropeway", "socket": %q}`, filepath.Join(dir, "cni.sock"))
	out, failure := n.run(run{verb: "ADD", netns: p.Path(), conf: conf, before: late})
	if failure != nil || !strings.Contains(out, "10.88.0.2") {
		t.Errorf("got %s, %v", out, failure)
	}
}

// What the plugin must import, and what nothing may bring in: it starts for
// every pod, and it holds no credentials.
func TestImportsAreFrozen(t *testing.T) {
	out, err := exec.Command("go", "list", "-deps", ".").Output()
	if err != nil {
		t.Fatal(err)
	}
	const cni = "github.com/containernetworking/cni/pkg/" // but not invoke, which brings net/http
	allowed := []string{
		"ropeway.dev/ropeway/cmd/ropeway-cni", "ropeway.dev/ropeway/internal/cniwire", "ropeway.dev/ropeway/internal/dataplane/offload",
		"ropeway.dev/ropeway/internal/dataplane/podlink", "ropeway.dev/ropeway/internal/dataplane/podlink/rtnl",
		"github.com/vishvananda/netns", // of cni/pkg/ns
		"golang.org/x/sys/unix",
	}
	banned := []string{"net/http", "crypto/tls", cni + "invoke", "text/template", "html/template", "encoding/xml", "log/slog"}
	for _, pkg := range strings.Fields(string(out)) {
		third := strings.Contains(strings.Split(pkg, "/")[0], ".")
		if third && !strings.HasPrefix(pkg, cni) && !slices.Contains(allowed, pkg) {
			t.Errorf("the plugin imports %s: it is not on the list; a start costs for every pod", pkg)
		}
		if slices.Contains(banned, pkg) {
			t.Errorf("the plugin imports %s, directly or not: it must stay small", pkg)
		}
	}
}

func TestErrorsHaveCodes(t *testing.T) {
	for _, tt := range []struct {
		err  error
		want uint
	}{
		{errors.New("x"), cniwire.CodeInternal},
		{fmt.Errorf("x: %w", types.NewError(7, "m", "d")), 7},
		{&cniwire.Error{Code: 110, Msg: "m"}, 110},
		{fmt.Errorf("x: %w", &cniwire.UnavailableError{}), 11},
		{fmt.Errorf("x: %w", podlink.ErrNoNetns), 8},
		{fmt.Errorf("x: %w", podlink.ErrHostNetns), 8},
		{podlink.ErrExists, 111},
		{podlink.ErrInterfaceExists, 111},
		{&podlink.TakenError{}, 111},
		{podlink.ErrInvalid, 7},
		{podlink.ErrAliasTooLong, 7},
	} {
		if got := coded(tt.err); got.Code != tt.want || got.Msg == "" && tt.err.Error() != "" {
			t.Errorf("%v: %+v, want code %d", tt.err, got, tt.want)
		}
	}
}

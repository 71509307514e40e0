package main

import (
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/containernetworking/cni/pkg/types"
	"golang.org/x/sys/unix"

	"ropeway.dev/ropeway/internal/cniwire"
)

// What no runtime should pass, on standard input: the specification's code
// (section 5), a sentence, and nothing done.
func TestWrongConfiguration(t *testing.T) {
	n := newNode(t, "10.88.0.0/24")
	p := n.pod("c1")
	before := n.state()
	const good = `{"cniVersion": "1.1.0", "name": "rwt-net", "type": "ropeway"`
	for _, tt := range []struct {
		name, conf string
		code       uint
		says       string
	}{
		{"empty", ``, types.ErrDecodingFailure, ""},
		{"garbage", "\x00\xff\xfegarbage", types.ErrDecodingFailure, ""},
		{"truncated", good, types.ErrDecodingFailure, ""},
		{"null", `null`, types.ErrInvalidNetworkConfig, ""},
		{"a list", `[` + good + `}]`, types.ErrDecodingFailure, ""},
		{"a whole conflist", `{"cniVersion": "1.1.0", "name": "rwt-net", "plugins": [` + good + `}]}`, types.ErrInvalidNetworkConfig, "plugins"},
		{"a version of the future", `{"cniVersion": "9.9.9", "name": "rwt-net", "type": "ropeway"}`, types.ErrIncompatibleCNIVersion, "9.9.9"},
		{"a version that is none", `{"cniVersion": "latest", "name": "rwt-net", "type": "ropeway"}`, types.ErrIncompatibleCNIVersion, "latest"},
		{"no name", `{"cniVersion": "1.1.0", "type": "ropeway"}`, types.ErrInvalidNetworkConfig, "name"},
		{"a name that is a path", `{"cniVersion": "1.1.0", "name": "../net", "type": "ropeway"}`, types.ErrInvalidNetworkConfig, "../net"},
		{"nested without end", good + `, "x": ` + strings.Repeat("[", 200_000) + strings.Repeat("]", 200_000) + `}`, types.ErrDecodingFailure, ""},
		{"nested in ipam", good + `, "ipam": {"type": "host-local", "x": ` + strings.Repeat(`{"a":`, 50_000), types.ErrDecodingFailure, ""},
		{"10 MB of garbage", strings.Repeat("rope", 10<<18), types.ErrDecodingFailure, ""},
		{"10 MB in a type", good + `, "ipam": {"type": "` + strings.Repeat("x", 10<<20) + `"}}`, types.ErrInvalidNetworkConfig, "not in CNI_PATH"},
		{"a text for a number", good + `, "mtu": "large"}`, types.ErrDecodingFailure, "mtu"},
		{"prevResult that is none", good + `, "prevResult": {"ips": "all"}}`, types.ErrDecodingFailure, "prevResult"},
		{"a socket that is no path", good + `, "socket": "cni.sock"}`, types.ErrInvalidNetworkConfig, "absolute path"},
	} {
		// Not t.Run: the mounts are the thread's of this goroutine.
		out, failure := n.run(run{verb: "ADD", netns: p.Path(), conf: tt.conf})
		if failure == nil || failure.Code != tt.code || !strings.Contains(failure.Msg+failure.Details, tt.says) {
			t.Errorf("%s: got %.300v, want code %d with %q", tt.name, failure, tt.code, tt.says)
		}
		if len(out) > 8<<10 {
			t.Errorf("%s: %d bytes were printed", tt.name, len(out))
		}
		for _, verb := range []string{"CHECK", "GC"} {
			if _, failure := n.run(run{verb: verb, netns: p.Path(), conf: tt.conf}); failure == nil || failure.Msg == "" {
				t.Errorf("%s: %s succeeds", tt.name, verb)
			}
		}
	}
	if after := n.state(); after != before || len(n.agent.Held()) != 0 {
		t.Errorf("left: %v\n%s", n.agent.Held(), after)
	}
}

// CNI specification 1.1.0, section 2: the parameters of each verb.
func TestWrongEnvironment(t *testing.T) {
	n := newNode(t, "10.88.0.0/24")
	p, before := n.pod("c1"), n.state()
	const conf = `{"cniVersion": "1.1.0", "name": "rwt-net", "type": "ropeway"}`
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	set := func(key, value string) func(*exec.Cmd) {
		return func(c *exec.Cmd) {
			c.Env = slices.DeleteFunc(c.Env, func(e string) bool { return strings.HasPrefix(e, key+"=") })
			if value != "-" {
				c.Env = append(c.Env, key+"="+value)
			}
		}
	}
	for _, tt := range []struct {
		name       string
		key, value string // "-" takes the key away
		code       uint
		says       string
	}{
		{"no container", "CNI_CONTAINERID", "-", types.ErrInvalidEnvironmentVariables, "CNI_CONTAINERID"},
		{"a container that is a path", "CNI_CONTAINERID", "../c1", types.ErrInvalidEnvironmentVariables, "container"},
		{"no namespace", "CNI_NETNS", "-", types.ErrInvalidEnvironmentVariables, "CNI_NETNS"},
		{"a namespace that is gone", "CNI_NETNS", "/run/netns/none", types.ErrInvalidNetNS, "/run/netns/none"},
		{"a namespace that is a file", "CNI_NETNS", file, types.ErrInvalidNetNS, file},
		{"the node's own", "CNI_NETNS", "/proc/self/ns/net", types.ErrInvalidNetNS, "own"},
		{"no interface", "CNI_IFNAME", "-", types.ErrInvalidEnvironmentVariables, "CNI_IFNAME"},
		{"an interface with a slash", "CNI_IFNAME", "eth/0", types.ErrInvalidEnvironmentVariables, "contains /"},
		{"an interface that is too long", "CNI_IFNAME", "interface-number-0", types.ErrInvalidEnvironmentVariables, "interface"},
		{"an interface that exists", "CNI_IFNAME", "lo", cniwire.CodeMismatch, "lo"},
		{"arguments that are none", "CNI_ARGS", "K8S_POD_NAME", types.ErrInvalidEnvironmentVariables, "K8S_POD_NAME"},
		{"unknown arguments", "CNI_ARGS", "COLOUR=blue", types.ErrInvalidEnvironmentVariables, "COLOUR"},
		{"an unknown verb", "CNI_COMMAND", "REBOOT", types.ErrInvalidEnvironmentVariables, "REBOOT"},
	} {
		_, failure := n.run(run{verb: "ADD", netns: p.Path(), conf: conf, before: set(tt.key, tt.value)})
		if failure == nil || failure.Code != tt.code || !strings.Contains(failure.Msg+failure.Details, tt.says) {
			t.Errorf("%s: got %+v, want code %d with %q", tt.name, failure, tt.code, tt.says)
		}
	}
	if after := n.state(); after != before || len(n.agent.Held()) != 0 {
		t.Errorf("left: %v\n%s", n.agent.Held(), after)
	}
}

// Sockets that are not an agent's. STATUS stands for all verbs: it waits least.
func TestWrongSocket(t *testing.T) {
	n := newNode(t, "10.88.0.0/24")
	p := n.pod("c1")
	for _, tt := range []struct {
		name   string
		answer string // "-": none
		code   uint
		says   string
	}{
		{"slow", "-", cniwire.CodeNotAvailable, "has not answered"},
		{"nonsense", "HTTP/1.1 400 Bad Request\r\n\r\n", types.ErrDecodingFailure, "not understood"},
		{"another type", `{"version": 1, "addresses": 7}` + "\n", types.ErrDecodingFailure, "not understood"},
		{"without end", strings.Repeat("x", cniwire.MaxMessage+1), cniwire.CodeInternal, "longer than"},
		{"a version of the future", `{"version": 99}` + "\n", types.ErrIncompatibleCNIVersion, "restart the ropeway agent"},
	} {
		conf := fmt.Sprintf(`{"cniVersion": "1.1.0", "name": "rwt-net", "type": "ropeway", "socket": %q}`, answering(t, tt.answer))
		_, failure := n.run(run{verb: "STATUS", conf: conf})
		if failure == nil || failure.Code != tt.code || !strings.Contains(failure.Msg+failure.Details, tt.says) {
			t.Errorf("%s: got %+v, want code %d with %q", tt.name, failure, tt.code, tt.says)
		}
		if _, failure := n.run(run{verb: "DEL", netns: p.Path(), conf: conf}); failure != nil {
			t.Errorf("%s: DEL: %v (invariant 6: the node can mend this)", tt.name, failure)
		}
	}
}

// answering is a socket on which every request gets the same answer; "-": none.
func answering(t *testing.T, answer string) string {
	t.Helper()
	socket := filepath.Join(t.TempDir(), "s")
	ln, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	go func() {
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			if answer == "-" {
				t.Cleanup(func() { conn.Close() })
				continue
			}
			_, _ = conn.Read(make([]byte, 1<<16))
			_, _ = io.WriteString(conn, answer)
			conn.Close()
		}
	}()
	return socket
}

// A node on which not even a tombstone can be written, and no agent: the only
// DEL that fails, with the specification's code for I/O.
func TestDelOnAFullOrReadOnlyDisk(t *testing.T) {
	for _, tt := range []struct {
		name, options string
		flags         uintptr
		full          bool
		says          string
	}{
		{"read-only", "", unix.MS_RDONLY, false, "read-only"},
		{"full", "size=4k,nr_inodes=8", 0, true, "no space left"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			n := newNode(t, "10.88.0.0/24")
			list, p := conflist(t, "1.1.0"), n.pod("c1")
			n.mustAdd(list, p)
			n.agent.Close()
			if err := os.MkdirAll(cniwire.TombstoneDir, 0o700); err != nil {
				t.Fatal(err)
			}
			if err := unix.Mount("rwt", cniwire.TombstoneDir, "tmpfs", tt.flags, tt.options); err != nil {
				t.Fatal(err)
			}
			if tt.full {
				err := os.WriteFile(cniwire.TombstoneDir+"/filler", make([]byte, 1<<16), 0o600)
				if err == nil {
					t.Fatal("the disk is not full")
				}
			}
			err := n.cni.DelNetworkList(t.Context(), list, p.rt)
			if code(err) != types.ErrIOFailure || !strings.Contains(err.Error(), tt.says) || !strings.Contains(err.Error(), cniwire.TombstoneDir) {
				t.Errorf("got %v", err)
			}
			if err := unix.Unmount(cniwire.TombstoneDir, unix.MNT_DETACH); err != nil {
				t.Fatal(err)
			}
			n.mustDel(list, p) // and it is repeated when the disk is well
		})
	}
}

package cniwire

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

var attachment = Attachment{Network: "net", ContainerID: "c1", IfName: "eth0"} //nolint:gochecknoglobals // a constant

// serve starts Serve on a socket of the test's own.
func serve(t *testing.T, handle Handler) (socket string) {
	t.Helper()
	socket = filepath.Join(t.TempDir(), "run", "cni.sock")
	ln, err := Listen(socket)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- Serve(ctx, ln, handle) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Serve: %v", err)
		}
	})
	return socket
}

func TestExchange(t *testing.T) {
	want := Response{
		Version: Version, Addresses: []netip.Addr{netip.MustParseAddr("10.0.0.2"), netip.MustParseAddr("fd00::2")},
		Subnets: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/24")}, Gateways: []netip.Addr{netip.MustParseAddr("10.0.0.1")},
		HostInterface: "rwp1", MTU: 1450, AgentVersion: "v1",
	}
	sent := Request{Verb: Add, Attachment: attachment, Pod: Pod{Namespace: "ns", Name: "p", UID: "u"}, Netns: "/run/netns/x", Families: []string{FamilyIPv4}}
	socket := serve(t, func(_ context.Context, req Request) Response {
		sent.Version = Version
		if fmt.Sprint(req) != fmt.Sprint(sent) {
			t.Errorf("the agent received %+v, want %+v", req, sent)
		}
		return want
	})
	got, err := Call(t.Context(), socket, sent)
	if err != nil || fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("got %+v, %v; want %+v", got, err, want)
	}
	info, err := os.Stat(socket)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the socket is open to others: %v, %v", info.Mode(), err)
	}
}

func TestAnsweredErrorsComeThrough(t *testing.T) {
	socket := serve(t, func(context.Context, Request) Response {
		return Response{Error: &Error{Code: CodeNoAddress, Msg: "no free address", Details: "in 10.0.0.0/24"}}
	})
	_, err := Call(t.Context(), socket, Request{Verb: Add, Attachment: attachment})
	var e *Error
	if !errors.As(err, &e) || e.Code != CodeNoAddress || err.Error() != "no free address: in 10.0.0.0/24" {
		t.Errorf("got %v", err)
	}
}

func TestRequestsThatAreRefused(t *testing.T) {
	socket := serve(t, func(context.Context, Request) Response {
		t.Error("the handler was asked")
		return Response{}
	})
	exchangeRaw := func(line string) Response {
		conn, err := net.Dial("unix", socket)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		if _, err := io.WriteString(conn, line); err != nil {
			t.Fatal(err)
		}
		conn.(*net.UnixConn).CloseWrite()
		var resp Response
		if err := readMessage(conn, &resp); err != nil {
			t.Fatal(err)
		}
		return resp
	}
	for _, tt := range []struct {
		name, line string
		code       uint
	}{
		{"no version", `{"verb":"STATUS"}` + "\n", CodeIncompatibleVersion},
		{"two versions ahead", fmt.Sprintf(`{"version":%d,"verb":"STATUS"}`+"\n", Version+2), CodeIncompatibleVersion},
		{"no JSON", "hello\n", CodeDecode},
		{"another type", `{"version":"1"}` + "\n", CodeDecode},
		{"unknown verb", `{"version":1,"verb":"REBOOT"}` + "\n", CodeDecode},
		{"no container", `{"version":1,"verb":"ADD","attachment":{"network":"n","ifName":"eth0"}}` + "\n", CodeInvalidEnvironment},
		{"GC of no network", `{"version":1,"verb":"GC"}` + "\n", CodeInvalidConfig},
		{"an address that is none", `{"version":1,"verb":"ADD","attachment":{"network":"n","containerID":"c","ifName":"eth0"},"addresses":["ff02::1"]}` + "\n", CodeInvalidConfig},
		{"a family that is none", `{"version":1,"verb":"ADD","attachment":{"network":"n","containerID":"c","ifName":"eth0"},"families":["v4"]}` + "\n", CodeInvalidConfig},
		{"cut off", `{"version":1,"verb":"STA`, CodeIO},
		{"too long", strings.Repeat("x", MaxMessage) + "\n", CodeIO},
	} {
		if got := exchangeRaw(tt.line).Error; got == nil || got.Code != tt.code || got.Msg == "" {
			t.Errorf("%s: %+v, want code %d", tt.name, got, tt.code)
		}
	}
}

// Plugin and agent may differ by one.
func TestNeighbouringVersions(t *testing.T) {
	for v, want := range map[int]bool{-1: false, 0: false, Version: true, Version + 1: true, Version + 2: false} {
		if Compatible(v) != want {
			t.Errorf("Compatible(%d) = %v", v, !want)
		}
	}
	// A newer agent's additional fields are ignored; a much newer one is refused.
	for version, want := range map[int]bool{Version + 1: true, Version + 2: false} {
		socket := filepath.Join(t.TempDir(), "s")
		ln, err := net.Listen("unix", socket)
		if err != nil {
			t.Fatal(err)
		}
		go func() {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			defer conn.Close()
			var req Request
			_ = readMessage(conn, &req)
			fmt.Fprintf(conn, `{"version":%d,"mtu":9000,"colour":"blue"}`+"\n", version)
		}()
		resp, err := Call(t.Context(), socket, Request{Verb: Status})
		ln.Close()
		if (err == nil) != want || want && resp.MTU != 9000 {
			t.Errorf("version %d: %+v, %v", version, resp, err)
		}
		if err != nil && !strings.Contains(err.Error(), "restart the ropeway agent") {
			t.Errorf("the error does not say what to do: %v", err)
		}
	}
}

func TestCallWaitsForTheAgent(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "cni.sock")
	asked := make(chan error, 1)
	go func() {
		_, err := Call(context.Background(), socket, Request{Verb: Status})
		asked <- err
	}()
	// First something that refuses, as a crashed agent's socket does.
	stale, err := net.ListenUnix("unix", &net.UnixAddr{Name: socket, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	stale.SetUnlinkOnClose(false)
	stale.Close()
	agent, err := NewFakeAgent(filepath.Dir(socket), FakeConfig{})
	if err != nil {
		t.Fatal(err)
	}
	defer agent.Close()
	if err := <-asked; err != nil {
		t.Error(err)
	}
}

// An agent that restarts in the middle of a request is asked again.
func TestCallSurvivesARestart(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "cni.sock")
	ln, err := Listen(socket)
	if err != nil {
		t.Fatal(err)
	}
	dropped := make(chan struct{})
	go func() {
		conn, err := ln.Accept()
		if err == nil {
			conn.Close() // the agent dies with the request in hand
		}
		ln.Close()
		close(dropped)
	}()
	asked := make(chan error, 1)
	go func() {
		_, err := Call(context.Background(), socket, Request{Verb: Status})
		asked <- err
	}()
	<-dropped
	agent, err := NewFakeAgent(filepath.Dir(socket), FakeConfig{})
	if err != nil {
		t.Fatal(err)
	}
	defer agent.Close()
	if err := <-asked; err != nil {
		t.Error(err)
	}
}

func TestCallGivesUp(t *testing.T) {
	hung := filepath.Join(t.TempDir(), "hung.sock")
	ln, err := net.Listen("unix", hung) // accepts by its backlog, never answers
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	for name, socket := range map[string]string{"no agent": filepath.Join(t.TempDir(), "none"), "a hung agent": hung} {
		ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
		_, err := Call(ctx, socket, Request{Verb: Status})
		cancel()
		var unavailable *UnavailableError
		if !errors.As(err, &unavailable) || unavailable.Waited >= DialTimeout {
			t.Errorf("%s: %v", name, err)
			continue
		}
		for _, want := range []string{socket, "has not answered", "kubectl -n kube-system get pods", "component=agent"} {
			if !strings.Contains(err.Error(), want) {
				t.Errorf("%s: %q does not say %q", name, err, want)
			}
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	time.AfterFunc(20*time.Millisecond, cancel)
	if _, err := Call(ctx, hung, Request{Verb: Status}); err == nil {
		t.Error("a cancelled call succeeds")
	}
}

func TestCallFailsAtOnceWhereWaitingIsVain(t *testing.T) {
	file := filepath.Join(t.TempDir(), "not-a-directory")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	_, err := Call(t.Context(), filepath.Join(file, "cni.sock"), Request{Verb: Status})
	var unavailable *UnavailableError // is what waiting ends with
	if err == nil || errors.As(err, &unavailable) {
		t.Error(err)
	}
}

// A handler hears of a client that went away, and of a server that stops.
func TestHandlersContextEnds(t *testing.T) {
	entered, left := make(chan struct{}), make(chan struct{})
	var calls atomic.Int32
	socket := serve(t, func(ctx context.Context, _ Request) Response {
		if calls.Add(1) == 1 {
			close(entered)
			<-ctx.Done()
			close(left)
		}
		return Response{}
	})
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		<-entered
		cancel()
	}()
	if _, err := Call(ctx, socket, Request{Verb: Status}); err == nil {
		t.Error("the cancelled call succeeds")
	}
	select {
	case <-left:
	case <-time.After(5 * time.Second):
		t.Error("the handler is not told that its client is gone")
	}
}

func TestServeEndsWithRequestsUnderWay(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "cni.sock")
	ln, err := Listen(socket)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	entered, done := make(chan struct{}), make(chan error, 1)
	go func() {
		done <- Serve(ctx, ln, func(ctx context.Context, _ Request) Response {
			close(entered)
			<-ctx.Done()
			return Response{MTU: 7}
		})
	}()
	silent, err := net.Dial("unix", socket) // a client that says nothing
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	answered := make(chan Response, 1)
	go func() {
		resp, _ := Call(context.Background(), socket, Request{Verb: Status})
		answered <- resp
	}()
	<-entered
	cancel()
	if resp := <-answered; resp.MTU != 7 {
		t.Errorf("the request under way got %+v", resp)
	}
	select {
	case err := <-done:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(5 * time.Second):
		t.Error("Serve waits for a client that says nothing")
	}
}

// A new agent takes the socket over while the former one still has it.
func TestListenTakesOver(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "cni.sock")
	first, err := Listen(socket)
	if err != nil {
		t.Fatal(err)
	}
	agent, err := NewFakeAgent(filepath.Dir(socket), FakeConfig{MTU: 1400})
	if err != nil {
		t.Fatal(err)
	}
	defer agent.Close()
	first.Close() // must not remove the successor's socket
	if _, err := Call(t.Context(), socket, Request{Verb: Status}); err != nil {
		t.Error(err)
	}
}

func TestTooLongAnswer(t *testing.T) {
	socket := serve(t, func(context.Context, Request) Response {
		return Response{AgentVersion: strings.Repeat("x", MaxMessage)}
	})
	var e *Error
	if _, err := Call(t.Context(), socket, Request{Verb: Status}); !errors.As(err, &e) || e.Code != CodeInternal {
		t.Errorf("got %v", err)
	}
	if _, err := Call(t.Context(), socket, Request{Verb: Status, Netns: strings.Repeat("x", MaxMessage)}); !errors.Is(err, ErrTooLong) {
		t.Errorf("a request that is too long: %v", err)
	}
}

// A message that fits exactly is read, one byte more is not.
func TestMaxMessage(t *testing.T) {
	for size, want := range map[int]error{MaxMessage - 3: nil, MaxMessage - 2: ErrTooLong} {
		var b bytes.Buffer
		err := writeMessage(&b, strings.Repeat("x", size)) // with two quotes and a newline
		if !errors.Is(err, want) {
			t.Errorf("writing %d: %v, want %v", size, err, want)
		}
		if err == nil {
			var s string
			if err := readMessage(&b, &s); err != nil || len(s) != size {
				t.Errorf("reading %d: %d, %v", size, len(s), err)
			}
		}
	}
}

func TestFakeAgent(t *testing.T) {
	agent, err := NewFakeAgent(t.TempDir(), FakeConfig{
		Ranges:    []netip.Prefix{netip.MustParsePrefix("10.0.0.0/30"), netip.MustParsePrefix("fd00::/64")},
		NodeCIDRs: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/30")},
	})
	if err != nil {
		t.Fatal(err)
	}
	defer agent.Close()
	call := func(req Request) (Response, error) { return Call(t.Context(), agent.Socket, req) }
	must := func(req Request) Response {
		t.Helper()
		resp, err := call(req)
		if err != nil {
			t.Fatal(err)
		}
		return resp
	}
	first := must(Request{Verb: Add, Attachment: attachment})
	again := must(Request{Verb: Add, Attachment: attachment})
	if fmt.Sprint(first.Addresses) != "[10.0.0.2 fd00::2]" || fmt.Sprint(again.Addresses) != fmt.Sprint(first.Addresses) || first.MTU != 1500 {
		t.Errorf("%+v, %+v", first, again)
	}
	if fmt.Sprint(first.Subnets, first.Gateways) != "[10.0.0.0/30 fd00::/64] [10.0.0.1 fd00::1]" {
		t.Errorf("%v %v", first.Subnets, first.Gateways)
	}
	second, third := attachment, attachment
	second.ContainerID, third.ContainerID = "c2", "c3"
	must(Request{Verb: Add, Attachment: second})
	var e *Error
	if _, err := call(Request{Verb: Add, Attachment: third}); !errors.As(err, &e) || e.Code != CodeNoAddress {
		t.Errorf("a full range: %v", err)
	}
	if got := must(Request{Verb: Add, Attachment: third, Families: []string{FamilyIPv6}}); fmt.Sprint(got.Addresses) != "[fd00::4]" {
		t.Errorf("IPv6 only: %v", got.Addresses)
	}
	must(Request{Verb: GC, Attachment: attachment, Valid: []Attachment{second, third}})
	if _, err := call(Request{Verb: Check, Attachment: attachment}); !errors.As(err, &e) || e.Code != CodeMismatch {
		t.Errorf("after GC: %v", err)
	}
	must(Request{Verb: Del, Attachment: second})
	if len(agent.Held()) != 1 {
		t.Errorf("held %v", agent.Held())
	}
	if got := must(Request{Verb: Node}); len(got.NodeCIDRs) != 1 {
		t.Errorf("node %+v", got)
	}
	external := []netip.Addr{netip.MustParseAddr("192.0.2.7")}
	if got := must(Request{Verb: Add, Attachment: attachment, IPAM: "host-local", Addresses: external}); fmt.Sprint(got.Addresses) != "[192.0.2.7]" {
		t.Errorf("external: %v", got.Addresses)
	}
	agent.FailNext(Status, &Error{Code: 50, Msg: "no"})
	if _, err := call(Request{Verb: Status}); err == nil {
		t.Error("FailNext does nothing")
	}
	must(Request{Verb: Status})
}

// listenAs listens as another user, on a thread that ends with it.
func listenAs(t *testing.T, uid int) (socket string) {
	t.Helper()
	dir, err := os.MkdirTemp("", "rwt-") // t.TempDir's parent is closed to others
	if err == nil {
		t.Cleanup(func() { os.RemoveAll(dir) })
		err = os.Chmod(dir, 0o777)
	}
	if err != nil {
		t.Fatal(err)
	}
	socket = filepath.Join(dir, "s")
	listening := make(chan error)
	go func() {
		runtime.LockOSThread() // never unlocked
		if _, _, errno := syscall.RawSyscall(syscall.SYS_SETRESUID, uintptr(uid), uintptr(uid), uintptr(uid)); errno != 0 {
			listening <- errno
			return
		}
		fd, err := syscall.Socket(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
		if err == nil {
			t.Cleanup(func() { syscall.Close(fd) })
			err = errors.Join(syscall.Bind(fd, &syscall.SockaddrUnix{Name: socket}), syscall.Listen(fd, 1))
		}
		listening <- err
	}()
	if err := <-listening; err != nil {
		t.Fatal(err)
	}
	return socket
}

// What a process of another user says would be done to the network as root.
func TestCallTrustsNobodyElse(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root can be another user")
	}
	_, err := Call(t.Context(), listenAs(t, 65534), Request{Verb: Status})
	var unavailable *UnavailableError // is what waiting ends with
	if !errors.Is(err, ErrNotRoot) || !strings.Contains(err.Error(), "user 65534") || errors.As(err, &unavailable) {
		t.Errorf("got %v", err)
	}
}

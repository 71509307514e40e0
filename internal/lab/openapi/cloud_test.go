package openapi

import (
	"context"
	"encoding/json"
	"errors"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"path/filepath"
	"reflect"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// TestOneWriter: of two writes at once one is refused; reads are not.
func TestOneWriter(t *testing.T) {
	c := newCloud(t, func(s *Spec) { s.Settings.Latency = Duration(200 * time.Millisecond) })
	var codes [3]string
	var group sync.WaitGroup
	for i, body := range []string{
		`{"version":"2016-04-28","action":"CreateRouteEntry","params":{"RouteTableId":"vtb-test","DestinationCidrBlock":"10.244.0.0/24","NextHopId":"i-a"}}`,
		`{"version":"2016-04-28","action":"CreateRouteEntry","params":{"RouteTableId":"vtb-test","DestinationCidrBlock":"10.244.1.0/24","NextHopId":"i-a"}}`,
		`{"version":"2016-04-28","action":"DescribeVpcs"}`,
	} {
		// Not by the vendor's client: calls at once are a data race in it.
		group.Go(func() { codes[i] = c.console(body) })
	}
	group.Wait()
	if got := codes[0] + codes[1]; got != "TaskConflict" || codes[2] != "" {
		t.Errorf("codes %q, want one TaskConflict of the writes", codes)
	}
	if n := len(c.snapshot(t.Context()).Entries); n != 1 {
		t.Errorf("%d entries, want 1", n)
	}
}

// TestLostAnswers: a time-out leaves nothing, one after the commit leaves the
// entry, and neither has an answer.
func TestLostAnswers(t *testing.T) {
	for kind, want := range map[FaultKind]int{FaultTimeout: 0, FaultCommitTimeout: 1} {
		c := newCloud(t)
		c.fault(t, Fault{Kind: kind, Action: "CreateRouteEntry", Delay: Duration(20 * time.Millisecond), Times: 1})
		if got := c.create("10.244.0.0/24", "i-a"); !strings.Contains(got, "EOF") && !strings.Contains(got, "reset") {
			t.Errorf("%s: the client got %q", kind, got)
		}
		if n := len(c.snapshot(t.Context()).Entries); n != want {
			t.Errorf("%s: %d entries, want %d", kind, n, want)
		}
		if got := c.create("10.244.1.0/24", "i-a"); got != "" {
			t.Errorf("%s: the next call: %s", kind, got)
		}
	}
}

// console does a call at the back door and returns the error code.
func (c *cloudUnderTest) console(body string) string {
	w := httptest.NewRecorder()
	c.Admin().ServeHTTP(w, httptest.NewRequest(http.MethodPost, "/call", strings.NewReader(body)))
	var answer struct{ Code string }
	if err := json.Unmarshal(w.Body.Bytes(), &answer); err != nil {
		return w.Body.String()
	}
	return answer.Code
}

// TestThrottledIsToldWhen: in the header that the vendor's client reads.
func TestThrottledIsToldWhen(t *testing.T) {
	c := newCloud(t)
	c.fault(t, Fault{Kind: FaultError, Code: "Throttling.User", RetryAfter: Duration(1500 * time.Millisecond)})
	w := httptest.NewRecorder()
	c.ServeHTTP(w, c.signed(func(url.Values) {}))
	if got := w.Header().Get("x-ratelimit-user-api"); w.Code != http.StatusBadRequest || !strings.HasSuffix(got, ",TimeLeft:1500") {
		t.Errorf("throttling comes as %d with %q", w.Code, got)
	}
}

// TestStateOutlivesTheProcess: entries, passing states, settings and faults go
// on where they were.
func TestStateOutlivesTheProcess(t *testing.T) {
	file := filepath.Join(t.TempDir(), "state")
	now := &clock{}
	open := func() (*Server, *fakeFabric) {
		fabric := &fakeFabric{}
		s, err := New(testSpec(), Options{StateFile: file, Now: now.now, Fabric: fabric})
		if err != nil {
			t.Fatal(err)
		}
		return s, fabric
	}
	s, _ := open()
	settings := s.state.Settings
	settings.Delay, settings.Quota = Duration(10*time.Second), 7
	if err := s.set(settings); err != nil {
		t.Fatal(err)
	}
	if _, err := s.inject(Fault{Kind: FaultError, Code: "x", Action: "Nothing"}); err != nil {
		t.Fatal(err)
	}
	made := httptest.NewRecorder()
	s.Admin().ServeHTTP(made, httptest.NewRequest(http.MethodPost, "/call", strings.NewReader(`{"version":"2016-04-28","action":"CreateRouteEntry",
		"params":{"RouteTableId":"vtb-test","DestinationCidrBlock":"10.244.0.0/24","NextHopId":"i-a"}}`)))
	if made.Code != http.StatusOK {
		t.Fatalf("%d %s", made.Code, made.Body)
	}

	s, _ = open()
	snap := s.snapshot(t.Context())
	if len(snap.Entries) != 1 || snap.Entries[0].Status != Pending || snap.Settings.Quota != 7 || len(snap.Faults) != 1 {
		t.Errorf("after a restart: %+v, %+v, %+v", snap.Entries, snap.Settings, snap.Faults)
	}
	now.advance(10 * time.Second)
	s, fabric := open()
	if snap = s.snapshot(t.Context()); snap.Entries[0].Status != Available || len(fabric.plane.Tables[0].Routes) != 1 {
		t.Errorf("what fell due meanwhile: %+v, plane %+v", snap.Entries[0], fabric.plane)
	}
}

// TestDeletionDueWhileDown: a data plane removes only what it was given, so that
// after a restart it first gets what is to go.
func TestDeletionDueWhileDown(t *testing.T) {
	file, now := filepath.Join(t.TempDir(), "state"), &clock{}
	open := func() (*cloudUnderTest, *fakeFabric) {
		fabric := &fakeFabric{}
		s, err := New(testSpec(), Options{StateFile: file, Now: now.now, Fabric: fabric})
		if err != nil {
			t.Fatal(err)
		}
		return &cloudUnderTest{Server: s}, fabric
	}
	c, _ := open()
	entry := `"params":{"RouteTableId":"vtb-test","DestinationCidrBlock":"10.244.0.0/24","NextHopId":"i-a"}}`
	if got := c.console(`{"version":"2016-04-28","action":"CreateRouteEntry",` + entry); got != "" {
		t.Fatal(got)
	}
	settings := c.state.Settings
	settings.Delay = Duration(10 * time.Second)
	if err := c.set(settings); err != nil {
		t.Fatal(err)
	}
	if got := c.console(`{"version":"2016-04-28","action":"DeleteRouteEntry",` + entry); got != "" {
		t.Fatal(got)
	}

	now.advance(10 * time.Second)
	c, fabric := open()
	if n := len(c.snapshot(t.Context()).Entries); n != 0 {
		t.Errorf("%d entries, want none", n)
	}
	if before, after := len(fabric.first.Tables[0].Routes), len(fabric.plane.Tables[0].Routes); before != 1 || after != 0 {
		t.Errorf("the data plane got %d routes, and then %d, want 1 and 0", before, after)
	}
}

// TestStateIsReadAnew: what a state has deleted is not mixed up with what the cloud
// was made with.
func TestStateIsReadAnew(t *testing.T) {
	file := filepath.Join(t.TempDir(), "state")
	open := func() *cloudUnderTest {
		s, err := New(testSpec(), Options{StateFile: file})
		if err != nil {
			t.Fatal(err)
		}
		return &cloudUnderTest{Server: s}
	}
	if got := open().console(`{"version":"2014-05-26","action":"DeleteInstance","params":{"InstanceId":"i-a","Force":"true"}}`); got != "" {
		t.Fatal(got)
	}
	c := open()
	if want := testSpec().Instances; !reflect.DeepEqual(c.spec.Instances, want) {
		t.Errorf("after a restart the cloud was made with %+v, want %+v", c.spec.Instances, want)
	}
	if want := testSpec().Instances[1:]; !reflect.DeepEqual(c.state.Instances, want) {
		t.Errorf("after a restart there are %+v, want %+v", c.state.Instances, want)
	}
	if got := c.console(`{"version":"2014-05-26","action":"RunInstances","params":{"PrivateIpAddress":"192.168.0.1"}}`); got != "" {
		t.Errorf("the instance that was deleted cannot be made again: %s", got)
	}
}

// TestFollowTriesAgain: a data plane that failed is set again, though nobody asks.
func TestFollowTriesAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		fabric := &fakeFabric{err: errors.New("not now")}
		s, err := New(testSpec(), Options{Fabric: fabric})
		if err != nil {
			t.Fatal(err)
		}
		go s.Follow(t.Context())
		c := &cloudUnderTest{Server: s}
		if got := c.console(`{"version":"2016-04-28","action":"CreateRouteEntry",
			"params":{"RouteTableId":"vtb-test","DestinationCidrBlock":"10.244.0.0/24","NextHopId":"i-a"}}`); got != "" {
			t.Fatal(got)
		}
		time.Sleep(time.Minute)
		s.mu.Lock()
		fabric.err = nil
		s.mu.Unlock()
		time.Sleep(2 * retryFabric)
		s.mu.Lock()
		defer s.mu.Unlock()
		if len(fabric.plane.Tables) == 0 || len(fabric.plane.Tables[0].Routes) != 1 {
			t.Errorf("the data plane has %+v", fabric.plane)
		}
	})
}

// TestFollow: nobody asks, and the data plane follows all the same; one that
// fails is tried again, and one that has nothing to do is left alone.
func TestFollow(t *testing.T) {
	c := newCloud(t, func(s *Spec) { s.Settings.Delay = Duration(30 * time.Millisecond) })
	ctx, stop := context.WithCancel(t.Context())
	var done sync.WaitGroup
	done.Go(func() { c.Follow(ctx) })
	if got := c.create("10.244.0.0/24", "i-a"); got != "" {
		t.Fatal(got)
	}
	deadline := time.After(5 * time.Second)
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for carried := false; !carried; {
		select {
		case <-deadline:
			t.Fatal("the data plane does not follow by itself")
		case <-tick.C:
		}
		c.mu.Lock()
		carried = len(c.fabric.plane.Tables) > 0 && len(c.fabric.plane.Tables[0].Routes) == 1
		c.mu.Unlock()
	}
	stop()
	done.Wait()

	sets := c.fabric.sets
	c.snapshot(t.Context())
	if c.fabric.sets != sets {
		t.Error("the data plane was set with nothing changed")
	}
	c.fabric.err = errors.New("no")
	c.clock.advance(time.Second)
	if got := c.create("10.244.1.0/24", "i-a"); got != "" {
		t.Fatal(got)
	}
	c.clock.advance(time.Second)
	c.snapshot(t.Context())
	c.fabric.err = nil
	c.snapshot(t.Context())
	if n := len(c.fabric.plane.Tables[0].Routes); n != 2 {
		t.Errorf("a data plane that failed once has %d routes, want 2", n)
	}
}

func TestBackDoor(t *testing.T) {
	c := newCloud(t)
	socket := filepath.Join(t.TempDir(), "s")
	listener, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	served := make(chan error, 1)
	go func() { served <- serve(ctx, listener, c.Admin()) }()
	defer func() {
		stop()
		if err := <-served; err != nil {
			t.Error(err)
		}
	}()
	client := NewClient(socket)
	if f, err := client.Inject(ctx, Fault{Kind: FaultError, Code: "Throttling"}); err != nil || f.ID == 0 {
		t.Errorf("inject: %+v, %v", f, err)
	}
	if _, err := client.Inject(ctx, Fault{Kind: "no"}); err == nil || !strings.Contains(err.Error(), "commit-timeout") {
		t.Errorf("a fault that cannot be: %v", err)
	}
	if err := client.Change(ctx, func(s *Settings) { s.Quota = 1 }); err != nil {
		t.Error(err)
	}
	if err := client.Change(ctx, func(s *Settings) { s.Quota = -1 }); err == nil || !strings.Contains(err.Error(), "quota -1") {
		t.Errorf("a setting that cannot be: %v", err)
	}
	// Faults do not hit the console; the API's own rules do.
	create := map[string]string{"RouteTableId": testTable, "DestinationCidrBlock": "10.244.0.0/24", "NextHopId": "i-a"}
	if out, err := client.Call(ctx, "2016-04-28", "CreateRouteEntry", create); err != nil || !strings.Contains(string(out), "rte-") {
		t.Errorf("call: %s, %v", out, err)
	}
	if _, err := client.Call(ctx, "2016-04-28", "CreateRouteEntry", create); err == nil || !strings.Contains(err.Error(), "InvalidCIDRBlock.Duplicate") {
		t.Errorf("call again: %v", err)
	}
	if _, err := client.Call(ctx, "2016-04-28", "Nothing", nil); err == nil || !strings.Contains(err.Error(), "Nothing") {
		t.Errorf("no such action: %v", err)
	}
	snap, err := client.Snapshot(ctx)
	if err != nil || len(snap.Entries) != 1 || snap.Settings.Quota != 1 || len(snap.Faults) != 1 || snap.Counts["CreateRouteEntry"]["OK"] != 1 ||
		snap.Counts["CreateRouteEntry"]["InvalidCIDRBlock.Duplicate"] != 1 || len(snap.Calls) != 2 {
		t.Errorf("snapshot: %+v, %v", snap, err)
	}
	if err := errors.Join(client.ClearFaults(ctx), client.ForgetCalls(ctx)); err != nil {
		t.Error(err)
	}
	if snap, err = client.Snapshot(ctx); err != nil || len(snap.Faults)+len(snap.Counts)+len(snap.Calls) != 0 {
		t.Errorf("after clearing: %+v, %v", snap, err)
	}
	if _, err := NewClient(socket + "x").Snapshot(ctx); err == nil || !strings.Contains(err.Error(), "is the lab up?") {
		t.Errorf("no cloud: %v", err)
	}
}

// metadataAs asks the metadata service from an address.
func (c *cloudUnderTest) metadataAs(address, method, path string, headers map[string]string) (int, string) {
	r := httptest.NewRequest(method, "http://100.100.100.200"+path, nil)
	r.RemoteAddr = net.JoinHostPort(address, "1234")
	for name, value := range headers {
		r.Header.Set(name, value)
	}
	w := httptest.NewRecorder()
	c.ServeHTTP(w, r)
	return w.Code, w.Body.String()
}

func TestMetadata(t *testing.T) {
	c := newCloud(t)
	for path, want := range map[string]string{
		"meta-data/instance-id": "i-b", "meta-data/region-id": "cn-chengdu", "meta-data/zone-id": "cn-chengdu-b", "meta-data/vpc-id": testVPC,
		"meta-data/vswitch-id": "vsw-b", "meta-data/private-ipv4": "192.168.1.1", "meta-data/vpc-cidr-block": "192.168.0.0/16",
		"meta-data/ram/security-credentials/": "nodes", "meta-data/network/interfaces/macs/": "00:16:3e:00:00:01/",
		"meta-data/network/interfaces/macs/00:16:3e:00:00:01/network-interface-id": "eni-b",
	} {
		for _, from := range []string{"192.168.1.1", "fd00:192:168:1::1"} {
			if status, got := c.metadataAs(from, http.MethodGet, "/latest/"+path, nil); status != http.StatusOK || got != want {
				t.Errorf("%s from %s: %d %q, want %q", path, from, status, got, want)
			}
		}
	}
	for path, want := range map[string]int{"meta-data/nothing": 404, "meta-data/ram/security-credentials/other": 404, "else": 404} {
		if status, _ := c.metadataAs("192.168.1.1", http.MethodGet, "/latest/"+path, nil); status != want {
			t.Errorf("%s: %d, want %d", path, status, want)
		}
	}
	if status, _ := c.metadataAs("10.244.0.5", http.MethodGet, "/latest/meta-data/instance-id", nil); status != http.StatusNotFound {
		t.Errorf("a stranger gets %d", status)
	}
	if again := c.roleKeys(t); again["AccessKeyId"] != c.roleKeys(t)["AccessKeyId"] {
		t.Error("each question makes new credentials")
	}
	first := c.roleKeys(t)["AccessKeyId"]
	c.clock.advance(31 * time.Minute)
	if c.roleKeys(t)["AccessKeyId"] == first {
		t.Error("credentials are not refreshed before they expire")
	}
}

func TestMetadataToken(t *testing.T) {
	c := newCloud(t, func(s *Spec) { s.Settings.TokenRequired = true })
	const path = "/latest/meta-data/instance-id"
	if status, _ := c.metadataAs("192.168.0.1", http.MethodGet, path, nil); status != http.StatusForbidden {
		t.Errorf("without a token: %d", status)
	}
	for life, want := range map[string]int{"": 400, "0": 400, "21601": 400, "x": 400} {
		if status, _ := c.metadataAs("192.168.0.1", http.MethodPut, tokenPath, map[string]string{headerTokenLife: life}); status != want {
			t.Errorf("a token for %q: %d", life, status)
		}
	}
	if status, _ := c.metadataAs("192.168.0.1", http.MethodPut, tokenPath, map[string]string{headerTokenLife: "60", "X-Forwarded-For": "x"}); status != http.StatusForbidden {
		t.Errorf("a token through a proxy: %d", status)
	}
	_, token := c.metadataAs("192.168.0.1", http.MethodPut, tokenPath, map[string]string{headerTokenLife: "60"})
	shown := map[string]string{headerToken: token}
	if status, got := c.metadataAs("192.168.0.1", http.MethodGet, path, shown); status != http.StatusOK || got != "i-a" {
		t.Errorf("with a token: %d %s", status, got)
	}
	if status, _ := c.metadataAs("192.168.1.1", http.MethodGet, path, shown); status != http.StatusForbidden {
		t.Errorf("with another instance's token: %d", status)
	}
	c.clock.advance(time.Minute)
	if status, _ := c.metadataAs("192.168.0.1", http.MethodGet, path, shown); status != http.StatusForbidden {
		t.Errorf("with an expired token: %d", status)
	}
}

package alibaba

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"ropeway.dev/ropeway/internal/cloud"
	"ropeway.dev/ropeway/internal/lab/openapi"
)

// lab is the lab's OpenAPI in this process: it verifies signatures, and keeps
// the rules of the API's pages.
type lab struct {
	t      *testing.T
	server *openapi.Server
	url    string
}

func newLab(t *testing.T, change ...func(*openapi.Spec)) *lab {
	t.Helper()
	spec := openapi.Spec{
		Region: testRegion, Account: "1234567890123456", VPC: testVPC, CIDRs: []netip.Prefix{prefix("172.16.0.0/12"), prefix("2408:4000:1::/56")},
		RouteTable: testTable, SecurityGroup: "sg-2vc1", Role: "ropeway",
		Key:       openapi.AccessKey{ID: "LTAItest", Secret: "hush-hush"},
		VSwitches: []openapi.VSwitch{{ID: "vsw-a", Zone: testRegion + "-a", CIDR: prefix("172.16.0.0/24"), IPv6CIDR: prefix("2408:4000:1::/64")}},
		Settings:  openapi.Settings{Quota: openapi.DefaultQuota, CredentialLife: openapi.Duration(time.Hour), TokenRequired: true},
	}
	for i := range 3 {
		spec.Instances = append(spec.Instances, openapi.Instance{
			ID: fmt.Sprint("i-", i+1), Host: fmt.Sprint("node", i+1), Type: "ecs.g7.large", VSwitch: "vsw-a", Interface: fmt.Sprint("eni-", i+1),
			Addresses: []netip.Addr{netip.MustParseAddr(fmt.Sprintf("172.16.0.%d", i+11)), netip.MustParseAddr(fmt.Sprintf("2408:4000:1::%d", i+11))}, Status: "Running",
		})
	}
	for _, c := range change {
		c(&spec)
	}
	server, err := openapi.New(spec, openapi.Options{})
	if err != nil {
		t.Fatal(err)
	}
	listener := httptest.NewServer(server)
	t.Cleanup(listener.Close)
	return &lab{t: t, server: server, url: listener.URL}
}

func (l *lab) provider(change ...func(*Options)) *Provider {
	l.t.Helper()
	return openAt(l.t, l.url, change...)
}

// admin asks the back door.
func (l *lab) admin(method, path string, body, into any) {
	l.t.Helper()
	text, err := json.Marshal(body)
	if err != nil {
		l.t.Fatal(err)
	}
	w := httptest.NewRecorder()
	l.server.Admin().ServeHTTP(w, httptest.NewRequest(method, path, bytes.NewReader(text)))
	if w.Code != http.StatusOK {
		l.t.Fatalf("%s %s: %d %s", method, path, w.Code, w.Body)
	}
	if into != nil {
		if err := json.Unmarshal(w.Body.Bytes(), into); err != nil {
			l.t.Fatal(err)
		}
	}
}

func (l *lab) fault(f openapi.Fault) { l.t.Helper(); l.admin(http.MethodPost, "/faults", f, nil) }

func (l *lab) set(edit func(*openapi.Settings)) {
	l.t.Helper()
	snap := l.snapshot()
	edit(&snap.Settings)
	l.admin(http.MethodPut, "/settings", snap.Settings, nil)
}

func (l *lab) snapshot() openapi.Snapshot {
	l.t.Helper()
	var snap openapi.Snapshot
	l.admin(http.MethodGet, "/snapshot", nil, &snap)
	return snap
}

// call does something as another person at the console would.
func (l *lab) call(version, action string, params map[string]string) {
	l.t.Helper()
	l.admin(http.MethodPost, "/call", map[string]any{"version": version, "action": action, "params": params}, nil)
}

func list(t *testing.T, p *Provider) []cloud.RouteEntry {
	t.Helper()
	listing, err := p.Routes().List(t.Context())
	if err != nil {
		t.Fatalf("List: %v", err)
	}
	slices.SortFunc(listing.Entries, func(a, b cloud.RouteEntry) int { return a.Dst.Compare(b.Dst) })
	return listing.Entries
}

// many are n new entries over three instances.
func many(n int) []cloud.RouteChange {
	var out []cloud.RouteChange
	for i := range n {
		out = append(out, change(fmt.Sprintf("10.%d.%d.0/24", 100+i/256, i%256), fmt.Sprint("i-", i%3+1)))
	}
	return out
}

func mustAll(t *testing.T, results []cloud.RouteResult, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range results {
		if r.Err != nil {
			t.Fatalf("%s: %v", r.Key(), r.Err)
		}
	}
}

func TestLabLifeOfEntries(t *testing.T) {
	l := newLab(t)
	p := l.provider()
	if got := list(t, p); len(got) != 0 {
		t.Fatalf("a new table holds %v", got)
	}
	for chunk := range slices.Chunk(many(150), cloud.MaxBatch) {
		results, err := p.Routes().Apply(t.Context(), chunk)
		mustAll(t, results, err)
	}
	results, err := p.Routes().Apply(t.Context(), []cloud.RouteChange{change("fd00:10:244::/64", "i-2")})
	mustAll(t, results, err)
	got := list(t, p)
	if len(got) != 151 {
		t.Fatalf("%d entries, want 151 over two pages", len(got))
	}
	first := got[0]
	if first.Dst != prefix("10.100.0.0/24") || first.NextHop != "i-1" || first.HopType != "Instance" || first.State != cloud.Available || first.Owner != testUID || first.ID == "" {
		t.Errorf("the first entry reads %+v", first)
	}

	move := change("10.100.0.0/24", "i-3")
	move.Replaces = &first
	release := change("10.100.1.0/24", "i-2")
	release.Owner, release.Replaces = "", &got[1]
	results, err = p.Routes().Apply(t.Context(), []cloud.RouteChange{move, release})
	mustAll(t, results, err)
	got = list(t, p)
	if got[0].NextHop != "i-3" || got[0].ID != first.ID || got[0].Owner != testUID {
		t.Errorf("changed in place: %+v", got[0])
	}
	if got[1].Owner != "" {
		t.Errorf("released: %+v", got[1])
	}

	results, err = p.Routes().Withdraw(t.Context(), append(slices.Clone(got[2:51]), got[0]))
	mustAll(t, results, err)
	if rest := list(t, p); len(rest) != 101 || rest[0].ID != got[1].ID {
		t.Errorf("%d entries left, want 101", len(rest))
	}
	results, err = p.Routes().Withdraw(t.Context(), got[2:51])
	mustAll(t, results, err) // gone already: a success
}

func TestLabAsynchronous(t *testing.T) {
	l := newLab(t, func(s *openapi.Spec) { s.Settings.Delay = openapi.Duration(time.Hour) })
	p := l.provider()
	results, err := p.Routes().Apply(t.Context(), many(2))
	mustAll(t, results, err)
	got := list(t, p)
	if len(got) != 2 || got[0].State != cloud.Pending {
		t.Errorf("entries %v, want two that are pending", got)
	}
	if _, err := p.Routes().Apply(t.Context(), many(3)[2:]); !cloud.Is(err, cloud.Passing) {
		t.Errorf("a second change meanwhile: %v, want passing", err)
	}
	if _, err := p.Routes().Withdraw(t.Context(), got); !cloud.Is(err, cloud.Passing) {
		t.Errorf("a withdrawal meanwhile: %v, want passing", err)
	}
}

func TestLabRefusals(t *testing.T) {
	l := newLab(t, func(s *openapi.Spec) { s.Settings.Quota = 2 })
	p := l.provider()
	l.call("2016-04-28", "CreateRouteEntry", map[string]string{"RouteTableId": testTable, "DestinationCidrBlock": "10.244.1.0/24", "NextHopId": "i-3"})
	results, err := p.Routes().Apply(t.Context(), []cloud.RouteChange{
		change("10.244.1.0/24", "i-1"),    // somebody else's, elsewhere
		change("172.16.0.0/25", "i-1"),    // in a vSwitch
		change("100.100.0.0/24", "i-1"),   // in the services' range
		change("10.244.2.0/24", "i-gone"), // no such instance
		change("10.244.3.0/24", "i-1"),
		change("10.244.4.0/24", "i-1"), // one too many
	})
	if got := strings.Join(classes(results), " "); err != nil || got != "conflict permanent permanent bad_next_hop ok quota" {
		t.Errorf("results %s, %v", got, err)
	}
	got := list(t, p)
	if len(got) != 2 || got[0].Owner != "" || got[0].NextHop != "i-3" {
		t.Errorf("the table holds %v", got)
	}
	if results, err = p.Routes().Withdraw(t.Context(), got[:1]); err != nil || !cloud.Is(results[0].Err, cloud.Permanent) {
		t.Errorf("withdrawing a foreign entry: %v, %v", results, err)
	}
	if after := list(t, p); len(after) != 2 {
		t.Errorf("a foreign entry was withdrawn: %v", after)
	}
}

// The batch actions know no client token: an answer that is lost may stand for a
// change that was made.
func TestLabLostAnswers(t *testing.T) {
	for _, c := range []struct {
		fault openapi.FaultKind
		made  int
	}{{openapi.FaultTimeout, 0}, {openapi.FaultCommitTimeout, 2}} {
		l := newLab(t)
		p := l.provider()
		list(t, p) // the next call goes over a connection that is open already
		l.fault(openapi.Fault{Action: "CreateRouteEntries", Kind: c.fault, Times: 1})
		if _, err := p.Routes().Apply(t.Context(), many(2)); !cloud.Is(err, cloud.Lost) {
			t.Fatalf("%s: %v, want lost", c.fault, err)
		}
		calls := 0
		for _, n := range l.snapshot().Counts["CreateRouteEntries"] {
			calls += n
		}
		if n := len(list(t, p)); n != c.made || calls != 1 {
			t.Errorf("%s: %d entries made by %d calls, want %d by one", c.fault, n, calls, c.made)
		}
	}
}

func TestLabThrottling(t *testing.T) {
	l := newLab(t)
	p := l.provider()
	results, err := p.Routes().Apply(t.Context(), many(50))
	mustAll(t, results, err)
	l.fault(openapi.Fault{Action: "DescribeRouteEntryList", Kind: openapi.FaultError, Code: "Throttling.User", Times: 3})
	if n := len(list(t, p)); n != 50 {
		t.Errorf("%d entries after throttled tries", n)
	}
	l.fault(openapi.Fault{Action: "DeleteRouteEntries", Kind: openapi.FaultError, Code: "Throttling.Api", Times: 1, RetryAfter: openapi.Duration(90 * time.Second)})
	_, err = p.Routes().Withdraw(t.Context(), list(t, p))
	if !cloud.Is(err, cloud.Throttled) || cloud.AfterOf(err) != 90*time.Second {
		t.Errorf("%v after %s, want throttled for 90 s", err, cloud.AfterOf(err))
	}
}

func TestLabInstances(t *testing.T) {
	found, err := newLab(t).provider().Instances().List(t.Context())
	if err != nil || len(found) != 3 {
		t.Fatalf("%v, %v", found, err)
	}
	if in := found[1]; fmt.Sprintf("%s %v %s %s %v", in.ID, in.Addresses, in.Zone, in.Type, in.Running) != "i-2 [172.16.0.12 2408:4000:1::12] cn-chengdu-a ecs.g7.large true" {
		t.Errorf("the second instance reads %+v", in)
	}
}

func TestLabWrongKeys(t *testing.T) {
	l := newLab(t)
	for name, keys := range map[string]map[string][]byte{"a wrong secret": secret("LTAItest", "guessed", ""), "an unknown key": secret("LTAIother", "hush-hush", "")} {
		_, err := l.provider(func(o *Options) { o.Secret = keys }).Routes().List(t.Context())
		if !cloud.Is(err, cloud.Unauthenticated) || strings.Contains(err.Error(), "guessed") {
			t.Errorf("%s: %v, want unauthenticated", name, err)
		}
	}
	p := l.provider()
	list(t, p)
	l.set(func(s *openapi.Settings) { s.KeyDisabled = true })
	if _, err := p.Routes().List(t.Context()); !cloud.Is(err, cloud.Unauthenticated) {
		t.Errorf("a disabled key: %v, want unauthenticated", err)
	}
}

func TestLabWrongRegion(t *testing.T) {
	p := newLab(t).provider(func(o *Options) { o.Region = "cn-beijing" })
	if listing, err := p.Routes().List(t.Context()); err == nil {
		t.Errorf("the wrong region shows an empty table instead of an error: %v", listing)
	}
}

// With the role of the instance: region, VPC and keys come from the metadata
// service, by token only, and the session's signature is verified.
func TestLabRole(t *testing.T) {
	l := newLab(t, func(s *openapi.Spec) { s.Instances[0].Addresses = []netip.Addr{netip.MustParseAddr("127.0.0.1")} })
	p := l.provider(func(o *Options) {
		o.Settings = cloud.Settings{Endpoint: o.Endpoint}
		o.Metadata = l.url
	})
	if p.call.region != testRegion || p.vpc != testVPC {
		t.Errorf("region %s, VPC %s", p.call.region, p.vpc)
	}
	results, err := p.Routes().Apply(t.Context(), many(1))
	mustAll(t, results, err)
	l.set(func(s *openapi.Settings) { s.RoleDetached = true })
	if _, err := p.Routes().List(t.Context()); !cloud.Is(err, cloud.Unauthenticated) {
		t.Errorf("a detached role: %v, want unauthenticated", err)
	}
}

func TestLabPreflight(t *testing.T) {
	refusedOf := func(permissions []cloud.Permission) string {
		var out []string
		for _, p := range permissions {
			if cloud.Is(p.Err, cloud.Forbidden, cloud.Unauthenticated) {
				out = append(out, p.Action)
			} else if p.Err != nil {
				out = append(out, p.Action+"?")
			}
		}
		return strings.Join(out, " ")
	}
	both := cloud.Duties{Routes: true, Nodes: true}
	readers := []string{"vpc:DescribeRouteTableList", "vpc:DescribeRouteEntryList", "ecs:DescribeInstances", "ecs:DescribeNetworkInterfaces", "ecs:DescribeSecurityGroupAttribute"}
	for name, c := range map[string]struct {
		change func(*openapi.Settings)
		want   string
	}{
		"everything":       {func(*openapi.Settings) {}, ""},
		"the least policy": {func(s *openapi.Settings) { s.Allow = Actions(both) }, ""},
		"reading only":     {func(s *openapi.Settings) { s.Allow = readers }, "vpc:CreateRouteEntries vpc:DeleteRouteEntries vpc:ModifyRouteEntry ecs:ModifyNetworkInterfaceAttribute"},
		"the vendor's old": {func(s *openapi.Settings) {
			s.Allow = []string{"vpc:Describe*", "vpc:CreateRouteEntry", "vpc:DeleteRouteEntry"}
		}, "ecs:DescribeInstances ecs:DescribeNetworkInterfaces ecs:DescribeSecurityGroupAttribute vpc:CreateRouteEntries vpc:DeleteRouteEntries vpc:ModifyRouteEntry ecs:ModifyNetworkInterfaceAttribute"},
		"no tables":         {func(s *openapi.Settings) { s.Allow = []string{"ecs:*", "vpc:*Entries"} }, "vpc:DescribeRouteTableList vpc:DescribeRouteEntryList? vpc:CreateRouteEntries? vpc:DeleteRouteEntries? vpc:ModifyRouteEntry?"},
		"a key of no worth": {func(s *openapi.Settings) { s.KeyDisabled = true }, "vpc:DescribeRouteTableList vpc:DescribeRouteEntryList? ecs:DescribeInstances ecs:DescribeNetworkInterfaces ecs:DescribeSecurityGroupAttribute vpc:CreateRouteEntries? vpc:DeleteRouteEntries? vpc:ModifyRouteEntry? ecs:ModifyNetworkInterfaceAttribute"},
	} {
		t.Run(name, func(t *testing.T) {
			l := newLab(t)
			l.call("2016-04-28", "CreateRouteEntry", map[string]string{"RouteTableId": testTable, "DestinationCidrBlock": "10.244.1.0/24", "NextHopId": "i-3"})
			l.set(c.change)
			got := l.provider().Preflight(t.Context(), both)
			if refusedOf(got) != c.want {
				t.Errorf("refused %q, want %q", refusedOf(got), c.want)
			}
			var asked []string
			for _, p := range got {
				asked = append(asked, p.Action)
			}
			if slices.Sort(asked); !slices.Equal(asked, slices.Sorted(slices.Values(Actions(both)))) {
				t.Errorf("asked about %v, want %v", asked, Actions(both))
			}
			if n := len(l.snapshot().Entries); n != 1 {
				t.Errorf("the preflight has changed the table: %d entries", n)
			}
		})
	}
}

// TestPreflightAsksForWhatIsNeeded: a duty that is another's needs no right.
func TestPreflightAsksForWhatIsNeeded(t *testing.T) {
	for want, d := range map[string]cloud.Duties{
		"[ecs:DescribeInstances ecs:DescribeNetworkInterfaces ecs:ModifyNetworkInterfaceAttribute]":                                                                                                                         {Nodes: true},
		"[vpc:DescribeRouteTableList vpc:DescribeRouteEntryList ecs:DescribeInstances ecs:DescribeNetworkInterfaces ecs:DescribeSecurityGroupAttribute vpc:CreateRouteEntries vpc:DeleteRouteEntries vpc:ModifyRouteEntry]": {Routes: true},
		"[vpc:DescribeRouteTableList vpc:DescribeRouteEntryList ecs:DescribeInstances ecs:DescribeNetworkInterfaces ecs:DescribeSecurityGroupAttribute]":                                                                    {Check: true},
		"[]": {},
	} {
		l := newLab(t)
		l.set(func(s *openapi.Settings) { s.Allow = append(Actions(d), "sts:None") })
		if d.Check {
			_, err := l.provider().Routes().List(t.Context())
			_, inspectErr := l.provider().Inspect(t.Context(), []string{"i-1"}, nil)
			if err != nil || inspectErr != nil {
				t.Errorf("looking at the tables: %v, %v", err, inspectErr)
			}
		}
		var asked []string
		for _, p := range l.provider().Preflight(t.Context(), d) {
			asked = append(asked, p.Action)
			if p.Err != nil {
				t.Errorf("%+v: %s: %v", d, p.Action, p.Err)
			}
		}
		if got := fmt.Sprint(asked); got != want {
			t.Errorf("%+v: asked about %s, want %s", d, got, want)
		}
	}
}

// TestPolicyIsWhatIsUsed: and what the manual shows is the same.
func TestPolicyIsWhatIsUsed(t *testing.T) {
	both := cloud.Duties{Routes: true, Nodes: true}
	var policy struct{ Statement []struct{ Action []string } }
	if err := json.Unmarshal([]byte(Policy(both)), &policy); err != nil || !slices.Equal(policy.Statement[0].Action, Actions(both)) {
		t.Errorf("policy %s, %v", Policy(both), err)
	}
	manual, err := os.ReadFile(filepath.Join("..", "..", "..", "docs", "cloud.md"))
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(manual), Policy(both)) {
		t.Errorf("docs/cloud.md does not show this policy:\n%s", Policy(both))
	}
}

// TestDescribeAndForwardingInTheLab: the same against a server that keeps the
// API's rules.
func TestDescribeAndForwardingInTheLab(t *testing.T) {
	l := newLab(t, func(s *openapi.Spec) {
		s.Instances[1].SourceDestCheck = true
		s.Instances[1].Public = []netip.Addr{netip.MustParseAddr("203.0.113.9")}
		s.Instances[1].Tags = map[string]string{"ack.alibabacloud.com/nodepool-id": "np1"}
	})
	p := l.provider()
	found, err := p.Instances().Describe(t.Context(), []string{"i-2", "i-9"})
	if err != nil || len(found) != 1 {
		t.Fatalf("%+v, %v", found, err)
	}
	got := fmt.Sprintf("%+v", found[0])
	want := "{ID:i-2 Host:node2 Addresses:[172.16.0.12 2408:4000:1::12] Primary:2 Public:[203.0.113.9] Interface:eni-2 VPC:vpc-2vc1 Region:cn-chengdu Zone:cn-chengdu-a " +
		"Type:ecs.g7.large Labels:map[node.alibabacloud.com/instance-charge-type:PostPaid node.alibabacloud.com/nodepool-id:np1 node.alibabacloud.com/spot-strategy:NoSpot] Running:true Stopped:false}"
	if got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	all, err := p.Instances().List(t.Context())
	if err != nil || len(all) != 3 {
		t.Fatalf("%+v, %v", all, err)
	}
	for _, want := range []string{"[i-2]", "[]"} {
		changed, err := p.Instances().AllowForwarding(t.Context(), all)
		if err != nil || fmt.Sprint(changed) != want {
			t.Errorf("changed %v, %v; want %s", changed, err, want)
		}
	}
}

// TestSecretIsReadAnew: a new key is used once the old one is refused, without
// a new provider, and no call is wasted on a Secret that cannot be read.
func TestSecretIsReadAnew(t *testing.T) {
	l := newLab(t)
	secret, reads := map[string][]byte{SecretKeyID: []byte("LTAIold"), SecretKeySecret: []byte("old")}, 0
	var failing error
	p := l.provider(func(o *Options) {
		o.Secret = nil
		o.ReadSecret = func(context.Context) (map[string][]byte, error) { reads++; return secret, failing }
	})
	keys := p.call.keys.(*secretKeys)
	now := time.Now()
	keys.now = func() time.Time { return now }
	ask := func() string {
		_, err := p.Instances().List(t.Context())
		if err == nil {
			return "ok"
		}
		return cloud.ClassOf(err).String()
	}
	for _, step := range []struct {
		what  string
		after time.Duration
		do    func()
		want  string
		reads int
	}{
		{"a wrong key", 0, func() {}, "unauthenticated", 1},
		{"is not read at each call", 0, func() {}, "unauthenticated", 1},
		{"the right key", readAgain, func() {
			secret = map[string][]byte{SecretKeyID: []byte("LTAItest"), SecretKeySecret: []byte("hush-hush")}
		}, "ok", 2},
		{"is kept", readAgain, func() {}, "ok", 2},
		{"an API server that is down", readEvery, func() { failing = errors.New("down") }, "ok", 3},
		{"a Secret without keys", readEvery, func() { failing, secret = nil, nil }, "ok", 4},
		{"a key that was replaced", readEvery, func() {
			secret = map[string][]byte{SecretKeyID: []byte("LTAInew"), SecretKeySecret: []byte("new")}
		}, "unauthenticated", 5},
	} {
		now = now.Add(step.after)
		step.do()
		if got := ask(); got != step.want || reads != step.reads {
			t.Errorf("%s: %s after %d reads, want %s after %d", step.what, got, reads, step.want, step.reads)
		}
	}
}

// Defect 10 of the vendor's controller: what failed in a batch was told by the
// next hop alone.
func TestDefect10FailuresAreToldByDestination(t *testing.T) {
	l := newLab(t)
	l.fault(openapi.Fault{Kind: openapi.FaultEntry, Action: "CreateRouteEntries", Code: "QuotaExceeded", CIDR: prefix("10.244.2.0/24")})
	results, err := l.provider().Routes().Apply(t.Context(), []cloud.RouteChange{change("10.244.1.0/24", "i-1"), change("10.244.2.0/24", "i-1"), change("10.244.3.0/24", "i-1")})
	if err != nil || len(results) != 3 {
		t.Fatalf("%v, %v", results, err)
	}
	for i, failed := range []bool{false, true, false} {
		if (results[i].Err != nil) != failed {
			t.Errorf("%s: %v", results[i].Dst, results[i].Err)
		}
	}
}

package controller

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"sigs.k8s.io/controller-runtime/pkg/client"

	"ropeway.dev/ropeway/api/v1alpha1"
	"ropeway.dev/ropeway/internal/cloud"
	"ropeway.dev/ropeway/internal/cloud/alibaba"
	"ropeway.dev/ropeway/internal/controller/routes"
	"ropeway.dev/ropeway/internal/kube"
	"ropeway.dev/ropeway/internal/lab/openapi"
	"ropeway.dev/ropeway/internal/lab/vendorccm"
)

func TestRivalOf(t *testing.T) {
	marked := node("a", "192.0.2.1")
	on := kube.CloudController{Kind: "Deployment", Namespace: "kube-system", Name: "ccm", WritesRoutes: true}
	off, idle, keeper := on, on, on
	off.WritesRoutes, idle.Idle = false, true
	keeper.WritesRoutes, keeper.KeepsNodes, idle.KeepsNodes = false, true, true
	for name, c := range map[string]struct {
		visible []kube.CloudController
		marked  int
		why     string
		gone    bool
	}{
		"on":                              {[]kube.CloudController{on}, -1, "Deployment ccm in namespace kube-system", false},
		"off":                             {[]kube.CloudController{off}, -1, "", true},
		"off now, but it wrote":           {[]kube.CloudController{off}, 0, "", true},
		"scaled to nothing":               {[]kube.CloudController{idle}, -1, "", false},
		"one of two":                      {[]kube.CloudController{off, on}, -1, "--configure-cloud-routes=false", false},
		"a process of a host":             {nil, 0, "condition of node a", false},
		"its Lease only, nothing written": {nil, -1, "", false},
	} {
		t.Run(name, func(t *testing.T) {
			got := rivalOf(c.visible, []corev1.Node{marked}, c.marked)
			if (got.why == "") != (c.why == "") || !strings.Contains(got.why, c.why) || got.gone != c.gone {
				t.Errorf("%+v", got)
			}
			if got.why != "" && !strings.Contains(got.why, kube.RoutesFlag) {
				t.Errorf("the flag is not named: %s", got.why)
			}
			if got.nodes != "" {
				t.Errorf("nobody looks after nodes: %s", got.nodes)
			}
		})
	}
}

// TestVendorsClockDoesNotMatter: what is written in the Lease says at most that its
// holder lives; that it does not is seen by our own clock.
func TestVendorsClockDoesNotMatter(t *testing.T) {
	start := time.Unix(1_000_000, 0)
	at := func(version string, written time.Duration) *coordinationv1.Lease {
		renewed := metav1.NewMicroTime(start.Add(written))
		return &coordinationv1.Lease{ObjectMeta: metav1.ObjectMeta{ResourceVersion: version}, Spec: coordinationv1.LeaseSpec{RenewTime: &renewed}}
	}
	type look struct {
		after        time.Duration
		lease        *coordinationv1.Lease
		alive, known bool
	}
	for name, looks := range map[string][]look{
		"none":                        {{0, nil, false, true}},
		"the same clock":              {{0, at("1", -10*time.Second), true, true}, {20 * time.Second, at("2", 10*time.Second), true, true}},
		"its clock is 5 minutes late": {{0, at("1", -5*time.Minute), false, false}, {20 * time.Second, at("2", -280*time.Second), true, true}},
		"it is early":                 {{0, at("1", 5*time.Minute), false, false}, {20 * time.Second, at("2", 320*time.Second), true, true}},
		"it stops": {{0, at("1", -10*time.Second), true, true}, {59 * time.Second, at("1", -10*time.Second), true, true},
			{time.Minute, at("1", -10*time.Second), false, true}, {2 * time.Minute, at("1", -10*time.Second), false, true}},
		"it stopped long ago":   {{0, at("1", -time.Hour), false, false}, {59 * time.Second, at("1", -time.Hour), false, false}, {time.Minute, at("1", -time.Hour), false, true}},
		"it comes, and is late": {{0, nil, false, true}, {20 * time.Second, at("1", -time.Hour), true, true}, {80 * time.Second, at("1", -time.Hour), false, true}},
		"without a time":        {{0, &coordinationv1.Lease{ObjectMeta: metav1.ObjectMeta{ResourceVersion: "1"}}, false, false}},
	} {
		t.Run(name, func(t *testing.T) {
			var seen seenLease
			for _, l := range looks {
				if alive, known := seen.see(l.lease, start.Add(l.after)); alive != l.alive || known != l.known {
					t.Errorf("after %s: alive %t, known %t; want %t and %t", l.after, alive, known, l.alive, l.known)
				}
			}
		})
	}
	if r := newMemory().rival; r.gone || r.why == "" || r.nodes == "" {
		t.Errorf("before anything is known: %+v", r)
	}
}

// TestAnotherKeepsNodes: a vendor's controller that looks after nodes is known by
// its flags, and ours leaves them to it until it is gone.
func TestAnotherKeepsNodes(t *testing.T) {
	api := admin(t)
	d := vendorccm.Config{ClusterCIDR: netip.MustParsePrefix("10.244.0.0/16")}.Deployment()
	d.Spec.Template.Spec.Containers[0].Args = []string{kube.RoutesFlag}
	create(t, api, d)
	now := metav1.NowMicro()
	lease := &coordinationv1.Lease{ObjectMeta: metav1.ObjectMeta{Namespace: kube.SystemNamespace, Name: kube.VendorLease}, Spec: coordinationv1.LeaseSpec{RenewTime: &now}}
	create(t, api, lease)
	e := newECSCluster(t, "a")
	e.join("a", 0)
	eventually(t, "the condition", networkIs(t, api, v1alpha1.ConditionNodesKnown, "False", reasonWithheld, d.Name))
	eventually(t, "the event", e.event("NodesLeftToAnother", "set spec.cloud.nodes to external"))
	untouched := e.is("a", func(n *corev1.Node) bool { return n.Spec.ProviderID == "" && len(n.Spec.Taints) > 0 })
	if wrong := untouched(); wrong != "" {
		t.Errorf("beside another that looks after nodes: %s", wrong)
	}
	before := d.DeepCopy()
	d.Spec.Template.Spec.Containers[0].Args = []string{kube.RoutesFlag, "--controllers=service,nlb"}
	if err := api.Patch(t.Context(), d, client.MergeFrom(before)); err != nil {
		t.Fatal(err)
	}
	eventually(t, "ours now", e.is("a", settled("i-a", "cn-chengdu.i-a", "192.0.2.1")))
	eventually(t, "the condition", networkIs(t, api, v1alpha1.ConditionNodesKnown, "True", "Known", "1 of 1"))
}

// vendorLab is a cluster in the lab's cloud, with the vendor's controller and
// ours.
type vendorLab struct {
	*testing.T
	api    client.Client
	server *openapi.Server
	url    string
	writes atomic.Int64 // calls of ours that change something
	nodes  []*corev1.Node
	stop   func() // ends the vendor's controller
}

func newVendorLab(t *testing.T, cn *v1alpha1.ClusterNetwork, nodes int) *vendorLab {
	t.Helper()
	l := &vendorLab{T: t, api: admin(t)}
	spec := openapi.Spec{
		Region: "cn-chengdu", Account: "1234567890123456", VPC: "vpc-1", CIDRs: []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24")},
		RouteTable: "vtb-1", SecurityGroup: "sg-1", Role: "ropeway", Key: openapi.AccessKey{ID: "LTAItest", Secret: "hush-hush"},
		VSwitches: []openapi.VSwitch{{ID: "vsw-a", Zone: "cn-chengdu-a", CIDR: netip.MustParsePrefix("192.0.2.0/24")}},
		Settings:  openapi.Settings{Quota: 200, CredentialLife: openapi.Duration(time.Hour)},
	}
	for i := range nodes + 1 {
		spec.Instances = append(spec.Instances, openapi.Instance{
			ID: fmt.Sprintf("i-%d", i), Host: fmt.Sprintf("n%d", i), Type: "ecs.g7.large", VSwitch: "vsw-a", Interface: fmt.Sprintf("eni-%d", i),
			Addresses: []netip.Addr{netip.AddrFrom4([4]byte{192, 0, 2, byte(i + 1)})}, Status: "Running",
		})
	}
	var err error
	if l.server, err = openapi.New(spec, openapi.Options{}); err != nil {
		t.Fatal(err)
	}
	listener := httptest.NewServer(l.server)
	t.Cleanup(listener.Close)
	l.url = listener.URL
	create(t, l.api, &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: "kube-system", Name: "ropeway-cloud"},
		StringData: map[string]string{"accessKeyID": spec.Key.ID, "accessKeySecret": spec.Key.Secret}})
	create(t, l.api, cn)
	for range nodes {
		l.join()
	}
	return l
}

// join registers the next machine as a node that others reach by tunnel.
func (l *vendorLab) join() {
	l.Helper()
	i := len(l.nodes)
	n := register(l.T, l.api, fmt.Sprintf("n%d", i), fmt.Sprintf("192.0.2.%d", i+1), fmt.Sprintf("10.244.%d.0/24", i))
	setProvider(l.T, l.api, n, fmt.Sprintf("cn-chengdu.i-%d", i))
	l.nodes = append(l.nodes, n)
	for j, other := range l.nodes {
		speak(l.T, l.api, other, fmt.Sprintf("10.244.%d.1", j), slices.DeleteFunc(slices.Clone(l.nodes), func(x *corev1.Node) bool { return x == other })...)
	}
}

// ours starts Ropeway's controller.
func (l *vendorLab) ours() {
	startReplica(l.T, "ours", func(cfg *Config) {
		cfg.Providers = map[string]cloud.New{"alibaba": func(ctx context.Context, s cloud.Settings) (cloud.Provider, error) {
			s.Endpoint = l.url
			s.Called = func(action string, _ time.Duration, _ error) {
				if !strings.HasPrefix(action, "Describe") {
					l.writes.Add(1)
				}
			}
			p, err := alibaba.New(ctx, s)
			if err != nil {
				return nil, err
			}
			return unasked{p, p.(cloud.Inspector)}, nil
		}}
	})
}

// vendors (re)starts the vendor's controller with or without its route
// controller, as one does by changing its Deployment.
func (l *vendorLab) vendors(routes bool) {
	l.Helper()
	if l.stop != nil {
		l.stop()
	}
	cfg := vendorccm.Config{
		Cloud:       vendorccm.Cloud{URL: l.url, Region: "cn-chengdu", VPC: "vpc-1", Key: openapi.AccessKey{ID: "LTAItest", Secret: "hush-hush"}},
		ClusterCIDR: netip.MustParsePrefix("10.244.0.0/16"), Routes: routes,
		Gather: 50 * time.Millisecond, Period: 300 * time.Millisecond, Retry: 100 * time.Millisecond, Step: 50 * time.Millisecond,
	}
	d := cfg.Deployment()
	if err := l.api.Delete(l.Context(), d); client.IgnoreNotFound(err) != nil {
		l.Fatal(err)
	}
	d = cfg.Deployment()
	create(l.T, l.api, d)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- vendorccm.Run(ctx, shared.Config(l.T), cfg) }()
	stopped := false
	l.stop = func() {
		if !stopped {
			stopped = true
			cancel()
			if err := <-done; err != nil {
				l.Errorf("the vendor's controller: %v", err)
			}
		}
	}
	l.Cleanup(l.stop)
	l.Cleanup(func() {
		lease := &coordinationv1.Lease{ObjectMeta: metav1.ObjectMeta{Namespace: vendorccm.Namespace, Name: vendorccm.Lease}}
		if err := l.api.Delete(context.Background(), lease); client.IgnoreNotFound(err) != nil {
			l.Error(err)
		}
	})
}

func (l *vendorLab) snapshot() openapi.Snapshot {
	l.Helper()
	w := httptest.NewRecorder()
	l.server.Admin().ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/snapshot", http.NoBody))
	var snap openapi.Snapshot
	if err := json.NewDecoder(bytes.NewReader(w.Body.Bytes())).Decode(&snap); err != nil {
		l.Fatal(err)
	}
	return snap
}

// entries are "destination instance mark", and their ids.
func (l *vendorLab) entries() (lines, ids []string) {
	for _, e := range l.snapshot().Entries {
		owner := "unmarked"
		if cloud.OwnerOf(e.Description) != "" {
			owner = "ours"
		}
		lines, ids = append(lines, fmt.Sprintf("%s %s %s", e.Dst, e.NextHop, owner)), append(ids, e.ID)
	}
	slices.Sort(lines)
	slices.Sort(ids)
	return lines, ids
}

func (l *vendorLab) entriesAre(want ...string) func() string {
	return func() string {
		if got, _ := l.entries(); !slices.Equal(got, want) {
			return fmt.Sprintf("entries are %q", got)
		}
		return ""
	}
}

func (l *vendorLab) published(status, reason, message string) func() string {
	return networkIs(l.T, l.api, routes.ConditionPublished, status, reason, message)
}

func (l *vendorLab) edit(change func(*v1alpha1.ClusterNetwork)) {
	l.Helper()
	var cn v1alpha1.ClusterNetwork
	if err := l.api.Get(l.Context(), client.ObjectKey{Name: "default"}, &cn); err != nil {
		l.Fatal(err)
	}
	before := cn.DeepCopy()
	change(&cn)
	if err := l.api.Patch(l.Context(), &cn, client.MergeFrom(before)); err != nil {
		l.Fatal(err)
	}
}

// sweeps returns after the vendor's controller has swept so many times more.
func (l *vendorLab) sweeps(more int) {
	l.Helper()
	lists := func() int { return l.snapshot().Counts["DescribeRouteTableList"]["OK"] }
	end := lists() + more
	eventually(l.T, "sweeps", func() string {
		if n := lists(); n < end {
			return fmt.Sprintf("%d more to come", end-n)
		}
		return ""
	})
}

// unasked is a provider whose rights are not asked about: that question names
// an entry that does not exist, and would be counted as a deletion.
type unasked struct {
	cloud.Provider
	cloud.Inspector
}

func (l *vendorLab) deletions() int {
	counts := l.snapshot().Counts
	return counts["DeleteRouteEntry"]["OK"] + counts["DeleteRouteEntries"]["OK"]
}

// TestBesideAVendorsRouteController: with its route controller on and ours
// too, ours writes nothing and names its flag; from its routes to ours and back
// no entry is ever deleted or made anew.
func TestBesideAVendorsRouteController(t *testing.T) {
	l := newVendorLab(t, directNetwork(), 3)
	l.vendors(true)
	theirs := []string{"10.244.0.0/24 i-0 unmarked", "10.244.1.0/24 i-1 unmarked", "10.244.2.0/24 i-2 unmarked"}
	eventually(t, "the vendor's entries", l.entriesAre(theirs...))
	l.ours()
	eventually(t, "withheld", l.published("False", "Withheld", "Deployment cloud-controller-manager in namespace kube-system"))
	eventually(t, "withheld", l.published("False", "Withheld", "3 of 3 routes are in the cloud's tables (3 of them made by others)"))
	eventually(t, "withheld", l.published("False", "Withheld", kube.RoutesFlag))
	if n := l.writes.Load(); n != 0 {
		t.Errorf("%d calls of ours changed something beside the vendor's route controller", n)
	}
	for _, n := range l.nodes { // the tunnels do not wait for any of this
		eventually(t, "available", func() string { return available(t, l.api, n.Name) })
	}
	_, ids := l.entries()

	l.vendors(false) // as the sentence says
	eventually(t, "ours", l.published("True", "Published", "3 of 3"))
	l.join()
	eventually(t, "a new node", l.entriesAre(append(slices.Clone(theirs), "10.244.3.0/24 i-3 ours")...))
	l.edit(func(cn *v1alpha1.ClusterNetwork) { cn.Annotations = map[string]string{routes.AdoptAnnotation: "all"} })
	var all []string
	for _, line := range append(slices.Clone(theirs), "10.244.3.0/24 i-3 ours") {
		all = append(all, strings.Replace(line, "unmarked", "ours", 1))
	}
	eventually(t, "adopted", l.entriesAre(all...))
	for _, n := range l.nodes {
		eventually(t, "the condition is ours again", conditionIs(t, l.api, n.Name, "False", kube.ReasonProven, ""))
	}

	l.edit(func(cn *v1alpha1.ClusterNetwork) { // and back
		cn.Annotations = map[string]string{routes.ReleaseAnnotation: "all"}
	})
	eventually(t, "released", func() string {
		if lines, _ := l.entries(); strings.Contains(strings.Join(lines, ","), "ours") {
			return fmt.Sprint(lines)
		}
		return ""
	})
	l.edit(func(cn *v1alpha1.ClusterNetwork) { cn.Spec.Cloud.Routes = v1alpha1.DutyExternal })
	l.vendors(true)
	before := l.writes.Load()
	l.sweeps(5)
	eventually(t, "verified", l.published("True", "Published", "4 of 4 routes are in the cloud's tables (4 of them made by others)"))
	if n := l.writes.Load() - before; n != 0 {
		t.Errorf("external: %d calls of ours changed something", n)
	}
	_, after := l.entries()
	for _, id := range ids {
		if !slices.Contains(after, id) {
			t.Errorf("the entry %s was made anew: %v -> %v", id, ids, after)
		}
	}
	if n := l.deletions(); n != 0 || len(after) != 4 {
		t.Errorf("%d calls removed something, %d entries are left of 4", n, len(after))
	}
}

func available(t *testing.T, c client.Client, name string) string {
	var n corev1.Node
	if err := c.Get(t.Context(), client.ObjectKey{Name: name}, &n); err != nil {
		return err.Error()
	}
	if cond := kube.NetworkUnavailable(&n); cond == nil || cond.Status != corev1.ConditionFalse {
		return fmt.Sprintf("node %s has %+v", name, cond)
	}
	return ""
}

// TestTwoWritersOfTheCondition: the vendor's word against ours. It says True
// while its table is full; ours says once what it knows, names the other, and
// then leaves it alone.
func TestTwoWritersOfTheCondition(t *testing.T) {
	l := newVendorLab(t, directNetwork(func(s *v1alpha1.ClusterNetworkSpec) { s.Cloud.Routes = v1alpha1.DutyExternal }), 2)
	settings := l.snapshot().Settings
	settings.Quota = 0
	text, err := json.Marshal(settings)
	if err != nil {
		t.Fatal(err)
	}
	w := httptest.NewRecorder()
	if l.server.Admin().ServeHTTP(w, httptest.NewRequest(http.MethodPut, "/settings", bytes.NewReader(text))); w.Code != http.StatusOK {
		t.Fatal(w.Body)
	}
	l.vendors(true)
	l.ours()
	name := l.nodes[0].Name
	marked := func() string {
		var n corev1.Node
		if err := l.api.Get(t.Context(), client.ObjectKey{Name: name}, &n); err != nil {
			return err.Error()
		}
		if got := n.Annotations[kube.WriterAnnotation]; got != kube.ReasonNoRouteCreated {
			return fmt.Sprintf("the other writer is named %q", got)
		}
		return ""
	}
	eventually(t, "named", marked)
	eventually(t, "left alone", conditionIs(t, l.api, name, "True", kube.ReasonNoRouteCreated, ""))
	version := func() string {
		var n corev1.Node
		if err := l.api.Get(t.Context(), client.ObjectKey{Name: name}, &n); err != nil {
			t.Fatal(err)
		}
		return n.ResourceVersion
	}
	before := version()
	l.sweeps(8)
	if after := version(); after != before {
		t.Errorf("the node was written again: %s -> %s", before, after)
	}
	l.vendors(false) // it stops: the condition is ours, and true again
	eventually(t, "ours again", conditionIs(t, l.api, name, "False", kube.ReasonProven, ""))
}

// TestDefect5ReRegisteredNode: a node that comes back while its entry is there
// is available as soon as it is proven; no entry is made anew for it.
func TestDefect5ReRegisteredNode(t *testing.T) {
	l := newVendorLab(t, directNetwork(), 2)
	l.ours()
	eventually(t, "published", l.published("True", "Published", "2 of 2"))
	_, before := l.entries()
	eventually(t, "available", func() string { return available(t, l.api, "n1") })
	if err := l.api.Delete(t.Context(), l.nodes[1]); err != nil {
		t.Fatal(err)
	}
	l.nodes = l.nodes[:1]
	l.join()
	eventually(t, "available again", func() string { return available(t, l.api, "n1") })
	if _, after := l.entries(); !slices.Equal(before, after) || l.deletions() != 0 {
		t.Errorf("entries %v -> %v", before, after)
	}
}

// TestNodesJoinWhileTheCloudFails: with credentials that are refused, a node
// that others reach by tunnel takes pods all the same.
func TestNodesJoinWhileTheCloudFails(t *testing.T) {
	l := newVendorLab(t, directNetwork(), 2)
	startReplica(t, "ours", func(cfg *Config) {
		cfg.Providers = map[string]cloud.New{"alibaba": func(context.Context, cloud.Settings) (cloud.Provider, error) {
			return nil, &cloud.Error{Class: cloud.Unauthenticated, Code: "InvalidAccessKeyId.NotFound"}
		}}
	})
	eventually(t, "told", l.published("False", routes.ReasonCredentials, "ropeway-cloud"))
	l.join()
	for _, n := range l.nodes {
		eventually(t, "available", func() string { return available(t, l.api, n.Name) })
	}
}

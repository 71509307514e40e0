package controller

import (
	"context"
	"fmt"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"sigs.k8s.io/controller-runtime/pkg/client"

	"ropeway.dev/ropeway/api/v1alpha1"
	"ropeway.dev/ropeway/internal/cloud"
	"ropeway.dev/ropeway/internal/controller/routes"
	"ropeway.dev/ropeway/internal/kube"
	"ropeway.dev/ropeway/internal/plan"
)

// directNetwork asks for routes in the cloud, with the tunnel behind them.
func directNetwork(change ...func(*v1alpha1.ClusterNetworkSpec)) *v1alpha1.ClusterNetwork {
	cn := &v1alpha1.ClusterNetwork{ObjectMeta: metav1.ObjectMeta{Name: "default"}, Spec: v1alpha1.ClusterNetworkSpec{
		PodCIDRs: []string{"10.244.0.0/16"}, AddressSource: v1alpha1.AddressesFromNodeCIDR,
		Transports: []v1alpha1.Transport{v1alpha1.TransportDirect, v1alpha1.TransportIPIP},
		Cloud: &v1alpha1.CloudSpec{Provider: v1alpha1.CloudAlibaba, RegionID: "cn-chengdu", VPCID: "vpc-1", RouteTableIDs: []string{"vtb-1"},
			CredentialsSecret: "ropeway-cloud"},
	}}
	for _, f := range change {
		f(&cn.Spec)
	}
	v1alpha1.Defaults(&cn.Spec)
	return cn
}

func inputFor(cn *v1alpha1.ClusterNetwork, nodes ...corev1.Node) routes.Input {
	o := &kube.Objects{ClusterID: "c-1", Network: cn, Nodes: nodes}
	s, _ := o.Snapshot("")
	spec, _ := kube.InForce(cn)
	return routesInput(o, s, spec, nil)
}

func TestRoutesInput(t *testing.T) {
	a, b := node("a", "192.0.2.1", "10.244.1.0/24"), node("b", "192.0.2.2", "10.244.2.0/24")
	a.Spec.ProviderID = "cn-chengdu.i-a"
	for name, c := range map[string]struct {
		change func(*v1alpha1.ClusterNetworkSpec)
		mode   routes.Mode
		wants  int
		why    string
	}{
		"ropeway":   {func(*v1alpha1.ClusterNetworkSpec) {}, routes.Write, 2, ""},
		"external":  {func(s *v1alpha1.ClusterNetworkSpec) { s.Cloud.Routes = v1alpha1.DutyExternal }, routes.External, 2, ""},
		"off":       {func(s *v1alpha1.ClusterNetworkSpec) { s.Cloud.Routes = v1alpha1.DutyOff }, routes.Off, 0, "spec.cloud.routes is off"},
		"no cloud":  {func(s *v1alpha1.ClusterNetworkSpec) { s.Cloud = nil }, routes.Off, 0, ""},
		"no direct": {func(s *v1alpha1.ClusterNetworkSpec) { s.Transports = s.Transports[1:] }, routes.Off, 0, "does not allow direct"},
	} {
		t.Run(name, func(t *testing.T) {
			in := inputFor(directNetwork(c.change), a, b)
			if in.Mode != c.mode || len(in.Wants) != c.wants || !strings.Contains(in.Why, c.why) || in.Nodes != 2 || in.Cluster != "c-1" {
				t.Errorf("%+v", in)
			}
			if c.wants > 0 && (in.Wants[0].ProviderID != "cn-chengdu.i-a" || in.Wants[0].Dst.String() != "10.244.1.0/24") {
				t.Errorf("the first want is %+v", in.Wants[0])
			}
		})
	}
	t.Run("annotations", func(t *testing.T) {
		cn := directNetwork()
		cn.Annotations = map[string]string{routes.ConfirmAnnotation: "abc", routes.AdoptAnnotation: "all", routes.ReleaseAnnotation: "10.244.1.0/24"}
		in := inputFor(cn, a)
		if in.Confirmed != "abc" || !in.Adopt.All || len(in.Release.Dsts) != 1 {
			t.Errorf("%+v", in)
		}
	})
	t.Run("withdrawal", func(t *testing.T) {
		network := func(change func(*v1alpha1.ClusterNetworkSpec)) *kube.Objects {
			cn := directNetwork(change)
			cn.Annotations = map[string]string{routes.WithdrawAnnotation: "yes"}
			return &kube.Objects{ClusterID: "c-1", Network: cn, Nodes: []corev1.Node{a, b}}
		}
		input := func(o *kube.Objects) routes.Input {
			s, _ := o.Snapshot("")
			spec, _ := kube.InForce(o.Network)
			return routesInput(o, s, spec, nil)
		}
		tunnels := func(s *v1alpha1.ClusterNetworkSpec) { s.Transports = s.Transports[1:] }
		if in := input(network(func(*v1alpha1.ClusterNetworkSpec) {})); in.Mode != routes.Write || len(in.Wants) != 2 {
			t.Errorf("while routes are needed: %+v", in)
		}
		if in := input(network(func(s *v1alpha1.ClusterNetworkSpec) { s.Cloud.Routes = v1alpha1.DutyOff })); in.Mode != routes.Off || !strings.Contains(in.Why, "allows direct") {
			t.Errorf("while direct is allowed: %+v", in)
		}
		busy := network(tunnels)
		busy.NodeNetworks = []*v1alpha1.NodeNetwork{{ObjectMeta: metav1.ObjectMeta{Name: "b"}, Status: v1alpha1.NodeNetworkStatus{Peers: map[string]int32{"direct": 1}}}}
		if in := input(busy); in.Mode != routes.Off || !strings.Contains(in.Why, "node b still reaches others by direct") {
			t.Errorf("while a node uses them: %+v", in)
		}
		busy.Network.Generation = 7
		busy.NodeNetworks[0].Status = v1alpha1.NodeNetworkStatus{NetworkGeneration: 6}
		if in := input(busy); in.Mode != routes.Off || !strings.Contains(in.Why, "node b") {
			t.Errorf("while a node goes by the network of before: %+v", in)
		}
		busy.NodeNetworks[0].Status.NetworkGeneration = 7
		if in := input(busy); in.Mode != routes.Withdraw {
			t.Errorf("when every node goes by the new network: %+v", in)
		}
		busy.NodeNetworks[0].Status.Peers = map[string]int32{"direct": 1}
		busy.NodeNetworks[0].Name = "gone"
		if in := input(busy); in.Mode != routes.Withdraw || len(in.Wants) != 0 {
			t.Errorf("when nobody uses them: %+v", in)
		}
	})
	t.Run("no network in force", func(t *testing.T) {
		if in := inputFor(nil, a); in.Mode != routes.Off {
			t.Errorf("%+v", in)
		}
	})
}

func TestRoutesConditions(t *testing.T) {
	table := routes.Table{ID: "vtb-1", Wanted: 2, Good: 2}
	some := table
	some.Good = 1
	listed := time.Unix(1, 0)
	problem := func(reason string) []routes.Problem {
		return []routes.Problem{{Reason: reason, Message: "what and where"}}
	}
	for name, c := range map[string]struct {
		status                     routes.Status
		published, reason, message string
		withheld                   bool
	}{
		"off":         {routes.Status{Mode: routes.Off}, "", "", "", false},
		"unread":      {routes.Status{Mode: routes.Write}, "False", "Publishing", "not been read", false},
		"publishing":  {routes.Status{Mode: routes.Write, Listed: listed, Tables: []routes.Table{some}}, "False", "Publishing", "1 of 2", false},
		"published":   {routes.Status{Mode: routes.Write, Listed: listed, Tables: []routes.Table{table}}, "True", "Published", "2 of 2", false},
		"full":        {routes.Status{Mode: routes.Write, Listed: listed, Tables: []routes.Table{some}, Problems: problem(routes.ReasonTableFull)}, "False", "RouteTableFull", "what and where", false},
		"rival":       {routes.Status{Mode: routes.External, Why: "another writes", Listed: listed, Tables: []routes.Table{table}}, "False", "Withheld", "another writes", false},
		"withdrawing": {routes.Status{Mode: routes.Withdraw, Listed: listed, Tables: []routes.Table{{ID: "vtb-1", Ours: 3}}}, "False", "Withdrawing", "3 entries", false},
		"withdrawn":   {routes.Status{Mode: routes.Withdraw, Listed: listed, Tables: []routes.Table{{ID: "vtb-1"}}}, "False", "Withdrawn", "no entry of this cluster", false},
		"withheld":    {routes.Status{Mode: routes.Write, Listed: listed, Tables: []routes.Table{table}, Problems: problem(routes.ReasonWithheld)}, "False", "RoutesWithheld", "what", true},
	} {
		t.Run(name, func(t *testing.T) {
			cn := directNetwork()
			setRoutes(cn, &c.status)
			got := meta.FindStatusCondition(cn.Status.Conditions, routes.ConditionPublished)
			if c.published == "" {
				if got != nil {
					t.Errorf("%+v", got)
				}
				return
			}
			if got == nil || string(got.Status) != c.published || got.Reason != c.reason || !strings.Contains(got.Message, c.message) {
				t.Errorf("%+v", got)
			}
			if w := meta.FindStatusCondition(cn.Status.Conditions, routes.ConditionWithheld); (w != nil) != c.withheld {
				t.Errorf("withheld: %+v", w)
			}
		})
	}
}

// TestWithheldSince: the condition carries from leader to leader since when
// something waits, on which the token depends; another wait has another time.
func TestWithheldSince(t *testing.T) {
	cn := directNetwork()
	for _, since := range []time.Time{time.Unix(1_000_000, 0), time.Unix(1_000_000, 0), time.Unix(2_000_000, 0)} {
		setRoutes(cn, &routes.Status{Mode: routes.Write, Listed: since, WithheldSince: since, Problems: []routes.Problem{{Reason: routes.ReasonWithheld, Message: "what"}}})
		if in := inputFor(cn); !in.WithheldSince.Equal(since) {
			t.Errorf("the next leader reads %s, want %s", in.WithheldSince, since)
		}
	}
	setRoutes(cn, &routes.Status{Mode: routes.Write})
	if in := inputFor(cn); !in.WithheldSince.IsZero() {
		t.Errorf("nothing waits any more, since %s", in.WithheldSince)
	}
}

func TestNewlyFailing(t *testing.T) {
	m := newMemory()
	failing := plan.Probe{From: "a", To: "b", ToUID: "u-b", Transport: plan.Direct}
	tunnel := plan.Probe{From: "a", To: "c", ToUID: "u-c", Transport: plan.IPIP}
	for i, step := range []struct {
		probes []plan.Probe
		want   bool
	}{
		{[]plan.Probe{tunnel}, false}, {[]plan.Probe{failing, tunnel}, true}, {[]plan.Probe{failing}, false}, {nil, false}, {[]plan.Probe{failing}, true},
	} {
		if got := m.newlyFailing(plan.PublishAll(step.probes), map[string]bool{"u-b": true, "u-c": true}); got != step.want {
			t.Errorf("step %d: %v", i, got)
		}
	}
}

// TestUnpublishedFailsWithoutALook: while a node's entries are Pending nothing
// reaches it by direct, and each listing of a large table is many calls.
func TestUnpublishedFailsWithoutALook(t *testing.T) {
	row := func(node string, state routes.State) routes.Row { return routes.Row{Node: node, State: state} }
	s := &routes.Status{Rows: []routes.Row{
		row("a", routes.Published), row("a", routes.Pending), row("b", routes.Published), row("c", routes.Missing), row("d", routes.Used), row("", routes.Stale),
	}}
	var nodes []plan.Node
	var probes []plan.Probe
	for _, name := range []string{"a", "b", "c", "d", "e"} {
		nodes = append(nodes, plan.Node{Name: name, UID: "u-" + name})
		probes = append(probes, plan.Probe{From: "z", To: name, ToUID: "u-" + name, Transport: plan.Direct})
	}
	known := carried(nodes, s)
	for i, name := range []string{"a", "b", "c", "d", "e"} {
		want := name == "b" || name == "d"
		if got := newMemory().newlyFailing(plan.PublishAll(probes[i:i+1]), known); got != want {
			t.Errorf("a probe that fails to node %s makes the tables be read: %v", name, got)
		}
	}
}

// setProvider gives a Node its instance, as its kubelet does.
func setProvider(t *testing.T, c client.Client, n *corev1.Node, id string) {
	t.Helper()
	before := n.DeepCopy()
	n.Spec.ProviderID = id
	if err := c.Patch(t.Context(), n, client.MergeFrom(before)); err != nil {
		t.Fatal(err)
	}
}

// TestCloudRoutes goes through a cluster's life against a real API server: the
// Secret's keys reach the provider, nodes get entries, a foreign one is named,
// and what is left of a node that is gone is withdrawn by a leader that did not
// see it go.
func TestCloudRoutes(t *testing.T) {
	api := admin(t)
	fake := cloud.NewFake("cn-chengdu", cloud.Table{ID: "vtb-1", Quota: 200})
	var made atomic.Pointer[cloud.Settings] // by several: the planner, and who asks for rights
	provide := func(cfg *Config) {
		cfg.Providers = map[string]cloud.New{"alibaba": func(_ context.Context, s cloud.Settings) (cloud.Provider, error) {
			made.Store(&s)
			return fake, nil
		}}
	}
	create(t, api, &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: "kube-system", Name: "ropeway-cloud"},
		StringData: map[string]string{"accessKeyID": "id", "accessKeySecret": "secret"}})
	create(t, api, directNetwork())
	var nodes []*corev1.Node
	for i := range 4 {
		n := register(t, api, fmt.Sprintf("n%d", i), fmt.Sprintf("192.0.2.%d", i+1), fmt.Sprintf("10.244.%d.0/24", i))
		setProvider(t, api, n, fmt.Sprintf("cn-chengdu.i-%d", i))
		nodes = append(nodes, n)
	}
	fake.Put(cloud.RouteEntry{Table: "vtb-1", Dst: netip.MustParsePrefix("10.244.3.0/24"), NextHop: "i-somebody"})
	first := startReplica(t, "first", provide)
	eventually(t, "published", networkIs(t, api, routes.ConditionPublished, "False", routes.ReasonConflict, "i-somebody"))
	eventually(t, "entries", entriesAre(fake, "10.244.0.0/24 i-0, 10.244.1.0/24 i-1, 10.244.2.0/24 i-2, 10.244.3.0/24 i-somebody"))
	settings := made.Load()
	if secret, err := settings.ReadSecret(t.Context()); err != nil || string(secret["accessKeySecret"]) != "secret" || settings.Region != "cn-chengdu" || settings.Tables[0] != "vtb-1" {
		t.Errorf("the provider was made with %+v", *settings)
	}
	first.stop()
	if err := api.Delete(t.Context(), nodes[2]); err != nil {
		t.Fatal(err)
	}
	fake.Remove(cloud.Key{Table: "vtb-1", Dst: netip.MustParsePrefix("10.244.3.0/24")})
	startReplica(t, "second", provide)
	eventually(t, "after the restart", entriesAre(fake, "10.244.0.0/24 i-0, 10.244.1.0/24 i-1, 10.244.3.0/24 i-3"))
	eventually(t, "published", networkIs(t, api, routes.ConditionPublished, "True", "Published", "3 of 3"))
}

func entriesAre(f *cloud.Fake, want string) func() string {
	return func() string {
		var got []string
		for _, e := range f.Entries() {
			got = append(got, e.Dst.String()+" "+e.NextHop)
		}
		if text := strings.Join(got, ", "); text != want {
			return "entries are " + text
		}
		return ""
	}
}

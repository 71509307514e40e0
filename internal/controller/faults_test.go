package controller

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"sigs.k8s.io/controller-runtime/pkg/client"

	"ropeway.dev/ropeway/api/v1alpha1"
	"ropeway.dev/ropeway/internal/cloud"
	"ropeway.dev/ropeway/internal/controller/routes"
	"ropeway.dev/ropeway/internal/plan"
)

// TestRefine: what the agents see gets the cloud's name, where the cloud has one.
func TestRefine(t *testing.T) {
	good := func(node string) routes.Row {
		return routes.Row{Table: "vtb-1", Dst: "10.244." + node + ".0/24", Node: node, Instance: "i-" + node, NextHop: "i-" + node, State: routes.Published}
	}
	row := func(node string, state routes.State, message string) routes.Row {
		r := good(node)
		r.State, r.NextHop, r.Message = state, "i-x", message
		return r
	}
	find := func(p cloud.Problem, instance string) cloud.Finding {
		return cloud.Finding{Problem: p, Instance: instance, Message: "message of " + instance, Remedy: "remedy of " + instance}
	}
	refused := errors.New("ecs:DescribeNetworkInterfaces refused")
	for name, c := range map[string]struct {
		rows     []routes.Row
		findings []cloud.Finding
		err      error
		off      bool
		seen     plan.Fault
		want     string // fault, node and words
		remedy   string
	}{
		"the cloud knows nothing":         {seen: plan.RouteMissing, want: "RouteMissing 2 seen", remedy: plan.RouteMissing.Remedy()},
		"the cloud cannot be asked":       {seen: plan.DirectBlocked, err: refused, want: "DirectBlocked 2 seen", remedy: "ecs:DescribeNetworkInterfaces refused"},
		"no cloud":                        {seen: plan.RouteMissing, off: true, rows: []routes.Row{row("2", routes.Missing, "")}, want: "RouteMissing 2 seen"},
		"a tunnel":                        {seen: plan.Protocol4Blocked, findings: []cloud.Finding{find(cloud.SecurityGroup, "i-2")}, want: "Protocol4Blocked 2 seen"},
		"stopped":                         {seen: plan.RouteMissing, findings: []cloud.Finding{find(cloud.NotRunning, "i-2")}, rows: []routes.Row{row("2", routes.Missing, "")}, want: "InstanceNotRunning 2 message of i-2"},
		"missing":                         {seen: plan.RouteMissing, rows: []routes.Row{row("2", routes.Missing, "")}, want: "RouteMissing 2 route table vtb-1 has no entry in force for 10.244.2.0/24"},
		"quota":                           {seen: plan.RouteMissing, rows: []routes.Row{row("2", routes.OverQuota, "the table is full")}, want: "RouteMissing 2 the table is full"},
		"somebody else's":                 {seen: plan.RouteMissing, rows: []routes.Row{row("2", routes.Conflict, "leads to i-x")}, want: "WrongNextHop 2 leads to i-x", remedy: "correct the entry for 10.244.2.0/24"},
		"ours, wrong":                     {seen: plan.WrongNextHop, rows: []routes.Row{row("2", routes.Wrong, "its node is another instance now")}, want: "WrongNextHop 2 to i-x instead of to i-2"},
		"the source's route":              {seen: plan.PodCIDRNotAllowed, rows: []routes.Row{row("1", routes.Failed, "quota")}, want: "RouteMissing 1 10.244.1.0/24"},
		"the source's route is no matter": {seen: plan.RouteMissing, rows: []routes.Row{row("1", routes.Failed, "quota")}, findings: []cloud.Finding{find(cloud.SourceDestCheck, "i-2")}, want: "SourceDestCheck 2 message of i-2"},
		"check at the source":             {seen: plan.PodCIDRNotAllowed, findings: []cloud.Finding{find(cloud.SourceDestCheck, "i-1")}, want: "SourceDestCheck 1 message of i-1", remedy: "remedy of i-1"},
		"group":                           {seen: plan.DirectBlocked, findings: []cloud.Finding{find(cloud.SecurityGroup, "i-1"), find(cloud.SecurityGroup, "i-2")}, want: "PodCIDRNotAllowed 2 message of i-2", remedy: "remedy of i-2"},
		"table":                           {seen: plan.RouteMissing, findings: []cloud.Finding{find(cloud.OtherRouteTable, "i-1")}, want: "OtherRouteTable 1 message of i-1"},
	} {
		t.Run(name, func(t *testing.T) {
			v := cloudView{status: &routes.Status{Mode: routes.Write, Listed: time.Unix(1, 0), Rows: append([]routes.Row{good("1"), good("2")}, c.rows...)},
				instances: map[string]string{"1": "i-1", "2": "i-2"}, findings: c.findings, err: c.err}
			if c.off {
				v.status.Mode = routes.Off
			}
			d := plan.Defect{Fault: c.seen, Node: "2", From: "1", Message: "seen"}
			v.refine(&d)
			fault, rest, _ := strings.Cut(c.want, " ")
			node, words, _ := strings.Cut(rest, " ")
			if string(d.Fault) != fault || d.Node != node || !strings.Contains(d.Message, words) {
				t.Errorf("%+v, want %s", d, c.want)
			}
			if got := plan.Summarize([]plan.Defect{d})[0].Remedy; got == "" || !strings.Contains(got, c.remedy) {
				t.Errorf("the remedy %q, want %q", got, c.remedy)
			}
		})
	}
}

// TestInspectIsSeldom: the cloud is asked once while the same nodes are concerned,
// sooner when others are, and never twice at a time.
func TestInspectIsSeldom(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		fake := cloud.NewFake("r")
		finding := cloud.Finding{Problem: cloud.SourceDestCheck, Instance: "i-1"}
		fake.Find(finding)
		var told atomic.Int64
		makes := 0
		i := &inspector{make: func(context.Context, routes.Setup) (cloud.Provider, error) { makes++; return fake, nil }, changed: func() { told.Add(1) }, now: time.Now, log: quiet()}
		ask := func(instances ...string) string {
			found, err := i.ask(t.Context(), question{instances: instances})
			synctest.Wait()
			return fmt.Sprint(found, err)
		}
		calls := func() int { return len(fake.Calls()) }
		ask("i-1")
		if got := ask("i-1"); calls() != 1 || told.Load() != 1 || got != fmt.Sprint([]cloud.Finding{finding}, nil) {
			t.Errorf("%d calls, told %d times: %s", calls(), told.Load(), got)
		}
		for range 100 {
			time.Sleep(time.Second)
			ask("i-1")
		}
		if n := calls(); n < 3 || n > 5 {
			t.Errorf("%d calls in 100 s, want one each %s", n, inspectAgain)
		}
		before := calls()
		for n := range 50 { // other nodes are concerned each time
			time.Sleep(100 * time.Millisecond)
			ask("i-1", fmt.Sprint("i-", n))
		}
		if n := calls() - before; n > 2 {
			t.Errorf("%d calls in 5 s", n)
		}
		fake.Fail("Inspect", errors.New("refused"), false)
		time.Sleep(time.Minute)
		ask("i-1")
		if got := ask("i-1"); !strings.Contains(got, "refused") {
			t.Errorf("the error is not told: %s", got)
		}
		if makes != 1 {
			t.Errorf("%d providers were made for one setup: each forgets when the cloud wants to be left alone until", makes)
		}
		i.forget()
		if got, err := i.ask(t.Context(), question{setup: routes.Setup{VPC: "vpc-2"}}); got != nil || err != nil {
			t.Errorf("not forgotten: %v, %v", got, err)
		}
		time.Sleep(time.Minute)
		i.ask(t.Context(), question{setup: routes.Setup{VPC: "vpc-2"}})
		if synctest.Wait(); makes != 2 {
			t.Errorf("%d providers were made for two setups", makes)
		}
	})
}

// TestFaultsAreTold goes through the life of a fault against a real API server:
// what an agent has seen becomes the ClusterNetwork's condition by the cloud's
// name, an event tells of it once, and all of it is gone with the fault.
func TestFaultsAreTold(t *testing.T) {
	api := admin(t)
	fake := cloud.NewFake("cn-chengdu", cloud.Table{ID: "vtb-1", Quota: 200})
	fake.Find(cloud.Finding{Problem: cloud.SecurityGroup, Instance: "i-1", Message: "the security group sg-1 does not allow inbound from 10.244.0.0/16", Remedy: "add a rule"})
	create(t, api, directNetwork(func(s *v1alpha1.ClusterNetworkSpec) { s.Cloud.CredentialsSecret = "" }))
	var nodes []*corev1.Node
	for i := range 2 {
		n := register(t, api, fmt.Sprintf("f%d", i), fmt.Sprintf("192.0.2.%d", i+1), fmt.Sprintf("10.244.%d.0/24", i))
		setProvider(t, api, n, fmt.Sprintf("cn-chengdu.i-%d", i))
		nodes = append(nodes, n)
	}
	startReplica(t, "faults", func(cfg *Config) {
		cfg.Providers = map[string]cloud.New{"alibaba": func(context.Context, cloud.Settings) (cloud.Provider, error) { return fake, nil }}
	})
	eventually(t, "published", networkIs(t, api, routes.ConditionPublished, "True", "Published", "2 of 2"))
	eventually(t, "no faults", networkIs(t, api, v1alpha1.ConditionPathsSound, "True", "NoFaults", ""))

	say := func(fault string) {
		t.Helper()
		speak(t, api, nodes[0], "10.244.0.1", nodes[1])
		nn := &v1alpha1.NodeNetwork{}
		if err := api.Get(t.Context(), client.ObjectKey{Name: nodes[0].Name}, nn); err != nil {
			t.Fatal(err)
		}
		nn.Status.Probes = append(nn.Status.Probes, v1alpha1.ProbeResult{Node: nodes[1].Name, NodeUID: string(nodes[1].UID), Family: "IPv4",
			Transport: "direct", Reachable: fault == "", Fault: fault, Reason: "seen", Since: metav1.Now()})
		if err := api.Status().Update(t.Context(), nn); err != nil {
			t.Fatal(err)
		}
	}
	say("DirectBlocked")
	eventually(t, "the cloud's name", networkIs(t, api, v1alpha1.ConditionPathsSound, "False", "PodCIDRNotAllowed", "the security group sg-1 does not allow inbound from 10.244.0.0/16: add a rule"))
	var cn v1alpha1.ClusterNetwork
	if err := api.Get(t.Context(), client.ObjectKey{Name: "default"}, &cn); err != nil {
		t.Fatal(err)
	}
	if f := cn.Status.Faults; len(f) != 1 || f[0].Fault != "PodCIDRNotAllowed" || f[0].Nodes != 1 || f[0].Node != "f1" || f[0].Remedy != "add a rule" || f[0].Degraded {
		t.Errorf("faults %+v", f)
	}
	events := func() (out []corev1.Event) {
		var list corev1.EventList
		if err := api.List(t.Context(), &list); err != nil {
			t.Fatal(err)
		}
		for _, e := range list.Items {
			if e.Reason == "PodCIDRNotAllowed" {
				out = append(out, e)
			}
		}
		return out
	}
	eventually(t, "an event", func() string {
		if e := events(); len(e) != 1 || !strings.Contains(e[0].Message, "sg-1") || e[0].InvolvedObject.Kind != "ClusterNetwork" {
			return fmt.Sprintf("%+v", e)
		}
		return ""
	})
	say("")
	eventually(t, "no faults any more", networkIs(t, api, v1alpha1.ConditionPathsSound, "True", "NoFaults", ""))
	if err := api.Get(t.Context(), client.ObjectKey{Name: "default"}, &cn); err != nil || len(cn.Status.Faults) != 0 {
		t.Errorf("faults %+v (%v)", cn.Status.Faults, err)
	}
	for _, e := range events() {
		_ = api.Delete(t.Context(), &e)
	}
	if meta.FindStatusCondition(cn.Status.Conditions, v1alpha1.ConditionPathsSound) == nil {
		t.Error("the condition is gone")
	}
}

package kube

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"ropeway.dev/ropeway/api/v1alpha1"
	"ropeway.dev/ropeway/internal/plan"
)

func exampleStatus() NodeStatus {
	return NodeStatus{
		NodeUID: "ua", AgentVersion: "v1", Addresses: []netip.Addr{netip.MustParseAddr("192.0.2.1")},
		CIDRs: []netip.Prefix{netip.MustParsePrefix("10.244.1.0/26")}, Sources: []netip.Addr{netip.MustParseAddr("10.244.1.1")},
		VTEP: plan.MAC{2, 0, 0, 0, 0, 1}, Refuses: map[plan.Transport]string{plan.IPIP: "no tcx"},
		Peers: map[plan.Transport]int{plan.VXLAN: 2}, Exceptions: []Exception{{Node: "z", Reason: "late"}, {Node: "b", Transport: plan.VXLAN, Reason: "why"}},
		Probes: []Probe{
			{Probe: plan.Probe{To: "c", ToUID: "uc", Family: plan.IPv4, Transport: plan.VXLAN, Reachable: true}},
			{Probe: plan.Probe{To: "b", ToUID: "ub", Family: plan.IPv4, Transport: plan.IPIP, Fault: plan.Protocol4Blocked, Reason: "no answer"}, Since: time.Unix(500, 7)},
			{Probe: plan.Probe{To: "d", ToUID: "ud", Family: plan.IPv4, Transport: plan.VXLAN, Reachable: true, Fault: plan.MTUBlackHole, PathMTU: 1400, Reason: "narrow"}},
		},
		Faults: map[plan.Fault]string{plan.ReversePathFilter: "strict", plan.ProberFault: "all"},
		Pods:   4, Programmed: Condition{Status: true, Reason: "Set", Message: "m"}, AddressesUsable: Condition{Reason: "Overlap", Message: "o"},
	}
}

func TestBuildStatus(t *testing.T) {
	first := metav1.NewTime(time.Unix(1000, 5))
	got := buildStatus(exampleStatus(), &v1alpha1.NodeNetworkStatus{NodeUID: "of an earlier Node", ReadySince: &metav1.Time{}}, first)
	at := metav1.Unix(1000, 0)
	want := &v1alpha1.NodeNetworkStatus{
		NodeUID: "ua", ReadySince: &at, AgentVersion: "v1", Addresses: []string{"192.0.2.1"}, CIDRs: []string{"10.244.1.0/26"},
		Sources: []string{"10.244.1.1"}, VTEP: "02:00:00:00:00:01",
		Transports: []v1alpha1.TransportStatus{{Name: "direct", Supported: true}, {Name: "ipip", Reason: "no tcx"}, {Name: "vxlan", Supported: true}},
		Peers:      map[string]int32{"vxlan": 2},
		Exceptions: []v1alpha1.PeerException{{Node: "b", Transport: "vxlan", Reason: "why"}, {Node: "z", Reason: "late"}},
		Probes: []v1alpha1.ProbeResult{
			{Node: "b", NodeUID: "ub", Family: "IPv4", Transport: "ipip", Fault: "Protocol4Blocked", Reason: "no answer", Since: metav1.Unix(500, 0)},
			{Node: "c", NodeUID: "uc", Family: "IPv4", Transport: "vxlan", Reachable: true, Since: at},
			{Node: "d", NodeUID: "ud", Family: "IPv4", Transport: "vxlan", Reachable: true, Fault: "MTUBlackHole", PathMTU: 1400, Reason: "narrow", Since: at},
		},
		Faults: []v1alpha1.NodeFault{{Fault: "ProberFault", Message: "all"}, {Fault: "ReversePathFilter", Message: "strict"}},
		Pods:   4,
		Conditions: []metav1.Condition{
			{Type: "Programmed", Status: "True", Reason: "Set", Message: "m", LastTransitionTime: at},
			{Type: "AddressesUsable", Status: "False", Reason: "Overlap", Message: "o", LastTransitionTime: at},
		},
	}
	if !equality.Semantic.DeepEqual(got, want) {
		t.Fatalf("got\n%+v\nwant\n%+v", got, want)
	}
	later := metav1.NewTime(time.Unix(2000, 0))
	if again := buildStatus(exampleStatus(), got, later); !equality.Semantic.DeepEqual(again, got) {
		t.Errorf("the same said again differs:\n%+v\nfrom\n%+v", again, got)
	}
	failed := exampleStatus()
	failed.Programmed = Condition{}
	again := buildStatus(failed, got, later)
	if again.ReadySince == nil || again.Conditions[0].Status != "False" || !again.Conditions[0].LastTransitionTime.Equal(&later) || again.Conditions[0].Reason == "" {
		t.Errorf("after a failure: ready since %v, condition %+v", again.ReadySince, again.Conditions[0])
	}
	broken := exampleStatus()
	broken.Conflist = Condition{Reason: "ConflistBroken", Message: "line 3"}
	if c := meta.FindStatusCondition(buildStatus(broken, got, later).Conditions, v1alpha1.ConditionConflistInstalled); c == nil || c.Status != "False" || c.Message != "line 3" {
		t.Errorf("a broken conflist: %+v", c)
	}
	flipped := exampleStatus()
	flipped.Probes[0].Reachable = false
	if again := buildStatus(flipped, got, later); !again.Probes[1].Since.Equal(&later) {
		t.Errorf("a flip kept the time %v", again.Probes[1].Since)
	}
	if got := buildStatus(NodeStatus{NodeUID: "ua"}, &v1alpha1.NodeNetworkStatus{}, later); got.ReadySince != nil || got.VTEP != "" || !got.Transports[0].Supported {
		t.Errorf("an empty status became %+v", got)
	}
}

func TestExceptionsAreBounded(t *testing.T) {
	var in []Exception
	for i := range 100 {
		in = append(in, Exception{Node: fmt.Sprintf("n%02d", 99-i)})
	}
	out := exceptions(in)
	if len(out) != v1alpha1.MaxExceptions || out[0].Node != "n00" || out[31].Node != "n31" {
		t.Errorf("%d exceptions, from %s to %s", len(out), out[0].Node, out[len(out)-1].Node)
	}
	if in[0].Node != "n99" {
		t.Error("the caller's list was sorted")
	}
}

func TestCountsAloneAreWrittenSeldom(t *testing.T) {
	old := buildStatus(exampleStatus(), &v1alpha1.NodeNetworkStatus{}, metav1.Now())
	counts, exceptions, probes, left := old.DeepCopy(), old.DeepCopy(), old.DeepCopy(), old.DeepCopy()
	counts.Pods, counts.Peers = 9, map[string]int32{"vxlan": 5000}
	exceptions.Exceptions = exceptions.Exceptions[:1]
	left.Peers = map[string]int32{"ipip": 2}
	probes.Probes[0].Reachable = true
	for name, tc := range map[string]struct {
		want *v1alpha1.NodeNetworkStatus
		ago  time.Duration
		is   bool
	}{
		"nothing changed":                {old.DeepCopy(), time.Hour, false},
		"counts, a moment after a write": {counts, time.Second, false},
		"counts, in a large cluster":     {counts, time.Minute, false},
		"counts, long after a write":     {counts, 5000 * countsPerPeer, true},
		"exceptions, a moment after":     {exceptions, time.Second, false},
		"exceptions, in a small cluster": {exceptions, countsLeast, true},
		"a flip, a moment after a write": {probes, time.Second, true},
		"a transport is left":            {left, time.Second, true},
	} {
		p := published{at: time.Now().Add(-tc.ago)}
		if got := p.worthWriting(old, tc.want); got != tc.is {
			t.Errorf("%s: worth a write: %v", name, got)
		}
	}
}

func TestLongMessagesAreCut(t *testing.T) {
	said := exampleStatus()
	said.Programmed.Message = strings.Repeat("route to 10.244.0.0/26: ö; ", 5000)
	got := buildStatus(said, &v1alpha1.NodeNetworkStatus{}, metav1.Now()).Conditions[0].Message
	if len(got) > mostMessage || !utf8.ValidString(got) || !strings.HasSuffix(got, "(the agent's log has all of it)") {
		t.Errorf("%d bytes: %s", len(got), got)
	}
}

package controller

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"ropeway.dev/ropeway/api/v1alpha1"
	"ropeway.dev/ropeway/internal/kube"
	"ropeway.dev/ropeway/internal/plan"
)

func network(cidrs ...string) *v1alpha1.ClusterNetwork {
	cn := &v1alpha1.ClusterNetwork{Spec: v1alpha1.ClusterNetworkSpec{PodCIDRs: cidrs}}
	cn.Name, cn.Generation = v1alpha1.ClusterNetworkName, 3
	return cn
}

// inForce adds what was accepted before.
func inForce(cn *v1alpha1.ClusterNetwork, source v1alpha1.AddressSource, cidrs ...string) *v1alpha1.ClusterNetwork {
	spec := &v1alpha1.ClusterNetworkSpec{PodCIDRs: cidrs, AddressSource: source}
	v1alpha1.Defaults(spec)
	cn.Status.InForce = spec
	return cn
}

func node(name, address string, cidrs ...string) corev1.Node {
	n := corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name, UID: types.UID("u" + name)}, Spec: corev1.NodeSpec{PodCIDRs: cidrs}}
	n.Status.Addresses = []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: address}}
	return n
}

func block(cidr, node string) v1alpha1.AddressBlock {
	b := v1alpha1.AddressBlock{Spec: v1alpha1.AddressBlockSpec{CIDR: cidr, Node: node, NodeUID: "u" + node, Generation: 1}}
	b.Name = v1alpha1.BlockName(netip.MustParsePrefix(cidr))
	return b
}

func services(cidr string) []serviceRange {
	return serviceRanges([]networkingv1.ServiceCIDR{{ObjectMeta: metav1.ObjectMeta{Name: "kubernetes"}, Spec: networkingv1.ServiceCIDRSpec{CIDRs: []string{cidr}}}})
}

func TestJudge(t *testing.T) {
	blocks, nodeCIDR := v1alpha1.AddressesFromBlocks, v1alpha1.AddressesFromNodeCIDR
	nodes := []corev1.Node{node("a", "192.0.2.1", "10.244.1.0/24"), node("b", "fd00:99::2")}
	for name, tc := range map[string]struct {
		cn              *v1alpha1.ClusterNetwork
		services        string
		blocks          []v1alpha1.AddressBlock
		reason, message string
	}{
		"good":                               {network("10.244.0.0/16"), "172.21.0.0/16", nil, reasonAccepted, "pods get addresses of 10.244.0.0/16 (Blocks); transports: ipip, vxlan"},
		"what admission let through":         {network("169.254.0.0/17"), "", nil, reasonInvalid, "spec.podCIDRs[0]: Invalid value"},
		"the Services' range inside":         {network("10.244.0.0/16"), "10.244.128.0/20", nil, reasonOverlapsServices, "spec.podCIDRs[0]: 10.244.0.0/16 overlaps the Services' range 10.244.128.0/20 (ServiceCIDR kubernetes): give pods"},
		"inside the Services' range":         {network("10.9.0.0/16", "10.244.0.0/16"), "10.240.0.0/12", nil, reasonOverlapsServices, "spec.podCIDRs[1]: 10.244.0.0/16 overlaps"},
		"a node's address inside":            {network("192.0.0.0/16"), "", nil, reasonOverlapsNodes, "spec.podCIDRs[0]: 192.0.0.0/16 contains 192.0.2.1, the address of node a"},
		"a node's IPv6 address inside":       {network("10.244.0.0/16", "fd00:99::/48"), "", nil, reasonOverlapsNodes, "spec.podCIDRs[1]: fd00:99::/48 contains fd00:99::2, the address of node b"},
		"a range more":                       {inForce(network("10.244.0.0/16", "10.245.0.0/16"), blocks, "10.244.0.0/16"), "", []v1alpha1.AddressBlock{block("10.244.1.0/26", "a")}, reasonAccepted, "10.245.0.0/16"},
		"a range less, not in use":           {inForce(network("10.244.0.0/16"), blocks, "10.244.0.0/16", "10.245.0.0/16"), "", []v1alpha1.AddressBlock{block("10.244.1.0/26", "a")}, reasonAccepted, ""},
		"a range less, in use":               {inForce(network("10.245.0.0/16"), blocks, "10.244.0.0/16"), "", []v1alpha1.AddressBlock{block("10.244.1.0/26", "a")}, reasonInUse, "leaves out 10.244.1.0/26, which node a holds"},
		"a range more, in use by others":     {inForce(network("10.244.0.0/15"), blocks, "10.244.0.0/16"), "", []v1alpha1.AddressBlock{block("10.245.1.7/32", "a")}, reasonInUse, "takes in 10.245.1.7"},
		"a smaller range":                    {inForce(network("10.244.0.0/24"), blocks, "10.244.0.0/16"), "", []v1alpha1.AddressBlock{block("10.244.1.0/26", "a")}, reasonInUse, "what was in force before stays in force"},
		"a lease that was outside before":    {inForce(network("10.245.0.0/16"), blocks, "10.245.0.0/16"), "", []v1alpha1.AddressBlock{block("10.244.1.0/26", "a")}, reasonAccepted, ""},
		"a node's range less":                {inForce(network("10.245.0.0/16"), nodeCIDR, "10.244.0.0/16"), "", nil, reasonInUse, "leaves out 10.244.1.0/24, the podCIDR of node a"},
		"a node's range less, but of blocks": {inForce(network("10.245.0.0/16"), blocks, "10.244.0.0/16"), "", nil, reasonAccepted, ""},
	} {
		o := &observed{objects: &kube.Objects{Network: tc.cn, Nodes: nodes, Blocks: tc.blocks}}
		if tc.services != "" {
			o.services = services(tc.services)
		}
		before := tc.cn.DeepCopy()
		j := judge(o)
		if j.reason != tc.reason || !strings.Contains(j.message, tc.message) || j.accepted != (tc.reason == reasonAccepted) {
			t.Errorf("%s: %+v; want %s, %q", name, j, tc.reason, tc.message)
		}
		if !reflect.DeepEqual(before, tc.cn) {
			t.Errorf("%s: the cache's object was changed", name)
		}
		j.apply(tc.cn)
		switch stays := before.Status.InForce; {
		case j.accepted && !reflect.DeepEqual(tc.cn.Status.InForce.PodCIDRs, tc.cn.Spec.PodCIDRs):
			t.Errorf("%s: in force is %+v", name, tc.cn.Status.InForce)
		case !j.accepted && !reflect.DeepEqual(tc.cn.Status.InForce, stays):
			t.Errorf("%s: what was in force became %+v", name, tc.cn.Status.InForce)
		}
		cond := meta.FindStatusCondition(tc.cn.Status.Conditions, v1alpha1.ConditionAccepted)
		if cond == nil || (cond.Status == "True") != j.accepted || cond.ObservedGeneration != 3 || tc.cn.Status.ObservedGeneration != 3 {
			t.Errorf("%s: condition %+v", name, cond)
		}
	}
	if j := judge(&observed{objects: &kube.Objects{}}); j.accepted || j.reason != "" {
		t.Errorf("without a ClusterNetwork: %+v", j)
	}
}

func TestNetworkConditions(t *testing.T) {
	since := metav1.Unix(1, 0)
	o := &observed{objects: &kube.Objects{
		Network: network("10.244.0.0/16"),
		Nodes:   []corev1.Node{node("a", "192.0.2.1"), node("b", "192.0.2.2")},
		Blocks:  []v1alpha1.AddressBlock{block("10.244.1.0/26", "a"), block("10.244.2.0/26", "b")},
	}}
	speak := func(name, cidr string, probes ...v1alpha1.ProbeResult) *v1alpha1.NodeNetwork {
		return &v1alpha1.NodeNetwork{ObjectMeta: metav1.ObjectMeta{Name: name}, Status: v1alpha1.NodeNetworkStatus{
			NodeUID: "u" + name, ReadySince: &since, Sources: []string{cidr}, Probes: probes,
		}}
	}
	reached := func(name string) v1alpha1.ProbeResult {
		return v1alpha1.ProbeResult{Node: name, NodeUID: "u" + name, Family: "IPv4", Transport: "ipip", Reachable: true}
	}
	o.objects.NodeNetworks = []*v1alpha1.NodeNetwork{speak("a", "10.244.1.1", reached("b")), speak("b", "10.244.2.1")}
	o.policies = policies{known: true, count: 2, first: "default/deny"}
	check := func(what, reachable, reason, message, enforced string, proven int32) {
		t.Helper()
		o.reason(judge(o))
		cn := o.objects.Network.DeepCopy()
		setReachable(cn, o)
		setPolicyEnforced(cn, o.policies)
		c := meta.FindStatusCondition(cn.Status.Conditions, v1alpha1.ConditionNodesReachable)
		if string(c.Status) != reachable || c.Reason != reason || !strings.Contains(c.Message, message) {
			t.Errorf("%s: %+v", what, c)
		}
		p := meta.FindStatusCondition(cn.Status.Conditions, v1alpha1.ConditionPolicyEnforced)
		if p == nil && enforced != "" || p != nil && string(p.Status) != enforced {
			t.Errorf("%s: policies %+v, want %s", what, p, enforced)
		}
		if cn.Status.Nodes != 2 || cn.Status.ReachableNodes != proven {
			t.Errorf("%s: %d of %d", what, cn.Status.ReachableNodes, cn.Status.Nodes)
		}
	}
	check("one is not proven", "False", "NotProven", "1 of 2 nodes are proven reachable; a: no peer has reached node a", "False", 1)
	o.objects.NodeNetworks[1].Status.Probes = []v1alpha1.ProbeResult{reached("a")}
	o.policies = policies{known: true}
	check("all are", "True", "AllProven", "2 of 2", "True", 2)
	o.policies = policies{}
	o.objects.Nodes[1].Spec.PodCIDRs = []string{"10.9.0.0/24"}
	o.objects.Network.Spec.AddressSource = v1alpha1.AddressesFromNodeCIDR
	o.objects.Blocks = nil
	o.objects.Nodes[0].Spec.PodCIDRs = []string{"10.244.1.0/24"}
	check("a podCIDR outside", "False", "NotProven", "10.9.0.0/24", "", 1)
	o.objects.Network.Spec.PodCIDRs = []string{"127.0.0.0/16"}
	check("nothing in force", "False", "NoNetwork", "no pod network is in force: ClusterNetwork default was not accepted", "", 0)
}

func TestDecide(t *testing.T) {
	now := time.Unix(10000, 0)
	ago := func(d time.Duration) nodeMemory { return nodeMemory{wrote: now.Add(-d)} }
	other, gone := "RouteCreated", ""
	unavailable := func(reason, message string) *corev1.NodeCondition {
		return &corev1.NodeCondition{Type: corev1.NodeNetworkUnavailable, Status: corev1.ConditionTrue, Reason: reason, Message: message}
	}
	available := func(reason string) *corev1.NodeCondition {
		return &corev1.NodeCondition{Type: corev1.NodeNetworkUnavailable, Status: corev1.ConditionFalse, Reason: reason, Message: "old"}
	}
	for name, tc := range map[string]struct {
		cond       *corev1.NodeCondition
		writer     string
		proven     bool
		memory     nodeMemory
		othersGone bool
		want       wanted
	}{
		"a new node":                               {want: wanted{status: corev1.ConditionTrue, message: "m"}},
		"a new node, proven at once":               {proven: true, want: wanted{status: corev1.ConditionFalse, message: "m"}},
		"not proven yet, said":                     {cond: unavailable(kube.ReasonNotProven, "m")},
		"not proven yet, another reason":           {cond: unavailable(kube.ReasonNotProven, "old"), memory: ago(time.Minute), want: wanted{status: corev1.ConditionTrue, message: "m"}},
		"not proven yet, another reason, too soon": {cond: unavailable(kube.ReasonNotProven, "old"), memory: ago(time.Second)},
		"proven now":                               {cond: unavailable(kube.ReasonNotProven, "m"), proven: true, want: wanted{status: corev1.ConditionFalse, message: "m"}},
		"proven, said":                             {cond: available(kube.ReasonProven), proven: true},
		"proven once, and not now":                 {cond: available(kube.ReasonProven)},
		"nothing reaches it any more":              {cond: available(kube.ReasonProven), memory: nodeMemory{lost: now.Add(-lostFor)}, want: wanted{status: corev1.ConditionTrue, message: "m"}},
		"nothing reaches it for a moment":          {cond: available(kube.ReasonProven), memory: nodeMemory{lost: now.Add(-lostFor / 2)}},
		"left over by another, not proven":         {cond: available("CalicoIsUp")},
		"left over by another, proven":             {cond: available("CalicoIsUp"), proven: true, want: wanted{status: corev1.ConditionFalse, message: "m"}},
		"unavailable by another, proven":           {cond: unavailable(other, ""), proven: true, want: wanted{status: corev1.ConditionFalse, message: "m"}},
		"another's, a moment after ours":           {cond: unavailable(other, ""), proven: true, memory: ago(time.Second)},
		"another's, after ours":                    {cond: unavailable(other, ""), proven: true, memory: ago(time.Minute), want: wanted{writer: &other}},
		"left to the other":                        {cond: unavailable(other, ""), writer: other, proven: true, memory: ago(time.Minute)},
		"left to the other by a former leader":     {cond: unavailable(other, ""), writer: other, proven: true},
		"the other gives another reason":           {cond: unavailable(other, ""), writer: "Older", want: wanted{writer: &other}},
		"the other's word is gone":                 {writer: other, proven: true, want: wanted{status: corev1.ConditionFalse, message: "m", writer: &gone}},
		"the other has stopped":                    {cond: unavailable(other, ""), writer: other, proven: true, othersGone: true, want: wanted{status: corev1.ConditionFalse, message: "m", writer: &gone}},
		"the other has stopped, not proven":        {cond: unavailable(other, ""), writer: other, othersGone: true, want: wanted{status: corev1.ConditionTrue, message: "m", writer: &gone}},
		"it had made the node available":           {cond: available("RouteCreated"), writer: "RouteCreated", othersGone: true},
		"that one was a pod network":               {cond: unavailable("CalicoIsDown", ""), writer: "CalicoIsDown", proven: true, othersGone: true},
	} {
		n := node("a", "192.0.2.1")
		if tc.cond != nil {
			n.Status.Conditions = []corev1.NodeCondition{*tc.cond}
		}
		if tc.writer != "" {
			n.Annotations = map[string]string{kube.WriterAnnotation: tc.writer}
		}
		if got := decide(&n, tc.proven, "m", tc.memory, tc.othersGone, now); !reflect.DeepEqual(got, tc.want) {
			t.Errorf("%s: %+v, want %+v", name, got, tc.want)
		}
	}
}

// TestLostNodes: a finding of others makes a node unavailable, a lack of findings
// does not, nor does what befalls more than half of the nodes at once.
func TestLostNodes(t *testing.T) {
	nodes := []plan.Node{{Name: "a"}, {Name: "b"}, {Name: "c"}, {Name: "d", Silent: true}}
	verdicts := map[string]plan.Verdict{"a": {Lost: true}, "b": {Reachable: true}, "c": {}, "d": {Lost: true}}
	if got := lostNodes(nodes, verdicts); !reflect.DeepEqual(got, map[string]bool{"a": true}) {
		t.Errorf("lost: %v, want a", got)
	}
	verdicts["b"], verdicts["c"] = plan.Verdict{Lost: true}, plan.Verdict{Lost: true}
	if got := lostNodes(nodes, verdicts); len(got) != 0 {
		t.Errorf("lost: %v, although nothing is left", got)
	}
	// Machines that are gone are no place for pods either.
	nodes = append(nodes, plan.Node{Name: "e", Silent: true}, plan.Node{Name: "f", Silent: true})
	if got := lostNodes(nodes, verdicts); len(got) != 0 {
		t.Errorf("lost: %v, which are all that are heard of", got)
	}
	var m nodeMemory
	start := time.Unix(10000, 0)
	m.note(true, start)
	m.note(true, start.Add(time.Minute))
	if m.lost != start {
		t.Errorf("lost since %v, want %v", m.lost, start)
	}
	if m.note(false, start); !m.lost.IsZero() {
		t.Error("still lost")
	}
}

// TestTwoWritersDoNotFlipFlop plays a foreign writer that repeats itself
// against decide: there is one write of ours at most.
func TestTwoWritersDoNotFlipFlop(t *testing.T) {
	now := time.Unix(10000, 0)
	n, m, writes := node("a", "192.0.2.1"), nodeMemory{}, 0
	for range 100 {
		n.Status.Conditions = []corev1.NodeCondition{{Type: corev1.NodeNetworkUnavailable, Status: corev1.ConditionTrue, Reason: "NoRouteCreated"}}
		w := decide(&n, true, "m", m, false, now)
		if w.status != "" {
			writes++
			m.wrote = now
		}
		if w.writer != nil {
			n.Annotations = map[string]string{kube.WriterAnnotation: *w.writer}
		}
		now = now.Add(10 * time.Second)
	}
	if writes != 1 || n.Annotations[kube.WriterAnnotation] != "NoRouteCreated" {
		t.Errorf("%d writes, annotation %q", writes, n.Annotations[kube.WriterAnnotation])
	}
}

func TestNodePatch(t *testing.T) {
	n := node("a", "192.0.2.1")
	gone := ""
	out, err := nodePatch(&n, wanted{status: corev1.ConditionFalse, message: "m", writer: &gone}, metav1.Unix(5, 0))
	if err != nil {
		t.Fatal(err)
	}
	var got map[string]any
	if err := json.Unmarshal(out, &got); err != nil {
		t.Fatal(err)
	}
	want := map[string]any{
		"metadata": map[string]any{"uid": "ua", "annotations": map[string]any{kube.WriterAnnotation: nil}},
		"status": map[string]any{"conditions": []any{map[string]any{
			"type": "NetworkUnavailable", "status": "False", "reason": "RopewayProven", "message": "m",
			"lastHeartbeatTime": "1970-01-01T00:00:05Z", "lastTransitionTime": "1970-01-01T00:00:05Z",
		}}},
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("%s", out)
	}
}

func TestOverdue(t *testing.T) {
	now := time.Unix(10000, 0)
	m := newMemory()
	full := func(nodes ...corev1.Node) *kube.Objects {
		return &kube.Objects{
			Nodes: nodes, Blocks: []v1alpha1.AddressBlock{block("10.244.1.0/26", "a"), block("10.244.2.0/26", "b"), block("10.244.3.0/26", "c")},
		}
	}
	a, b, c := node("a", "192.0.2.1"), node("b", "192.0.2.2"), node("c", "192.0.2.3")
	step := func(what string, after time.Duration, o *kube.Objects, want ...string) {
		t.Helper()
		now = now.Add(after)
		if got := overdue(o, m, time.Minute, now); !slices.Equal(got, want) {
			t.Errorf("%s: %v, want %v", what, got, want)
		}
	}
	step("all are there", 0, full(a, b, c))
	step("two are missing", time.Hour, full(a))
	step("one comes back", 59*time.Second, full(a, b))
	step("the other is overdue", time.Second, full(a, b), "c")
	step("the first goes again and starts anew", time.Second, full(a, c))
	step("and is not overdue yet", 59*time.Second, full(a, c))
	step("an empty cache says nothing", time.Hour, full())
	step("and nothing is remembered of before", time.Second, full(a, c))
	step("now it is overdue", time.Minute, full(a, c), "b")
	step("nothing is left of it", time.Minute, &kube.Objects{Nodes: []corev1.Node{a, c}})
	if len(m.missing) != 0 {
		t.Errorf("still remembered: %v", m.missing)
	}
}

func TestConfigSaysWhatIsMissing(t *testing.T) {
	var cfg Config
	cfg.Defaults()
	err := cfg.Validate()
	if err == nil || !strings.Contains(err.Error(), "POD_NAME") || !strings.Contains(err.Error(), "--kubeconfig") {
		t.Errorf("%v", err)
	}
	if cfg.LeaseDuration != kube.ControllerTimeout || cfg.Grace != time.Minute || cfg.Namespace != "kube-system" {
		t.Errorf("%+v", cfg)
	}
}

// TestProgressAloneIsToldSeldom: in a large cluster each write of the
// ClusterNetwork is thousands of messages.
func TestProgressAloneIsToldSeldom(t *testing.T) {
	status := func(nodes, reachable int32, state metav1.ConditionStatus) *v1alpha1.ClusterNetworkStatus {
		return &v1alpha1.ClusterNetworkStatus{Nodes: nodes, ReachableNodes: reachable, Conditions: []metav1.Condition{
			{Type: v1alpha1.ConditionNodesReachable, Status: state, Reason: "r", Message: fmt.Sprint(reachable, " nodes")}}}
	}
	now := time.Unix(1000, 0)
	c := &controller{now: func() time.Time { return now }}
	for name, tc := range map[string]struct {
		before, next *v1alpha1.ClusterNetworkStatus
		ago, rest    time.Duration
	}{
		"progress, a moment after": {status(5000, 1, "False"), status(5000, 2, "False"), time.Second, 9 * time.Second},
		"progress, later":          {status(5000, 1, "False"), status(5000, 2, "False"), 10 * time.Second, 0},
		"in a small cluster":       {status(5, 1, "False"), status(5, 2, "False"), time.Second, 0},
		"the end of it":            {status(5000, 1, "False"), status(5000, 5000, "True"), time.Second, 0},
	} {
		if got := c.tooSoon(&memory{toldAt: now.Add(-tc.ago)}, tc.before, tc.next); got != tc.rest {
			t.Errorf("%s: waits %s, want %s", name, got, tc.rest)
		}
	}
}

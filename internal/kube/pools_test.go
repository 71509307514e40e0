package kube

import (
	"bytes"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"

	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/yaml"

	"ropeway.dev/ropeway/api/spiderpool/v2beta1"
	"ropeway.dev/ropeway/api/v1alpha1"
	"ropeway.dev/ropeway/internal/ipam"
	"ropeway.dev/ropeway/internal/ipam/pool"
	"ropeway.dev/ropeway/internal/plan/cidr"
)

// poolCase is a spec as a person writes it. refused is a part of what the API
// server answers, "" when it accepts; invalid is a part of what is said of the
// object once it is there.
type poolCase struct{ name, spec, refused, invalid string }

// TestSpiderPoolSpecs holds the CRD's rules and our reading together: whatever
// the API server lets through is read without harm, and what it refuses would
// be refused by us too, where the CRD is Spiderpool's own.
func TestSpiderPoolSpecs(t *testing.T) {
	checkPools(t, v2beta1.GroupVersion.WithKind("SpiderIPPool").Kind, []poolCase{
		{name: "the smallest", spec: `subnet: 10.244.0.0/16`},
		{name: "everything", spec: `{ipVersion: 4, subnet: 10.244.0.0/16, ips: [10.244.0.10-10.244.0.20, 10.244.0.30], excludeIPs: [10.244.0.11], gateway: 10.244.0.1,
			routes: [{dst: 10.0.0.0/8, gw: 10.244.0.1}], podAffinity: {matchLabels: {app: a}}, namespaceName: [default], namespaceAffinity: {matchLabels: {a: b}},
			nodeName: [a], nodeAffinity: {matchExpressions: [{key: zone, operator: In, values: [a]}]}, multusName: [kube-system/a], default: true, disable: true}`},
		{name: "IPv6 of any mask", spec: `{subnet: "fd00::/20", ips: ["fd00::1-fd00:fff::ffff"]}`},
		{name: "a whole /8", spec: `{subnet: 10.0.0.0/8, ips: [10.0.0.1-10.255.255.254]}`},
		{name: "gateway in ips and excluded", spec: `{subnet: 10.244.0.0/16, ips: [10.244.0.1-10.244.0.9], excludeIPs: [10.244.0.1], gateway: 10.244.0.1}`},

		{name: "no subnet", spec: `ips: [10.244.0.1]`, refused: "spec.subnet", invalid: "spec.subnet"},
		{name: "subnet with bits behind", spec: `subnet: 10.244.1.0/16`, refused: "no bits set behind the prefix", invalid: "spec.subnet"},
		{name: "subnet that is none", spec: `subnet: pods`, refused: "must be a CIDR", invalid: "spec.subnet"},
		{name: "the wrong version", spec: `{ipVersion: 6, subnet: 10.244.0.0/16}`, refused: "is not the family of the subnet", invalid: "spec.ipVersion"},
		{name: "an unknown version", spec: `{ipVersion: 5, subnet: 10.244.0.0/16}`, refused: "spec.ipVersion", invalid: "spec.ipVersion"},
		{name: "CIDR in ips", spec: `{subnet: 10.244.0.0/16, ips: [10.244.0.0/24]}`, refused: "spec.ips[0]", invalid: "spec.ips[0]"},
		{name: "a range with spaces", spec: `{subnet: 10.244.0.0/16, ips: ["10.244.0.1 - 10.244.0.9"]}`, refused: "spec.ips[0]", invalid: "spec.ips[0]"},
		{name: "a range of three", spec: `{subnet: 10.244.0.0/16, ips: [10.244.0.1-10.244.0.2-10.244.0.3]}`, refused: "spec.ips[0]", invalid: "spec.ips[0]"},
		{name: "reversed", spec: `{subnet: 10.244.0.0/16, ips: [10.244.0.9-10.244.0.1]}`, invalid: "spec.ips[0]: \"10.244.0.9-10.244.0.1\" is reversed"},
		{name: "mixed families", spec: `{subnet: 10.244.0.0/16, ips: ["10.244.0.9-fd00::1"]}`, invalid: "mixes address families"},
		{name: "outside the subnet", spec: `{subnet: 10.244.0.0/16, ips: [10.245.0.1]}`, invalid: "spec.ips[0]: 10.245.0.1 is not inside the subnet"},
		{name: "stated twice", spec: `{subnet: 10.244.0.0/16, ips: [10.244.0.1-10.244.0.9, 10.244.0.9]}`, invalid: "is stated twice"},
		{name: "gateway in ips", spec: `{subnet: 10.244.0.0/16, ips: [10.244.0.1], gateway: 10.244.0.1}`, refused: "put it into excludeIPs too", invalid: "spec.gateway"},
		{name: "gateway inside a range", spec: `{subnet: 10.244.0.0/16, ips: [10.244.0.1-10.244.0.9], gateway: 10.244.0.3}`, invalid: "spec.gateway: 10.244.0.3 is among the addresses"},
		{name: "gateway outside", spec: `{subnet: 10.244.0.0/16, gateway: 10.245.0.1}`, refused: "is not inside the subnet", invalid: "spec.gateway"},
		{name: "gateway that is none", spec: `{subnet: 10.244.0.0/16, gateway: router}`, refused: "spec.gateway", invalid: "spec.gateway"},
		{name: "the default route", spec: `{subnet: 10.244.0.0/16, routes: [{dst: 0.0.0.0/0, gw: 10.244.0.1}]}`, refused: "the default route is the pool's gateway", invalid: "spec.routes[0].dst"},
		{name: "a route twice", spec: `{subnet: 10.244.0.0/16, routes: [{dst: 10.0.0.0/8, gw: 10.244.0.1}, {dst: 10.0.0.0/8, gw: 10.244.0.2}]}`, refused: "Duplicate value", invalid: "spec.routes[1].dst"},
		{name: "a route by elsewhere", spec: `{subnet: 10.244.0.0/16, routes: [{dst: 10.0.0.0/8, gw: 10.245.0.1}]}`, refused: "not inside the subnet", invalid: "spec.routes[0].gw"},
		{name: "a route of two families", spec: `{subnet: 10.244.0.0/16, routes: [{dst: "fd00::/8", gw: 10.244.0.1}]}`, refused: "is of another family", invalid: "spec.routes[0].gw"},
		{name: "an empty podAffinity", spec: `{subnet: 10.244.0.0/16, podAffinity: {}}`, refused: "selects nothing in particular"},
		{name: "an unknown operator", spec: `{subnet: 10.244.0.0/16, podAffinity: {matchExpressions: [{key: a, operator: Like, values: [b]}]}}`, invalid: "spec.podAffinity.matchExpressions[0].operator"},
		{name: "two selectors that are wrong", spec: `{subnet: 10.244.0.0/16, podAffinity: {matchExpressions: [{key: a, operator: In}]}, nodeAffinity: {matchExpressions: [{key: a, operator: In}]},
			namespaceAffinity: {matchExpressions: [{key: a, operator: In}]}}`, invalid: "spec.nodeAffinity.matchExpressions[0].values"},
		{name: "In without values", spec: `{subnet: 10.244.0.0/16, nodeAffinity: {matchExpressions: [{key: a, operator: In}]}}`, invalid: "spec.nodeAffinity.matchExpressions[0].values"},
		{name: "too many excludes", spec: `{subnet: 10.0.0.0/8, excludeIPs: [` + strings.Repeat("10.0.0.1, ", 513) + `]}`, refused: "spec.excludeIPs: Too many"},
	})
}

func TestAddressPoolSpecs(t *testing.T) {
	checkPools(t, "AddressPool", []poolCase{
		{name: "the smallest", spec: `{subnets: [10.244.0.0/16], ranges: [10.244.0.10]}`},
		{name: "both families", spec: `{subnets: [10.244.0.0/16, "fd00::/64"], ranges: [10.244.0.10-10.244.0.20, "fd00::10"], exclude: ["fd00::10"], gateways: [10.244.0.1, "fd00::1"], order: -3, default: true,
			nodeNames: [a], nodeSelector: {matchLabels: {a: b}}, namespaceNames: [default], namespaceSelector: {}, podSelector: {}, networks: [k8s-pod-network], routes: [{dst: 10.0.0.0/8, gw: 10.244.0.1}, {dst: "fd01::/16", gw: "fd00::1"}]}`},
		{name: "a route of two families", spec: `{subnets: [10.244.0.0/16, "fd00::/64"], ranges: [10.244.0.9], routes: [{dst: 10.0.0.0/8, gw: "fd00::1"}]}`, refused: "is of another family", invalid: "spec.routes[0].gw"},
		{name: "a default route", spec: `{subnets: [10.244.0.0/16], ranges: [10.244.0.9], routes: [{dst: 0.0.0.0/0, gw: 10.244.0.1}]}`, refused: "the default route is the pool's gateway", invalid: "spec.routes[0].dst"},
		{name: "a route by elsewhere", spec: `{subnets: [10.244.0.0/16], ranges: [10.244.0.9], routes: [{dst: 10.0.0.0/8, gw: 10.245.0.1}]}`, refused: "inside one of the subnets", invalid: "spec.routes[0].gw"},
		{name: "no ranges", spec: `subnets: [10.244.0.0/16]`, refused: "spec.ranges"},
		{name: "no subnets", spec: `ranges: [10.244.0.10]`, refused: "spec.subnets", invalid: "spec.subnets"},
		{name: "two subnets of a family", spec: `{subnets: [10.244.0.0/16, 10.245.0.0/16], ranges: [10.244.0.10]}`, refused: "two subnets of one family"},
		{name: "a CIDR as range", spec: `{subnets: [10.244.0.0/16], ranges: [10.244.0.0/24]}`, refused: "spec.ranges[0]", invalid: "spec.ranges[0]"},
		{name: "outside", spec: `{subnets: [10.244.0.0/16], ranges: [10.245.0.0]}`, invalid: "spec.ranges[0]: 10.245.0.0 is not inside"},
		{name: "reversed", spec: `{subnets: [10.244.0.0/16], ranges: [10.244.0.9-10.244.0.1]}`, invalid: "is reversed"},
		{name: "gateway elsewhere", spec: `{subnets: [10.244.0.0/16], ranges: [10.244.0.9], gateways: [10.245.0.1]}`, refused: "a gateway is in none of the subnets", invalid: "spec.gateways"},
		{name: "gateway given away", spec: `{subnets: [10.244.0.0/16], ranges: [10.244.0.1-10.244.0.9], gateways: [10.244.0.1]}`, invalid: "exclude it"},
	})
}

// TestReservedSpecs: what the API server lets through is reserved, or named.
func TestReservedSpecs(t *testing.T) {
	c := admin(t)
	for _, tc := range []struct{ name, ips, refused, reserved, wrong string }{
		{name: "addresses and ranges", ips: `[10.244.0.1, 10.244.0.4-10.244.0.5, "fd00::1"]`, reserved: "[10.244.0.1/32 10.244.0.4/31 fd00::1/128]"},
		{name: "reversed", ips: `[10.244.0.5-10.244.0.4]`, reserved: "[10.244.0.4/31]"},
		{name: "mixed families", ips: `["10.244.0.9-fd00::1", 10.244.0.1]`, reserved: "[10.244.0.1/32]", wrong: `spec.ips[0]: "10.244.0.9-fd00::1" mixes address families`},
		{name: "two that are wrong", ips: `[10.244.0.1, "fd00::1-10.244.0.9", "10.244.0.9-fd00::1"]`, reserved: "[10.244.0.1/32]", wrong: "spec.ips[1]"},
		{name: "a CIDR", ips: `[10.244.0.0/24]`, refused: "must be an address, or a range", reserved: "[]", wrong: "spec.ips[0]"},
		{name: "nothing", ips: `[]`, reserved: "[]"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			r := &v2beta1.SpiderReservedIP{ObjectMeta: metav1.ObjectMeta{Name: "reserved"}}
			if err := yaml.Unmarshal([]byte("ips: "+tc.ips), &r.Spec); err != nil {
				t.Fatal(err)
			}
			o := Objects{SpiderReservedIPs: []v2beta1.SpiderReservedIP{*r}}
			_, reserved := o.Pools()
			wrong := ""
			if m := o.Misreserved(); len(m) > 0 {
				wrong = m[0].Why
			}
			if fmt.Sprint(reserved) != tc.reserved || (wrong == "") != (tc.wrong == "") || !strings.Contains(wrong, tc.wrong) {
				t.Errorf("reserved are %v, and it is said %q; want %s and %q", reserved, wrong, tc.reserved, tc.wrong)
			}
			err := c.Create(t.Context(), r, client.DryRunAll)
			if (err == nil) != (tc.refused == "") || err != nil && !strings.Contains(err.Error(), tc.refused) {
				t.Errorf("the API server answered %v; want %q", err, tc.refused)
			}
		})
	}
}

// TestPoolMemory: a state of an object is read once, and every other state anew.
func TestPoolMemory(t *testing.T) {
	var m poolMemory
	p := v1alpha1.AddressPool{ObjectMeta: metav1.ObjectMeta{Name: "p", UID: "1", Generation: 1}, Spec: v1alpha1.AddressPoolSpec{Subnets: []string{"10.77.0.0/16"}, Ranges: []string{"10.77.0.1"}}}
	read := func() *pool.Pool {
		pools, _ := m.read(&Objects{AddressPools: []v1alpha1.AddressPool{p}})
		return pools[0]
	}
	first := read()
	p.Spec.Disable = true // a cache's object does not change so
	if again := read(); again != first {
		t.Error("the same state was read twice")
	}
	for what, change := range map[string]func(){
		"another spec": func() { p.Generation++ }, "another object": func() { p.UID += "1" }, "one that goes": func() { now := metav1.Now(); p.DeletionTimestamp = &now },
	} {
		before := read()
		if change(); read() == before {
			t.Errorf("%s was not read", what)
		}
	}
	if pools, _ := m.read(&Objects{}); len(pools) != 0 || len(m.last) != 0 {
		t.Errorf("of pools that are gone, %v and %v are left", pools, m.last)
	}
}

// FuzzPools: whatever objects say, what is accepted lies in the pod network and in
// nobody else's, and what is not says why.
func FuzzPools(f *testing.F) {
	f.Add("10.244.0.0/16", "10.244.0.10-10.244.0.20", "10.244.0.11", "10.244.0.1", "10.0.0.0/8", "a", "In", "10.244.0.12", int64(4))
	f.Add("fd00::/20", "fd00::1-fd00:fff::ffff", "fd00::2", "fd00::3", "::/0", "", "Like", "fd00::9-10.244.0.1", int64(6))
	f.Add("pods", "10.244.0.9-10.244.0.1", "-", "router", "", "k", "", "10.244.0.20-10.244.0.10", int64(5))
	podCIDRs := parsePrefixes([]string{"10.244.0.0/16", "fd00::/16"})
	f.Fuzz(func(t *testing.T, subnet, ips, exclude, gateway, route, key, op, reservedIPs string, version int64) {
		selector := &metav1.LabelSelector{MatchExpressions: []metav1.LabelSelectorRequirement{{Key: key, Operator: metav1.LabelSelectorOperator(op), Values: []string{ips}}}}
		o := Objects{
			SpiderIPPools: []v2beta1.SpiderIPPool{{ObjectMeta: metav1.ObjectMeta{Name: "p", UID: "1"}, Spec: v2beta1.IPPoolSpec{IPVersion: &version, Subnet: subnet,
				IPs: []string{ips, exclude}, ExcludeIPs: []string{exclude}, Gateway: &gateway, Routes: []v2beta1.Route{{Dst: route, Gw: gateway}}, PodAffinity: selector}},
				{ObjectMeta: metav1.ObjectMeta{Name: "q", UID: "2"}, Spec: v2beta1.IPPoolSpec{Subnet: subnet, IPs: []string{ips}}}},
			AddressPools: []v1alpha1.AddressPool{{ObjectMeta: metav1.ObjectMeta{Name: "p", UID: "3"}, Spec: v1alpha1.AddressPoolSpec{Subnets: []string{subnet, route},
				Ranges: []string{exclude, ips}, Exclude: []string{reservedIPs}, Gateways: []string{gateway},
				Routes: []v1alpha1.PoolRoute{{Dst: route, Gw: gateway}}, NodeSelector: selector}}},
			SpiderReservedIPs: []v2beta1.SpiderReservedIP{{Spec: v2beta1.ReservedIPSpec{IPs: []string{reservedIPs, ips}}}},
		}
		pools, reserved := o.Pools()
		if len(reserved) == 0 && len(o.Misreserved()) == 0 {
			t.Errorf("%q and %q reserve nothing, and nobody says so", reservedIPs, ips)
		}
		verdicts := pool.Judge(pools, podCIDRs)
		var given []netip.Prefix
		for _, p := range pools {
			v := verdicts[p.ID()]
			if v.Accepted != (v.Reason == pool.ReasonAccepted) || v.Message == "" {
				t.Errorf("%s: %+v", p.ID(), v)
			}
			for _, r := range p.Ranges {
				ours := cidr.CoveredByAny(podCIDRs, r)
				if v.Underlay {
					ours = !slices.ContainsFunc(podCIDRs, r.Overlaps)
				}
				if v.Accepted && (!ours || !cidr.CoveredByAny(p.Subnets, r) || slices.ContainsFunc(given, r.Overlaps)) {
					t.Errorf("%s gives %s, beside %v", p.ID(), r, given)
				}
			}
			if v.Accepted {
				given = append(given, p.Ranges...)
			}
			for _, r := range p.Routes {
				if _, inside := p.Within(r.Via); v.Accepted && (!inside || r.Dst.Addr().Is4() != r.Via.Is4()) {
					t.Errorf("%s has the route %+v", p.ID(), r)
				}
			}
			if v.Accepted && slices.ContainsFunc(p.Gateways, p.Contains) {
				t.Errorf("%s gives its gateway: %v", p.ID(), p.Gateways)
			}
		}
	})
}

func checkPools(t *testing.T, kind string, cases []poolCase) {
	c := admin(t)
	for _, tc := range cases {
		t.Run(tc.name, func(t *testing.T) {
			spec := tc.spec
			if !strings.HasPrefix(spec, "{") {
				spec = "{" + spec + "}"
			}
			var m map[string]any
			if err := yaml.Unmarshal([]byte(spec), &m); err != nil {
				t.Fatalf("the test's YAML: %v", err)
			}
			u := &unstructured.Unstructured{Object: map[string]any{"spec": m}}
			u.SetName("pool")
			gv := v1alpha1.GroupVersion
			if kind == pool.KindSpiderIPPool {
				gv = v2beta1.GroupVersion
			}
			u.SetGroupVersionKind(gv.WithKind(kind))
			read, ok := readPool(t, u)
			err := c.Create(t.Context(), u, client.DryRunAll)
			if (err == nil) != (tc.refused == "") || err != nil && !strings.Contains(err.Error(), tc.refused) {
				t.Errorf("the API server answered %v; want %q", err, tc.refused)
			}
			if ok && ((read.Invalid == "") != (tc.invalid == "") || !strings.Contains(read.Invalid, tc.invalid)) {
				t.Errorf("of the object it is said %q; want %q", read.Invalid, tc.invalid)
			}
		})
	}
}

// readPool reads an object as it would come from the API server.
func readPool(t *testing.T, u *unstructured.Unstructured) (*pool.Pool, bool) {
	t.Helper()
	if u.GetKind() == pool.KindAddressPool {
		var p v1alpha1.AddressPool
		err := runtime.DefaultUnstructuredConverter.FromUnstructured(u.Object, &p)
		return poolOf(&p), err == nil
	}
	var p v2beta1.SpiderIPPool
	err := runtime.DefaultUnstructuredConverter.FromUnstructured(u.Object, &p)
	return poolOfSpider(&p), err == nil
}

// TestScenarioPools: the reference scenario's file, unchanged.
func TestScenarioPools(t *testing.T) {
	data, err := os.ReadFile(filepath.Join("..", "..", "test", "scenario", "spiderippools.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	c := admin(t)
	var o Objects
	for _, doc := range bytes.Split(data, []byte("\n---\n")) {
		var p v2beta1.SpiderIPPool
		if err := yaml.UnmarshalStrict(doc, &p); err != nil {
			t.Fatal(err)
		}
		if err := c.Create(t.Context(), &p, client.DryRunAll); err != nil {
			t.Error(err)
		}
		o.SpiderIPPools = append(o.SpiderIPPools, p)
	}
	pools, _ := o.Pools()
	if len(pools) != 2 || pools[0].Size() != 253 || !pools[1].Default || pools[1].NodeNames[0] != "cn-chengdu.i-2vcxxs" || pools[0].Invalid+pools[1].Invalid != "" {
		t.Errorf("they were read as %+v %+v", pools[0], pools[1])
	}
}

// TestPodWords: a pod is known once it and its namespace are, by its UID, and
// with what it says of pools.
func TestPodWords(t *testing.T) {
	api := admin(t)
	create(t, api, newNode("words"))
	create(t, api, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "words", Labels: map[string]string{"team": "a"},
		Annotations: map[string]string{pool.AnnotationDefaultIPv4: `["p"]`, "other": "x"}}})
	c := startNode(t, shared.Config(t), "words")
	if _, known := c.PodWords("words", "p", ""); known {
		t.Error("a pod that is not there is known")
	}
	made := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "words", Name: "p", Labels: map[string]string{"app": "p"},
		Annotations: map[string]string{pool.AnnotationPool: `{"ipv4": ["p"]}`, "other": "x"}}}
	made.Spec = corev1.PodSpec{NodeName: "words", Containers: []corev1.Container{{Name: "c", Image: "i"}}}
	create(t, api, made)
	eventually(t, c, "the pod to be known", func(View) bool { _, known := c.PodWords("words", "p", string(made.UID)); return known })
	words, _ := c.PodWords("words", "p", "")
	if len(words.Annotations) != 1 || words.Labels["app"] != "p" || words.NamespaceLabels["team"] != "a" || len(words.NSAnnotated) != 1 {
		t.Errorf("it says %+v", words)
	}
	if _, known := c.PodWords("words", "p", "another-uid"); known {
		t.Error("another pod of that name is taken for it")
	}
}

// TestPoolsInView: pools reach the View, reserved addresses beside them, and an
// unchanged pool is the same in memory.
func TestPoolsInView(t *testing.T) {
	api := admin(t)
	create(t, api, newNode("pools"))
	p := &v1alpha1.AddressPool{ObjectMeta: metav1.ObjectMeta{Name: "in-view"}, Spec: v1alpha1.AddressPoolSpec{Subnets: []string{"10.77.0.0/16"}, Ranges: []string{"10.77.0.1"}}}
	r := &v2beta1.SpiderReservedIP{ObjectMeta: metav1.ObjectMeta{Name: "in-view"}, Spec: v2beta1.ReservedIPSpec{IPs: []string{"10.77.0.2-10.77.0.3"}}}
	for _, obj := range []client.Object{p, r} {
		create(t, api, obj)
	}
	c := startNode(t, shared.Config(t), "pools")
	find := func(v View) *pool.Pool {
		for _, one := range v.Pools {
			if one.Name == "in-view" && len(v.Reserved) == 1 {
				return one
			}
		}
		return nil
	}
	first := find(eventually(t, c, "the pool and the reserved addresses", func(v View) bool { return v.PoolsKnown && find(v) != nil }))
	again, err := c.View()
	if err != nil || !first.Has(ipam.IPv4) || first.Has(ipam.IPv6) || find(again) != first {
		t.Errorf("it is %+v, and then another in memory", first)
	}
	p.Spec.Disable = true
	if err := api.Update(t.Context(), p); err != nil {
		t.Fatal(err)
	}
	eventually(t, c, "the change", func(v View) bool { now := find(v); return now != nil && now.Disabled })
}

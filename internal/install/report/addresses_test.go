package report

import (
	"bytes"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"ropeway.dev/ropeway/api/spiderpool/v2beta1"
	"ropeway.dev/ropeway/api/v1alpha1"
	"ropeway.dev/ropeway/internal/agent/addresses"
	"ropeway.dev/ropeway/internal/ipam"
	"ropeway.dev/ropeway/internal/kube"
)

func apiPod(name, node string, addrs ...string) kube.PodAddress {
	p := kube.PodAddress{Pod: kube.Pod{Namespace: "default", Name: name, UID: "uid-" + name}, Node: node}
	for _, a := range addrs {
		p.Addresses = append(p.Addresses, netip.MustParseAddr(a))
	}
	return p
}

func keyOf(name string) ipam.Key {
	return ipam.Key{Network: "net", ContainerID: "c-" + name, IfName: "eth0"}
}

func ownerOf(name string) ipam.Owner {
	return ipam.Owner{Namespace: "default", Name: name, UID: "uid-" + name}
}

func holding(name, address string, sandbox addresses.Sandbox) addresses.Holding {
	return addresses.Holding{Binding: ipam.Binding{Key: keyOf(name), Owner: ownerOf(name), Addresses: []netip.Addr{netip.MustParseAddr(address)}}, Sandbox: sandbox}
}

func hostLink(name, address string) addresses.Link {
	return addresses.Link{Name: "rwp" + name, Addresses: []netip.Addr{netip.MustParseAddr(address)}, Ours: true, Key: keyOf(name), Owner: ownerOf(name)}
}

// scenarioWitnesses are those of scenarioObjects with a pod on each node, and
// nothing that differs.
func scenarioWitnesses() Witnesses {
	return Witnesses{
		Objects: scenarioObjects(),
		Pods:    []kube.PodAddress{apiPod("p", nodeR, "10.244.236.194"), apiPod("q", nodeS, "10.244.140.2")},
		Views: map[string]addresses.View{
			nodeR: {Holdings: []addresses.Holding{holding("p", "10.244.236.194", addresses.SandboxLives)}, Links: []addresses.Link{hostLink("p", "10.244.236.194")}},
			nodeS: {Holdings: []addresses.Holding{holding("q", "10.244.140.2", addresses.SandboxLives)}, Links: []addresses.Link{hostLink("q", "10.244.140.2")}},
		},
		Silent: map[string]string{},
	}
}

// TestCompare breaks one thing at a time, and wants exactly that to be named.
func TestCompare(t *testing.T) {
	change := func(w *Witnesses, node string, f func(*addresses.View)) {
		v := w.Views[node]
		f(&v)
		w.Views[node] = v
	}
	for _, test := range []struct {
		name  string
		spoil func(*Witnesses)
		want  string // kind node address, each difference
	}{
		{"nothing", func(*Witnesses) {}, ""},
		{"an agent is silent", func(w *Witnesses) { delete(w.Views, nodeS); w.Silent[nodeS] = "no answer" }, "NotAsked s -"},
		{"two nodes hold one address", func(w *Witnesses) {
			change(w, nodeS, func(v *addresses.View) { v.Holdings[0].Addresses[0] = netip.MustParseAddr("10.244.236.194") })
		}, "HeldTwice s 10.244.236.194; NotHeld s 10.244.140.2; NotInJournal s 10.244.140.2; Unreachable s 10.244.236.194"},
		{"two pods have one address", func(w *Witnesses) {
			w.Pods = append(w.Pods, apiPod("r", nodeR, "10.244.140.2"))
		}, "HeldTwice r 10.244.140.2; NotInJournal r 10.244.140.2"},
		{"the journal has lost a pod", func(w *Witnesses) { change(w, nodeR, func(v *addresses.View) { v.Holdings = nil }) },
			"NotHeld r 10.244.236.194; NotInJournal r 10.244.236.194"},
		{"it has another pod's", func(w *Witnesses) {
			w.Pods = append(w.Pods, apiPod("r", nodeR))
			change(w, nodeR, func(v *addresses.View) { v.Holdings[0].Owner = ownerOf("r") })
		}, "OtherHolder r 10.244.236.194"},
		{"the route is gone", func(w *Witnesses) { change(w, nodeR, func(v *addresses.View) { v.Links = nil }) }, "NotWired r 10.244.236.194"},
		{"the route leads to another", func(w *Witnesses) { change(w, nodeR, func(v *addresses.View) { v.Links[0].Key = keyOf("r") }) }, "OtherLink r 10.244.236.194"},
		{"the pod is gone, its sandbox lives", func(w *Witnesses) { w.Pods = w.Pods[1:] }, "PodGone r 10.244.236.194"},
		{"the pod is gone, and nobody knows", func(w *Witnesses) {
			w.Pods = w.Pods[1:]
			change(w, nodeR, func(v *addresses.View) { v.Links, v.Holdings[0].Sandbox = nil, addresses.SandboxUnknown })
		}, "PodGone r 10.244.236.194"},
		{"the sandbox is gone", func(w *Witnesses) {
			w.Pods = w.Pods[1:]
			change(w, nodeR, func(v *addresses.View) { v.Links, v.Holdings[0].Sandbox = nil, addresses.SandboxGone })
		}, "SandboxEnded r 10.244.236.194"},
		{"an address that no other node sends there", func(w *Witnesses) {
			w.Pods = append(w.Pods, apiPod("r", nodeR, "10.244.9.9"))
			change(w, nodeR, func(v *addresses.View) {
				v.Holdings = append(v.Holdings, holding("r", "10.244.9.9", addresses.SandboxLives))
				v.Links = append(v.Links, hostLink("r", "10.244.9.9"))
			})
		}, "Unreachable r 10.244.9.9"},
		{"a file of host-local's", func(w *Witnesses) {
			change(w, nodeR, func(v *addresses.View) {
				v.HostLocal = []addresses.File{{Key: keyOf("p"), Address: netip.MustParseAddr("10.244.236.194")}, {Key: keyOf("old"), Address: netip.MustParseAddr("10.244.236.200")}}
			})
		}, "StaleFile r 10.244.236.200"},
		{"a lease of a node that is gone", func(w *Witnesses) {
			w.Objects.Blocks = append(w.Objects.Blocks, block("10.244.7.0/26", "gone"))
		}, "LeaseProblem gone -"},
		{"a static pod, by its hash", func(w *Witnesses) {
			w.Pods[0].ConfigHash = "hash"
			change(w, nodeR, func(v *addresses.View) { v.Holdings[0].Owner.UID = "hash" })
		}, ""},
		{"an ended pod's address is another's", func(w *Witnesses) {
			ended := apiPod("job", nodeS, "10.244.140.2")
			ended.Ended = true
			w.Pods = append(w.Pods, ended)
		}, ""},
		{"a second interface, by another main plugin", func(w *Witnesses) {
			change(w, nodeR, func(v *addresses.View) {
				second := holding("p", "10.244.236.195", addresses.SandboxLives)
				second.Key.IfName = "net1"
				v.Holdings = append(v.Holdings, second)
			})
		}, ""},
		{"another product's pod", func(w *Witnesses) {
			change(w, nodeR, func(v *addresses.View) {
				a := netip.MustParseAddr("10.244.236.210")
				v.Holdings = append(v.Holdings, addresses.Holding{Binding: ipam.Binding{Key: ipam.Key{Network: "(kernel)", ContainerID: "cali1"}, Addresses: []netip.Addr{a}}, StandIn: true})
				v.Links = append(v.Links, addresses.Link{Name: "cali1", Addresses: []netip.Addr{a}})
			})
		}, ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			w := scenarioWitnesses()
			test.spoil(&w)
			c, err := Compare(w)
			if err != nil {
				t.Fatal(err)
			}
			var got []string
			for _, f := range c.Findings {
				address := "-"
				if f.Address.IsValid() {
					address = f.Address.String()
				}
				got = append(got, fmt.Sprint(f.Kind, " ", strings.TrimPrefix(f.Node, "cn-chengdu.i-2vcxx"), " ", address))
				if f.Message == "" || f.Remedy == "" {
					t.Errorf("no sentence: %+v", f)
				}
			}
			slices.Sort(got)
			if strings.Join(got, "; ") != test.want {
				t.Errorf("got  %s\nwant %s", strings.Join(got, "; "), test.want)
			}
			if c.Failed() != (test.want != "") {
				t.Errorf("failed: %t", c.Failed())
			}
		})
	}
}

// TestDifferencesLast: what was not there at the first look may be a pod that
// has just come.
func TestDifferencesLast(t *testing.T) {
	w := scenarioWitnesses()
	w.Pods = append(w.Pods, apiPod("new", nodeR, "10.244.236.197"))
	first, _ := Compare(scenarioWitnesses())
	second, _ := Compare(w)
	if !second.Failed() || second.Both(first).Failed() || !second.Both(second).Failed() {
		t.Errorf("%+v after %+v: %+v", second, first, second.Both(first))
	}
}

// spiderPool is the scenario's, in scenarioObjects' blocks.
func spiderPool(name string, allocated *string, ips ...string) v2beta1.SpiderIPPool {
	return v2beta1.SpiderIPPool{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: v2beta1.IPPoolSpec{Subnet: "10.244.0.0/16", IPs: ips},
		Status: v2beta1.IPPoolStatus{AllocatedIPs: allocated}}
}

func pooled(pools ...v2beta1.SpiderIPPool) *kube.Objects {
	o := scenarioObjects()
	o.SpiderIPPools, o.PoolsKnown = pools, true
	return o
}

func use(o *kube.Objects, pool string, n int32) *kube.Objects {
	o.NodeNetworks[0].Status.Pools = map[string]int32{"SpiderIPPool/" + pool: n}
	return o
}

func reserving(o *kube.Objects, ips ...string) *kube.Objects {
	o.SpiderReservedIPs = []v2beta1.SpiderReservedIP{{ObjectMeta: metav1.ObjectMeta{Name: "r"}, Spec: v2beta1.ReservedIPSpec{IPs: ips}}}
	return o
}

// TestPoolInAPodCIDR: what lies in a node's podCIDR is not shared, also where addresses
// come from blocks; the pool's condition Served says the same.
func TestPoolInAPodCIDR(t *testing.T) {
	o := pooled(spiderPool("p", nil, "10.244.3.1-10.244.3.9", "10.244.4.1"))
	o.Nodes[0].Spec.PodCIDRs = []string{"10.244.3.0/24"}
	if got := PoolsOf(o).Pools[0]; got.Shared != 1 {
		t.Errorf("%d addresses are shared of %d, want the one that is in no podCIDR", got.Shared, got.Total)
	}
}

func TestUsage(t *testing.T) {
	o := use(pooled(spiderPool("mine", nil, "10.244.236.200-10.244.236.209"), spiderPool("nowhere", nil, "10.244.3.1-10.244.3.9")), "mine", 3)
	ended := apiPod("job", nodeR, "10.244.236.199")
	ended.Ended = true
	other := apiPod("r", nodeS, "10.244.140.3")
	other.Namespace = "shop"
	u, err := UsageOf(o, []kube.PodAddress{apiPod("p", nodeR, "10.244.236.194"), apiPod("q", nodeS, "10.244.140.2"), other, ended}, nil)
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	if err := u.Table(&out, true); err != nil {
		t.Fatal(err)
	}
	compareGolden(t, "ipam-show.golden", out.String())
	if _, err := UsageOf(o, nil, []string{"none"}); err == nil || !strings.Contains(err.Error(), `no node "none"`) {
		t.Errorf("a node that is not there: %v", err)
	}
	if u, err := UsageOf(o, nil, []string{nodeS}); err != nil || len(u.Nodes) != 1 || u.Nodes[0].Node != nodeS {
		t.Errorf("one node: %+v %v", u.Nodes, err)
	}
}

func TestBlocks(t *testing.T) {
	o := scenarioObjects()
	anew := block("10.244.8.0/26", nodeR)
	anew.Spec.NodeUID = "former"
	o.Blocks = append(o.Blocks, block("10.244.7.0/26", "gone"), anew)
	b := BlocksOf(o, []kube.PodAddress{apiPod("p", nodeR, "10.244.236.194"), apiPod("q", nodeS, "10.244.140.2"), apiPod("r", nodeS, "10.244.140.3"), apiPod("s", nodeS, "10.1.1.1")})
	var out bytes.Buffer
	if err := b.Table(&out, true); err != nil {
		t.Fatal(err)
	}
	compareGolden(t, "ipam-blocks.golden", out.String())
}

func TestWho(t *testing.T) {
	o := pooled(spiderPool("mine", nil, "10.244.236.200-10.244.236.209"))
	o.SpiderReservedIPs = []v2beta1.SpiderReservedIP{{Spec: v2beta1.ReservedIPSpec{IPs: []string{"10.244.236.250"}}}}
	w := scenarioWitnesses()
	for _, test := range []struct{ address, want string }{
		{"10.244.236.194", "a pod address of node " + nodeR + "|sent to     node " + nodeR + ", by 10.244.236.192/26|default/p on node " + nodeR + " is there|by pod default/p: interface eth0 of container c-p|its sandbox: lives|to the link rwpp"},
		{"10.244.236.201", "SpiderIPPool/mine|by nobody"},
		{"10.244.236.193", "node " + nodeR + "'s own in the pod network"},
		{"10.244.236.250", "reserved by a SpiderReservedIP"},
		{"10.244.3.3", "in the pod network, and of no node"},
		{"192.168.1.10", "the address of node " + nodeR},
		{"8.8.8.8", "outside of the pod network"},
	} {
		who := WhoOf(o, w.Pods, netip.MustParseAddr(test.address))
		for node, v := range w.Views {
			who.Add(node, v)
		}
		var out bytes.Buffer
		if err := who.Table(&out, false); err != nil {
			t.Fatal(err)
		}
		for _, want := range strings.Split(test.want, "|") {
			if !strings.Contains(out.String(), want) {
				t.Errorf("%s: no %q in\n%s", test.address, want, out.String())
			}
		}
	}
	if ask := WhoOf(o, []kube.PodAddress{apiPod("p", nodeS, "10.244.236.194")}, netip.MustParseAddr("10.244.236.194")).Ask(); !slices.Equal(ask, []string{nodeR, nodeS}) {
		t.Errorf("asks %v", ask)
	}
}

func TestDoctorOfPools(t *testing.T) {
	for _, test := range []struct {
		name    string
		objects *kube.Objects
		outcome Outcome
		want    string
	}{
		{"well", use(pooled(spiderPool("a", nil, "10.244.236.200-10.244.236.209")), "a", 8), OK, "every pool is accepted"},
		{"low", use(pooled(spiderPool("a", nil, "10.244.236.200-10.244.236.209")), "a", 9), Warn, "SpiderIPPool a runs low: 9 of its 10"},
		{"one of few left", use(pooled(spiderPool("a", nil, "10.244.236.200-10.244.236.201")), "a", 1), Warn, "SpiderIPPool a runs low: 1 of its 2"},
		{"used up", use(pooled(spiderPool("a", nil, "10.244.236.200-10.244.236.209")), "a", 10), Fail, "used up: all of its 10"},
		{"what nodes share counts", use(pooled(spiderPool("a", nil, "10.244.236.200-10.244.236.209", "10.244.3.1-10.244.3.9")), "a", 10), OK, "every pool is accepted"},
		{"reversed", pooled(spiderPool("a", nil, "10.244.236.209-10.244.236.200")), Fail, "is not accepted, and gives no address: spec.ips"},
		{"overlap", pooled(spiderPool("a", nil, "10.244.236.200-10.244.236.209"), spiderPool("b", nil, "10.244.236.205")), Fail, "SpiderIPPool b is not accepted"},
		{"reserved", reserving(use(pooled(spiderPool("a", nil, "10.244.236.200-10.244.236.209")), "a", 5), "10.244.236.205-10.244.236.214"), Fail, "used up: all of its 5 (of 10; the others are reserved by SpiderReservedIPs)"},
		{"low beside reserved ones", reserving(use(pooled(spiderPool("a", nil, "10.244.236.200-10.244.236.219")), "a", 9), "10.244.236.219-10.244.236.210"), Warn, "runs low: 9 of its 10 (of 20"},
		{"all reserved", reserving(pooled(spiderPool("a", nil, "10.244.236.200-10.244.236.209")), "10.244.236.0-10.244.236.255"), Fail, "gives no address: all of its 10 are reserved"},
		{"misreserved", reserving(pooled(spiderPool("a", nil, "10.244.236.200-10.244.236.209")), "10.244.236.0-fd00::1"), Fail, "SpiderReservedIP r does not reserve all that it says: spec.ips[0]"},
		{"shared", pooled(spiderPool("a", nil, "10.244.3.1-10.244.3.9")), OK, "every pool is accepted"},
	} {
		t.Run(test.name, func(t *testing.T) {
			d := Doctor(scenarioSurvey(test.objects), test.objects)
			at := slices.IndexFunc(d.Checks, func(c Check) bool { return c.Name == "pools" && c.Outcome == test.outcome })
			if at < 0 || !strings.Contains(d.Checks[at].Message, test.want) {
				t.Errorf("want %s %q in %+v", test.outcome, test.want, d.Checks)
			}
		})
	}
}

// TestSharedLeases: a shared block, the single addresses in it, and one that is
// kept are in order, and say whose they are.
func TestSharedLeases(t *testing.T) {
	w := scenarioWitnesses()
	shared := v1alpha1.AddressBlock{Spec: v1alpha1.AddressBlockSpec{CIDR: "10.244.200.0/26", Sharing: v1alpha1.SharingConfirmed, Generation: 1}}
	single := block("10.244.200.11/32", nodeR)
	single.Spec.NodeUID, single.Spec.Pool = w.Objects.Blocks[0].Spec.NodeUID, "AddressPool/few"
	for _, b := range w.Objects.Blocks {
		if b.Spec.Node == nodeR {
			single.Spec.NodeUID = b.Spec.NodeUID
		}
	}
	kept := v1alpha1.AddressBlock{Spec: v1alpha1.AddressBlockSpec{CIDR: "10.244.200.12/32", Generation: 1,
		KeptFor: &v1alpha1.KeptFor{Namespace: "default", Pod: "db-0", StatefulSet: "db", UID: "u"}}}
	w.Objects.Blocks = append(w.Objects.Blocks, shared, single, kept)
	got := map[string]BlockUsage{}
	for _, one := range BlocksOf(w.Objects, append(w.Pods, apiPod("web", nodeR, "10.244.200.11"))).Blocks {
		if one.Problem != "" {
			t.Errorf("%s: %s", one.CIDR, one.Problem)
		}
		got[one.CIDR] = one
	}
	for cidr, want := range map[string]BlockUsage{
		"10.244.200.0/26":  {CIDR: "10.244.200.0/26", For: "all nodes (Confirmed)", Generation: 1, Used: 1, Total: 64},
		"10.244.200.11/32": {CIDR: "10.244.200.11/32", Node: nodeR, For: "AddressPool/few", Generation: 1, Used: 1, Total: 1},
		"10.244.200.12/32": {CIDR: "10.244.200.12/32", For: "default/db-0", Generation: 1, Total: 1},
	} {
		if got[cidr] != want {
			t.Errorf("%s is %+v, want %+v", cidr, got[cidr], want)
		}
	}
}

func TestSpiderClaims(t *testing.T) {
	text := `{"10.244.236.194":{"pod":"default/p","podUid":"uid-p"},"10.244.140.9":{"pod":"default/gone","podUid":"uid-gone"},"172.16.0.9":{"pod":"default/q","podUid":"uid-q"}}`
	o := pooled(spiderPool("a", &text, "10.244.236.200"), spiderPool("empty", nil, "10.244.236.201"))
	pods := scenarioWitnesses().Pods
	claims, rest, err := SpiderClaims(o, pods)
	if err != nil || len(claims) != 1 || len(claims[nodeR]) != 1 || claims[nodeR][0].Owner != ownerOf("p") {
		t.Errorf("claims %+v, %v", claims, err)
	}
	var out bytes.Buffer
	m := Migration{DryRun: true, Addresses: rest, NotAsked: map[string]string{nodeS: "no agent runs there"}}
	m.Addresses = append(m.Addresses, MigratedOnNode{nodeR, addresses.Taken{Address: claims[nodeR][0].Address, From: "Spiderpool", Action: addresses.ActionHold, Owner: claims[nodeR][0].Owner}})
	if err := m.Table(&out, false); err != nil || !m.Failed() {
		t.Fatal(err, m.Failed())
	}
	compareGolden(t, "migrate-addresses.golden", out.String())
	broken := "10.244.1.1"
	if _, _, err := SpiderClaims(pooled(spiderPool("a", &broken, "10.244.236.200")), pods); err == nil || !strings.Contains(err.Error(), "SpiderIPPool a, status.allocatedIPs") {
		t.Errorf("a status that is no JSON: %v", err)
	}
	if (Migration{Addresses: []MigratedOnNode{{"", addresses.Taken{Action: addresses.ActionConflict}}}}).Failed() != true {
		t.Error("a conflict does not fail")
	}
}

// TestNoNetworkInForce: there is nothing to count, and a sentence says why.
func TestNoNetworkInForce(t *testing.T) {
	o := scenarioObjects()
	o.Network = nil
	_, usage := UsageOf(o, nil, nil)
	_, compare := Compare(Witnesses{Objects: o})
	_, _, claims := SpiderClaims(o, nil)
	for _, err := range []error{usage, compare, claims} {
		if err == nil || !strings.Contains(err.Error(), "no pod network is in force") {
			t.Error(err)
		}
	}
}

package pool_test

import (
	"fmt"
	"net/netip"
	"runtime"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"ropeway.dev/ropeway/internal/ipam"
	"ropeway.dev/ropeway/internal/ipam/pool"
	"ropeway.dev/ropeway/internal/plan/cidr"
)

var podCIDRs = []netip.Prefix{netip.MustParsePrefix("10.244.0.0/16"), netip.MustParsePrefix("fd00:10:244::/48")}

// made returns a pool of one range, as old as its number.
func made(name, text string, change ...func(*pool.Pool)) *pool.Pool {
	p := &pool.Pool{Kind: pool.KindSpiderIPPool, Name: name, UID: "uid-" + name}
	for _, s := range podCIDRs {
		if ranges, err := pool.ParseRanges("ips", s, []string{text}); err == nil {
			p.Subnets, p.Ranges = []netip.Prefix{s}, ranges
		}
	}
	for _, c := range change {
		c(p)
	}
	return p
}

func byDefault(p *pool.Pool) { p.Default = true }

func index(node string, pools ...*pool.Pool) *pool.Index {
	return pool.NewIndex(pools, pool.Judge(pools, podCIDRs), pool.Node{Name: node, Labels: map[string]string{"zone": "a"}})
}

func request(change ...func(*pool.Request)) pool.Request {
	r := pool.Request{Namespace: "default", IfName: "eth0", Network: "k8s-pod-network", Families: []ipam.Family{ipam.IPv4}}
	for _, c := range change {
		c(&r)
	}
	return r
}

func annotated(key, value string) func(*pool.Request) {
	return func(r *pool.Request) { r.Annotations = map[string]string{key: value} }
}

func names(c pool.Choice, f ipam.Family) string {
	var out []string
	for _, p := range c.Pools[f] {
		out = append(out, p.Name)
	}
	return strings.Join(out, " ")
}

// TestFirstRuleDecides: each rule alone, and all at once, the strongest first.
func TestFirstRuleDecides(t *testing.T) {
	var pools []*pool.Pool
	for i, name := range []string{"ippools", "ippool", "ns", "conf", "def"} {
		pools = append(pools, made(name, fmt.Sprintf("10.244.0.%d", i+10)))
	}
	pools[4].Default = true
	x := index("a", pools...)
	r := request(func(r *pool.Request) {
		r.Annotations = map[string]string{
			pool.AnnotationPools: `[{"interface": "eth0", "ipv4": ["ippools"]}, {"interface": "net1", "ipv4": ["def"]}]`,
			pool.AnnotationPool:  `{"ipv4": ["ippool"]}`,
		}
		r.NSAnnotated = map[string]string{pool.AnnotationDefaultIPv4: `["ns"]`}
		r.Conf = map[ipam.Family][]string{ipam.IPv4: {"conf"}}
	})
	for _, step := range []struct {
		want string
		next func()
	}{
		{"ippools", func() { delete(r.Annotations, pool.AnnotationPools) }},
		{"ippool", func() { delete(r.Annotations, pool.AnnotationPool) }},
		{"ns", func() { r.NSAnnotated = nil }},
		{"conf", func() { r.Conf = nil }},
		{"def", func() { pools[4].Default = false; x = index("a", pools...) }},
		{"", func() {}},
	} {
		c, err := x.Choose(r)
		if err != nil || names(c, ipam.IPv4) != step.want {
			t.Errorf("got %q and %v, want %q", names(c, ipam.IPv4), err, step.want)
		}
		step.next()
	}
}

// TestOrderAmongEquals is the order that docs/addresses.md promises.
func TestOrderAmongEquals(t *testing.T) {
	age := func(created int64) func(*pool.Pool) { return func(p *pool.Pool) { p.Created = created } }
	pools := []*pool.Pool{
		made("old", "10.244.0.1", byDefault, age(1)),
		made("older", "10.244.0.2", byDefault, age(0)),
		made("multus", "10.244.0.3", byDefault, age(9), func(p *pool.Pool) { p.Networks = []string{"kube-system/k8s-pod-network"} }),
		made("namespaces", "10.244.0.4", byDefault, age(9), func(p *pool.Pool) { p.Namespaces = &pool.Selector{} }),
		made("namespace", "10.244.0.5", byDefault, age(9), func(p *pool.Pool) { p.NamespaceNames = []string{"default"} }),
		made("nodes", "10.244.0.6", byDefault, age(9), func(p *pool.Pool) { p.Nodes = &pool.Selector{Labels: map[string]string{"zone": "a"}} }),
		made("node", "10.244.0.7", byDefault, age(9), func(p *pool.Pool) { p.NodeNames = []string{"a"} }),
		made("pod", "10.244.0.8", byDefault, age(9), func(p *pool.Pool) { p.Pods = &pool.Selector{} }),
		made("first", "10.244.0.9", byDefault, age(9), func(p *pool.Pool) { p.Kind, p.Order = pool.KindAddressPool, -1 }),
		made("last", "10.244.0.10", byDefault, age(0), func(p *pool.Pool) { p.Kind, p.Order = pool.KindAddressPool, 1 }),
	}
	const want = "first pod node nodes namespace namespaces multus older old last"
	for range 20 { // whatever the order that they are listed in
		pools = append(pools[3:], pools[:3]...)
		x := index("a", pools...)
		for _, rule := range []func(*pool.Request){func(*pool.Request) {}, annotated(pool.AnnotationPool, `{"ipv4": ["*"]}`)} {
			c, err := x.Choose(request(rule))
			if err != nil || names(c, ipam.IPv4) != want {
				t.Fatalf("got %q and %v, want %q", names(c, ipam.IPv4), err, want)
			}
		}
		c, err := x.Choose(request(annotated(pool.AnnotationPool, `{"ipv4": ["old", "mult*", "nowhere", "old", "first"]}`)))
		if err != nil || names(c, ipam.IPv4) != "old multus first" {
			t.Fatalf("as written: got %q and %v", names(c, ipam.IPv4), err)
		}
	}
}

// TestDefaultPoolsThatServeNobody: a default pool that would be for the pod and may
// not serve is named as passed over, the first few of many, and one of another node is
// not.
func TestDefaultPoolsThatServeNobody(t *testing.T) {
	pools := []*pool.Pool{
		made("off", "10.244.0.1", byDefault, func(p *pool.Pool) { p.Disabled = true }),
		made("going", "10.244.0.2", byDefault, func(p *pool.Pool) { p.Deleting = true }),
		made("wrong", "10.244.0.3", byDefault, func(p *pool.Pool) { p.Invalid, p.Ranges = "spec.ips[0]: is reversed", nil }),
		made("overlaps", "10.244.0.2", byDefault, func(p *pool.Pool) { p.Created = 1 }),
		made("elsewhere", "10.244.0.4", byDefault, func(p *pool.Pool) { p.Disabled, p.NodeNames = true, []string{"b"} }),
		made("named", "10.244.0.5", func(p *pool.Pool) { p.Disabled = true }),
	}
	c, err := index("a", pools...).Choose(request())
	passed := strings.Join(c.Passed, "; ")
	if err != nil || len(c.Pools) > 0 || len(c.Passed) != 4 {
		t.Errorf("chosen: %v, %v, passed over: %s", c.Pools, err, passed)
	}
	for _, says := range []string{"off is disabled", "going is being deleted", "wrong is not accepted (spec.ips[0]: is reversed", "overlaps is not accepted"} {
		if !strings.Contains(passed, says) {
			t.Errorf("passed over: %s; want %q", passed, says)
		}
	}
	for i := range 9 {
		pools = append(pools, made(fmt.Sprint("more", i), "10.244.1.1", byDefault, func(p *pool.Pool) { p.Disabled = true }))
	}
	if c, _ := index("a", pools...).Choose(request()); len(c.Passed) != 5 {
		t.Errorf("of many, %d are named: %v", len(c.Passed), c.Passed)
	}
}

// TestPassedOver: each reason why a pool that is named does not serve.
func TestPassedOver(t *testing.T) {
	for _, test := range []struct {
		change func(*pool.Pool)
		says   string
	}{
		{func(p *pool.Pool) { p.Disabled = true }, "disabled"},
		{func(p *pool.Pool) { p.Deleting = true }, "being deleted"},
		{func(p *pool.Pool) { p.NodeNames = []string{"b"} }, "nodeName"},
		{func(p *pool.Pool) { p.Nodes = &pool.Selector{Labels: map[string]string{"zone": "b"}} }, "nodeAffinity"},
		{func(p *pool.Pool) { p.NamespaceNames = []string{"other"} }, "namespaceName"},
		{func(p *pool.Pool) { p.Namespaces = &pool.Selector{Labels: map[string]string{"team": "x"}} }, "namespaceAffinity"},
		{func(p *pool.Pool) { p.Pods = &pool.Selector{Rules: []pool.Requirement{{Key: "app", Op: pool.Exists}}} }, "podAffinity"},
		{func(p *pool.Pool) { p.Networks = []string{"net1"} }, "multusName"},
		{func(p *pool.Pool) { p.Kind, p.Networks = pool.KindAddressPool, []string{"net1"} }, "(networks)"},
		{func(p *pool.Pool) { p.Kind, p.NodeNames = pool.KindAddressPool, []string{"b"} }, "(nodeNames)"},
		{func(p *pool.Pool) { p.Invalid = "spec.ips: reversed" }, "spec.ips: reversed"},
		{func(p *pool.Pool) { p.Ranges = []netip.Prefix{netip.MustParsePrefix("10.9.0.0/24")} }, "outside the pod network"},
	} {
		_, err := index("a", made("p", "10.244.0.10", test.change)).Choose(request(annotated(pool.AnnotationPool, `{"ipv4": ["p"]}`)))
		if !pool.IsRefused(err) || !strings.Contains(err.Error(), test.says) || !strings.Contains(err.Error(), pool.AnnotationPool) {
			t.Errorf("got %v, want a sentence with %q and the annotation", err, test.says)
		}
		// A default pool that is not for the pod leaves it to what serves by itself.
		c, err := index("a", made("p", "10.244.0.10", test.change, byDefault)).Choose(request())
		if err != nil || len(c.Pools) != 0 || len(c.Families) != 1 {
			t.Errorf("%s by default: %+v, %v", test.says, c, err)
		}
	}
	// A name list wins over the selector beside it, as Spiderpool has it.
	both := made("p", "10.244.0.10", byDefault, func(p *pool.Pool) {
		p.NodeNames, p.Nodes = []string{"a"}, &pool.Selector{Labels: map[string]string{"zone": "b"}}
	})
	if c, _ := index("a", both).Choose(request()); names(c, ipam.IPv4) != "p" {
		t.Errorf("nodeName beside nodeAffinity: %+v", c)
	}
}

func TestFamilies(t *testing.T) {
	x := index("a", made("four", "10.244.0.10", byDefault), made("six", "fd00:10:244::10"))
	dual := func(r *pool.Request) { r.Families = []ipam.Family{ipam.IPv4, ipam.IPv6} }
	c, err := x.Choose(request(dual))
	if err != nil || names(c, ipam.IPv4) != "four" || len(c.Pools[ipam.IPv6]) != 0 || len(c.Families) != 2 {
		t.Errorf("one default family: %+v, %v", c, err)
	}
	c, err = x.Choose(request(dual, annotated(pool.AnnotationPool, `{"ipv6": ["six"]}`)))
	if err != nil || names(c, ipam.IPv6) != "six" || len(c.Families) != 1 {
		t.Errorf("one family by annotation: %+v, %v", c, err)
	}
	if _, err := x.Choose(request(annotated(pool.AnnotationPool, `{"ipv4": ["six"]}`))); !pool.IsRefused(err) || !strings.Contains(err.Error(), "without IPv4") {
		t.Errorf("the wrong family: %v", err)
	}
}

// TestWrongAnnotations: each is refused with its name; none is a panic.
func TestWrongAnnotations(t *testing.T) {
	x := index("a", made("p", "10.244.0.10"))
	for key, values := range map[string][]string{
		pool.AnnotationPool:    {`{`, `[]`, `{}`, `"p"`, `{"ipv4": "p"}`, `{"ipv5": ["p"]}`, `{"ipv4": ["q"]}`, `{"ipv4": ["[a"]}`, `{"ipv4": ["p"]} x`, `null`},
		pool.AnnotationPools:   {`{`, `{}`, `[]`, `[{"ipv4": ["p"]}, {"ipv4": ["p"]}]`, `[{"interface": "net1", "ipv4": ["p"]}]`, `[{"interface": "eth0", "ipv4": ["p"]}, {"interface": "eth0", "ipv4": ["p"]}]`, `[{"ipv4": ["p"], "cleangateway": true}]`},
		pool.AnnotationSubnet:  {`{}`},
		pool.AnnotationSubnets: {`[]`},
		pool.AnnotationRoutes:  {`[]`},
	} {
		for _, value := range values {
			if c, err := x.Choose(request(annotated(key, value))); !pool.IsRefused(err) || !strings.Contains(err.Error(), key) {
				t.Errorf("%s=%s: %+v, %v", key, value, c, err)
			}
		}
	}
	for _, value := range []string{`{`, `[]`, `["a"]`, `["10.0.0.1", "10.0.0.2"]`, `"10.0.0.1"`, `["::ffff:10.0.0.1"]`} {
		if got, err := pool.Addresses(map[string]string{pool.AnnotationIPs: value}); !pool.IsRefused(err) {
			t.Errorf("%s: %v, %v", value, got, err)
		}
	}
	got, err := pool.Addresses(map[string]string{pool.AnnotationIPAddrs: `["10.0.0.1", "fd00::1"]`})
	if err != nil || len(got) != 2 {
		t.Errorf("Calico's annotation: %v, %v", got, err)
	}
}

func FuzzAnnotations(f *testing.F) {
	for _, seed := range []string{`[{"interface": "eth0", "ipv4": ["p*"]}]`, `{"ipv4": ["p"], "ipv6": ["[a"]}`, `["10.0.0.1"]`} {
		f.Add(seed)
	}
	x := index("a", made("p", "10.244.0.10"))
	f.Fuzz(func(t *testing.T, text string) {
		for _, key := range pool.PodAnnotations() {
			c, err := x.Choose(request(annotated(key, text)))
			if err != nil && !pool.IsRefused(err) {
				t.Errorf("%v is no sentence for a person", err)
			}
			if err == nil && text != "" && c.ByDefault() && key != pool.AnnotationIPs && key != pool.AnnotationIPAddrs {
				t.Errorf("%s=%q was passed over in silence", key, text)
			}
			if _, err := pool.Addresses(map[string]string{key: text}); err != nil && !pool.IsRefused(err) {
				t.Errorf("%v is no sentence for a person", err)
			}
		}
	})
}

// TestOlderPoolStands: of pools that overlap the oldest stands, and one that
// overlaps only a refused one stands too.
func TestOlderPoolStands(t *testing.T) {
	age := func(created int64) func(*pool.Pool) { return func(p *pool.Pool) { p.Created = created } }
	narrow := func(p *pool.Pool) { p.Subnets = []netip.Prefix{netip.MustParsePrefix("10.244.0.0/24")} }
	pools := []*pool.Pool{
		made("youngest", "10.244.0.30-10.244.0.40", age(3)),
		made("middle", "10.244.0.20-10.244.0.30", age(2)),
		made("oldest", "10.244.0.10-10.244.0.20", age(1)),
		made("other subnet", "10.244.0.50", age(4), narrow),
	}
	verdicts := pool.Judge(pools, podCIDRs)
	for i, want := range []string{"", "older SpiderIPPool oldest", "", "spec.subnet: overlaps 10.244.0.0/16"} {
		v := verdicts[pools[i].ID()]
		if v.Accepted != (want == "") || !strings.Contains(v.Message, want) {
			t.Errorf("%s: %+v, want %q", pools[i].Name, v, want)
		}
	}
}

// TestEquals: of pools made in the same second, as one file makes them, always the
// same stands, whatever their UIDs are; and what is said names the fields of its kind.
func TestEquals(t *testing.T) {
	own := func(p *pool.Pool) { p.Kind = pool.KindAddressPool }
	uid := func(uid string) func(*pool.Pool) { return func(p *pool.Pool) { p.UID = uid } }
	for _, uids := range [][]string{{"1", "2", "3"}, {"3", "2", "1"}} {
		pools := []*pool.Pool{made("b", "10.244.0.10", uid(uids[0]), own), made("a", "10.244.0.10-10.244.0.11", uid(uids[1]), own), made("a", "10.244.0.11", uid(uids[2]))}
		verdicts := pool.Judge(pools, podCIDRs)
		if !verdicts["AddressPool/a"].Accepted || !strings.HasPrefix(verdicts["AddressPool/b"].Message, "spec.ranges: ") || !strings.HasPrefix(verdicts["SpiderIPPool/a"].Message, "spec.ips: ") {
			t.Errorf("with the UIDs %v: %v", uids, verdicts)
		}
	}
	narrow := made("narrow", "10.244.0.20", own, func(p *pool.Pool) { p.Subnets = []netip.Prefix{netip.MustParsePrefix("10.244.0.0/24")} })
	if v := pool.Judge([]*pool.Pool{made("a", "10.244.0.10", own), narrow}, podCIDRs)[narrow.ID()]; !strings.HasPrefix(v.Message, "spec.subnets: ") {
		t.Errorf("of a subnet: %+v", v)
	}
	mixed := made("a", "10.244.0.10", own, func(p *pool.Pool) { p.Ranges = append(p.Ranges, netip.MustParsePrefix("10.9.0.0/24")) })
	if v := pool.Judge([]*pool.Pool{mixed}, podCIDRs)[mixed.ID()]; v.Accepted || v.Reason != pool.ReasonOutsidePodNetwork || !strings.HasPrefix(v.Message, "spec.ranges: 10.9.0.0/24 is outside") {
		t.Errorf("partly outside: %+v", v)
	}
}

// TestUnderlay: a pool outside the pod network serves interfaces of other main plugins
// and no others, also to an agent that has read nothing yet; without a pod network it
// serves nobody.
func TestUnderlay(t *testing.T) {
	under, over := made("under", "", byDefault), made("over", "10.244.0.10", byDefault)
	under.Subnets, under.Ranges = []netip.Prefix{netip.MustParsePrefix("10.9.0.0/24")}, []netip.Prefix{netip.MustParsePrefix("10.9.0.10/31")}
	pools := []*pool.Pool{under, over}
	verdicts := pool.Judge(pools, podCIDRs)
	if v := verdicts[under.ID()]; !v.Accepted || !v.Underlay || verdicts[over.ID()].Underlay {
		t.Errorf("%+v", verdicts)
	}
	if v := pool.Judge(pools, nil)[under.ID()]; v.Accepted {
		t.Errorf("without a pod network: %+v", v)
	}
	for name, x := range map[string]*pool.Index{"read": pool.NewIndex(pools, verdicts, pool.Node{Name: "a"}), "resumed": pool.Resume(pools, podCIDRs)} {
		for _, other := range []bool{false, true} {
			r := pool.Request{Families: []ipam.Family{ipam.IPv4}, OtherMain: other}
			c, err := x.Choose(r)
			if err != nil || slices.Contains(c.Pools[ipam.IPv4], under) != other || !slices.Contains(c.Pools[ipam.IPv4], over) {
				t.Errorf("%s, another main plugin %t: %v %v", name, other, c.Pools, err)
			}
			r.Conf = map[ipam.Family][]string{ipam.IPv4: {"under"}}
			if _, err := x.Choose(r); (err == nil) != other || err != nil && !strings.Contains(err.Error(), "under is outside the pod network") {
				t.Errorf("%s, named, another main plugin %t: %v", name, other, err)
			}
			if got := x.Serving(pool.Request{OtherMain: other}, c, netip.MustParseAddr("10.9.0.11")); (got != nil) != other {
				t.Errorf("%s, exactly, another main plugin %t: %v", name, other, got)
			}
		}
	}
}

// allocated returns how many bytes a function takes, in all.
func allocated(f func()) uint64 {
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	f()
	runtime.ReadMemStats(&after)
	return after.TotalAlloc - before.TotalAlloc
}

// TestManyPools: what pools cost to look at grows with them, and not with their pairs,
// nor with the nodes.
func TestManyPools(t *testing.T) {
	const count = 5000
	var same []*pool.Pool
	for i := range count {
		same = append(same, made(fmt.Sprint("p", i), "10.244.0.10-10.244.0.20"))
	}
	if n := allocated(func() { pool.Judge(same, podCIDRs) }); n > 20<<20 {
		t.Errorf("judging %d pools that state the same takes %d bytes", count, n)
	}
	var owned []netip.Prefix
	for i := range count {
		owned = append(owned, netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 64 + byte(i>>8), byte(i), 0}), 25))
	}
	owned = cidr.Aggregate(owned)
	if n := allocated(func() { pool.Outside(same[0], owned) }); n > 10<<10 {
		t.Errorf("one pool beside the ranges of %d nodes takes %d bytes", count, n)
	}
}

// TestJudgeLeavesNoOverlap: whatever is stated, no two accepted pools have an
// address in common, and no pool is refused for one that is refused itself.
func TestJudgeLeavesNoOverlap(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var pools []*pool.Pool
		for i := range rapid.IntRange(0, 8).Draw(t, "pools") {
			from := rapid.IntRange(0, 40).Draw(t, "from")
			text := fmt.Sprintf("10.244.0.%d-10.244.0.%d", from, from+rapid.IntRange(0, 20).Draw(t, "length"))
			pools = append(pools, made(fmt.Sprint("p", i), text, func(p *pool.Pool) { p.Created = rapid.Int64Range(0, 3).Draw(t, "age") }))
		}
		verdicts := pool.Judge(pools, podCIDRs)
		overlap := func(a, b *pool.Pool) bool {
			return slices.ContainsFunc(a.Ranges, func(r netip.Prefix) bool { return slices.ContainsFunc(b.Ranges, r.Overlaps) })
		}
		for _, p := range pools {
			stands := slices.ContainsFunc(pools, func(o *pool.Pool) bool {
				return o != p && verdicts[o.ID()].Accepted && o.Created <= p.Created && overlap(o, p)
			})
			if verdicts[p.ID()].Accepted == stands && (stands || !verdicts[p.ID()].Accepted) {
				t.Fatalf("%s %v: %+v", p.Name, p.Ranges, verdicts[p.ID()])
			}
		}
	})
}

func TestParseRange(t *testing.T) {
	for text, want := range map[string]string{
		"10.0.0.1": "", "10.0.0.1-10.0.0.3": "", "fd00::1-fd00::ffff": "",
		"": "neither", "10.0.0.0/24": "neither", "10.0.0.3-10.0.0.1": "reversed", "10.0.0.1-fd00::1": "mixes", "10.0.0.1 - 10.0.0.3": "neither", "10.0.0.1-3": "neither", "fe80::1%eth0": "neither",
	} {
		if _, _, err := pool.ParseRange(text); (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %q", text, err, want)
		}
	}
}

// TestFree finds every free address, and none that is not, from wherever it begins.
func TestFree(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		from, to := rapid.ByteRange(0, 20).Draw(t, "from"), rapid.ByteRange(20, 60).Draw(t, "to")
		ranges := cidr.FromRange(netip.AddrFrom4([4]byte{10, 244, 0, from}), netip.AddrFrom4([4]byte{10, 244, 0, to}))
		barred := cidr.Aggregate([]netip.Prefix{netip.MustParsePrefix("10.244.0.16/29")})
		taken := map[netip.Addr]bool{}
		for n := range 70 {
			a, ok := pool.Free(ranges, func(a netip.Addr) bool { return taken[a] }, barred, netip.AddrFrom4([4]byte{10, 244, 0, rapid.ByteRange(0, 70).Draw(t, "begin")}))
			if !ok {
				want := 0
				for _, r := range cidr.Subtract(ranges, barred) {
					want += int(cidr.Size(r))
				}
				if n != want {
					t.Fatalf("%d addresses were found of %d", n, want)
				}
				return
			}
			if taken[a] || barred[0].Contains(a) || !slices.ContainsFunc(ranges, func(r netip.Prefix) bool { return r.Contains(a) }) {
				t.Fatalf("%s is not free", a)
			}
			taken[a] = true
		}
		t.Fatal("there is no end")
	})
}

// TestHugeRanges: a /8 and a /64 are no more than a few prefixes.
func TestHugeRanges(t *testing.T) {
	ranges, err := pool.ParseRanges("ips", netip.MustParsePrefix("10.0.0.0/8"), []string{"10.0.0.1-10.255.255.254"})
	if err != nil || len(ranges) > 48 {
		t.Errorf("%d prefixes, %v", len(ranges), err)
	}
	p := &pool.Pool{Ranges: []netip.Prefix{netip.MustParsePrefix("fd00::/64"), netip.MustParsePrefix("10.0.0.0/8")}}
	if p.Size() != ^uint64(0) {
		t.Errorf("its size is %d", p.Size())
	}
	for part := range 7 {
		if a := pool.Place(p.Ranges, part, 7); !p.Contains(a) {
			t.Errorf("part %d begins at %s", part, a)
		}
	}
	if a, ok := pool.Free(p.Ranges, func(netip.Addr) bool { return false }, nil, pool.Place(p.Ranges, 3, 7)); !ok || !p.Contains(a) {
		t.Errorf("%s, %t", a, ok)
	}
}

// TestPlace: the parts of ranges are even, whatever prefixes the ranges are, and
// what is looked for in one begins there.
func TestPlace(t *testing.T) {
	ranges := cidr.FromRange(netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("10.0.1.44")) // 300
	nobody := func(netip.Addr) bool { return false }
	for part, want := range []string{"10.0.0.1", "10.0.0.61", "10.0.0.121", "10.0.0.181", "10.0.0.241"} {
		place := pool.Place(ranges, part, 5)
		if a, ok := pool.Free(ranges, nobody, nil, place); place.String() != want || a != place || !ok {
			t.Errorf("part %d begins at %s, and free is %s; want %s", part, place, a, want)
		}
	}
	last, _ := pool.Free(ranges, func(a netip.Addr) bool { return a != netip.MustParseAddr("10.0.0.60") }, nil, netip.MustParseAddr("10.0.0.61"))
	if last.String() != "10.0.0.60" {
		t.Errorf("the only free one is found as %s", last)
	}
	if a := pool.Place(nil, 0, 1); a.IsValid() {
		t.Errorf("of no range: %s", a)
	}
}

package dataplane

import (
	"context"
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"sigs.k8s.io/knftables"

	"ropeway.dev/ropeway/internal/dataplane/podlink/netnstest"
	"ropeway.dev/ropeway/internal/plan"
)

func TestProbe(t *testing.T) {
	ns := netnstest.New(t)
	ns.Enter(t)
	s := Probe()
	if err := s.Err(); err != nil {
		t.Errorf("this machine passes all other tests, and Probe says: %v", err)
	}
	if !s.TCX {
		t.Errorf("this kernel has tcx, and Probe says no")
	}
	t.Setenv("PATH", t.TempDir())
	if err := Probe().Err(); err == nil || !strings.Contains(err.Error(), "nft 1.0.1") {
		t.Errorf("without nft: %v", err)
	}
}

// goldenState has something for every rule.
func goldenState() plan.State {
	prefix, address := netip.MustParsePrefix, netip.MustParseAddr
	return plan.State{
		Self:      "node-a",
		Addresses: []netip.Addr{address("192.168.1.2"), address("fd00:1::2")},
		Sources:   []netip.Addr{address("10.244.1.1"), address("fd00:244:0:1::1")},
		PodCIDRs:  []netip.Prefix{prefix("10.244.0.0/16"), prefix("10.7.0.0/20"), prefix("fd00:244::/48")},
		VXLAN:     plan.VXLANDevice{VNI: 4096, Port: 4789}, Masquerade: true,
		Metadata: plan.Metadata{Addresses: plan.DefaultMetadata(), Links: []string{"rwp02", "rwp01"}},
		Peers: []plan.Peer{
			{Name: "node-b", Addresses: []netip.Addr{address("192.168.2.2"), address("fd00:2::2")}},
			{Name: "node-c", Addresses: []netip.Addr{address("192.168.3.2")}},
		},
	}
}

// TestRulesGolden compares the rules with the text that people reviewed, and has
// nft itself read them.
func TestRulesGolden(t *testing.T) {
	ns := netnstest.New(t)
	ns.Enter(t)
	single := goldenState()
	single.Addresses, single.Sources = single.Addresses[:1], single.Sources[:1]
	single.Metadata = plan.Metadata{Open: true}
	single.PodCIDRs, single.Peers, single.Masquerade = single.PodCIDRs[:1], nil, false
	for name, r := range map[string]ruleset{
		"dual-stack": rulesFor(goldenState(), clamps{ipv4: 1410, ipv6: 1390}),
		"first-node": rulesFor(single, clamps{}),
	} {
		file := filepath.Join("testdata", name+".nft")
		if os.Getenv("ROPEWAY_REWRITE") == "1" {
			if err := os.WriteFile(file, []byte(r.String()), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		want, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if got := r.String(); got != string(want) {
			t.Errorf("%s (ROPEWAY_REWRITE=1 accepts it): the rules are\n%s", file, got)
		}
		if _, err := runNFT(context.Background(), r.String(), "--check", "-f", "-"); err != nil {
			t.Errorf("%s: %v", file, err)
		}
	}
}

// TestNFTablesTransactions: as little as possible is written.
func TestNFTablesTransactions(t *testing.T) {
	fake := knftables.NewFake(knftables.InetFamily, tableName)
	counter := &countingNFT{Interface: fake}
	transactions, listed, last := uint32(1), 0, fake.Dump()
	n := &nftables{run: counter, memory: filepath.Join(t.TempDir(), "nftables.json"), list: func(context.Context) (string, error) {
		listed++
		return fake.Dump(), nil
	}, generation: func() (uint32, bool) {
		if fake.Dump() != last {
			last = fake.Dump()
			transactions++
		}
		return transactions, true
	}, transact: func(run func() error) error { return run() }}
	restarted := func() *nftables {
		return &nftables{run: n.run, list: n.list, memory: n.memory, generation: n.generation, transact: n.transact}
	}
	state, segment := goldenState(), 1410
	set := func(want string, changes bool) {
		t.Helper()
		counter.written = ""
		changed, err := n.set(context.Background(), rulesFor(state, clamps{ipv4: segment}))
		if err != nil || changed != changes {
			t.Errorf("set: changed %v, %v", changed, err)
		}
		if want == "" && counter.written != "" || !strings.Contains(counter.written, want) {
			t.Errorf("transaction:\n%s\nwant one with %q", counter.written, want)
		}
	}
	set("add chain", true)
	before := listed
	set("", false)
	if listed != before {
		t.Error("nobody changed anything, and the table was read")
	}
	// Only the elements of one set.
	state.Peers = state.Peers[:1]
	set("flush set inet ropeway nodes4", true)
	if strings.Contains(counter.written, "chain") || strings.Contains(counter.written, "nodes6") {
		t.Errorf("one node went, and all of this was written:\n%s", counter.written)
	}
	set("", false)
	// Only the rules of the chains that know the size of segments.
	segment = 1400
	set("size set 1400", true)
	if strings.Contains(counter.written, "table inet ropeway {") || strings.Contains(counter.written, "add chain") || strings.Contains(counter.written, "element") || strings.Contains(counter.written, "chain inet ropeway nat") {
		t.Errorf("the size of segments changed, and all of this was written:\n%s", counter.written)
	}
	if dump := fake.Dump(); strings.Contains(dump, "size set 1410") || !strings.Contains(dump, "size set 1400") {
		t.Errorf("the table is:\n%s", dump)
	}
	set("", false)
	// A process that knows nothing but the file.
	n = restarted()
	if err := n.load(); err != nil {
		t.Fatal(err)
	}
	set("", false)
	// Somebody else's change.
	tx := fake.NewTransaction()
	tx.Flush(&knftables.Chain{Name: "nat"})
	if err := fake.Run(context.Background(), tx); err != nil {
		t.Fatal(err)
	}
	set("add chain", true)
	// A kernel that does not say how many transactions there were.
	tell := n.generation
	n.generation = func() (uint32, bool) { return 0, false }
	before = listed
	if set("", false); listed == before {
		t.Error("the table may have changed, and was not read")
	}
	n.generation = tell
	// A file that is torn.
	if err := os.WriteFile(n.memory, []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	n = restarted()
	if err := n.load(); err != nil {
		t.Fatal(err)
	}
	set("add chain", true)
	counter.err = errors.New("no memory")
	state.Masquerade = false
	if changed, err := n.set(context.Background(), rulesFor(state, clamps{})); changed || !errors.Is(err, counter.err) {
		t.Errorf("a transaction that failed: %v, %v", changed, err)
	}
}

// countingNFT remembers the last transaction.
type countingNFT struct {
	knftables.Interface
	written string
	err     error
}

func (c *countingNFT) Run(ctx context.Context, tx *knftables.Transaction) error {
	c.written = tx.String()
	if c.err != nil {
		return c.err
	}
	return c.Interface.Run(ctx, tx)
}

// TestTableGeneration: the kernel's count grows with a transaction of somebody
// else's in a table of his own, and with nothing else.
func TestTableGeneration(t *testing.T) {
	netnstest.NeedRoot(t)
	netnstest.New(t).Enter(t)
	first, told := tableGeneration()
	again, _ := tableGeneration()
	if !told || first == 0 || again != first {
		t.Fatalf("the count was %d and then %d (%v)", first, again, told)
	}
	if _, err := runNFT(context.Background(), "", "add", "table", "inet", "theirs"); err != nil {
		t.Fatal(err)
	}
	if after, _ := tableGeneration(); after == first {
		t.Errorf("a table was added, and the count is still %d", after)
	}
}

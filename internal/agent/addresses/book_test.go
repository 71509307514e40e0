package addresses

import (
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"

	"ropeway.dev/ropeway/internal/cniwire"
	"ropeway.dev/ropeway/internal/dataplane"
	"ropeway.dev/ropeway/internal/dataplane/podlink"
	"ropeway.dev/ropeway/internal/ipam"
	"ropeway.dev/ropeway/internal/plan"
)

type fakeKernel struct {
	links   []dataplane.PodLink
	foreign []ForeignPod
	err     error

	reapErr error
	reaped  int // calls of ReapLinks
}

func (k *fakeKernel) PodLinks() ([]dataplane.PodLink, error) { return k.links, k.err }
func (k *fakeKernel) ForeignPods() ([]ForeignPod, error)     { return k.foreign, k.err }
func (k *fakeKernel) ReapLinks() error {
	k.reaped++
	return k.reapErr
}

// bench is a run directory and a kernel that books are opened on.
type bench struct {
	t       testing.TB
	dir     string
	kernel  *fakeKernel
	options Options
}

func newBench(t testing.TB, dir string) *bench {
	k := &fakeKernel{}
	return &bench{t: t, dir: dir, kernel: k, options: Options{
		JournalPath: dir + "/journal", TombstoneDir: dir + "/tombstones", SandboxDir: dir + "/sandboxes", HostLocalDir: dir + "/host-local", ResultDirs: []string{dir + "/results"},
		BootPath: dir + "/boot-id", BootID: "boot-1", Kernel: k, Log: slog.New(slog.DiscardHandler)}}
}

func (b *bench) open() *Book {
	b.t.Helper()
	book, err := Open(b.options)
	if err != nil {
		b.t.Fatal(err)
	}
	book.SetRanges([]ipam.Range{testRange()})
	return book
}

func (b *bench) write(path, content string) {
	b.t.Helper()
	full := filepath.Join(b.dir, path)
	if err := os.MkdirAll(filepath.Dir(full), 0o755); err != nil {
		b.t.Fatal(err)
	}
	if err := os.WriteFile(full, []byte(content), 0o600); err != nil {
		b.t.Fatal(err)
	}
}

func (b *bench) remove(path string) {
	b.t.Helper()
	if err := os.Remove(filepath.Join(b.dir, path)); err != nil {
		b.t.Fatal(err)
	}
}

func testRange() ipam.Range {
	p := netip.MustParsePrefix("10.244.0.0/26")
	return ipam.RangeFor(p, ipam.Block, plan.SourceOf(p))
}

func key(container string) ipam.Key {
	return ipam.Key{Network: "net", ContainerID: container, IfName: "eth0"}
}

func addrs(list ...string) []netip.Addr {
	var out []netip.Addr
	for _, s := range list {
		out = append(out, netip.MustParseAddr(s))
	}
	return out
}

func allocate(t failer, b *Book, container, netns string) netip.Addr {
	t.Helper()
	got, err := b.Allocate(key(container), ipam.Owner{}, []ipam.Want{{Family: ipam.IPv4}}, netns)
	if err != nil {
		t.Fatal(err)
	}
	return got[0]
}

// link is the host end of a container's link.
func link(t testing.TB, container string, addresses ...netip.Addr) dataplane.PodLink {
	t.Helper()
	alias, err := podlink.Alias(cniwire.Attachment{Network: "net", ContainerID: container, IfName: "eth0"}, cniwire.Pod{Namespace: "ns", Name: container})
	if err != nil {
		t.Fatal(err)
	}
	return dataplane.PodLink{Name: podlink.HostLinkName("net", container, "eth0"), Addresses: addresses, Alias: alias}
}

func held(b *Book) string {
	var out []string
	for _, binding := range b.Bindings() {
		out = append(out, fmt.Sprint(binding.Key.ContainerID, binding.Addresses))
	}
	return strings.Join(out, " ")
}

// TestOpenFindsWhatIsInUse: each source of evidence, alone and against others.
func TestOpenFindsWhatIsInUse(t *testing.T) {
	tests := []struct {
		name  string
		setup func(*bench, *Book) // the book of the agent before, or nil
		want  string
	}{
		{"journal", func(_ *bench, b *Book) { allocate(t, b, "p1", "") }, "p1[10.244.0.2]"},
		{"journal and tombstone", func(be *bench, b *Book) {
			allocate(t, b, "p1", "")
			allocate(t, b, "p2", "")
			if err := cniwire.WriteTombstone(be.options.TombstoneDir, cniwire.Tombstone{Attachment: cniwire.Attachment{Network: "net", ContainerID: "p1", IfName: "eth0"}}); err != nil {
				t.Fatal(err)
			}
		}, "p2[10.244.0.3]"},
		{"kernel alone", func(be *bench, _ *Book) {
			be.kernel.links = append(be.kernel.links, link(t, "p1", addrs("10.244.0.9")...))
		}, "p1[10.244.0.9]"},
		{"kernel, alias lost", func(be *bench, _ *Book) {
			be.kernel.links = append(be.kernel.links, dataplane.PodLink{Name: "rwpx", Addresses: addrs("10.244.0.9")})
		}, "rwpx[10.244.0.9]"},
		{"kernel against journal: the wired one has it", func(be *bench, b *Book) {
			a := allocate(t, b, "p1", "")
			be.kernel.links = append(be.kernel.links, link(t, "p2", a))
		}, "p2[10.244.0.2]"},
		{"two wired pods with one address: both stay as they are", func(be *bench, b *Book) {
			a := allocate(t, b, "p1", "")
			be.kernel.links = append(be.kernel.links, link(t, "p1", a), link(t, "p2", a))
		}, "p1[10.244.0.2]"},
		{"journal of damage", func(be *bench, b *Book) {
			a := allocate(t, b, "p1", "")
			be.kernel.links = append(be.kernel.links, link(t, "p1", a))
			be.write("journal", "rubbish\n")
		}, "p1[10.244.0.2]"},
		{"journal of a later version", func(be *bench, b *Book) {
			a := allocate(t, b, "p1", "")
			be.kernel.links = append(be.kernel.links, link(t, "p1", a))
			be.write("journal", "ropeway-journal 2\n")
		}, "p1[10.244.0.2]"},
		{"another product's pod", func(be *bench, _ *Book) {
			be.kernel.foreign = append(be.kernel.foreign, ForeignPod{Link: "cali1", Address: addrs("10.244.0.9")[0]})
		}, "cali1[10.244.0.9]"},
		{"host-local", func(be *bench, _ *Book) {
			be.write("host-local/net/10.244.0.9", "p1\r\neth0")
			be.write("host-local/net/fd00::9", "p1\r\neth0")
			be.write("host-local/net/10.244.0.10", "p2") // as old versions wrote it
			be.write("host-local/net/last_reserved_ip.0", "10.244.0.10")
			be.write("host-local/net/10.244.0.11", "")
			be.write("host-local/stray", "")
		}, "p1[10.244.0.9 fd00::9] p2[10.244.0.10]"},
		{"host-local and its pod's foreign link", func(be *bench, _ *Book) {
			be.write("host-local/net/10.244.0.9", "p1\r\neth0")
			be.kernel.foreign = append(be.kernel.foreign, ForeignPod{Link: "veth1", Address: addrs("10.244.0.9")[0]})
		}, "p1[10.244.0.9]"},
		{"host-local against journal: the book stands", func(be *bench, b *Book) {
			allocate(t, b, "p1", "")
			be.write("host-local/net/10.244.0.2", "p2\r\neth0")
		}, "p1[10.244.0.2]"},
		{"the runtime's notes, the journal lost", func(be *bench, b *Book) {
			allocate(t, b, "p1", "")
			be.write("netns/lives", "")
			lives, served := be.dir+"/netns/lives", `{"plugins":[{"type":"macvlan","ipam":{"type":"spiderpool"}}]}`
			be.noteOf("p1", "10.244.0.2", lives, served)
			be.noteOf("alone", "10.244.0.9", lives, `{"type":"macvlan","ipam":{"type":"ropeway-ipam"}}`)
			be.noteOf("another's", "10.244.0.10", lives, `{"plugins":[{"type":"bridge","ipam":{"type":"host-local"}}]}`)
			be.noteOf("ended", "10.244.0.11", be.dir+"/netns/ended", served)
			be.noteOf("of-an-older-library", "10.244.0.12", "", served)
			be.noteOf("of-an-earlier-boot", "10.244.0.14", "", served)
			long := time.Unix(1000, 0)
			if err := os.Chtimes(be.dir+"/results/net-of-an-earlier-boot-eth0", long, long); err != nil {
				t.Fatal(err)
			}
			be.noteOf("garbage", "10.244.0.13", lives, `[`)
			be.remove("journal")
		}, "alone[10.244.0.9] of-an-older-library[10.244.0.12] p1[10.244.0.2]"},
		{"the runtime's notes, beside the journal", func(be *bench, b *Book) {
			a := allocate(t, b, "p1", "")
			be.write("netns/lives", "")
			be.noteOf("p1", a.String(), be.dir+"/netns/lives", `{"ipam":{"type":"spiderpool"}}`)
			if err := b.Release(key("p1")); err != nil {
				t.Fatal(err)
			}
		}, ""},
		{"another boot", func(be *bench, b *Book) {
			allocate(t, b, "p1", "")
			be.options.BootID = "boot-2"
		}, ""},
		{"another boot, host-local's files remain", func(be *bench, b *Book) {
			allocate(t, b, "p1", "")
			be.write("host-local/net/10.244.0.9", "p9\r\neth0")
			be.options.BootID = "boot-2"
		}, "p9[10.244.0.9]"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			be := newBench(t, t.TempDir())
			before := be.open()
			tt.setup(be, before)
			if err := before.Close(); err != nil {
				t.Fatal(err)
			}
			b := be.open()
			defer b.Close()
			if got := held(b); got != tt.want {
				t.Errorf("holds %q, want %q", got, tt.want)
			}
			for range 20 {
				a := allocate(t, b, fmt.Sprint("new", b.Count()), "")
				if strings.Contains(tt.want, a.String()+"]") {
					t.Errorf("%v was given, and is in use", a)
				}
			}
		})
	}
}

func TestOpenNeedsTheKernel(t *testing.T) {
	be := newBench(t, t.TempDir())
	be.kernel.err = os.ErrPermission
	if _, err := Open(be.options); err == nil || !strings.Contains(err.Error(), "in use on the node") {
		t.Errorf("got %v: without the kernel's word an address could be given twice", err)
	}
	be.kernel.err = nil
	be.open().Close() // the lock was given back
}

func TestTrueHolderOfAForeignAddress(t *testing.T) {
	be := newBench(t, t.TempDir())
	be.kernel.foreign = []ForeignPod{{Link: "veth1", Address: addrs("10.244.0.9")[0]}}
	b := be.open()
	defer b.Close()
	if err := b.Record(key("p1"), ipam.Owner{}, addrs("10.244.0.9"), ""); err != nil {
		t.Fatal(err)
	}
	if got := held(b); got != "p1[10.244.0.9]" {
		t.Errorf("holds %s", got)
	}
	if err := b.Record(key("p2"), ipam.Owner{}, addrs("10.244.0.9"), ""); !IsConflict(err) {
		t.Errorf("got %v, want a conflict", err)
	}
}

// TestRestore: a block that was withdrawn and not given back is given from again.
func TestRestore(t *testing.T) {
	b := newBench(t, t.TempDir()).open()
	defer b.Close()
	block := testRange().Prefix
	if gone, _ := b.Withdraw(block); !gone || !b.IsWithdrawn(block) {
		t.Fatal("an empty block was not withdrawn")
	}
	b.Restore(block)
	if got := allocate(t, b, "p1", ""); !block.Contains(got) || b.IsWithdrawn(block) {
		t.Errorf("got %v, want one of the block", got)
	}
	if got := b.Lasting([]ipam.Range{testRange()}); len(got) != 1 {
		t.Errorf("what lasts is %v, want the block", got)
	}
}

func TestWithdraw(t *testing.T) {
	b := newBench(t, t.TempDir()).open()
	defer b.Close()
	block := testRange().Prefix
	allocate(t, b, "p1", "")
	if gone, news := b.Withdraw(block); gone || news {
		t.Fatal("a block with a pod in it was withdrawn")
	}
	if err := b.Release(key("p1")); err != nil {
		t.Fatal(err)
	}
	if gone, news := b.Withdraw(block); !gone || !news {
		t.Fatal("an empty block was not withdrawn")
	}
	if gone, news := b.Withdraw(block); !gone || news {
		t.Error("that it is withdrawn is news a second time")
	}
	again := func() error {
		_, err := b.Allocate(key("p2"), ipam.Owner{}, []ipam.Want{{Family: ipam.IPv4}}, "")
		return err
	}
	if err := again(); !ipam.IsExhausted(err) {
		t.Fatalf("got %v, want no address of a withdrawn block", err)
	}
	// The lease is not gone yet, and the node loop sets something else too.
	other := ipam.RangeFor(netip.MustParsePrefix("10.244.1.0/31"), ipam.Block)
	b.SetRanges([]ipam.Range{testRange(), other})
	if got := allocate(t, b, "p2", ""); block.Contains(got) {
		t.Fatalf("%v is of a withdrawn block", got)
	}
	// Nor is a part of it given that belongs to a pool.
	pooled := ipam.Range{Prefix: netip.PrefixFrom(block.Addr(), block.Bits()+1), Pool: "p"}
	b.SetRanges([]ipam.Range{pooled, other})
	if got := b.Lasting([]ipam.Range{pooled, other}); len(got) != 1 || got[0].Prefix != other.Prefix {
		t.Errorf("what lasts: %v, want %v only", got, other.Prefix)
	}
	// It is gone, and is leased again later.
	b.SetRanges([]ipam.Range{other})
	b.SetRanges([]ipam.Range{testRange(), other})
	if got := allocate(t, b, "p3", ""); !block.Contains(got) {
		t.Errorf("got %v, want an address of the block that was leased again", got)
	}
}

// TestWithdrawWhatWasNotGiven: an address whose lease was given back before it could be
// used is given once a later lease of it can.
func TestWithdrawWhatWasNotGiven(t *testing.T) {
	b := newBench(t, t.TempDir()).open()
	defer b.Close()
	single := ipam.Range{Prefix: netip.MustParsePrefix("10.244.9.1/32"), Pool: "p", Single: true}
	ranges := []ipam.Range{testRange()}
	b.SetRanges(ranges)
	if gone, err := b.WithdrawAddresses([]netip.Addr{single.Prefix.Addr()}); err != nil || len(gone) != 1 {
		t.Fatalf("withdrawn: %v, %v; want one address", gone, err)
	}
	b.SetRanges(ranges) // what the node gives is as it was
	b.SetRanges(append(ranges, single))
	got, err := b.Allocate(key("p1"), ipam.Owner{}, []ipam.Want{{Family: ipam.IPv4, Pools: []string{"p"}}}, "")
	if err != nil || got[0] != single.Prefix.Addr() {
		t.Errorf("got %v, %v; want %s", got, err, single.Prefix.Addr())
	}
}

func TestUsage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, t.TempDir()).open()
		defer b.Close()
		block, other := testRange().Prefix, netip.MustParsePrefix("10.244.0.64/26")
		allocate(t, b, "p1", "")
		count := func(p netip.Prefix) string {
			u := b.Usage([]netip.Prefix{block, other}, []ipam.Range{testRange()})[p]
			return fmt.Sprint(u.Total, u.Free, u.Held, u.EmptySince.IsZero())
		}
		if got := count(block); got != "62 61 1 true" {
			t.Errorf("got %s", got)
		}
		if got := count(other); got != "0 0 0 false" {
			t.Errorf("a block that is not used: got %s", got)
		}
		if err := b.Release(key("p1")); err != nil {
			t.Fatal(err)
		}
		start := time.Now()
		count(block)
		time.Sleep(time.Minute)
		if got := b.Usage([]netip.Prefix{block}, nil)[block].EmptySince; !got.Equal(start) {
			t.Errorf("empty since %v, want %v", got, start)
		}
	})
}

func TestOutsideAndCounts(t *testing.T) {
	b := newBench(t, t.TempDir()).open()
	defer b.Close()
	a := allocate(t, b, "p1", "")
	if err := b.Record(key("p2"), ipam.Owner{}, addrs("10.9.9.9", "fd00::9"), ""); err != nil {
		t.Fatal(err)
	}
	if got := b.Outside([]netip.Prefix{testRange().Prefix}); !slices.Equal(got, addrs("10.9.9.9", "fd00::9")) {
		t.Errorf("outside: %v", got)
	}
	if b.Count() != 3 || b.Free(plan.IPv4) != 61 || !b.IsHeld(a) {
		t.Errorf("count %d, free %d, held %v", b.Count(), b.Free(plan.IPv4), b.IsHeld(a))
	}
	select {
	case <-b.Changed():
	default:
		t.Error("nobody was told")
	}
}

// TestNoAddressTwice is invariant 1 under any order of ADD, DEL, kills (with and
// without the journal), tombstones and sweeps: an address that a wired pod has
// is never given to another.
func TestNoAddressTwice(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		dir, err := os.MkdirTemp("", "rwt-book-")
		if err != nil {
			rt.Fatal(err)
		}
		defer os.RemoveAll(dir)
		be := newBench(t, dir)
		be.write("netns/one", "")
		b := be.open()
		pods := map[string]netip.Addr{} // running pods -> address
		next := 0
		for range rapid.IntRange(1, 40).Draw(rt, "steps") {
			switch rapid.SampledFrom([]string{"add", "add", "add", "del", "del without agent", "vanish", "kill", "kill, journal lost", "sweep"}).Draw(rt, "step") {
			case "add":
				name := fmt.Sprint("p", next)
				next++
				be.write("netns/"+name, "")
				a := allocate(rt, b, name, dir+"/netns/"+name)
				for other, has := range pods {
					if has == a {
						rt.Fatalf("%s and %s both have %s", name, other, a)
					}
				}
				pods[name] = a
				be.kernel.links = append(be.kernel.links, link(t, name, a))
			case "del":
				if name := anyPod(rt, pods); name != "" {
					be.unwire(name, pods)
					if err := b.Release(key(name)); err != nil {
						rt.Fatal(err)
					}
				}
			case "del without agent":
				if name := anyPod(rt, pods); name != "" {
					be.unwire(name, pods)
					if err := cniwire.WriteTombstone(be.options.TombstoneDir, cniwire.Tombstone{Attachment: cniwire.Attachment{Network: "net", ContainerID: name, IfName: "eth0"}}); err != nil {
						rt.Fatal(err)
					}
				}
			case "vanish":
				if name := anyPod(rt, pods); name != "" {
					be.unwire(name, pods)
				}
			case "kill":
				b.Close()
				b = be.open()
			case "kill, journal lost":
				b.Close()
				if err := os.Remove(be.options.JournalPath); err != nil {
					rt.Fatal(err)
				}
				b = be.open()
			case "sweep":
				if err := b.Sweep(); err != nil {
					rt.Fatal(err)
				}
			}
			for name, a := range pods {
				if got, ok := b.AddressesOf(key(name)); !ok || got[0] != a {
					rt.Fatalf("running pod %s has %s, and the book says %v", name, a, got)
				}
			}
		}
		b.Close()
	})
}

// unwire removes a pod's link and network namespace.
func (b *bench) unwire(name string, pods map[string]netip.Addr) {
	delete(pods, name)
	linkName := podlink.HostLinkName("net", name, "eth0")
	b.kernel.links = slices.DeleteFunc(b.kernel.links, func(l dataplane.PodLink) bool { return l.Name == linkName })
	if err := os.Remove(b.dir + "/netns/" + name); err != nil {
		b.t.Error(err)
	}
}

func anyPod(rt *rapid.T, pods map[string]netip.Addr) string {
	var names []string
	for name := range pods {
		names = append(names, name)
	}
	if len(names) == 0 {
		return ""
	}
	slices.Sort(names)
	return rapid.SampledFrom(names).Draw(rt, "pod")
}

// failer is a test, or a step of a property.
type failer interface {
	Helper()
	Fatal(args ...any)
}

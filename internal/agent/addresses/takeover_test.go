package addresses

import (
	"encoding/base64"
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"ropeway.dev/ropeway/internal/cniwire"
	"ropeway.dev/ropeway/internal/ipam"
)

// note writes what the CNI library notes of a container's attachment (libcni
// 1.3.1, cachedInfo); netns "" is an older library's.
func (b *bench) note(container, address, netns string) {
	b.noteOf(container, address, netns, "{}")
}

// noteOf is note of a network that was configured so.
func (b *bench) noteOf(container, address, netns, config string) {
	b.write("results/net-"+container+"-eth0", fmt.Sprintf(`{"kind":"cniCacheV1","containerId":%q,"config":%q,"ifName":"eth0","networkName":"net","netns":%q,
"cniArgs":[["IgnoreUnknown","1"],["K8S_POD_NAMESPACE","ns"],["K8S_POD_NAME",%q],["K8S_POD_UID",%q]],"result":{"cniVersion":"1.0.0","ips":[{"address":"%s/32"}]}}`,
		container, base64.StdEncoding.EncodeToString([]byte(config)), netns, container, "uid-"+container, address))
}

// file writes a file of host-local's, as old as given.
func (b *bench) file(container, address string, age time.Duration) {
	b.write("host-local/net/"+address, container+"\r\neth0")
	at := time.Now().Add(-age)
	if err := os.Chtimes(b.options.HostLocalDir+"/net/"+address, at, at); err != nil {
		b.t.Fatal(err)
	}
}

func (b *bench) files() string {
	var out []string
	for _, r := range readHostLocal(b.options.HostLocalDir) {
		out = append(out, r.Key.ContainerID)
	}
	return strings.Join(out, " ")
}

func said(taken []Taken) string {
	var b strings.Builder
	for _, t := range taken {
		fmt.Fprintf(&b, "%s %s %s %s\n", t.Address, t.From, t.Action, t.Owner.Name)
	}
	return b.String()
}

// TestTakeOver goes through every kind of record; the dry run says the same, and
// does nothing.
func TestTakeOver(t *testing.T) {
	be := newBench(t, t.TempDir())
	be.write("netns/other", "")
	be.write("netns/lives", "")
	be.file("wired", "10.244.0.10", time.Hour)
	be.file("lives", "10.244.0.11", time.Hour)
	be.file("gone", "10.244.0.12", time.Second)
	be.file("silent", "10.244.0.13", time.Hour)
	be.file("starting", "10.244.0.14", time.Second)
	be.file("older-library", "10.244.0.15", time.Hour)
	be.file("former", "10.244.0.16", time.Hour)
	be.note("lives", "10.244.0.11", be.dir+"/netns/lives")
	be.note("gone", "10.244.0.12", be.dir+"/netns/gone")
	be.note("older-library", "10.244.0.15", "")
	be.note("macvlan", "10.244.0.20", be.dir+"/netns/lives")
	be.kernel.links = append(be.kernel.links, link(t, "wired", addrs("10.244.0.10")...), link(t, "present", addrs("10.244.0.16")...))
	b := be.open()
	defer b.Close()
	allocate(t, b, "ours", "") // 10.244.0.2
	owner := func(name string) ipam.Owner { return ipam.Owner{Namespace: "ns", Name: name, UID: "uid-" + name} }
	claims := []Claim{
		{addrs("10.244.0.20")[0], owner("macvlan")},
		{addrs("10.244.0.21")[0], owner("unnoted")},
		{addrs("10.244.0.2")[0], owner("twice")},
	}
	const want = `10.244.0.2 Spiderpool conflict twice
10.244.0.20 Spiderpool hold macvlan
10.244.0.21 Spiderpool hold unnoted
10.244.0.10 host-local held wired
10.244.0.11 host-local held lives
10.244.0.12 host-local free gone
10.244.0.13 host-local free 
10.244.0.14 host-local keep 
10.244.0.15 host-local held older-library
10.244.0.16 host-local free 
`
	before, beforeFiles := held(b), be.files()
	for _, dryRun := range []bool{true, false} {
		got, err := b.TakeOver(claims, dryRun)
		if err != nil || said(got) != want {
			t.Errorf("dry run %t: %v\n%s\nwant\n%s", dryRun, err, said(got), want)
		}
		if dryRun && (held(b) != before || be.files() != beforeFiles) {
			t.Errorf("the dry run changed something: %s, %s", held(b), be.files())
		}
	}
	if got := be.files(); got != "wired lives starting older-library" {
		t.Errorf("the files of %s are left", got)
	}
	now := held(b)
	for _, wanted := range []string{"macvlan[10.244.0.20]", "uid-unnoted[10.244.0.21]", "wired[10.244.0.10]", "lives[10.244.0.11]", "present[10.244.0.16]", "starting[10.244.0.14]"} {
		if !strings.Contains(now, wanted) {
			t.Errorf("%s is not among %s", wanted, now)
		}
	}
	for _, freed := range []string{"10.244.0.12", "10.244.0.13"} {
		if strings.Contains(now, freed) {
			t.Errorf("%s is held: %s", freed, now)
		}
	}
	again, err := b.TakeOver(claims, false)
	if err != nil || strings.Contains(said(again), "hold ") || strings.Contains(said(again), "free") {
		t.Errorf("the second time: %v\n%s", err, said(again))
	}
	if err := b.Release(key("macvlan")); err != nil || b.IsHeld(addrs("10.244.0.20")[0]) {
		t.Errorf("the DEL of a pod that was taken over: %v, %s", err, held(b))
	}
}

// TestTakeOverWithoutTheRuntimesNotes frees nothing that only they could speak for.
func TestTakeOverWithoutTheRuntimesNotes(t *testing.T) {
	be := newBench(t, t.TempDir())
	be.file("silent", "10.244.0.13", time.Hour)
	b := be.open()
	defer b.Close()
	got, err := b.TakeOver(nil, false)
	if err != nil || len(got) != 1 || got[0].Action != ActionKeep || be.files() != "silent" {
		t.Errorf("%v %+v, files %s", err, got, be.files())
	}
}

// TestStandInBecomesItsPod: a route to another product's link held the address;
// the runtime's note says whose it is.
func TestStandInBecomesItsPod(t *testing.T) {
	be := newBench(t, t.TempDir())
	a := addrs("10.244.0.20")[0]
	be.kernel.foreign = []ForeignPod{{Link: "cali1", Address: a}}
	b := be.open()
	defer b.Close()
	owner := ipam.Owner{Namespace: "ns", Name: "p", UID: "uid-p"}
	got, err := b.TakeOver([]Claim{{a, owner}}, false)
	if err != nil || got[0].Action != ActionHeld {
		t.Errorf("without a note: %v %+v", err, got)
	}
	be.note("p", a.String(), "/run/netns/none")
	got, err = b.TakeOver([]Claim{{a, owner}}, false)
	if err != nil || got[0].Action != ActionHold || held(b) != "p[10.244.0.20]" {
		t.Errorf("with one: %v %+v; %s is held", err, got, held(b))
	}
}

// TestHostLocalsFileGoesWithItsPod: after a change from host-local nobody calls
// it any more, and a file that stayed would hold the address at every start.
func TestHostLocalsFileGoesWithItsPod(t *testing.T) {
	for name, end := range map[string]func(*bench, *Book) error{
		"DEL": func(_ *bench, b *Book) error { return b.Release(key("p")) },
		"DEL without an agent": func(be *bench, b *Book) error {
			return errors.Join(cniwire.WriteTombstone(be.options.TombstoneDir, cniwire.Tombstone{Attachment: cniwire.Attachment{Network: "net", ContainerID: "p", IfName: "eth0"}}), b.Sweep())
		},
		"GC":                func(_ *bench, b *Book) error { _, err := b.Retain("net", nil); return err },
		"its netns is gone": func(_ *bench, b *Book) error { return errors.Join(b.Sweep(), b.Sweep()) },
	} {
		t.Run(name, func(t *testing.T) {
			be := newBench(t, t.TempDir())
			be.write("netns/other", "")
			b := be.open()
			defer b.Close()
			if err := b.Record(key("p"), ipam.Owner{}, addrs("10.244.0.30"), be.dir+"/netns/p"); err != nil {
				t.Fatal(err)
			}
			be.file("p", "10.244.0.30", time.Second)
			be.file("q", "10.244.0.31", time.Second)
			if err := end(be, b); err != nil {
				t.Fatal(err)
			}
			if be.files() != "q" || b.IsHeld(addrs("10.244.0.30")[0]) {
				t.Errorf("the files of %q are left, and %s is held", be.files(), held(b))
			}
		})
	}
}

// TestReleaseLeaked: whatever speaks for a holder stands in the way.
func TestReleaseLeaked(t *testing.T) {
	be := newBench(t, t.TempDir())
	be.write("netns/other", "")
	be.write("netns/lives", "")
	b := be.open()
	defer b.Close()
	owner := ipam.Owner{Namespace: "ns", Name: "p", UID: "uid"}
	hold := func(container, address, netns string, o ipam.Owner) {
		if err := b.Record(key(container), o, addrs(address), netns); err != nil {
			t.Fatal(err)
		}
	}
	hold("wired", "10.244.0.40", be.dir+"/netns/gone", owner)
	be.kernel.links = append(be.kernel.links, link(t, "wired", addrs("10.244.0.40")...))
	hold("lives", "10.244.0.41", be.dir+"/netns/lives", owner)
	hold("known", "10.244.0.42", "", owner)
	hold("silent", "10.244.0.43", "", ipam.Owner{})
	hold("gone", "10.244.0.44", be.dir+"/netns/gone", owner)
	podIsThere := true
	for _, c := range []struct {
		container, address string
		there, gone        bool
		want               string // "" if it is released
	}{
		{"wired", "10.244.0.40", false, true, "leads to it"},
		{"lives", "10.244.0.41", false, true, "network namespace of its sandbox is there"},
		{"known", "10.244.0.42", true, true, "pod ns/p has it"},
		{"known", "10.244.0.42", false, false, "--sandbox-gone"},
		{"known", "10.244.0.42", false, true, ""},
		{"silent", "10.244.0.43", false, false, "--sandbox-gone"},
		{"silent", "10.244.0.43", false, true, ""},
		{"another", "10.244.0.44", false, true, "another holder"},
		{"gone", "10.244.0.44", true, false, ""},
		{"gone", "10.244.0.44", false, true, "nothing to release"},
	} {
		podIsThere = c.there
		err := b.ReleaseLeaked(addrs(c.address)[0], key(c.container), func(ipam.Owner) bool { return podIsThere }, c.gone)
		if _, spoken := errors.AsType[*InUseError](err); c.want == "" && err != nil || c.want != "" && (!spoken || !strings.Contains(err.Error(), c.want)) {
			t.Errorf("%+v: %v", c, err)
		}
		if b.IsHeld(addrs(c.address)[0]) != (c.want != "" && c.want != "nothing to release") {
			t.Errorf("%+v: held is %t", c, b.IsHeld(addrs(c.address)[0]))
		}
	}
}

func TestView(t *testing.T) {
	be := newBench(t, t.TempDir())
	be.write("netns/other", "")
	be.file("file", "10.244.0.50", time.Hour)
	be.kernel.links = append(be.kernel.links, link(t, "p", addrs("10.244.0.9")...))
	be.kernel.foreign = []ForeignPod{{Link: "cali1", Address: addrs("10.244.0.10")[0]}}
	b := be.open()
	defer b.Close()
	allocate(t, b, "gone", be.dir+"/netns/gone")
	v, err := b.View()
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, h := range v.Holdings {
		got = append(got, fmt.Sprint(h.Key.ContainerID, h.Addresses, h.Sandbox, h.StandIn))
	}
	if want := "cali1[10.244.0.10]unknowntrue file[10.244.0.50]unknownfalse gone[10.244.0.2]gonefalse p[10.244.0.9]livesfalse"; strings.Join(got, " ") != want {
		t.Errorf("it holds %v, want %s", got, want)
	}
	if len(v.Links) != 2 || !v.Links[0].Ours || v.Links[0].Owner.Name != "p" || v.Links[1].Ours || len(v.HostLocal) != 1 {
		t.Errorf("%+v", v)
	}
}

// TestAnothersFileStays: host-local has given the address to another container
// meanwhile.
func TestAnothersFileStays(t *testing.T) {
	be := newBench(t, t.TempDir())
	b := be.open()
	defer b.Close()
	if err := b.Record(key("p"), ipam.Owner{}, addrs("10.244.0.30"), ""); err != nil {
		t.Fatal(err)
	}
	be.file("q", "10.244.0.30", time.Second)
	if err := b.Release(key("p")); err != nil || be.files() != "q" {
		t.Errorf("%v; the files of %q are left", err, be.files())
	}
}

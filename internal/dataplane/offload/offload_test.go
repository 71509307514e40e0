package offload

import (
	"errors"
	"slices"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"ropeway.dev/ropeway/internal/dataplane/podlink/netnstest"
)

// TestChange: what was switched is what the kernel shows, and nothing else changes.
func TestChange(t *testing.T) {
	netnstest.New(t).Enter(t)
	if err := netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "a"}, PeerName: "b"}); err != nil {
		t.Fatal(err)
	}
	link, err := netlink.LinkByName("a")
	if err != nil {
		t.Fatal(err)
	}
	index := link.Attrs().Index
	active := func() []string {
		t.Helper()
		names, err := Features(index, unix.ETHTOOL_A_FEATURES_ACTIVE)
		if err != nil {
			t.Fatal(err)
		}
		slices.Sort(names)
		return names
	}
	before := active()
	if !slices.Contains(before, "tx-gre-segmentation") || slices.Contains(before, "rx-gro-list") {
		t.Fatalf("a new veth has %v", before)
	}
	if err := Change(index, map[string]bool{"tx-gre-segmentation": false, "rx-gro-list": true}); err != nil {
		t.Fatal(err)
	}
	want := slices.DeleteFunc(append(slices.Clone(before), "rx-gro-list"), func(f string) bool { return f == "tx-gre-segmentation" })
	slices.Sort(want)
	if got := active(); !slices.Equal(got, want) {
		t.Errorf("got\n%v\nwant\n%v", got, want)
	}
	changeable, err := Features(index, unix.ETHTOOL_A_FEATURES_HW)
	if err != nil || !slices.Contains(changeable, "tx-gre-segmentation") {
		t.Errorf("%v, %v", changeable, err)
	}
}

func TestWhatIsNotThere(t *testing.T) {
	netnstest.New(t).Enter(t)
	if _, err := Features(4711, unix.ETHTOOL_A_FEATURES_HW); !errors.Is(err, unix.ENODEV) {
		t.Errorf("no such link: %v", err)
	}
	if err := Change(1, map[string]bool{"tx-no-such-thing": true}); !errors.Is(err, unix.EOPNOTSUPP) {
		t.Errorf("no such feature: %v", err)
	}
}

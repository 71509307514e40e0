package nodekernel

import (
	"net/netip"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"ropeway.dev/ropeway/internal/cniwire"
	"ropeway.dev/ropeway/internal/dataplane/podlink"
	"ropeway.dev/ropeway/internal/dataplane/podlink/netnstest"
)

// TestReadsPods: our pods with their aliases, other products' by their routes,
// and nothing else that a node's routing table has.
func TestReadsPods(t *testing.T) {
	node, pod := netnstest.New(t), netnstest.New(t)
	a := cniwire.Attachment{Network: "net", ContainerID: "c1", IfName: "eth0"}
	ours := []netip.Addr{netip.MustParseAddr("10.244.0.2"), netip.MustParseAddr("fd00::2")}
	err := node.Do(func() error {
		script := `
			ip link add cali1 type veth peer name p1; ip link set cali1 up; ip link set p1 up
			ip link add br0 type bridge; ip link set br0 up
			ip route add 10.244.0.9/32 dev cali1 scope link
			ip -6 route add fd00::9/128 dev cali1
			ip route add 10.99.0.0/24 dev cali1
			ip route add 10.244.0.10/32 dev br0
			ip addr add 192.168.0.10/24 dev br0
			ip route add 10.244.0.11/32 via 192.168.0.1 dev br0`
		if out, err := exec.Command("sh", "-ec", script).CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		_, err := podlink.Add(podlink.Config{Attachment: a, Netns: pod.Path(), MTU: 1500, Addresses: ours})
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	node.Enter(t)
	links, err := Kernel{}.PodLinks()
	if err != nil || len(links) != 1 || !slices.Equal(links[0].Addresses, ours) || !strings.Contains(links[0].Alias, "c1") {
		t.Errorf("pods' links: %+v, %v", links, err)
	}
	foreign, err := Kernel{}.ForeignPods()
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, p := range foreign {
		got = append(got, p.Link+" "+p.Address.String())
	}
	if s := strings.Join(got, ", "); s != "cali1 10.244.0.9, cali1 fd00::9" {
		t.Errorf("other products' pods: %s", s)
	}
}

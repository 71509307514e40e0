package dataplane

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"runtime"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"ropeway.dev/ropeway/internal/dataplane/bpf"
	"ropeway.dev/ropeway/internal/plan"
)

// Support is what the kernel and the tools of this machine offer.
type Support struct {
	// TCX is false where the eBPF programs are attached by clsact instead.
	TCX bool
	// Missing is what does not work, each with what it is needed for and what
	// to do about it. Empty if everything works.
	Missing []error
}

// Err returns what is missing as one error, or nil.
func (s Support) Err() error { return errors.Join(s.Missing...) }

// Probe tries everything that Set needs, in a network namespace of its own that
// is gone when it returns. It takes some 50 ms.
func Probe() Support {
	done := make(chan Support)
	go func() {
		// Never unlocked: the thread ends with the goroutine, and the namespace
		// with the thread.
		runtime.LockOSThread()
		var s Support
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			s.Missing = append(s.Missing, fmt.Errorf("make a network namespace (root is needed): %w", err))
		} else {
			s.probe()
		}
		done <- s
	}()
	return <-done
}

func (s *Support) probe() {
	tcx, err := bpf.Probe()
	s.TCX = tcx
	s.need("ipip, and the guard of vxlan", "Linux 5.10 with CONFIG_NET_CLS_BPF or 6.6 with CONFIG_NET_XGRESS", err)
	s.need("vxlan", "CONFIG_VXLAN", probeVXLAN())
	s.need("translation and guards", "nft 1.0.1, and Linux 5.10 with CONFIG_NF_TABLES_INET, NFT_FIB_INET, NFT_REJECT_INET, NFT_NAT and NFT_MASQ", probeRules())
}

func (s *Support) need(what, how string, err error) {
	if err != nil {
		s.Missing = append(s.Missing, fmt.Errorf("%s (needs %s): %w", what, how, err))
	}
}

func probeVXLAN() error {
	return netlink.LinkAdd(&netlink.Vxlan{
		LinkAttrs: netlink.LinkAttrs{Name: VXLANDeviceName, TxQLen: -1}, VxlanId: 1, Port: 4789,
	})
}

// probeRules writes the very rules of a node to the namespace.
func probeRules() error {
	source := netip.AddrFrom4([4]byte{192, 0, 2, 1})
	rules := rulesFor(plan.State{
		Addresses: []netip.Addr{source}, Sources: []netip.Addr{source},
		PodCIDRs: []netip.Prefix{netip.PrefixFrom(source, 24)}, VXLAN: plan.VXLANDevice{Port: 4789}, Masquerade: true,
	}, clamps{ipv4: 1400, ipv6: 1400})
	_, err := runNFT(context.Background(), rules.String(), "-f", "-")
	return err
}

package preflight

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// feature is something the kernel must be able to do, tried by doing it in
// namespaces that vanish afterwards.
type feature struct {
	name   string
	advice string
	try    func(ctx context.Context) error
}

func features() []feature {
	return []feature{
		{"veth links", "CONFIG_VETH", func(context.Context) error {
			return netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "rwt0"}, PeerName: "rwt1"})
		}},
		{"vxlan links", "CONFIG_VXLAN", func(context.Context) error {
			return netlink.LinkAdd(&netlink.Vxlan{LinkAttrs: netlink.LinkAttrs{Name: "rwt2"}, VxlanId: 1, Port: 4789})
		}},
		{"nftables with NAT", "CONFIG_NF_TABLES_INET, CONFIG_NFT_NAT, CONFIG_NFT_MASQ, CONFIG_NFT_FIB_INET", tryNFT},
		{"BPF programs on network devices (tcx)", "CONFIG_BPF_SYSCALL, CONFIG_NET_XGRESS; Linux 6.6 or later", tryTCX},
		{"the overlay file system", "CONFIG_OVERLAY_FS", tryOverlay},
		{"the bpf file system", "CONFIG_BPF_SYSCALL", func(context.Context) error {
			return tryMount("bpf", "bpf", "")
		}},
	}
}

// kernel tries every feature on a thread in network and mount namespaces of
// its own, which end with the thread.
func kernel(ctx context.Context) Problems {
	result := make(chan Problems)
	go func() {
		// Never unlocked: the thread must not serve anything else again.
		runtime.LockOSThread()
		result <- tryAll(ctx)
	}()
	return <-result
}

func tryAll(ctx context.Context) Problems {
	if err := unix.Unshare(unix.CLONE_NEWNET | unix.CLONE_NEWNS); err != nil {
		return Problems{fmt.Sprintf("new network and mount namespaces cannot be made (%v): run as root with CAP_SYS_ADMIN, "+
			"not inside an unprivileged container", err)}
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return Problems{fmt.Sprintf("mounts cannot be made private (%v): run as root with CAP_SYS_ADMIN", err)}
	}
	var found Problems
	for _, f := range features() {
		if err := f.try(ctx); err != nil {
			found = append(found, fmt.Sprintf("the kernel cannot do %s (%v): it needs %s, built in or as a loadable module", f.name, err, f.advice))
		}
	}
	return found
}

func tryNFT(ctx context.Context) error {
	const rules = `table inet rwt {
	set peers { type ipv4_addr; }
	chain nat { type nat hook postrouting priority srcnat; ip saddr @peers masquerade; }
	chain in { type filter hook prerouting priority raw; fib saddr . iif oif missing ct state new drop; }
}`
	cmd := exec.CommandContext(ctx, "nft", "-f", "-")
	cmd.Stdin = bytes.NewReader([]byte(rules))
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("nft: %w: %s", err, bytes.TrimSpace(out))
	}
	return nil
}

func tryTCX(context.Context) error {
	program, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Type:         ebpf.SchedCLS,
		Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, 0), asm.Return()},
		License:      "Apache-2.0",
	})
	if err != nil {
		return err
	}
	defer program.Close()
	const loopback = 1
	attached, err := link.AttachTCX(link.TCXOptions{Interface: loopback, Program: program, Attach: ebpf.AttachTCXIngress})
	if err != nil {
		return err
	}
	return attached.Close()
}

func tryOverlay(context.Context) error {
	base, err := os.MkdirTemp("", "rwt-overlay-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(base)
	if err := unix.Mount("tmpfs", base, "tmpfs", 0, ""); err != nil {
		return err
	}
	defer unix.Unmount(base, unix.MNT_DETACH)
	for _, dir := range []string{"upper", "work", "merged"} {
		if err := os.Mkdir(filepath.Join(base, dir), 0o755); err != nil {
			return err
		}
	}
	merged := filepath.Join(base, "merged")
	options := fmt.Sprintf("lowerdir=/,upperdir=%s/upper,workdir=%s/work", base, base)
	if err := unix.Mount("overlay", merged, "overlay", 0, options); err != nil {
		return err
	}
	return unix.Unmount(merged, unix.MNT_DETACH)
}

// tryMount mounts a file system on a temporary directory and unmounts it.
func tryMount(kind, source, options string) error {
	dir, err := os.MkdirTemp("", "rwt-mount-")
	if err != nil {
		return err
	}
	defer os.Remove(dir)
	if err := unix.Mount(source, dir, kind, 0, options); err != nil {
		return err
	}
	return unix.Unmount(dir, unix.MNT_DETACH)
}

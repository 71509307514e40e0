package crash

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/containernetworking/plugins/pkg/ns"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"ropeway.dev/ropeway/bench/scale"
	"ropeway.dev/ropeway/internal/dataplane/podlink"
)

// node is a machine: a kernel's namespace, a file system in memory that a boot
// clears, and an agent, or none.
type node struct {
	number  int
	dir     string
	hosts   *scale.Hosts
	agent   *scale.Agent // nil while it is dead
	full    bool         // its disk
	reboots int
}

// runSize is that of the file system of a node's state, which is to be full soon.
const runSize = "2m"

func (n *node) name() string  { return scale.NodeName(n.number) }
func (n *node) run() string   { return scale.RunDir(n.dir) }
func (n *node) netns() string { return n.hosts.Netns(n.number) }

// mount gives the node an empty file system for its state.
func (n *node) mount() error {
	if err := os.MkdirAll(n.run(), 0o755); err != nil {
		return err
	}
	return unix.Mount("rwcrash", n.run(), "tmpfs", 0, "size="+runSize)
}

func (n *node) unmount() error { return unix.Unmount(n.run(), unix.MNT_DETACH) }

// start starts the agent, if none runs.
func (n *node) start(ctx context.Context) (err error) {
	if n.agent != nil && n.agent.Alive() == nil {
		return nil
	}
	if err := n.kill(); err != nil { // one that ended by itself
		return err
	}
	n.agent, err = n.hosts.StartAgentIn(ctx, n.dir, n.number)
	return err
}

func (n *node) kill() error {
	if n.agent == nil {
		return nil
	}
	agent := n.agent
	n.agent = nil
	return agent.Kill()
}

// wipe removes the agent's state, as somebody does who thinks it is rubbish.
func (n *node) wipe() error {
	entries, err := os.ReadDir(n.run())
	for _, e := range entries {
		err = errors.Join(err, os.RemoveAll(filepath.Join(n.run(), e.Name())))
	}
	return err
}

// boot is what a boot does to the agent's state: mostly nothing is left of it;
// where it is on a disk, it is of another boot.
func (n *node) boot() error {
	n.reboots++
	if n.reboots%2 == 0 {
		if err := n.drain(); err != nil { // it may be full, and this is no write of the agent's
			return err
		}
		return os.WriteFile(filepath.Join(n.run(), "boot-id"), []byte("another"), 0o600)
	}
	return errors.Join(n.unmount(), n.mount())
}

func (n *node) filler() string { return filepath.Join(n.run(), "filler") }

// fill leaves no byte of the node's disk.
func (n *node) fill() error {
	n.full = true
	file, err := os.Create(n.filler())
	if err != nil {
		return nil //nolint:nilerr // fuller than full
	}
	defer file.Close()
	for block := make([]byte, 4096); ; {
		if _, err := file.Write(block); errors.Is(err, unix.ENOSPC) {
			return nil
		} else if err != nil {
			return err
		}
	}
}

func (n *node) drain() error {
	n.full = false
	if err := os.Remove(n.filler()); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

// links maps address -> the container that the node's kernel delivers it to.
func (n *node) links() (map[netip.Addr]string, error) {
	out := map[netip.Addr]string{}
	err := ns.WithNetNSPath(n.netns(), func(ns.NetNS) error {
		links, err := podlink.List()
		for _, l := range links {
			at, _, bad := podlink.ParseAlias(l.Alias)
			for _, a := range l.Addresses {
				if bad != nil {
					return fmt.Errorf("%s leads to %s, whose alias says nothing: %w", a, l.Name, bad)
				}
				out[a] = at.ContainerID
			}
		}
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("node %s: %w", n.name(), err)
	}
	return out, nil
}

// nextHop is where the node's kernel sends what is for an address.
func (n *node) nextHop(a netip.Addr) (hop netip.Addr, err error) {
	err = ns.WithNetNSPath(n.netns(), func(ns.NetNS) error {
		routes, err := netlink.RouteGet(a.AsSlice())
		if err == nil && len(routes) > 0 {
			hop, _ = netip.AddrFromSlice(routes[0].Gw)
		}
		return err
	})
	return hop.Unmap(), err
}

// metric is a figure of the agent's.
func (n *node) metric(ctx context.Context, name string) (float64, error) {
	if n.agent == nil {
		return 0, errors.New("no agent")
	}
	metrics, err := n.agent.Metrics(ctx)
	return scale.Sum(metrics, name), err
}

// podAddresses are those of a sandbox's interface, which is up.
func podAddresses(netns string) ([]netip.Addr, error) {
	var out []netip.Addr
	err := ns.WithNetNSPath(netns, func(ns.NetNS) error {
		link, err := netlink.LinkByName("eth0")
		if err != nil || link.Attrs().RawFlags&unix.IFF_LOWER_UP == 0 {
			return err
		}
		addrs, err := netlink.AddrList(link, netlink.FAMILY_V4)
		for _, a := range addrs {
			ip, _ := netip.AddrFromSlice(a.IP)
			out = append(out, ip.Unmap())
		}
		return err
	})
	return out, err
}

// ip runs the program of that name.
func ip(args ...string) error {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if out, err := exec.CommandContext(ctx, "ip", args...).CombinedOutput(); err != nil {
		return fmt.Errorf("ip %s: %w: %s", strings.Join(args, " "), err, strings.TrimSpace(string(out)))
	}
	return nil
}

package dataplane

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/vishvananda/netlink"

	"ropeway.dev/ropeway/internal/plan"
)

// Settings of the kernel that Set changes, and nothing else:
//
//   - net.ipv4.ip_forward and, if pods have IPv6, net.ipv6.conf.all.forwarding:
//     1. Clean leaves them, since others may rely on them by then.
//   - net.ipv6.conf.UPLINK.accept_ra: 1 -> 2 before IPv6 forwarding is switched
//     on, so that a default route from router advertisements stays.
//   - net.ipv4.conf.UPLINK.rp_filter: strict (1) -> loose (2). While a transport
//     changes, a peer's packets arrive by ipip at the uplink when this node
//     already answers by vxlan, and a strict filter would drop them.
//   - net.ipv4.conf.rw-vxlan.rp_filter: 0, or 2 where net.ipv4.conf.all says 1,
//     for the same reason (the larger of both counts); and, if pods have IPv6,
//     net.ipv6.conf.rw-vxlan.disable_ipv6: 0.
//
// What is changed of an uplink is remembered in Options.StateDir, and Clean puts
// it back, but for accept_ra while the uplink still forwards IPv6: with 1 the node
// would lose its default route.
//
// The inner source of what arrives by a tunnel is checked by the eBPF guard,
// which is stricter than any of these.
const sysctlRoot = "/proc/sys/net"

func readSysctl(path string) (string, error) {
	b, err := os.ReadFile(filepath.Join(sysctlRoot, path))
	return string(bytes.TrimSpace(b)), err
}

// setSysctl writes a setting if it is not so. A file that is not there (a
// kernel without IPv6) is an error of kind fs.ErrNotExist.
func (k *kernel) setSysctl(path, value string) error {
	old, err := readSysctl(path)
	if err != nil {
		return fmt.Errorf("read kernel setting net/%s: %w", path, err)
	}
	if old == value {
		return nil
	}
	if err := os.WriteFile(filepath.Join(sysctlRoot, path), []byte(value), 0o644); err != nil {
		return fmt.Errorf("set kernel setting net/%s to %s (run privileged, or set it yourself): %w", path, value, err)
	}
	k.wrote("kernel setting", "setting", "net/"+path, "was", old, "is", value)
	return nil
}

// former maps a setting of an uplink (ipv4/conf/NAME/...) -> its value before Set
// changed it; and, so that a renamed uplink is found again, its NAME -> its index.
// Other releases, which know of no indexes, read and write the rest.
type former map[string]string

// follow gives settings of devices that have another name by now that name.
func (f former) follow(devices map[int]netlink.Link) {
	names := map[string]int{}
	for index, d := range devices {
		names[d.Attrs().Name] = index
	}
	for _, name := range slices.Collect(maps.Keys(f)) {
		index, err := strconv.Atoi(f[name])
		if _, there := names[name]; strings.Contains(name, "/") || err != nil || there || devices[index] == nil {
			continue
		}
		for path, was := range maps.Clone(f) {
			if parts := strings.Split(path, "/"); len(parts) == 4 && parts[2] == name {
				delete(f, path)
				parts[2] = devices[index].Attrs().Name
				f[strings.Join(parts, "/")] = was
			}
		}
		delete(f, name)
		f[devices[index].Attrs().Name] = strconv.Itoa(index)
	}
}

func (l *Linux) formerPath() string { return filepath.Join(l.options.StateDir, "settings.json") }

// readFormer returns what is remembered; nothing if the file is lost or torn.
func (l *Linux) readFormer() former {
	f := former{}
	if b, err := os.ReadFile(l.formerPath()); err == nil && json.Unmarshal(b, &f) != nil {
		return former{}
	}
	return f
}

// setUplink is setSysctl with a memory of what was. The path has UPLINK where the
// uplink's name is to be.
func (p *pass) setUplink(u Uplink, path, value string) error {
	path = strings.Replace(path, "UPLINK", u.Name, 1)
	was, err := readSysctl(path)
	if err != nil || was == value {
		return err
	}
	f := p.l.readFormer()
	f.follow(p.devices)
	if _, known := f[path]; !known {
		f[path], f[u.Name] = was, strconv.Itoa(u.Index)
		if err := writeState(p.l.formerPath(), f); err != nil {
			return fmt.Errorf("remember net/%s: %w", path, err)
		}
	}
	return p.k.setSysctl(path, value)
}

// restoreUplinks puts back what setUplink changed. Devices that are gone have
// nothing to put back.
func (l *Linux) restoreUplinks(k *kernel) error {
	devices, err := k.links()
	errs := []error{err}
	f := l.readFormer()
	f.follow(devices)
	for path, was := range f {
		if !strings.Contains(path, "/") {
			continue
		}
		if device, is := strings.CutSuffix(path, "/accept_ra"); is {
			if now, err := readSysctl(device + "/forwarding"); err == nil && now == "1" {
				continue
			}
		}
		if err := k.setSysctl(path, was); !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	if err := os.Remove(l.formerPath()); err != nil && !errors.Is(err, fs.ErrNotExist) {
		errs = append(errs, fmt.Errorf("forget former settings: %w", err))
	}
	return errors.Join(errs...)
}

// writeState writes a file of ours as a whole or not at all.
func writeState(path string, content any) error {
	b, err := json.Marshal(content)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return err
	}
	if err := os.WriteFile(path+".new", b, 0o600); err != nil {
		return err
	}
	return os.Rename(path+".new", path)
}

// nodeSysctls lets the node forward.
func (p *pass) nodeSysctls() error {
	errs := []error{p.k.setSysctl("ipv4/ip_forward", "1")}
	all, err := readSysctl("ipv4/conf/all/rp_filter")
	errs = append(errs, err)
	p.strictFilter = all == "1"
	for _, u := range p.report.Uplinks {
		own, err := readSysctl("ipv4/conf/" + u.Name + "/rp_filter")
		if err == nil && max(own, all) == "1" {
			err = p.loosen(u)
		}
		p.l.loose[u.Name] = err == nil
		errs = append(errs, err)
	}
	p.strictFault()
	if p.has(plan.IPv6) {
		errs = append(errs, p.forwardIPv6())
	}
	return errors.Join(errs...)
}

// strictMemory is how long a node is said to have somebody who sets rp_filter to
// strict, after it was last seen: programs that do so, do it again.
const strictMemory = 10 * time.Minute

// loosen sets an uplink's rp_filter from strict to loose. That it is strict when
// it is first seen is nothing special; after that, somebody has set it.
func (p *pass) loosen(u Uplink) error {
	_, again := p.l.readFormer()["ipv4/conf/"+u.Name+"/rp_filter"]
	again = again || p.l.loose[u.Name]
	if err := p.setUplink(u, "ipv4/conf/UPLINK/rp_filter", "2"); err != nil || !again {
		return err
	}
	p.l.strict[u.Name] = time.Now()
	p.l.log.Warn("somebody has set rp_filter of an uplink to strict; it is loose again", "uplink", u.Name)
	return nil
}

// strictFault says which uplinks somebody sets to strict.
func (p *pass) strictFault() {
	for _, u := range p.report.Uplinks {
		at, known := p.l.strict[u.Name]
		if known && time.Since(at) < strictMemory {
			p.report.Faults[plan.ReversePathFilter] = fmt.Sprintf("somebody set net.ipv4.conf.%s.rp_filter (or net.ipv4.conf.all.rp_filter) to strict (1), "+
				"which drops packets of pods whose answers leave by another device; it was set to loose (2) again", u.Name)
		}
	}
}

func (p *pass) forwardIPv6() error {
	for _, u := range p.report.Uplinks {
		if now, err := readSysctl("ipv6/conf/" + u.Name + "/accept_ra"); err != nil || now != "1" {
			continue
		}
		if err := p.setUplink(u, "ipv6/conf/UPLINK/accept_ra", "2"); err != nil {
			return err
		}
	}
	err := p.k.setSysctl("ipv6/conf/all/forwarding", "1")
	if errors.Is(err, fs.ErrNotExist) {
		return errors.New("the pod network has IPv6 CIDRs, and this node's kernel has no IPv6: boot it without ipv6.disable=1")
	}
	return err
}

// has reports whether the pod network has the family.
func (p *pass) has(f plan.Family) bool {
	for _, c := range p.want.PodCIDRs {
		if plan.FamilyOf(c.Addr()) == f {
			return true
		}
	}
	return false
}

// vxlanSysctls prepares the vxlan device for packets whose way back is by the
// uplink.
func (p *pass) vxlanSysctls() error {
	filter := "0"
	if p.strictFilter {
		filter = "2"
	}
	err := p.k.setSysctl("ipv4/conf/"+VXLANDeviceName+"/rp_filter", filter)
	if p.has(plan.IPv6) {
		err = errors.Join(err, p.k.setSysctl("ipv6/conf/"+VXLANDeviceName+"/disable_ipv6", "0"))
	}
	return errors.Join(err, p.k.addSources(p.vxlanIndex, "", ownSources(p.addresses, p.vxlanIndex), p.vxlanSources()))
}

package lab

import (
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"

	"ropeway.dev/ropeway/internal/lab/build"
	"ropeway.dev/ropeway/internal/lab/ledger"
	"ropeway.dev/ropeway/internal/lab/source"
	"ropeway.dev/ropeway/internal/lab/vpc"
)

// installTestNetwork is the smallest pod network that works: the reference
// plugins ptp and host-local on each node's podCIDRs, and one VPC route for
// each podCIDR. It exists to try the lab without Ropeway.
func installTestNetwork(ctx context.Context, l *Lab) error {
	plugins := filepath.Join(l.Dir(), "test-plugins")
	if err := buildTestPlugins(ctx, plugins); err != nil {
		return err
	}
	out, err := l.Kubectl(ctx, "get", "nodes", "-o", "json")
	if err != nil {
		return err
	}
	var nodes struct {
		Items []struct {
			Metadata struct{ Name string }
			Spec     struct{ PodCIDRs []netip.Prefix }
		}
	}
	if err := json.Unmarshal(out, &nodes); err != nil {
		return fmt.Errorf("read the nodes' podCIDRs: %w", err)
	}
	for _, n := range nodes.Items {
		for _, cidr := range n.Spec.PodCIDRs {
			if err := vpc.SetRoute(ctx, l.Name(), vpc.Route{Dst: cidr, Host: n.Metadata.Name}); err != nil {
				return err
			}
		}
		h, _ := l.manifest.Host(n.Metadata.Name)
		if err := copyTestPlugins(plugins, filepath.Join(h.Dir, "cni-opt", "bin")); err != nil {
			return err
		}
		if err := writeTestConfig(*h, n.Spec.PodCIDRs); err != nil {
			return err
		}
	}
	return nil
}

func buildTestPlugins(ctx context.Context, dir string) error {
	root, err := source.Here()
	if err != nil {
		return err
	}
	const plugins = "github.com/containernetworking/plugins/plugins/"
	cmd := exec.CommandContext(ctx, "go", "build", "-o", dir+"/",
		plugins+"main/ptp", plugins+"main/loopback", plugins+"ipam/host-local", plugins+"meta/portmap")
	cmd.Dir = root
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("build the reference plugins: %w\n%s", err, out)
	}
	return nil
}

func copyTestPlugins(from, to string) error {
	entries, err := os.ReadDir(from)
	if err != nil {
		return fmt.Errorf("install the reference plugins: %w", err)
	}
	for _, e := range entries {
		if err := build.Place(filepath.Join(from, e.Name()), filepath.Join(to, e.Name())); err != nil {
			return fmt.Errorf("install the reference plugins: %w", err)
		}
	}
	return nil
}

func writeTestConfig(h ledger.Host, cidrs []netip.Prefix) error {
	type object = map[string]any
	var ranges [][]object
	var routes []object
	for _, cidr := range cidrs {
		ranges = append(ranges, []object{{"subnet": cidr.String()}})
		everything := "0.0.0.0/0"
		if cidr.Addr().Is6() {
			everything = "::/0"
		}
		routes = append(routes, object{"dst": everything})
	}
	list := object{
		"cniVersion": "1.0.0", "name": "lab-test",
		"plugins": []object{
			{"type": "ptp", "ipMasq": true, "mtu": 1500, "ipam": object{
				"type": "host-local", "dataDir": "/run/cni-ipam", "ranges": ranges, "routes": routes}},
			{"type": "portmap", "capabilities": object{"portMappings": true}},
		},
	}
	data, err := json.MarshalIndent(list, "", "  ")
	if err != nil {
		return fmt.Errorf("render the test network's conflist: %w", err)
	}
	path := filepath.Join(h.Dir, "cni-etc", "net.d", "10-lab-test.conflist")
	if err := os.WriteFile(path, append(data, '\n'), 0o644); err != nil {
		return fmt.Errorf("write the test network's conflist: %w", err)
	}
	return nil
}

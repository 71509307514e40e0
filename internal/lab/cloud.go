package lab

import (
	"crypto/rand"
	"fmt"
	"net/netip"
	"path/filepath"
	"strings"

	"ropeway.dev/ropeway/internal/lab/config"
	"ropeway.dev/ropeway/internal/lab/ledger"
	"ropeway.dev/ropeway/internal/lab/openapi"
	"ropeway.dev/ropeway/internal/lab/pidone"
	"ropeway.dev/ropeway/internal/lab/vpc"
)

// CloudCommand is the hidden command of ropeway-lab that is the lab's cloud.
const CloudCommand = "__cloud"

// CloudDir is where the cloud's process finds its description and keeps its
// state; the host's run directory.
func CloudDir() string { return hostDirs()["run"] }

// The lab's place in the cloud. The region is the scenario's, by which nodes
// are named; the ids are of the vendor's kind.
const (
	cloudRegion        = "cn-chengdu"
	cloudAccount       = "1000000000000001"
	cloudVPC           = "vpc-2vclab"
	cloudRouteTable    = "vtb-2vclab"
	cloudSecurityGroup = "sg-2vclab"
	cloudRole          = "RopewayLab"
	cloudKeyID         = "LTAI5tRopewayLab"
	vendorKeyID        = "LTAI5tVendorLab"
	instanceType       = "ecs.g7.large"
)

// cloudAddresses are where the cloud answers: the metadata service's
// well-known address, and one for the OpenAPI beside it, as endpoints inside
// the real VPCs are. Both answer both.
func cloudAddresses(f Family) []netip.Prefix {
	var addresses []netip.Prefix
	if f.has4() {
		addresses = append(addresses, netip.MustParsePrefix("100.100.0.10/24"), netip.MustParsePrefix("100.100.100.200/24"))
	}
	if f.has6() {
		addresses = append(addresses, netip.MustParsePrefix("fd00:100::10/64"), netip.MustParsePrefix("fd00:100::100:200/64"))
	}
	return addresses
}

// cloudRange is what no cluster may use: the vendor's range for its services.
func cloudRange() []netip.Prefix {
	return []netip.Prefix{netip.MustParsePrefix("100.64.0.0/10"), netip.MustParsePrefix("fd00:100::/64")}
}

func cloudProgram() pidone.Program {
	p := program("cloud", []string{config.Binary("ropeway-lab"), CloudCommand})
	p.Ready = &pidone.Probe{Unix: filepath.Join(CloudDir(), openapi.SocketFile)}
	return p
}

// instanceID is the id of a host's instance: a node's name ends with it.
func instanceID(h ledger.Host) string {
	if id, found := strings.CutPrefix(h.Name, cloudRegion+"."); found {
		return id
	}
	return "i-2vcx" + strings.ReplaceAll(h.Name, "-", "")
}

// cloudSpec describes a lab's hosts as the cloud knows them: each an instance
// with one interface in a vSwitch of its own, in two zones by turns.
func cloudSpec(m *ledger.Manifest, key openapi.AccessKey) openapi.Spec {
	spec := openapi.Spec{
		Region: cloudRegion, Account: cloudAccount, VPC: cloudVPC, RouteTable: cloudRouteTable, SecurityGroup: cloudSecurityGroup,
		Allowed: m.PodCIDRs, Key: key, Role: cloudRole, Settings: openapi.DefaultSettings(),
	}
	families := map[bool]bool{} // IPv6 -> is there
	for _, h := range m.Hosts {
		if h.Role != ledger.Node && h.Role != ledger.ControlPlane {
			continue
		}
		n := len(spec.VSwitches)
		v := openapi.VSwitch{ID: fmt.Sprintf("vsw-2vclab%d", n), Zone: cloudRegion + "-" + string(rune('a'+n%2))}
		for _, a := range h.Addresses {
			if families[a.Addr().Is6()] = true; a.Addr().Is6() {
				v.IPv6CIDR = a.Masked()
			} else {
				v.CIDR = a.Masked()
			}
		}
		id := instanceID(h)
		spec.VSwitches = append(spec.VSwitches, v)
		spec.Instances = append(spec.Instances, openapi.Instance{
			ID: id, Host: h.Name, Type: instanceType, VSwitch: v.ID, Interface: "eni-" + strings.TrimPrefix(id, "i-"),
			MAC: vpc.MAC(h.Name).String(), Addresses: addrs(h), Status: "Running",
			Tags: map[string]string{"lab": m.Name},
		})
	}
	for _, p := range vpcRange() {
		if families[p.Addr().Is6()] {
			spec.CIDRs = append(spec.CIDRs, p)
		}
	}
	return spec
}

// writeCloud puts the cloud's description, with AccessKeys that are this
// lab's only, where its process finds it.
func writeCloud(m *ledger.Manifest) error {
	h, found := m.Host(cloudHost)
	if !found {
		return fmt.Errorf("lab %q has no host %s", m.Name, cloudHost)
	}
	spec := cloudSpec(m, openapi.AccessKey{ID: cloudKeyID, Secret: rand.Text()})
	spec.VendorKey = openapi.AccessKey{ID: vendorKeyID, Secret: rand.Text()}
	return openapi.WriteSpec(filepath.Join(h.Dir, "run"), m.Name, spec)
}

// Cloud returns a client of the back door of the lab's cloud: to look at it,
// to change it by hand and to let things go wrong.
func (l *Lab) Cloud() (*openapi.Client, error) {
	h, found := l.manifest.Host(cloudHost)
	if !found {
		return nil, fmt.Errorf("lab %q has no cloud: bring one up with --fabric vpc", l.Name())
	}
	return openapi.NewClient(filepath.Join(h.Dir, "run", openapi.SocketFile)), nil
}

// CloudEndpoint is the host, as in a URL, at which the OpenAPI answers the
// lab's hosts over plain HTTP.
func (l *Lab) CloudEndpoint() string {
	h, found := l.manifest.Host(cloudHost)
	if !found {
		return ""
	}
	address := h.Addresses[0].Addr()
	if address.Is6() {
		return "[" + address.String() + "]"
	}
	return address.String()
}

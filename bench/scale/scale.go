// Package scale makes clusters of thousands of nodes to measure Ropeway with: the
// API objects of all nodes on a real kube-apiserver, the lab's cloud in front of a
// VPC, and on a few of the nodes real agents, each in a network namespace on that
// VPC. Agents and controller are the program that users run.
package scale

import (
	"fmt"
	"net/netip"
)

// Names of what is made. Nodes are named by their number.
const (
	provider   = "alibaba"
	region     = "cn-chengdu"
	vpcID      = "vpc-2vcscale"
	tableID    = "vtb-2vcscale"
	secretName = "ropeway-cloud"
	namespace  = "kube-system"
)

// podNetwork has a /24 for each of 65,536 nodes.
func podNetwork() netip.Prefix { return netip.MustParsePrefix("10.0.0.0/8") }

// fabric is the VPC's range, one vSwitch.
func fabric() netip.Prefix { return netip.MustParsePrefix("192.168.0.0/16") }

// NodeName is the name of the node with that number.
func NodeName(i int) string { return fmt.Sprintf("node-%05d", i) }

// instanceID is the cloud's name of the node.
func instanceID(i int) string { return fmt.Sprintf("i-2vcscale%05d", i) }

// Address is the node's address in the fabric.
func Address(i int) netip.Addr {
	return netip.AddrFrom4([4]byte{192, 168, byte(1 + i/250), byte(1 + i%250)})
}

// PodCIDR is the range of the node's pods.
func PodCIDR(i int) netip.Prefix {
	return netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(i >> 8), byte(i), 0}), 24)
}

// Source is the node's own address in the pod network.
func Source(i int) netip.Addr { return PodCIDR(i).Addr().Next() }

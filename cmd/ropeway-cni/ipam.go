package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/types"
	types100 "github.com/containernetworking/cni/pkg/types/100"

	"ropeway.dev/ropeway/internal/cniwire"
)

// The verbs under the names of an IPAM plugin: another main plugin (ptp,
// bridge, macvlan) makes the interface (CNI specification 1.1.0, section 4).

// ipamJob is job, for the ipam.type that the plugin was started as: the main
// plugin's settings are not ours to judge.
func (p *plugin) ipamJob(args *skel.CmdArgs) (*job, error) {
	j, err := p.job(args)
	if err != nil {
		return nil, err
	}
	j.conf.IPAM.Type, j.otherMain = p.name, true
	return j, nil
}

func (p *plugin) ipamAdd(args *skel.CmdArgs) error {
	j, err := p.ipamJob(args)
	if err != nil {
		return err
	}
	ctx := p.patience(addTimeout)
	resp, err := j.register(ctx, nil)
	if err != nil {
		return err
	}
	result, err := j.lease(ctx, resp)
	if err == nil {
		err = ctx.interrupted()
	}
	if err == nil {
		err = j.print(result)
	}
	if err != nil {
		return errors.Join(err, j.giveBack())
	}
	return nil
}

// lease is the result of an IPAM plugin (section 5, "Delegated plugins"): main
// plugins need each address with the length of its subnet, and a gateway, through
// which everything goes that no route says. An underlay's pool may have none.
func (j *job) lease(ctx context.Context, resp cniwire.Response) (*types100.Result, error) {
	out := &types100.Result{CNIVersion: types100.ImplementedSpecVersion, DNS: j.conf.DNS}
	subnets, gateways := resp.Subnets, resp.Gateways
	for i, a := range resp.Addresses {
		if i >= len(subnets) || i >= len(gateways) || !subnets[i].Contains(a) {
			var err error
			if subnets, gateways, err = j.fromNodeCIDRs(ctx, resp.Addresses); err != nil {
				return nil, err
			}
		}
		out.IPs = append(out.IPs, &types100.IPConfig{Address: ipNet(netip.PrefixFrom(a, subnets[i].Bits())), Gateway: gateways[i].AsSlice()})
	}
	dsts, err := j.conf.routes(nil, resp.Addresses)
	if err != nil {
		return nil, err
	}
	if len(dsts) == 0 {
		for i, a := range resp.Addresses {
			if gateways[i].IsValid() {
				dsts = append(dsts, everything(a))
			}
		}
	}
	for _, dst := range dsts {
		out.Routes = append(out.Routes, &types.Route{Dst: ipNet(dst)}) // by the gateway
	}
	for _, r := range resp.Routes {
		out.Routes = append(out.Routes, &types.Route{Dst: ipNet(r.Dst), GW: r.Via.AsSlice()})
	}
	return out, nil
}

// fromNodeCIDRs says of each address the subnet and gateway, where the agent
// did not (an older one): the node's CIDR, and the node's own address in it,
// which is the one after its base.
func (j *job) fromNodeCIDRs(ctx context.Context, addrs []netip.Addr) (subnets []netip.Prefix, gateways []netip.Addr, err error) {
	node, err := j.ask(ctx, cniwire.Node, nil)
	if err != nil {
		return nil, nil, err
	}
	for _, a := range addrs {
		found := false
		for _, cidr := range node.NodeCIDRs {
			if cidr.Contains(a) && !found {
				subnets, gateways, found = append(subnets, cidr.Masked()), append(gateways, cidr.Masked().Addr().Next()), true
			}
		}
		if !found {
			return nil, nil, fmt.Errorf("the agent did not say of which subnet %s is: restart the ropeway agent of this node, so that it is of the plugin's release (%s)", a, version)
		}
	}
	return subnets, gateways, nil
}

func (p *plugin) ipamDel(args *skel.CmdArgs) error {
	j := p.delJob(args)
	j.conf.IPAM.Type = p.name
	return j.giveBack()
}

// ipamCheck is CHECK (section 2): what the agent holds is what the ADD gave.
func (p *plugin) ipamCheck(args *skel.CmdArgs) error {
	j, err := p.ipamJob(args)
	if err != nil {
		return err
	}
	prev, err := j.conf.previous()
	if err != nil {
		return err
	}
	if prev == nil {
		return needsResult()
	}
	given, err := addressesOf(prev.IPs, nil)
	if err != nil {
		return fmt.Errorf("prevResult: %w", err)
	}
	ctx := p.patience(checkTimeout)
	resp, err := j.ask(ctx, cniwire.Check, nil)
	if err != nil {
		return err
	}
	for _, a := range resp.Addresses {
		if !slices.Contains(given, a) { // given may have another plugin's addresses too
			return types.NewError(cniwire.CodeMismatch, fmt.Sprintf("the agent holds %s for container %s, and its interface was given %v: delete the pod, so that it gets an address that is its own", a, j.att.ContainerID, given), "")
		}
	}
	return nil
}

func (p *plugin) ipamStatus(args *skel.CmdArgs) error {
	j, err := p.ipamJob(args)
	if err != nil {
		return err
	}
	ctx := p.patience(statusWait)
	_, err = j.ask(ctx, cniwire.Status, nil)
	return j.unready(err)
}

func (p *plugin) ipamGC(args *skel.CmdArgs) error {
	j, err := p.ipamJob(args)
	if err != nil {
		return err
	}
	valid, err := j.conf.validAttachments()
	if err != nil {
		return err
	}
	return j.collect(valid)
}

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/types"
	types100 "github.com/containernetworking/cni/pkg/types/100"
	cniversion "github.com/containernetworking/cni/pkg/version"

	"ropeway.dev/ropeway/internal/cniwire"
	"ropeway.dev/ropeway/internal/dataplane/podlink"
)

// undoing is what gives back, newest first, what an ADD has taken so far.
type undoing []func() error

func (u *undoing) push(f func() error) { *u = append(*u, f) }

// after runs all of it and returns err, with what could not be undone. It stops
// there: an address must not be given back while a link has it. The runtime's DEL
// goes on.
func (u *undoing) after(err error) error {
	for _, f := range slices.Backward(*u) {
		if failed := f(); failed != nil {
			return fmt.Errorf("%w; and undoing: %w", err, failed)
		}
	}
	return err
}

// granted is what a pod may use.
type granted struct {
	addresses []netip.Addr
	routes    []netip.Prefix // none: all
	mtu       int            // bytes
	dns       types.DNS
}

// add is ADD of a main plugin (CNI specification 1.1.0, section 2): all or
// nothing.
func (p *plugin) add(args *skel.CmdArgs) (err error) {
	j, err := p.job(args)
	if err != nil {
		return err
	}
	prev, err := j.conf.previous()
	if err != nil {
		return err
	}
	// Before anything is taken: the runtime repeats no ADD without a DEL, but
	// if it did, undoing the second would give away the first one's address.
	sandbox, err := podlink.Open(j.att, args.Netns)
	if err != nil {
		return err
	}
	defer sandbox.Close()
	ctx := p.patience(addTimeout)
	var undo undoing
	defer func() {
		if err != nil {
			err = undo.after(err)
		}
	}()
	got, err := j.allocate(ctx, &undo)
	if err != nil {
		return err
	}
	cfg := j.link(got)
	made, err := sandbox.Add(cfg)
	if errors.Is(err, podlink.ErrExists) {
		undo = nil // another ADD of the same attachment came first: it is that one's
	}
	if err != nil {
		return err
	}
	undo.push(func() error { return podlink.Del(j.att, args.Netns) })
	if err := ctx.interrupted(); err != nil {
		return fmt.Errorf("the ADD of container %s was interrupted: %w", args.ContainerID, err)
	}
	return j.print(j.wired(prev, cfg, made, got.dns))
}

// link is what podlink is to make.
func (j *job) link(got granted) podlink.Config {
	return podlink.Config{
		Attachment: j.att, Pod: j.pod, Netns: j.args.Netns,
		MTU: got.mtu, Addresses: got.addresses, Routes: got.routes,
		Queues: j.conf.NumQueues, Forwarding: j.conf.ContainerSettings.AllowIPForwarding,
	}
}

// allocate gets addresses from the agent, or from the delegated plugin and then
// tells the agent of them.
func (j *job) allocate(ctx context.Context, undo *undoing) (granted, error) {
	var got granted
	var answered []*types.Route
	var resp cniwire.Response
	var err error
	if served(j.conf.IPAM.Type) {
		resp, err = j.register(ctx, nil)
	} else {
		var result *types100.Result
		if result, resp, err = j.delegateFree(ctx, undo); err == nil {
			answered, got.dns = result.Routes, result.DNS
		}
	}
	if err != nil {
		return got, err
	}
	undo.push(j.giveBack)
	got.addresses, got.mtu = resp.Addresses, resp.MTU
	if j.conf.MTU > 0 {
		got.mtu = j.conf.MTU
	}
	got.routes, err = j.conf.routes(answered, got.addresses)
	return got, err
}

// delegateFree has the IPAM plugin allocate until it gives an address that the
// agent knows no holder of. Where a node changes from our allocator to host-local,
// pods that run have addresses that host-local takes for free; it goes on from
// the one that it gave last.
func (j *job) delegateFree(ctx context.Context, undo *undoing) (*types100.Result, cniwire.Response, error) {
	given := map[string]bool{}
	// Before it is run: one that fails, or is killed, may have written its file.
	undo.push(func() error { return j.delegateDel(context.Background()) })
	for {
		result, err := j.delegateAdd(ctx)
		if err != nil {
			return nil, cniwire.Response{}, err
		}
		addresses, err := addressesOf(result.IPs, nil)
		if err != nil {
			return nil, cniwire.Response{}, fmt.Errorf("the result of the IPAM plugin %s: %w", j.conf.IPAM.Type, err)
		}
		if len(addresses) == 0 {
			return nil, cniwire.Response{}, types.NewError(cniwire.CodeNoAddress, fmt.Sprintf("the IPAM plugin %s gave no address", j.conf.IPAM.Type), "")
		}
		resp, err := j.register(ctx, addresses)
		refused, ok := errors.AsType[*cniwire.Error](err)
		if !ok || refused.Code != cniwire.CodeNoAddress || given[fmt.Sprint(addresses)] || ctx.Err() != nil {
			return result, resp, err
		}
		given[fmt.Sprint(addresses)] = true
		if err := j.delegateDel(ctx); err != nil {
			return nil, resp, err
		}
	}
}

// register asks the agent to allocate, or to record what was delegated, and
// holds it to what was asked.
func (j *job) register(ctx context.Context, delegated []netip.Addr) (cniwire.Response, error) {
	families := j.conf.IPAM.families()
	if delegated != nil {
		families = nil
	}
	resp, err := j.ask(ctx, cniwire.Add, func(r *cniwire.Request) {
		r.Addresses, r.Families = delegated, families
		if delegated == nil {
			r.IPv4Pools, r.IPv6Pools = j.conf.IPAM.pools()
			r.Wanted = j.exact
		}
	})
	if _, unsure := errors.AsType[*cniwire.UnsureError](err); unsure {
		return resp, errors.Join(err, j.giveBack())
	}
	if err != nil {
		return resp, err
	}
	if delegated != nil {
		resp.Addresses = delegated
	}
	if len(resp.Addresses) == 0 {
		return resp, errors.Join(errors.New("the agent gave no address, which is a fault of it: see its log"), j.giveBack())
	}
	if i := slices.IndexFunc(j.exact, func(a netip.Addr) bool { return !slices.Contains(resp.Addresses, a) }); i >= 0 && delegated == nil {
		return resp, errors.Join(fmt.Errorf("the address %s is asked for, and the agent gave %v: restart the ropeway agent of this node, so that it is of the plugin's release (%s)", j.exact[i], resp.Addresses, version), j.giveBack())
	}
	if err := fits(families, resp.Addresses); err != nil {
		return resp, errors.Join(err, j.giveBack())
	}
	return resp, nil
}

// fits compares the addresses with the families that ipam.assign_ipv4 and
// ipam.assign_ipv6 ask for.
func fits(families []string, addrs []netip.Addr) error {
	if families == nil {
		return nil
	}
	have := map[string]bool{}
	for _, a := range addrs {
		if a.Is4() {
			have[cniwire.FamilyIPv4] = true
		} else {
			have[cniwire.FamilyIPv6] = true
		}
	}
	for _, f := range []string{cniwire.FamilyIPv4, cniwire.FamilyIPv6} {
		if have[f] != slices.Contains(families, f) {
			return invalid(fmt.Sprintf("ipam.assign_ipv4 and ipam.assign_ipv6 ask for %v, and the network gives %v: make them fit the podCIDRs of the ClusterNetwork, or remove them", families, addrs))
		}
	}
	return nil
}

// decodePrev reads prevResult of a configuration into conf.
func decodePrev(raw []byte, conf *types.PluginConf) error {
	var head struct {
		PrevResult map[string]any `json:"prevResult"`
	}
	var lists struct {
		PrevResult map[string]json.RawMessage `json:"prevResult"`
	}
	err := json.Unmarshal(raw, &head)
	if err == nil {
		err = json.Unmarshal(raw, &lists)
	}
	if err == nil {
		err = noNulls(lists.PrevResult)
	}
	if err == nil {
		conf.RawPrevResult = head.PrevResult
		err = cniversion.ParsePrevResult(conf)
	}
	if err != nil {
		return types.NewError(cniwire.CodeDecode, fmt.Sprintf("prevResult in the network configuration is not understood: %v", err), "")
	}
	return nil
}

// container finds the job's interface in a result of an ADD.
func (j *job) container(result *types100.Result) (*types100.Interface, int, error) {
	for i, iface := range result.Interfaces {
		if iface.Name == j.att.IfName && iface.Sandbox != "" {
			return iface, i, nil
		}
	}
	return nil, 0, types.NewError(cniwire.CodeInvalidConfig, fmt.Sprintf("prevResult has no interface %s in a sandbox: the runtime must pass the result of the ADD (CNI specification 1.1.0, section 2, CHECK)", j.att.IfName), "")
}

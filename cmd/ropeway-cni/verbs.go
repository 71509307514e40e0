package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"

	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/types"
	types100 "github.com/containernetworking/cni/pkg/types/100"

	"ropeway.dev/ropeway/internal/cniwire"
	"ropeway.dev/ropeway/internal/dataplane/podlink"
)

// del is DEL of a main plugin (CNI specification 1.1.0, section 2). The address
// is released only once nothing uses it any more. It never fails for a reason
// that the node cannot mend alone: no configuration, agent or namespace is
// needed.
func (p *plugin) del(args *skel.CmdArgs) error {
	j := p.delJob(args)
	retired, err := podlink.Retire(j.att, args.Netns)
	if err != nil {
		return err
	}
	var delegated error
	if !served(j.conf.IPAM.Type) {
		delegated = j.delegateDel(context.Background())
	}
	return errors.Join(delegated, j.release(retired))
}

// check is CHECK of a main plugin (section 2): the interface, its addresses,
// routes and neighbours, and the agent's record.
func (p *plugin) check(args *skel.CmdArgs) error {
	j, err := p.job(args)
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
	cfg, err := j.expected(prev)
	if err != nil {
		return err
	}
	if err := podlink.Check(cfg); err != nil {
		return fmt.Errorf("container %s is not wired as it was added: %w", args.ContainerID, err)
	}
	ctx := p.patience(checkTimeout)
	if !served(j.conf.IPAM.Type) {
		conf, err := j.delegateConf(ctx)
		if err != nil {
			return err
		}
		if _, err := j.runDelegate(ctx, "CHECK", conf); err != nil {
			return err
		}
	}
	return j.checkRecord(ctx, cfg)
}

func needsResult() error {
	return invalid("CHECK needs the prevResult of the ADD in the network configuration (CNI specification 1.1.0, section 2)")
}

// expected is what the result of the ADD says of the interface.
func (j *job) expected(prev *types100.Result) (podlink.Config, error) {
	iface, index, err := j.container(prev)
	if err != nil {
		return podlink.Config{}, err
	}
	cfg := podlink.Config{Attachment: j.att, Pod: j.pod, Netns: j.args.Netns, MTU: iface.Mtu}
	if cfg.Addresses, err = addressesOf(prev.IPs, &index); err != nil {
		return cfg, fmt.Errorf("prevResult: %w", err)
	}
	for _, r := range prev.Routes {
		dst, err := prefixOf(&r.Dst)
		if err != nil {
			return cfg, fmt.Errorf("prevResult: %w", err)
		}
		if r.GW.Equal(podlink.Gateway(dst.Addr()).AsSlice()) {
			cfg.Routes = append(cfg.Routes, dst)
		}
	}
	return cfg, nil
}

// checkRecord compares with what the agent holds for the attachment.
func (j *job) checkRecord(ctx context.Context, cfg podlink.Config) error {
	resp, err := j.ask(ctx, cniwire.Check, func(r *cniwire.Request) { r.Addresses = cfg.Addresses })
	if err != nil {
		return err
	}
	for _, a := range cfg.Addresses {
		if !slices.Contains(resp.Addresses, a) {
			return types.NewError(cniwire.CodeMismatch, fmt.Sprintf("the agent holds %v for container %s, not %s: delete the pod, so that it gets an address that is its own", resp.Addresses, j.att.ContainerID, a), "")
		}
	}
	return nil
}

// status is STATUS of a main plugin (section 2): success means that an ADD
// would be served, maybe after it has waited for an agent that is being restarted.
func (p *plugin) status(args *skel.CmdArgs) error {
	j, err := p.job(args)
	if err != nil {
		return err
	}
	ctx := p.patience(statusWait)
	if _, err := j.ask(ctx, cniwire.Status, nil); err != nil {
		return j.unready(err)
	}
	if served(j.conf.IPAM.Type) {
		return nil
	}
	conf, err := j.delegateConf(ctx) // also says whether the node has the CIDRs
	if err != nil {
		return unavailable(err)
	}
	if _, err := j.runDelegate(ctx, "STATUS", conf); err != nil && !unsupported(err) {
		return err
	}
	return nil
}

// unready is what STATUS says where the agent does not serve: nothing, if it did so
// until lately, and that the plugin is not available otherwise.
func (j *job) unready(err error) error {
	if err = unavailable(err); err == nil || coded(err).Code != cniwire.CodeNotAvailable || !cniwire.ReadyLately(j.conf.Socket) {
		return err
	}
	j.warn("an ADD would wait now: %v", err)
	return nil
}

// gc is GC of a main plugin (section 2): what the runtime does not know any
// more goes. It goes on after a failure, and reports all of them.
func (p *plugin) gc(args *skel.CmdArgs) error {
	j, err := p.job(args)
	if err != nil {
		return err
	}
	valid, err := j.conf.validAttachments()
	if err != nil {
		return err
	}
	_, linkErr := podlink.DelStale(j.conf.Name, valid)
	var delegated error
	if !served(j.conf.IPAM.Type) {
		if _, delegated = j.runDelegate(p.signals(), "GC", dummyCIDRs(j.conf.raw)); unsupported(delegated) {
			delegated = nil
		}
	}
	return errors.Join(linkErr, delegated, j.collect(valid))
}

// collect has the agent free what valid does not hold.
func (j *job) collect(valid []cniwire.Attachment) error {
	ctx := j.patience(checkTimeout)
	_, err := j.ask(ctx, cniwire.GC, func(r *cniwire.Request) { r.Valid = valid })
	return err
}

// validAttachments are those that GC must keep. A list that is not there is
// refused, as nothing would be valid then; an empty one is the runtime's word.
func (c *netConf) validAttachments() ([]cniwire.Attachment, error) {
	var conf struct {
		Valid *[]types.GCAttachment `json:"cni.dev/valid-attachments"`
	}
	if err := json.Unmarshal(c.raw, &conf); err != nil {
		return nil, types.NewError(cniwire.CodeDecode, fmt.Sprintf("cni.dev/valid-attachments in the network configuration is not understood: %v", err), "")
	}
	if conf.Valid == nil {
		return nil, invalid("GC needs cni.dev/valid-attachments in the network configuration (CNI specification 1.1.0, section 2); without it every pod would lose its network")
	}
	out := make([]cniwire.Attachment, 0, len(*conf.Valid))
	for _, a := range *conf.Valid {
		out = append(out, cniwire.Attachment{Network: c.Name, ContainerID: a.ContainerID, IfName: a.IfName})
	}
	return out, nil
}

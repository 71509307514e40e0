package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"github.com/containernetworking/cni/pkg/skel"

	"ropeway.dev/ropeway/internal/cniwire"
	"ropeway.dev/ropeway/internal/dataplane/podlink"
)

// Bounds of one execution. The runtimes give up after minutes.
const (
	addTimeout   = 60 * time.Second
	checkTimeout = 10 * time.Second
	// delWait is how long a DEL, or the undoing of an ADD, waits for an agent
	// that is not there before it leaves a tombstone.
	delWait = 2 * time.Second
	// statusWait is how long STATUS waits: runtimes ask every few seconds.
	statusWait = 2 * time.Second
	// delegateTimeout bounds one run of another plugin.
	delegateTimeout = 30 * time.Second
)

// job is one verb for one attachment.
type job struct {
	*plugin
	args *skel.CmdArgs
	conf *netConf
	att  cniwire.Attachment
	pod  cniwire.Pod
	// exact are the addresses that the runtime asks for.
	exact []netip.Addr
	// otherMain is true where another main plugin makes the interface.
	otherMain bool
}

// job reads what every verb but DEL needs, strictly.
func (p *plugin) job(args *skel.CmdArgs) (*job, error) {
	conf, err := readConf(args.StdinData)
	if err != nil {
		return nil, err
	}
	pod, ip, err := podOf(args.Args)
	if err != nil {
		return nil, err
	}
	j := p.newJob(args, conf, pod)
	if served(conf.IPAM.Type) {
		j.exact, err = conf.exact(ip)
	}
	return j, err
}

// delJob reads what DEL needs, and takes what it cannot read as absent.
func (p *plugin) delJob(args *skel.CmdArgs) *job {
	pod, _, err := podOf(args.Args)
	if err != nil {
		p.warn("%v", err)
	}
	return p.newJob(args, readConfLeniently(args.StdinData), pod)
}

func (p *plugin) newJob(args *skel.CmdArgs, conf *netConf, pod cniwire.Pod) *job {
	return &job{
		plugin: p, args: args, conf: conf, pod: pod,
		att: cniwire.Attachment{Network: conf.Name, ContainerID: args.ContainerID, IfName: args.IfName},
	}
}

// ask sends a request about the job's attachment to the agent.
func (j *job) ask(ctx context.Context, verb cniwire.Verb, fill func(*cniwire.Request)) (cniwire.Response, error) {
	req := cniwire.Request{Verb: verb, Attachment: j.att, Pod: j.pod, Netns: j.args.Netns, IPAM: j.conf.IPAM.Type, OtherMain: j.otherMain}
	if fill != nil {
		fill(&req)
	}
	return cniwire.Call(ctx, j.conf.Socket, req)
}

// release tells the agent that the attachment is gone. Where there is no agent,
// or it cannot take it, a tombstone is left, which the agent applies before it
// next allocates: only a node that cannot even hold a small file in /run makes
// this fail. retired says that a link was retired; where no agent takes that
// upon itself, it is removed here.
func (j *job) release(retired bool) error {
	// Not the job's context: what follows a SIGTERM must be undone as well.
	ctx := newPatience(delWait, context.Background)
	resp, asked := j.ask(ctx, cniwire.Del, func(r *cniwire.Request) { r.Retired = retired })
	var reaped error
	if retired && !resp.Reaps {
		reaped = podlink.Reap()
	}
	if asked == nil {
		return reaped
	}
	stone := cniwire.Tombstone{Attachment: j.att, Pod: j.pod, IPAM: j.conf.IPAM.Type}
	if err := cniwire.WriteTombstone(j.conf.tombstones(), stone); err != nil {
		return fmt.Errorf("the address of container %s cannot be released, neither by the agent nor by a note for it; make room on, or make writable, %s: %w",
			j.att.ContainerID, j.conf.tombstones(), errors.Join(asked, err, reaped))
	}
	j.warn("a tombstone stands for the release of container %s: %v", j.att.ContainerID, asked)
	return reaped
}

// giveBack releases what never had a link.
func (j *job) giveBack() error { return j.release(false) }

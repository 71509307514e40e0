package lab

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"ropeway.dev/ropeway/internal/lab/cgroup"
	"ropeway.dev/ropeway/internal/lab/ledger"
	"ropeway.dev/ropeway/internal/lab/pidone"
	"ropeway.dev/ropeway/internal/lab/vpc"
)

// Reboot ends a node as a power cut does and boots it again: every process of it,
// pods included, ends at once; its network namespace, its memory file systems (/run,
// the BPF file system) and the root file system's upper layer are new; what lies on
// its disk (/var/lib, /etc/cni, /opt/cni) is as it was left. It returns once the
// node's programs run; when the node and its pods are ready again is the cluster's
// affair. Other Labs that are open on the same lab have to be opened anew.
func (l *Lab) Reboot(ctx context.Context, node string) error {
	if _, err := l.nodeHost(node); err != nil {
		return err
	}
	lock, err := acquire(ctx, l.store, l.Name(), false)
	if err != nil {
		return err
	}
	defer lock.Unlock()
	// Whoever had the lock may have booted another node, which has another first
	// process since.
	if l.manifest, err = l.store.Read(l.Name()); err != nil {
		return err
	}
	h, err := l.nodeHost(node)
	if err != nil {
		return err
	}
	layout, err := cgroup.Detect()
	if err != nil {
		return err
	}
	b := &boot{lab: l, lock: lock, layout: layout}
	if err := b.powerOff(ctx, *h); err != nil {
		return fmt.Errorf("reboot node %s: %w", node, err)
	}
	if err := vpc.Renew(ctx, l.Name(), node); err != nil {
		return fmt.Errorf("reboot node %s: %w", node, err)
	}
	if h.Init, err = b.start(ctx, *h); err != nil {
		return errors.Join(fmt.Errorf("reboot node %s: %w", node, err), b.save())
	}
	if err := b.save(); err != nil {
		return err
	}
	return l.await(ctx, *h, b.programsOf(*h)...)
}

// nodeHost is the record of a node of a lab that is up.
func (l *Lab) nodeHost(node string) (*ledger.Host, error) {
	if l.manifest.Phase != ledger.Running {
		return nil, fmt.Errorf("lab %q is %s: wait until it is up", l.Name(), l.manifest.Phase)
	}
	h, found := l.manifest.Host(node)
	if !found || h.Role != ledger.Node {
		return nil, fmt.Errorf("lab %q has no node %q; it has %s", l.Name(), node, strings.Join(nodeNames(l.Nodes()), ", "))
	}
	return h, nil
}

// powerOff ends all processes of a host, and forgets what its programs did.
func (b *boot) powerOff(ctx context.Context, h ledger.Host) error {
	if h.Init.Alive() {
		// It may end by itself meanwhile; then there is nothing to do.
		_ = unix.Kill(h.Init.PID, unix.SIGKILL)
	}
	if err := b.end(ctx, h); err != nil {
		return err
	}
	awaitBurial(ctx, []ledger.Process{h.Init})
	if err := os.Remove(statePath(h)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("forget what its programs did: %w", err)
	}
	return nil
}

// newBoot gives a node's first process a boot id of its own: the machine's does not
// change when a node of a lab boots again.
func newBoot(spec pidone.Spec) (pidone.Spec, error) {
	id, err := os.ReadFile("/proc/sys/kernel/random/uuid")
	if err != nil {
		return spec, fmt.Errorf("make a boot id: %w", err)
	}
	spec.Shadows["kernel/random/boot_id"] = strings.TrimSpace(string(id))
	return spec, nil
}

// Restart ends a program of a host (containerd, kubelet, kube-apiserver, ...) by a
// signal, and returns once its successor is ready. SIGTERM is what an operator's
// `systemctl restart` sends, SIGKILL what a program gets that ran out of memory.
func (l *Lab) Restart(ctx context.Context, host, program string, signal unix.Signal) error {
	before, err := l.programOf(host, program)
	if err != nil {
		return err
	}
	if before.PID == 0 {
		return fmt.Errorf("%s on host %s does not run: it is %s; see %s", program, host, before.Phase, l.LogDirs()[host])
	}
	if err := unix.Kill(before.PID, signal); err != nil {
		return fmt.Errorf("end %s on host %s: %w", program, host, err)
	}
	ctx, cancel := context.WithTimeoutCause(ctx, awaitTimeout, fmt.Errorf("not within %s", awaitTimeout))
	defer cancel()
	ticker := time.NewTicker(awaitPoll)
	defer ticker.Stop()
	for {
		now, err := l.programOf(host, program)
		if err != nil {
			return err
		}
		if now.Restarts > before.Restarts && now.Phase.Settled() {
			return nil
		}
		select {
		case <-ctx.Done():
			h, _ := l.manifest.Host(host)
			return fmt.Errorf("wait for %s on host %s to be ready again: %w\n%s", program, host, context.Cause(ctx), logTail(*h, program))
		case <-ticker.C:
		}
	}
}

// programOf is the status of a program of a host.
func (l *Lab) programOf(host, program string) (ProgramStatus, error) {
	h, found := l.manifest.Host(host)
	if !found {
		return ProgramStatus{}, fmt.Errorf("lab %q has no host %q; it has %s", l.Name(), host, strings.Join(l.HostNames(), ", "))
	}
	layout, err := cgroup.Detect()
	if err != nil {
		return ProgramStatus{}, err
	}
	s, err := hostStatus(layout, l.Name(), *h)
	if err != nil {
		return ProgramStatus{}, err
	}
	var names []string
	for _, p := range s.Programs {
		if p.Name == program {
			return p, nil
		}
		names = append(names, p.Name)
	}
	return ProgramStatus{}, fmt.Errorf("host %s has no program %q; it has %s", host, program, strings.Join(names, ", "))
}

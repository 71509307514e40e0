package lab

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"ropeway.dev/ropeway/internal/lab/ledger"
)

// lockPatience is how long a command waits for another one on the same lab.
const lockPatience = 5 * time.Second

// teardownTimeout bounds the clean-up after a failed or interrupted `up`,
// which must not be interrupted itself.
const teardownTimeout = time.Minute

// Up boots a lab and returns when it is ready. On any error, a cancelled ctx
// included, everything is taken down again (unless Options.KeepOnFailure), and
// the error says where the logs were put.
func Up(ctx context.Context, o Options) (*Lab, error) {
	if err := o.Validate(); err != nil {
		return nil, err
	}
	o = o.complete()
	if os.Geteuid() != 0 {
		return nil, errors.New("the lab makes namespaces, mounts and cgroups: run it as root (sudo)")
	}
	lock, err := acquire(ctx, o.Store, o.Name, true)
	if err != nil {
		return nil, err
	}
	defer lock.Unlock()
	if err := clearRemains(ctx, o); err != nil {
		return nil, err
	}
	b := &boot{options: o, lock: lock, lab: &Lab{store: o.Store, manifest: draw(o)}}
	if b.manifest().Maker, err = ledger.Identify(os.Getpid()); err != nil {
		return nil, err
	}
	b.manifest().Created = time.Now().UTC()
	if err := b.save(); err != nil {
		return nil, err
	}
	if err := b.run(ctx); err != nil {
		return nil, b.fail(ctx, err)
	}
	return b.lab, nil
}

func acquire(ctx context.Context, store ledger.Store, name string, create bool) (*ledger.Lock, error) {
	ctx, cancel := context.WithTimeout(ctx, lockPatience)
	defer cancel()
	return store.Lock(ctx, name, create)
}

// clearRemains deals with what is there already: a lab that runs is an error,
// so is one that was kept to be looked at; remains of a killed `up`, or of a
// machine that was switched off, are cleared away.
func clearRemains(ctx context.Context, o Options) error {
	m, err := o.Store.Read(o.Name)
	if errors.Is(err, os.ErrNotExist) {
		// Even without a manifest there may be remains under the lab's name, as of
		// a `down` that was killed.
		if err := teardown(ctx, o.Store, o.Name); err != nil {
			return err
		}
		return emptyDir(o.Store.Dir(o.Name))
	}
	if err == nil && m.Phase == ledger.Running && runs(m) {
		return fmt.Errorf("lab %q is up since %s; use it, take it down (`ropeway-lab down --name %s`), or give this one another --name",
			o.Name, m.Created.Local().Format(time.DateTime), o.Name)
	}
	if err == nil && m.Phase == ledger.Failed {
		return fmt.Errorf("lab %q failed and was kept (--keep-on-failure); take it down first: `ropeway-lab down --name %s`", o.Name, o.Name)
	}
	o.Progress(fmt.Sprintf("clearing away the remains of an earlier lab %q", o.Name))
	if err := teardown(ctx, o.Store, o.Name); err != nil {
		return err
	}
	return emptyDir(o.Store.Dir(o.Name))
}

// runs says whether any host of a lab does.
func runs(m *ledger.Manifest) bool {
	for _, h := range m.Hosts {
		if h.Init.Alive() {
			return true
		}
	}
	return false
}

// emptyDir removes what a directory holds, but not the directory: it is the
// lock.
func emptyDir(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return fmt.Errorf("clear the lab's directory: %w", err)
	}
	for _, e := range entries {
		if err := os.RemoveAll(filepath.Join(dir, e.Name())); err != nil {
			return fmt.Errorf("clear the lab's directory: %w", err)
		}
	}
	return nil
}

// fail ends a boot that went wrong: it keeps or clears the lab, and adds to
// the error where to look further.
func (b *boot) fail(ctx context.Context, cause error) error {
	if ctx.Err() != nil {
		cause = errors.New("interrupted")
	}
	if b.options.KeepOnFailure {
		b.manifest().Phase = ledger.Failed
		return errors.Join(fmt.Errorf("lab %q failed: %w\nit was kept: logs are in %s; `ropeway-lab down --name %s` takes it down",
			b.lab.Name(), cause, filepath.Join(b.lab.Dir(), "hosts", "*", "log"), b.lab.Name()), b.save())
	}
	b.say("taking the lab down again")
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), teardownTimeout)
	defer cancel()
	kept := b.keepLogs(ctx)
	err := teardown(ctx, b.options.Store, b.lab.Name())
	if err == nil {
		err = b.lock.Remove()
	}
	return errors.Join(fmt.Errorf("lab %q failed: %w%s", b.lab.Name(), cause, kept), err)
}

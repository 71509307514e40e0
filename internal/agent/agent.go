// Package agent is the program that runs on every node. It leases addresses,
// makes the node's kernel equal to the plan, proves that its peers are
// reachable, answers the CNI plugin, and installs that plugin and its conflist.
//
// Four loops run beside one another and never wait for one another: the node
// loop (node.go) sets the kernel; the leaser keeps the node in addresses; the
// publisher tells the API server; the server answers the plugin from what the
// three have achieved, through the board. So an API server that hangs delays no
// pod while the node has free addresses.
//
// Order on a node that joins: the kernel is set and a lease held; the node's
// NodeNetwork says so; the node is proven reachable and the controller has
// written NetworkUnavailable (or is not there to); then, last, the conflist
// appears. What is there stays there when the agent, the controller or the API
// server goes away: the agent can be killed at any moment, and its successor
// goes on from the run directory and the kernel.
package agent

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sync/errgroup"

	"ropeway.dev/ropeway/internal/agent/addresses"
	"ropeway.dev/ropeway/internal/agent/laststate"
	"ropeway.dev/ropeway/internal/agent/nodekernel"
	"ropeway.dev/ropeway/internal/agent/probe"
	"ropeway.dev/ropeway/internal/cniwire"
	"ropeway.dev/ropeway/internal/dataplane"
	"ropeway.dev/ropeway/internal/ipam/journal"
	"ropeway.dev/ropeway/internal/ipam/share"
	"ropeway.dev/ropeway/internal/kube"
)

// parts are what the agent stands on; tests replace them.
type parts struct {
	dataplane dataplane.Dataplane
	changes   <-chan struct{} // in the kernel, made by others; may be nil
	client    client
	kernel    addresses.Kernel
	wire      probe.Wire
}

// client is everything that the agent asks of the API server.
type client interface {
	cluster
	leaseAPI
	publishAPI
	podAPI
	shareAPI
	Run(ctx context.Context) error
}

// Run is the agent. It returns nil after ctx is done, leaving the kernel, the
// conflist and the plugins as they are; an error is about something that the
// agent cannot start without.
func Run(ctx context.Context, cfg Config) error {
	cfg.Defaults()
	if err := cfg.Validate(); err != nil {
		return fmt.Errorf("the agent's configuration: %w", err)
	}
	if os.Geteuid() != 0 {
		return errors.New("the agent needs root: it sets up the node's kernel")
	}
	rest, err := kube.RESTConfig(cfg.Kubeconfig, cfg.Context)
	if err != nil {
		return err
	}
	api, err := kube.NewNodeClient(rest, cfg.NodeName, cfg.Log)
	if err != nil {
		return err
	}
	linux, err := dataplane.New(dataplane.Options{StateDir: cfg.RunDir, Log: cfg.Log})
	if err != nil {
		return fmt.Errorf("preparing the dataplane: %w", err)
	}
	defer linux.Close()
	wire, err := probe.NewSockets(bareProbes(), cfg.Log)
	if err != nil {
		return err
	}
	defer wire.Close()
	return run(ctx, cfg, parts{dataplane: linux, changes: linux.Changes(ctx), client: api, kernel: nodekernel.Kernel{}, wire: wire})
}

// run is Run on any parts.
func run(ctx context.Context, cfg Config, p parts) error {
	n, err := newNode(ctx, cfg, p)
	if err != nil {
		return err
	}
	return errors.Join(n.work(ctx, p), n.book.Close())
}

// newNode puts an agent together, from what the one before it left. The caller
// closes its book.
func newNode(ctx context.Context, cfg Config, p parts) (*node, error) {
	if err := os.MkdirAll(cfg.RunDir, 0o700); err != nil {
		return nil, fmt.Errorf("making the run directory: %w", err)
	}
	last, boot, err := loadState(&cfg)
	if err != nil {
		return nil, err
	}
	book, err := openBook(ctx, &cfg, p.kernel, boot)
	if err != nil {
		return nil, err
	}
	last.BootID = boot
	m := newMetrics()
	again := make(chan struct{}, 1)
	more := func() { notify(again) }
	sharer := newSharer(p.client, book, &cfg, m, more)
	n := &node{
		config: &cfg, cluster: p.client, dataplane: p.dataplane, book: book, board: newBoard(service{notReady: "the agent is starting"}),
		leaser: newLeaser(p.client, book, &cfg, m, more, sharer.hold), sharer: sharer, words: newPodWords(p.client, &cfg, boot), prober: probe.New(p.wire, cfg.Log),
		publisher: newPublisher(p.client, &cfg), installer: newInstaller(&cfg, p.client.NodeEvent),
		metrics: m, log: cfg.Log, again: again, more: more, last: last,
	}
	m.watch(n)
	return n, nil
}

// work runs the loops until ctx is done or one of them cannot go on.
func (n *node) work(ctx context.Context, p parts) error {
	w := &web{config: n.config, node: n}
	port, err := w.listen()
	if err != nil {
		return err
	}
	socket, err := cniwire.Listen(n.config.inRunDir(socketName))
	if err != nil {
		return errors.Join(err, port.Close())
	}
	adminSocket, err := cniwire.Listen(n.config.inRunDir(adminName))
	if err != nil {
		return errors.Join(err, port.Close(), socket.Close())
	}
	s := &server{book: n.book, pods: n.words, board: n.board, wait: n.config.timing.addWait, more: n.leaser.more, sharer: n.sharer,
		version: n.config.Version, metrics: n.metrics, log: n.log}
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return p.client.Run(ctx) })
	group.Go(func() error { return cniwire.Serve(ctx, socket, s.handle) })
	group.Go(func() error { return w.serve(ctx, port) })
	group.Go(func() error { return serveAdmin(ctx, adminSocket, &admin{book: n.book, pods: p.client}) })
	for _, loop := range []func(context.Context){n.prober.Run, n.leaser.run, n.sharer.run, n.publisher.run, n.followBook, n.reap,
		func(ctx context.Context) { n.run(ctx, p.changes) }} {
		group.Go(func() error { loop(ctx); return nil })
	}
	err = group.Wait()
	if errors.Is(err, context.Canceled) {
		return nil
	}
	return err
}

// restedApart is how far apart requests are woken because addresses have rested.
const restedApart = 50 * time.Millisecond

// followBook looks ahead for addresses, and wakes requests that wait for one,
// whenever one is given or freed, and when what was freed has rested; a pod that
// may reach the metadata service is let through. It looks for tombstones.
func (n *node) followBook(ctx context.Context) {
	var rested []time.Time // when to wake requests
	tombstones := time.NewTicker(n.config.timing.tombstones)
	defer tombstones.Stop()
	for {
		wake := n.config.timing.resync
		if len(rested) > 0 {
			wake = time.Until(rested[0])
		}
		select {
		case <-ctx.Done():
			return
		case <-tombstones.C:
			n.book.ApplyTombstones()
		case <-time.After(wake):
			rested = rested[min(1, len(rested)):]
			n.board.poke()
		case <-n.book.Changed():
			at := time.Now().Add(share.Rest).Truncate(restedApart).Add(restedApart)
			if len(rested) == 0 || at.After(rested[len(rested)-1]) {
				rested = append(rested, at)
			}
			n.leaser.more()
			n.sharer.more()
			n.board.poke()
			if n.exempt.Load().differs(n.book) {
				n.more()
			}
		}
	}
}

// reap removes the links of pods that ended: many by one call, and not at once,
// since most go by themselves, with their namespaces.
func (n *node) reap(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-n.book.Retired():
		}
		for pause := n.config.timing.reap; ; pause = n.config.timing.retryMin {
			select {
			case <-ctx.Done():
				return // the next agent begins with it
			case <-time.After(pause):
			}
			err := n.book.Reap()
			if err == nil {
				break
			}
			n.log.Warn("the links of pods that ended are still there; trying again", "err", err)
		}
	}
}

// loadState returns what the node did last in this boot, and the boot's id.
func loadState(cfg *Config) (laststate.State, string, error) {
	boot, err := laststate.BootID()
	if err != nil {
		return laststate.State{}, "", err
	}
	last, err := laststate.Load(cfg.inRunDir(stateName))
	if errors.Is(err, laststate.ErrUnusable) {
		cfg.Log.Warn("going on from the kernel and the API server", "err", err)
		return laststate.State{}, boot, nil
	}
	if err != nil {
		return laststate.State{}, "", err
	}
	if last == nil || last.BootID != boot || last.Node != cfg.NodeName {
		return laststate.State{}, boot, nil
	}
	return *last, boot, nil
}

// openBook opens the book of addresses; the agent before this one may be about
// to end, and holds it until then.
func openBook(ctx context.Context, cfg *Config, kernel addresses.Kernel, boot string) (*addresses.Book, error) {
	options := addresses.Options{
		JournalPath: cfg.inRunDir(journalName), TombstoneDir: cfg.inRunDir(tombstoneName), SandboxDir: cfg.inRunDir(netnsName),
		HostLocalDir: cfg.HostLocalDir, ResultDirs: cfg.resultDirs(), BootPath: cfg.inRunDir(bootName), BootID: boot, Kernel: kernel, Log: cfg.Log,
	}
	deadline := time.Now().Add(cfg.timing.lock)
	for {
		book, err := addresses.Open(options)
		if err == nil || !errors.Is(err, journal.ErrLocked) || time.Now().After(deadline) {
			return book, err
		}
		cfg.Log.Info("waiting for another agent on this node to end", "err", err)
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(cfg.timing.retryMin):
		}
	}
}

func notify(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

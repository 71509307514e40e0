package controller

import (
	"context"
	"fmt"
	"sync"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/leaderelection"
	"k8s.io/client-go/tools/leaderelection/resourcelock"

	"ropeway.dev/ropeway/internal/kube"
)

// elect leads whenever this replica holds the Lease, until the context ends.
func (c *controller) elect(ctx context.Context) error {
	clients, err := kubernetes.NewForConfig(c.cfg.API)
	if err != nil {
		return fmt.Errorf("prepare to elect a leader: %w", err)
	}
	lock := &resourcelock.LeaseLock{
		LeaseMeta:  metav1.ObjectMeta{Namespace: c.cfg.Namespace, Name: kube.ControllerLease},
		Client:     clients.CoordinationV1(),
		LockConfig: resourcelock.ResourceLockConfig{Identity: c.cfg.Identity},
	}
	for ctx.Err() == nil {
		if err := c.term(ctx, lock); err != nil {
			return err
		}
	}
	return nil
}

// term waits for the Lease, leads while this replica holds it, and returns when
// nothing of this replica acts any more. When the context ends the Lease is
// given up only after that, so that no two replicas ever act at once.
func (c *controller) term(ctx context.Context, lock *resourcelock.LeaseLock) error {
	holding, release := context.WithCancel(context.WithoutCancel(ctx))
	defer release()
	var acting sync.Mutex
	lead := func(elected context.Context) {
		acting.Lock()
		defer acting.Unlock()
		both, cancel := context.WithCancel(elected)
		defer cancel()
		defer context.AfterFunc(ctx, cancel)()
		if both.Err() == nil {
			c.lead(both)
		}
	}
	// The end of ctx stops the acting first and then the renewals.
	defer context.AfterFunc(ctx, func() {
		acting.Lock()
		defer acting.Unlock()
		release()
	})()
	elector, err := leaderelection.NewLeaderElector(leaderelection.LeaderElectionConfig{
		Lock:          lock,
		LeaseDuration: c.cfg.LeaseDuration,
		RenewDeadline: c.cfg.LeaseDuration * 2 / 3,
		RetryPeriod:   c.cfg.LeaseDuration / 5,
		Name:          kube.ControllerLease,
		Callbacks: leaderelection.LeaderCallbacks{
			OnStartedLeading: lead,
			OnStoppedLeading: func() {},
			OnNewLeader:      func(id string) { c.log.Info("leader", "identity", id, "self", id == c.cfg.Identity) },
		},
	})
	if err != nil {
		return fmt.Errorf("prepare to elect a leader: %w", err)
	}
	elector.Run(kube.WithLog(holding, c.log))
	acting.Lock() // whatever still acts has been told to stop
	defer acting.Unlock()
	if ctx.Err() != nil && elector.IsLeader() {
		c.giveUp(lock)
	}
	return nil
}

// giveUp empties the Lease, so that another replica need not wait for it to run
// out. It is a courtesy: if it fails, the Lease runs out.
func (c *controller) giveUp(lock *resourcelock.LeaseLock) {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	held, _, err := lock.Get(ctx)
	if err != nil || held.HolderIdentity != c.cfg.Identity {
		return
	}
	now := metav1.Now()
	err = lock.Update(ctx, resourcelock.LeaderElectionRecord{
		LeaderTransitions: held.LeaderTransitions, LeaseDurationSeconds: 1, AcquireTime: now, RenewTime: now,
	})
	if err != nil {
		c.log.Warn("the Lease could not be given up; it runs out by itself", "err", err)
	}
}

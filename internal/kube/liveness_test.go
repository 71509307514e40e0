package kube

import (
	"context"
	"errors"
	"strconv"
	"testing"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"sigs.k8s.io/controller-runtime/pkg/client"
)

// leases answers with one Lease, or with an error.
type leases struct {
	client.Reader
	lease *coordinationv1.Lease
	err   error
}

func (l *leases) Get(_ context.Context, _ client.ObjectKey, obj client.Object, _ ...client.GetOption) error {
	switch {
	case l.err != nil:
		return l.err
	case l.lease == nil:
		return apierrors.NewNotFound(schema.GroupResource{Resource: "leases"}, ControllerLease)
	}
	l.lease.DeepCopyInto(obj.(*coordinationv1.Lease))
	return nil
}

func (l *leases) renew(version int, holder string, at time.Time) {
	renewed := metav1.NewMicroTime(at)
	l.lease = &coordinationv1.Lease{Spec: coordinationv1.LeaseSpec{HolderIdentity: &holder, RenewTime: &renewed}}
	l.lease.ResourceVersion = strconv.Itoa(version)
}

func TestControllerIsAliveWhileItsLeaseChanges(t *testing.T) {
	now := time.Unix(100000, 0)
	api := &leases{}
	l := newLiveness(api, func() time.Time { return now })
	step := func(what string, after time.Duration, change func(), alive, flips bool) {
		t.Helper()
		now = now.Add(after)
		change()
		if got := l.check(t.Context()); got != flips || l.alive() != alive {
			t.Errorf("%s: alive %v, want %v; flipped %v, want %v", what, l.alive(), alive, got, flips)
		}
	}
	nothing := func() {}
	step("no Lease", 0, nothing, false, false)
	step("a Lease abandoned long ago", 0, func() { api.renew(1, "c1", now.Add(-time.Hour)) }, false, false)
	step("it is renewed, by a clock that is hours off", 3*time.Second, func() { api.renew(2, "c1", now.Add(-3*time.Hour)) }, true, true)
	step("it stays as it was", 14*time.Second, nothing, true, false)
	step("for too long", time.Second, nothing, false, true)
	step("renewed again", time.Second, func() { api.renew(3, "c1", now) }, true, true)
	step("the API server does not answer", 10*time.Second, func() { api.err = errors.New("down") }, true, false)
	step("for too long", 5*time.Second, nothing, false, true)
	step("it is back, and so is the controller", time.Second, func() { api.err = nil; api.renew(4, "c2", now) }, true, true)
	step("the controller stops and gives the Lease up", 15*time.Second, func() { api.renew(5, "", now) }, false, true)
}

func TestLeaseSeenFirst(t *testing.T) {
	now := time.Unix(100000, 0)
	for name, tc := range map[string]struct {
		holder string
		at     time.Duration
		alive  bool
	}{
		"renewed just now":          {"c1", -time.Second, true},
		"renewed by a clock ahead":  {"c1", 30 * time.Second, true},
		"renewed by a clock behind": {"c1", -30 * time.Second, true},
		"abandoned":                 {"c1", -2 * time.Minute, false},
		"given up":                  {"", -time.Second, false},
	} {
		api := &leases{}
		api.renew(1, tc.holder, now.Add(tc.at))
		l := newLiveness(api, func() time.Time { return now })
		if l.check(t.Context()); l.alive() != tc.alive {
			t.Errorf("%s: alive %v", name, l.alive())
		}
	}
}

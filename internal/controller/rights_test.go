package controller

import (
	"context"
	"fmt"
	"testing"

	"ropeway.dev/ropeway/api/v1alpha1"
	"ropeway.dev/ropeway/internal/cloud"
	"ropeway.dev/ropeway/internal/controller/routes"
)

// TestARefusedKeyIsSaidOnce: each of the cloud's answers has a request id of its own.
func TestARefusedKeyIsSaidOnce(t *testing.T) {
	changes := 0
	r := newRights(nil, func() { changes++ }, quiet(), 0)
	for i := range 20 {
		refused := &cloud.Error{Class: cloud.Unauthenticated, Code: "InvalidAccessKeyId.NotFound", Request: fmt.Sprint("R-", i)}
		r.publish(judgeRights([]cloud.Permission{{Action: "ecs:DescribeInstances", Err: refused}}))
	}
	r.make = func(context.Context, cloud.Setup) (cloud.Provider, error) {
		return nil, &cloud.Error{Class: cloud.Unauthenticated, Code: "InvalidSecurityToken.Expired", Request: fmt.Sprint("R-", changes)}
	}
	for range 20 {
		r.publish(r.ask(t.Context(), rightsInput{duties: cloud.Duties{Nodes: true}}))
	}
	if changes != 2 {
		t.Errorf("told of %d times, want once for each of two answers", changes)
	}
}

// TestRightsOfAMode: who only looks at the tables needs the rights to do that.
func TestRightsOfAMode(t *testing.T) {
	spec := &v1alpha1.ClusterNetworkSpec{Cloud: &v1alpha1.CloudSpec{Provider: "alibaba", Nodes: v1alpha1.DutyExternal}}
	for mode, want := range map[routes.Mode]cloud.Duties{
		routes.Off:      {},
		routes.External: {Check: true},
		routes.Write:    {Check: true, Routes: true},
		routes.Withdraw: {Check: true, Routes: true},
	} {
		if got := rightsNeeded(spec, routes.Input{Mode: mode}).duties; got != want {
			t.Errorf("%s: %+v, want %+v", mode, got, want)
		}
	}
}

package controller

import (
	"context"
	"fmt"
	"testing"

	"ropeway.dev/ropeway/internal/cloud"
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

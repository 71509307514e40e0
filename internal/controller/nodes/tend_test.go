package nodes

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes/fake"
	clienttesting "k8s.io/client-go/testing"

	"ropeway.dev/ropeway/internal/cloud"
)

// membersOf makes nodes that wait for their cloud controller, and a tender of them.
func membersOf(api *fake.Clientset, of *cloud.Fake, n int) (*tender, []member) {
	cfg := Config{}
	cfg.Defaults()
	t := &tender{cfg: cfg, input: func() Input { return Input{Forward: true} }, instances: &instances{cloud: of.Instances()}, api: api}
	t.checked = map[string]time.Time{}
	var members []member
	for i := range n {
		name := fmt.Sprint("node-", i)
		node := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: corev1.NodeSpec{ProviderID: "r.i-" + name}}
		_ = api.Tracker().Add(node)
		members = append(members, member{node, cloud.Instance{ID: "i-" + name, Interface: "eni-" + name}})
	}
	return t, members
}

// TestANodeThatFailsHoldsUpNoOther: neither a Node that cannot be written nor a
// batch of interfaces ends the round.
func TestANodeThatFailsHoldsUpNoOther(t *testing.T) {
	api, of := fake.NewClientset(), cloud.NewFake("r")
	written := 0
	api.PrependReactor("patch", "nodes", func(a clienttesting.Action) (bool, runtime.Object, error) {
		if name := a.(clienttesting.PatchAction).GetName(); name == "node-1" || name == "node-3" {
			return true, nil, errors.New("an admission webhook does not answer")
		}
		written++
		return true, nil, nil
	})
	tending, members := membersOf(api, of, 2*cloud.MaxDescribe)
	problems := tending.patch(t.Context(), members)
	if written != len(members)-2 || len(problems) != 1 || problems[0].Node != "" ||
		!strings.Contains(problems[0].Message, "node-1") || !strings.Contains(problems[0].Message, "node-3") {
		t.Errorf("%d nodes were written, problems %+v", written, problems)
	}
	of.Fail("AllowForwarding", &cloud.Error{Class: cloud.Permanent, Message: "interface eni-node-1 is a managed one"}, false)
	problems = tending.forward(t.Context(), members)
	if len(tending.checked) != cloud.MaxDescribe || len(problems) != 1 || !strings.Contains(problems[0].Message, "eni-node-1") {
		t.Errorf("%d interfaces were looked at, problems %+v", len(tending.checked), problems)
	}
}

// TestWhatFailsForAllEndsTheRound: thousands of calls would meet the same.
func TestWhatFailsForAllEndsTheRound(t *testing.T) {
	api, of := fake.NewClientset(), cloud.NewFake("r")
	tried := 0
	api.PrependReactor("patch", "nodes", func(clienttesting.Action) (bool, runtime.Object, error) {
		tried++
		return true, nil, context.DeadlineExceeded
	})
	tending, members := membersOf(api, of, 3*cloud.MaxDescribe)
	tending.patch(t.Context(), members)
	of.Fail("AllowForwarding", &cloud.Error{Class: cloud.Unauthenticated}, false)
	problems := tending.forward(t.Context(), members)
	if tried > 5 || of.Count("AllowForwarding") != 1 || len(problems) != 1 || problems[0].Reason != ReasonCredentials {
		t.Errorf("%d nodes and %d batches were tried, problems %+v", tried, of.Count("AllowForwarding"), problems)
	}
}

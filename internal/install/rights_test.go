package install

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net/netip"
	"testing"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"

	"sigs.k8s.io/controller-runtime/pkg/client"

	"ropeway.dev/ropeway/api/v1alpha1"
	"ropeway.dev/ropeway/internal/controller"
	"ropeway.dev/ropeway/internal/kube"
)

// as is the configuration of one of our service accounts, whose token is bound
// to a node.
func as(t *testing.T, account, node string) *rest.Config {
	cfg := rest.CopyConfig(shared.Config(t))
	cfg.Impersonate = rest.ImpersonationConfig{
		UserName: "system:serviceaccount:" + Namespace + ":" + account,
		Groups:   []string{"system:serviceaccounts", "system:serviceaccounts:" + Namespace, "system:authenticated"},
	}
	if node != "" {
		cfg.Impersonate.Extra = map[string][]string{"authentication.kubernetes.io/node-name": {node}}
	}
	return cfg
}

func quiet() *slog.Logger { return slog.New(slog.NewTextHandler(io.Discard, nil)) }

// TestRolesAreEnough: with the rights of the manifests and no more, an agent
// reads, leases, publishes and gives back, and a controller leads and writes
// the condition.
func TestRolesAreEnough(t *testing.T) {
	c := connect(t)
	addNode(t, c, "role-a", "192.0.2.1")
	installOn(t, c, Options{PodCIDRs: []string{"10.244.0.0/16"}})
	ctx, cancel := context.WithCancel(limited(t, 2*time.Minute))
	done := make(chan error, 2)
	agent, err := kube.NewNodeClient(as(t, AgentName, "role-a"), "role-a", quiet())
	if err != nil {
		t.Fatal(err)
	}
	go func() { done <- agent.Run(ctx) }()
	go func() {
		done <- controller.Run(ctx, controller.Config{API: as(t, ControllerName, ""), Identity: "test", Listen: "off", Log: quiet()})
	}()
	eventually(t, agent, func(v kube.View) bool { return v.NodeUID != "" })
	block := netip.MustParsePrefix("10.244.7.0/26")
	if _, err := agent.ClaimBlock(ctx, block); err != nil {
		t.Fatal(err)
	}
	status := kube.NodeStatus{Addresses: []netip.Addr{netip.MustParseAddr("192.0.2.1")}, CIDRs: []netip.Prefix{block},
		Sources: []netip.Addr{netip.MustParseAddr("10.244.7.1")}, Programmed: kube.Condition{Status: true}, AddressesUsable: kube.Condition{Status: true}}
	if err := agent.Publish(ctx, status); err != nil {
		t.Fatal(err)
	}
	status.Pods = 3
	status.Programmed.Message = "changed"
	if err := agent.Publish(ctx, status); err != nil {
		t.Fatal(err)
	}
	eventually(t, agent, func(v kube.View) bool { return v.Condition != nil && !v.Condition.Status })
	waitFor(t, "the ClusterNetwork's Accepted condition", func() bool {
		var network v1alpha1.ClusterNetwork
		err := c.Get(ctx, client.ObjectKey{Name: "default"}, &network)
		return err == nil && network.Status.InForce != nil
	})
	if err := agent.ReleaseBlock(ctx, block); err != nil {
		t.Error(err)
	}
	cancel()
	if err := errors.Join(<-done, <-done); err != nil {
		t.Error(err)
	}
	puppet{c: c}.start(t)
	uninstallFrom(t, c)
	checkNothingLeft(t, c)
}

func eventually(t *testing.T, agent *kube.NodeClient, fits func(kube.View) bool) {
	t.Helper()
	waitFor(t, "the agent's view", func() bool {
		v, err := agent.View()
		return err == nil && fits(v)
	})
}

func waitFor(t *testing.T, what string, ok func() bool) {
	t.Helper()
	ctx := limited(t, 30*time.Second)
	for !ok() {
		if pause(ctx, 20*time.Millisecond) != nil {
			t.Fatalf("%s: not within 30 s", what)
		}
	}
}

// TestAnAgentSpeaksForItsOwnNodeOnly (the admission policies): a token stolen
// from one node can neither lie about another nor take its addresses.
func TestAnAgentSpeaksForItsOwnNodeOnly(t *testing.T) {
	c := connect(t)
	installOn(t, c, Options{PodCIDRs: []string{"10.244.0.0/16"}})
	puppet{c: c}.start(t)
	addNode(t, c, "adm-a", "192.0.2.1")
	defer uninstallFrom(t, c)
	ctx := limited(t, time.Minute)
	block := func(cidr, node string) *v1alpha1.AddressBlock {
		return &v1alpha1.AddressBlock{ObjectMeta: metav1.ObjectMeta{Name: v1alpha1.BlockName(netip.MustParsePrefix(cidr))},
			Spec: v1alpha1.AddressBlockSpec{CIDR: cidr, Node: node, NodeUID: "u", Generation: 1}}
	}
	theirs, theirNode := block("10.244.8.0/26", "adm-b"), &v1alpha1.NodeNetwork{ObjectMeta: metav1.ObjectMeta{Name: "adm-b"}}
	if err := errors.Join(c.Create(ctx, theirs), c.Create(ctx, theirNode)); err != nil {
		t.Fatal(err)
	}
	agent, err := kube.NewClient(as(t, AgentName, "adm-a"))
	if err != nil {
		t.Fatal(err)
	}
	nobody, err := kube.NewClient(as(t, AgentName, ""))
	if err != nil {
		t.Fatal(err)
	}
	// Policies take effect a moment after they were applied.
	waitFor(t, "the policies to be in force", func() bool {
		return apierrors.IsForbidden(agent.Create(ctx, block("10.244.9.0/26", "adm-b"), client.DryRunAll)) &&
			apierrors.IsForbidden(agent.Create(ctx, &v1alpha1.NodeNetwork{ObjectMeta: metav1.ObjectMeta{Name: "adm-c"}}, client.DryRunAll))
	})
	mine, myNode := block("10.244.10.0/26", "adm-a"), &v1alpha1.NodeNetwork{ObjectMeta: metav1.ObjectMeta{Name: "adm-a"}}
	if err := errors.Join(agent.Create(ctx, mine), agent.Create(ctx, myNode)); err != nil {
		t.Errorf("its own: %v", err)
	}
	myNode.Status.AgentVersion = "v1"
	if err := agent.Status().Update(ctx, myNode); err != nil {
		t.Errorf("its own status: %v", err)
	}
	taken := theirs.DeepCopy()
	taken.Spec.Node = "adm-a"
	given := mine.DeepCopy()
	given.Spec.Node = "adm-b"
	routed := myNode.DeepCopy() // so that peers send another's packets to it
	routed.Spec = v1alpha1.NodeNetworkSpec{NodeUID: "u", PodCIDRs: []string{"10.244.8.0/24"}}
	born := &v1alpha1.NodeNetwork{ObjectMeta: metav1.ObjectMeta{Name: "adm-a"}, Spec: routed.Spec}
	lie := theirNode.DeepCopy()
	lie.Status.VTEP = "02:00:00:00:00:01"
	for what, err := range map[string]error{
		"take another's lease":           agent.Update(ctx, taken),
		"give its lease to another":      agent.Update(ctx, given),
		"delete another's lease":         agent.Delete(ctx, theirs),
		"write another's status":         agent.Status().Update(ctx, lie),
		"say which podCIDRs are its":     agent.Update(ctx, routed),
		"say so from the first":          errors.Join(c.Delete(ctx, myNode), agent.Create(ctx, born)),
		"lease a block that is too wide": agent.Create(ctx, block("10.244.0.0/19", "adm-a")),
		"one of IPv6":                    agent.Create(ctx, block("fd00::/111", "adm-a")),
		"write without a node":           nobody.Create(ctx, block("10.244.11.0/26", "")),
		"write its network without one":  nobody.Create(ctx, &v1alpha1.NodeNetwork{ObjectMeta: metav1.ObjectMeta{Name: "adm-d"}}),
	} {
		if !apierrors.IsForbidden(err) && !apierrors.IsInvalid(err) {
			t.Errorf("%s: %v", what, err)
		}
	}
	if err := agent.Delete(ctx, mine); err != nil {
		t.Errorf("give back its own lease: %v", err)
	}
	checkSingleAddresses(ctx, t, c, agent, block)
}

// checkSingleAddresses: an agent shares blocks and takes up what is nobody's, and
// answers for what is asked of its own node, and says nothing else with it.
func checkSingleAddresses(ctx context.Context, t *testing.T, c, agent client.Client, block func(cidr, node string) *v1alpha1.AddressBlock) {
	t.Helper()
	shared := block("10.244.12.0/26", "")
	shared.Spec.NodeUID, shared.Spec.Sharing = "", v1alpha1.SharingDeclared
	kept := block("10.244.12.5/32", "adm-a")
	kept.Spec.KeptFor = &v1alpha1.KeptFor{Namespace: "d", Pod: "web-0", StatefulSet: "web", UID: "u"}
	asked := block("10.244.13.5/32", "adm-b")
	asked.Spec.From = "adm-a"
	elsewhere := block("10.244.13.6/32", "adm-b")
	elsewhere.Spec.From = "adm-c"
	wanted := block("10.244.13.7/32", "adm-a")
	wanted.Spec.From = "adm-b"
	had := block("10.244.13.8/32", "adm-a")
	had.Spec.From, had.Spec.Grant = "adm-b", v1alpha1.Granted
	if err := errors.Join(agent.Create(ctx, shared), agent.Create(ctx, kept), agent.Create(ctx, wanted), c.Create(ctx, asked), c.Create(ctx, elsewhere)); err != nil {
		t.Fatal(err)
	}
	if err := agent.Create(ctx, had); !apierrors.IsForbidden(err) {
		t.Errorf("lease what it has granted itself: %v", err)
	}
	may := func(what string, b *v1alpha1.AddressBlock, change func(*v1alpha1.AddressBlockSpec), is bool) {
		t.Helper()
		next := b.DeepCopy()
		change(&next.Spec)
		err := agent.Update(ctx, next)
		if err == nil && is {
			*b = *next
		}
		if (err == nil) != is || err != nil && !apierrors.IsForbidden(err) {
			t.Errorf("%s: %v", what, err)
		}
	}
	type spec = v1alpha1.AddressBlockSpec
	may("confirm", shared, func(s *spec) { s.Sharing = v1alpha1.SharingConfirmed }, true)
	may("let go", kept, func(s *spec) { s.Node, s.NodeUID, s.Generation = "", "", 2 }, true)
	may("give what is kept to another", kept, func(s *spec) { s.Node, s.NodeUID, s.Generation = "adm-b", "u", 3 }, false)
	may("take up", kept, func(s *spec) { s.Node, s.NodeUID, s.Generation = "adm-a", "u", 3 }, true)
	may("answer for another node", elsewhere, func(s *spec) { s.Grant = v1alpha1.Granted }, false)
	may("answer and take", asked, func(s *spec) { s.Grant, s.Node = v1alpha1.Granted, "adm-a" }, false)
	may("answer", asked, func(s *spec) { s.Grant = v1alpha1.Granted }, true)
	may("grant itself what it asked for", wanted, func(s *spec) { s.Grant = v1alpha1.Granted }, false)
	may("answer again", asked, func(s *spec) { s.Grant, s.GrantReason = v1alpha1.Refused, "late" }, false)
	if err := errors.Join(agent.Delete(ctx, shared), agent.Delete(ctx, kept), agent.Delete(ctx, wanted), c.Delete(ctx, asked), c.Delete(ctx, elsewhere)); err != nil {
		t.Error(err)
	}
}

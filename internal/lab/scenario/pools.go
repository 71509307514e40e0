package scenario

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"
)

// routedPools plays the document's pools in its non-tunnel mode: a live cluster
// goes from host-local to the SpiderIPPools by the document's own manifests. Pods
// that run keep their addresses and their connections; new ones get an address
// of the pool of their own node.
func (s *stage) routedPools(ctx context.Context) error {
	if err := s.r.Step(ctx, "before: host-local, from each node's podCIDR, and routes in the VPC", s.beforePools); err != nil {
		return err
	}
	ways, err := s.startSteady(ctx)
	defer s.endSteady(context.WithoutCancel(ctx))
	if err != nil {
		return err
	}
	ways = slices.DeleteFunc(ways, func(w way) bool { return w.host == "outside" })
	if err := s.r.Step(ctx, "the document's ConfigMap and pools, as they are, under traffic: live pods keep what they have", func(ctx context.Context) error {
		return s.toPools(ctx, ways)
	}); err != nil {
		return err
	}
	s.endSteady(ctx)
	if err := s.r.Step(ctx, "a new pod has an address of its node's pool, beside those of live ones", s.besideLivePods); err != nil {
		return err
	}
	if err := s.r.Step(ctx, "made anew, every pod has an address of its node's pool, and kubectl get sp counts them", s.fromPools); err != nil {
		return err
	}
	s.probes(ctx)
	_ = s.r.Step(ctx, "API server, journals, kernels and host-local's files agree about every address", s.addressesAgree)
	if err := s.r.Step(ctx, "an exact address by annotation: given once, and refused to a second pod with the reason", s.exactAddress); err != nil {
		return err
	}
	return s.r.Step(ctx, "a fixed address moves to the other node, and everybody reaches it there", s.fixedMoves)
}

// beforePools brings the cluster to where the document's user is when he reads
// on from host-local.
func (s *stage) beforePools(ctx context.Context) error {
	if err := s.installHostLocal(ctx); err != nil {
		return err
	}
	if err := s.deployOnNodeCIDRs(ctx); err != nil {
		return err
	}
	return s.vpcLeads(ctx)
}

// toPools switches as the document does: the ConfigMap first, then a pool for
// each node.
func (s *stage) toPools(ctx context.Context, ways []way) error {
	before, err := s.pods(ctx, "app=test")
	if err != nil {
		return err
	}
	watching, cancel := context.WithCancel(ctx)
	defer cancel() // ends the watchers
	watched, err := s.watchAll(watching, ways)
	if err != nil {
		return err
	}
	err = s.unnoticed(ctx, watched, event{undo: s.leavePools, happen: func(ctx context.Context) error {
		if err := s.installDocument(ctx, spiderpoolConfig, nonTunnel); err != nil {
			return err
		}
		if err := s.until(ctx, 2*time.Minute, func() error { return s.conflistsSay(ctx, `"spiderpool"`) }); err != nil {
			return err
		}
		pools, err := document(spiderIPPools)
		if err != nil {
			return err
		}
		out, err := s.quiet(ctx, "apply", "-f", pools)
		s.r.Command("kubectl apply -f "+spiderIPPools, []byte(out))
		if err != nil {
			return err
		}
		return s.until(ctx, time.Minute, func() error { return s.poolsAccepted(ctx) })
	}})
	if err != nil {
		return err
	}
	after, err := s.pods(ctx, "app=test")
	if err == nil && !slices.Equal(before, after) {
		err = fmt.Errorf("the pods were %v and are %v", before, after)
	}
	return err
}

// leavePools goes back to host-local.
func (s *stage) leavePools(ctx context.Context) error {
	if err := s.installHostLocal(ctx); err != nil {
		return err
	}
	if err := s.until(ctx, 2*time.Minute, func() error { return s.conflistsSay(ctx, `"host-local"`) }); err != nil {
		return err
	}
	pools, err := document(spiderIPPools)
	if err != nil {
		return err
	}
	_, err = s.quiet(ctx, "delete", "-f", pools, "--ignore-not-found")
	return err
}

// conflistsSay wants every node's conflist to have the text.
func (s *stage) conflistsSay(ctx context.Context, text string) error {
	for _, node := range s.nodes() {
		out, err := s.l.NodeExec(ctx, node, "cat", "/etc/cni/net.d/10-ropeway.conflist")
		if err != nil {
			return err
		}
		if !strings.Contains(string(out), text) {
			return fmt.Errorf("the conflist of node %s does not say %s yet", node, text)
		}
	}
	return nil
}

// besideLivePods adds a pod for each node to those that host-local gave
// addresses, which lie in the pools too.
func (s *stage) besideLivePods(ctx context.Context) error {
	before, err := s.pods(ctx, "app=test")
	if err != nil {
		return err
	}
	if err := s.scale(ctx, len(before)+len(s.nodes())); err != nil {
		return err
	}
	after, err := s.pods(ctx, "app=test")
	if err != nil {
		return err
	}
	for _, p := range before {
		if !slices.Contains(after, p) {
			return fmt.Errorf("pod %s with %s is no more", p.name, p.address)
		}
	}
	if err := s.addressesInNetwork(ctx); err != nil { // no two are equal
		return err
	}
	return s.inPools(ctx, after)
}

// scale changes the number of the test Deployment's pods and waits.
func (s *stage) scale(ctx context.Context, replicas int) error {
	if _, err := s.quiet(ctx, "scale", "deploy/test", fmt.Sprintf("--replicas=%d", replicas)); err != nil {
		return err
	}
	if _, err := s.quiet(ctx, "rollout", "status", "deploy/test", "--timeout=120s"); err != nil {
		return err
	}
	return s.until(ctx, time.Minute, func() error {
		pods, err := s.pods(ctx, "app=test")
		if err == nil && len(pods) != replicas {
			err = fmt.Errorf("%d pods of the test Deployment are there, want %d", len(pods), replicas)
		}
		return err
	})
}

// fromPools makes all pods anew.
func (s *stage) fromPools(ctx context.Context) error {
	if err := s.scale(ctx, 0); err != nil {
		return err
	}
	if err := s.deploy(ctx); err != nil {
		return err
	}
	pods, err := s.pods(ctx, "app=test")
	if err != nil {
		return err
	}
	if err := errors.Join(s.inPools(ctx, pods), s.inNodeCIDRs(ctx)); err != nil {
		return err
	}
	err = s.until(ctx, 2*time.Minute, func() error { return s.poolsCount(ctx) })
	if _, show := s.kubectl(ctx, "get", "sp"); show != nil {
		return show
	}
	return err
}

// spiderPool is what the scenario looks at of a SpiderIPPool.
type spiderPool struct {
	Metadata struct {
		Name string `json:"name"`
	} `json:"metadata"`
	Spec struct {
		NodeName []string `json:"nodeName"`
		IPs      []string `json:"ips"`
	} `json:"spec"`
	Status struct {
		AllocatedIPCount int             `json:"allocatedIPCount"`
		Conditions       []poolCondition `json:"conditions"`
	} `json:"status"`
}

type poolCondition struct {
	Type    string `json:"type"`
	Status  string `json:"status"`
	Message string `json:"message"`
}

// has is true for an address of the pool's one range.
func (p spiderPool) has(a netip.Addr) bool {
	from, to, _ := strings.Cut(p.Spec.IPs[0], "-")
	first, last := netip.MustParseAddr(from), netip.MustParseAddr(to)
	return first.Compare(a) <= 0 && a.Compare(last) <= 0
}

// spiderPools maps nodes -> their pool.
func (s *stage) spiderPools(ctx context.Context) (map[string]spiderPool, error) {
	out, err := s.quiet(ctx, "get", "spiderippools", "-o", "json")
	if err != nil {
		return nil, err
	}
	var list struct {
		Items []spiderPool `json:"items"`
	}
	if err := json.Unmarshal([]byte(out), &list); err != nil {
		return nil, fmt.Errorf("reading the pools: %w", err)
	}
	pools := map[string]spiderPool{}
	for _, p := range list.Items {
		for _, node := range p.Spec.NodeName {
			pools[node] = p
		}
	}
	if len(pools) == 0 {
		return nil, errors.New("no node has a SpiderIPPool")
	}
	return pools, nil
}

func (s *stage) poolsAccepted(ctx context.Context) error {
	pools, err := s.spiderPools(ctx)
	if err != nil {
		return err
	}
	for _, p := range pools {
		for _, want := range []string{"Accepted", "Served"} {
			if !slices.ContainsFunc(p.Status.Conditions, func(c poolCondition) bool { return c.Type == want && c.Status == "True" }) {
				return fmt.Errorf("pool %s is not %s: %+v", p.Metadata.Name, want, p.Status.Conditions)
			}
		}
	}
	return nil
}

// inPools wants each pod's address to be of its own node's pool. A node without
// one (the document has two) serves by its podCIDR.
func (s *stage) inPools(ctx context.Context, pods []pod) error {
	pools, err := s.spiderPools(ctx)
	if err != nil {
		return err
	}
	served := 0
	for _, p := range pods {
		own, there := pools[p.node]
		if !there {
			continue
		}
		if !own.has(p.address) {
			return fmt.Errorf("pod %s on node %s has %s, which is not of the node's pool %s (%v)", p.name, p.node, p.address, own.Metadata.Name, own.Spec.IPs)
		}
		served++
	}
	if served == 0 {
		return errors.New("no pod is on a node with a pool")
	}
	s.note("%d of %d pods have an address of their own node's pool", served, len(pods))
	return nil
}

// poolsCount wants each pool to count as many addresses as pods have of it,
// CoreDNS's too: another allocator's addresses might lie in a pool's range as
// well, and it would not count those.
func (s *stage) poolsCount(ctx context.Context) error {
	pools, err := s.spiderPools(ctx)
	if err != nil {
		return err
	}
	out, err := s.quiet(ctx, "get", "pods", "-A", "-o", "jsonpath={.items[*].status.podIP}")
	if err != nil {
		return err
	}
	for node, p := range pools {
		have := 0
		for _, text := range strings.Fields(out) {
			if a, err := netip.ParseAddr(text); err == nil && p.has(a) {
				have++
			}
		}
		if p.Status.AllocatedIPCount != have || have == 0 {
			return fmt.Errorf("the pool %s of node %s counts %d addresses in use, and %d pods have one", p.Metadata.Name, node, p.Status.AllocatedIPCount, have)
		}
	}
	return nil
}

// addressesAgree wants no difference, and nothing of host-local's but what its
// live pods have: the files of those that ended went with them.
func (s *stage) addressesAgree(ctx context.Context) error {
	if err := s.ropeway(ctx, "ipam", "show"); err != nil {
		return err
	}
	if err := s.ropeway(ctx, "ipam", "check"); err != nil {
		return err
	}
	out, err := s.product.Run(ctx, s.l, "migrate", "addresses", "--dry-run")
	s.r.Command("ropeway migrate addresses --dry-run", out)
	if err == nil && !strings.Contains(string(out), " 0 taken over, 0 freed, 0 left as they are, 0 conflicts") {
		err = errors.New("something of host-local's is left")
	}
	return err
}

// fixedPod asks for one address by annotation.
const fixedPod = `apiVersion: v1
kind: Pod
metadata: {name: %s, labels: {app: fixed}, annotations: {ropeway.dev/ips: '["%s"]'}}
spec:
  nodeName: %s
  terminationGracePeriodSeconds: 1
  tolerations: [{operator: Exists}]
  containers: [{name: web, image: lab.ropeway.dev/web:1, imagePullPolicy: IfNotPresent}]
`

// exactAddress asks for one address of a node's pool, twice.
func (s *stage) exactAddress(ctx context.Context) error {
	defer s.noFixed(context.WithoutCancel(ctx))
	node := s.nodes()[1]
	want, err := s.addressOn(ctx, node, 200)
	if err != nil {
		return err
	}
	if err := s.fix(ctx, "fixed", want, node); err != nil {
		return err
	}
	if err := s.fixedIsReached(ctx, want); err != nil {
		return err
	}
	if err := s.fix(ctx, "fixed-again", want, node); err != nil {
		return err
	}
	return s.until(ctx, time.Minute, func() error { return s.refusedWith(ctx, "fixed-again", want.String()) })
}

// fixedMoves has a pod keep its address on another node, whose range does not hold
// it: an address that no pool states, since the document's are bound to nodes.
func (s *stage) fixedMoves(ctx context.Context) error {
	defer s.noFixed(context.WithoutCancel(ctx))
	home, away := s.nodes()[1], s.nodes()[0]
	want, err := s.addressOn(ctx, home, 254)
	if err != nil {
		return err
	}
	for _, node := range []string{home, away, home} {
		s.noFixed(ctx)
		if err := s.fix(ctx, "fixed", want, node); err != nil {
			return err
		}
		if err := s.fixedIsReached(ctx, want); err != nil {
			return fmt.Errorf("on node %s: %w", node, err)
		}
		for _, n := range s.nodes() {
			if err := s.get(ctx, n, "http://"+want.String()); err != nil {
				return fmt.Errorf("on node %s, from node %s: %w", node, n, err)
			}
		}
	}
	return nil
}

// addressOn is the address of a node's podCIDR that ends so.
func (s *stage) addressOn(ctx context.Context, node string, last byte) (netip.Addr, error) {
	cidrs, err := s.nodeCIDRs(ctx)
	if err != nil {
		return netip.Addr{}, err
	}
	quad := cidrs[node].Masked().Addr().As4()
	quad[3] = last
	return netip.AddrFrom4(quad), nil
}

// fix makes a pod on a node that asks for an address.
func (s *stage) fix(ctx context.Context, name string, address netip.Addr, node string) error {
	_, err := s.l.KubectlInput(ctx, strings.NewReader(fmt.Sprintf(fixedPod, name, address, node)), "apply", "-f", "-")
	return err
}

func (s *stage) noFixed(ctx context.Context) {
	_, _ = s.quiet(ctx, "delete", "pod", "-l", "app=fixed", "--timeout=60s")
}

// fixedIsReached wants the pod to have the address, and a pod on the other node to
// reach it.
func (s *stage) fixedIsReached(ctx context.Context, want netip.Addr) error {
	if _, err := s.quiet(ctx, "wait", "--for=condition=Ready", "pod/fixed", "--timeout=120s"); err != nil {
		return err
	}
	if _, err := s.kubectl(ctx, "get", "po", "fixed", "-o", "wide"); err != nil {
		return err
	}
	fixed, err := s.pods(ctx, "app=fixed")
	if err != nil || len(fixed) != 1 || fixed[0].address != want {
		return fmt.Errorf("the pod that asks for %s is %v: %w", want, fixed, err)
	}
	pods, err := s.pods(ctx, "app=test")
	if err != nil {
		return err
	}
	from, err := onOtherNode(pods, fixed[0])
	if err != nil {
		return err
	}
	// The other nodes hear of it a moment after its own.
	return s.until(ctx, 20*time.Second, func() error { return s.ping(ctx, from, want.String(), "62") })
}

// refusedWith wants an event on a pod that says that it gets no address, and why.
func (s *stage) refusedWith(ctx context.Context, name, why string) error {
	out, err := s.quiet(ctx, "get", "events", "--field-selector", "involvedObject.name="+name+",reason=NoAddress", "-o", "jsonpath={.items[*].message}")
	if err != nil {
		return err
	}
	if !strings.Contains(out, why) {
		return fmt.Errorf("no event of pod %s says why it gets no address: %q", name, out)
	}
	s.note("the event of pod %s: %s", name, out)
	return nil
}

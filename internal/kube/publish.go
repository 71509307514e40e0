package kube

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"sigs.k8s.io/controller-runtime/pkg/client"

	"ropeway.dev/ropeway/api/v1alpha1"
	"ropeway.dev/ropeway/internal/plan"
)

// A NodeNetwork is watched by every node of the cluster, so a needless write of
// one costs as many messages as there are nodes. Publish therefore writes only
// what differs from what was written last. What only a person reads (counts,
// exceptions) is written at once after a quiet time, and then not again for a
// while that grows with the cluster: however large it is, all nodes together
// write it a few times a second at most. That a transport came into use or out
// of it is written at once.
const (
	countsPerPeer = 300 * time.Millisecond
	countsLeast   = 5 * time.Second
	// publishAttempts bounds how often a write that somebody else's crossed is
	// done again at once.
	publishAttempts = 4
)

// countsInterval is the least time between two writes for counts alone.
func countsInterval(peers map[string]int32) time.Duration {
	all := int32(0)
	for _, n := range peers {
		all += n
	}
	return max(countsLeast, time.Duration(all)*countsPerPeer)
}

// knownTransports are those that a NodeNetwork speaks of.
func knownTransports() []plan.Transport { return []plan.Transport{plan.Direct, plan.IPIP, plan.VXLAN} }

// published remembers what was written last.
type published struct {
	mu   sync.Mutex
	last *v1alpha1.NodeNetwork // as the API server answered it
	at   time.Time
}

// Publish makes this node's NodeNetwork say status. It creates the object when
// it is missing, owned by the Node, and writes only when something changed. On
// an error nothing is known to have been written; publish again.
func (c *NodeClient) Publish(ctx context.Context, status NodeStatus) error {
	uid, err := c.nodeUID()
	if err != nil {
		return fmt.Errorf("publish what this node does: %w", err)
	}
	if status.NodeUID == "" {
		status.NodeUID = uid
	}
	c.sent.mu.Lock()
	defer c.sent.mu.Unlock()
	// The controller writes the spec of the same object.
	for range publishAttempts {
		err = c.publish(ctx, uid, status)
		if !apierrors.IsConflict(err) && !apierrors.IsAlreadyExists(err) {
			break
		}
	}
	if err != nil {
		c.sent.last = nil // read afresh next time
		return fmt.Errorf("publish what this node does: %w", err)
	}
	return nil
}

func (c *NodeClient) publish(ctx context.Context, uid string, status NodeStatus) error {
	current, err := c.currentNodeNetwork(ctx, uid)
	if err != nil {
		return err
	}
	want := buildStatus(status, &current.Status, metav1.Now())
	if !c.sent.worthWriting(&current.Status, want) {
		return nil
	}
	next := current.DeepCopy()
	next.Status = *want
	if err := c.api.Status().Update(ctx, next); err != nil {
		c.sent.last = nil
		return fmt.Errorf("write the status of NodeNetwork %s: %w", c.node, err)
	}
	c.sent.last, c.sent.at = next, time.Now()
	return nil
}

// worthWriting says whether the difference between two statuses is worth a
// write now.
func (p *published) worthWriting(old, want *v1alpha1.NodeNetworkStatus) bool {
	if equality.Semantic.DeepEqual(old, want) {
		return false
	}
	if !slices.Equal(slices.Sorted(maps.Keys(old.Peers)), slices.Sorted(maps.Keys(want.Peers))) {
		return true // who takes routes away waits for the last node to leave them
	}
	a, b := *old, *want
	a.Pods, b.Pods = 0, 0
	a.Pools, b.Pools = nil, nil
	a.Peers, b.Peers = nil, nil
	a.Exceptions, b.Exceptions = nil, nil
	return !equality.Semantic.DeepEqual(a, b) || time.Since(p.at) >= countsInterval(want.Peers)
}

// currentNodeNetwork returns this node's NodeNetwork as it is, making it when it
// is missing. What this client wrote last is believed as long as the cache does
// not show somebody else's change.
func (c *NodeClient) currentNodeNetwork(ctx context.Context, uid string) (*v1alpha1.NodeNetwork, error) {
	if c.sent.last != nil && ownedBy(c.sent.last, uid) && !c.lost() {
		return c.sent.last, nil
	}
	var nn v1alpha1.NodeNetwork
	err := c.api.Get(ctx, client.ObjectKey{Name: c.node}, &nn)
	switch {
	case apierrors.IsNotFound(err):
		return c.createNodeNetwork(ctx, uid)
	case err != nil:
		return nil, fmt.Errorf("read NodeNetwork %s: %w", c.node, err)
	case ownedBy(&nn, uid):
		return &nn, nil
	}
	// It is of an earlier Node object. It gets its new owner before anything
	// else, or the garbage collector deletes it with the old one.
	nn.OwnerReferences = OwnedByNode(c.node, uid)
	if err := c.api.Update(ctx, &nn); err != nil {
		return nil, fmt.Errorf("take over NodeNetwork %s of an earlier Node object: %w", c.node, err)
	}
	return &nn, nil
}

// OwnedByNode lets an object go with the Node of that UID.
func OwnedByNode(node, uid string) []metav1.OwnerReference {
	return []metav1.OwnerReference{{APIVersion: "v1", Kind: "Node", Name: node, UID: types.UID(uid)}}
}

// lost says that the cache knows of a NodeNetwork other than the one written
// last: it was deleted, made anew, or written by somebody else.
func (c *NodeClient) lost() bool {
	cached := c.observer.nodeNetwork(c.node)
	if cached == nil {
		return time.Since(c.sent.at) > claimMemory
	}
	return cached.UID != c.sent.last.UID ||
		cached.ResourceVersion != c.sent.last.ResourceVersion && time.Since(c.sent.at) > claimMemory
}

func (c *NodeClient) createNodeNetwork(ctx context.Context, uid string) (*v1alpha1.NodeNetwork, error) {
	nn := &v1alpha1.NodeNetwork{ObjectMeta: metav1.ObjectMeta{Name: c.node, OwnerReferences: OwnedByNode(c.node, uid)}}
	if err := c.api.Create(ctx, nn); err != nil {
		return nil, fmt.Errorf("create NodeNetwork %s: %w", c.node, err)
	}
	return nn, nil
}

func ownedBy(nn *v1alpha1.NodeNetwork, uid string) bool {
	return nn.DeletionTimestamp == nil && slices.ContainsFunc(nn.OwnerReferences, func(r metav1.OwnerReference) bool {
		return r.Kind == "Node" && string(r.UID) == uid
	})
}

// buildStatus says status in the API's words. Times of what did not change are
// taken from old.
func buildStatus(s NodeStatus, old *v1alpha1.NodeNetworkStatus, now metav1.Time) *v1alpha1.NodeNetworkStatus {
	// The API has whole seconds; anything finer would differ on each reading.
	now = metav1.NewTime(now.Truncate(time.Second))
	if old.NodeUID != s.NodeUID {
		old = &v1alpha1.NodeNetworkStatus{}
	}
	out := &v1alpha1.NodeNetworkStatus{
		NodeUID:      s.NodeUID,
		AgentVersion: s.AgentVersion,
		ReadySince:   old.ReadySince,
		Addresses:    stringsOf(s.Addresses),
		CIDRs:        stringsOf(s.CIDRs),
		Sources:      stringsOf(s.Sources),
		Pods:         int32(s.Pods),
		Pools:        s.Pools,
		Probes:       probeResults(s.Probes, old.Probes, now),
		Exceptions:   exceptions(s.Exceptions),
		Conditions:   slices.Clone(old.Conditions),

		NetworkGeneration: s.NetworkGeneration,
	}
	if out.ReadySince == nil && s.Programmed.Status {
		out.ReadySince = &now
	}
	if s.VTEP != (plan.MAC{}) {
		out.VTEP = net.HardwareAddr(s.VTEP[:]).String()
	}
	for _, t := range knownTransports() {
		reason, refused := s.Refuses[t]
		out.Transports = append(out.Transports, v1alpha1.TransportStatus{Name: string(t), Supported: !refused, Reason: reason})
	}
	for _, fault := range slices.Sorted(maps.Keys(s.Faults)) {
		out.Faults = append(out.Faults, v1alpha1.NodeFault{Fault: string(fault), Message: s.Faults[fault]})
	}
	for t, n := range s.Peers {
		if out.Peers == nil {
			out.Peers = map[string]int32{}
		}
		out.Peers[string(t)] = int32(n)
	}
	setCondition(&out.Conditions, v1alpha1.ConditionProgrammed, s.Programmed, now)
	setCondition(&out.Conditions, v1alpha1.ConditionAddressesUsable, s.AddressesUsable, now)
	if s.Conflist.Reason != "" {
		setCondition(&out.Conditions, v1alpha1.ConditionConflistInstalled, s.Conflist, now)
	}
	return out
}

func setCondition(conditions *[]metav1.Condition, kind string, c Condition, now metav1.Time) {
	status := metav1.ConditionFalse
	if c.Status {
		status = metav1.ConditionTrue
	}
	meta.SetStatusCondition(conditions, metav1.Condition{
		Type: kind, Status: status, Message: shorten(c.Message), LastTransitionTime: now,
		Reason: cmp.Or(c.Reason, kind), // the API wants one
	})
}

// mostMessage bounds a condition's message in bytes: an error that names every
// peer of a large cluster would be refused by the API server, and the rest with
// it.
const mostMessage = 1024

// shorten cuts a message, between two characters, and says so.
func shorten(message string) string {
	if len(message) <= mostMessage {
		return message
	}
	const more = " ... (the agent's log has all of it)"
	return strings.ToValidUTF8(message[:mostMessage-len(more)], "") + more
}

func probeResults(probes []Probe, old []v1alpha1.ProbeResult, now metav1.Time) []v1alpha1.ProbeResult {
	out := make([]v1alpha1.ProbeResult, 0, len(probes))
	for _, p := range probes {
		r := v1alpha1.ProbeResult{
			Node: p.To, NodeUID: p.ToUID, Family: string(p.Family), Transport: string(p.Transport),
			Reachable: p.Reachable, Fault: string(p.Fault), PathMTU: int32(p.PathMTU), Reason: p.Reason, Since: metav1.NewTime(p.Since.Truncate(time.Second)),
		}
		if p.Address.IsValid() {
			r.Address = p.Address.String()
		}
		if p.Since.IsZero() {
			r.Since = sinceOf(r, old, now)
		}
		out = append(out, r)
	}
	slices.SortFunc(out, func(a, b v1alpha1.ProbeResult) int {
		return cmp.Or(cmp.Compare(a.Node, b.Node), cmp.Compare(a.Family, b.Family), cmp.Compare(a.Transport, b.Transport), cmp.Compare(a.Address, b.Address))
	})
	if len(out) == 0 {
		return nil
	}
	return out
}

func sinceOf(r v1alpha1.ProbeResult, old []v1alpha1.ProbeResult, now metav1.Time) metav1.Time {
	for _, o := range old {
		if o.Node == r.Node && o.NodeUID == r.NodeUID && o.Family == r.Family && o.Transport == r.Transport && o.Address == r.Address && o.Reachable == r.Reachable {
			return o.Since
		}
	}
	return now
}

func exceptions(in []Exception) []v1alpha1.PeerException {
	in = slices.SortedFunc(slices.Values(in), func(a, b Exception) int { return cmp.Compare(a.Node, b.Node) })
	var out []v1alpha1.PeerException
	for _, e := range in[:min(len(in), v1alpha1.MaxExceptions)] {
		out = append(out, v1alpha1.PeerException{Node: e.Node, Transport: string(e.Transport), Reason: e.Reason})
	}
	return out
}

func stringsOf[T netip.Addr | netip.Prefix](in []T) []string {
	var out []string
	for _, v := range in {
		out = append(out, fmt.Sprint(v))
	}
	return out
}

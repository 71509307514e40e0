package crash

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/containernetworking/plugins/pkg/ns"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"sigs.k8s.io/controller-runtime/pkg/client"

	"ropeway.dev/ropeway/bench/scale"
	"ropeway.dev/ropeway/internal/ipam/pool"
)

// kind is what a pod says of its addresses.
type kind struct {
	name  string
	pods  int
	from  netip.Prefix // where its addresses must be
	pool  string       // its annotation names it
	exact bool         // it asks for one address of from
	set   bool         // it is a StatefulSet's, and keeps its address
}

// kinds of pods: the pools have exactly as many addresses as they have pods.
func kinds() []kind {
	return []kind{
		{name: "plain", pods: 16, from: podNetwork()},
		{name: "shared", pods: 12, from: netip.MustParsePrefix("10.0.3.0/28"), pool: "shared"},
		{name: "kept", pods: 6, from: netip.MustParsePrefix("10.0.3.64/29"), pool: "kept", set: true},
		{name: "exact", pods: 2, from: netip.MustParsePrefix("10.0.3.128/29"), pool: "exact", exact: true},
	}
}

// ranges are a pool's addresses, one for each pod.
func (k kind) ranges() string {
	first := k.from.Addr().Next()
	last := first
	for range k.pods - 1 {
		last = last.Next()
	}
	return first.String() + "-" + last.String()
}

// slot is a pod that comes and goes. Whoever works on it has its lock.
type slot struct {
	kind
	number  int
	lock    chan struct{} // holds one value while nobody works on the slot
	node    *node         // of the pod object
	uid     string        // of the pod object, "" if there is none
	unsure  bool          // a call that did not come back may have changed the object
	sandbox *sandbox      // of that pod, if it runs
	// zombies are sandboxes whose pod object is gone, or whose DEL failed.
	zombies []*sandbox
	kept    netip.Addr
}

func (s *slot) name() string { return fmt.Sprintf("%s-%d", s.kind.name, s.number) }

// sandbox is a pod's network namespace.
type sandbox struct {
	slot    *slot
	node    *node
	id, uid string
	address netip.Addr
	ending  bool
}

func (s *sandbox) netnsName() string { return "rwcrash-" + s.id }
func (s *sandbox) netns() string     { return filepath.Join("/run/netns", s.netnsName()) }

func (s *sandbox) String() string {
	if s == nil {
		return "no sandbox"
	}
	return fmt.Sprintf("%s (%s, %s)", s.id, s.node.name(), s.address)
}

// network is the name in the conflist.
const network = "k8s-pod-network"

// plugin is one execution of the plugin's binary, as a runtime does it.
func (w *world) plugin(s *sandbox, verb string, conf map[string]any) *exec.Cmd {
	all := map[string]any{"cniVersion": "1.1.0", "name": network, "type": "ropeway", "socket": filepath.Join(s.node.run(), "cni.sock"),
		"ipam": map[string]string{"type": "ropeway-ipam"}}
	for k, v := range conf {
		all[k] = v
	}
	stdin, err := json.Marshal(all)
	if err != nil {
		w.t.Error(err)
	}
	cmd := exec.Command(filepath.Join(w.dir, "ropeway-cni"))
	cmd.Stdin = bytes.NewReader(stdin)
	cmd.Env = []string{"CNI_COMMAND=" + verb, "CNI_CONTAINERID=" + s.id, "CNI_NETNS=" + s.netns(), "CNI_IFNAME=eth0", "CNI_PATH=" + w.dir,
		"CNI_ARGS=IgnoreUnknown=1;K8S_POD_NAMESPACE=" + namespace + ";K8S_POD_NAME=" + s.slot.name() + ";K8S_POD_UID=" + s.uid}
	return cmd
}

// run runs the plugin in the sandbox's node, and kills it after a time, if that
// is not 0.
func (w *world) run(s *sandbox, verb string, conf map[string]any, killAfter time.Duration) ([]byte, error) {
	cmd := w.plugin(s, verb, conf)
	var out bytes.Buffer
	cmd.Stdout = &out
	if err := ns.WithNetNSPath(s.node.netns(), func(ns.NetNS) error { return cmd.Start() }); err != nil {
		return nil, err
	}
	if killAfter > 0 {
		kill := time.AfterFunc(killAfter, func() { cmd.Process.Kill() })
		defer kill.Stop()
	}
	if err := cmd.Wait(); err != nil {
		return nil, fmt.Errorf("%w: %s", err, strings.Join(strings.Fields(out.String()), " "))
	}
	return out.Bytes(), nil
}

// ensure makes the pod object, on a node, unless there is one.
func (w *world) ensure(s *slot, n *node) error {
	ctx, cancel := context.WithTimeout(w.ctx, callLimit)
	defer cancel()
	if s.unsure {
		p := &corev1.Pod{}
		err := w.api.Get(ctx, client.ObjectKey{Namespace: namespace, Name: s.name()}, p)
		if client.IgnoreNotFound(err) != nil {
			return fmt.Errorf("read pod %s: %w", s.name(), err)
		}
		s.unsure, s.uid = false, string(p.UID)
		for _, on := range w.nodes {
			if on.name() == p.Spec.NodeName {
				s.node = on
			}
		}
	}
	if s.uid != "" {
		return nil
	}
	p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: s.name(), Annotations: map[string]string{}}}
	p.Spec = corev1.PodSpec{NodeName: n.name(), Containers: []corev1.Container{{Name: "c", Image: "none"}}}
	if s.pool != "" {
		p.Annotations[pool.AnnotationPool] = fmt.Sprintf(`{"ipv4": [%q]}`, s.pool)
	}
	if s.exact {
		p.Annotations[pool.AnnotationIPs] = fmt.Sprintf(`[%q]`, s.wants())
	}
	if s.set {
		p.OwnerReferences = []metav1.OwnerReference{w.set}
	}
	if err := w.api.Create(ctx, p); err != nil {
		s.unsure = true
		return fmt.Errorf("create pod %s: %w", s.name(), err)
	}
	s.uid, s.node = string(p.UID), n
	return nil
}

// wants is the address that an exact pod asks for.
func (s *slot) wants() netip.Addr {
	a := s.from.Addr().Next()
	for range s.number {
		a = a.Next()
	}
	return a
}

// remove deletes the pod object, by force.
func (w *world) remove(s *slot) error {
	ctx, cancel := context.WithTimeout(w.ctx, callLimit)
	defer cancel()
	p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: s.name()}}
	if err := client.IgnoreNotFound(w.api.Delete(ctx, p, client.GracePeriodSeconds(0))); err != nil {
		s.unsure = true
		return fmt.Errorf("delete pod %s: %w", s.name(), err)
	}
	s.uid = ""
	return nil
}

// begin makes a sandbox for the pod, as a kubelet does: an ADD that fails, or is
// killed, is followed by a DEL.
func (w *world) begin(s *slot, killAfter time.Duration) error {
	b := &sandbox{slot: s, node: s.node, uid: s.uid, id: fmt.Sprintf("%s-%d", s.name(), w.serial.Add(1))}
	if err := ip("netns", "add", b.netnsName()); err != nil {
		w.fail("%v", err)
		return err
	}
	out, err := w.run(b, "ADD", nil, killAfter)
	if err == nil {
		err = w.received(b, out)
	}
	if err != nil {
		w.delete(b, 0)
		return err
	}
	s.sandbox = b
	return nil
}

// received takes the answer to an ADD. That nobody else has the address is true
// from now on until the DEL begins.
func (w *world) received(b *sandbox, out []byte) error {
	var result struct {
		IPs []struct {
			Address netip.Prefix `json:"address"`
		} `json:"ips"`
	}
	if err := json.Unmarshal(out, &result); err != nil || len(result.IPs) != 1 {
		w.fail("%s: the answer to its ADD is not understood: %v: %s", b, err, out)
		return errors.New("no answer")
	}
	b.address = result.IPs[0].Address.Addr()
	w.mu.Lock()
	other := w.holders[b.address]
	w.holders[b.address] = b
	w.mu.Unlock()
	s := b.slot
	switch {
	case other != nil:
		w.fail("%s was given %s, which %s has (invariant 1)", b, b.address, other)
	case !s.from.Contains(b.address) || s.pool == "" && w.stated(b.address):
		w.fail("%s was given %s, which is not of %s", b, b.address, s.from)
	case s.exact && b.address != s.wants():
		w.fail("%s was given %s and asked for %s", b, b.address, s.wants())
	case s.set && s.kept.IsValid() && s.kept != b.address:
		w.fail("%s was given %s, and its predecessor had %s", b, b.address, s.kept)
	}
	s.kept = b.address
	return nil
}

// let says that a sandbox does not need its address any more.
func (w *world) let(b *sandbox) {
	b.ending = true
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.holders[b.address] == b {
		delete(w.holders, b.address)
	}
}

// How a sandbox may end.
const (
	netnsFirst = 1 << iota
	twice
	object // the pod object goes too
)

// delete ends a sandbox. A DEL may fail only where the disk is full (invariant 6);
// it is tried again later then.
func (w *world) delete(b *sandbox, how int) {
	w.let(b)
	if how&netnsFirst != 0 {
		w.dropNetns(b)
	}
	for i := range 2 {
		if i > 0 && how&twice == 0 {
			break
		}
		if _, err := w.run(b, "DEL", nil, 0); err != nil {
			if !w.disk.Load() {
				w.fail("%s: DEL: %v (invariant 6)", b, err)
			}
			w.note("DEL of %s failed: %v", b, err)
			b.slot.zombies = append(b.slot.zombies, b)
			return
		}
	}
	if how&netnsFirst == 0 {
		w.dropNetns(b)
	}
	w.mu.Lock()
	w.ended = append(w.ended, b)
	w.mu.Unlock()
}

func (w *world) dropNetns(b *sandbox) {
	if err := exec.Command("ip", "netns", "del", b.netnsName()).Run(); err != nil {
		w.note("netns %s is gone already", b.netnsName())
	}
}

// bury ends the sandboxes that outlived their pod.
func (w *world) bury(s *slot, what string) {
	w.on(s, what, func() error {
		zombies := s.zombies
		s.zombies = nil
		for _, b := range zombies {
			w.delete(b, 0)
		}
		return nil
	})
}

func podNetwork() netip.Prefix { return netip.MustParsePrefix("10.0.0.0/22") }

// stated says whether a pool has the address.
func (w *world) stated(a netip.Addr) bool {
	for _, k := range kinds() {
		if k.pool != "" && k.from.Contains(a) {
			return true
		}
	}
	return false
}

// owner is the number of the node that a fabric's address is of.
func (w *world) owner(a netip.Addr) *node {
	for _, n := range w.nodes {
		if scale.Address(n.number) == a {
			return n
		}
	}
	return nil
}

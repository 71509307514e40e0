package controller

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"maps"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	cloudproviderapi "k8s.io/cloud-provider/api"

	"sigs.k8s.io/controller-runtime/pkg/client"

	"ropeway.dev/ropeway/api/v1alpha1"
	"ropeway.dev/ropeway/internal/cloud"
	"ropeway.dev/ropeway/internal/cloud/alibaba"
	"ropeway.dev/ropeway/internal/controller/nodes"
	"ropeway.dev/ropeway/internal/kube"
	"ropeway.dev/ropeway/internal/lab/openapi"
)

// cloudKey is the test cloud's AccessKey; no log, event or condition may show
// its secret.
var cloudKey = openapi.AccessKey{ID: "LTAItest", Secret: "hush-hush-do-not-log-me"}

// labCloud is the lab's OpenAPI in this process.
type labCloud struct {
	t      *testing.T
	server *openapi.Server
	url    string
}

func newLabCloud(t *testing.T, names ...string) *labCloud {
	t.Helper()
	spec := openapi.Spec{
		Region: "cn-chengdu", Account: "1234567890123456", VPC: "vpc-1", CIDRs: []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24")},
		RouteTable: "vtb-1", SecurityGroup: "sg-1", Key: cloudKey, Role: "ropeway",
		VSwitches: []openapi.VSwitch{{ID: "vsw-1", Zone: "cn-chengdu-a", CIDR: netip.MustParsePrefix("192.0.2.0/24")}},
		Settings:  openapi.Settings{Quota: 200, CredentialLife: openapi.Duration(time.Hour)},
	}
	for i, name := range names {
		spec.Instances = append(spec.Instances, openapi.Instance{
			ID: "i-" + name, Host: "host-" + name, Type: "ecs.g7.large", VSwitch: "vsw-1", Interface: "eni-" + name,
			Addresses: []netip.Addr{addressNumber(i)}, Status: "Running", SourceDestCheck: i == 0,
			Public: []netip.Addr{netip.AddrFrom4([4]byte{203, 0, 113, byte(i + 1)})}, Tags: map[string]string{"ack.alibabacloud.com/nodepool-id": "np1"},
		})
	}
	server, err := openapi.New(spec, openapi.Options{})
	if err != nil {
		t.Fatal(err)
	}
	listener := httptest.NewServer(server)
	t.Cleanup(listener.Close)
	return &labCloud{t: t, server: server, url: listener.URL}
}

func addressNumber(i int) netip.Addr { return netip.AddrFrom4([4]byte{192, 0, 2, byte(i + 1)}) }

func (l *labCloud) admin(method, path string, body, into any) {
	l.t.Helper()
	text, err := json.Marshal(body)
	if err != nil {
		l.t.Fatal(err)
	}
	w := httptest.NewRecorder()
	l.server.Admin().ServeHTTP(w, httptest.NewRequest(method, path, bytes.NewReader(text)))
	if w.Code != http.StatusOK {
		l.t.Fatalf("%s %s: %d %s", method, path, w.Code, w.Body)
	}
	if into != nil {
		if err := json.Unmarshal(w.Body.Bytes(), into); err != nil {
			l.t.Fatal(err)
		}
	}
}

func (l *labCloud) call(action string, params map[string]string) {
	l.t.Helper()
	l.admin(http.MethodPost, "/call", map[string]any{"version": "2014-05-26", "action": action, "params": params}, nil)
}

func (l *labCloud) set(edit func(*openapi.Settings)) {
	l.t.Helper()
	var snap openapi.Snapshot
	l.admin(http.MethodGet, "/snapshot", nil, &snap)
	edit(&snap.Settings)
	l.admin(http.MethodPut, "/settings", snap.Settings, nil)
}

// ecsCluster is a cluster of the API server whose nodes are instances of a cloud.
type ecsCluster struct {
	t     *testing.T
	api   client.Client
	cloud *labCloud
	log   *lockedBuffer
	first *replica
}

// lockedBuffer holds what was logged.
type lockedBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

// Write is io.Writer's.
func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

// String returns all of it.
func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}

// newECSCluster makes a cloud with an instance for each name, a network that
// gives their nodes to Ropeway, the Secret, and a replica.
func newECSCluster(t *testing.T, names ...string) *ecsCluster {
	t.Helper()
	return newECSClusterWith(t, func(s *v1alpha1.ClusterNetworkSpec) { s.Cloud.Routes = v1alpha1.DutyOff }, names...)
}

func newECSClusterWith(t *testing.T, change func(*v1alpha1.ClusterNetworkSpec), names ...string) *ecsCluster {
	t.Helper()
	e := &ecsCluster{t: t, api: admin(t), cloud: newLabCloud(t, names...), log: &lockedBuffer{}}
	create(t, e.api, &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: "ropeway-cloud", Namespace: "kube-system"},
		Data: map[string][]byte{"accessKeyID": []byte(cloudKey.ID), "accessKeySecret": []byte(cloudKey.Secret)}})
	create(t, e.api, directNetwork(func(s *v1alpha1.ClusterNetworkSpec) {
		s.Cloud.Endpoint, s.Cloud.Nodes = e.cloud.url, v1alpha1.DutyRopeway
		change(s)
	}))
	e.first = e.startReplica("one")
	return e
}

// startReplica starts one that looks after the cluster's cloud.
func (e *ecsCluster) startReplica(identity string, options ...func(*Config)) *replica {
	e.t.Helper()
	return startReplica(e.t, identity, append([]func(*Config){func(c *Config) {
		c.Providers = map[string]cloud.New{"alibaba": alibaba.New}
		c.Confirm, c.Monitor = 300*time.Millisecond, 100*time.Millisecond
		c.Log = slog.New(slog.NewTextHandler(e.log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	}}, options...)...)
}

// join registers a node as a kubelet does that waits for a cloud controller,
// and lets it be Ready.
func (e *ecsCluster) join(name string, i int, change ...func(*corev1.Node)) {
	e.t.Helper()
	n := node(name, addressNumber(i).String())
	n.UID = ""
	n.Spec.Taints = []corev1.Taint{{Key: cloudproviderapi.TaintExternalCloudProvider, Value: "true", Effect: corev1.TaintEffectNoSchedule}}
	n.Annotations = map[string]string{cloudproviderapi.AnnotationAlphaProvidedIPAddr: addressNumber(i).String()}
	n.Status.Addresses = append(n.Status.Addresses, corev1.NodeAddress{Type: corev1.NodeHostName, Address: name})
	for _, c := range change {
		c(&n)
	}
	status := n.Status
	create(e.t, e.api, &n)
	before := n.DeepCopy()
	n.Status = status // a patch: the controller may have written the condition already
	if err := e.api.Status().Patch(e.t.Context(), &n, client.MergeFrom(before)); err != nil {
		e.t.Fatal(err)
	}
	e.ready(name, corev1.ConditionTrue)
}

// ready writes a node's condition as its kubelet or the controller-manager does.
func (e *ecsCluster) ready(name string, status corev1.ConditionStatus) {
	e.t.Helper()
	n := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name}}
	patch := fmt.Appendf(nil, `{"status":{"conditions":[{"type":"Ready","status":%q,"reason":"Test"}]}}`, status)
	if err := e.api.Status().Patch(e.t.Context(), n, client.RawPatch("application/strategic-merge-patch+json", patch)); err != nil {
		e.t.Fatal(err)
	}
}

// is says what is wrong with a node; "" when nothing is.
func (e *ecsCluster) is(name string, right func(*corev1.Node) bool) func() string {
	return func() string {
		var n corev1.Node
		if err := e.api.Get(e.t.Context(), client.ObjectKey{Name: name}, &n); err != nil {
			return err.Error()
		}
		if !right(&n) {
			return fmt.Sprintf("node %s: providerID %q, labels %v, annotations %v, taints %v, addresses %v",
				name, n.Spec.ProviderID, n.Labels, n.Annotations, n.Spec.Taints, n.Status.Addresses)
		}
		return ""
	}
}

func tainted(n *corev1.Node, key string) bool {
	return slices.ContainsFunc(n.Spec.Taints, func(t corev1.Taint) bool { return t.Key == key })
}

// event says that there is none yet of the reason that holds the text.
func (e *ecsCluster) event(reason, text string) func() string {
	return func() string {
		var list corev1.EventList
		if err := e.api.List(e.t.Context(), &list); err != nil {
			return err.Error()
		}
		for _, ev := range list.Items {
			if ev.Reason == reason && strings.Contains(ev.Message, text) {
				return ""
			}
		}
		return fmt.Sprintf("no event %s with %q", reason, text)
	}
}

// settled is a node that was made known in every respect.
func settled(id, providerID string, address string) func(*corev1.Node) bool {
	want := map[string]string{
		"topology.kubernetes.io/zone": "cn-chengdu-a", "topology.kubernetes.io/region": "cn-chengdu", "node.kubernetes.io/instance-type": "ecs.g7.large",
		"node.alibabacloud.com/instance-charge-type": "PostPaid", "node.alibabacloud.com/spot-strategy": "NoSpot", "node.alibabacloud.com/nodepool-id": "np1",
	}
	return func(n *corev1.Node) bool {
		labels := maps.Clone(n.Labels)
		maps.DeleteFunc(labels, func(k, _ string) bool { return want[k] == "" })
		return n.Spec.ProviderID == providerID && maps.Equal(labels, want) && !tainted(n, cloudproviderapi.TaintExternalCloudProvider) &&
			n.Annotations[kube.SeenAnnotation] == id && strings.Contains(fmt.Sprint(n.Status.Addresses), "InternalIP "+address) &&
			strings.Contains(fmt.Sprint(n.Status.Addresses), "ExternalIP 203.0.113.") && strings.Contains(fmt.Sprint(n.Status.Addresses), "Hostname "+n.Name)
	}
}

// TestNodesOfACloud: from a node's first word to its end, against a real API
// server and an OpenAPI that keeps the cloud's rules.
func TestNodesOfACloud(t *testing.T) {
	e := newECSCluster(t, "a", "b", "c", "d", "e")
	e.join("a", 0)
	e.join("b", 1, func(n *corev1.Node) { n.Spec.ProviderID = "alicloud://cn-chengdu.i-b" })
	e.join("c", 2, func(n *corev1.Node) { n.Spec.ProviderID = "cn-chengdu.i-c" })
	e.join("cn-chengdu.i-d", 3, func(n *corev1.Node) { n.Annotations, n.Status.Addresses = nil, n.Status.Addresses[1:] })
	e.join("e", 4, func(n *corev1.Node) { n.Spec.Taints = nil }) // its kubelet knows of no cloud
	for name, right := range map[string]func(*corev1.Node) bool{
		"a":              settled("i-a", "cn-chengdu.i-a", "192.0.2.1"),
		"b":              settled("i-b", "alicloud://cn-chengdu.i-b", "192.0.2.2"),
		"c":              settled("i-c", "cn-chengdu.i-c", "192.0.2.3"),
		"cn-chengdu.i-d": settled("i-d", "cn-chengdu.i-d", "192.0.2.4"),
		"e": func(n *corev1.Node) bool {
			return n.Spec.ProviderID == "cn-chengdu.i-e" && n.Labels["topology.kubernetes.io/zone"] == "cn-chengdu-a" && n.Annotations[kube.SeenAnnotation] == "i-e" &&
				!strings.Contains(fmt.Sprint(n.Status.Addresses), "External") // the kubelet would undo it
		},
	} {
		eventually(t, "made known", e.is(name, right))
	}
	eventually(t, "the condition", networkIs(t, e.api, v1alpha1.ConditionNodesKnown, "True", "Known", "5 of 5 nodes"))
	eventually(t, "the rights", networkIs(t, e.api, v1alpha1.ConditionCloudRights, "True", reasonAllowed, "all 3 actions"))
	eventually(t, "the interface that checked", e.event("ForwardingAllowed", "eni-a"))

	t.Run("stopped and started", func(t *testing.T) {
		e.cloud.call("StopInstance", map[string]string{"InstanceId": "i-b"})
		e.ready("b", corev1.ConditionUnknown)
		eventually(t, "the taint", e.is("b", func(n *corev1.Node) bool { return tainted(n, cloudproviderapi.TaintNodeShutdown) }))
		e.cloud.call("StartInstance", map[string]string{"InstanceId": "i-b"})
		e.ready("b", corev1.ConditionTrue)
		eventually(t, "no taint", e.is("b", func(n *corev1.Node) bool { return !tainted(n, cloudproviderapi.TaintNodeShutdown) }))
	})
	t.Run("an API that answers empty", func(t *testing.T) {
		e.cloud.admin(http.MethodPost, "/faults", openapi.Fault{Kind: openapi.FaultEmpty, Action: "DescribeInstances"}, nil)
		e.ready("c", corev1.ConditionUnknown)
		eventually(t, "it is said", e.event(nodes.ReasonDoubt, "do not show the instances of nodes that are Ready either"))
		eventually(t, "the condition", networkIs(t, e.api, v1alpha1.ConditionNodesKnown, "False", nodes.ReasonDoubt, "node c is silent"))
		if wrong := e.is("c", func(*corev1.Node) bool { return true })(); wrong != "" {
			t.Fatalf("deleted on an empty answer: %s", wrong)
		}
		e.cloud.admin(http.MethodDelete, "/faults", nil, nil)
		e.ready("c", corev1.ConditionTrue)
		eventually(t, "all is well again", networkIs(t, e.api, v1alpha1.ConditionNodesKnown, "True", "Known", ""))
	})
	t.Run("released", func(t *testing.T) {
		e.cloud.call("DeleteInstance", map[string]string{"InstanceId": "i-e", "Force": "true"})
		e.ready("e", corev1.ConditionUnknown)
		eventually(t, "its end", func() string {
			err := e.api.Get(t.Context(), client.ObjectKey{Name: "e"}, &corev1.Node{})
			if !apierrors.IsNotFound(err) {
				return fmt.Sprintf("node e: %v", err)
			}
			return ""
		})
		var list corev1.NodeList
		if err := e.api.List(t.Context(), &list); err != nil || len(list.Items) != 4 {
			t.Errorf("%d nodes are left, %v", len(list.Items), err)
		}
	})
	t.Run("a right that is refused", func(t *testing.T) {
		e.cloud.set(func(s *openapi.Settings) { s.Allow = []string{"ecs:DescribeInstances", "ecs:Modify*"} })
		e.cloud.call("RunInstances", map[string]string{"PrivateIpAddress": "192.0.2.5"})
		e.join("f", 4) // another machine, whose interface is to be asked about
		eventually(t, "the condition", networkIs(t, e.api, v1alpha1.ConditionNodesKnown, "False", nodes.ReasonForbidden, "ecs:DescribeNetworkInterfaces"))
		eventually(t, "the rights", networkIs(t, e.api, v1alpha1.ConditionCloudRights, "False", reasonRefused, "the cloud refuses ecs:DescribeNetworkInterfaces to"))
		eventually(t, "an event", e.event(reasonRefused, "ecs:DescribeNetworkInterfaces"))
		eventually(t, "known all the same", e.is("f", func(n *corev1.Node) bool { return n.Spec.ProviderID != "" }))
		e.cloud.set(func(s *openapi.Settings) { s.Allow = nil })
		eventually(t, "allowed", networkIs(t, e.api, v1alpha1.ConditionNodesKnown, "True", "Known", "5 of 5"))
		eventually(t, "the rights again", networkIs(t, e.api, v1alpha1.ConditionCloudRights, "True", reasonAllowed, ""))
	})
	e.checkSecrets(t)
}

// checkSecrets: neither the log (of all levels), nor events, nor conditions.
func (e *ecsCluster) checkSecrets(t *testing.T) {
	t.Helper()
	var events corev1.EventList
	var cn v1alpha1.ClusterNetwork
	if err := e.api.List(context.Background(), &events); err != nil {
		t.Fatal(err)
	}
	if err := e.api.Get(context.Background(), client.ObjectKey{Name: "default"}, &cn); err != nil {
		t.Fatal(err)
	}
	logged := e.log.String()
	for where, text := range map[string]string{"the log": logged, "events": fmt.Sprintf("%+v", events.Items), "the ClusterNetwork": fmt.Sprintf("%+v", cn)} {
		if strings.Contains(text, cloudKey.Secret) {
			t.Errorf("%s shows the secret", where)
		}
	}
	if !strings.Contains(logged, "cloud call failed") {
		t.Error("the log does not hold the calls that failed: the check above is worth nothing")
	}
}

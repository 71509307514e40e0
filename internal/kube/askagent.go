package kube

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/remotecommand"

	"sigs.k8s.io/controller-runtime/pkg/client"
)

// agentLabels select the agents' pods.
var agentLabels = client.MatchingLabels{"app.kubernetes.io/name": "ropeway", "app.kubernetes.io/component": "agent"}

// Agents is the way to the nodes' agents for a person at a terminal, who may
// have none to the nodes: through the API server, which says what he may.
type Agents struct {
	cfg     *rest.Config
	clients kubernetes.Interface
	pods    map[string]string // node -> the agent's pod there, if it is ready
}

// FindAgents looks for the agents.
func FindAgents(ctx context.Context, cfg *rest.Config) (*Agents, error) {
	clients, err := kubernetes.NewForConfig(cfg)
	if err != nil {
		return nil, fmt.Errorf("prepare to call the API server %s: %w", cfg.Host, err)
	}
	api, err := NewClient(cfg)
	if err != nil {
		return nil, err
	}
	var list corev1.PodList
	if err := api.List(ctx, &list, client.InNamespace(SystemNamespace), agentLabels); err != nil {
		return nil, fmt.Errorf("find the agents: %w", err)
	}
	a := &Agents{cfg: cfg, clients: clients, pods: map[string]string{}}
	for _, p := range list.Items {
		if p.DeletionTimestamp == nil && p.Status.Phase == corev1.PodRunning {
			a.pods[p.Spec.NodeName] = p.Name
		}
	}
	return a, nil
}

func (a *Agents) pod(node string) (string, error) {
	if pod := a.pods[node]; pod != "" {
		return pod, nil
	}
	return "", fmt.Errorf("no agent runs on node %s: kubectl -n %s get pods -o wide -l app.kubernetes.io/component=agent", node, SystemNamespace)
}

// Get gets a path of a node's agent, by the API server's proxy.
func (a *Agents) Get(ctx context.Context, node, path string) ([]byte, error) {
	pod, err := a.pod(node)
	if err != nil {
		return nil, err
	}
	body, err := a.clients.CoreV1().RESTClient().Get().Namespace(SystemNamespace).Resource("pods").Name(pod).
		SubResource("proxy").Suffix(path).DoRaw(ctx)
	if err != nil {
		return nil, fmt.Errorf("ask the agent of node %s (pod %s, through the API server's proxy): %w", node, pod, err)
	}
	return body, nil
}

// Run runs a command in a node's agent's container, as kubectl exec does, and
// returns what it printed.
func (a *Agents) Run(ctx context.Context, node string, stdin io.Reader, command ...string) ([]byte, error) {
	pod, err := a.pod(node)
	if err != nil {
		return nil, err
	}
	request := a.clients.CoreV1().RESTClient().Post().Namespace(SystemNamespace).Resource("pods").Name(pod).SubResource("exec").
		VersionedParams(&corev1.PodExecOptions{Container: "agent", Command: command, Stdin: true, Stdout: true, Stderr: true}, scheme.ParameterCodec)
	executor, err := remotecommand.NewWebSocketExecutor(a.cfg, "GET", request.URL().String())
	if err != nil {
		return nil, fmt.Errorf("prepare to run %s in pod %s: %w", command[0], pod, err)
	}
	var out, complaints bytes.Buffer
	err = executor.StreamWithContext(ctx, remotecommand.StreamOptions{Stdin: stdin, Stdout: &out, Stderr: &complaints})
	if said := strings.TrimSpace(complaints.String()); err != nil && said != "" {
		err = errors.Join(err, errors.New(said))
	}
	if err != nil {
		return nil, fmt.Errorf("run %s on node %s (kubectl -n %s exec %s does the same): %w", strings.Join(command, " "), node, SystemNamespace, pod, err)
	}
	return out.Bytes(), nil
}

// PodAddress is a pod as the API server has it, and the addresses that it says
// the pod has.
type PodAddress struct {
	Pod
	Node      string
	Addresses []netip.Addr
	// Ended is true when its containers have ended for good: its sandbox is
	// gone, or will be.
	Ended bool
}

// PodAddresses reads all pods that have addresses of their own, not their
// node's.
func PodAddresses(ctx context.Context, cfg *rest.Config) ([]PodAddress, error) {
	api, err := NewClient(cfg)
	if err != nil {
		return nil, err
	}
	var out []PodAddress
	next := ""
	for {
		var list corev1.PodList
		if err := api.List(ctx, &list, client.Limit(500), client.Continue(next)); err != nil {
			return nil, fmt.Errorf("list the pods: %w", err)
		}
		for i := range list.Items {
			if p := &list.Items[i]; !p.Spec.HostNetwork && p.Spec.NodeName != "" {
				out = append(out, podAddress(p))
			}
		}
		if next = list.Continue; next == "" {
			return out, nil
		}
	}
}

func podAddress(p *corev1.Pod) PodAddress {
	out := PodAddress{Pod: Pod{Namespace: p.Namespace, Name: p.Name, UID: string(p.UID), ConfigHash: p.Annotations[configHashAnnotation], Deleting: p.DeletionTimestamp != nil},
		Node: p.Spec.NodeName, Ended: p.Status.Phase == corev1.PodSucceeded || p.Status.Phase == corev1.PodFailed}
	for _, ip := range p.Status.PodIPs {
		if a, err := netip.ParseAddr(ip.IP); err == nil {
			out.Addresses = append(out.Addresses, a.Unmap())
		}
	}
	return out
}

package scenario

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

// workload is the scenario's test Deployment and Service. Its pods answer JSON
// on port 80, and have ping and curl.
const workload = `apiVersion: apps/v1
kind: Deployment
metadata: {name: test, labels: {app: test}}
spec:
  replicas: %d
  selector: {matchLabels: {app: test}}
  template:
    metadata: {labels: {app: test}}
    spec:
      terminationGracePeriodSeconds: 1
      tolerations: [{operator: Exists}]
      topologySpreadConstraints:
      - {maxSkew: 1, topologyKey: kubernetes.io/hostname, whenUnsatisfiable: DoNotSchedule, labelSelector: {matchLabels: {app: test}}}
      containers:
      - name: web
        image: lab.ropeway.dev/web:1
        imagePullPolicy: IfNotPresent
        ports: [{containerPort: 80}]
        readinessProbe: {httpGet: {path: /, port: 80}, periodSeconds: 1}
---
apiVersion: v1
kind: Service
metadata: {name: test, labels: {app: test}}
spec:
  ipFamilyPolicy: PreferDualStack
  selector: {app: test}
  ports: [{port: 80, targetPort: 80}]
`

// pod is what the scenario looks at; its address is of the stage's family.
type pod struct {
	name, node string
	address    netip.Addr
}

// pods returns the test Deployment's pods that run and are not on their way
// out, by name.
func (s *stage) pods(ctx context.Context, selector string) ([]pod, error) {
	out, err := s.quiet(ctx, "get", "po", "-l", selector, "-o", "json")
	if err != nil {
		return nil, err
	}
	var list struct {
		Items []struct {
			Metadata struct {
				Name              string `json:"name"`
				DeletionTimestamp string `json:"deletionTimestamp"`
			} `json:"metadata"`
			Spec struct {
				NodeName string `json:"nodeName"`
			} `json:"spec"`
			Status struct {
				PodIPs []struct {
					IP string `json:"ip"`
				} `json:"podIPs"`
			} `json:"status"`
		} `json:"items"`
	}
	if err := json.Unmarshal([]byte(out), &list); err != nil {
		return nil, fmt.Errorf("reading the list of pods: %w", err)
	}
	var found []pod
	for _, item := range list.Items {
		if item.Metadata.DeletionTimestamp != "" {
			continue
		}
		p := pod{name: item.Metadata.Name, node: item.Spec.NodeName}
		for _, ip := range item.Status.PodIPs {
			if a, err := netip.ParseAddr(ip.IP); err == nil && a.Is6() == s.is6 {
				p.address = a
			}
		}
		if !p.address.IsValid() {
			return nil, fmt.Errorf("pod %s has no address yet", item.Metadata.Name)
		}
		found = append(found, p)
	}
	slices.SortFunc(found, func(a, b pod) int { return strings.Compare(a.name, b.name) })
	return found, nil
}

// acrossNodes returns two pods of the test Deployment, on two nodes.
func (s *stage) acrossNodes(ctx context.Context) (from, to pod, err error) {
	pods, err := s.pods(ctx, "app=test")
	if err != nil {
		return pod{}, pod{}, err
	}
	to, err = onOtherNode(pods, pods[0])
	return pods[0], to, err
}

// onOtherNode returns a pod that is not on p's node.
func onOtherNode(pods []pod, p pod) (pod, error) {
	for _, other := range pods {
		if other.node != p.node {
			return other, nil
		}
	}
	return pod{}, fmt.Errorf("no pod on another node than %s", p.node)
}

// onSameNode returns two pods of one node.
func onSameNode(pods []pod) (pod, pod, error) {
	for i, a := range pods {
		for _, b := range pods[i+1:] {
			if a.node == b.node {
				return a, b, nil
			}
		}
	}
	return pod{}, pod{}, errors.New("no node has two pods of the test Deployment")
}

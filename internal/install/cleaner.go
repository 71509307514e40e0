package install

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"sigs.k8s.io/controller-runtime/pkg/client"

	"ropeway.dev/ropeway/config"
)

// cleanerComponent is the value of LabelComponent on the cleaner's pods.
const cleanerComponent = "cleaner"

// Cleaner makes the DaemonSet that takes Ropeway off each node. Of the settings
// it uses the image and the node's directories.
func Cleaner(s Settings) (*unstructured.Unstructured, error) {
	objects, err := renderFiles(config.Removal(), s)
	if err != nil {
		return nil, fmt.Errorf("render what cleans the nodes: %w", err)
	}
	if len(objects) != 1 {
		return nil, fmt.Errorf("render what cleans the nodes: %d objects, want one", len(objects))
	}
	label(objects[0], s.Version)
	return objects[0], nil
}

// CleanerLeft finds the cleaner of an uninstall that was interrupted. Each of
// its pods that starts again, as after a boot, takes off its node what an agent
// has made there since.
func CleanerLeft(s *Survey) []Finding {
	if !slices.ContainsFunc(s.DaemonSets, func(d appsv1.DaemonSet) bool { return d.Namespace == Namespace && d.Name == CleanerName }) {
		return nil
	}
	return []Finding{stops(FindingCleaner,
		fmt.Sprintf("kubectl -n %s delete daemonset %s and wait until its pods are gone, or let ropeway install --apply do it", Namespace, CleanerName),
		"an uninstall was interrupted, and its DaemonSet %s/%s would take a new installation off the nodes again", Namespace, CleanerName)}
}

// endCleaner deletes the cleaner of an uninstall that was interrupted, and waits
// until none of its pods can run any more.
func endCleaner(ctx context.Context, c client.Client, say Progress) error {
	cleaner := &unstructured.Unstructured{}
	cleaner.SetGroupVersionKind(appsv1.SchemeGroupVersion.WithKind("DaemonSet"))
	cleaner.SetNamespace(Namespace)
	cleaner.SetName(CleanerName)
	if err := deleteOne(ctx, c, cleaner, say); err != nil {
		return err
	}
	var nodes corev1.NodeList
	if err := c.List(ctx, &nodes); err != nil {
		return fmt.Errorf("list the nodes: %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	left, err := waitPodsGone(ctx, c, func(p corev1.Pod) bool {
		// A kubelet that does not answer ends the pod, rather than start it
		// again, once it does.
		return isCleaner(p) && !slices.ContainsFunc(nodes.Items, func(n corev1.Node) bool { return n.Name == p.Spec.NodeName && silent(n) })
	})
	if err != nil {
		return fmt.Errorf("nothing was applied: the pods of an interrupted uninstall did not end: %s: %w", strings.Join(left, ", "), err)
	}
	return nil
}

func isCleaner(p corev1.Pod) bool { return p.Labels[LabelComponent] == cleanerComponent }

// waitPodsGone waits until no pod of ours is there that matches. If the context
// ends before, it returns the names of those that are left.
func waitPodsGone(ctx context.Context, c client.Client, match func(corev1.Pod) bool) (left []string, err error) {
	for {
		var pods corev1.PodList
		err := c.List(ctx, &pods, client.InNamespace(Namespace), client.MatchingLabels{LabelName: ProductName})
		if err == nil {
			left = left[:0]
		}
		for _, p := range pods.Items {
			if match(p) {
				left = append(left, p.Name)
			}
		}
		if err == nil && len(left) == 0 {
			return nil, nil
		}
		if stopped := pause(ctx, poll); stopped != nil {
			if err == nil || ctx.Err() == nil {
				err = stopped
			}
			return left, err
		}
	}
}

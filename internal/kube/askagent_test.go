package kube

import (
	"net/netip"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

func TestPodAddresses(t *testing.T) {
	api := admin(t)
	make := func(name string, change func(*corev1.Pod)) {
		pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: SystemNamespace, Name: name, Labels: map[string]string{"of": "addresses"}}}
		pod.Spec = corev1.PodSpec{NodeName: "addressed", Containers: []corev1.Container{{Name: "c", Image: "i"}}}
		change(pod)
		status := pod.Status
		create(t, api, pod)
		pod.Status = status
		if err := api.Status().Update(t.Context(), pod); err != nil {
			t.Fatal(err)
		}
	}
	have := func(addresses ...string) func(*corev1.Pod) {
		return func(p *corev1.Pod) {
			for _, a := range addresses {
				p.Status.PodIPs = append(p.Status.PodIPs, corev1.PodIP{IP: a})
			}
			p.Status.PodIP = addresses[0]
		}
	}
	make("addressed-runs", have("10.244.99.1", "fd00::99:1"))
	make("addressed-ended", func(p *corev1.Pod) { have("10.244.99.2")(p); p.Status.Phase = corev1.PodFailed })
	make("addressed-host", func(p *corev1.Pod) { have("192.168.9.9")(p); p.Spec.HostNetwork = true })
	make("addressed-waits", func(p *corev1.Pod) { p.Spec.NodeName = "" })
	pods, err := PodAddresses(t.Context(), shared.Config(t))
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, p := range pods {
		if strings.HasPrefix(p.Name, "addressed") {
			got = append(got, p.Name)
			runs := p.Name == "addressed-runs"
			if p.Node != "addressed" || p.UID == "" || p.Ended == runs {
				t.Errorf("%+v", p)
			}
			if runs && !slices.Equal(p.Addresses, []netip.Addr{netip.MustParseAddr("10.244.99.1"), netip.MustParseAddr("fd00::99:1")}) {
				t.Errorf("%v", p.Addresses)
			}
		}
	}
	if !slices.Equal(got, []string{"addressed-ended", "addressed-runs"}) {
		t.Errorf("pods with addresses of their own: %v", got)
	}
}

// TestNodeWithoutAgent: that there is nobody to ask is said before anybody is.
func TestNodeWithoutAgent(t *testing.T) {
	agents, err := FindAgents(t.Context(), shared.Config(t))
	if err != nil {
		t.Fatal(err)
	}
	_, get := agents.Get(t.Context(), "nowhere", "/")
	_, run := agents.Run(t.Context(), "nowhere", nil, "true")
	for _, err := range []error{get, run} {
		if err == nil || !strings.Contains(err.Error(), "no agent runs on node nowhere") {
			t.Error(err)
		}
	}
}

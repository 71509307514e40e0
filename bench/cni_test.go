package main

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestContenders(t *testing.T) {
	dir := t.TempDir()
	conflist := `{"cniVersion":"1.0.0","name":"k8s-pod-network","plugins":[{"type":"ropeway","ipam":{"type":"ropeway-ipam"}},{"type":"portmap","capabilities":{"portMappings":true}}]}`
	if err := os.WriteFile(filepath.Join(dir, "10-ropeway.conflist"), []byte(conflist), 0o600); err != nil {
		t.Fatal(err)
	}
	all, err := contenders(dir, "10.244.3.0/24")
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range all {
		var types []string
		for _, p := range c.list.Plugins {
			types = append(types, strings.Trim(p.Network.Type+"/"+p.Network.IPAM.Type, "/"))
		}
		want := map[string]string{
			ownPlugin: "ropeway/ropeway-ipam", ownHostLocal: "ropeway/host-local", peerPlugin: "ptp/host-local", bridgePlugin: "bridge/host-local",
			ownChained: "ropeway/ropeway-ipam portmap bandwidth", peerChained: "ptp/host-local portmap bandwidth",
		}[c.name]
		if got := strings.Join(types, " "); got != want {
			t.Errorf("%s is %s, want %s", c.name, got, want)
		}
	}
	if _, err := contenders(t.TempDir(), "10.244.3.0/24"); err == nil {
		t.Error("no conflist is no error")
	}
}

func TestMiddle(t *testing.T) {
	for cidr, want := range map[string]string{"10.244.3.0/24": "10.244.3.128", "10.244.0.0/16": "10.244.128.0", "10.244.4.0/23": "10.244.5.0", "10.0.0.0/26": "", "fd00::/64": "", "": ""} {
		if got, err := middle(cidr); got != want || (err == nil) != (want != "") {
			t.Errorf("the middle of %q is %q, %v; want %q", cidr, got, err, want)
		}
	}
}

func TestTimedDoesEachOnce(t *testing.T) {
	done := make([]int, sandboxes)
	took, perSecond, err := timed(sandboxes, 1, func(i int) error { done[i]++; return nil })
	if err != nil || len(took) != sandboxes || perSecond <= 0 {
		t.Fatalf("%d took a time, %v/s, %v", len(took), perSecond, err)
	}
	for i, n := range done {
		if n != 1 {
			t.Errorf("sandbox %d was done %d times", i, n)
		}
	}
	wrong := errors.New("wrong")
	if _, _, err := timed(sandboxes, atOnce, func(i int) error { return wrong }); !errors.Is(err, wrong) {
		t.Errorf("the error is %v", err)
	}
}

func TestTracesAreTheLabsOnly(t *testing.T) {
	for line, want := range map[string]bool{
		"/var/lib/ropeway-lab/bench/bin/kubelet --config": true,
		"none /run/netns/rwlab-bench-vpc nsfs":            true,
		"/var/lib/ropeway-lab/other/bin/kubelet":          false,
		"none /run/netns/rwlab-bench2-vpc nsfs":           false,
		"go run ./bench":                                  false,
	} {
		if got := mentions(line, "bench"); got != want {
			t.Errorf("%q is of the lab: %v, want %v", line, got, want)
		}
	}
}

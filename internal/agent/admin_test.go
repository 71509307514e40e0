package agent

import (
	"encoding/json"
	"os"
	"strings"
	"testing"

	"ropeway.dev/ropeway/internal/agent/probe"
	"ropeway.dev/ropeway/internal/cniwire"
	"ropeway.dev/ropeway/internal/ipam"
	"ropeway.dev/ropeway/internal/kube"
)

// ask sends a request to the agent's own socket.
func (a *runningAgent) ask(path string, request any) AdminAnswer {
	a.t.Helper()
	text, err := json.Marshal(request)
	if err != nil {
		a.t.Fatal(err)
	}
	body, err := Ask(a.t.Context(), a.root+"/run", path, strings.NewReader(string(text)))
	if err != nil {
		a.t.Fatal(err)
	}
	var answer AdminAnswer
	if err := json.Unmarshal(body, &answer); err != nil {
		a.t.Fatal(err)
	}
	return answer
}

// TestReleaseOnTheSocket: a person's word frees nothing that a pod of the API
// server has, nor while it is not known which are there (invariant 1).
func TestReleaseOnTheSocket(t *testing.T) {
	api := newFakeAPI()
	api.addNode("a")
	api.say("a", false)
	a := newMachine(t, api, probe.NewFakeFabric(), "a").start()
	a.waitServing()
	held := a.add("p")[0]
	request := ReleaseRequest{Address: held, Holder: keyOf(attachment("p")), SandboxGone: true}
	pod := kube.Pod{Namespace: "default", Name: "p", UID: "uid-p"}
	api.change(func(f *fakeAPI) { f.pods = []kube.Pod{pod} })
	if got := a.ask(PathRelease, request); !strings.Contains(got.Error, "delete the pod") {
		t.Errorf("while the pod is there: %+v", got)
	}
	api.change(func(f *fakeAPI) { f.pods, f.unread = nil, true })
	if got := a.ask(PathRelease, request); !strings.Contains(got.Error, "delete the pod") {
		t.Errorf("while pods are not read: %+v", got)
	}
	if !a.node.book.IsHeld(held) {
		t.Fatal("the address was released all the same")
	}
	pod.UID = "another's"
	api.change(func(f *fakeAPI) { f.pods, f.unread = []kube.Pod{pod}, false })
	if got := a.ask(PathRelease, request); got.Error != "" || a.node.book.IsHeld(held) {
		t.Errorf("when it is gone: %+v; held: %t", got, a.node.book.IsHeld(held))
	}
	if got := a.ask(PathRelease, map[string]string{"adress": "10.244.0.1"}); !strings.Contains(got.Error, "not understood") {
		t.Errorf("a request with a mistake: %+v", got)
	}
	if _, err := Ask(t.Context(), a.root+"/run", "/v1/nothing", strings.NewReader("{}")); err == nil || !strings.Contains(err.Error(), "404") {
		t.Errorf("a path that is none: %v", err)
	}
	if info, err := os.Stat(a.root + "/run/agent.sock"); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the socket: %v %v", info, err)
	}
}

func TestTakeOverOnTheSocket(t *testing.T) {
	api := newFakeAPI()
	api.addNode("a")
	api.say("a", false)
	m := newMachine(t, api, probe.NewFakeFabric(), "a")
	a := m.start()
	a.waitServing()
	m.write("cni/networks/k8s-pod-network/10.244.9.9", "p\r\neth0")
	m.write("cni/results/k8s-pod-network-p-eth0", `{"containerId":"p","ifName":"eth0","networkName":"k8s-pod-network","cniArgs":[["K8S_POD_UID","uid-p"]]}`)
	for _, dryRun := range []bool{true, false} {
		got := a.ask(PathTakeOver, TakeOverRequest{DryRun: dryRun})
		if got.Error != "" || len(got.Taken) != 1 || got.Taken[0].Action != "hold" {
			t.Errorf("dry run %t: %+v", dryRun, got)
		}
	}
	if addrs, _ := a.node.book.AddressesOf(keyOf(attachment("p"))); len(addrs) != 1 {
		t.Errorf("the pod holds %v", addrs)
	}
	_, body := get(a, PathAddresses)
	var answer AddressesAnswer
	if err := json.Unmarshal([]byte(body), &answer); err != nil || answer.Node != "a" || len(answer.Holdings) != 1 || answer.Holdings[0].Owner != (ipam.Owner{UID: "uid-p"}) {
		t.Errorf("%v: %s", err, body)
	}
	if _, err := a.call(cniwire.Request{Verb: cniwire.Del, Attachment: attachment("p")}); err != nil {
		t.Fatal(err)
	}
	if files, err := os.ReadDir(a.root + "/cni/networks/k8s-pod-network"); err != nil || len(files) > 1 {
		t.Errorf("the file of the pod that ended is left: %v %v", files, err)
	}
}

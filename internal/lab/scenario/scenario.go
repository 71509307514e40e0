package scenario

import (
	"context"
	"fmt"
	"strings"

	"ropeway.dev/ropeway/internal/lab"
	"ropeway.dev/ropeway/internal/lab/product"
)

// Scenario is one scripted check of a running lab.
type Scenario struct {
	Name string
	// Doc is one line that says what it shows.
	Doc string
	// Run plays it. Steps go through the report; an error that it returns
	// beside failed steps means that the scenario could not go on.
	Run func(ctx context.Context, b Bed, r *Report) error
}

// Bed is what a scenario is played on.
type Bed struct {
	Lab *lab.Lab
	// Product is Ropeway as this lab has it, for scenarios that install anew.
	Product product.Config
}

// All lists the scenarios in the order in which they are shown.
func All() []Scenario {
	return []Scenario{
		bare(),
		{Name: "install", Doc: "every network component is Running 1/1", Run: on((*stage).install)},
		{Name: "tunnel-ipip", Doc: "the reference scenario's tunnel mode, IP in IP", Run: on(func(s *stage, ctx context.Context) error { return s.tunnel(ctx, "ipip") })},
		{Name: "tunnel-vxlan", Doc: "the reference scenario's tunnel mode, VXLAN", Run: on(func(s *stage, ctx context.Context) error { return s.tunnel(ctx, "vxlan") })},
		{Name: "routed", Doc: "no tunnel: routes that Ropeway publishes in the VPC", Run: on((*stage).routed)},
		{Name: "layer2", Doc: "no tunnel and no cloud: host routes on a switch (a lab of --fabric switch)", Run: on((*stage).layer2)},
		{Name: "cloud-nodes", Doc: "nodes made known, tainted and removed as the cloud says (a lab of --cloud-provider external; takes its last node away)", Run: on((*stage).cloudNodes)},
		{Name: "routed-host-local", Doc: "the reference scenario's non-tunnel mode, host-local: its own ConfigMap and environment", Run: on((*stage).routedHostLocal)},
		{Name: "routed-pools", Doc: "the reference scenario's non-tunnel mode, pools: from host-local to its SpiderIPPools on a live cluster", Run: on((*stage).routedPools)},
		{Name: "steady", Doc: "agents restarted, killed and absent, and every change of transport, under traffic: nothing is noticed", Run: on(func(s *stage, ctx context.Context) error {
			return s.steady(ctx, s.publish, append(s.absences(), s.changes()...))
		})},
		{Name: "steady-transports", Doc: "of steady, the changes of transport", Run: on(func(s *stage, ctx context.Context) error { return s.steady(ctx, s.publish, s.changes()) })},
		{Name: "upgrade", Doc: "to a release with other layouts of maps, journal and state, and back, under traffic: nothing is noticed", Run: on((*stage).upgrade)},
		{Name: "vendor-routes", Doc: "routes change hands between Ropeway and a vendor's route controller, under traffic: nothing is noticed", Run: on((*stage).vendor)},
		{Name: "services", Doc: "what kube-proxy, kubelet and DNS need of a pod network", Run: on((*stage).services)},
		{Name: "chained", Doc: "the plugins that are chained behind Ropeway's: a hostPort, and limits of bandwidth", Run: on((*stage).chained)},
	}
}

// Find returns the scenario of that name; the error lists all names.
func Find(name string) (Scenario, error) {
	var names []string
	for _, s := range All() {
		if s.Name == name {
			return s, nil
		}
		names = append(names, s.Name)
	}
	return Scenario{}, fmt.Errorf("there is no scenario %q; there are: %s", name, strings.Join(names, ", "))
}

// Play runs a scenario and prints its summary. The error is ErrFailed when a
// step failed, or why the scenario could not go on.
func Play(ctx context.Context, s Scenario, b Bed, r *Report) error {
	r.Title(s.Name + ": " + s.Doc)
	stopped := s.Run(ctx, b, r)
	err := r.Summary()
	if err != nil {
		return err
	}
	if stopped != nil {
		return fmt.Errorf("scenario %s stopped: %w", s.Name, stopped)
	}
	return nil
}

// bare shows that the cluster itself is there, with or without a pod network.
func bare() Scenario {
	return Scenario{Name: "bare", Doc: "the API server answers and every node has registered", Run: playBare}
}

func playBare(ctx context.Context, b Bed, r *Report) error {
	l := b.Lab
	err := r.Step(ctx, "the API server is ready", func(ctx context.Context) error {
		_, err := l.Kubectl(ctx, "get", "--raw", "/readyz")
		return err
	})
	if err != nil {
		return err
	}
	_ = r.Step(ctx, "a stranger gets nothing from the API server", func(ctx context.Context) error { return refused(ctx, l) })
	for _, node := range l.Nodes() {
		_ = r.Step(ctx, "node "+node.Name+" has registered", func(ctx context.Context) error { return registered(ctx, l, node) })
	}
	out, err := l.Kubectl(ctx, "get", "nodes", "-o", "wide")
	if err != nil {
		return err
	}
	r.Command("kubectl get nodes -o wide", out)
	return nil
}

// refused asks without credentials and wants to be turned away.
func refused(ctx context.Context, l *lab.Lab) error {
	node := l.Nodes()[0].Name
	out, err := l.NodeExec(ctx, node, "curl", "-sk", "-o", "/dev/null", "-w", "%{http_code}", l.APIServer()+"/api/v1/nodes")
	if err != nil {
		return err
	}
	if code := string(out); code != "401" {
		return fmt.Errorf("the API server answers %s to a request without credentials, want 401", code)
	}
	return nil
}

func registered(ctx context.Context, l *lab.Lab, node lab.Node) error {
	out, err := l.Kubectl(ctx, "get", "node", node.Name, "-o", `jsonpath={.status.addresses[?(@.type=="InternalIP")].address}`)
	if err != nil {
		return err
	}
	var want []string
	for _, a := range node.Addresses {
		want = append(want, a.Addr().String())
	}
	if got := strings.Fields(string(out)); strings.Join(got, " ") != strings.Join(want, " ") {
		return fmt.Errorf("its addresses in the API are %v, want %v", got, want)
	}
	return nil
}

// on puts a scenario's script on a stage.
func on(script func(*stage, context.Context) error) func(context.Context, Bed, *Report) error {
	return func(ctx context.Context, b Bed, r *Report) error {
		return script(newStage(b, r), ctx)
	}
}

package report

import (
	"fmt"
	"io"
	"net/netip"
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"ropeway.dev/ropeway/api/v1alpha1"
	"ropeway.dev/ropeway/internal/controller/routes"
	"ropeway.dev/ropeway/internal/kube"
	"ropeway.dev/ropeway/internal/plan"
)

// Routes is each destination of the pod network: what the cloud's tables say,
// and by which transport another node reaches it now.
type Routes struct {
	Mode     routes.Mode      `json:"mode,omitempty"`
	Provider string           `json:"provider,omitempty"`
	Why      string           `json:"why,omitempty"` // why nothing is published
	Tables   []routes.Table   `json:"tables,omitempty"`
	Routes   []RouteRow       `json:"routes"`
	Problems []routes.Problem `json:"problems,omitempty"`
	// From is the node whose point of view the transports are; its own
	// destinations are seen from another.
	From string `json:"from,omitempty"`
}

// RouteRow is one destination in one table; without a cloud, one destination.
type RouteRow struct {
	routes.Row
	Transport string `json:"transport,omitempty"`
	Reason    string `json:"reason,omitempty"` // why this transport
}

// RoutesOf puts Routes together: s is what the controller says of the cloud,
// nil where nobody can be asked; from is the node to look from, or "".
func RoutesOf(c *kube.Objects, s *routes.Status, from string) (Routes, error) {
	snapshot, problem := c.Snapshot("")
	if problem != "" {
		return Routes{}, fmt.Errorf("there are no routes, since no pod network is in force: %s", problem)
	}
	if from != "" {
		if err := known(c, []string{from}); err != nil {
			return Routes{}, err
		}
	}
	ways, from := waysFrom(snapshot, from)
	asSaid(ways, c, from)
	out := Routes{From: from, Routes: []RouteRow{}}
	if s != nil {
		out.Mode, out.Provider, out.Why, out.Tables, out.Problems = s.Mode, s.Provider, s.Why, s.Tables, s.Problems
	}
	seen := map[string]bool{}
	if s != nil {
		for _, r := range s.Rows {
			way := ways[r.Dst]
			out.Routes = append(out.Routes, RouteRow{Row: r, Transport: string(way.Transport), Reason: way.Reason})
			seen[r.Dst] = true
		}
	}
	add := func(node string, dst netip.Prefix) {
		if text := dst.String(); !seen[text] {
			out.Routes = append(out.Routes, RouteRow{
				Row: routes.Row{Dst: text, Node: node}, Transport: string(ways[text].Transport), Reason: ways[text].Reason,
			})
		}
	}
	for node, dsts := range plan.DestinationsByNode(snapshot.Network, snapshot.Nodes) {
		for _, dst := range dsts {
			add(node, dst)
		}
	}
	for a, node := range plan.SingleHolders(snapshot.Network, snapshot.Nodes) {
		add(node, netip.PrefixFrom(a, a.BitLen()))
	}
	slices.SortStableFunc(out.Routes, byDestination)
	return out, nil
}

func byDestination(a, b RouteRow) int {
	if c := strings.Compare(a.Table, b.Table); c != 0 {
		return c
	}
	if c := strings.Compare(a.Node, b.Node); c != 0 {
		return c
	}
	return strings.Compare(a.Dst, b.Dst)
}

// waysFrom returns how each destination is reached from one node, and that
// node's own from one other.
func waysFrom(s plan.Snapshot, from string) (map[string]plan.Route, string) {
	ways := map[string]plan.Route{}
	if len(s.Nodes) == 0 {
		return ways, ""
	}
	if from == "" {
		from = s.Nodes[0].Name
	}
	other := slices.IndexFunc(s.Nodes, func(n plan.Node) bool { return n.Name != from })
	if other >= 0 {
		s.Self = s.Nodes[other].Name
		for _, r := range plan.Compute(s).Routes {
			ways[r.Dst.String()] = r
		}
	}
	s.Self = from
	for _, r := range plan.Compute(s).Routes {
		ways[r.Dst.String()] = r
	}
	return ways, from
}

// asSaid takes from the node's own words what nobody else can compute: which ways
// it holds back because they have failed of late.
func asSaid(ways map[string]plan.Route, c *kube.Objects, from string) {
	i := slices.IndexFunc(c.NodeNetworks, func(nn *v1alpha1.NodeNetwork) bool { return nn.Name == from })
	if i < 0 {
		return
	}
	for _, x := range c.NodeNetworks[i].Status.Exceptions {
		if !plan.SaysHeldBack(x.Reason) {
			continue
		}
		for dst, way := range ways {
			if way.Peer == x.Node && string(way.Transport) != x.Transport {
				way.Transport, way.Reason = plan.Transport(x.Transport), x.Reason
				ways[dst] = way
			}
		}
	}
}

// Table writes the routes for a person.
func (r Routes) Table(w io.Writer, wide bool) error {
	if r.Why != "" {
		fmt.Fprintf(w, "! %s\n", r.Why)
	}
	for _, t := range r.Tables {
		quota := ""
		if t.Quota > 0 {
			quota = fmt.Sprintf(" of at most %d", t.Quota)
		}
		fmt.Fprintf(w, "route table %s: %d entries%s, %d of them ours; %d wanted, %d right and available\n", t.ID, t.Entries, quota, t.Ours, t.Wanted, t.Good)
	}
	if len(r.Tables) > 0 {
		fmt.Fprintln(w)
	}
	head := []string{"DESTINATION", "NODE", "CLOUD", "NEXT HOP", "TRANSPORT", "WHY"}
	if wide {
		head = []string{"DESTINATION", "NODE", "INSTANCE", "TABLE", "CLOUD", "NEXT HOP", "OWNER", "TRANSPORT", "WHY", "MESSAGE"}
	}
	var rows [][]string
	for _, x := range r.Routes {
		row := []string{x.Dst, x.Node, string(x.State), x.NextHop, x.Transport, x.Reason}
		if wide {
			row = []string{x.Dst, x.Node, x.Instance, x.Row.Table, string(x.State), x.NextHop, x.Owner, x.Transport, x.Reason, x.Message}
		}
		rows = append(rows, row)
	}
	if err := columns(w, head, rows); err != nil {
		return err
	}
	for i, p := range r.Problems {
		if i == 0 {
			fmt.Fprintln(w)
		}
		fmt.Fprintf(w, "! %s: %s\n", p.Reason, p.Message)
	}
	return nil
}

// cloudRoutes checks what the controller says of the cloud's route tables.
func (d *Diagnosis) cloudRoutes(c *kube.Objects) {
	const name = "cloud routes"
	if c.Network == nil {
		return
	}
	published := meta.FindStatusCondition(c.Network.Status.Conditions, routes.ConditionPublished)
	if published == nil {
		return // no cloud
	}
	if withheld := meta.FindStatusCondition(c.Network.Status.Conditions, routes.ConditionWithheld); withheld != nil && withheld.Status == metav1.ConditionTrue {
		d.add(name, Fail, "ropeway routes, and then ropeway routes confirm if it is meant", "%s", withheld.Message)
		return
	}
	switch {
	case published.Status == metav1.ConditionTrue:
		d.add(name, OK, "", "%s", published.Message)
	case published.Reason == routes.ReasonWithdrawn:
		d.add(name, OK, "", "%s", published.Message)
	case published.Reason == routes.ReasonTableFull, published.Reason == routes.ReasonPublishing, published.Reason == routes.ReasonWithdrawing:
		d.add(name, Warn, "ropeway routes shows each", "%s", published.Message)
	default:
		d.add(name, Fail, "ropeway routes shows each", "%s", published.Message)
	}
}

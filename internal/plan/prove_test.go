package plan_test

import (
	"fmt"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"ropeway.dev/ropeway/internal/plan"
)

// TestProvingIsLinear: no node is proven by more than three, none by itself or
// by one that is not ready, none that is not ready at all, by as many as there are
// and by none that is silent instead of one that is heard of; and ProvenBy is
// Provers seen from the other side.
func TestProvingIsLinear(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var nodes []plan.Node
		agents := 0
		for i := range rapid.IntRange(0, 40).Draw(t, "nodes") {
			nodes = append(nodes, plan.Node{Name: fmt.Sprintf("node-%d", i), Ready: rapid.Bool().Draw(t, "ready"), Silent: rapid.IntRange(0, 2).Draw(t, "silent") == 0})
			if nodes[i].Ready {
				agents++
			}
		}
		duties, all := map[string][]string{}, 0
		for _, dest := range nodes {
			provers := plan.Provers(nodes, dest.Name)
			var ready, heard, silent int
			for _, n := range nodes {
				switch chosen := slices.Contains(provers, n.Name); {
				case !n.Ready || n.Name == dest.Name:
					if chosen {
						t.Fatalf("%s proves %s", n.Name, dest.Name)
					}
					continue
				case chosen && n.Silent:
					silent++
				case !n.Silent:
					heard++
				}
				ready++
			}
			want := min(3, ready)
			if !dest.Ready {
				want = 0
			}
			if len(provers) != want || silent > max(0, want-heard) {
				t.Fatalf("%s is proven by %v, %d of them silent, of %d ready others, of whom %d are heard of", dest.Name, provers, silent, ready, heard)
			}
			for _, p := range provers {
				duties[p] = append(duties[p], dest.Name)
				all++
			}
		}
		if all > 3*agents {
			t.Fatalf("%d duties where %d agents run of %d", all, agents, len(nodes))
		}
		for _, n := range nodes {
			want := slices.Sorted(slices.Values(duties[n.Name]))
			if got := plan.ProvenBy(rapid.Permutation(nodes).Draw(t, "order"), n.Name); !slices.Equal(got, want) {
				t.Fatalf("%s proves %v, want %v", n.Name, got, want)
			}
		}
	})
}

// TestProversAreSpread: names that differ by a digit share the work, and a new
// node changes few of the duties.
func TestProversAreSpread(t *testing.T) {
	const count = 300
	var nodes []plan.Node
	for i := range count {
		nodes = append(nodes, plan.Node{Name: fmt.Sprintf("cn-chengdu.i-%04d", i), Ready: true})
	}
	most := 0
	for _, n := range nodes {
		most = max(most, len(plan.ProvenBy(nodes, n.Name)))
	}
	if most > 12 {
		t.Errorf("one node of %d proves %d others; 3 is the mean", count, most)
	}
	more := append(slices.Clone(nodes), plan.Node{Name: "cn-chengdu.i-new", Ready: true})
	moved := 0
	for _, n := range nodes {
		if !slices.Equal(plan.Provers(nodes, n.Name), plan.Provers(more, n.Name)) {
			moved++
		}
	}
	if moved > 15 {
		t.Errorf("a new node moved the duties for %d of %d nodes; 3 is the mean", moved, count)
	}
}

// oldest is the name of the oldest node that is heard of, of all nodes if none is.
func oldest(nodes []plan.Node) string {
	var first *plan.Node
	for i, n := range nodes {
		if first == nil || !n.Silent && first.Silent || n.Silent == first.Silent && (n.Created < first.Created || n.Created == first.Created && n.UID < first.UID) {
			first = &nodes[i]
		}
	}
	return first.Name
}

// TestVerdictsFollowTheProbes: Reachable says what the design says, counted
// anew, and the same as Verdicts.
func TestVerdictsFollowTheProbes(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := anySnapshot(t)
		verdicts := plan.Verdicts(s)
		deaf := !slices.ContainsFunc(s.Nodes, func(n plan.Node) bool { return n.Ready && !n.Silent })
		for _, n := range s.Nodes {
			proven := slices.ContainsFunc(s.Network.Transports, func(t plan.Transport) bool { return answers(s, n.Name, t, "") })
			alone := !slices.ContainsFunc(s.Nodes, func(o plan.Node) bool { return o.Name != n.Name && o.Ready && (deaf || !o.Silent) })
			owns := len(destinations(s.Network, n, s.Nodes)) > 0
			want := n.Ready && owns && (!alone && proven || alone && n.Name == oldest(s.Nodes))
			got, reason := plan.Reachable(s, n.Name)
			if got != want || reason == "" || verdicts[n.Name].Reachable != got || verdicts[n.Name].Reason != reason || got && verdicts[n.Name].Lost {
				t.Fatalf("%s: reachable %t (%s), want %t; Verdicts says %v", n.Name, got, reason, want, verdicts[n.Name])
			}
		}
	})
}

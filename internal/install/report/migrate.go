package report

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/netip"
	"slices"

	"ropeway.dev/ropeway/internal/agent/addresses"
	"ropeway.dev/ropeway/internal/ipam"
	"ropeway.dev/ropeway/internal/ipam/pool"
	"ropeway.dev/ropeway/internal/kube"
)

// Migration is what taking other products' addresses over does, or would do.
type Migration struct {
	DryRun    bool             `json:"dryRun"`
	Addresses []MigratedOnNode `json:"addresses"`
	// NotAsked maps node -> why its agent could not be asked.
	NotAsked map[string]string `json:"notAsked,omitempty"`
}

// MigratedOnNode is one address, and the node that it is, or was, on.
type MigratedOnNode struct {
	Node string `json:"node,omitempty"`
	addresses.Taken
}

// Failed says whether something is left that a person has to look at.
func (m Migration) Failed() bool {
	return len(m.NotAsked) > 0 || slices.ContainsFunc(m.Addresses, func(a MigratedOnNode) bool { return a.Action == addresses.ActionConflict })
}

// SpiderClaims reads what Spiderpool's pools say is allocated, status.allocatedIPs
// (JSON: address -> pod, podUid). claims maps node -> what pods have that are
// there; rest is what nobody needs to take over, with the reason. The error
// names a pool whose status is not understood.
func SpiderClaims(c *kube.Objects, pods []kube.PodAddress) (claims map[string][]addresses.Claim, rest []MigratedOnNode, err error) {
	snapshot, problem := c.Snapshot("")
	if problem != "" {
		return nil, nil, fmt.Errorf("there is nothing to take addresses over into, since no pod network is in force: %s", problem)
	}
	byUID := map[string]*kube.PodAddress{}
	for i := range pods {
		byUID[pods[i].UID] = &pods[i]
	}
	claims = map[string][]addresses.Claim{}
	pools, _ := c.Pools()
	verdicts := pool.Judge(pools, snapshot.Network.PodCIDRs)
	for i := range c.SpiderIPPools {
		p := &c.SpiderIPPools[i]
		allocated, err := allocatedOf(p.Status.AllocatedIPs)
		if err != nil {
			return nil, nil, fmt.Errorf("SpiderIPPool %s, status.allocatedIPs: %w", p.Name, err)
		}
		for _, a := range slices.SortedFunc(maps.Keys(allocated), netip.Addr.Compare) {
			record := allocated[a]
			one := MigratedOnNode{Taken: addresses.Taken{Address: a, From: "Spiderpool", Action: addresses.ActionKeep, Owner: ipam.Owner{Name: record.Pod}}}
			pod := byUID[record.UID]
			switch {
			case pod == nil, pod.Ended:
				one.Why = fmt.Sprintf("pool %s has it for %s, which is not there any more: nobody holds it", p.Name, record.Pod)
			case !holds(snapshot.Network.PodCIDRs, a) && !verdicts[pool.ID(pool.KindSpiderIPPool+"/"+p.Name)].Underlay:
				one.Node, one.Why = pod.Node, "it is outside of the pod network, and nobody here gives it"
			default:
				claims[pod.Node] = append(claims[pod.Node], addresses.Claim{Address: a, Owner: ipam.Owner{Namespace: pod.Namespace, Name: pod.Name, UID: pod.UID}})
				continue
			}
			rest = append(rest, one)
		}
	}
	return claims, rest, nil
}

// spiderRecord is one entry of status.allocatedIPs.
type spiderRecord struct {
	Pod string `json:"pod"`
	UID string `json:"podUid"`
}

func allocatedOf(text *string) (map[netip.Addr]spiderRecord, error) {
	if text == nil || *text == "" {
		return nil, nil
	}
	var read map[netip.Addr]spiderRecord
	if err := json.Unmarshal([]byte(*text), &read); err != nil {
		return nil, fmt.Errorf("not a map of addresses to pods: %w", err)
	}
	if _, empty := read[netip.Addr{}]; empty {
		return nil, errors.New("not a map of addresses to pods: a pod has no address")
	}
	return read, nil
}

// Table writes it for a person.
func (m Migration) Table(w io.Writer, _ bool) error {
	slices.SortStableFunc(m.Addresses, func(a, b MigratedOnNode) int {
		return cmp.Or(cmp.Compare(a.Node, b.Node), cmp.Compare(a.From, b.From), a.Address.Compare(b.Address))
	})
	var rows [][]string
	counts := map[addresses.Action]int{}
	for _, a := range m.Addresses {
		counts[a.Action]++
		pod := a.Owner.Name
		if a.Owner.Namespace != "" {
			pod = a.Owner.Namespace + "/" + pod
		}
		rows = append(rows, []string{a.Node, a.Address.String(), a.From, string(a.Action), pod, a.Why})
	}
	if len(rows) > 0 {
		if err := columns(w, []string{"NODE", "ADDRESS", "FROM", "ACTION", "POD", "WHY"}, rows); err != nil {
			return err
		}
		fmt.Fprintln(w)
	}
	for _, node := range slices.Sorted(maps.Keys(m.NotAsked)) {
		fmt.Fprintf(w, "! node %s is not done: %s\n", node, m.NotAsked[node])
	}
	did := "done"
	if m.DryRun {
		did = "a dry run: nothing was changed"
	}
	_, err := fmt.Fprintf(w, "%d held already, %d taken over, %d freed, %d left as they are, %d conflicts (%s)\n", counts[addresses.ActionHeld],
		counts[addresses.ActionHold], counts[addresses.ActionFree], counts[addresses.ActionKeep], counts[addresses.ActionConflict], did)
	return err
}

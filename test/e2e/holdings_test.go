//go:build e2e

package e2e

import (
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"
)

// held is what pods could leave behind: where -> lines.
type held map[string][]string

// holdings reads from the kernels and from the API what pods could leave behind;
// what agents hold is compared with those.
func holdings(t *testing.T) held {
	t.Helper()
	found := held{"AddressBlocks": lines(kubectl(t, cluster, "get", "addressblocks", "-o",
		`jsonpath={range .items[*]}{.metadata.name} {.spec.node}{"\n"}{end}`))}
	for what, command := range map[string]string{
		"links":              `ip -o link | awk '{sub(/(@.*)?:$/, "", $2); print $2}'`,
		"routes":             `ip route; ip -6 route show proto 112`,
		"neighbours":         `ip neigh show nud permanent`,
		"forwarding entries": `bridge fdb show | grep rw-vxlan || true`,
		"rules":              `nft list table inet ropeway | sed -E 's/(packets|bytes) [0-9]+//g; s/ expires [0-9a-z]+//g'`,
		"tables":             `nft list tables`,
		"pins":               `find /sys/fs/bpf | grep ropeway`,
		"qdiscs":             `tc qdisc | sed -E 's/ refcnt [0-9]+//; s/[0-9]+:? //'`,
		"namespaces":         `ls /run/netns`,
		"tombstones":         `ls /run/ropeway/tombstones 2>/dev/null || true`,
	} {
		for _, n := range cluster.Nodes() {
			found[what+" of "+n.Name] = lines(onNode(t, cluster, n.Name, "sh", "-c", command))
		}
	}
	for i, n := range cluster.Nodes() {
		found["addresses for nobody of "+n.Name] = heldForNobody(t, i)
	}
	return found
}

// lines are the sorted lines of a text.
func lines(text string) []string {
	var found []string
	for line := range strings.Lines(text) {
		found = append(found, strings.TrimSpace(line))
	}
	slices.Sort(found)
	return found
}

// nameless is the same without saying which pods and sandboxes it is for: after a
// reboot those that come back have other links, namespaces and addresses.
func (h held) nameless() held {
	changes := []struct {
		what *regexp.Regexp
		to   string
	}{
		{regexp.MustCompile(`\brwp[0-9a-f]+`), "rwp"},
		{regexp.MustCompile(`^cni-[0-9a-f-]+$`), "cni"},
		{regexp.MustCompile(`^\S+ dev rwp( lladdr \S+)?`), "pod dev rwp"},
	}
	out := held{}
	for what, found := range h {
		for _, line := range found {
			for _, c := range changes {
				line = c.what.ReplaceAllString(line, c.to)
			}
			out[what] = append(out[what], line)
		}
		slices.Sort(out[what])
	}
	return out
}

// holdingsAtRest reads once nothing is under way any more.
func holdingsAtRest(t *testing.T) held {
	t.Helper()
	last := holdings(t)
	eventually(t, 60*time.Second, func() error {
		earlier := last
		last = holdings(t)
		for what, found := range last {
			if strings.HasPrefix(what, "addresses for nobody") && len(found) > 0 {
				return fmt.Errorf("%s: %q", what, found)
			}
		}
		return earlier.differFrom(last)
	})
	return last
}

// heldForNobody are the addresses that a node routes to a pod's link, or its agent
// holds, without a pod in the API that has them.
func heldForNobody(t *testing.T, i int) []string {
	t.Helper()
	n := cluster.Nodes()[i]
	pods := strings.Fields(kubectl(t, cluster, "get", "pods", "-A", "--field-selector", "spec.nodeName="+n.Name, "-o", "jsonpath={.items[*].status.podIPs[*].ip}"))
	addresses := strings.Fields(onNode(t, cluster, n.Name, "sh", "-c", `(ip route; ip -6 route) | grep ' dev rwp' | grep -v ^fe80 | cut -d' ' -f1`))
	var state struct {
		Bindings []struct{ Addresses []string }
	}
	answer := onNode(t, cluster, n.Name, "curl", "-s", agentURL(n)+"/v1/state")
	if err := json.Unmarshal([]byte(answer), &state); err != nil {
		t.Fatalf("node %s: %v: %s", n.Name, err, answer)
	}
	for _, b := range state.Bindings {
		addresses = append(addresses, b.Addresses...)
	}
	slices.Sort(addresses)
	return slices.DeleteFunc(slices.Compact(addresses), func(a string) bool { return slices.Contains(pods, a) })
}

// differFrom says what is not the same later on.
func (h held) differFrom(later held) error {
	var differ []error
	for what, was := range h {
		if now := later[what]; !slices.Equal(was, now) {
			differ = append(differ, fmt.Errorf("%s: only before %q, only after %q", what, without(was, now), without(now, was)))
		}
	}
	return errors.Join(differ...)
}

package scenario

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"ropeway.dev/ropeway/internal/lab/config"
	"ropeway.dev/ropeway/internal/lab/steady"
)

// place is a network namespace that the traffic of the watchers passes.
type place struct {
	name, host, pod string
	counters        steady.Counters
}

// count reads the counters of every place on the ways.
func (s *stage) count(ctx context.Context) ([]place, error) {
	places := []place{{name: "pod steady-client", pod: "steady-client"}, {name: "pod steady-server", pod: "steady-server"}, {name: "outside", host: "outside"}}
	for _, node := range s.nodes()[:2] {
		places = append(places, place{name: "node " + node, host: node})
	}
	return atOnce(places, func(p place) (place, error) {
		var err error
		if p.counters, err = s.countersOf(ctx, p); err != nil {
			err = fmt.Errorf("counters of %s: %w", p.name, err)
		}
		return p, err
	})
}

// countersOf are a place's: the kernel's, and of a node those of Ropeway's rules
// that drop and reject.
func (s *stage) countersOf(ctx context.Context, p place) (steady.Counters, error) {
	var out []byte
	var err error
	switch {
	case p.pod != "":
		var text string
		text, err = s.quiet(ctx, "exec", p.pod, "--", "/steady", steady.CountersCommand)
		out = []byte(text)
	case p.host == "outside":
		out, err = s.l.NodeExec(ctx, p.host, s.l.Binary("ropeway-lab"), steady.CountersCommand)
	default:
		out, err = s.l.NodeExec(ctx, p.host, config.Binary("ropeway-lab"), steady.CountersCommand)
	}
	if err != nil {
		return nil, err
	}
	var counters steady.Counters
	if err := json.Unmarshal(out, &counters); err != nil {
		return nil, fmt.Errorf("reading %.80q: %w", out, err)
	}
	if p.pod != "" || p.host == "outside" {
		return counters, nil
	}
	rules, err := s.l.NodeExec(ctx, p.host, "nft", "list", "table", "inet", "ropeway")
	if err != nil {
		return nil, err
	}
	maps.Copy(counters, ruleCounters(string(rules)))
	return counters, nil
}

// counted is a rule with a counter and a comment, as nft prints it.
var counted = regexp.MustCompile(`(?m)counter packets (\d+) bytes \d+ (?:drop|reject).* comment "(.*)"$`)

// ruleCounters are the packets that rules of a listing dropped or rejected, by the
// rules' comments.
func ruleCounters(listing string) steady.Counters {
	counters := steady.Counters{}
	for _, rule := range counted.FindAllStringSubmatch(listing, -1) {
		packets, err := strconv.ParseUint(rule[1], 10, 64)
		if err == nil { // otherwise it has more digits than a counter can
			counters["dropped by the rule "+strconv.Quote(rule[2])] += packets
		}
	}
	return counters
}

// whereLost says which counters of losses have grown since before, as an error to
// stand behind what was noticed.
func (s *stage) whereLost(ctx context.Context, before []place) error {
	now, err := s.count(ctx)
	if err != nil {
		return err
	}
	var lines []string
	for i, p := range now {
		lost := p.counters.Lost(before[i].counters)
		for _, name := range slices.Sorted(maps.Keys(lost)) {
			lines = append(lines, fmt.Sprintf("  %s: %s +%d", p.name, name, lost[name]))
		}
	}
	if len(lines) == 0 {
		return errors.New("no counter of the kernel, on no place of the way, tells of a loss")
	}
	return fmt.Errorf("meanwhile these counters have grown:\n%s", strings.Join(lines, "\n"))
}

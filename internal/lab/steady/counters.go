package steady

import (
	"fmt"
	"os"
	"path"
	"strconv"
	"strings"
)

// CountersCommand is the hidden command of ropeway-lab that prints the counters of
// where it runs, as JSON.
const CountersCommand = "__counters"

// Counters are the kernel's own of one network namespace, by their names, such as
// Udp.RcvbufErrors, eth0.rx.drop or conntrack.insert_failed.
type Counters map[string]uint64

// ReadCounters reads those that tell where a packet stayed: the tables of
// /proc/net/snmp, snmp6 and netstat, each link's errors and drops, connection
// tracking and the CPUs' backlogs. What this kernel has no file for is left out.
func ReadCounters() (Counters, error) { return readCounters("/proc/self/net") }

func readCounters(proc string) (Counters, error) {
	c := Counters{}
	for file, parse := range map[string]func(Counters, []string) error{
		"snmp": tables, "netstat": tables, "snmp6": pairs, "dev": links,
		"stat/nf_conntrack": tracking, "softnet_stat": backlogs,
	} {
		content, err := os.ReadFile(path.Join(proc, file))
		if os.IsNotExist(err) {
			continue
		}
		if err != nil {
			return nil, err
		}
		if err := parse(c, strings.Split(strings.TrimSpace(string(content)), "\n")); err != nil {
			return nil, fmt.Errorf("%s: %w", path.Join(proc, file), err)
		}
	}
	return c, nil
}

// tables are pairs of lines: names, and values in their order.
func tables(c Counters, lines []string) error {
	for i := 0; i+1 < len(lines); i += 2 {
		names, values := strings.Fields(lines[i]), strings.Fields(lines[i+1])
		if len(names) != len(values) || names[0] != values[0] {
			return fmt.Errorf("%q does not belong to %q", lines[i+1], lines[i])
		}
		for j, name := range names[1:] {
			if strings.HasPrefix(values[j+1], "-") {
				continue // "no limit", of the few that do not count
			}
			if err := c.put(strings.TrimSuffix(names[0], ":")+"."+name, values[j+1], 10); err != nil {
				return err
			}
		}
	}
	return nil
}

// pairs are a name and its value on each line.
func pairs(c Counters, lines []string) error {
	for _, line := range lines {
		f := strings.Fields(line)
		if len(f) != 2 {
			return fmt.Errorf("%q is no name and value", line)
		}
		if err := c.put(f[0], f[1], 10); err != nil {
			return err
		}
	}
	return nil
}

// links are a line each behind two of headings: of what a link counts received and
// sent, errors and drops are the third and fourth.
func links(c Counters, lines []string) error {
	for _, line := range lines[min(2, len(lines)):] {
		name, values, _ := strings.Cut(strings.TrimSpace(line), ":")
		f := strings.Fields(values)
		if len(f) != 16 {
			return fmt.Errorf("%q has %d values, want 16", line, len(f))
		}
		for column, what := range map[int]string{2: "rx.error", 3: "rx.drop", 10: "tx.error", 11: "tx.drop"} {
			if err := c.put(name+"."+what, f[column], 10); err != nil {
				return err
			}
		}
	}
	return nil
}

// tracking is a line of names, and one of hexadecimal values for each CPU.
func tracking(c Counters, lines []string) error {
	names := strings.Fields(lines[0])
	for _, line := range lines[1:] {
		for i, value := range strings.Fields(line) {
			if i == 0 || i >= len(names) {
				continue // the number of entries is the same on every line
			}
			if err := c.put("conntrack."+names[i], value, 16); err != nil {
				return err
			}
		}
	}
	return nil
}

// backlogs are a line of hexadecimal values for each CPU: the second counts what
// found its queue full.
func backlogs(c Counters, lines []string) error {
	for _, line := range lines {
		f := strings.Fields(line)
		if len(f) < 2 {
			return fmt.Errorf("%q has no second value", line)
		}
		if err := c.put("backlog.drop", f[1], 16); err != nil {
			return err
		}
	}
	return nil
}

// put adds to a counter.
func (c Counters) put(name, value string, base int) error {
	n, err := strconv.ParseUint(value, base, 64)
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	c[name] += n
	return nil
}

// telling are parts of the names of counters that say why a packet is not where
// it was sent.
var telling = []string{
	"drop", "err", "fail", "discard", "noroute", "noport", "overflow", "invalid",
	"full", "retrans", "syn", "filter", "unreach", "collapse", "prune", "clashres", "hdr",
	"lossprobes", "spurious", "dsack", "timeouts",
}

// Lost are those counters, of the ones that tell of losses, that have grown since
// before, and by how much.
func (c Counters) Lost(before Counters) Counters {
	lost := Counters{}
	for name, value := range c {
		for _, part := range telling {
			if value > before[name] && strings.Contains(strings.ToLower(name), part) {
				lost[name] = value - before[name]
				break
			}
		}
	}
	return lost
}

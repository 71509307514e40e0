package lab

import (
	"context"
	"fmt"
	"io"
	"maps"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"ropeway.dev/ropeway/internal/lab/cgroup"
	"ropeway.dev/ropeway/internal/lab/ledger"
	"ropeway.dev/ropeway/internal/lab/pidone"
	"ropeway.dev/ropeway/internal/lab/vpc"
)

// Status is what a lab consists of at a moment; its JSON form is an interface
// for scripts and tests.
type Status struct {
	Name         string         `json:"name"`
	Phase        ledger.Phase   `json:"phase"`
	Created      time.Time      `json:"created"`
	APIServer    string         `json:"apiServer"`
	Kubeconfig   string         `json:"kubeconfig"`
	PodCIDRs     []netip.Prefix `json:"podCIDRs"`
	ServiceCIDRs []netip.Prefix `json:"serviceCIDRs"`
	Hosts        []HostStatus   `json:"hosts"`
	// Nodes repeats the hosts that are nodes.
	Nodes []HostStatus `json:"nodes"`
	// VPC holds the VPC's packet counters: name -> packets.
	VPC map[string]uint64 `json:"vpc,omitempty"`
}

// HostStatus is one host of a lab.
type HostStatus struct {
	Name      string         `json:"name"`
	Role      ledger.Role    `json:"role"`
	Netns     string         `json:"netns"`
	Addresses []netip.Prefix `json:"addresses,omitempty"`
	// Init is the host's first process as the machine numbers it; 0 when the
	// host does not run.
	Init     int             `json:"init"`
	Logs     string          `json:"logs"`
	Programs []ProgramStatus `json:"programs"`
}

// ProgramStatus is one program of a host.
type ProgramStatus struct {
	Name  string       `json:"name"`
	Phase pidone.Phase `json:"phase"`
	// PID is the machine's number; 0 when it does not run.
	PID int `json:"pid,omitempty"`
	// Memory is the resident memory in bytes.
	Memory   int64  `json:"memoryBytes,omitempty"`
	Restarts int    `json:"restarts,omitempty"`
	LastExit string `json:"lastExit,omitempty"`
}

// Status looks at the lab.
func (l *Lab) Status(ctx context.Context) (Status, error) {
	m := l.manifest
	s := Status{
		Name: m.Name, Phase: m.Phase, Created: m.Created, APIServer: m.APIServer, Kubeconfig: m.Kubeconfig,
		PodCIDRs: m.PodCIDRs, ServiceCIDRs: m.ServiceCIDRs,
	}
	layout, err := cgroup.Detect()
	if err != nil {
		return Status{}, err
	}
	for _, h := range m.Hosts {
		host, err := hostStatus(layout, m.Name, h)
		if err != nil {
			return Status{}, err
		}
		s.Hosts = append(s.Hosts, host)
		if h.Role == ledger.Node {
			s.Nodes = append(s.Nodes, host)
		}
	}
	// A lab that is starting has no VPC yet; that is no failure of `status`.
	if counters, err := vpc.Counters(ctx, m.Name); err == nil {
		s.VPC = counters
	}
	return s, nil
}

func hostStatus(layout cgroup.Layout, lab string, h ledger.Host) (HostStatus, error) {
	s := HostStatus{Name: h.Name, Role: h.Role, Netns: h.Netns, Addresses: h.Addresses, Logs: h.Logs()}
	if !h.Init.Alive() {
		return s, nil
	}
	s.Init = h.Init.PID
	state, err := pidone.ReadState(statePath(h))
	if err != nil {
		return s, nil // Its pid 1 has only just started.
	}
	outer, err := outerPIDs(layout, ledger.HostCgroup(lab, h.Name))
	if err != nil {
		return s, err
	}
	for _, p := range state.Programs {
		one := ProgramStatus{Name: p.Name, Phase: p.Phase, Restarts: p.Restarts, LastExit: p.LastExit}
		if p.PID != 0 {
			one.PID = outer[p.PID]
			one.Memory = residentMemory(one.PID)
		}
		s.Programs = append(s.Programs, one)
	}
	return s, nil
}

// outerPIDs maps the numbers of a host's own processes, as the host knows
// them, to the machine's numbers.
func outerPIDs(layout cgroup.Layout, group string) (map[int]int, error) {
	pids, err := layout.Processes(group)
	if err != nil {
		return nil, err
	}
	outer := map[int]int{}
	for _, pid := range pids {
		// NSpid of proc_pid_status(5): one number for each nested pid
		// namespace, from ours inwards. Containers have more than two.
		inner := strings.Fields(procStatus(pid, "NSpid"))
		if len(inner) != 2 {
			continue
		}
		if n, err := strconv.Atoi(inner[1]); err == nil {
			outer[n] = pid
		}
	}
	return outer, nil
}

// residentMemory is in bytes; 0 for a process that is gone.
func residentMemory(pid int) int64 {
	kib, _, _ := strings.Cut(strings.TrimSpace(procStatus(pid, "VmRSS")), " ")
	n, err := strconv.ParseInt(kib, 10, 64)
	if err != nil {
		return 0
	}
	return n * 1024
}

// procStatus is one field of proc_pid_status(5), empty when there is none.
func procStatus(pid int, field string) string {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return ""
	}
	for line := range strings.Lines(string(data)) {
		if name, value, found := strings.Cut(line, ":"); found && name == field {
			return strings.TrimSpace(value)
		}
	}
	return ""
}

// Print writes the status as a person reads it.
func (s Status) Print(w io.Writer) error {
	fmt.Fprintf(w, "lab %s: %s, made %s\n", s.Name, s.Phase, s.Created.Local().Format(time.DateTime))
	fmt.Fprintf(w, "API server  %s\nkubeconfig  %s\npods        %s\nservices    %s\n\n", s.APIServer, s.Kubeconfig,
		joinPrefixes(s.PodCIDRs), joinPrefixes(s.ServiceCIDRs))
	table := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(table, "HOST\tADDRESSES\tPROGRAM\tSTATE\tPID\tMEMORY\tRESTARTS")
	for _, h := range s.Hosts {
		first := fmt.Sprintf("%s\t%s", h.Name, dash(joinPrefixes(h.Addresses)))
		fmt.Fprintf(table, "%s\tinit\t%s\t%d\t%d MiB\t0\n", first, map[bool]string{true: "running", false: "down"}[h.Init != 0],
			h.Init, residentMemory(h.Init)>>20)
		for _, p := range h.Programs {
			if p.Phase != pidone.Done {
				fmt.Fprintf(table, "\t\t%s\t%s\t%d\t%d MiB\t%d\n", p.Name, p.Phase, p.PID, p.Memory>>20, p.Restarts)
			}
		}
	}
	if err := table.Flush(); err != nil {
		return fmt.Errorf("print the status: %w", err)
	}
	fmt.Fprintln(w, "\nlogs")
	for _, h := range s.Hosts {
		fmt.Fprintf(w, "  %s\n", h.Logs)
	}
	s.printCounters(w)
	return nil
}

func (s Status) printCounters(w io.Writer) {
	if len(s.VPC) == 0 {
		return
	}
	fmt.Fprintln(w, "\npackets in the VPC")
	for _, name := range slices.Sorted(maps.Keys(s.VPC)) {
		fmt.Fprintf(w, "  %-24s %d\n", name, s.VPC[name])
	}
}

func dash(text string) string {
	if text == "" {
		return "-"
	}
	return text
}

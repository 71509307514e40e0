package scenario

import (
	"context"
	"fmt"
	"net/netip"
	"strings"
	"time"

	"ropeway.dev/ropeway/internal/lab"
	"ropeway.dev/ropeway/internal/lab/product"
)

// stage is where a scenario is played: a lab, and the report that its commands
// and their output are printed to.
type stage struct {
	l       *lab.Lab
	product product.Config
	r       *Report
	// is6 is the family of the addresses that are looked at: the cluster's first,
	// but for what each returns.
	is6 bool
}

func newStage(b Bed, r *Report) *stage {
	return &stage{l: b.Lab, product: b.Product, r: r, is6: b.Lab.PodCIDRs()[0].Addr().Is6()}
}

// each is the stage for each address family of the cluster.
func (s *stage) each() []*stage {
	var stages []*stage
	for _, p := range s.l.PodCIDRs() {
		one := *s
		one.is6 = p.Addr().Is6()
		stages = append(stages, &one)
	}
	return stages
}

// step runs a step that is about one family, and says which where there are two.
func (s *stage) step(ctx context.Context, name string, run func(context.Context) error) error {
	if len(s.l.PodCIDRs()) > 1 {
		name += map[bool]string{false: " (IPv4)", true: " (IPv6)"}[s.is6]
	}
	return s.r.Step(ctx, name, run)
}

// address is a node's address of the family that is looked at.
func (s *stage) address(n lab.Node) netip.Addr {
	for _, a := range n.Addresses {
		if a.Addr().Is6() == s.is6 {
			return a.Addr()
		}
	}
	return netip.Addr{}
}

// clusterIP is a Service's address of the family that is looked at.
func (s *stage) clusterIP(ctx context.Context, service string) (string, error) {
	out, err := s.quiet(ctx, "get", "svc", service, "-o", "jsonpath={.spec.clusterIPs[*]}")
	if err != nil {
		return "", err
	}
	for _, ip := range strings.Fields(out) {
		if strings.Contains(ip, ":") == s.is6 {
			return ip, nil
		}
	}
	return "", fmt.Errorf("service %s has the addresses %q, none of the family that is wanted", service, out)
}

// nodes are the names of the lab's nodes.
func (s *stage) nodes() []string {
	var names []string
	for _, n := range s.l.Nodes() {
		names = append(names, n.Name)
	}
	return names
}

// kubectl runs kubectl, prints the command and its output, and returns the output.
func (s *stage) kubectl(ctx context.Context, args ...string) (string, error) {
	out, err := s.l.Kubectl(ctx, args...)
	s.r.Command("kubectl "+quote(args), out)
	if err != nil {
		return string(out), fmt.Errorf("kubectl %s: %w", quote(args), err)
	}
	return string(out), nil
}

// quiet runs kubectl without printing.
func (s *stage) quiet(ctx context.Context, args ...string) (string, error) {
	out, err := s.l.Kubectl(ctx, args...)
	if err != nil {
		return string(out), fmt.Errorf("kubectl %s: %w: %s", quote(args), err, lastLine(out))
	}
	return string(out), nil
}

// ropeway runs the ropeway program as an operator does, and prints the command
// and its output.
func (s *stage) ropeway(ctx context.Context, args ...string) error {
	out, err := s.product.Run(ctx, s.l, args...)
	s.r.Command("ropeway "+quote(args), out)
	if err != nil {
		return fmt.Errorf("ropeway %s: %w", quote(args), err)
	}
	return nil
}

// until calls check until it returns nil or the time is over, and then returns
// the last reason.
func (s *stage) until(ctx context.Context, limit time.Duration, check func() error) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	tick := time.NewTicker(200 * time.Millisecond)
	defer tick.Stop()
	for {
		err := check()
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("not within %s: %w", limit, err)
		case <-tick.C:
		}
	}
}

// note prints a line of explanation.
func (s *stage) note(format string, args ...any) { s.r.Note(fmt.Sprintf(format, args...)) }

// quote writes arguments as they would be typed.
func quote(args []string) string {
	quoted := make([]string, len(args))
	for i, a := range args {
		if strings.ContainsAny(a, " {}$\"*?|&;<>()") {
			a = "'" + strings.ReplaceAll(a, "'", `'\''`) + "'"
		}
		quoted[i] = a
	}
	return strings.Join(quoted, " ")
}

func lastLine(out []byte) string {
	lines := strings.Split(strings.TrimSpace(string(out)), "\n")
	return lines[len(lines)-1]
}

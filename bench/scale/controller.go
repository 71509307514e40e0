package scale

import (
	"context"
	"fmt"
	"maps"
	"net"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
)

// Controller is a real controller.
type Controller struct {
	*program
	port string
}

// StartController starts one. The caller calls Stop.
func StartController(ctx context.Context, a Access) (*Controller, error) {
	l, err := net.Listen("tcp4", "127.0.0.1:0") // to find a free port
	if err != nil {
		return nil, err
	}
	port := l.Addr().String()
	if err := l.Close(); err != nil {
		return nil, err
	}
	p, err := start(filepath.Join(a.Dir, "controller.log"),
		exec.CommandContext(ctx, a.Program, "controller", "--kubeconfig", a.Kubeconfig, "--identity", "bench", "--listen", port))
	if err != nil {
		return nil, err
	}
	return &Controller{program: p, port: port}, nil
}

// Metrics are the controller's.
func (c *Controller) Metrics(ctx context.Context) (map[string]float64, error) {
	if err := c.Alive(); err != nil {
		return nil, fmt.Errorf("controller: %w", err)
	}
	return scrape(ctx, (&net.Dialer{}).DialContext, c.port)
}

// Sum adds up the metrics of a name, whatever their labels.
func Sum(metrics map[string]float64, name string) float64 {
	total := 0.0
	for _, key := range slices.Sorted(maps.Keys(metrics)) {
		if key == name || strings.HasPrefix(key, name+"{") {
			total += metrics[key]
		}
	}
	return total
}

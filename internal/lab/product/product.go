// Package product puts Ropeway on a lab as an operator without a registry
// would: it builds the image archive, imports it into every node, and runs
// `ropeway install --apply`.
package product

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"

	"ropeway.dev/ropeway/internal/lab"
	"ropeway.dev/ropeway/internal/lab/source"
)

// Config says what to install.
type Config struct {
	// Program is the path of the ropeway program.
	Program string
	// Version is the image's tag.
	Version string
	// Tags are Go's build tags for the programs in the image.
	Tags string
	// Cache keeps the image archive.
	Cache string
	// Args are added to `ropeway install --apply`.
	Args []string
	// Progress receives a line for each step.
	Progress func(line string)
}

// Validate says whether there is a program to install with, before a lab is booted
// for it.
func (c Config) Validate() error {
	if _, err := os.Stat(c.Program); err != nil {
		return fmt.Errorf("the ropeway program is not beside ropeway-lab: %w: run `make build`", err)
	}
	return nil
}

// Installer returns what installs Ropeway on a lab.
func Installer(c Config) lab.Installer {
	return func(ctx context.Context, l *lab.Lab) error {
		archive, err := c.Image(ctx)
		if err != nil {
			return err
		}
		if err := l.ImportImage(ctx, archive); err != nil {
			return err
		}
		c.Progress("Ropeway's image is on every node")
		if l.ExternalCloud() {
			access, err := CloudAccess(ctx, l)
			if err != nil {
				return err
			}
			c.Args = append(slices.Clone(c.Args), access.Args()...)
			c.Args = append(c.Args, "--cloud-nodes", "ropeway")
		}
		return c.Apply(ctx, l)
	}
}

// Image builds the image archive for this machine and returns its path.
func (c Config) Image(ctx context.Context) (string, error) {
	root, err := source.Here()
	if err != nil {
		return "", err
	}
	if err := os.MkdirAll(c.Cache, 0o755); err != nil {
		return "", fmt.Errorf("make the directory for the image: %w", err)
	}
	archive := filepath.Join(c.Cache, "ropeway-image-"+c.Version+".tar")
	cmd := exec.CommandContext(ctx, "go", "run", "./internal/oci/mkimage", "--version", c.Version, "--tags", c.Tags, "--arch", runtime.GOARCH, "--out", archive)
	cmd.Dir = root
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build Ropeway's image: %w: %s", err, strings.TrimSpace(string(out)))
	}
	return archive, nil
}

// Apply runs `ropeway install --apply` in the control plane's network.
func (c Config) Apply(ctx context.Context, l *lab.Lab) error {
	args := []string{"install", "--apply", "--version", c.Version}
	for _, cidr := range l.PodCIDRs() {
		args = append(args, "--pod-cidr", cidr.String())
	}
	cmd, err := c.command(ctx, l, append(args, c.Args...))
	if err != nil {
		return err
	}
	return c.run(cmd)
}

// Run runs the ropeway program in the control plane's network, as the lab's
// administrator, and returns what it prints.
func (c Config) Run(ctx context.Context, l *lab.Lab, args ...string) ([]byte, error) {
	cmd, err := c.command(ctx, l, args)
	if err != nil {
		return nil, err
	}
	return cmd.CombinedOutput()
}

func (c Config) command(ctx context.Context, l *lab.Lab, args []string) (*exec.Cmd, error) {
	if err := c.Validate(); err != nil {
		return nil, err
	}
	argv := append([]string{c.Program}, args...)
	return l.HostCommand(ctx, "control-plane", append(argv, "--kubeconfig", l.Kubeconfig())...)
}

// run passes on what the command prints, line by line.
func (c Config) run(cmd *exec.Cmd) error {
	pipe, err := cmd.StdoutPipe()
	if err != nil {
		return fmt.Errorf("run ropeway install: %w", err)
	}
	var complaints strings.Builder
	cmd.Stderr = &complaints
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("run ropeway install: %w", err)
	}
	lines := bufio.NewScanner(pipe)
	for lines.Scan() {
		c.Progress(lines.Text())
	}
	if err := errors.Join(lines.Err(), cmd.Wait()); err != nil {
		return fmt.Errorf("ropeway install: %w: %s", err, strings.TrimSpace(complaints.String()))
	}
	return nil
}

package main

import (
	"context"
	"errors"
	"fmt"
	"os"

	"ropeway.dev/ropeway/bench/scale"
	"ropeway.dev/ropeway/test/apiserver"
)

// inDirectory does a section's work in a directory that goes with it.
func inDirectory(section string, do func(dir string) error) error {
	dir, err := os.MkdirTemp("", "rwbench-"+section+"-")
	if err != nil {
		return fmt.Errorf("make a directory: %w", err)
	}
	defer os.RemoveAll(dir)
	return do(dir)
}

// bed is what a section has that needs no lab: hosts on a VPC, and a real API
// server.
type bed struct {
	dir    string
	hosts  *scale.Hosts
	server *apiserver.Server
}

// onBed does a section's work with hosts of the given numbers.
func (b *bench) onBed(ctx context.Context, section string, nodes []int, do func(bed) error) error {
	return inDirectory(section, func(dir string) (err error) {
		hosts, err := scale.LayHosts(ctx, b.name+"-"+section, nodes)
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, hosts.Down()) }()
		server, err := apiserver.Start(ctx)
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, server.Stop()) }()
		return do(bed{dir, hosts, server})
	})
}

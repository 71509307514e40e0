package openapi

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sync/errgroup"
)

// Names of files in the directory that a cloud is run in.
const (
	specFile  = "cloud-spec.json"
	stateFile = "cloud-state.json"
	// SocketFile is the back door's socket.
	SocketFile = "cloud.sock"
)

// Port is where the OpenAPI and the metadata service answer.
const Port = 80

// WriteSpec puts a spec where Run finds it.
func WriteSpec(dir, lab string, spec Spec) error {
	data, err := json.MarshalIndent(plan{Lab: lab, Spec: spec}, "", "  ")
	if err != nil {
		return fmt.Errorf("write the cloud's description: %w", err)
	}
	if err := os.WriteFile(filepath.Join(dir, specFile), data, 0o600); err != nil { // it holds a secret
		return fmt.Errorf("write the cloud's description: %w", err)
	}
	return nil
}

// plan is the content of the spec file.
type plan struct {
	Lab  string `json:"lab"`
	Spec Spec   `json:"spec"`
}

// Run is the life of a lab's cloud: it reads the spec from dir, answers on
// port 80 of every address of the namespace that the process is in, opens its
// back door in dir, and returns when ctx is done. Its state is in dir, too, so
// that a cloud that was killed goes on where it was.
func Run(ctx context.Context, dir string, log *slog.Logger) error {
	data, err := os.ReadFile(filepath.Join(dir, specFile))
	if err != nil {
		return fmt.Errorf("read the cloud's description: %w; `ropeway-lab up` writes it", err)
	}
	var p plan
	if err := json.Unmarshal(data, &p); err != nil {
		return fmt.Errorf("read the cloud's description: %w", err)
	}
	server, err := New(p.Spec, Options{Fabric: &VPC{Lab: p.Lab}, StateFile: filepath.Join(dir, stateFile), Log: log})
	if err != nil {
		return err
	}
	front, err := (&net.ListenConfig{}).Listen(ctx, "tcp", fmt.Sprintf(":%d", Port))
	if err != nil {
		return fmt.Errorf("open the cloud's API: %w", err)
	}
	socket := filepath.Join(dir, SocketFile)
	if err := os.Remove(socket); err != nil && !errors.Is(err, os.ErrNotExist) {
		return errors.Join(fmt.Errorf("open the cloud's back door: %w", err), front.Close())
	}
	back, err := (&net.ListenConfig{}).Listen(ctx, "unix", socket)
	if err != nil {
		return errors.Join(fmt.Errorf("open the cloud's back door: %w", err), front.Close())
	}
	if err := os.Chmod(socket, 0o600); err != nil {
		return errors.Join(fmt.Errorf("guard the cloud's back door: %w", err), front.Close(), back.Close())
	}
	log.Info("the cloud answers", "region", p.Spec.Region, "vpc", p.Spec.VPC, "instances", len(p.Spec.Instances))
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { server.Follow(ctx); return nil })
	group.Go(func() error { return serve(ctx, front, server) })
	group.Go(func() error { return serve(ctx, back, server.Admin()) })
	return group.Wait()
}

func serve(ctx context.Context, listener net.Listener, handler http.Handler) error {
	server := &http.Server{
		Handler: handler, ReadHeaderTimeout: 10 * time.Second,
		// A batch of 50 in the query of signature version 1 is some 10 KiB.
		MaxHeaderBytes: 1 << 20,
	}
	stop := context.AfterFunc(ctx, func() { server.Close() })
	defer stop()
	if err := server.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve the cloud: %w", err)
	}
	return nil
}

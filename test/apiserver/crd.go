package apiserver

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"time"

	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/yaml"
)

const pollInterval = 100 * time.Millisecond

// waitReady waits until the API server says that it is ready.
func (s *Server) waitReady(ctx context.Context) error {
	cfg, err := s.Config()
	if err != nil {
		return err
	}
	hc, err := rest.HTTPClientFor(cfg)
	if err != nil {
		return fmt.Errorf("make a client of the test's API server: %w", err)
	}
	defer hc.CloseIdleConnections()
	return s.poll(ctx, "the test's API server to be ready", func() error {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, s.url+"/readyz", nil)
		if err != nil {
			return err
		}
		resp, err := hc.Do(req)
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		if resp.StatusCode != http.StatusOK {
			body, _ := io.ReadAll(io.LimitReader(resp.Body, 2048))
			return fmt.Errorf("%s: %s", resp.Status, body)
		}
		return nil
	})
}

// poll waits for a condition, and gives up when the context or a program ends.
func (s *Server) poll(ctx context.Context, what string, done func() error) error {
	tick := time.NewTicker(pollInterval)
	defer tick.Stop()
	for {
		err := done()
		if err == nil {
			return nil
		}
		if failed := s.failed(); failed != nil {
			return failed
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("wait for %s: %w", what, errors.Join(ctx.Err(), err))
		case <-tick.C:
		}
	}
}

// applyCRDs creates the definitions in a directory and waits until the API
// server serves them.
func (s *Server) applyCRDs(ctx context.Context, dir string) error {
	cfg, err := s.Config()
	if err != nil {
		return err
	}
	scheme := runtime.NewScheme()
	if err := apiextensionsv1.AddToScheme(scheme); err != nil {
		return fmt.Errorf("prepare to create CRDs: %w", err)
	}
	c, err := client.New(cfg, client.Options{Scheme: scheme})
	if err != nil {
		return fmt.Errorf("prepare to create CRDs: %w", err)
	}
	paths, err := filepath.Glob(filepath.Join(dir, "*.yaml"))
	if err != nil || len(paths) == 0 {
		return fmt.Errorf("find the CRDs in %s (make generate writes them): %w", dir, errors.Join(err, os.ErrNotExist))
	}
	for _, path := range paths {
		if err := s.applyCRD(ctx, c, path); err != nil {
			return fmt.Errorf("CRD %s: %w", filepath.Base(path), err)
		}
	}
	return nil
}

func (s *Server) applyCRD(ctx context.Context, c client.Client, path string) error {
	content, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	var crd apiextensionsv1.CustomResourceDefinition
	if err := yaml.UnmarshalStrict(content, &crd); err != nil {
		return fmt.Errorf("read it: %w", err)
	}
	if err := c.Create(ctx, &crd); err != nil {
		return fmt.Errorf("create it: %w", err)
	}
	return s.poll(ctx, "the CRD "+crd.Name, func() error {
		if err := c.Get(ctx, client.ObjectKeyFromObject(&crd), &crd); err != nil {
			return err
		}
		for _, cond := range crd.Status.Conditions {
			if cond.Type == apiextensionsv1.Established && cond.Status == apiextensionsv1.ConditionTrue {
				return nil
			}
		}
		return errors.New("not established yet")
	})
}

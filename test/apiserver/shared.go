package apiserver

import (
	"context"
	"fmt"
	"os"
	"sync"
	"testing"

	"k8s.io/client-go/rest"
)

// Shared is one server for all tests of a package, started by the first test
// that asks for it. The zero value is ready; TestMain calls Main.
type Shared struct {
	once   sync.Once
	server *Server
	err    error
}

// Main runs a package's tests, stops the server, and returns the exit code.
func (s *Shared) Main(m *testing.M) int {
	code := m.Run()
	if s.server == nil {
		return code
	}
	if err := s.server.Stop(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return code
}

// Get returns the server. The test fails when it cannot run, and is skipped
// with -short.
func (s *Shared) Get(t testing.TB) *Server {
	t.Helper()
	if testing.Short() {
		t.Skip("-short: this test starts a kube-apiserver")
	}
	s.once.Do(func() { s.server, s.err = Start(context.Background()) })
	if s.err != nil {
		t.Fatal(s.err)
	}
	return s.server
}

// Config is the configuration of a client of the server that may do everything.
func (s *Shared) Config(t testing.TB) *rest.Config {
	t.Helper()
	cfg, err := s.Get(t).Config()
	if err != nil {
		t.Fatal(err)
	}
	return cfg
}

// Command web is the lab's small web server: it answers every request with JSON that says who asked whom, but for
// /zeros, of which there is no end. It listens on port 80, or on the port that its one argument names.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/signal"
	"syscall"
	"time"
)

// answer is the body of every response.
type answer struct {
	// Host is the name of the host that answers: the pod's name.
	Host string `json:"host"`
	// Client is the address that the request came from, without its port.
	Client string `json:"client"`
	// Server is the address that the request came to, without its port.
	Server string `json:"server"`
	Path   string `json:"path"`
	Time   string `json:"time"` // RFC 3339
}

func main() {
	port := "80"
	if len(os.Args) > 1 {
		port = os.Args[1]
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	if err := run(ctx, port); err != nil {
		slog.Error("web server failed", "err", err)
		os.Exit(1)
	}
}

// run serves until ctx is done.
func run(ctx context.Context, port string) error {
	name, err := os.Hostname()
	if err != nil {
		return fmt.Errorf("read the host's name: %w", err)
	}
	listener, err := (&net.ListenConfig{}).Listen(ctx, "tcp", net.JoinHostPort("", port))
	if err != nil {
		return fmt.Errorf("listen: %w", err)
	}
	slog.Info("serving", "host", name, "address", listener.Addr().String())
	server := &http.Server{Handler: handler(name), ReadHeaderTimeout: 10 * time.Second}
	stop := context.AfterFunc(ctx, func() { server.Close() })
	defer stop()
	if err := server.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve: %w", err)
	}
	return nil
}

func handler(name string) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /zeros", zeros)
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		a := answer{Host: name, Client: hostOf(r.RemoteAddr), Path: r.URL.Path, Time: time.Now().UTC().Format(time.RFC3339Nano)}
		if local, ok := r.Context().Value(http.LocalAddrContextKey).(net.Addr); ok {
			a.Server = hostOf(local.String())
		}
		w.Header().Set("Content-Type", "application/json")
		if err := json.NewEncoder(w).Encode(a); err != nil {
			slog.Info("client went away", "client", r.RemoteAddr, "err", err)
		}
	})
	return mux
}

// zeros sends as many bytes as the client takes.
func zeros(w http.ResponseWriter, r *http.Request) {
	piece := make([]byte, 64<<10)
	for r.Context().Err() == nil {
		if _, err := w.Write(piece); err != nil {
			return
		}
	}
}

func hostOf(address string) string {
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		return address
	}
	return host
}

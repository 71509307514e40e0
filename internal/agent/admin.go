package agent

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"path/filepath"
	"time"

	"ropeway.dev/ropeway/internal/agent/addresses"
	"ropeway.dev/ropeway/internal/ipam"
)

// What changes a node's addresses by a person's word is asked for on a socket
// that only root on the node can open: the port of health and metrics is open to
// everybody who reaches the node. ropeway ask-agent, run in the agent's own
// container by kubectl exec's means, is the way to it, so that the API server
// says who may.

// Paths that the agent answers.
const (
	PathAddresses = "/v1/addresses"           // GET, on the port
	PathRelease   = "/v1/addresses/release"   // POST, on the socket
	PathTakeOver  = "/v1/addresses/take-over" // POST, on the socket
)

// AddressesAnswer is what GET PathAddresses answers.
type AddressesAnswer struct {
	Node    string `json:"node"`
	Version string `json:"version"`
	addresses.View
}

// ReleaseRequest asks for an address to be freed; see Book.ReleaseLeaked.
type ReleaseRequest struct {
	Address     netip.Addr `json:"address"`
	Holder      ipam.Key   `json:"holder"`
	SandboxGone bool       `json:"sandboxGone,omitempty"`
}

// TakeOverRequest asks for addresses to be taken over; see Book.TakeOver.
type TakeOverRequest struct {
	Claims []addresses.Claim `json:"claims,omitempty"`
	DryRun bool              `json:"dryRun,omitempty"`
}

// AdminAnswer is what the socket's paths answer.
type AdminAnswer struct {
	// Error says why it was not done, "" if it was.
	Error string            `json:"error,omitempty"`
	Taken []addresses.Taken `json:"taken,omitempty"`
}

// admin answers on the socket.
type admin struct {
	book *addresses.Book
	pods podAPI
}

func (a *admin) handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("POST "+PathRelease, answering(a.release))
	mux.HandleFunc("POST "+PathTakeOver, answering(a.takeOver))
	return mux
}

// answering makes a handler of JSON.
func answering[Request any](do func(Request) ([]addresses.Taken, error)) http.HandlerFunc {
	return func(rw http.ResponseWriter, r *http.Request) {
		var answer AdminAnswer
		var req Request
		d := json.NewDecoder(r.Body)
		d.DisallowUnknownFields()
		err := d.Decode(&req)
		if err != nil {
			err = fmt.Errorf("the request is not understood (is this ropeway of another version than the agent's?): %w", err)
		} else {
			answer.Taken, err = do(req)
		}
		if err != nil {
			answer.Error = err.Error()
		}
		rw.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(rw).Encode(answer) // whoever asked has gone
	}
}

func (a *admin) release(req ReleaseRequest) ([]addresses.Taken, error) {
	return nil, a.book.ReleaseLeaked(req.Address, req.Holder, a.known, req.SandboxGone)
}

// known reports whether a pod is there, as far as this node has heard.
func (a *admin) known(o ipam.Owner) bool {
	pods, read := a.pods.Pods()
	if !read {
		return true
	}
	for _, p := range pods {
		if p.Namespace == o.Namespace && p.Name == o.Name && (o.UID == "" || o.UID == p.UID || o.UID == p.ConfigHash) {
			return true
		}
	}
	return false
}

func (a *admin) takeOver(req TakeOverRequest) ([]addresses.Taken, error) {
	return a.book.TakeOver(req.Claims, req.DryRun)
}

// serveAdmin serves the socket until ctx is done.
func serveAdmin(ctx context.Context, l net.Listener, a *admin) error {
	server := &http.Server{Handler: a.handler(), ReadHeaderTimeout: 5 * time.Second, WriteTimeout: 30 * time.Second}
	stop := context.AfterFunc(ctx, func() { _ = server.Close() })
	defer stop()
	if err := server.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serving the agent's own socket: %w", err)
	}
	return nil
}

// Ask sends a request to the agent of this node, at its socket in the run
// directory, and returns its answer as it is.
func Ask(ctx context.Context, runDir, path string, request io.Reader) ([]byte, error) {
	socket := filepath.Join(runDir, adminName)
	client := &http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", socket)
	}}}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://agent"+path, request)
	if err != nil {
		return nil, fmt.Errorf("ask the agent: %w", err)
	}
	resp, err := client.Do(req)
	if err != nil {
		return nil, fmt.Errorf("ask the agent at %s (does it run on this node, and is it of this version?): %w", socket, err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %s", resp.Status, bytes.TrimSpace(body))
	}
	if err != nil {
		return nil, fmt.Errorf("ask the agent for %s: %w", path, err)
	}
	return body, nil
}

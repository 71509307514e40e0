package openapi

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"time"
)

// Snapshot is what the back door shows.
type Snapshot struct {
	Spec      Spec         `json:"spec"`
	Settings  Settings     `json:"settings"`
	Tables    []RouteTable `json:"tables"`
	Entries   []Entry      `json:"entries"`
	Instances []Instance   `json:"instances"`
	Rules     []Rule       `json:"rules"`
	Faults    []Fault      `json:"faults"`
	// Counts are the calls since the cloud started: action -> error code, OK
	// when done -> number.
	Counts map[string]map[string]int `json:"counts"`
	// Calls are the last ones, oldest first.
	Calls []Call `json:"calls"`
}

// Admin is the server's side of the back door: an http.Handler without
// signatures, for a socket that only the lab's owner can reach.
//
//	GET    /snapshot    a Snapshot
//	PUT    /settings    Settings
//	POST   /faults      a Fault; answers it with its id
//	DELETE /faults      ends all faults
//	POST   /counts      forgets the calls
//	POST   /call        {version, action, params}: any action, as the account's owner
func (s *Server) Admin() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /snapshot", func(w http.ResponseWriter, r *http.Request) { s.tell(w, s.snapshot(r.Context()), nil) })
	mux.HandleFunc("PUT /settings", func(w http.ResponseWriter, r *http.Request) {
		var settings Settings
		err := read(r, &settings)
		if err == nil {
			err = s.set(settings)
		}
		s.tell(w, settings, err)
	})
	mux.HandleFunc("POST /faults", func(w http.ResponseWriter, r *http.Request) {
		var f Fault
		err := read(r, &f)
		if err == nil {
			f, err = s.inject(f)
		}
		s.tell(w, f, err)
	})
	mux.HandleFunc("DELETE /faults", func(w http.ResponseWriter, _ *http.Request) {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.state.Faults = nil
		s.save()
		s.tell(w, struct{}{}, nil)
	})
	mux.HandleFunc("POST /counts", func(w http.ResponseWriter, _ *http.Request) {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.calls = newCalls()
		s.tell(w, struct{}{}, nil)
	})
	mux.HandleFunc("POST /call", s.adminCall)
	return mux
}

func read(r *http.Request, into any) error {
	decoder := json.NewDecoder(io.LimitReader(r.Body, maxBody))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(into); err != nil {
		return fmt.Errorf("read the request: %w", err)
	}
	return nil
}

func (s *Server) tell(w http.ResponseWriter, value any, err error) {
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	if err := json.NewEncoder(w).Encode(value); err != nil {
		s.log.Debug("the back door's visitor went away", "err", err)
	}
}

func (s *Server) snapshot(ctx context.Context) Snapshot {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.settle(ctx)
	snap := Snapshot{
		Spec: s.spec, Settings: s.state.Settings, Tables: append([]RouteTable{}, s.state.Tables...),
		Instances: append([]Instance{}, s.state.Instances...), Rules: append([]Rule{}, s.state.Rules...),
		Faults: append([]Fault{}, s.state.Faults...), Calls: append([]Call{}, s.calls.last...),
		Counts: map[string]map[string]int{}, Entries: []Entry{},
	}
	for _, e := range s.state.Entries {
		snap.Entries = append(snap.Entries, *e)
	}
	for name, codes := range s.calls.counts {
		snap.Counts[name] = map[string]int{}
		for code, n := range codes {
			snap.Counts[name][code] = n
		}
	}
	return snap
}

func (s *Server) set(settings Settings) error {
	if err := settings.Validate(); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.state.Settings = settings
	s.save()
	return nil
}

func (s *Server) inject(f Fault) (Fault, error) {
	if err := f.Validate(); err != nil {
		return f, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.state.Sequence++
	f.ID, f.Hits = s.state.Sequence, 0
	s.state.Faults = append(s.state.Faults, f)
	s.save()
	return f, nil
}

// adminRequest is the body of POST /call.
type adminRequest struct {
	Version string `json:"version"`
	Action  string `json:"action"`
	Params  params `json:"params"`
}

// adminCall runs an action as a person at the console would: faults do not
// hit it, and policies do not bind it, but the API's own rules do.
func (s *Server) adminCall(w http.ResponseWriter, r *http.Request) {
	var asked adminRequest
	if err := read(r, &asked); err != nil {
		s.tell(w, nil, err)
		return
	}
	a, found := apis()[asked.Version].actions[asked.Action]
	if !found {
		s.tell(w, nil, fmt.Errorf("version %q has no action %q", asked.Version, asked.Action))
		return
	}
	if asked.Params == nil {
		asked.Params = params{}
	}
	c := &call{ctx: r.Context(), params: asked.Params, requestID: newRequestID(), principal: "root/" + s.spec.Account}
	began := s.now()
	s.mu.Lock()
	result, err := s.run(a, c)
	s.mu.Unlock()
	s.record(&request{action: asked.Action, version: asked.Version, params: asked.Params}, c, err, began)
	s.reply(w, c, "console", result, err)
}

// Client talks to the back door of a cloud.
type Client struct{ http *http.Client }

// NewClient returns a Client for the socket of a cloud.
func NewClient(socket string) *Client {
	dial := func(ctx context.Context, _, _ string) (net.Conn, error) {
		conn, err := (&net.Dialer{}).DialContext(ctx, "unix", socket)
		if err != nil {
			return nil, fmt.Errorf("reach the lab's cloud: %w; is the lab up?", err)
		}
		return conn, nil
	}
	return &Client{http: &http.Client{Transport: &http.Transport{DialContext: dial, DisableKeepAlives: true}, Timeout: time.Minute}}
}

func (c *Client) do(ctx context.Context, method, path string, body, into any) error {
	encoded, err := json.Marshal(body)
	if err != nil {
		return fmt.Errorf("ask the lab's cloud: %w", err)
	}
	req, err := http.NewRequestWithContext(ctx, method, "http://cloud"+path, bytes.NewReader(encoded))
	if err != nil {
		return fmt.Errorf("ask the lab's cloud: %w", err)
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return fmt.Errorf("ask the lab's cloud: %w", err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		return fmt.Errorf("ask the lab's cloud: %w", err)
	}
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("the lab's cloud refuses: %w", errors.New(string(bytes.TrimSpace(text))))
	}
	if into == nil {
		return nil
	}
	if err := json.Unmarshal(text, into); err != nil {
		return fmt.Errorf("read the lab's cloud: %w", err)
	}
	return nil
}

// Snapshot returns the cloud as it is.
func (c *Client) Snapshot(ctx context.Context) (Snapshot, error) {
	var snap Snapshot
	err := c.do(ctx, http.MethodGet, "/snapshot", nil, &snap)
	return snap, err
}

// Change reads the settings, lets edit change them, and writes them back.
func (c *Client) Change(ctx context.Context, edit func(*Settings)) error {
	snap, err := c.Snapshot(ctx)
	if err != nil {
		return err
	}
	edit(&snap.Settings)
	return c.do(ctx, http.MethodPut, "/settings", snap.Settings, nil)
}

// Inject adds a fault and returns it with its id.
func (c *Client) Inject(ctx context.Context, f Fault) (Fault, error) {
	err := c.do(ctx, http.MethodPost, "/faults", f, &f)
	return f, err
}

// ClearFaults ends all faults.
func (c *Client) ClearFaults(ctx context.Context) error {
	return c.do(ctx, http.MethodDelete, "/faults", nil, nil)
}

// ForgetCalls makes the counts and the list of calls empty.
func (c *Client) ForgetCalls(ctx context.Context) error {
	return c.do(ctx, http.MethodPost, "/counts", nil, nil)
}

// Call runs an action as the account's owner and returns the answer, JSON. A
// refusal is an error that holds the API's.
func (c *Client) Call(ctx context.Context, version, action string, parameters map[string]string) ([]byte, error) {
	var raw json.RawMessage
	err := c.do(ctx, http.MethodPost, "/call", adminRequest{Version: version, Action: action, Params: parameters}, &raw)
	return raw, err
}

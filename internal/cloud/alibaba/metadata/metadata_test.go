package metadata

import (
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"
)

// service is a metadata service in hardened mode.
type service struct {
	mu     sync.Mutex
	values map[string]string
	tokens int  // handed out so far; the last one is good
	broken bool // answers 503 to everything
}

func (s *service) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	good := fmt.Sprintf("token-%d", s.tokens)
	switch {
	case s.broken:
		w.WriteHeader(http.StatusServiceUnavailable)
	case r.Method == http.MethodPut && r.URL.Path == tokenPath && r.Header.Get(ttlHeader) == "21600":
		s.tokens++
		fmt.Fprintf(w, "token-%d\n", s.tokens)
	case r.Method != http.MethodGet:
		w.WriteHeader(http.StatusMethodNotAllowed)
	case r.Header.Get(tokenHeader) != good:
		w.WriteHeader(http.StatusForbidden)
	default:
		value, ok := s.values[strings.TrimPrefix(r.URL.Path, dataPath)]
		if !ok {
			w.WriteHeader(http.StatusNotFound)
		}
		fmt.Fprintln(w, value)
	}
}

func (s *service) change(f func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	f()
}

func start(t *testing.T) (*service, *Client) {
	t.Helper()
	s := &service{values: map[string]string{
		"region-id": "cn-chengdu", "vpc-id": "vpc-1", rolePath: "nodes",
		rolePath + "nodes": `{"AccessKeyId":"STS.1","AccessKeySecret":"hush","SecurityToken":"whisper","Expiration":"2030-01-02T03:04:05Z","LastUpdated":"2030-01-01T21:04:05Z","Code":"Success"}`,
	}}
	server := httptest.NewServer(s)
	t.Cleanup(server.Close)
	return s, New(server.URL + "/")
}

func TestOneTokenForSeveralKeys(t *testing.T) {
	s, c := start(t)
	for key, want := range map[string]string{"region-id": "cn-chengdu", "vpc-id": "vpc-1"} {
		if got, err := c.Get(t.Context(), key); err != nil || got != want {
			t.Errorf("%s is %q, %v", key, got, err)
		}
	}
	if s.tokens != 1 {
		t.Errorf("%d tokens for two keys, want one", s.tokens)
	}
}

func TestTokenIsRenewed(t *testing.T) {
	s, c := start(t)
	now := time.Now()
	c.now = func() time.Time { return now }
	get := func() {
		t.Helper()
		if v, err := c.Get(t.Context(), "region-id"); err != nil || v != "cn-chengdu" {
			t.Fatalf("%q, %v", v, err)
		}
	}
	get()
	now = now.Add(tokenLife - tokenMargin)
	get()
	if s.tokens != 2 {
		t.Errorf("%d tokens, want a new one before the old one ends", s.tokens)
	}
	s.change(func() { s.tokens++ }) // the host has moved, or has booted
	get()
	if s.tokens != 4 {
		t.Errorf("%d tokens, want a new one after a refusal", s.tokens)
	}
}

func TestKeys(t *testing.T) {
	_, c := start(t)
	keys, err := c.Keys(t.Context())
	if err != nil || keys.AccessKeyID != "STS.1" || keys.AccessKeySecret != "hush" || keys.SecurityToken != "whisper" || keys.Expires.Year() != 2030 {
		t.Fatalf("%v, %v", keys, err)
	}
	for _, verb := range []string{"%v", "%+v", "%#v", "%s"} {
		if text := fmt.Sprintf(verb, keys); strings.Contains(text, "hush") || strings.Contains(text, "whisper") {
			t.Errorf("%s prints a secret: %s", verb, text)
		}
	}
}

func TestNoKeys(t *testing.T) {
	for name, c := range map[string]struct {
		change   func(*service)
		notFound bool
	}{
		"no role":             {func(s *service) { delete(s.values, rolePath) }, true},
		"an empty role":       {func(s *service) { s.values[rolePath] = "" }, true},
		"a role that is gone": {func(s *service) { delete(s.values, rolePath+"nodes") }, true},
		"not JSON":            {func(s *service) { s.values[rolePath+"nodes"] = "hush" }, false},
		"a code of failure":   {func(s *service) { s.values[rolePath+"nodes"] = `{"Code":"Failed","AccessKeySecret":"hush"}` }, false},
		"keys without an end": {func(s *service) {
			s.values[rolePath+"nodes"] = `{"Code":"Success","AccessKeyId":"a","AccessKeySecret":"hush","SecurityToken":"t"}`
		}, false},
		"a service that is out": {func(s *service) { s.broken = true }, false},
	} {
		t.Run(name, func(t *testing.T) {
			s, client := start(t)
			s.change(func() { c.change(s) })
			_, err := client.Keys(t.Context())
			if err == nil || NotFound(err) != c.notFound || strings.Contains(err.Error(), "hush") {
				t.Errorf("%v (not found: %v)", err, NotFound(err))
			}
		})
	}
}

func TestErrorSaysWhat(t *testing.T) {
	_, c := start(t)
	_, err := c.Get(t.Context(), "no/such-key")
	var status *StatusError
	if !errors.As(err, &status) || status.Status != http.StatusNotFound || !strings.Contains(err.Error(), "no/such-key") {
		t.Errorf("%v", err)
	}
}

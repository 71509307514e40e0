package alibaba

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"path"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/alibabacloud-go/tea/dara"

	"ropeway.dev/ropeway/internal/cloud"
	"ropeway.dev/ropeway/internal/cloud/alibaba/metadata"
)

// roleService is a metadata service whose keys end one hour after they are
// asked for.
type roleService struct {
	mu     sync.Mutex
	now    time.Time
	status int // of the answer to the role's keys; 0 means 200
	given  int
	life   time.Duration
}

func (s *roleService) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch path.Base(r.URL.Path) {
	case "token":
		fmt.Fprint(w, "token")
	case "region-id":
		fmt.Fprint(w, testRegion)
	case "vpc-id":
		fmt.Fprint(w, testVPC)
	case "security-credentials":
		if s.status != 0 {
			w.WriteHeader(s.status)
			return
		}
		fmt.Fprint(w, "role")
	case "role":
		s.given++
		fmt.Fprintf(w, `{"AccessKeyId":"STS.%d","AccessKeySecret":"hush","SecurityToken":"whisper","Expiration":%q,"Code":"Success"}`, s.given, s.now.Add(s.life).UTC().Format(time.RFC3339))
	default:
		w.WriteHeader(http.StatusNotFound)
	}
}

func (s *roleService) pass(d time.Duration, status int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.now, s.status = s.now.Add(d), status
}

func newRole(t *testing.T) (*roleService, *roleKeys, string) {
	t.Helper()
	s := &roleService{now: time.Now(), life: time.Hour}
	server := httptest.NewServer(s)
	t.Cleanup(server.Close)
	clock := func() time.Time {
		s.mu.Lock()
		defer s.mu.Unlock()
		return s.now
	}
	return s, &roleKeys{service: metadata.New(server.URL), log: slog.New(slog.DiscardHandler), now: clock}, server.URL
}

// keyID returns the access key at hand, or the error.
func keyID(t *testing.T, r *roleKeys) string {
	t.Helper()
	c, err := r.credential(t.Context())
	if err != nil {
		return cloud.ClassOf(err).String()
	}
	model, err := c.GetCredential()
	if err != nil || dara.StringValue(model.SecurityToken) != "whisper" || dara.StringValue(model.AccessKeySecret) != "hush" {
		t.Fatalf("credential %v, %v", model, err)
	}
	return dara.StringValue(model.AccessKeyId)
}

func TestRoleKeysAreRenewedInTime(t *testing.T) {
	s, r, _ := newRole(t)
	for _, step := range []struct {
		after  time.Duration
		status int
		want   string
	}{
		{0, 0, "STS.1"},
		{40 * time.Minute, 0, "STS.1"},
		{11 * time.Minute, 0, "STS.2"},         // within renewBefore of the end
		{51 * time.Minute, 503, "STS.2"},       // renewal fails, keys are good yet
		{10 * time.Second, 0, "STS.2"},         // and is not tried at each call
		{time.Minute, 0, "STS.3"},              // but soon
		{61 * time.Minute, 503, "unreachable"}, // ended, and nothing new: not the cloud's refusal
		{0, 404, "unauthenticated"},            // no role: a person must act
		{0, 0, "STS.4"},
	} {
		s.pass(step.after, step.status)
		if got := keyID(t, r); got != step.want {
			t.Errorf("after %s with status %d: %s, want %s", step.after, step.status, got, step.want)
		}
	}
}

func TestShortLivedKeysAreNotRenewedAtEachCall(t *testing.T) {
	s, r, _ := newRole(t)
	s.life = time.Minute
	for range 10 {
		keyID(t, r)
	}
	if s.given != 1 {
		t.Errorf("%d renewals for ten calls", s.given)
	}
	s.pass(31*time.Second, 0)
	if got := keyID(t, r); got != "STS.2" {
		t.Errorf("%s after half their life, want new ones", got)
	}
}

func TestRoleKeysForManyAtOnce(t *testing.T) {
	s, r, _ := newRole(t)
	var wg sync.WaitGroup
	for range 20 {
		wg.Go(func() { _, _ = r.credential(t.Context()) })
	}
	wg.Wait()
	if s.given != 1 {
		t.Errorf("%d renewals for 20 callers at once", s.given)
	}
}

func TestSecretMustHaveItsKeys(t *testing.T) {
	_, err := Open(t.Context(), Options{Settings: cloud.Settings{Region: testRegion, VPC: testVPC, Secret: map[string][]byte{"accessKeyId": []byte("x")}}})
	if !cloud.Is(err, cloud.Unauthenticated) || !strings.Contains(err.Error(), SecretKeyID) || !strings.Contains(err.Error(), SecretKeySecret) {
		t.Errorf("%v: want both missing keys named", err)
	}
}

func TestPlaceComesFromTheMachine(t *testing.T) {
	_, _, url := newRole(t)
	p, err := Open(t.Context(), Options{Metadata: url})
	if err != nil || p.call.region != testRegion || p.vpc != testVPC {
		t.Fatalf("%v, %v", p, err)
	}
	p, err = Open(t.Context(), Options{Metadata: url, Settings: cloud.Settings{Region: "cn-beijing", VPC: "vpc-9"}})
	if err != nil || p.call.region != "cn-beijing" || p.vpc != "vpc-9" {
		t.Errorf("%v, %v: what is set wins", p, err)
	}
	dead := httptest.NewServer(http.NotFoundHandler())
	dead.Close()
	if _, err = Open(t.Context(), Options{Metadata: dead.URL, Settings: cloud.Settings{VPC: "vpc-9"}}); !cloud.Is(err, cloud.Passing) || !strings.Contains(err.Error(), "spec.cloud.regionID") {
		t.Errorf("no metadata service: %v", err)
	}
}

func TestCallsWithoutCredentialsAreNotSent(t *testing.T) {
	role, _, url := newRole(t)
	role.pass(0, http.StatusNotFound)
	s := newStub(t)
	p := s.provider(func(o *Options) { o.Secret, o.Metadata = nil, url })
	_, err := p.Routes().Apply(context.Background(), []cloud.RouteChange{change("10.244.1.0/24", "i-1")})
	var e *cloud.Error
	if !errors.As(err, &e) || e.Class != cloud.Unauthenticated || e.Action != "CreateRouteEntries" || !strings.Contains(err.Error(), "RAM role") {
		t.Errorf("%v: want unauthenticated, with what to do", err)
	}
	if len(s.asked) != 0 {
		t.Errorf("%d calls went out unsigned", len(s.asked))
	}
}

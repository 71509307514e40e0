package alibaba

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"time"

	"ropeway.dev/ropeway/internal/cloud"
)

func TestClassify(t *testing.T) {
	for _, c := range []struct {
		code   string
		status int
		want   cloud.Class
	}{
		{"TaskConflict", 400, cloud.Passing},
		{"IncorrectRouteEntryStatus", 400, cloud.Passing},
		{"IncorrcetRouteEntryStatus", 400, cloud.Passing}, // the delete action's own spelling
		{"OperationFailed.DistibuteLock", 400, cloud.Passing},
		{"IncorrectStatus.SomethingNew", 400, cloud.Passing},
		{"IncorrectInstanceStatus", 400, cloud.Passing},
		{"VPC_ROUTE_ENTRY_STATUS_ERROR", 0, cloud.Passing},
		{"Throttling", 400, cloud.Throttled},
		{"Throttling.User", 503, cloud.Throttled},
		{"Throttling.SomethingNew", 400, cloud.Throttled},
		{"Unheard", 429, cloud.Throttled},
		{"QuotaExceeded", 400, cloud.Quota},
		{"QuotaExceeded.RouteEntry", 400, cloud.Quota},
		{"VPC_ROUTE_ENTRY_QUOTA_FULL", 0, cloud.Quota},
		{"InvalidCIDRBlock.Duplicate", 400, cloud.Conflict},
		{"VPC_ROUTE_ENTRY_CIDR_BLOCK_DUPLICATE", 0, cloud.Conflict},
		{"InvalidCidrBlock", 400, cloud.Permanent}, // not InvalidCIDRBlock
		{"InvalidCidrBlock.Overlapped", 400, cloud.Permanent},
		{"InvalidNextHop.NotFound", 404, cloud.BadNextHop},
		{"InvalidInstanId.NotFound", 404, cloud.BadNextHop}, // sic
		{"Forbidden.RAM", 403, cloud.Forbidden},
		{"Forbidden.Anything", 403, cloud.Forbidden},
		{"Forbbiden", 403, cloud.Permanent}, // sic: a protected entry, no matter of rights
		{"OperationDenied.DeleteManagedRouteEntry", 400, cloud.Permanent},
		{"InvalidAccessKeyId.NotFound", 404, cloud.Unauthenticated},
		{"InvalidSecurityToken.Malformed", 400, cloud.Unauthenticated},
		{"InvalidTimeStamp.Expired", 400, cloud.Unauthenticated},
		{"SignatureNonceUsed", 400, cloud.Passing},
		{"ServiceUnavailable", 503, cloud.Lost},
		{"InternalError", 500, cloud.Lost},
		{"HTTP.502", 502, cloud.Lost},
		{"Unheard", 500, cloud.Lost},
		{"Unheard", 400, cloud.Permanent},
		{"", 0, cloud.Permanent},
	} {
		if got := classify(c.code, c.status); got != c.want {
			t.Errorf("classify(%q, %d) = %s, want %s", c.code, c.status, got, c.want)
		}
	}
}

// What a call failed with decides whether the planner may assume that nothing
// was done.
func TestFailureOfACall(t *testing.T) {
	for _, c := range []struct {
		name  string
		reply reply
		class cloud.Class
		code  string
	}{
		{"refused for good", refused(400, "InvalidCidrBlock.Malformed"), cloud.Permanent, "InvalidCidrBlock.Malformed"},
		{"server error", refused(500, "InternalError"), cloud.Lost, "InternalError"},
		{"a proxy's page", reply{status: 502, body: "<html>Bad gateway</html>"}, cloud.Lost, "HTTP.502"},
		{"a refusing proxy's page", reply{status: 407, body: ""}, cloud.Permanent, "HTTP.407"},
		{"a redirect", reply{status: 302, header: map[string]string{"Location": "/elsewhere"}}, cloud.Permanent, "HTTP.302"},
		{"not JSON", reply{body: "hello"}, cloud.Lost, ""},
		{"half an answer", reply{header: map[string]string{"Content-Length": "500"}, body: `{"Succ`}, cloud.Lost, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := newStub(t)
			s.on("CreateRouteEntries", c.reply)
			_, err := s.provider().Routes().Apply(t.Context(), []cloud.RouteChange{change("10.244.1.0/24", "i-1")})
			var e *cloud.Error
			if !errors.As(err, &e) {
				t.Fatalf("error %v (%T), want a *cloud.Error", err, err)
			}
			if e.Class != c.class || e.Code != c.code || e.Action != "CreateRouteEntries" {
				t.Errorf("class %s code %q action %q, want %s %q", e.Class, e.Code, e.Action, c.class, c.code)
			}
			if n := len(s.calls("CreateRouteEntries")); n != 1 {
				t.Errorf("%d calls: a change is never retried below the planner", n)
			}
		})
	}
}

func TestNothingSentIsUnreachable(t *testing.T) {
	server := httptest.NewServer(http.NotFoundHandler())
	server.Close()
	_, err := openAt(t, server.URL).Routes().Apply(t.Context(), []cloud.RouteChange{change("10.244.1.0/24", "i-1")})
	if !cloud.Is(err, cloud.Unreachable) || !strings.Contains(err.Error(), "was not asked") || !strings.Contains(err.Error(), "--cloud-endpoint") {
		t.Errorf("%v is %s, want unreachable: the connection was refused", err, cloud.ClassOf(err))
	}
}

// TestTheEndpointInsideTheVPC: from elsewhere nothing answers there, and what to
// give instead is said.
func TestTheEndpointInsideTheVPC(t *testing.T) {
	p := openAt(t, "", func(o *Options) { o.HTTP = noWay{} })
	_, err := p.Routes().List(t.Context())
	if !cloud.Is(err, cloud.Unreachable) || !strings.HasSuffix(err.Error(), publicEndpoint+": dial tcp: lookup vpc-vpc.cn-chengdu.aliyuncs.com: no such host") {
		t.Errorf("%v is %s", err, cloud.ClassOf(err))
	}
}

// noWay is a network in which the VPC's names are not known.
type noWay struct{}

// Call fails as net/http does.
func (noWay) Call(req *http.Request, _ *http.Transport) (*http.Response, error) {
	return nil, &url.Error{Op: "Post", URL: req.URL.String(), Err: &net.OpError{Op: "dial", Net: "tcp", Err: &net.DNSError{Err: "no such host", Name: req.URL.Host}}}
}

func TestGivingUpIsLost(t *testing.T) {
	s := newStub(t)
	ctx, cancel := context.WithCancel(t.Context())
	held := make(chan struct{})
	t.Cleanup(func() { close(held) })
	s.on("CreateRouteEntries", reply{before: func() { cancel(); <-held }})
	_, err := s.provider().Routes().Apply(ctx, []cloud.RouteChange{change("10.244.1.0/24", "i-1")})
	if !cloud.Is(err, cloud.Lost) || !errors.Is(err, context.Canceled) {
		t.Errorf("%v is %s, want lost: the request had gone out", err, cloud.ClassOf(err))
	}
}

func TestReadsAreRetried(t *testing.T) {
	s := newStub(t)
	s.on("DescribeRouteEntryList", refused(400, "Throttling.User"), refused(503, "ServiceUnavailable"),
		reply{body: entriesBody("", entryJSON("rte-1", "10.244.1.0/24", "Instance", "i-1", "Available", ""))})
	listing, err := s.provider().Routes().List(t.Context())
	if err != nil || len(listing.Entries) != 1 {
		t.Fatalf("List: %v, %v", listing, err)
	}
	s.on("DescribeRouteEntryList", refused(400, "Throttling.User"))
	before := len(s.calls("DescribeRouteEntryList"))
	if _, err := s.provider().Routes().List(t.Context()); !cloud.Is(err, cloud.Throttled) {
		t.Errorf("List: %v, want throttled", err)
	}
	if n := len(s.calls("DescribeRouteEntryList")) - before; n != readTries {
		t.Errorf("%d tries, want %d", n, readTries)
	}
	s.on("DescribeRouteEntryList", refused(403, "Forbidden.RAM"))
	before = len(s.calls("DescribeRouteEntryList"))
	if _, err := s.provider().Routes().List(t.Context()); !cloud.Is(err, cloud.Forbidden) {
		t.Errorf("List: %v, want forbidden", err)
	}
	if n := len(s.calls("DescribeRouteEntryList")) - before; n != 1 {
		t.Errorf("%d tries of what is forbidden, want 1", n)
	}
}

// The header tells how long the window still lasts; until then the action is not
// called, whoever asks.
func TestThrottlingIsRespected(t *testing.T) {
	s := newStub(t)
	throttled := refused(400, "Throttling.Api")
	throttled.header = map[string]string{"x-ratelimit-user-api": "Limit:1,Remain:0,TimeLeft:60000"}
	s.on("CreateRouteEntries", throttled, reply{body: `{"SuccessCount":1,"FailedCount":0,"RouteEntryIds":["rte-1"]}`})
	s.on("DeleteRouteEntries", reply{body: `{"SuccessCount":1,"FailedCount":0}`})
	p := s.provider()
	now := time.Now()
	p.call.now = func() time.Time { return now }

	changes := []cloud.RouteChange{change("10.244.1.0/24", "i-1")}
	_, err := p.Routes().Apply(t.Context(), changes)
	if !cloud.Is(err, cloud.Throttled) || cloud.AfterOf(err) != time.Minute {
		t.Fatalf("%v after %s, want throttled for a minute", err, cloud.AfterOf(err))
	}
	now = now.Add(20 * time.Second)
	if _, err = p.Routes().Apply(t.Context(), changes); !cloud.Is(err, cloud.Throttled) || cloud.AfterOf(err) != 40*time.Second {
		t.Errorf("%v after %s, want throttled for another 40 s", err, cloud.AfterOf(err))
	}
	if n := len(s.calls("CreateRouteEntries")); n != 1 {
		t.Errorf("%d calls while the cloud asked for patience", n)
	}
	mine := cloud.RouteEntry{ID: "rte-9", Table: testTable, Dst: prefix("10.244.9.0/24"), Owner: testUID}
	if _, err := p.Routes().Withdraw(t.Context(), []cloud.RouteEntry{mine}); err != nil {
		t.Errorf("another action is held too: %v", err)
	}
	now = now.Add(41 * time.Second)
	if results, err := p.Routes().Apply(t.Context(), changes); err != nil || results[0].Err != nil {
		t.Errorf("after the minute: %v, %v", results, err)
	}
}

// What only reads waits as long as the cloud asks, within reason and within its
// context.
func TestReadsWaitAsAsked(t *testing.T) {
	throttled := func(ms int) reply {
		r := refused(400, "Throttling.Api")
		r.header = map[string]string{"x-ratelimit-user-api": fmt.Sprint("Limit:1,Remain:0,TimeLeft:", ms)}
		return r
	}
	s := newStub(t)
	s.on("DescribeInstances", throttled(80), reply{body: `{"Instances":{"Instance":[]}}`})
	start := time.Now()
	if _, err := s.provider().Instances().List(t.Context()); err != nil || time.Since(start) < 80*time.Millisecond {
		t.Errorf("%v after %s, want a wait of 80 ms", err, time.Since(start))
	}

	s.on("DescribeInstances", throttled(20_000))
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	if _, err := s.provider().Instances().List(ctx); !errors.Is(err, context.DeadlineExceeded) || cloud.ActionOf(err) != "DescribeInstances" {
		t.Errorf("%v, want the context's end", err)
	}

	s.on("DescribeInstances", throttled(3_600_000))
	if _, err := s.provider().Instances().List(t.Context()); !cloud.Is(err, cloud.Throttled) || cloud.AfterOf(err) < 59*time.Minute {
		t.Errorf("%v after %s, want throttled for an hour, at once", err, cloud.AfterOf(err))
	}
}

// The real server repeats what it signed, security token included.
func TestNoSecretInErrorsAndLogs(t *testing.T) {
	s := newStub(t)
	const key, token = "the-secret-key", "the-secret-token"
	s.on("DescribeInstances", reply{status: 400, body: fmt.Sprintf(`{"Code":"SignatureDoesNotMatch","RequestId":"R","Message":"server string to sign is: x-acs-security-token:%s %s"}`, token, key)})
	var log bytes.Buffer
	p := s.provider(func(o *Options) {
		o.Secret = secret("LTAItest\n", key+"\n", token)
		o.Log = slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	})
	_, err := p.Instances().List(t.Context())
	if !cloud.Is(err, cloud.Unauthenticated) {
		t.Fatalf("%v, want unauthenticated", err)
	}
	if s.calls("DescribeInstances")[0].header.Get("x-acs-security-token") != token {
		t.Error("the token was not sent: space around it was kept, or it was not used")
	}
	for _, text := range []string{err.Error(), fmt.Sprintf("%+v", err), fmt.Sprintf("%#v", p.call.keys), log.String()} {
		if strings.Contains(text, key) || strings.Contains(text, token) {
			t.Errorf("a secret in %q", text)
		}
	}
}

func TestForbiddenNamesTheAction(t *testing.T) {
	s := newStub(t)
	s.on("DescribeInstances", refused(403, "Forbidden.RAM"))
	_, err := s.provider().Instances().List(t.Context())
	if !cloud.Is(err, cloud.Forbidden) || cloud.ActionOf(err) != "DescribeInstances" || !strings.Contains(err.Error(), "ecs:DescribeInstances") {
		t.Errorf("%v: want forbidden, with the action to allow", err)
	}
}

// TestARefusalIsTheSameEachTime: the ids of requests are kept, beside the text.
func TestARefusalIsTheSameEachTime(t *testing.T) {
	s := newStub(t)
	s.on("DescribeInstances", refused(403, "Forbidden.RAM"))
	i := s.provider().Instances()
	_, first := i.List(t.Context())
	_, second := i.List(t.Context())
	if first.Error() != second.Error() {
		t.Errorf("%q, then %q", first, second)
	}
	if a, b := cloud.RequestOf(first), cloud.RequestOf(second); a != "R-1" || b != "R-2" {
		t.Errorf("requests %q and %q", a, b)
	}
}

func TestEveryCallIsObserved(t *testing.T) {
	s := newStub(t)
	s.on("DescribeInstances", refused(503, "ServiceUnavailable"), reply{body: `{"Instances":{"Instance":[]}}`})
	var seen []string
	p := s.provider(func(o *Options) {
		o.Called = func(action string, _ time.Duration, err error) {
			seen = append(seen, fmt.Sprint(action, " ", err == nil))
		}
	})
	if _, err := p.Instances().List(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := strings.Join(seen, ", "); got != "DescribeInstances false, DescribeInstances true" {
		t.Errorf("observed %s", got)
	}
}

func TestEndpoints(t *testing.T) {
	for _, c := range []struct{ override, want, refused string }{
		{"", "https://vpc-vpc.cn-chengdu.aliyuncs.com", ""},
		{"http://10.0.0.9:8080", "http://10.0.0.9:8080", ""},
		{"http://10.0.0.9:8080/", "http://10.0.0.9:8080", ""},
		{"cloud.lab:443", "https://cloud.lab:443", ""},
		{"{product}.{region}.aliyuncs.com", "https://vpc.cn-chengdu.aliyuncs.com", ""},
		{"http://a/b", "", "no path"},
		{"ftp://a", "", "http(s)"},
		{"http://user:word@a", "", "user"},
		{"http://[", "", "spec.cloud.endpoint"},
	} {
		at, err := endpointOf(vpcAPI(), testRegion, c.override)
		switch {
		case c.refused != "":
			if err == nil || !strings.Contains(err.Error(), c.refused) {
				t.Errorf("%q: %v, want an error with %q", c.override, err, c.refused)
			}
		case err != nil || at.protocol+"://"+at.host != c.want:
			t.Errorf("%q: %v, %v, want %s", c.override, at, err, c.want)
		}
	}
}

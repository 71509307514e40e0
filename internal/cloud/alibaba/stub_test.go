package alibaba

import (
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"ropeway.dev/ropeway/internal/cloud"
)

const (
	testRegion = "cn-chengdu"
	testVPC    = "vpc-2vc1"
	testTable  = "vtb-2vc1"
	testUID    = "6f1b5a0e-0d4c-4a3f-9c39-2a5a0f5f3a11"
)

// reply is one scripted answer.
type reply struct {
	status int // 0 means 200
	header map[string]string
	body   string
	before func() // runs before the answer goes out
}

// stub is a server that answers each action as it is told: the scripted replies
// in order, the last one again and again.
type stub struct {
	t      *testing.T
	server *httptest.Server

	mu      sync.Mutex
	replies map[string][]reply
	asked   []asked
}

type asked struct {
	action, version string
	params          map[string]string
	header          http.Header
}

func newStub(t *testing.T) *stub {
	t.Helper()
	s := &stub{t: t, replies: map[string][]reply{}}
	s.server = httptest.NewServer(s)
	t.Cleanup(s.server.Close)
	s.on("DescribeRouteTableList", reply{body: tablesBody(tableJSON(testTable, "VSwitch", "vsw-1"))})
	return s
}

func (s *stub) on(action string, replies ...reply) { s.replies[action] = replies }

func (s *stub) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	_, _ = io.Copy(io.Discard, r.Body)
	action := r.Header.Get("x-acs-action")
	params := map[string]string{}
	for name, values := range r.URL.Query() {
		params[name] = values[0]
	}
	s.mu.Lock()
	request := fmt.Sprintf("R-%d", len(s.asked)+1)
	s.asked = append(s.asked, asked{action, r.Header.Get("x-acs-version"), params, r.Header.Clone()})
	script := s.replies[action]
	if len(script) > 1 {
		s.replies[action] = script[1:]
	}
	s.mu.Unlock()
	if len(script) == 0 {
		w.WriteHeader(http.StatusNotFound)
		fmt.Fprintf(w, `{"Code":"InvalidApi.NotFound","Message":"no script for %s"}`, action)
		return
	}
	now := script[0]
	if now.before != nil {
		now.before()
	}
	for name, value := range now.header {
		w.Header().Set(name, value)
	}
	if now.status != 0 {
		w.WriteHeader(now.status)
	}
	_, _ = io.WriteString(w, strings.ReplaceAll(now.body, anyRequest, request))
}

// calls returns the parameters of every call of an action.
func (s *stub) calls(action string) []asked {
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []asked
	for _, a := range s.asked {
		if a.action == action {
			out = append(out, a)
		}
	}
	return out
}

func (s *stub) provider(change ...func(*Options)) *Provider {
	s.t.Helper()
	return openAt(s.t, s.server.URL, change...)
}

// openAt opens a provider on a server, with keys from a Secret and no pauses.
func openAt(t *testing.T, url string, change ...func(*Options)) *Provider {
	t.Helper()
	o := Options{
		Settings: cloud.Settings{Region: testRegion, VPC: testVPC, Endpoint: url, Secret: secret("LTAItest", "hush-hush", "")},
		Pause:    time.Millisecond,
		Log:      slog.New(slog.DiscardHandler),
	}
	for _, c := range change {
		c(&o)
	}
	p, err := Open(t.Context(), o)
	if err != nil {
		t.Fatalf("Open: %v", err)
	}
	return p
}

func secret(id, key, token string) map[string][]byte {
	data := map[string][]byte{SecretKeyID: []byte(id), SecretKeySecret: []byte(key)}
	if token != "" {
		data[SecretToken] = []byte(token)
	}
	return data
}

// anyRequest stands for the id of the request, another one in each answer.
const anyRequest = "R-ANY"

func refused(status int, code string) reply {
	return reply{status: status, body: fmt.Sprintf(`{"RequestId":%q,"HostId":"h","Code":%q,"Message":"words about %s, RequestId: %s","Recommend":"x"}`, anyRequest, code, code, anyRequest)}
}

func tableJSON(id, associate string, vswitches ...string) string {
	list, _ := json.Marshal(append([]string{}, vswitches...))
	return fmt.Sprintf(`{"RouteTableId":%q,"RouteTableType":"System","AssociateType":%q,"VpcId":%q,"VSwitchIds":{"VSwitchId":%s}}`, id, associate, testVPC, list)
}

func tablesBody(tables ...string) string {
	return fmt.Sprintf(`{"TotalCount":%d,"RouterTableList":{"RouterTableListType":[%s]}}`, len(tables), join(tables))
}

func entryJSON(id, dst, hopType, hop, status, description string) string {
	return fmt.Sprintf(`{"RouteEntryId":%q,"DestinationCidrBlock":%q,"Type":"Custom","Status":%q,"Description":%q,"NextHops":{"NextHop":[{"NextHopId":%q,"NextHopType":%q}]}}`,
		id, dst, status, description, hop, hopType)
}

func entriesBody(next string, entries ...string) string {
	return fmt.Sprintf(`{"NextToken":%q,"RouteEntrys":{"RouteEntry":[%s]}}`, next, join(entries))
}

func join(parts []string) string {
	out := ""
	for i, p := range parts {
		if i > 0 {
			out += ","
		}
		out += p
	}
	return out
}

func prefix(s string) netip.Prefix { return netip.MustParsePrefix(s) }

func change(dst, hop string) cloud.RouteChange {
	return cloud.RouteChange{Table: testTable, Dst: prefix(dst), NextHop: hop, Owner: testUID}
}

// classes are the classes of results, "ok" for success.
func classes(results []cloud.RouteResult) []string {
	out := make([]string, 0, len(results))
	for _, r := range results {
		if r.Err == nil {
			out = append(out, "ok")
			continue
		}
		out = append(out, cloud.ClassOf(r.Err).String())
	}
	return out
}

package openapi

import (
	"time"
)

// keptCalls is how many calls are remembered one by one.
const keptCalls = 1000

// Call is one call that was answered, or was meant not to be.
type Call struct {
	Time      time.Time `json:"time"`
	Action    string    `json:"action"`
	Version   string    `json:"version"`
	Principal string    `json:"principal"`
	// Code is the error's; empty when the call was done.
	Code     string   `json:"code,omitempty"`
	Entries  int      `json:"entries,omitempty"` // of a batch
	Duration Duration `json:"duration"`
}

// calls remembers calls.
type calls struct {
	counts map[string]map[string]int // action -> code, "OK" when done -> calls
	last   []Call
}

func newCalls() calls { return calls{counts: map[string]map[string]int{}} }

// record remembers a call.
func (s *Server) record(q *request, c *call, err error, began time.Time) {
	one := Call{
		Time: began, Action: q.action, Version: q.version, Principal: c.principal,
		Entries: len(q.params.objects("RouteEntries")), Duration: Duration(s.now().Sub(began)),
	}
	result := "OK"
	if err != nil {
		one.Code = asAPIError(err).Code
		result = one.Code
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.calls.counts[q.action] == nil {
		s.calls.counts[q.action] = map[string]int{}
	}
	s.calls.counts[q.action][result]++
	if len(s.calls.last) == keptCalls {
		s.calls.last = s.calls.last[1:]
	}
	s.calls.last = append(s.calls.last, one)
	s.log.Info("call", "action", q.action, "by", c.principal, "result", result, "entries", one.Entries, "request", c.requestID)
}

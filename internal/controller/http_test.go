package controller

import (
	"net/http"
	"net/http/httptest"
	"testing"
	"time"
)

// TestStuckLeader: a replica that leads and does not look at the cluster any more is not
// alive; one that does not lead has nothing to look at.
func TestStuckLeader(t *testing.T) {
	began := time.Unix(1000, 0)
	for _, test := range []struct {
		leads bool
		since time.Duration
		want  int
	}{
		{true, time.Minute, http.StatusOK},
		{true, stuckAfter + time.Second, http.StatusServiceUnavailable},
		{false, stuckAfter + time.Second, http.StatusOK},
	} {
		c := &controller{now: func() time.Time { return began.Add(test.since) }}
		c.leading.Store(test.leads)
		c.beat.Store(began.UnixNano())
		answer := httptest.NewRecorder()
		c.answerHealthy(answer, nil)
		if answer.Code != test.want {
			t.Errorf("%+v: %d %s", test, answer.Code, answer.Body)
		}
	}
}

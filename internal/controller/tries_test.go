package controller

import (
	"fmt"
	"strings"
	"testing"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

// TestWhatIsForbiddenForAllIsTriedForAFew: thousands of refusals a second would
// follow, and one line of the log with all of them.
func TestWhatIsForbiddenForAllIsTriedForAFew(t *testing.T) {
	refusal := func(i int) error {
		return fmt.Errorf("write node %d: %w", i, apierrors.NewForbidden(schema.GroupResource{Resource: "nodes"}, fmt.Sprint(i), nil))
	}
	var all, single tries
	tried := 0
	for i := range 5000 {
		single.note(refusal(i))
		single.note(nil)
		if !all.over() {
			tried++
			all.note(refusal(i))
		}
	}
	if tried != mostForbidden || len(all.err().Error()) > 1000 || !strings.Contains(all.err().Error(), "and 11 more") {
		t.Errorf("%d were tried, and it is said as %v", tried, all.err())
	}
	if single.over() || !strings.Contains(single.err().Error(), "and 4995 more") {
		t.Errorf("what is about single objects ends the round, or is said as %v", single.err())
	}
}

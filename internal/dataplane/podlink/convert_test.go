package podlink_test

import (
	"testing"

	"ropeway.dev/ropeway/internal/dataplane"
	"ropeway.dev/ropeway/internal/dataplane/podlink"
)

// The conversion compiles only while the fields are the same.
func TestLinkConvertsToPodLink(t *testing.T) {
	l := dataplane.PodLink(podlink.Link{Name: "rwp1", Index: 3})
	if l.Name != "rwp1" || l.Index != 3 {
		t.Error(l)
	}
}

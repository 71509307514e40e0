package scenario

import (
	"testing"
	"time"

	"ropeway.dev/ropeway/internal/lab/openapi"
)

// TestSweepsSince counts the vendor's own looks only, those that were answered.
func TestSweepsSince(t *testing.T) {
	began := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	vendor, ours := openapi.AccessKey{ID: "vendor"}, openapi.AccessKey{ID: "ours"}
	call := func(action, principal, code string, after time.Duration) openapi.Call {
		return openapi.Call{Action: action, Principal: principal, Code: code, Time: began.Add(after)}
	}
	const tables = "DescribeRouteTableList"
	snapshot := openapi.Snapshot{Spec: openapi.Spec{Key: ours, VendorKey: vendor}, Calls: []openapi.Call{
		call(tables, vendor.Principal(), "", -time.Second),
		call(tables, vendor.Principal(), "", time.Second),
		call(tables, ours.Principal(), "", time.Second),
		call(tables, "role/RopewayLab/i-1", "", time.Second),
		call(tables, vendor.Principal(), "Throttling", time.Second),
		call("DescribeRouteEntryList", vendor.Principal(), "", time.Second),
		call(tables, vendor.Principal(), "", 2*time.Second),
	}}
	if n := sweepsSince(snapshot, began); n != 2 {
		t.Errorf("%d sweeps, want 2", n)
	}
}

package openapi

import (
	"fmt"
	"testing"
)

// TestScale: 5,000 nodes' entries are made and listed in no more calls than
// the API's limits ask for, fast enough to be a test bed.
func TestScale(t *testing.T) {
	const nodes = 5000
	c := newCloud(t, func(s *Spec) { s.Settings.Quota = nodes })
	for from := 0; from < nodes; from += maxBatch {
		parameters := map[string]string{}
		for i := range maxBatch {
			key := fmt.Sprintf("RouteEntries.%d.", i+1)
			n := from + i
			parameters[key+"RouteTableId"], parameters[key+"NextHop"] = testTable, "i-a"
			parameters[key+"DstCidrBlock"] = fmt.Sprintf("10.%d.%d.0/24", 100+n/256, n%256)
		}
		if body, err := c.call("vpc", "CreateRouteEntries", parameters); err != nil || fmt.Sprint(body["SuccessCount"]) != "50" {
			t.Fatalf("batch from %d: %v, %v", from, body, err)
		}
	}
	seen, token := map[string]bool{}, ""
	for pages := 1; ; pages++ {
		body, err := c.call("vpc", "DescribeRouteEntryList", map[string]string{
			"RouteTableId": testTable, "RouteEntryType": "Custom", "MaxResult": "500", "NextToken": token})
		if err != nil {
			t.Fatal(err)
		}
		for _, dst := range rows(body, []string{"DestinationCidrBlock"}) {
			seen[dst] = true
		}
		if token = body["NextToken"].(string); token == "" {
			if pages != nodes/maxPage || len(seen) != nodes {
				t.Errorf("%d entries on %d pages, want %d on %d", len(seen), pages, nodes, nodes/maxPage)
			}
			return
		}
	}
}

package alibaba

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"ropeway.dev/ropeway/internal/cloud"
)

// tablesKept is how long found route tables are not asked for again. Tables come
// and go with a person's work on the VPC; an entry's own listing fails at once
// when its table is gone.
const tablesKept = 10 * time.Minute

const tablesPage = 50 // the most that DescribeRouteTableList gives

// tableCache are the tables of the last successful look.
type tableCache struct {
	mu    sync.Mutex
	ids   []string
	until time.Time
}

// routeTable is one of DescribeRouteTableList's.
type routeTable struct {
	ID            string `json:"RouteTableId"`
	Kind          string `json:"RouteTableType"` // System or Custom
	AssociateType string // VSwitch or Gateway; old tables have none
	VPC           string `json:"VpcId"`
	VSwitchIDs    struct {
		VSwitchID []string `json:"VSwitchId"`
	} `json:"VSwitchIds"`
}

func (t routeTable) gateway() bool { return strings.EqualFold(t.AssociateType, "Gateway") }

// usedTables returns the tables that entries are written to.
func (p *Provider) usedTables(ctx context.Context) ([]string, error) {
	p.found.mu.Lock()
	defer p.found.mu.Unlock()
	if p.call.now().Before(p.found.until) {
		return p.found.ids, nil
	}
	all, err := p.describeTables(ctx)
	if err != nil {
		return nil, err
	}
	ids, err := chooseTables(all, p.tables, p.vpc)
	if err != nil {
		return nil, err
	}
	p.found.ids, p.found.until = ids, p.call.now().Add(tablesKept)
	return ids, nil
}

// forgetTables makes the next look a real one.
func (p *Provider) forgetTables() {
	p.found.mu.Lock()
	defer p.found.mu.Unlock()
	p.found.until = time.Time{}
}

// describeTables lists all route tables of the VPC.
func (p *Provider) describeTables(ctx context.Context) ([]routeTable, error) {
	const action = "DescribeRouteTableList"
	var all []routeTable
	for page := 1; ; page++ {
		var answer struct {
			TotalCount      int
			RouterTableList struct {
				RouterTableListType []routeTable
			}
		}
		params := map[string]string{"VpcId": p.vpc, "PageNumber": strconv.Itoa(page), "PageSize": strconv.Itoa(tablesPage)}
		if err := p.call.read(ctx, vpcAPI(), action, params, &answer); err != nil {
			return nil, err
		}
		part := answer.RouterTableList.RouterTableListType
		all = append(all, part...)
		if len(part) == 0 || len(all) >= answer.TotalCount {
			break
		}
	}
	// The filter is the server's; an entry in another VPC's table would be
	// somebody else's traffic.
	return slices.DeleteFunc(all, func(t routeTable) bool { return t.VPC != "" && t.VPC != p.vpc }), nil
}

// chooseTables checks the configured tables, or finds the only one that node
// traffic can follow. It never guesses between several: the wrong one spends its
// quota and carries nothing.
func chooseTables(all []routeTable, configured []string, vpc string) ([]string, error) {
	refuse := func(format string, args ...any) ([]string, error) {
		return nil, &cloud.Error{Class: cloud.Permanent, Action: "DescribeRouteTableList", Code: "ropeway.RouteTables", Message: fmt.Sprintf(format, args...)}
	}
	if len(all) == 0 {
		return refuse("VPC %s has no route table that these credentials can see: see spec.cloud.vpcID, spec.cloud.regionID and the RAM policy", vpc)
	}
	for _, id := range configured {
		at := slices.IndexFunc(all, func(t routeTable) bool { return t.ID == id })
		switch {
		case at < 0:
			return refuse("VPC %s has no route table %s: see spec.cloud.routeTableIDs", vpc, id)
		case all[at].gateway():
			return refuse("route table %s is a gateway's, which node traffic does not follow: take it out of spec.cloud.routeTableIDs", id)
		}
	}
	if len(configured) > 0 {
		return slices.Compact(slices.Sorted(slices.Values(configured))), nil
	}
	usable := slices.DeleteFunc(slices.Clone(all), routeTable.gateway)
	bound := slices.DeleteFunc(slices.Clone(usable), func(t routeTable) bool { return len(t.VSwitchIDs.VSwitchID) == 0 })
	if len(bound) > 0 {
		usable = bound
	}
	if len(usable) != 1 {
		names := make([]string, 0, len(usable))
		for _, t := range usable {
			names = append(names, t.ID)
		}
		return refuse("VPC %s has %d route tables (%s): name those of the nodes' vSwitches in spec.cloud.routeTableIDs", vpc, len(usable), strings.Join(names, ", "))
	}
	return []string{usable[0].ID}, nil
}

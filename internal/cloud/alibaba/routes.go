package alibaba

import (
	"context"
	"fmt"
	"net/netip"
	"strings"

	"ropeway.dev/ropeway/internal/cloud"
)

// entriesPage is the most that DescribeRouteEntryList gives in one page.
const entriesPage = "100"

// hopInstance is how the API spells an instance as next hop.
const hopInstance = "Instance"

// routes are the VPC's custom route entries.
type routes struct{ p *Provider }

// routeEntry is one of DescribeRouteEntryList's.
type routeEntry struct {
	ID          string `json:"RouteEntryId"`
	Dst         string `json:"DestinationCidrBlock"`
	Type        string
	Status      string
	Description string
	NextHops    struct {
		NextHop []struct {
			ID   string `json:"NextHopId"`
			Type string `json:"NextHopType"`
		}
	}
}

// List lists every custom entry of the used tables. Entries whose destination
// is not a range of addresses (prefix lists) are left out: no destination of
// ours can be the same.
func (r routes) List(ctx context.Context) (cloud.Listing, error) {
	tables, err := r.p.usedTables(ctx)
	if err != nil {
		return cloud.Listing{}, err
	}
	var listing cloud.Listing
	for _, table := range tables {
		entries, err := r.listTable(ctx, table)
		if err != nil {
			if e := cloud.ClassOf(err); e == cloud.Permanent {
				r.p.forgetTables()
			}
			return cloud.Listing{}, err
		}
		listing.Tables = append(listing.Tables, cloud.Table{ID: table})
		listing.Entries = append(listing.Entries, entries...)
	}
	return listing, nil
}

// listTable lists one table's custom entries. An answer without any is believed
// only when the table shows its system entries, which every table has: rights
// that are cut down and a wrong region also answer with nothing.
func (r routes) listTable(ctx context.Context, table string) ([]cloud.RouteEntry, error) {
	found, err := r.describe(ctx, table, "Custom")
	if err != nil {
		return nil, err
	}
	if len(found) == 0 {
		all, err := r.describe(ctx, table, "")
		if err != nil {
			return nil, err
		}
		if len(all) == 0 {
			return nil, &cloud.Error{Class: cloud.Lost, Action: "DescribeRouteEntryList", Code: "ropeway.EmptyTable",
				Message: fmt.Sprintf("route table %s shows not even its system entries: the answer is not believed; see the RAM policy and spec.cloud.regionID", table)}
		}
		found = all // an entry may have come in between
	}
	var entries []cloud.RouteEntry
	seen := map[netip.Prefix]bool{}
	for _, e := range found {
		entry, ok := e.entry(table)
		if !ok {
			r.p.call.log.Debug("route entry left out", "table", table, "entry", e.ID, "type", e.Type, "destination", e.Dst)
			continue
		}
		if !seen[entry.Dst] { // pages overlap when entries go while they are read
			seen[entry.Dst] = true
			entries = append(entries, entry)
		}
	}
	return entries, nil
}

func (r routes) describe(ctx context.Context, table, kind string) ([]routeEntry, error) {
	const action = "DescribeRouteEntryList"
	var all []routeEntry
	err := pages(action, func(token string) (string, error) {
		params := map[string]string{"RouteTableId": table, "MaxResult": entriesPage}
		if kind != "" {
			params["RouteEntryType"] = kind
		}
		if token != "" {
			params["NextToken"] = token
		}
		var answer struct {
			NextToken   string
			RouteEntrys struct{ RouteEntry []routeEntry }
		}
		if err := r.p.call.read(ctx, vpcAPI(), action, params, &answer); err != nil {
			return "", err
		}
		all = append(all, answer.RouteEntrys.RouteEntry...)
		return answer.NextToken, nil
	})
	return all, err
}

// entry says the entry in our words; false for one that is not a custom entry
// for a range of addresses.
func (e routeEntry) entry(table string) (cloud.RouteEntry, bool) {
	dst, ok := parseDst(e.Dst)
	if !ok || e.Type != "" && !strings.EqualFold(e.Type, "Custom") {
		return cloud.RouteEntry{}, false
	}
	out := cloud.RouteEntry{
		ID: e.ID, Table: table, Dst: dst, State: stateOf(e.Status),
		Owner: cloud.OwnerOf(e.Description), Description: e.Description,
	}
	hops := e.NextHops.NextHop
	switch {
	case len(hops) == 0:
		out.HopType = "none"
	case len(hops) > 1:
		out.HopType = "several"
	case strings.EqualFold(hops[0].Type, hopInstance):
		out.HopType, out.NextHop = hopInstance, hops[0].ID
	default:
		out.HopType = hops[0].Type
	}
	return out, true
}

// parseDst reads a destination as the API spells it; a bare address stands for
// itself alone.
func parseDst(text string) (netip.Prefix, bool) {
	if addr, err := netip.ParseAddr(text); err == nil {
		return netip.PrefixFrom(addr, addr.BitLen()), true
	}
	dst, err := netip.ParsePrefix(text)
	return dst.Masked(), err == nil
}

// stateOf reads both vocabularies of the pages: the lists' and the creations'.
func stateOf(status string) cloud.RouteState {
	switch status {
	case "Available", "Created":
		return cloud.Available
	case "Pending", "Creating":
		return cloud.Pending
	case "Modifying":
		return cloud.Modifying
	case "Deleting":
		return cloud.Deleting
	}
	return cloud.Unknown
}

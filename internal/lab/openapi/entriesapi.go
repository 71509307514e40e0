package openapi

import "net/http"

// While an entry of the VPC is in a passing state, nothing else may be
// written. Which code says so depends on the action: the pages of the single
// actions have one each (one of them misspelt), those of the batches
// TaskConflict.

func (s *Server) createRouteEntry(c *call) (answer, error) {
	p := c.params
	for _, name := range []string{"RouteTableId", "DestinationCidrBlock"} {
		if _, err := p.need(name); err != nil {
			return nil, err
		}
	}
	w := wanted{
		table: p["RouteTableId"], dst: p["DestinationCidrBlock"], nextHop: p["NextHopId"], nextHopType: p["NextHopType"],
		name: p["RouteEntryName"], description: p["Description"],
	}
	token := p["ClientToken"]
	if known, found := s.state.Tokens[token]; token != "" && found {
		if known.Request != w.summary() {
			return nil, bad("IdempotentParameterMismatch", "The request uses the same client token as a previous, but non-identical request.")
		}
		return answer{"RouteEntryId": known.Entry}, nil
	}
	if s.state.passing() {
		return nil, bad("IncorrectRouteEntryStatus", "Some route entry status blocked this operation.")
	}
	if dry, err := p.flag("DryRun"); err != nil || dry {
		return nil, s.dryRun(w, err)
	}
	if c.elsewhere {
		return nil, notFound("InvalidRouteTableId.NotFound", "Specified route table %q does not exist.", w.table)
	}
	e, refused := s.add(w, c.hit)
	if refused != nil {
		return nil, refused
	}
	if token != "" {
		s.state.Tokens[token] = clientToken{Entry: e.ID, Request: w.summary()}
	}
	return answer{"RouteEntryId": e.ID}, nil
}

// dryRun is the answer to a request that is to be checked only.
func (s *Server) dryRun(w wanted, err error) error {
	if err != nil {
		return err
	}
	before, sequence := len(s.state.Entries), s.state.Sequence
	_, refused := s.add(w, nil)
	s.state.Entries, s.state.Sequence = s.state.Entries[:before], sequence
	if refused != nil {
		return refused
	}
	return bad("DryRunOperation", "Request validation has been passed with DryRun flag set.")
}

// batch reads the entries of a batch, and makes sure that it may run.
func (s *Server) batch(c *call) ([]params, error) {
	entries := c.params.objects("RouteEntries")
	if len(entries) == 0 {
		return nil, missing("RouteEntries")
	}
	if len(entries) > maxBatch {
		return nil, bad("InvalidParameter.RouteEntries", "A batch has at most %d route entries, this one has %d.", maxBatch, len(entries))
	}
	if s.state.passing() {
		return nil, taskConflict()
	}
	for _, p := range entries {
		if _, found := s.state.table(p["RouteTableId"]); !found || c.elsewhere {
			return nil, notFound("InvalidRouteTableId.NotFound", "Specified route table %q does not exist.", p["RouteTableId"])
		}
	}
	return entries, nil
}

// batchCode translates an error of an entry into what a batch calls it. The
// vendor lists few of these; the others keep the single action's name.
func batchCode(code string) string {
	switch code {
	case "InvalidCIDRBlock.Duplicate":
		return "VPC_ROUTE_ENTRY_CIDR_BLOCK_DUPLICATE"
	case "InvalidRouteEntry.NotFound":
		return "VPC_ROUTER_ENTRY_NOT_EXIST"
	case "IncorrcetRouteEntryStatus":
		return "VPC_ROUTE_ENTRY_STATUS_ERROR"
	}
	return code
}

func failedEntry(p params, refused *apiError) answer {
	return answer{
		"RouteTableId": p["RouteTableId"], "RouteEntryId": p["RouteEntryId"], "DstCidrBlock": p["DstCidrBlock"], "NextHop": p["NextHop"],
		"FailedCode": batchCode(refused.Code), "FailedMessage": refused.Message,
	}
}

// checkVersion wants an entry's IpVersion, 4 when left out, to be its
// destination's family. That is the strictest reading of the page, which has 4 and
// 6 as values and says nothing of a mismatch; what the live API does with one is
// not established.
func checkVersion(p params) *apiError {
	version, family := first(p["IpVersion"], "4"), "4"
	if ipVersion(p["DstCidrBlock"]) == "ipv6" {
		family = "6"
	}
	if version != family {
		return bad("InvalidParameter.IpVersion", "The specified IpVersion %q does not match the CIDR block %q.", version, p["DstCidrBlock"])
	}
	return nil
}

// createRouteEntries does each entry for itself: some may fail.
func (s *Server) createRouteEntries(c *call) (answer, error) {
	entries, err := s.batch(c)
	if err != nil {
		return nil, err
	}
	ids, failed := []string{}, []answer{}
	for _, p := range entries {
		refused := checkVersion(p)
		var e *Entry
		if refused == nil {
			e, refused = s.add(wanted{
				table: p["RouteTableId"], dst: p["DstCidrBlock"], nextHop: p["NextHop"], nextHopType: p["NextHopType"],
				name: p["Name"], description: p["Description"],
			}, c.hit)
		}
		if refused != nil {
			failed = append(failed, failedEntry(p, refused))
			continue
		}
		ids = append(ids, e.ID)
	}
	return answer{"RouteEntryIds": ids, "FailedRouteEntries": failed, "SuccessCount": len(ids), "FailedCount": len(failed)}, nil
}

// deletable finds the entry that a deletion names, by its id or by table,
// destination and next hop.
func (s *Server) deletable(id, table, destination, nextHop string) (*Entry, *apiError) {
	gone := notFound("InvalidRouteEntry.NotFound", "Specified route entry does not exist.")
	e := s.findID(id)
	if e != nil && table != "" && e.Table != table {
		e = nil // an id of another table's
	}
	if id == "" {
		dst, refused := parseDst(destination)
		if refused != nil {
			return nil, refused
		}
		e = s.find(table, dst)
	}
	if t, found := s.state.table(table); e == nil && found && id+destination != "" {
		for _, system := range s.entriesOf(*t) {
			if system.system != "" && (system.ID == id || system.Dst.String() == destination) {
				return nil, bad("OperationDenied", "The system route entry cannot be deleted.")
			}
		}
	}
	if e == nil || nextHop != "" && e.NextHop != nextHop {
		return nil, gone
	}
	if e.Status != Available {
		return nil, bad("IncorrcetRouteEntryStatus", "Specified route entry status is not allowed to be deleted.") // sic
	}
	return e, nil
}

func (s *Server) deleteRouteEntry(c *call) (answer, error) {
	p := c.params
	if p["RouteEntryId"] == "" {
		for _, name := range []string{"RouteTableId", "DestinationCidrBlock"} {
			if _, err := p.need(name); err != nil {
				return nil, err
			}
		}
	}
	if c.elsewhere {
		return nil, notFound("InvalidRouteEntry.NotFound", "Specified route entry does not exist.")
	}
	if s.state.passing() {
		return nil, bad("IncorrcetRouteEntryStatus", "Some route entry status blocked this operation.") // sic
	}
	e, refused := s.deletable(p["RouteEntryId"], p["RouteTableId"], p["DestinationCidrBlock"], p["NextHopId"])
	if refused == nil {
		refused = s.remove(e, c.hit)
	}
	if refused != nil {
		return nil, refused
	}
	return nil, nil
}

func (s *Server) deleteRouteEntries(c *call) (answer, error) {
	entries, err := s.batch(c)
	if err != nil {
		return nil, err
	}
	failed := []answer{}
	for _, p := range entries {
		e, refused := s.deletable(p["RouteEntryId"], p["RouteTableId"], p["DstCidrBlock"], p["NextHop"])
		if refused == nil {
			refused = s.remove(e, c.hit)
		}
		if refused != nil {
			failed = append(failed, failedEntry(p, refused))
		}
	}
	return answer{"FailedRouteEntries": failed, "SuccessCount": len(entries) - len(failed), "FailedCount": len(failed)}, nil
}

// modifyRouteEntry changes name and description at once, and the next hop
// asynchronously.
func (s *Server) modifyRouteEntry(c *call) (answer, error) {
	p := c.params
	e := s.findID(p["RouteEntryId"])
	if p["RouteEntryId"] == "" {
		for _, name := range []string{"RouteTableId", "DestinationCidrBlock"} {
			if _, err := p.need(name); err != nil {
				return nil, err
			}
		}
		dst, refused := parseDst(p["DestinationCidrBlock"])
		if refused != nil {
			return nil, refused
		}
		e = s.find(p["RouteTableId"], dst)
	}
	if e == nil || c.elsewhere {
		return nil, bad("InvalidRouteEntryId.NotFound", "The specified routeEntry does not exist.")
	}
	if s.state.passing() {
		return nil, refuse(http.StatusConflict, "IncorrectStatus.VpcRouteEntry", "The status of VpcRouteEntry is incorrect.")
	}
	if refused := checkText(p["RouteEntryName"], p["Description"]); refused != nil {
		return nil, refused
	}
	if hop := p["NewNextHopId"]; hop != "" {
		kind := first(p["NewNextHopType"], e.NextHopType)
		if refused := s.checkNextHop(hop, kind); refused != nil {
			return nil, refused
		}
		s.change(e, hop, kind, c.hit)
	}
	e.Name, e.Description = first(p["RouteEntryName"], e.Name), first(p["Description"], e.Description)
	return nil, nil
}

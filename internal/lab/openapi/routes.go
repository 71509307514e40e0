package openapi

import (
	"net/netip"
	"strings"
	"time"
)

// maxBatch is how many entries a batch may have.
const maxBatch = 50

// services are the addresses of the cloud's own services in every VPC.
func services() netip.Prefix { return netip.MustParsePrefix("100.64.0.0/10") }

// wanted is an entry that a caller asks for.
type wanted struct {
	table, dst, nextHop, nextHopType, name, description string
}

// parseDst reads a destination: a bare address stands for itself alone.
func parseDst(text string) (netip.Prefix, *apiError) {
	if addr, err := netip.ParseAddr(text); err == nil && addr.Zone() == "" {
		return netip.PrefixFrom(addr, addr.BitLen()), nil
	}
	dst, err := netip.ParsePrefix(text)
	if err != nil || dst != dst.Masked() || dst.Addr().Is4In6() {
		return netip.Prefix{}, bad("InvalidCidrBlock.Malformed", "Specified CIDR block %q is not valid.", text)
	}
	return dst, nil
}

// checkDst holds the rules of the pages CreateRouteEntry and
// CreateRouteEntries: not the services' range nor inside it, and nothing that
// has to do with a vSwitch. (The page of the single creation allows a
// destination that contains a vSwitch; the lab's fabric does not, so it is
// refused here as by the batch.)
func (s *Server) checkDst(dst netip.Prefix) *apiError {
	if dst.Addr().Is4() && dst.Bits() >= services().Bits() && services().Contains(dst.Addr()) {
		return bad("InvalidCidrBlock", "The specified CIDR block %s is in the range of the cloud services (100.64.0.0/10).", dst)
	}
	for _, v := range s.spec.VSwitches {
		for _, own := range []netip.Prefix{v.CIDR, v.IPv6CIDR} {
			if own.IsValid() && own.Overlaps(dst) {
				return bad("InvalidCidrBlock", "The specified CIDR block %s overlaps with the CIDR block %s of vSwitch %s.", dst, own, v.ID)
			}
		}
	}
	return nil
}

// checkNextHop wants an instance, or an interface of one, in this VPC.
func (s *Server) checkNextHop(id, kind string) *apiError {
	in, found := s.state.instance(id)
	switch kind {
	case "Instance", "":
		found = found && in.ID == id
	case "NetworkInterface":
		found = found && in.Interface == id
	default:
		return bad("InvalidNextHopType.ValueNotSupported", "The specified NextHopType %q is not supported.", kind)
	}
	if !found {
		return notFound("InvalidNextHop.NotFound", "The specified next hop %q does not exist in this VPC.", id)
	}
	if in.Status == "Stopping" || in.Status == "Starting" || in.Status == "Pending" {
		return bad("IncorrectInstanceStatus", "The current status of instance %s does not support this operation.", in.ID)
	}
	return nil
}

func checkText(name, description string) *apiError {
	web := func(s string) bool { return strings.HasPrefix(s, "http://") || strings.HasPrefix(s, "https://") }
	if len(name) > 128 || web(name) {
		return bad("InvalidRouteEntryName.Malformed", "Specified RouteEntry name is not valid.")
	}
	if len(description) > 256 || web(description) {
		return bad("InvalidRouteEntryDescription.Malformed", "Specified RouteEntry description is not valid.")
	}
	return nil
}

// find returns the entry of a table with that destination.
func (s *Server) find(table string, dst netip.Prefix) *Entry {
	for _, e := range s.state.Entries {
		if e.Table == table && e.Dst == dst {
			return e
		}
	}
	return nil
}

func (s *Server) findID(id string) *Entry {
	for _, e := range s.state.Entries {
		if e.ID == id {
			return e
		}
	}
	return nil
}

// used counts the custom entries of a table, those on their way out included.
func (s *Server) used(table string) int {
	n := 0
	for _, e := range s.state.Entries {
		if e.Table == table {
			n++
		}
	}
	return n
}

// add makes one entry, or says why not. The caller has checked that the VPC
// is free to be written to.
func (s *Server) add(w wanted, hit strikes) (*Entry, *apiError) {
	if _, found := s.state.table(w.table); !found {
		return nil, notFound("InvalidRouteTableId.NotFound", "Specified route table %q does not exist.", w.table)
	}
	dst, refused := parseDst(w.dst)
	for _, check := range []func() *apiError{
		func() *apiError { return refused },
		func() *apiError { return hit.entry(dst) },
		func() *apiError { return s.checkDst(dst) },
		func() *apiError { return checkText(w.name, w.description) },
		func() *apiError { return s.checkFree(w.table, dst) },
		func() *apiError { return s.checkNextHop(w.nextHop, w.nextHopType) },
		func() *apiError { return s.checkQuota(w.table) },
	} {
		if refused := check(); refused != nil {
			return nil, refused
		}
	}
	now := s.now()
	e := &Entry{
		ID: s.state.id("rte"), Table: w.table, Dst: dst, NextHop: w.nextHop, NextHopType: first(w.nextHopType, "Instance"),
		Name: w.name, Description: w.description, Status: Pending, Modified: now,
		Due: now.Add(hit.delay(dst, s.state.Settings.Delay)),
	}
	s.state.Entries = append(s.state.Entries, e)
	return e, nil
}

func (s *Server) checkFree(table string, dst netip.Prefix) *apiError {
	if s.find(table, dst) != nil {
		return bad("InvalidCIDRBlock.Duplicate", "Specified CIDR block %s is already exists.", dst)
	}
	return nil
}

func (s *Server) checkQuota(table string) *apiError {
	if s.used(table) >= s.state.Settings.Quota {
		return bad("QuotaExceeded", "Route entry quota exceeded in this route table")
	}
	return nil
}

// remove starts the deletion of one entry.
func (s *Server) remove(e *Entry, hit strikes) *apiError {
	if refused := hit.entry(e.Dst); refused != nil {
		return refused
	}
	e.Status, e.Modified = Deleting, s.now()
	e.Due = e.Modified.Add(hit.delay(e.Dst, s.state.Settings.Delay))
	return nil
}

// change gives an entry another next hop; it holds when the state is
// Available again.
func (s *Server) change(e *Entry, nextHop, kind string, hit strikes) {
	now := s.now()
	e.Before, e.NextHop, e.NextHopType = e.NextHop, nextHop, kind
	e.Status, e.Modified, e.Due = Modifying, now, now.Add(hit.delay(e.Dst, s.state.Settings.Delay))
}

// plane is what the data plane has to do for the state as it is.
func (s *Server) plane() Plane {
	p := Plane{Checked: map[string]bool{}, Off: map[string]bool{}, Blocked: s.blocked()}
	for _, in := range s.spec.Instances {
		p.Off[in.Host] = true
	}
	for _, in := range s.state.Instances {
		p.Checked[in.Host] = in.SourceDestCheck
		p.Off[in.Host] = in.Status != "Running"
	}
	for _, t := range s.state.Tables {
		table := Table{Number: t.Number, Routes: map[netip.Prefix]string{}}
		for _, e := range s.state.Entries {
			// What leads to an instance that does not run gets lost, as what leads to none.
			if in, found := s.state.instance(e.effective()); e.Table == t.ID && found && in.Status == "Running" {
				table.Routes[e.Dst] = in.Host
			}
		}
		for _, in := range s.state.Instances {
			if s.tableOf(in.VSwitch) == t.ID {
				table.Hosts = append(table.Hosts, in.Host)
			}
		}
		p.Tables = append(p.Tables, table)
	}
	return p
}

// tableOf is the id of the table that a vSwitch is bound to.
func (s *Server) tableOf(vswitch string) string {
	for _, t := range s.state.Tables {
		for _, v := range t.VSwitches {
			if v == vswitch {
				return t.ID
			}
		}
	}
	return s.spec.RouteTable
}

// gmt is a time as the VPC API writes it.
func gmt(t time.Time) string { return t.UTC().Format("2006-01-02T15:04:05Z") }

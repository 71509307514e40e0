package openapi

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"time"
)

// Status is the state of a route entry as lists tell it.
type Status string

// The states of a route entry. One that is deleted is listed no more.
const (
	Pending   Status = "Pending"
	Available Status = "Available"
	Modifying Status = "Modifying"
	Deleting  Status = "Deleting"
)

// Entry is a custom entry of a route table.
type Entry struct {
	ID          string       `json:"id"`
	Table       string       `json:"table"`
	Dst         netip.Prefix `json:"dst"`
	NextHop     string       `json:"nextHop"`
	NextHopType string       `json:"nextHopType"`
	Name        string       `json:"name,omitempty"`
	Description string       `json:"description,omitempty"`
	Status      Status       `json:"status"`
	// Due is when a passing state ends.
	Due time.Time `json:"due,omitzero"`
	// Before is the next hop that still holds while the entry is Modifying.
	Before   string    `json:"before,omitempty"`
	Modified time.Time `json:"modified"`
}

// effective is the next hop that packets go to; "" while there is none.
func (e Entry) effective() string {
	switch e.Status {
	case Pending:
		return ""
	case Modifying:
		return e.Before
	}
	return e.NextHop
}

// RouteTable is one of the VPC's.
type RouteTable struct {
	ID     string `json:"id"`
	Name   string `json:"name,omitempty"`
	System bool   `json:"system"`
	// Number is the data plane's name of it, 0 for the system's; numbers of
	// tables that are gone are not used again.
	Number int `json:"number"`
	// VSwitches are those bound to a custom table; the others are the system
	// table's.
	VSwitches []string `json:"vswitches,omitempty"`
}

// Rule is a rule of the security group that lets something in.
type Rule struct {
	ID       string `json:"id"`
	Protocol string `json:"protocol"` // TCP, UDP, ICMP, GRE, ALL
	Ports    string `json:"ports"`    // 4789/4789; -1/-1 is all
	Source   string `json:"source"`   // a CIDR
	Policy   string `json:"policy"`   // Accept, Drop
}

// issued are temporary credentials of the role, as the metadata service hands
// them out to one instance.
type issued struct {
	Instance        string    `json:"instance"`
	AccessKeyID     string    `json:"accessKeyID"`
	AccessKeySecret string    `json:"accessKeySecret"`
	SecurityToken   string    `json:"securityToken"`
	At              time.Time `json:"at"`
	Expiration      time.Time `json:"expiration"`
}

// state is all that changes. It goes to a file, so that the cloud outlives its
// process.
type state struct {
	Settings  Settings     `json:"settings"`
	Tables    []RouteTable `json:"tables"`
	Entries   []*Entry     `json:"entries"` // in the order of their making
	Instances []Instance   `json:"instances"`
	Rules     []Rule       `json:"rules"`
	Faults    []Fault      `json:"faults"`
	Issued    []issued     `json:"issued"`
	// Tokens are the client tokens of single creations: token -> entry id.
	Tokens map[string]clientToken `json:"tokens"`
	// Sequence makes ids.
	Sequence int `json:"sequence"`
}

type clientToken struct {
	Entry   string `json:"entry"`
	Request string `json:"request"` // what was asked for
}

func newState(s Spec) *state {
	st := &state{
		Settings:  s.Settings,
		Tables:    []RouteTable{{ID: s.RouteTable, System: true}},
		Instances: slices.Clone(s.Instances),
		Tokens:    map[string]clientToken{},
	}
	for _, source := range slices.Concat(s.CIDRs, s.Allowed) {
		st.Rules = append(st.Rules, Rule{ID: st.id("sgr"), Protocol: "ALL", Ports: "-1/-1", Source: source.String(), Policy: "Accept"})
	}
	return st
}

// id makes an id that looks like the vendor's.
func (st *state) id(kind string) string {
	st.Sequence++
	return fmt.Sprintf("%s-2vclab%010d", kind, st.Sequence)
}

// loadState reads the state file; a new state when there is none.
func loadState(path string, spec Spec) (*state, error) {
	if path == "" {
		return newState(spec), nil
	}
	data, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		return newState(spec), nil
	}
	if err != nil {
		return nil, fmt.Errorf("read the cloud's state: %w", err)
	}
	// Not over what the spec says: lists would be read into the spec's own, and what
	// the file leaves out would be inherited.
	st := &state{Tokens: map[string]clientToken{}}
	if err := json.Unmarshal(data, st); err != nil {
		return nil, fmt.Errorf("read the cloud's state %s: %w; take the lab down and up again", path, err)
	}
	return st, nil
}

// save replaces the state file atomically; nothing without one.
func (st *state) save(path string) error {
	if path == "" {
		return nil
	}
	data, err := json.Marshal(st)
	if err != nil {
		return fmt.Errorf("write the cloud's state: %w", err)
	}
	if err := os.WriteFile(path+".new", data, 0o600); err != nil {
		return fmt.Errorf("write the cloud's state: %w", err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		return fmt.Errorf("write the cloud's state: %w", err)
	}
	return nil
}

func (st *state) table(id string) (*RouteTable, bool) {
	for i := range st.Tables {
		if st.Tables[i].ID == id {
			return &st.Tables[i], true
		}
	}
	return nil, false
}

// instance finds one by its id or by its interface's.
func (st *state) instance(id string) (*Instance, bool) {
	for i := range st.Instances {
		if st.Instances[i].ID == id || st.Instances[i].Interface == id {
			return &st.Instances[i], true
		}
	}
	return nil, false
}

// instanceAt finds the instance that has an address.
func (st *state) instanceAt(address netip.Addr) (*Instance, bool) {
	for i := range st.Instances {
		if slices.Contains(st.Instances[i].Addresses, address) {
			return &st.Instances[i], true
		}
	}
	return nil, false
}

// settle ends every passing state that is due and says whether one was.
func (st *state) settle(now time.Time) bool {
	before := len(st.Entries)
	st.Entries = slices.DeleteFunc(st.Entries, func(e *Entry) bool { return e.Status == Deleting && !now.Before(e.Due) })
	changed := len(st.Entries) != before
	for _, e := range st.Entries {
		if (e.Status == Pending || e.Status == Modifying) && !now.Before(e.Due) {
			e.Status, e.Before, e.Modified, e.Due = Available, "", e.Due, time.Time{}
			changed = true
		}
	}
	return changed
}

// due is when the next passing state ends; false when there is none.
func (st *state) due() (time.Time, bool) {
	var next time.Time
	for _, e := range st.Entries {
		if e.Status != Available && (next.IsZero() || e.Due.Before(next)) {
			next = e.Due
		}
	}
	return next, !next.IsZero()
}

// passing says whether any entry of the VPC is on its way.
func (st *state) passing() bool {
	_, any := st.due()
	return any
}

// Package fakestore is an ipam.Store in memory whose faults tests choose.
package fakestore

import (
	"errors"
	"slices"
	"sync"

	"ropeway.dev/ropeway/internal/ipam"
)

// ErrFault is what a faulty Append returns unless the test says otherwise.
var ErrFault = errors.New("injected fault: no space left on device")

// Fault is what happens to one Append.
type Fault struct {
	// Err is what Append returns; nil for none.
	Err error
	// Written is true if the record is kept in spite of Err, as by a process
	// that dies between the write and the answer.
	Written bool
}

// Store keeps records in memory. It survives the Allocator that uses it, as a
// file does a process: give it to another to simulate a restart.
type Store struct {
	mu      sync.Mutex
	records []ipam.Record
	faults  []Fault
	load    error
}

// New returns a Store with these records in it.
func New(records ...ipam.Record) *Store { return &Store{records: slices.Clone(records)} }

// Inject makes the next Appends meet these faults, one each.
func (s *Store) Inject(faults ...Fault) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.faults = append(s.faults, faults...)
}

// Heal takes back the faults that no Append has met yet.
func (s *Store) Heal() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.faults = nil
}

// FailLoad makes every Load return err until it is called with nil.
func (s *Store) FailLoad(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.load = err
}

// Compact replaces the records by fewer ones of the same meaning.
func (s *Store) Compact() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.records = ipam.Compact(s.records)
}

// Records returns what is kept.
func (s *Store) Records() []ipam.Record {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.records)
}

// Load implements ipam.Store.
func (s *Store) Load() ([]ipam.Record, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.records), s.load
}

// Append implements ipam.Store.
func (s *Store) Append(r ipam.Record) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	var f Fault
	if len(s.faults) > 0 {
		f, s.faults = s.faults[0], s.faults[1:]
	}
	if f.Err == nil || f.Written {
		r.Binding.Addresses = slices.Clone(r.Binding.Addresses)
		s.records = append(s.records, r)
	}
	return f.Err
}

package agent

// sight tells which views show what was done. The node loop takes a view and works
// something out of it, while what an earlier one led to is being done at the API server:
// a view that was begun before that may show the half of it, however late it comes to its
// end, and what it leads to would be done twice, or undone. It is guarded by its owner's
// mutex.
type sight struct{ begun, stale int }

// begin says that a view is taken from here on: what is done before is in it.
func (s *sight) begin() { s.begun++ }

// clear reports whether the latest view was begun after all that was done. Where it was
// not, another one comes: whoever does something asks for it.
func (s *sight) clear() bool { return s.begun > s.stale }

// act says that something was done.
func (s *sight) act() { s.stale = s.begun }

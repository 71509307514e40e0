package cloud

import (
	"errors"
	"fmt"
	"regexp"
	"time"
)

// Class says what an error means for what is to be done next.
type Class int

// The classes.
const (
	// Lost: no answer, or one that does not tell what was done (a time-out, a
	// 5xx). The change may have happened: list before trying again.
	Lost Class = iota
	// Passing: refused for now, nothing was done (another change of the VPC is
	// under way, an instance is starting). Try again later.
	Passing
	// Unreachable: not asked, since there is no way to the cloud now, or to the
	// keys for it; nothing was done.
	Unreachable
	// Throttled: refused for now because of too many calls. See Error.After.
	Throttled
	// Quota: the table is full.
	Quota
	// Forbidden: the credentials may not do Error.Action.
	Forbidden
	// Unauthenticated: the credentials are wrong, revoked or run out.
	Unauthenticated
	// Conflict: an entry for the destination is there already. Whose it is and
	// where it leads, the next listing tells.
	Conflict
	// BadNextHop: the instance does not exist in the table's VPC.
	BadNextHop
	// Permanent: refused, and trying the same again is no use (a destination
	// that the cloud does not take, a table that does not exist).
	Permanent
	// Untried: of an entry of a batch that the cloud was not asked for, or whose
	// call met the one before it in the same batch. Ask again after a moment.
	Untried
)

// String names the class as metrics do.
func (c Class) String() string {
	names := [...]string{"lost", "passing", "unreachable", "throttled", "quota", "forbidden", "unauthenticated", "conflict", "bad_next_hop", "permanent", "untried"}
	if c < 0 || int(c) >= len(names) {
		return fmt.Sprintf("class_%d", int(c))
	}
	return names[c]
}

// Refused says that the cloud has done nothing, for certain.
func (c Class) Refused() bool { return c != Lost }

// Passes says that time alone may mend it.
func (c Class) Passes() bool {
	return c == Lost || c == Passing || c == Unreachable || c == Throttled || c == Untried
}

// Error is an answer of the cloud that is not success, for a call or for one
// entry of a batch.
type Error struct {
	Class   Class
	Action  string        // of the cloud's API, such as CreateRouteEntries
	Code    string        // the cloud's, such as TaskConflict; "" without an answer
	Message string        // the cloud's words, without secrets
	Request string        // the cloud's id of the request, for its support; see RequestOf
	After   time.Duration // how long the cloud asks to wait; 0 if it does not say
	Err     error         // what was below, if anything
}

// ownPort is this side of a connection in an error of package net.
var ownPort = regexp.MustCompile(` \S+:\d+->`)

// Error says what, where, and the cloud's own code. The same failure has the same
// text each time, since conditions and events are written when theirs changes: it
// has no request's id, and no port of this side.
func (e *Error) Error() string {
	text := "the cloud"
	if e.Action != "" {
		text += "'s " + e.Action
	}
	switch {
	case e.Code != "":
		text += fmt.Sprintf(" answered %s", e.Code)
	case e.Class == Unreachable:
		text += " was not asked"
	default:
		text += " gave no answer"
	}
	if e.Message != "" {
		text += ": " + e.Message
	}
	if e.Err != nil {
		text += ": " + ownPort.ReplaceAllString(e.Err.Error(), " ")
	}
	return text
}

// Unwrap returns what was below.
func (e *Error) Unwrap() error { return e.Err }

// ClassOf returns the class of an error. One that is not of the cloud is Lost:
// nothing is known.
func ClassOf(err error) Class {
	var e *Error
	if errors.As(err, &e) {
		return e.Class
	}
	return Lost
}

// Is reports whether err is of one of the classes; nil is of none.
func Is(err error, classes ...Class) bool {
	if err == nil {
		return false
	}
	class := ClassOf(err)
	for _, c := range classes {
		if class == c {
			return true
		}
	}
	return false
}

// AfterOf returns how long the cloud asks to wait, 0 if it does not say.
func AfterOf(err error) time.Duration {
	var e *Error
	if errors.As(err, &e) {
		return e.After
	}
	return 0
}

// ActionOf returns the action that an error speaks of, "" if it does not say.
func ActionOf(err error) string {
	var e *Error
	if errors.As(err, &e) {
		return e.Action
	}
	return ""
}

// RequestOf returns the cloud's id of the request that an error answers, "" if
// there is none. It is for logs: no two errors have the same.
func RequestOf(err error) string {
	var e *Error
	if errors.As(err, &e) {
		return e.Request
	}
	return ""
}

// CodeOf returns the cloud's code of an error, "" without one.
func CodeOf(err error) string {
	var e *Error
	if errors.As(err, &e) {
		return e.Code
	}
	return ""
}

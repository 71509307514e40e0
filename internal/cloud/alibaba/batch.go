package alibaba

import (
	"context"
	"fmt"
	"iter"
	"slices"
	"strconv"

	"ropeway.dev/ropeway/internal/cloud"
)

// The batch actions take no client token, name a failed entry without its
// table, and refuse everything while another change of the VPC is under way. So
// one call takes entries of all tables (a second one would meet the first's), what
// the answer leaves open is Lost, and nothing is retried here.

// batchAnswer is the answer to CreateRouteEntries and DeleteRouteEntries. Its
// lists are plain, unlike those of the other actions.
type batchAnswer struct {
	RequestID          string `json:"RequestId"`
	SuccessCount       int
	FailedCount        int
	FailedRouteEntries []failedEntry
}

// failedEntry is a failure. The pages have DstCidrBlock, NextHop and the two
// words; id and table are read where they come.
type failedEntry struct {
	ID      string `json:"RouteEntryId"`
	Table   string `json:"RouteTableId"`
	Dst     string `json:"DstCidrBlock"`
	Code    string `json:"FailedCode"`
	Message string `json:"FailedMessage"`
}

// item is one entry of a batch on its way.
type item struct {
	key    cloud.Key
	id     string            // of the entry, where it is what the call names
	params map[string]string // RouteEntries.N's fields
	result *cloud.RouteResult
}

// Apply makes new entries by one CreateRouteEntries, and changes entries one by
// one by ModifyRouteEntry, for which there is no batch. New entries come first:
// one call makes 50 of them, and the VPC is busy after it.
func (r routes) Apply(ctx context.Context, changes []cloud.RouteChange) ([]cloud.RouteResult, error) {
	if err := checkCount("CreateRouteEntries", len(changes)); err != nil {
		return nil, err
	}
	results := make([]cloud.RouteResult, len(changes))
	var creations []item
	var steps []step
	for i, c := range changes {
		results[i] = cloud.RouteResult{Table: c.Table, Dst: c.Dst}
		switch {
		case c.Replaces == nil:
			creations = append(creations, item{key: c.Key(), result: &results[i], params: creation(c)})
		case c.Replaces.Owner == "" && c.NextHop != c.Replaces.NextHop:
			results[i].Err = notOurs("ModifyRouteEntry", c.Key())
		default:
			steps = append(steps, r.modification(c, &results[i]))
		}
	}
	return finish(results, run(ctx, append(r.batch("CreateRouteEntries", creations), steps...)))
}

// Withdraw removes entries by one DeleteRouteEntries. An entry is named by its id
// where that is known, so that one which somebody else has put in its place
// stays.
func (r routes) Withdraw(ctx context.Context, entries []cloud.RouteEntry) ([]cloud.RouteResult, error) {
	const action = "DeleteRouteEntries"
	if err := checkCount(action, len(entries)); err != nil {
		return nil, err
	}
	results := make([]cloud.RouteResult, len(entries))
	var items []item
	for i, e := range entries {
		results[i] = cloud.RouteResult{Table: e.Table, Dst: e.Dst}
		if e.Owner == "" {
			results[i].Err = notOurs(action, e.Key())
			continue
		}
		params := map[string]string{"RouteTableId": e.Table, "RouteEntryId": e.ID}
		if e.ID == "" {
			params = map[string]string{"RouteTableId": e.Table, "DstCidrBlock": e.Dst.String(), "NextHop": e.NextHop}
		}
		items = append(items, item{key: e.Key(), id: e.ID, result: &results[i], params: params})
	}
	err := run(ctx, r.batch(action, items))
	for i := range results {
		if gone(results[i].Err) {
			results[i].Err = nil
		}
	}
	return finish(results, err)
}

// finish keeps results out of sight of who gets an error: they are not known.
func finish(results []cloud.RouteResult, err error) ([]cloud.RouteResult, error) {
	if err != nil {
		return nil, err
	}
	return results, nil
}

// creation are the fields of a new entry.
func creation(c cloud.RouteChange) map[string]string {
	params := map[string]string{
		"RouteTableId": c.Table, "DstCidrBlock": c.Dst.String(), "NextHop": c.NextHop, "NextHopType": hopInstance,
	}
	if c.Owner != "" {
		params["Name"], params["Description"] = "ropeway", cloud.Mark(c.Owner)
	}
	if c.Dst.Addr().Is6() {
		params["IpVersion"] = "6"
	}
	return params
}

// step is one call. A failure of the call as a whole is returned, and put into
// the results by fail; what became of single entries is in the results already.
type step struct {
	action string
	many   bool // its failure is that of many entries
	call   func(ctx context.Context) error
	fail   func(err error)
}

// run makes the calls one after the other. If the first tells that no call can
// work now, that is returned and nothing else is tried; if a later one does, the
// rest are Untried, and so is itself where the VPC is busy with the one before.
// A refused action is not called again, the others are.
func run(ctx context.Context, steps []step) error {
	halted := false
	refused := map[string]error{}
	for i, s := range steps {
		if halted {
			s.fail(untried(s.action, nil))
			continue
		}
		err := refused[s.action]
		if err == nil {
			if err = s.call(ctx); err == nil {
				continue
			}
			halted = cloud.Is(err, cloud.Lost, cloud.Passing, cloud.Unreachable, cloud.Throttled, cloud.Unauthenticated)
			switch {
			case i == 0 && (halted || len(steps) == 1 && s.many):
				return err
			case cloud.Is(err, cloud.Passing):
				err = untried(s.action, err)
			case cloud.Is(err, cloud.Forbidden):
				refused[s.action] = err
			}
		}
		s.fail(err)
	}
	return nil
}

// untried is the error of a call that was not made, or for nothing, because of
// one before it: whatever became of that one, this one has done nothing.
func untried(action string, err error) error {
	return &cloud.Error{Class: cloud.Untried, Action: action, Code: "ropeway.Untried", Message: "not asked for after the call before it in the same batch", Err: err}
}

// batch is the call for entries, none without any.
func (r routes) batch(action string, items []item) []step {
	if len(items) == 0 {
		return nil
	}
	call := func(ctx context.Context) error {
		params := map[string]string{}
		for i, it := range items {
			for name, value := range it.params {
				params["RouteEntries."+strconv.Itoa(i+1)+"."+name] = value
			}
		}
		var answer batchAnswer
		if err := r.p.call.write(ctx, vpcAPI(), action, params, &answer); err != nil {
			return err
		}
		settle(action, items, answer)
		return nil
	}
	fail := func(err error) {
		for _, it := range items {
			it.result.Err = err
		}
	}
	return []step{{action, true, call, fail}}
}

// settle reads what became of each entry. Where failures do not tell which of
// several entries they mean (the same destination in two tables), or name none
// of the call, nothing is known of those that they may mean.
func settle(action string, items []item, answer batchAnswer) {
	open := max(answer.FailedCount, len(answer.FailedRouteEntries)) // failures without an entry so far
	failed := func(f failedEntry) *cloud.Error {
		return &cloud.Error{Class: classify(f.Code, 0), Action: action, Code: f.Code, Message: f.Message, Request: answer.RequestID}
	}
	for len(answer.FailedRouteEntries) > 0 {
		f := answer.FailedRouteEntries[0]
		same := func(g failedEntry) bool { return g.ID == f.ID && g.Table == f.Table && g.Dst == f.Dst }
		alike := len(slices.Collect(filter(answer.FailedRouteEntries, same)))
		answer.FailedRouteEntries = slices.DeleteFunc(slices.Clone(answer.FailedRouteEntries), same)
		meant := slices.Collect(filter(items, func(it item) bool { return it.result.Err == nil && f.means(it) }))
		open -= min(alike, len(meant))
		for _, it := range meant {
			e := failed(f)
			if len(meant) > alike {
				e.Class = cloud.Lost
			}
			it.result.Err = e
		}
	}
	if open == 0 {
		return
	}
	for it := range filter(items, func(it item) bool { return it.result.Err == nil }) {
		it.result.Err = &cloud.Error{Class: cloud.Lost, Action: action, Code: "ropeway.Unnamed", Request: answer.RequestID,
			Message: fmt.Sprintf("%d entries of the batch failed without being named", open)}
	}
}

// filter passes on what keep holds for.
func filter[T any](all []T, keep func(T) bool) iter.Seq[T] {
	return func(yield func(T) bool) {
		for _, v := range all {
			if keep(v) && !yield(v) {
				return
			}
		}
	}
}

// means reports whether the failure can be that of the item: by the entry's id,
// or by its destination and, where the failure has it, its table.
func (f failedEntry) means(it item) bool {
	if f.ID != "" && it.id != "" {
		return f.ID == it.id
	}
	dst, ok := parseDst(f.Dst)
	return ok && dst == it.key.Dst && (f.Table == "" || f.Table == it.key.Table)
}

// modification changes an entry in place: next hop, mark, or both.
func (r routes) modification(c cloud.RouteChange, result *cloud.RouteResult) step {
	return step{
		action: "ModifyRouteEntry",
		call: func(ctx context.Context) error {
			params := map[string]string{"RouteEntryId": c.Replaces.ID}
			if c.Replaces.ID == "" {
				params = map[string]string{"RouteTableId": c.Table, "DestinationCidrBlock": c.Dst.String()}
			}
			if c.NextHop != c.Replaces.NextHop {
				params["NewNextHopId"], params["NewNextHopType"] = c.NextHop, hopInstance
			}
			if c.Owner != c.Replaces.Owner {
				params["Description"] = description(c)
			}
			if len(params) == 1 {
				return nil // it is as it should be
			}
			var answer struct{}
			err := r.p.call.write(ctx, vpcAPI(), "ModifyRouteEntry", params, &answer)
			if entryLevel(err) {
				result.Err = err
				return nil
			}
			return err
		},
		fail: func(err error) { result.Err = err },
	}
}

// description is the text for an entry that was taken over or is released. The
// API has no way to make it empty again.
func description(c cloud.RouteChange) string {
	if c.Owner == "" {
		return "released by ropeway"
	}
	return cloud.Mark(c.Owner)
}

// entryLevel reports whether an error is about the one entry of the call, and
// says nothing of what the next call meets.
func entryLevel(err error) bool {
	return cloud.Is(err, cloud.Conflict, cloud.BadNextHop, cloud.Permanent)
}

// gone reports whether an entry was not there to be removed.
func gone(err error) bool {
	switch cloud.CodeOf(err) {
	case "InvalidRouteEntry.NotFound", "InvalidRouteEntryId.NotFound", "VPC_ROUTER_ENTRY_NOT_EXIST":
		return true
	}
	return false
}

// notOurs refuses to touch an entry without a mark (a route that is not ours is
// never changed), whoever asks for it.
func notOurs(action string, key cloud.Key) error {
	return &cloud.Error{Class: cloud.Permanent, Action: action, Code: "ropeway.NotOurs",
		Message: fmt.Sprintf("the entry %s carries no mark of Ropeway and is left alone: adopt it first", key)}
}

func checkCount(action string, n int) error {
	if n > cloud.MaxBatch {
		return &cloud.Error{Class: cloud.Permanent, Action: action, Code: "ropeway.BatchTooLarge",
			Message: fmt.Sprintf("%d entries; a batch takes at most %d", n, cloud.MaxBatch)}
	}
	return nil
}

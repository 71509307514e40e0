package agent

import "time"

// pace keeps passes of the node loop apart, so that no stream of changes keeps a
// node's CPU busy with passes alone: in the long run the loop rests twice as long as
// it works. What comes after a quiet time is looked at soon all the same, however
// long a pass takes, and so is the little that follows it: the word of one prover is
// mostly followed by that of another.
type pace struct {
	rested time.Time // when the loop has rested from all that it has done
	many   time.Time // when it looks again at what there is much of
}

// settleMost bounds what may be owed of rest before a change waits for it, and then
// how long it waits: routes that fail are left within seconds.
const settleMost = 500 * time.Millisecond

// What there is as much of as there are pods that start or end on any node, and nobody
// waits for here, is looked at so long after the last pass: else a crowd of pods would
// have all nodes at work with each other's addresses, and not with their own. It is not
// put off for longer, since a pod that is Ready is to be reached.
const manyRest = 200 * time.Millisecond

// passed notes a pass, during which the loop does not rest.
func (p *pace) passed(began, ended time.Time) {
	from := began
	if p.rested.After(began) {
		from = p.rested
	}
	p.rested = from.Add(3 * ended.Sub(began))
	p.many = ended.Add(manyRest)
	if most := ended.Add(2 * settleMost); p.rested.After(most) {
		p.rested = most
	}
}

// wait is how long a change that comes now waits for others, at least for that long.
func (p *pace) wait(now time.Time, least time.Duration) time.Duration {
	return max(least, max(p.rested.Sub(now), 0)-settleMost)
}

// waitForMany is how long the loop waits for more of what there is much of, before
// that becomes a change like others.
func (p *pace) waitForMany(now time.Time) time.Duration {
	return min(max(p.many.Sub(now), 0), manyRest)
}

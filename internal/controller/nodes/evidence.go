package nodes

import (
	"fmt"
	"time"

	"ropeway.dev/ropeway/internal/few"
)

// look is what one look at the cloud has shown of an instance that a silent
// node should be, and of the rest of the cluster.
type look struct {
	at time.Time
	// described: the answer to its id shows it. listed: the list of the VPC
	// shows it, or another instance under its id.
	described, listed bool
	// witnesses are instances of nodes that are Ready, hence there, in the
	// list. unseen are nodes that are Ready and that neither answer shows.
	witnesses int
	unseen    []string
	// absent are all silent nodes that neither answer shows, of nodes in all.
	absent []string
	nodes  int
}

// shown says that the instance is there for certain.
func (l look) shown() bool { return l.described || l.listed }

// doubt says why the look proves nothing, though the instance is not shown; ""
// if it does.
func (l look) doubt() string {
	switch most := max(1, l.nodes/4); {
	case len(l.unseen) > 0:
		return fmt.Sprintf("the cloud's answers do not show the instances of nodes that are Ready either (%s): the credentials may see a part only, or the API forgets",
			few.Join(l.unseen, ", "))
	case l.witnesses == 0:
		return "no other node is Ready and shown by the cloud, so that nothing says that its answers are complete"
	case len(l.absent) > most:
		return fmt.Sprintf("the cloud shows the instances of %d of %d nodes no more, all at once (%s): if they are released, delete their Nodes with kubectl",
			len(l.absent), l.nodes, few.Join(l.absent, ", "))
	}
	return ""
}

// suspicion is what is known of a silent node whose instance is not shown.
type suspicion struct {
	instance string
	proofs   int       // looks without doubt
	first    time.Time // when the first of them was
}

// verdict is what follows from the looks so far.
type verdict struct {
	node string // name
	gone bool
	// why is what keeps the verdict from being that it is gone, "" if the
	// instance is there; a person may have to act on it.
	why    string
	person bool
}

// add takes a look into account. known says that the cloud has shown the
// instance before.
func (s *suspicion) add(l look, known bool, confirm time.Duration) verdict {
	if l.shown() {
		*s = suspicion{instance: s.instance}
		return verdict{}
	}
	if !known {
		return verdict{why: "the cloud has never shown this instance to these credentials: delete the Node with kubectl, if it is released", person: true}
	}
	if why := l.doubt(); why != "" {
		return verdict{why: why, person: true}
	}
	if s.proofs == 0 {
		s.first = l.at
	}
	s.proofs++
	if s.proofs < 2 || l.at.Sub(s.first) < confirm {
		return verdict{why: fmt.Sprintf("the cloud does not show it; whether that stays so is seen %s after it was first found", confirm)}
	}
	return verdict{gone: true}
}

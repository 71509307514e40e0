package nodes

// Status is what is known of the nodes' instances, for a person and for the
// condition.
type Status struct {
	On bool
	// Total counts the nodes, Known those whose instance the cloud shows.
	Total, Known int
	// Problems need a person; the most urgent first.
	Problems []Problem
}

// Problem is something that a person must act on.
type Problem struct {
	Reason  string
	Node    string // "" for all of them
	Message string
}

// Reasons of Problems.
const (
	ReasonForbidden   = "CloudForbidden"
	ReasonCredentials = "CloudCredentials"
	ReasonNoAnswer    = "CloudNoAnswer"
	ReasonSetup       = "CloudSetup"
	ReasonNoInstance  = "InstanceNotFound" // which instance a node is
	ReasonDoubt       = "NodeNotDeleted"
	ReasonRights      = "KubernetesForbidden" // this program's, in the cluster
)

// Sentence sums the status up.
func (s *Status) Sentence() string {
	if len(s.Problems) > 0 {
		return s.Problems[0].Message
	}
	return counted(s.Known, s.Total) + " are known instances of the cloud"
}

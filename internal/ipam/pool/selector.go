package pool

import (
	"fmt"
	"slices"
)

// Selector selects by labels, as Kubernetes' LabelSelector does: everything
// that it says must hold. One that says nothing selects everything.
type Selector struct {
	// Labels maps key -> the value that it must have.
	Labels map[string]string
	Rules  []Requirement
}

// Operator is what a Requirement asks for, spelled as Kubernetes does.
type Operator string

// The operators.
const (
	In           Operator = "In"
	NotIn        Operator = "NotIn"
	Exists       Operator = "Exists"
	DoesNotExist Operator = "DoesNotExist"
)

// Requirement is one entry of matchExpressions.
type Requirement struct {
	Key    string
	Op     Operator
	Values []string
}

// Validate says what is wrong with the selector.
func (s *Selector) Validate() error {
	if s == nil {
		return nil
	}
	for i, r := range s.Rules {
		needs := r.Op == In || r.Op == NotIn
		switch {
		case !needs && r.Op != Exists && r.Op != DoesNotExist:
			return fmt.Errorf("matchExpressions[%d].operator: %q is none of In, NotIn, Exists, DoesNotExist", i, r.Op)
		case r.Key == "":
			return fmt.Errorf("matchExpressions[%d].key: is empty", i)
		case needs && len(r.Values) == 0:
			return fmt.Errorf("matchExpressions[%d].values: %s needs at least one", i, r.Op)
		case !needs && len(r.Values) > 0:
			return fmt.Errorf("matchExpressions[%d].values: %s takes none", i, r.Op)
		}
	}
	return nil
}

// Matches reports whether the labels are selected; no selector selects all.
func (s *Selector) Matches(labels map[string]string) bool {
	if s == nil {
		return true
	}
	for key, want := range s.Labels {
		if have, ok := labels[key]; !ok || have != want {
			return false
		}
	}
	return !slices.ContainsFunc(s.Rules, func(r Requirement) bool { return !r.holds(labels) })
}

// holds follows apimachinery: NotIn holds for an object without the label.
func (r Requirement) holds(labels map[string]string) bool {
	value, there := labels[r.Key]
	switch r.Op {
	case In:
		return there && slices.Contains(r.Values, value)
	case NotIn:
		return !there || !slices.Contains(r.Values, value)
	case Exists:
		return there
	case DoesNotExist:
		return !there
	}
	return false
}

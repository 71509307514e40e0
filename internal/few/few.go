// Package few shortens what is said of many: a cluster has thousands of nodes,
// and what is wrong with all of them is wrong with the first ones in the same way.
package few

import (
	"errors"
	"fmt"
	"slices"
	"strings"
)

// Most is how many a sentence names.
const Most = 5

// Join puts the first Most texts of a list together, and says how many more
// there are.
func Join(list []string, between string) string {
	if len(list) <= Most {
		return strings.Join(list, between)
	}
	return fmt.Sprintf("%s%sand %d more", strings.Join(list[:Most], between), between, len(list)-Most)
}

// Errors is errors.Join for a list that may be long, in the order of their texts,
// so that the same failures have the same text. Of more than Most errors it keeps
// the first, which are the only ones that errors.Is and errors.As find, and the
// number of the rest.
func Errors(errs ...error) error {
	errs = slices.DeleteFunc(slices.Clone(errs), func(err error) bool { return err == nil })
	slices.SortFunc(errs, func(a, b error) int { return strings.Compare(a.Error(), b.Error()) })
	if more := len(errs) - Most; more > 0 {
		errs = append(errs[:Most], fmt.Errorf("and %d more", more))
	}
	return errors.Join(errs...)
}

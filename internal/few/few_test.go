package few

import (
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
)

func TestFew(t *testing.T) {
	var names []string
	errs := []error{nil, fmt.Errorf("first of all: %w", io.EOF), nil}
	for i := range 4999 {
		names = append(names, fmt.Sprint("n", i))
		errs = append(errs, fmt.Errorf("node n%d", 4998-i))
	}
	if got := Join(names[:5], ", "); got != "n0, n1, n2, n3, n4" {
		t.Error(got)
	}
	if got := Join(names, ", "); got != "n0, n1, n2, n3, n4, and 4994 more" {
		t.Error(got)
	}
	err := Errors(errs...)
	if got := strings.ReplaceAll(err.Error(), "\n", "; "); !errors.Is(err, io.EOF) || got != "first of all: EOF; node n0; node n1; node n10; node n100; and 4995 more" {
		t.Error(got)
	}
	if err := Errors(nil, nil); err != nil {
		t.Error(err)
	}
}

package controller

import (
	"sync"

	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"ropeway.dev/ropeway/internal/few"
)

// tries are calls of one kind for many objects, by several at a time. Once so
// many in a row are forbidden that it is this program's role and nothing about
// single objects, the rest would only be refused too.
type tries struct {
	mu        sync.Mutex
	errs      []error
	forbidden int // in a row
}

// mostForbidden may be about single objects: admission forbids as well.
const mostForbidden = 2 * writers

// note says what became of one.
func (t *tries) note(err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	switch {
	case err == nil:
		t.forbidden = 0
		return
	case apierrors.IsForbidden(err):
		t.forbidden++
	}
	t.errs = append(t.errs, err)
}

// over says that the rest need not be tried.
func (t *tries) over() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.forbidden >= mostForbidden
}

// err is what failed, in the words of a few.
func (t *tries) err() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	return few.Errors(t.errs...)
}

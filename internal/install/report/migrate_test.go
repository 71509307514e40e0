package report

import "testing"

// FuzzAllocated: whatever a pool's status says is allocated, it is addresses, or an
// error.
func FuzzAllocated(f *testing.F) {
	f.Fuzz(func(t *testing.T, text string) {
		read, err := allocatedOf(&text)
		for a := range read {
			if !a.IsValid() || err != nil {
				t.Errorf("%q: address %v, %v", text, a, err)
			}
		}
	})
}

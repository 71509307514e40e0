//go:build ropeway_next

package laststate

// As a release would have it that comes after this one: scenario upgrade builds it.
const version = 2

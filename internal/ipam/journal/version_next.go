//go:build ropeway_next

package journal

// As a release would have it that comes after this one: scenario upgrade builds it.
const Version = 2

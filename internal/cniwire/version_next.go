//go:build ropeway_next

package cniwire

// As a release would have it that comes after this one: scenario upgrade builds it.
const Version = 2

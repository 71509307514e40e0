//go:build ropeway_next

package bpf

// As a release would have it that comes after this one: scenario upgrade builds it.
const layout = "v3"

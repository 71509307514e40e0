//go:build !ropeway_next

package bpf

// layout is the version of the maps. A release that changes a map's meaning
// changes it too: it then fills maps of its own before its programs take over
// from those of the other release, which go on with theirs until then.
const layout = "v2"

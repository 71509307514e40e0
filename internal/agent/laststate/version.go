//go:build !ropeway_next

package laststate

// version is the version of the file's layout.
const version = 1

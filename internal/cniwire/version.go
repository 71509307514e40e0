//go:build !ropeway_next

package cniwire

// Version is the version of the messages. A peer that differs by one is
// understood: fields are only ever added, and a receiver ignores those that it
// does not know.
const Version = 1

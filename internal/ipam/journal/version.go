//go:build !ropeway_next

package journal

// Version is the version of the format. A reader refuses a newer one: it could
// not tell what is held.
const Version = 1

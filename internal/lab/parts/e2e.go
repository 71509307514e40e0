//go:build conformance

// Package parts pins what only the lab and the tests run. This file keeps the
// upstream end-to-end specs, which are built as a test binary and cannot be
// named by a tool line.
package parts

import _ "k8s.io/kubernetes/test/e2e"

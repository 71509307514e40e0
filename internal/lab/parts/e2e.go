//go:build conformance

// Package parts pins what only the lab and the tests run. This file keeps the
// upstream end-to-end specs, which are built as a test binary and cannot be
// named by a tool line, and the runner of the version that they are written for.
package parts

import (
	_ "github.com/onsi/ginkgo/v2/ginkgo"
	_ "k8s.io/kubernetes/test/e2e"
)

package conformance

import (
	"slices"
	"strings"
	"testing"
)

const output = `Running Suite: Kubernetes e2e suite - /somewhere
Will run 3 of 7355 specs
Running in parallel across 4 processes
------------------------------
[SynchronizedBeforeSuite] PASSED [0.092 seconds]
[SynchronizedBeforeSuite] 
------------------------------
SSSSSSSSSSSSSS
------------------------------
• [5.343 seconds]
[sig-network] Services should be rejected when no endpoints exist [sig-network]
k8s.io/kubernetes@v1.35.4/test/e2e/network/service.go:2396
  Timeline >>
  STEP: Creating a kubernetes client @ 11/23/26 19:22:03.086
------------------------------
• [FAILED] [131.568 seconds]
[sig-network] Services [It] should serve multiport endpoints from pods [Conformance] [sig-network, Conformance]
------------------------------
S [SKIPPED] [0.139 seconds]
[sig-network] Traffic Distribution [BeforeEach] should route traffic [sig-network]

Summarizing 1 Failure:
Ran 2 of 7355 Specs in 188.015 seconds
FAIL! -- 1 Passed | 1 Failed | 0 Pending | 7353 Skipped
`

func TestResultsAreOneLineForEachSpec(t *testing.T) {
	var printed strings.Builder
	r := &results{out: &printed}
	if err := r.follow(strings.NewReader(output)); err != nil {
		t.Fatal(err)
	}
	want := `Will run 3 of 7355 specs
Running in parallel across 4 processes
PASS  [sig-network] Services should be rejected when no endpoints exist  5.343s
FAIL  [sig-network] Services should serve multiport endpoints from pods [Conformance]  131.568s
SKIP  [sig-network] Traffic Distribution should route traffic  0.139s
Ran 2 of 7355 Specs in 188.015 seconds
FAIL! -- 1 Passed | 1 Failed | 0 Pending | 7353 Skipped
`
	if printed.String() != want {
		t.Errorf("printed\n%s\nwant\n%s", printed.String(), want)
	}
	if r.passed != 1 || !slices.Equal(r.failed, []string{"[sig-network] Services should serve multiport endpoints from pods [Conformance]"}) {
		t.Errorf("counted %d passed, failed %q", r.passed, r.failed)
	}
}

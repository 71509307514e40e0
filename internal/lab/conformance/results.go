package conformance

import (
	"bufio"
	"fmt"
	"io"
	"regexp"
	"strings"
)

// results turns ginkgo's output, as it comes, into one line for each spec, and
// passes its closing lines on.
type results struct {
	out io.Writer
	// outcome is the word for the spec whose name comes in the next line.
	outcome, took string
	passed        int
	failed        []string
}

var (
	// outcomeLine heads a spec's report: "• [1.2 seconds]",
	// "• [FAILED] [1.2 seconds]", "S [SKIPPED] [0.1 seconds]".
	outcomeLine = regexp.MustCompile(`^[•S] (?:\[([A-Z !]+)\] )?\[([0-9.]+) seconds\]`)
	closingLine = regexp.MustCompile(`^(Ran \d+ of \d+ Specs|SUCCESS!|FAIL!|Will run |Running in parallel)`)
	// labels repeat at the end of the name what it says in brackets before.
	labels = regexp.MustCompile(` \[[^\[\]]*\]$`)
	leaf   = regexp.MustCompile(` \[(It|BeforeEach|AfterEach)\]`)
)

// follow reads until the end.
func (r *results) follow(in io.Reader) error {
	lines := bufio.NewScanner(in)
	lines.Buffer(nil, 4<<20)
	for lines.Scan() {
		r.line(lines.Text())
	}
	if err := lines.Err(); err != nil {
		return fmt.Errorf("read ginkgo's output: %w", err)
	}
	return nil
}

func (r *results) line(text string) {
	if found := outcomeLine.FindStringSubmatch(text); found != nil {
		r.outcome, r.took = "PASS", found[2]
		if found[1] != "" {
			r.outcome = map[bool]string{true: "SKIP", false: "FAIL"}[found[1] == "SKIPPED"]
		}
		return
	}
	switch {
	case r.outcome != "":
		r.spec(specName(text))
		r.outcome = ""
	case closingLine.MatchString(text):
		fmt.Fprintln(r.out, text)
	}
}

func (r *results) spec(name string) {
	switch r.outcome {
	case "PASS":
		r.passed++
	case "FAIL":
		r.failed = append(r.failed, name)
	}
	fmt.Fprintf(r.out, "%s  %s  %ss\n", r.outcome, name, r.took)
}

func specName(line string) string {
	return leaf.ReplaceAllString(labels.ReplaceAllString(strings.TrimSpace(line), ""), "")
}

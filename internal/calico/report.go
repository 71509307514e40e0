package calico

import (
	"fmt"
	"strings"
)

// Verdict is what becomes of one key.
type Verdict string

// The verdicts.
const (
	// Honoured: means here what it means there.
	Honoured Verdict = "honoured"
	// Translated: becomes something else here, which the note names.
	Translated Verdict = "translated"
	// Harmless: has no meaning here, and leaving it out changes nothing.
	Harmless Verdict = "harmless"
	// Refused: cannot be had in this version; the note says why and what to do.
	Refused Verdict = "refused"
)

// Finding is what is said of one key.
type Finding struct {
	Where   string  `json:"where"` // the object or container that has the key
	Key     string  `json:"key"`
	Value   string  `json:"value,omitempty"`
	Verdict Verdict `json:"verdict"`
	Note    string  `json:"note,omitempty"` // to what, or why
}

// say settles the finding.
func (f *Finding) say(v Verdict, format string, args ...any) {
	f.Verdict, f.Note = v, fmt.Sprintf(format, args...)
}

// Report is what is said of every key, in the order of the text.
type Report struct {
	Findings []Finding `json:"findings"`
}

// Refused returns the findings that stop an installation.
func (r Report) Refused() []Finding {
	var out []Finding
	for _, f := range r.Findings {
		if f.Verdict == Refused {
			out = append(out, f)
		}
	}
	return out
}

// String lists the findings, grouped by where they were found, for a person.
func (r Report) String() string {
	var b strings.Builder
	where := ""
	for _, f := range r.Findings {
		if f.Where != where {
			where = f.Where
			fmt.Fprintf(&b, "%s:\n", where)
		}
		key := f.Key
		if f.Value != "" {
			key += "=" + f.Value
		}
		fmt.Fprintf(&b, "  %-10s  %s\n", f.Verdict, key)
		if f.Note != "" {
			fmt.Fprintf(&b, "              %s\n", f.Note)
		}
	}
	return b.String() + r.summary()
}

func (r Report) summary() string {
	count := map[Verdict]int{}
	for _, f := range r.Findings {
		count[f.Verdict]++
	}
	return fmt.Sprintf("%d honoured, %d translated, %d harmless, %d refused\n",
		count[Honoured], count[Translated], count[Harmless], count[Refused])
}

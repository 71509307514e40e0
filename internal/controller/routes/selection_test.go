package routes

import (
	"net/netip"
	"slices"
	"strings"
	"testing"
)

func cloudPrefix(s string) netip.Prefix { return netip.MustParsePrefix(s) }

func TestSelection(t *testing.T) {
	for text, want := range map[string]string{
		"": "", "all": "all", " 10.244.1.0/24 ,all": "all,10.244.1.0/24", "10.244.1.7/24": "10.244.1.0/24", "nonsense": "", "none,10.0.0.0/8": "10.0.0.0/8",
	} {
		if got := ParseSelection(text).String(); got != want {
			t.Errorf("ParseSelection(%q) = %q, want %q", text, got, want)
		}
	}
	if ParseSelection("10.244.1.0/24").Has(cloudPrefix("10.244.2.0/24")) {
		t.Error("a destination that is not named is selected")
	}
}

// FuzzParseSelection: what a person selects is read, or named as bad; and what is read
// is written so that it is read again.
func FuzzParseSelection(f *testing.F) {
	f.Fuzz(func(t *testing.T, text string) {
		s := ParseSelection(text)
		again := ParseSelection(s.String())
		if again.All != s.All || !slices.Equal(again.Dsts, s.Dsts) || len(again.Bad) > 0 {
			t.Errorf("%q is %+v, and then %+v", text, s, again)
		}
		for _, bad := range s.Bad {
			if bad == "" || !strings.Contains(text, bad) {
				t.Errorf("%q: %q is bad", text, bad)
			}
		}
	})
}

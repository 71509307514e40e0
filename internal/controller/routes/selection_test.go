package routes

import (
	"net/netip"
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

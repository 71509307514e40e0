package main

import (
	"strings"
	"testing"
)

func TestVendorsDebugIsRefused(t *testing.T) {
	for _, debug := range []string{"dara", "tea", "credential", "x,dara"} {
		if err := secretsStaySecret(debug); err == nil || !strings.Contains(err.Error(), "unset it") {
			t.Errorf("DEBUG=%s: %v", debug, err)
		}
	}
	for _, debug := range []string{"", "1", "x,y"} {
		if err := secretsStaySecret(debug); err != nil {
			t.Errorf("DEBUG=%s: %v", debug, err)
		}
	}
}

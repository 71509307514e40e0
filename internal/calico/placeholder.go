package calico

import (
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"
)

// Placeholders are the words of a conflist template that the agent fills in on
// each node: those of Calico's install-cni.
func Placeholders() []string {
	return []string{
		"__KUBERNETES_NODE_NAME__", "__CNI_MTU__", "__KUBECONFIG_FILEPATH__",
		"__LOG_LEVEL__", "__LOG_FILE_PATH__", "__LOG_FILE_MAX_SIZE__", "__LOG_FILE_MAX_AGE__", "__LOG_FILE_MAX_COUNT__",
		"__DATASTORE_TYPE__", "__KUBERNETES_SERVICE_HOST__", "__KUBERNETES_SERVICE_PORT__",
		"__SERVICEACCOUNT_TOKEN__", "__CALICO_API_GROUP__", "__REQUIRE_MTU_FILE__",
		"__ETCD_CERT_FILE__", "__ETCD_CA_CERT_FILE__", "__ETCD_KEY_FILE__", "__ETCD_ENDPOINTS__", "__ETCD_DISCOVERY_SRV__",
	}
}

// withoutPlaceholders makes a template parse: a placeholder that stands for a
// bare value becomes 0, of the same length, so that positions stay true. It
// also returns the placeholders that nobody fills in.
func withoutPlaceholders(text string) (parsed string, unknown []string) {
	var quoted []bool // byte -> inside of a JSON string
	in := false
	for i := 0; i < len(text); i++ {
		quoted = append(quoted, in)
		switch {
		case in && text[i] == '\\' && i+1 < len(text):
			i++
			quoted = append(quoted, in)
		case text[i] == '"':
			in = !in
		}
	}
	out := []byte(text)
	for _, at := range regexp.MustCompile(`__[A-Z][A-Z0-9_]*__`).FindAllStringIndex(text, -1) {
		name := text[at[0]:at[1]]
		if !slices.Contains(Placeholders(), name) && !slices.Contains(unknown, name) {
			unknown = append(unknown, name)
		}
		if !quoted[at[0]] {
			copy(out[at[0]:at[1]], "0"+strings.Repeat(" ", len(name)-1))
		}
	}
	return string(out), unknown
}

// position says where a JSON error is, if it says so itself.
func position(text string, err error) string {
	var offset int64
	var syntax *json.SyntaxError
	var mismatch *json.UnmarshalTypeError
	switch {
	case errors.As(err, &syntax):
		offset = syntax.Offset
	case errors.As(err, &mismatch):
		offset = mismatch.Offset
	default:
		return ""
	}
	before := text[:min(int(offset), len(text))]
	line := strings.Count(before, "\n") + 1
	column := len(before) - strings.LastIndex(before, "\n") - 1
	return fmt.Sprintf(" (line %d, column %d)", line, max(column, 1))
}

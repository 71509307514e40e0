package hostinstall

import (
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/utils"
	"github.com/containernetworking/cni/pkg/version"
)

// DefaultTemplate is the conflist where nobody gave one. Runtimes that know
// version 1.1.0 (GC, STATUS) take it from cniVersions; older ones do not read
// that key.
const DefaultTemplate = `{
  "name": "k8s-pod-network",
  "cniVersion": "1.0.0",
  "cniVersions": ["0.4.0", "1.0.0", "1.1.0"],
  "plugins": [
    {
      "type": "ropeway",
      "mtu": __CNI_MTU__,
      "ipam": {"type": "ropeway-ipam"}
    },
    {
      "type": "portmap",
      "snat": true,
      "capabilities": {"portMappings": true}
    },
    {
      "type": "bandwidth",
      "capabilities": {"bandwidth": true}
    }
  ]
}`

// Values are what placeholders of a template stand for. Ropeway's plugin asks
// the agent for everything, so most are only there for templates that were
// written for Calico.
type Values struct {
	NodeName string
	MTU      int // 0: the agent's answer for each pod
}

// kubeconfigNotNeeded is what __KUBECONFIG_FILEPATH__ becomes. No such file is
// written: the plugin holds no credentials.
const kubeconfigNotNeeded = "/etc/cni/net.d/ropeway-kubeconfig-not-needed"

// placeholders maps placeholder -> text. They are those of Calico's installer,
// so that its users' templates work as they are.
func (v Values) placeholders() map[string]string {
	return map[string]string{
		"__KUBERNETES_NODE_NAME__":    v.NodeName,
		"__CNI_MTU__":                 strconv.Itoa(v.MTU),
		"__KUBECONFIG_FILEPATH__":     kubeconfigNotNeeded,
		"__LOG_LEVEL__":               "info",
		"__LOG_FILE_PATH__":           "/var/log/calico/cni/cni.log",
		"__LOG_FILE_MAX_SIZE__":       "100",
		"__LOG_FILE_MAX_AGE__":        "30",
		"__LOG_FILE_MAX_COUNT__":      "10",
		"__DATASTORE_TYPE__":          "kubernetes",
		"__KUBERNETES_SERVICE_HOST__": "",
		"__KUBERNETES_SERVICE_PORT__": "",
		"__SERVICEACCOUNT_TOKEN__":    "",
		"__CALICO_API_GROUP__":        "",
		"__ETCD_ENDPOINTS__":          "",
		"__ETCD_DISCOVERY_SRV__":      "",
		"__ETCD_CA_CERT_FILE__":       "",
		"__ETCD_CERT_FILE__":          "",
		"__ETCD_KEY_FILE__":           "",
		"__REQUIRE_MTU_FILE__":        "false",
	}
}

// TemplateError is a template that does not become a conflist.
type TemplateError struct {
	Line, Column int // where, counted from 1; 0 if the whole is meant
	Msg          string
}

// Error implements error.
func (e *TemplateError) Error() string {
	if e.Line == 0 {
		return "the conflist template " + e.Msg
	}
	return fmt.Sprintf("the conflist template, line %d, column %d: %s", e.Line, e.Column, e.Msg)
}

// Render returns the conflist that a template stands for, or a *TemplateError.
func Render(template string, v Values) ([]byte, error) {
	known := v.placeholders()
	pattern := regexp.MustCompile(`__[A-Z][A-Z0-9_]*?__`)
	var unknown error
	rendered := pattern.ReplaceAllStringFunc(template, func(name string) string {
		text, ok := known[name]
		if !ok && unknown == nil {
			unknown = at(template, strings.Index(template, name),
				name+" is no placeholder that is known here; write the value itself")
		}
		return escape(text)
	})
	if unknown != nil {
		return nil, unknown
	}
	if err := validate([]byte(rendered)); err != nil {
		return nil, err
	}
	return []byte(rendered), nil
}

// escape returns text as it stands between the quotes of a JSON string.
func escape(text string) string {
	quoted, err := json.Marshal(text)
	if err != nil {
		return text // a string always marshals
	}
	return string(quoted[1 : len(quoted)-1])
}

// validate checks what the runtime would refuse (CNI specification 1.1.0,
// section 1), so that it is found here and not at each pod.
func validate(conf []byte) error {
	if err := json.Unmarshal(conf, new(map[string]any)); err != nil {
		return syntaxError(string(conf), err)
	}
	list, err := libcni.NetworkConfFromBytes(conf)
	if err != nil {
		return &TemplateError{Msg: "is no network configuration list: " + err.Error()}
	}
	if err := utils.ValidateNetworkName(list.Name); err != nil {
		return &TemplateError{Msg: fmt.Sprintf("has the name %q: a network's name is made of letters, digits, '_', '.' and '-'", list.Name)}
	}
	if !slices.Contains(version.All.SupportedVersions(), list.CNIVersion) {
		return &TemplateError{Msg: fmt.Sprintf("has cniVersion %q: use one of %s", list.CNIVersion, strings.Join(version.All.SupportedVersions(), ", "))}
	}
	if len(list.Plugins) == 0 {
		return &TemplateError{Msg: "has no plugins"}
	}
	for i, p := range list.Plugins {
		if strings.ContainsAny(p.Network.Type, "/ ") {
			return &TemplateError{Msg: fmt.Sprintf("names %q as the type of plugin %d: a type is a file name in the plugin directory", p.Network.Type, i+1)}
		}
	}
	return nil
}

// pluginTypes returns the names of the programs that a conflist needs: main
// plugins and their IPAM plugins. Ours that the main plugin answers for itself
// are not among them.
func pluginTypes(conf []byte) ([]string, error) {
	list, err := libcni.NetworkConfFromBytes(conf)
	if err != nil {
		return nil, err
	}
	var names []string
	for _, p := range list.Plugins {
		names = append(names, p.Network.Type)
		if p.Network.IPAM.Type != "" {
			names = append(names, p.Network.IPAM.Type)
		}
	}
	return names, nil
}

// syntaxError turns encoding/json's error into one with a place.
func syntaxError(text string, err error) error {
	if syntax, ok := errors.AsType[*json.SyntaxError](err); ok {
		return at(text, int(syntax.Offset)-1, "not JSON: "+syntax.Error())
	}
	if wrong, ok := errors.AsType[*json.UnmarshalTypeError](err); ok {
		return at(text, int(wrong.Offset)-1, "a conflist is a JSON object, not a "+wrong.Value)
	}
	return &TemplateError{Msg: "is not JSON: " + err.Error()}
}

// at is an error at a byte offset of the text.
func at(text string, offset int, msg string) error {
	offset = min(max(offset, 0), len(text))
	before := text[:offset]
	return &TemplateError{Line: strings.Count(before, "\n") + 1, Column: offset - strings.LastIndex(before, "\n"), Msg: msg}
}

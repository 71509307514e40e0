package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/containernetworking/cni/pkg/types"
	types100 "github.com/containernetworking/cni/pkg/types/100"
	"github.com/containernetworking/cni/pkg/types/create"

	"ropeway.dev/ropeway/internal/cniwire"
)

// Delegation to another IPAM plugin (CNI specification 1.1.0, section 4). The
// CNI library's own package for it has come to link an HTTP client and a
// tracing library (invoke imports otel/propagation), which would start for
// every pod; what the specification asks for is small.

// The literals of Calico's that stand for the node's CIDRs in an ipam section.
const (
	usePodCIDR     = "usePodCidr"
	usePodCIDRIPv6 = "usePodCidrIPv6"
)

// runDelegate executes the IPAM plugin with verb: same environment, except for
// the command, and conf on its standard input. It returns what it printed; a
// failure that it printed is a *types.Error.
func (j *job) runDelegate(ctx context.Context, verb string, conf []byte) ([]byte, error) {
	path, err := findPlugin(j.conf.IPAM.Type, j.args.Path)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, delegateTimeout)
	defer cancel()
	var stdout bytes.Buffer
	cmd := exec.CommandContext(ctx, path)
	cmd.Env = append(append([]string{}, j.environ...), "CNI_COMMAND="+verb)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = bytes.NewReader(conf), &stdout, j.stderr
	if err := cmd.Run(); err != nil {
		return nil, delegateError(j.conf.IPAM.Type, verb, stdout.Bytes(), err)
	}
	return stdout.Bytes(), nil
}

// delegateError prefers what the plugin printed over how it ended.
func delegateError(plugin, verb string, printed []byte, err error) error {
	var said types.Error
	if json.Unmarshal(printed, &said) == nil && said.Msg != "" {
		said.Msg = fmt.Sprintf("the IPAM plugin %s failed at %s: %s", plugin, verb, said.Msg)
		return &said
	}
	return fmt.Errorf("the IPAM plugin %s failed at %s (%w) and printed %q", plugin, verb, err, bytes.TrimSpace(printed))
}

func findPlugin(name, path string) (string, error) {
	if name == "" || strings.ContainsRune(name, filepath.Separator) {
		return "", invalid(fmt.Sprintf("ipam.type is %q: give the name of a plugin", name))
	}
	for _, dir := range filepath.SplitList(path) {
		file := filepath.Join(dir, name)
		if info, err := os.Stat(file); err == nil && info.Mode().IsRegular() && info.Mode()&0o111 != 0 {
			return file, nil
		}
	}
	return "", types.NewError(cniwire.CodeInvalidConfig,
		fmt.Sprintf("the IPAM plugin %q is not in CNI_PATH (%s): install it there, or use ipam.type ropeway-ipam", name, path), "")
}

// delegateAdd has the IPAM plugin allocate.
func (j *job) delegateAdd(ctx context.Context) (*types100.Result, error) {
	conf, err := j.delegateConf(ctx)
	if err != nil {
		return nil, err
	}
	printed, err := j.runDelegate(ctx, "ADD", conf)
	if err != nil {
		return nil, err
	}
	result, err := parseResult(printed, j.conf.CNIVersion)
	if err != nil {
		return nil, types.NewError(cniwire.CodeDecode, fmt.Sprintf("the result of the IPAM plugin %s is not understood: %v", j.conf.IPAM.Type, err), "")
	}
	return result, nil
}

// delegateDel has the IPAM plugin release; it may be repeated. A plugin that is not
// there any more, its package removed, holds up no pod's end: the agent removes
// host-local's file by itself.
func (j *job) delegateDel(ctx context.Context) error {
	if _, err := findPlugin(j.conf.IPAM.Type, j.args.Path); err != nil {
		fmt.Fprintf(j.stderr, "DEL goes on without it: %v\n", err)
		return nil
	}
	_, err := j.runDelegate(ctx, "DEL", dummyCIDRs(j.conf.raw))
	return err
}

// parseResult reads the result of another plugin; one without a version has
// the configuration's (section 5: it must have one, and old plugins forget).
func parseResult(printed []byte, version string) (*types100.Result, error) {
	var fields map[string]json.RawMessage
	if err := json.Unmarshal(printed, &fields); err != nil {
		return nil, err
	}
	if err := noNulls(fields); err != nil {
		return nil, err
	}
	var own string
	if err := json.Unmarshal(fields["cniVersion"], &own); err == nil && own != "" {
		version = own
	} else {
		if fields == nil { // "null"
			fields = map[string]json.RawMessage{}
		}
		fields["cniVersion"] = json.RawMessage(fmt.Sprintf("%q", version))
		if printed, err = json.Marshal(fields); err != nil {
			return nil, err
		}
	}
	parsed, err := create.Create(version, printed)
	if err != nil {
		return nil, err
	}
	return types100.GetResult(parsed)
}

// noNulls refuses a result with an empty place in one of its lists, which the
// CNI library takes and then falls over.
func noNulls(result map[string]json.RawMessage) error {
	for _, list := range []string{"interfaces", "ips", "routes"} {
		var entries []json.RawMessage
		if json.Unmarshal(result[list], &entries) != nil {
			continue // not a list: the library says so
		}
		for i, entry := range entries {
			if string(bytes.TrimSpace(entry)) == "null" {
				return fmt.Errorf("%s[%d] of the result is null", list, i)
			}
		}
	}
	return nil
}

// delegateConf is the configuration with the node's CIDRs in the places of the
// literals; the agent is asked only if there is one.
func (j *job) delegateConf(ctx context.Context) ([]byte, error) {
	literals := map[string]bool{}
	eachSubnet(j.conf.raw, func(s string) string { literals[s] = true; return s })
	if !literals[usePodCIDR] && !literals[usePodCIDRIPv6] {
		return j.conf.raw, nil
	}
	node, err := j.ask(ctx, cniwire.Node, nil)
	if err != nil {
		return nil, err
	}
	var missing error
	out, err := eachSubnet(j.conf.raw, func(s string) string {
		if s != usePodCIDR && s != usePodCIDRIPv6 {
			return s
		}
		for _, cidr := range node.NodeCIDRs {
			if cidr.Addr().Is4() == (s == usePodCIDR) {
				return cidr.String()
			}
		}
		missing = noNodeCIDR(s, node.NodeCIDRs)
		return s
	})
	return out, errors.Join(missing, err)
}

func noNodeCIDR(literal string, have []netip.Prefix) error {
	family := "IPv4"
	if literal == usePodCIDRIPv6 {
		family = "IPv6"
	}
	return types.NewError(cniwire.CodeTryAgainLater, fmt.Sprintf(
		"the CNI configuration says %s, and the Node object of this node has no %s CIDR in spec.podCIDRs (it has %v): run kube-controller-manager with --allocate-node-cidrs=true and a --cluster-cidr of that family, or use ipam.type ropeway-ipam",
		literal, family, have), "")
}

// dummyCIDRs replaces the literals for DEL, without asking anybody: host-local
// releases by container id, and needs only something that parses, and that
// holds whatever rangeStart lies beside it.
func dummyCIDRs(raw []byte) []byte {
	out, err := eachSubnet(raw, func(s string) string {
		switch s {
		case usePodCIDR:
			return "0.0.0.0/0"
		case usePodCIDRIPv6:
			return "::/0"
		}
		return s
	})
	if err != nil {
		return raw
	}
	return out
}

// eachSubnet returns conf with replace applied to ipam.subnet and to
// ipam.ranges[][].subnet. Whatever has another shape stays as it is, for the
// delegated plugin to judge.
func eachSubnet(conf []byte, replace func(string) string) ([]byte, error) {
	var top map[string]json.RawMessage
	if err := json.Unmarshal(conf, &top); err != nil {
		return nil, fmt.Errorf("reading the network configuration: %w", err)
	}
	decoder := json.NewDecoder(bytes.NewReader(top["ipam"]))
	decoder.UseNumber() // numbers go through unchanged
	var ipam map[string]any
	if err := decoder.Decode(&ipam); err != nil {
		return nil, fmt.Errorf("reading the ipam section of the network configuration: %w", err)
	}
	replaceSubnet(ipam, replace)
	sets, _ := ipam["ranges"].([]any)
	for _, set := range sets {
		ranges, _ := set.([]any)
		for _, r := range ranges {
			if fields, ok := r.(map[string]any); ok {
				replaceSubnet(fields, replace)
			}
		}
	}
	out, err := json.Marshal(ipam)
	if err != nil {
		return nil, fmt.Errorf("writing the ipam section of the network configuration: %w", err)
	}
	top["ipam"] = out
	return json.Marshal(top)
}

func replaceSubnet(fields map[string]any, replace func(string) string) {
	if s, ok := fields["subnet"].(string); ok {
		fields["subnet"] = replace(s)
	}
}

// unsupported reports whether the delegated plugin failed because it does not
// know the verb or the version, which are of specification 1.1.0.
func unsupported(err error) bool {
	var said *types.Error
	return errors.As(err, &said) && (said.Code == types.ErrIncompatibleCNIVersion || said.Code == types.ErrInvalidEnvironmentVariables)
}

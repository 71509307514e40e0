package calico

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

// conflistName is where findings about the conflist are said to be.
const conflistName = "cni_network_config"

// readConflist reads the template of a CNI configuration list (CNI
// specification, section 1). The text is kept as it is: the agent fills the
// placeholders in on each node.
func (r *reader) readConflist(text string) error {
	parsed, unknown := withoutPlaceholders(text)
	var list map[string]any
	if err := json.Unmarshal([]byte(parsed), &list); err != nil {
		return fmt.Errorf("not JSON%s: %w", position(parsed, err), err)
	}
	r.out.Conflist = text
	for _, name := range unknown {
		r.add(conflistName, name, "").say(Refused, "not a placeholder that the agent knows")
	}
	for _, key := range sortedKeys(list) {
		if key == "plugins" {
			continue
		}
		r.readListKey(key, list[key])
	}
	plugins, _ := list["plugins"].([]any)
	if len(plugins) == 0 {
		return errors.New(`no plugins: want a configuration list with "plugins": [...]`)
	}
	for i, p := range plugins {
		conf, _ := p.(map[string]any)
		kind, _ := conf["type"].(string)
		if kind == "" {
			return fmt.Errorf(`plugins[%d] has no "type"`, i)
		}
		r.readPlugin(i, kind, conf)
	}
	return nil
}

func (r *reader) readListKey(key string, value any) {
	f := r.add(conflistName, key, shown(value))
	switch key {
	case "name", "cniVersion", "cniVersions", "disableCheck", "disableGC", "loadOnlyInlinedPlugins":
		f.say(Honoured, "")
	default:
		f.say(Refused, "not a key of a CNI configuration list")
	}
}

// readPlugin speaks of one member of the chain.
func (r *reader) readPlugin(i int, kind string, conf map[string]any) {
	at := fmt.Sprintf("plugins[%d]", i)
	main := slices.Contains([]string{"calico", "ropeway"}, kind)
	f := r.add(conflistName, at+".type", kind)
	switch {
	case main && i > 0:
		f.say(Refused, "a main plugin stands first in the chain")
		return
	case i == 0 && !main:
		f.say(Refused, "the first plugin makes the pod's interface: want calico or ropeway")
		return
	case kind == "calico":
		f.say(Translated, "--take-over calico: Ropeway's plugin answers to this name; a file of Calico's that is there is saved, and put back by uninstall")
		r.out.TakeOver = append(r.out.TakeOver, "calico")
	case kind == "ropeway":
		f.say(Honoured, "")
	case slices.Contains([]string{"portmap", "bandwidth", "tuning"}, kind):
		f.say(Honoured, "the reference plugin, chained behind; Ropeway's image has it")
		r.passOn(at, conf)
		return
	default:
		f.say(Honoured, "chained behind; its file has to be on each node already, Ropeway does not bring it")
		r.passOn(at, conf)
		return
	}
	for _, key := range sortedKeys(conf) {
		if key != "type" {
			r.readMainKey(at, key, conf[key])
		}
	}
}

// passOn speaks of the keys of a chained plugin.
func (r *reader) passOn(at string, conf map[string]any) {
	for _, key := range sortedKeys(conf) {
		if key != "type" {
			r.add(conflistName, at+"."+key, shown(conf[key])).say(Honoured, "given to that plugin as it is")
		}
	}
}

// readMainKey speaks of one key of the calico plugin's configuration.
func (r *reader) readMainKey(at, key string, value any) {
	switch nested, _ := value.(map[string]any); key {
	case "ipam":
		r.readIPAM(at+".ipam", nested)
		return
	case "policy":
		r.readPolicy(at, nested)
		return
	case "kubernetes":
		for _, k := range sortedKeys(nested) {
			r.add(conflistName, at+".kubernetes."+k, shown(nested[k])).say(Harmless, "the plugin does not talk to the API server")
		}
		return
	}
	f := r.add(conflistName, at+"."+key, shown(value))
	switch key {
	case "mtu":
		if strings.Contains(r.out.Conflist, "__CNI_MTU__") {
			f.Value = "__CNI_MTU__"
		}
		f.say(Honoured, "")
	case "device_type":
		if value == "" || value == "veth" {
			f.say(Honoured, "")
		} else {
			f.say(Refused, "pods have a veth in this version")
		}
	case "feature_control":
		f.say(Refused, "fixed addresses without IPAM and floating addresses are not in this version")
	case "dataplane_options":
		f.say(Refused, "another dataplane behind the plugin is not in this version")
	case "container_settings", "num_queues", "include_default_routes":
		f.say(Honoured, "")
	case "capabilities", "runtimeConfig", "args", "dns":
		f.say(Honoured, "")
	default:
		readHarmlessKey(f, key)
	}
}

func readHarmlessKey(f *Finding, key string) {
	switch {
	case strings.HasPrefix(key, "log_"):
		f.say(Harmless, "the plugin's errors go to the runtime, and so to the pod's events")
	case strings.HasPrefix(key, "nodename") || key == "hostname":
		f.say(Harmless, "the agent knows its Node")
	case strings.HasPrefix(key, "etcd_") || key == "datastore_type" || key == "calico_api_group":
		f.say(Harmless, "Ropeway keeps its state in the Kubernetes API")
	case strings.HasPrefix(key, "windows_") || strings.HasPrefix(key, "vxlan_") || key == "mode":
		f.say(Harmless, "for Windows only")
	case slices.Contains([]string{"qps", "burst", "readiness_gates", "ipam_lock_file", "require_mtu_file",
		"policy_setup_timeout_seconds", "endpoint_status_dir"}, key):
		f.say(Harmless, "tunes Calico's plugin")
	default:
		f.say(Refused, "not a key of Calico's plugin that this version knows: remove it if nothing depends on it")
	}
}

func (r *reader) readPolicy(at string, policy map[string]any) {
	for _, k := range sortedKeys(policy) {
		f := r.add(conflistName, at+".policy."+k, shown(policy[k]))
		switch {
		case k == "type" && policy[k] == "k8s":
			f.say(Harmless, "accepted, but this version enforces no NetworkPolicy: install stops if the cluster has any")
		case k == "type":
			f.say(Refused, "want k8s")
		default:
			f.say(Harmless, "the plugin does not talk to the API server")
		}
	}
}

func (r *reader) readIPAM(at string, ipam map[string]any) {
	kind, _ := ipam["type"].(string)
	f := r.add(conflistName, at+".type", kind)
	switch kind {
	case "calico-ipam", "ropeway-ipam":
		f.say(Honoured, "answered by the agent, from the node's blocks or podCIDRs")
		if kind == "calico-ipam" {
			r.out.TakeOver = append(r.out.TakeOver, "calico-ipam")
		}
		r.readOwnIPAM(at, ipam)
	case "host-local":
		f.say(Honoured, "the real host-local, with its own files; the agent records its addresses")
		r.readHostLocal(at, ipam)
	case "spiderpool":
		f.say(Honoured, "answered by the agent: from the SpiderIPPools and AddressPools that serve a pod, else from the node's podCIDRs")
		r.hostLocal = true // its addresses follow the nodes' podCIDRs too
		r.out.TakeOver = append(r.out.TakeOver, "spiderpool")
		r.readOwnIPAM(at, ipam)
	case "":
		f.say(Honoured, "no ipam: the agent gives addresses, as with ropeway-ipam")
	default:
		f.say(Honoured, "delegated to that plugin, whose file has to be on each node already; its addresses have to lie in the node's CIDRs")
	}
}

// readOwnIPAM speaks of calico-ipam's keys, which the agent answers.
func (r *reader) readOwnIPAM(at string, ipam map[string]any) {
	for _, key := range sortedKeys(ipam) {
		if key == "type" {
			continue
		}
		f := r.add(conflistName, at+"."+key, shown(ipam[key]))
		switch key {
		case "assign_ipv4", "assign_ipv6":
			f.say(Translated, "a pod gets one address of each family that is asked for, which spec.podCIDRs must have; of each that it has, where none is")
		case "ipv4_pools", "ipv6_pools":
			if namesCIDR(ipam[key]) {
				f.say(Refused, "a CIDR is no name: make an AddressPool of it, and name that")
				continue
			}
			f.say(Honoured, "names of AddressPools or SpiderIPPools; Calico's own IPPools are not read")
		case "default_ipv4_ippool", "default_ipv6_ippool", "routes", "include_default_routes":
			f.say(Honoured, "")
		case "log_level", "log_file_path", "log_file_max_size", "log_file_max_age", "log_file_max_count", "ipam_unix_socket_path":
			f.say(Harmless, "the plugin's errors go to the runtime, and so to the pod's events; its socket is Ropeway's")
		default:
			f.say(Refused, "not a key of this ipam.type that this version knows")
		}
	}
}

// namesCIDR reports whether a list has a CIDR among its names.
func namesCIDR(list any) bool {
	names, _ := list.([]any)
	return slices.ContainsFunc(names, func(name any) bool {
		text, _ := name.(string)
		_, err := netip.ParsePrefix(text)
		return err == nil
	})
}

func (r *reader) readHostLocal(at string, ipam map[string]any) {
	for _, key := range sortedKeys(ipam) {
		switch value := ipam[key]; key {
		case "type":
		case "subnet":
			r.readSubnet(at+".subnet", value)
		case "ranges":
			r.readRanges(at+".ranges", value)
		case "routes":
			r.add(conflistName, at+".routes", shown(value)).say(Honoured, "")
		case "dataDir":
			f := r.add(conflistName, at+".dataDir", shown(value))
			if value == "/var/lib/cni/networks" {
				f.say(Honoured, "")
			} else {
				f.say(Refused, "the agent reads host-local's files at their usual place, /var/lib/cni/networks, to hold addresses after a change")
			}
		default:
			r.add(conflistName, at+"."+key, shown(value)).say(Refused, "one value for every node: use ranges with usePodCidr")
		}
	}
	if !r.hostLocal {
		r.add(conflistName, at, "").say(Refused, "no subnet: want usePodCidr, or usePodCidrIPv6, in ranges")
	}
}

func (r *reader) readRanges(at string, value any) {
	sets, _ := value.([]any)
	for i, set := range sets {
		ranges, _ := set.([]any)
		for j, one := range ranges {
			fields, _ := one.(map[string]any)
			for _, key := range sortedKeys(fields) {
				name := fmt.Sprintf("%s[%d][%d].%s", at, i, j, key)
				if key == "subnet" {
					r.readSubnet(name, fields[key])
				} else {
					r.add(conflistName, name, shown(fields[key])).say(Refused, "one value for every node: usePodCidr alone gives each node its own")
				}
			}
		}
	}
}

func (r *reader) readSubnet(at string, value any) {
	f := r.add(conflistName, at, shown(value))
	r.hostLocal = true // whatever it is, it is there
	if value == "usePodCidr" || value == "usePodCidrIPv6" {
		f.say(Translated, "spec.addressSource: NodeCIDR; the conflist stays as it is, and the node's podCIDR stands in for the word")
		return
	}
	f.say(Refused, "the same range on every node gives two pods one address: use usePodCidr")
}

// shown is a value as a person would write it on one line.
func shown(v any) string {
	if s, ok := v.(string); ok {
		return s
	}
	text, err := json.Marshal(v)
	if err != nil {
		return fmt.Sprint(v)
	}
	return string(text)
}

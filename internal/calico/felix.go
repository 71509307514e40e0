package calico

import (
	"strconv"
	"strings"
)

// readFelixVariable knows FELIX_*: what changes who may talk to whom is
// honoured or refused, never dropped; what tunes Calico's own machinery is
// harmless.
func (r *reader) readFelixVariable(f *Finding) bool {
	name, found := strings.CutPrefix(f.Key, "FELIX_")
	if !found {
		return false
	}
	switch name {
	case "IPINIPMTU", "VXLANMTU", "VXLANMTUV6":
		r.readMTU(f)
	case "WIREGUARDMTU", "WIREGUARDMTUV6":
		f.say(Harmless, "there is no WireGuard")
	case "VXLANPORT":
		r.out.VXLANPort = readNumber(f, 1, 65535, "spec.vxlan.port")
	case "VXLANVNI":
		r.out.VXLANVNI = readNumber(f, 1, 1<<24-1, "spec.vxlan.vni")
	case "LOGSEVERITYSCREEN":
		r.readLogLevel(f)
	case "DEFAULTENDPOINTTOHOSTACTION":
		readEndpointToHost(f)
	default:
		return readFelixSwitch(f, name) || readFelixTuning(f, name)
	}
	return true
}

// readFelixSwitch knows the switches that are refused when they are on.
func readFelixSwitch(f *Finding, name string) bool {
	why, known := map[string]string{
		"BPFENABLED":                     "Ropeway does not replace kube-proxy: keep kube-proxy, and set this to false",
		"WIREGUARDENABLED":               "encryption is not in this version: traffic that is encrypted today would be bare",
		"WIREGUARDENABLEDV6":             "encryption is not in this version: traffic that is encrypted today would be bare",
		"ALLOWVXLANPACKETSFROMWORKLOADS": "a pod must not be able to inject into the overlay",
		"ALLOWIPIPPACKETSFROMWORKLOADS":  "a pod must not be able to inject into the overlay",
		"POLICYSYNCPATHPREFIX":           "policy for applications is not in this version",
		"NATOUTGOINGADDRESS":             "pods leave with their node's own address in this version",
		"NATPORTRANGE":                   "a port range for translation is not in this version",
		"EXTERNALNODESCIDRLIST":          "packets from tunnels are accepted from the cluster's nodes only",
		"FLOWLOGSGOLDMANESERVER":         "flow logs are not in this version",
	}[name]
	if !known {
		return false
	}
	off := f.Value == ""
	if v, err := strconv.ParseBool(f.Value); err == nil {
		off = !v
	}
	refuseUnless(f, off, why)
	return true
}

// readFelixTuning knows what has no meaning outside of Felix, by prefix.
func readFelixTuning(f *Finding, name string) bool {
	const own = "Ropeway has one nftables table of its own and does not touch others"
	for _, rule := range []struct{ prefix, note string }{
		{"IPV6SUPPORT", "the families are those of the pod CIDRs"},
		{"IPINIPENABLED", "the transports decide"},
		{"VXLANENABLED", "the transports decide"},
		{"HEALTH", "the agent's health is at port 9797, /healthz and /readyz"},
		{"PROMETHEUS", "metrics are at port 9797, /metrics, always"},
		{"LOGSEVERITY", "logs go to the container's output only"},
		{"LOGFILEPATH", "logs go to the container's output only"},
		{"LOGPREFIX", "nothing is logged by packet filter rules"},
		{"USAGEREPORTING", "nothing is ever reported to anybody"},
		{"TYPHA", "there is no Typha"},
		{"BPF", "Calico's eBPF dataplane is not used"},
		{"XDP", "Calico's eBPF dataplane is not used"},
		{"IPTABLES", own},
		{"NFTABLES", own},
		{"NETLINK", own},
		{"IPSETS", own},
		{"CHAININSERTMODE", own},
		{"FAILSAFE", "there are no policies for hosts that could lock one out"},
		{"KUBENODEPORTRANGES", "there are no policies for hosts"},
		{"INTERFACEPREFIX", "pods' links are named rwp..."},
		{"INTERFACEREFRESH", own},
		{"INTERFACEEXCLUDE", "uplinks are what the kernel's routing table answers"},
		{"MTUIFACEPATTERN", "uplinks are what the kernel's routing table answers"},
		{"ROUTE", "routes carry protocol number 112"},
		{"DEVICEROUTE", "routes carry protocol number 112"},
		{"REMOVEEXTERNALROUTES", "routes of others are never removed"},
		{"FEATUREDETECT", "features are probed"},
		{"FEATUREGATES", "they are Felix's"},
		{"REPORTING", "they are Felix's"},
		{"ENDPOINT", "they are Felix's"},
		{"DATASTORETYPE", "Ropeway keeps its state in the Kubernetes API"},
		{"SERVICELOOPPREVENTION", "it is kube-proxy's matter"},
		{"FLOATINGIPS", "no pod has a floating address"},
		{"FLOWLOGS", "flow logs are not in this version"},
		{"GENERICXDP", "Calico's eBPF dataplane is not used"},
	} {
		if strings.HasPrefix(name, rule.prefix) {
			f.say(Harmless, "%s", rule.note)
			return true
		}
	}
	return false
}

func readNumber(f *Finding, low, high int, field string) int32 {
	n, err := strconv.Atoi(f.Value)
	if err != nil || n < low || n > high {
		f.say(Refused, "want a number from %d to %d", low, high)
		return 0
	}
	f.say(Translated, "%s: %d", field, n)
	return int32(n)
}

func (r *reader) readLogLevel(f *Finding) {
	level, known := map[string]string{
		"debug": "debug", "trace": "debug", "info": "info", "warning": "warn", "warn": "warn",
		"error": "error", "fatal": "error", "none": "error",
	}[strings.ToLower(f.Value)]
	if !known {
		f.say(Refused, "want Debug, Info, Warning, Error or Fatal")
		return
	}
	r.out.LogLevel = level
	f.say(Translated, "--log-level %s", level)
}

// readEndpointToHost: pods may talk to their own node, which is what ACCEPT
// says and what RETURN leaves to the host's own rules.
func readEndpointToHost(f *Finding) {
	switch strings.ToUpper(f.Value) {
	case "ACCEPT":
		f.say(Honoured, "pods may talk to their own node")
	case "RETURN":
		f.say(Honoured, "the host's own rules decide what pods may ask of it")
	default:
		f.say(Refused, "closing the node to its own pods is policy, which is not in this version: use the host's own firewall, and RETURN here")
	}
}

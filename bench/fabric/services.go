package fabric

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
)

// Port is where the server listens, and what the Service before it has.
const Port = 7000

// service is the ClusterIP of the Service before the server.
func service() netip.Addr { return netip.AddrFrom4([4]byte{172, 21, 0, 80}) }

// proxyRules are what kube-proxy's nftables mode has on a node, chain by chain and
// hook by hook, for the Service before the server (%[1]s:%[2]d, the endpoint is
// %[3]s) and one that has no endpoint: every packet of a cluster's node passes
// them and connection tracking, whatever the pod network is.
const proxyRules = `table ip kube-proxy {
	map service-ips {
		type ipv4_addr . inet_proto . inet_service : verdict
		elements = { %[1]s . tcp . %[2]d : goto service-server, %[1]s . udp . %[2]d : goto service-server }
	}
	map service-nodeports { type inet_proto . inet_service : verdict; }
	map no-endpoint-services {
		type ipv4_addr . inet_proto . inet_service : verdict
		elements = { 172.21.0.81 . tcp . 80 : drop }
	}
	map no-endpoint-nodeports { type inet_proto . inet_service : verdict; }
	map firewall-ips { type ipv4_addr . inet_proto . inet_service : verdict; }
	set nodeport-ips { type ipv4_addr; elements = { 192.168.1.2, 192.168.2.2 }; }
	set cluster-ips { type ipv4_addr; elements = { %[1]s, 172.21.0.81 }; }

	chain firewall-check { ip daddr . meta l4proto . th dport vmap @firewall-ips; }
	chain endpoints-check { ip daddr . meta l4proto . th dport vmap @no-endpoint-services; }
	chain nodeports-check { ip daddr @nodeport-ips meta l4proto . th dport vmap @no-endpoint-nodeports; }
	chain cluster-ips-check { ip daddr @cluster-ips drop; }
	chain services {
		ip daddr . meta l4proto . th dport vmap @service-ips
		ip daddr @nodeport-ips meta l4proto . th dport vmap @service-nodeports
	}
	chain mark-for-masquerade { meta mark set meta mark or 0x4000; }
	chain masquerading {
		meta mark & 0x4000 == 0 return
		meta mark set meta mark xor 0x4000
		masquerade fully-random
	}
	chain service-server {
		ip daddr %[1]s ip saddr != 10.244.0.0/16 jump mark-for-masquerade
		numgen random mod 1 vmap { 0 : goto endpoint-server }
	}
	chain endpoint-server {
		ip saddr %[3]s jump mark-for-masquerade
		meta l4proto tcp dnat to %[3]s:%[2]d
		meta l4proto udp dnat to %[3]s:%[2]d
	}

	chain filter-prerouting { type filter hook prerouting priority -110; ct state new jump firewall-check; }
	chain filter-input { type filter hook input priority -110; ct state new jump nodeports-check; ct state new jump endpoints-check; }
	chain filter-forward { type filter hook forward priority -110; ct state new jump endpoints-check; ct state new jump cluster-ips-check; }
	chain filter-output { type filter hook output priority -110; ct state new jump endpoints-check; ct state new jump firewall-check; }
	chain filter-output-post-dnat { type filter hook output priority -90; ct state new jump cluster-ips-check; }
	chain nat-prerouting { type nat hook prerouting priority -100; jump services; }
	chain nat-output { type nat hook output priority -100; jump services; }
	chain nat-postrouting { type nat hook postrouting priority 100; jump masquerading; }
}
`

// serve gives both nodes what kube-proxy would, and the way a Service before its
// server.
func (f *Fabric) serve(ctx context.Context, w *Way) error {
	path := filepath.Join(f.Dir, "kube-proxy.nft")
	if err := os.WriteFile(path, fmt.Appendf(nil, proxyRules, service(), Port, w.At), 0o644); err != nil {
		return fmt.Errorf("fabric %s: %w", f.Name, err)
	}
	w.Service = service()
	return f.shell(ctx, fmt.Sprintf("for i in 1 2; do ip netns exec NAME-node$i nft -f %s; done", path))
}

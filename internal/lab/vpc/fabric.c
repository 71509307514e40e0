// SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only

//go:build ignore

// The VPC's fabric: what a cloud's virtual switch does with one frame that a
// host put on its wire. It is attached to the ingress of the VPC's end of
// every wire, and nothing passes it into the kernel's own stack:
//
//   - ARP and neighbour solicitations are answered with one MAC for everybody;
//   - the source must be routed to the wire that the packet came in on;
//   - a wire may be told to carry its host's own addresses only (the cloud's
//     source and destination check), or nothing, while the host is switched off;
//   - security-group switches are looked at; that for pods' addresses is a
//     stateful rule about sources, as a cloud's groups have it: what leaves a host
//     lets its answers in;
//   - the kernel's route table of this namespace (ip route), or the one that a
//     wire is bound to (ip rule), picks the wire by destination alone, and the
//     frame leaves with its TTL untouched.
//
// A BPF program and not the kernel's own forwarding: that one takes 1 from the
// TTL, answers with ICMP errors no cloud sends, and cannot answer neighbour
// solicitations for everybody. The route table stays the kernel's, so that
// `ip -n rwlab-LAB-vpc route` shows the truth.

#include <linux/bpf.h>
#include <linux/icmpv6.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <linux/pkt_cls.h>
#include <linux/udp.h>

// What libbpf's headers would give, so that building needs clang and the kernel's headers only.
#define SEC(name) __attribute__((section(name), used))
#define __uint(name, value) int(*name)[value]
#define __type(name, value) typeof(value) *name
#undef __always_inline // the kernel's is a hint only
#define __always_inline inline __attribute__((always_inline))
#define bpf_htons(x) __builtin_bswap16(x) // the object is for little-endian machines
#define bpf_htonl(x) __builtin_bswap32(x)

static void *(*const bpf_map_lookup_elem)(void *map, const void *key) = (void *)BPF_FUNC_map_lookup_elem;
static long (*const bpf_map_update_elem)(void *map, const void *key, const void *value, __u64 flags) = (void *)BPF_FUNC_map_update_elem;
static __u64 (*const bpf_ktime_get_ns)(void) = (void *)BPF_FUNC_ktime_get_ns;
static long (*const bpf_skb_load_bytes)(const void *skb, __u32 offset, void *to, __u32 len) = (void *)BPF_FUNC_skb_load_bytes;
static long (*const bpf_skb_store_bytes)(struct __sk_buff *skb, __u32 offset, const void *from, __u32 len,
					 __u64 flags) = (void *)BPF_FUNC_skb_store_bytes;
static long (*const bpf_skb_change_tail)(struct __sk_buff *skb, __u32 len, __u64 flags) = (void *)BPF_FUNC_skb_change_tail;
static long (*const bpf_redirect)(__u32 ifindex, __u64 flags) = (void *)BPF_FUNC_redirect;
static long (*const bpf_fib_lookup)(void *ctx, struct bpf_fib_lookup *params, int len, __u32 flags) = (void *)BPF_FUNC_fib_lookup;
static __s64 (*const bpf_csum_diff)(__be32 *from, __u32 from_size, __be32 *to, __u32 to_size,
				    __wsum seed) = (void *)BPF_FUNC_csum_diff;

#define FAMILY_IPV4 2
#define FAMILY_IPV6 10
#define ARP_REQUEST 1
#define ARP_REPLY 2
#define PROTO_IPV6_IN_IP 41
#define PORT_VXLAN 4789
#define ICMP_ECHO_REPLY 0
#define ICMP_ECHO_REQUEST 8
#define ICMPV6_ECHO_REQUESTED 128
#define ICMPV6_ECHO_REPLIED 129
#define SECOND 1000000000ULL
#define SESSION_KEPT (910 * SECOND) // of a security group without a packet; the vendor's figure
#define FIB_SKIP_NEIGH (1U << 2) // newer than the oldest header we compile with

// ROUTE_METRIC_CUSTOM marks the entries that SetRoute wrote; metricCustom in route.go.
#define ROUTE_METRIC_CUSTOM 200

#define NA_LEN (ETH_HLEN + sizeof(struct advert))

// The order is that of counterNames in fabric.go.
enum counter {
	UNKNOWN_DESTINATION,
	SPOOFED_SOURCE,
	BLOCKED_IPIP,
	BLOCKED_VXLAN,
	BLOCKED_POD_CIDR,
	SOURCE_DEST_CHECK,
	HOST_OFF,
	MULTICAST,
	TOO_BIG,
	MALFORMED,
	FORWARDED,
	PROTO_4,
	PROTO_41,
	UDP_4789,
	POD_CIDR_BARE,
	COUNTERS,
};

// The order is that of the keys of blocks in fabric.go.
enum block { BLOCK_IPIP, BLOCK_VXLAN, BLOCK_POD_CIDR, BLOCKS };

struct arp_ipv4 {
	__be16 hardware, protocol;
	__u8 hardware_len, protocol_len;
	__be16 operation;
	__u8 sender_mac[ETH_ALEN];
	__be32 sender;
	__u8 target_mac[ETH_ALEN];
	__be32 target;
} __attribute__((packed));

struct advert {
	struct ipv6hdr ip;
	struct icmp6hdr icmp;
	struct in6_addr target;
	__u8 option, option_len;
	__u8 mac[ETH_ALEN];
} __attribute__((packed, aligned(4)));

// packet is what the fabric knows of one packet. IPv4 addresses are in a[3] of
// src and dst, behind the prefix ::ffff:0:0/96.
struct packet {
	__u32 src[4], dst[4];
	__u32 family;
	__u32 l4_offset; // 0: no transport header in this fragment
	__u8 proto;
};

struct pod_key {
	__u32 bits;
	__u32 address[4];
};

// session is one connection as the side that sends sees it. Ports are 0 where a
// packet has none (a later fragment), and both the id of an ICMP echo.
struct session {
	__u32 src[4], dst[4];
	__be16 src_port, dst_port;
	__u32 proto;
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, COUNTERS);
	__type(key, __u32);
	__type(value, __u64);
} counters SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, BLOCKS);
	__type(key, __u32);
	__type(value, __u32);
} blocks SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(max_entries, 64);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct pod_key);
	__type(value, __u8);
} pod_cidrs SEC(".maps");

// sessions holds what was sent to pods -> when the connection had a packet last.
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 1 << 16);
	__type(key, struct session);
	__type(value, __u64);
} sessions SEC(".maps");

// source_checks holds the wires whose host may only send from, and is only sent
// to at, its own addresses.
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 64);
	__type(key, __u32);
	__type(value, __u8);
} source_checks SEC(".maps");

// off holds the wires whose host is switched off, and neither sends nor gets.
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 64);
	__type(key, __u32);
	__type(value, __u8);
} off SEC(".maps");

// outside_ifindex is the wire to the outside world.
const volatile __u32 outside_ifindex = 0;

static const __u8 everybody[ETH_ALEN] = {0xee, 0xff, 0xff, 0xff, 0xff, 0xff};

// count adds the packet, or as many as GRO made it from, to a counter.
static __always_inline void count(struct __sk_buff *skb, __u32 which)
{
	__u64 *value = bpf_map_lookup_elem(&counters, &which);
	__u32 packets = skb->gso_segs;

	if (value)
		*value += packets ? packets : 1;
}

static __always_inline int drop(struct __sk_buff *skb, __u32 cause)
{
	count(skb, cause);
	return TC_ACT_SHOT;
}

static __always_inline int blocked(__u32 which)
{
	__u32 *on = bpf_map_lookup_elem(&blocks, &which);

	return on && *on;
}

static __always_inline int is_off(__u32 ifindex)
{
	return bpf_map_lookup_elem(&off, &ifindex) != 0;
}

// answer_arp answers every request for an address that is not the asker's own.
static __always_inline int answer_arp(struct __sk_buff *skb)
{
	struct arp_ipv4 arp;
	struct ethhdr eth;
	__be32 asked;

	if (is_off(skb->ifindex))
		return TC_ACT_SHOT;
	if (bpf_skb_load_bytes(skb, ETH_HLEN, &arp, sizeof(arp)) < 0)
		return drop(skb, MALFORMED);
	if (arp.operation != bpf_htons(ARP_REQUEST) || arp.sender == 0 || arp.sender == arp.target)
		return TC_ACT_SHOT; // a reply, a probe or an announcement: nobody else is on this wire
	__builtin_memcpy(eth.h_dest, arp.sender_mac, ETH_ALEN);
	__builtin_memcpy(eth.h_source, everybody, ETH_ALEN);
	eth.h_proto = bpf_htons(ETH_P_ARP);

	asked = arp.target;
	arp.operation = bpf_htons(ARP_REPLY);
	__builtin_memcpy(arp.target_mac, arp.sender_mac, ETH_ALEN);
	__builtin_memcpy(arp.sender_mac, everybody, ETH_ALEN);
	arp.target = arp.sender;
	arp.sender = asked;
	if (bpf_skb_store_bytes(skb, 0, &eth, sizeof(eth), 0) < 0 ||
	    bpf_skb_store_bytes(skb, ETH_HLEN, &arp, sizeof(arp), 0) < 0)
		return drop(skb, MALFORMED);
	return bpf_redirect(skb->ifindex, 0);
}

static __always_inline __sum16 icmp6_checksum(struct advert *na)
{
	__be32 pseudo[2] = {bpf_htonl(sizeof(*na) - sizeof(na->ip)), bpf_htonl(IPPROTO_ICMPV6)};
	__s64 sum = bpf_csum_diff(0, 0, pseudo, sizeof(pseudo), 0);

	// Both addresses and all that follows the IPv6 header lie in one piece,
	// behind the header's first 8 bytes.
	sum = bpf_csum_diff(0, 0, (__be32 *)na + 2, sizeof(*na) - 8, sum);
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	return ~sum;
}

// answer_solicitation turns a neighbour solicitation into an advertisement
// (RFC 4861 section 4.4, solicited and override flags).
static __always_inline int answer_solicitation(struct __sk_buff *skb, const struct ipv6hdr *ip)
{
	struct advert na = {};
	struct in6_addr target;
	struct ethhdr eth;

	if (bpf_skb_load_bytes(skb, ETH_HLEN + sizeof(*ip) + sizeof(struct icmp6hdr), &target, sizeof(target)) < 0 ||
	    bpf_skb_load_bytes(skb, 0, &eth, sizeof(eth)) < 0)
		return drop(skb, MALFORMED);
	if (!(ip->saddr.in6_u.u6_addr32[0] | ip->saddr.in6_u.u6_addr32[1] | ip->saddr.in6_u.u6_addr32[2] |
	      ip->saddr.in6_u.u6_addr32[3]))
		return TC_ACT_SHOT; // duplicate address detection: nobody else is on this wire
	__builtin_memcpy(eth.h_dest, eth.h_source, ETH_ALEN);
	__builtin_memcpy(eth.h_source, everybody, ETH_ALEN);

	na.ip.version = 6;
	na.ip.payload_len = bpf_htons(sizeof(na) - sizeof(na.ip));
	na.ip.nexthdr = IPPROTO_ICMPV6;
	na.ip.hop_limit = 255;
	na.ip.saddr = target;
	na.ip.daddr = ip->saddr;
	na.icmp.icmp6_type = 136;
	na.icmp.icmp6_dataun.un_data32[0] = bpf_htonl(0x60000000);
	na.target = target;
	na.option = 2; // target link-layer address, one unit of 8 bytes
	na.option_len = 1;
	__builtin_memcpy(na.mac, everybody, ETH_ALEN);
	na.icmp.icmp6_cksum = icmp6_checksum(&na);

	if (bpf_skb_change_tail(skb, NA_LEN, 0) < 0 ||
	    bpf_skb_store_bytes(skb, 0, &eth, sizeof(eth), 0) < 0 ||
	    bpf_skb_store_bytes(skb, ETH_HLEN, &na, sizeof(na), BPF_F_INVALIDATE_HASH) < 0)
		return drop(skb, MALFORMED);
	return bpf_redirect(skb->ifindex, 0);
}

// route asks a route table of the namespace who owns an address: with
// BPF_FIB_LOOKUP_DIRECT the main one, else the one that the rules (ip rule)
// say for the wire.
static __always_inline long route(struct __sk_buff *skb, struct bpf_fib_lookup *fib, const struct packet *p,
				  const __u32 *address, __u32 flags)
{
	__builtin_memset(fib, 0, sizeof(*fib));
	fib->family = p->family;
	fib->ifindex = skb->ifindex;
	if (p->family == FAMILY_IPV4)
		fib->ipv4_dst = address[3];
	else
		__builtin_memcpy(fib->ipv6_dst, address, sizeof(fib->ipv6_dst));
	return bpf_fib_lookup(skb, fib, sizeof(*fib), flags);
}

static __always_inline int is_pod(const __u32 *address)
{
	struct pod_key key = {.bits = 128};

	int found;

	__builtin_memcpy(key.address, address, sizeof(key.address));
	found = bpf_map_lookup_elem(&pod_cidrs, &key) != 0;
	// Else the compiler would combine the pointers of two lookups, which the
	// kernel does not load.
	asm volatile("" : "+r"(found));
	return found;
}

static __always_inline int is_vxlan(struct __sk_buff *skb, const struct packet *p)
{
	struct udphdr udp;

	if (p->proto != IPPROTO_UDP || !p->l4_offset)
		return 0;
	if (bpf_skb_load_bytes(skb, p->l4_offset, &udp, sizeof(udp)) < 0)
		return 0;
	return udp.dest == bpf_htons(PORT_VXLAN);
}

// read_session says which connection a packet is of.
static __always_inline void read_session(struct __sk_buff *skb, const struct packet *p, struct session *s)
{
	struct { __u8 type, code; __u16 checksum; __be16 id; } icmp;
	__be16 ports[2];

	__builtin_memcpy(s->src, p->src, sizeof(s->src));
	__builtin_memcpy(s->dst, p->dst, sizeof(s->dst));
	s->src_port = s->dst_port = 0;
	s->proto = p->proto;
	if (!p->l4_offset)
		return;
	if (p->proto == IPPROTO_TCP || p->proto == IPPROTO_UDP) {
		if (bpf_skb_load_bytes(skb, p->l4_offset, ports, sizeof(ports)) == 0)
			s->src_port = ports[0], s->dst_port = ports[1];
	} else if (p->proto == IPPROTO_ICMP || p->proto == IPPROTO_ICMPV6) {
		if (bpf_skb_load_bytes(skb, p->l4_offset, &icmp, sizeof(icmp)) < 0)
			return;
		if (icmp.type == ICMP_ECHO_REQUEST || icmp.type == ICMP_ECHO_REPLY || icmp.type == ICMPV6_ECHO_REQUESTED ||
		    icmp.type == ICMPV6_ECHO_REPLIED)
			s->src_port = s->dst_port = icmp.id;
	}
}

// note keeps the connection of a packet that leaves its host for a pod, whatever
// becomes of it on its way: the group lets all out. So two ends that both send,
// each to the port that the other sends from, let one another in, as in the cloud.
static __always_inline void note(const struct session *s)
{
	__u64 now = bpf_ktime_get_ns(), *seen = bpf_map_lookup_elem(&sessions, s);

	if (!seen)
		bpf_map_update_elem(&sessions, s, &now, BPF_ANY);
	else if (now - *seen > SECOND) // not with every packet: all processors write here
		*seen = now;
}

// answers says whether a packet goes back where a connection came from, and keeps
// that one.
static __always_inline int answers(const struct session *s)
{
	struct session came = {.src_port = s->dst_port, .dst_port = s->src_port, .proto = s->proto};
	__u64 now = bpf_ktime_get_ns(), *seen;

	__builtin_memcpy(came.src, s->dst, sizeof(came.src));
	__builtin_memcpy(came.dst, s->src, sizeof(came.dst));
	seen = bpf_map_lookup_elem(&sessions, &came);
	if (!seen || now - *seen > SESSION_KEPT)
		return 0;
	*seen = now;
	return 1;
}

// group applies the security group and says what kind of packet this is: a
// counter of its own, or COUNTERS; -1 when it was dropped.
static __always_inline int group(struct __sk_buff *skb, const struct packet *p)
{
	int kind, cause, refused, from_pod, to_pod;
	struct session session;

	if (p->proto == IPPROTO_IPIP || p->proto == PROTO_IPV6_IN_IP) {
		kind = p->proto == IPPROTO_IPIP ? PROTO_4 : PROTO_41;
		cause = BLOCKED_IPIP, refused = blocked(BLOCK_IPIP);
	} else if (is_vxlan(skb, p)) {
		kind = UDP_4789, cause = BLOCKED_VXLAN, refused = blocked(BLOCK_VXLAN);
	} else {
		from_pod = is_pod(p->src), to_pod = is_pod(p->dst);
		if (!from_pod && !to_pod)
			return COUNTERS;
		kind = POD_CIDR_BARE, cause = BLOCKED_POD_CIDR;
		refused = from_pod && blocked(BLOCK_POD_CIDR);
		if (to_pod || refused)
			read_session(skb, p, &session);
		if (to_pod)
			note(&session);
		refused = refused && !answers(&session);
	}
	if (refused) {
		count(skb, cause);
		return -1;
	}
	return kind;
}

static __always_inline int checked(__u32 ifindex)
{
	return bpf_map_lookup_elem(&source_checks, &ifindex) != 0;
}

// owns says whether a table sends an address to the wire that the packet came
// in on.
static __always_inline int owns(struct __sk_buff *skb, struct bpf_fib_lookup *fib, const struct packet *p, __u32 flags)
{
	return route(skb, fib, p, p->src, flags | FIB_SKIP_NEIGH) == BPF_FIB_LKUP_RET_SUCCESS && fib->ifindex == skb->ifindex;
}

static __always_inline int forward(struct __sk_buff *skb, const struct packet *p)
{
	struct bpf_fib_lookup src, dst;
	int kind;
	long rc;

	if (is_off(skb->ifindex))
		return drop(skb, HOST_OFF);
	// The main table, or the wire's own where it has one.
	if (!owns(skb, &src, p, BPF_FIB_LOOKUP_DIRECT) && !owns(skb, &src, p, 0))
		return drop(skb, SPOOFED_SOURCE);
	if (src.rt_metric == ROUTE_METRIC_CUSTOM && checked(skb->ifindex))
		return drop(skb, SOURCE_DEST_CHECK);
	kind = group(skb, p);
	if (kind < 0)
		return TC_ACT_SHOT;
	rc = route(skb, &dst, p, p->dst, 0);
	if (rc == BPF_FIB_LKUP_RET_FRAG_NEEDED)
		return drop(skb, TOO_BIG);
	if (rc != BPF_FIB_LKUP_RET_SUCCESS)
		return drop(skb, UNKNOWN_DESTINATION);
	if (is_off(dst.ifindex))
		return drop(skb, HOST_OFF);
	if (dst.rt_metric == ROUTE_METRIC_CUSTOM && checked(dst.ifindex))
		return drop(skb, SOURCE_DEST_CHECK);
	// The way out exists for the hosts' own addresses only: no cloud knows
	// what to answer to a pod's.
	if (dst.ifindex == outside_ifindex && src.rt_metric == ROUTE_METRIC_CUSTOM)
		return drop(skb, SPOOFED_SOURCE);

	if (bpf_skb_store_bytes(skb, 0, dst.dmac, ETH_ALEN, 0) < 0 ||
	    bpf_skb_store_bytes(skb, ETH_ALEN, everybody, ETH_ALEN, 0) < 0)
		return drop(skb, MALFORMED);
	count(skb, FORWARDED);
	if (kind < COUNTERS)
		count(skb, kind);
	return bpf_redirect(dst.ifindex, 0);
}

static __always_inline int ipv4(struct __sk_buff *skb)
{
	struct packet p = {.family = FAMILY_IPV4};
	struct iphdr ip;

	if (bpf_skb_load_bytes(skb, ETH_HLEN, &ip, sizeof(ip)) < 0 || ip.ihl < 5)
		return drop(skb, MALFORMED);
	if ((ip.daddr & bpf_htonl(0xf0000000)) == bpf_htonl(0xe0000000) || ip.daddr == 0xffffffff)
		return drop(skb, MULTICAST);
	p.src[2] = p.dst[2] = bpf_htonl(0xffff);
	p.src[3] = ip.saddr;
	p.dst[3] = ip.daddr;
	p.proto = ip.protocol;
	if (!(ip.frag_off & bpf_htons(0x1fff)))
		p.l4_offset = ETH_HLEN + ip.ihl * 4;
	return forward(skb, &p);
}

static __always_inline int ipv6(struct __sk_buff *skb)
{
	struct packet p = {.family = FAMILY_IPV6};
	struct { __u8 next, reserved; __be16 offset; __be32 id; } fragment;
	struct ipv6hdr ip;
	__u8 type = 0;

	if (bpf_skb_load_bytes(skb, ETH_HLEN, &ip, sizeof(ip)) < 0)
		return drop(skb, MALFORMED);
	p.l4_offset = ETH_HLEN + sizeof(ip);
	p.proto = ip.nexthdr;
	if (ip.nexthdr == IPPROTO_ICMPV6 && ip.hop_limit == 255) {
		bpf_skb_load_bytes(skb, p.l4_offset, &type, sizeof(type));
		if (type == 135 && !is_off(skb->ifindex))
			return answer_solicitation(skb, &ip);
		if (type >= 133 && type <= 137)
			return TC_ACT_SHOT; // router discovery and stray advertisements: everything is static here
	}
	if (ip.daddr.in6_u.u6_addr8[0] == 0xff)
		return drop(skb, MULTICAST);
	if (ip.nexthdr == IPPROTO_FRAGMENT) {
		if (bpf_skb_load_bytes(skb, p.l4_offset, &fragment, sizeof(fragment)) < 0)
			return drop(skb, MALFORMED);
		p.proto = fragment.next;
		p.l4_offset = fragment.offset & bpf_htons(0xfff8) ? 0 : p.l4_offset + sizeof(fragment);
	}
	__builtin_memcpy(p.src, &ip.saddr, sizeof(p.src));
	__builtin_memcpy(p.dst, &ip.daddr, sizeof(p.dst));
	return forward(skb, &p);
}

SEC("tc")
int fabric(struct __sk_buff *skb)
{
	switch (bpf_htons(skb->protocol)) {
	case ETH_P_IP:
		return ipv4(skb);
	case ETH_P_IPV6:
		return ipv6(skb);
	case ETH_P_ARP:
		return answer_arp(skb);
	}
	return drop(skb, MALFORMED);
}

// The kernel lends bpf_fib_lookup to programs under a GPL-compatible licence only.
char _license[] SEC("license") = "Dual MIT/GPL";

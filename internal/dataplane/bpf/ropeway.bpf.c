//go:build ignore

/* SPDX-License-Identifier: Apache-2.0
 *
 * The ipip transport, and the guard of both transports, at a node's uplinks.
 *
 * Egress: an IPv4 packet whose destination is another node's gets an outer IPv4
 * header of protocol 4 (RFC 2003). Which packets come by here is decided by
 * routes, which also carry the MTU, so nothing has to be fragmented here. A
 * destination without a local end stays as it is: the direct transport. (No
 * entry at all would not do: a wider one, of another node, would be found.)
 *
 * Egress of probes: to try the direct transport, whichever is in use, this
 * node's prober wraps a probe in a header to the next hop's node, so that the
 * kernel routes it there, and marks it; here the wrapping comes off. Its
 * protocol is one that nobody takes in, so that a probe which has not been
 * here proves nothing. Pods cannot set the mark: it does not leave their
 * namespace.
 *
 * Ingress: a protocol-4 packet to this node loses its outer header if the outer
 * source is a node and the inner source is an address that this node owns. The
 * same is asked of packets of our vxlan network, which the kernel's device then
 * decapsulates. Everything else goes on as if the program were not there.
 *
 * The programs use no helper that is reserved to GPL programs, so their licence
 * is that of the project.
 */
#include "ropeway.bpf.h"

char rw_license[] SECTION("license") = "Apache-2.0";

/* Events are counted per CPU; the order is that of events in counters.go. */
enum event {
	IPIP_SENT,
	IPIP_RECEIVED,
	IPIP_NOT_A_NODE,
	IPIP_FOREIGN_SOURCE,
	IPIP_MALFORMED,
	IPIP_CONGESTION,
	IPIP_FRAGMENT,
	IPIP_NO_ROOM,
	VXLAN_RECEIVED,
	VXLAN_NOT_A_NODE,
	VXLAN_FOREIGN_SOURCE,
	VXLAN_MALFORMED,
	PROBE_BARE,
	EVENTS,
};

/* An address of either family: IPv4 in its IPv6-mapped form. */
struct address {
	u32 word[4];
};

struct prefix {
	u32 bits;
	struct address address;
};

struct endpoint {
	u32 remote;
	u32 local; /* 0: packets stay as they are */
};

/* The addresses of the node that owns a prefix; zero if it has none. */
struct owner {
	struct address ipv4;
	struct address ipv6;
};

enum role {
	PEER = 1,
	SELF = 2,
};

struct settings {
	u32 vni;
	u32 port; /* network byte order */
};

/* pod CIDR of another node -> where to send packets to it */
struct {
	MAP_NUMBER(type, MAP_LPM_TRIE);
	MAP_NUMBER(map_flags, MAP_NO_PREALLOC);
	MAP_NUMBER(max_entries, 65536);
	MAP_TYPE(key, struct prefix);
	MAP_TYPE(value, struct endpoint);
} destinations SECTION(".maps");

/* pod CIDR of another node -> the node that may send packets from it */
struct {
	MAP_NUMBER(type, MAP_LPM_TRIE);
	MAP_NUMBER(map_flags, MAP_NO_PREALLOC);
	MAP_NUMBER(max_entries, 65536);
	MAP_TYPE(key, struct prefix);
	MAP_TYPE(value, struct owner);
} sources SECTION(".maps");

/* CIDR of the pod network -> 1 */
struct {
	MAP_NUMBER(type, MAP_LPM_TRIE);
	MAP_NUMBER(map_flags, MAP_NO_PREALLOC);
	MAP_NUMBER(max_entries, 64);
	MAP_TYPE(key, struct prefix);
	MAP_TYPE(value, u32);
} pod_network SECTION(".maps");

/* address of a node in the fabric -> enum role */
struct {
	MAP_NUMBER(type, MAP_HASH);
	MAP_NUMBER(map_flags, MAP_NO_PREALLOC);
	MAP_NUMBER(max_entries, 32768);
	MAP_TYPE(key, struct address);
	MAP_TYPE(value, u32);
} nodes SECTION(".maps");

/* 0 -> settings */
struct {
	MAP_NUMBER(type, MAP_ARRAY);
	MAP_NUMBER(max_entries, 1);
	MAP_TYPE(key, u32);
	MAP_TYPE(value, struct settings);
} settings SECTION(".maps");

/* enum event -> packets */
struct {
	MAP_NUMBER(type, MAP_PERCPU_ARRAY);
	MAP_NUMBER(max_entries, EVENTS);
	MAP_TYPE(key, u32);
	MAP_TYPE(value, u64);
} counters SECTION(".maps");

INLINE void count(u32 event)
{
	u64 *n = map_lookup(&counters, &event);
	if (n)
		*n += 1;
}

INLINE int drop(u32 event)
{
	count(event);
	return DROP;
}

INLINE struct address mapped(u32 ipv4)
{
	struct address a = {{0, 0, BE32(0xffff), ipv4}};
	return a;
}

INLINE int equal(const struct address *a, const struct address *b)
{
	return a->word[0] == b->word[0] && a->word[1] == b->word[1] &&
	       a->word[2] == b->word[2] && a->word[3] == b->word[3];
}

INLINE u32 role_of(const struct address *a)
{
	u32 *role = map_lookup(&nodes, a);
	return role ? *role : 0;
}

INLINE int in_pod_network(u32 ipv4)
{
	struct prefix p = {128, mapped(ipv4)};
	return map_lookup(&pod_network, &p) != 0;
}

/* Whether the node with the outer address owns the inner one. */
INLINE int owns(const struct address *outer, const struct address *inner)
{
	struct prefix p = {128, *inner};
	struct owner *o = map_lookup(&sources, &p);
	return o && (equal(&o->ipv4, outer) || equal(&o->ipv6, outer));
}

/* The checksum of an IPv4 header without options (RFC 1071), 0 if the header
 * holds the right one already. */
INLINE u16 checksum(const struct ipv4 *ip)
{
	const u16 *half = (const u16 *)ip;
	u32 sum = 0;

#pragma unroll
	for (int i = 0; i < 10; i++)
		sum += half[i];
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	return ~sum;
}

/* Reads the header at the offset; 0 if the packet has it. The first bytes are
 * nearly always linear, which a direct read is the fastest for. */
INLINE int read_ipv4(struct __sk_buff *skb, u32 offset, struct ipv4 *ip)
{
	void *data = (void *)(long)skb->data;
	void *end = (void *)(long)skb->data_end;

	if (data + offset + sizeof(*ip) > end)
		return load_bytes(skb, offset, ip, sizeof(*ip));
	__builtin_memcpy(ip, data + offset, sizeof(*ip));
	return 0;
}

/* Takes the wrapping off a probe that is to leave bare. */
INLINE int unwrap(struct __sk_buff *skb, const u32 l2)
{
	struct ipv4 ip;
	struct ipv6 ip6;
	int header = 0;

	if (skb->protocol == ETHERTYPE_IPV4 && !read_ipv4(skb, l2, &ip) &&
	    ip.version_ihl == 0x45 && ip.protocol == PROTO_BARE)
		header = sizeof(ip);
	else if (skb->protocol == ETHERTYPE_IPV6 && !load_bytes(skb, l2, &ip6, sizeof(ip6)) &&
		 ip6.next_header == PROTO_BARE)
		header = sizeof(ip6);
	if (!header)
		return NEXT;
	if (adjust_room(skb, -header, ROOM_BEHIND_MAC, ROOM_FIXED_GSO))
		return DROP;
	count(PROBE_BARE);
	return NEXT;
}

INLINE int encapsulate(struct __sk_buff *skb, const u32 l2)
{
	struct ipv4 inner, outer = {};
	long failed;

	if (skb->mark == MARK_BARE)
		return unwrap(skb, l2);
	if (skb->protocol != ETHERTYPE_IPV4 || read_ipv4(skb, l2, &inner))
		return NEXT;
	struct prefix to = {128, mapped(inner.destination)};
	struct endpoint *at = map_lookup(&destinations, &to);
	if (!at || !at->local)
		return NEXT;

	outer.version_ihl = 0x45;
	outer.tos = inner.tos; /* DSCP, and ECN as RFC 6040 section 4.1 says */
	outer.total_length = BE16(skb->len - l2 + sizeof(outer));
	/* Always: RFC 2003, section 3.1, leaves it to us where the inner packet may
	 * be fragmented. Nobody takes in fragments of the outer one, so a narrow
	 * path has to refuse it, which its router says by ICMP. */
	outer.fragment = IPV4_DF;
	/* A packet that nobody may fragment needs no unique id (RFC 6864); the
	 * inner one's keeps receive offload working, which wants a sequence. */
	outer.id = inner.id;
	outer.ttl = 64;
	outer.protocol = PROTO_IPIP;
	outer.source = at->local;
	outer.destination = at->remote;
	outer.checksum = checksum(&outer);

	failed = adjust_room(skb, sizeof(outer), ROOM_BEHIND_MAC, ROOM_ENCAP_L3_IPV4 | ROOM_FIXED_GSO);
	/* A pod's own tunnel has been here before us: the packet cannot be
	 * marked as encapsulated a second time, and need not be. */
	if (failed == -EALREADY)
		failed = adjust_room(skb, sizeof(outer), ROOM_BEHIND_MAC, ROOM_FIXED_GSO);
	if (failed || store_bytes(skb, l2, &outer, sizeof(outer), 0))
		return drop(IPIP_NO_ROOM);
	count(IPIP_SENT);
	return NEXT;
}

/* The inner packet's congestion marks after decapsulation: the table of RFC
 * 6040, section 4.2. The marks are 0 not capable, 1 ECT(1), 2 ECT(0), 3 CE.
 * Negative: drop. */
INLINE int congestion(u8 inner, u8 outer)
{
	if (outer == 3)
		return inner == 0 ? -1 : 3;
	if (outer == 1 && inner == 2)
		return 1;
	return inner;
}

/* Who sent what was not accepted. A foreign tunnel (a load balancer's, say) is
 * left to the stack as long as it does not aim at the pod network. */
INLINE int refuse_ipip(const struct address *outer_source, u32 inner_destination)
{
	if (role_of(outer_source))
		return drop(IPIP_FOREIGN_SOURCE);
	if (in_pod_network(inner_destination))
		return drop(IPIP_NOT_A_NODE);
	return NEXT;
}

INLINE int decapsulate(struct __sk_buff *skb, const u32 l2, const struct ipv4 *outer)
{
	struct address from = mapped(outer->source), to = mapped(outer->destination);
	struct ipv4 inner;

	if (role_of(&to) != SELF)
		return NEXT;
	/* The stack reassembles fragments, and finds nobody who wants them. No
	 * encapsulator of ours makes fragments or options. */
	if ((outer->fragment & (IPV4_MF | IPV4_OFFSET)) || outer->version_ihl != 0x45) {
		count(IPIP_FRAGMENT);
		return NEXT;
	}
	if (checksum(outer) || load_bytes(skb, l2 + sizeof(*outer), &inner, sizeof(inner)) ||
	    inner.version_ihl < 0x45 || inner.version_ihl > 0x4f)
		return drop(IPIP_MALFORMED);

	struct address inner_from = mapped(inner.source);
	if (!owns(&from, &inner_from))
		return refuse_ipip(&from, inner.destination);

	int mark = congestion(inner.tos & 3, outer->tos & 3);
	if (mark < 0)
		return drop(IPIP_CONGESTION);
	/* The checksum that the device may have found right is the inner
	 * packet's: the outer header has none above it, so it stays. */
	if (adjust_room(skb, -(int)sizeof(*outer), ROOM_BEHIND_MAC, ROOM_FIXED_GSO | ROOM_NO_CSUM_RESET))
		return drop(IPIP_NO_ROOM);
	if (mark != (inner.tos & 3)) {
		u8 tos = (inner.tos & ~3) | mark;

		l3_csum_replace(skb, l2 + 10, BE16(inner.version_ihl << 8 | inner.tos),
				BE16(inner.version_ihl << 8 | tos), 2);
		store_bytes(skb, l2 + 1, &tos, 1, 0);
	}
	count(IPIP_RECEIVED);
	return NEXT;
}

/* The guard in front of the kernel's vxlan device. The offset is that of the
 * UDP header; more says that more fragments of the packet follow. */
INLINE int guard_vxlan(struct __sk_buff *skb, u32 offset, const struct address *from, const struct address *to, int more)
{
	u32 zero = 0;
	struct settings *set = map_lookup(&settings, &zero);
	struct vxlan head;
	struct ethernet frame;
	struct address inner = {};
	struct ipv4 ip;

	if (!set || load_bytes(skb, offset, &head, 4) || head.destination_port != set->port)
		return NEXT;
	if (role_of(to) != SELF)
		return NEXT;
	/* The stack would reassemble it behind our back. */
	if (more || load_bytes(skb, offset, &head, sizeof(head)))
		return drop(VXLAN_MALFORMED);
	if (BE32(head.vni) >> 8 != set->vni)
		return NEXT;
	offset += sizeof(head);
	if (load_bytes(skb, offset, &frame, sizeof(frame)))
		return drop(VXLAN_MALFORMED);
	offset += sizeof(frame);
	if (frame.type == ETHERTYPE_IPV4) {
		if (load_bytes(skb, offset, &ip, sizeof(ip)))
			return drop(VXLAN_MALFORMED);
		inner = mapped(ip.source);
	} else if (frame.type == ETHERTYPE_IPV6) {
		if (load_bytes(skb, offset + 8, &inner, sizeof(inner)))
			return drop(VXLAN_MALFORMED);
	} else {
		return drop(VXLAN_MALFORMED);
	}
	if (owns(from, &inner)) {
		count(VXLAN_RECEIVED);
		return NEXT;
	}
	return drop(role_of(from) ? VXLAN_FOREIGN_SOURCE : VXLAN_NOT_A_NODE);
}

INLINE int receive_ipv4(struct __sk_buff *skb, const u32 l2)
{
	struct ipv4 ip;

	if (read_ipv4(skb, l2, &ip))
		return NEXT;
	if (ip.protocol == PROTO_IPIP)
		return decapsulate(skb, l2, &ip);
	if (ip.protocol != PROTO_UDP || (ip.fragment & IPV4_OFFSET))
		return NEXT;
	struct address from = mapped(ip.source), to = mapped(ip.destination);
	return guard_vxlan(skb, l2 + (ip.version_ihl & 0xf) * 4, &from, &to, ip.fragment & IPV4_MF);
}

/* Packets with other extension headers than a fragment's never come from a
 * node: nftables drops them. */
INLINE int receive_ipv6(struct __sk_buff *skb, const u32 l2)
{
	struct ipv6 ip;
	struct ipv6_fragment piece;
	u32 offset = l2 + sizeof(ip);
	int more = 0;

	if (load_bytes(skb, l2, &ip, sizeof(ip)))
		return NEXT;
	if (ip.next_header == PROTO_IPV6_FRAGMENT) {
		if (load_bytes(skb, offset, &piece, sizeof(piece)) || (piece.offset & BE16(0xfff8)))
			return NEXT;
		ip.next_header = piece.next_header;
		offset += sizeof(piece);
		more = 1;
	}
	if (ip.next_header != PROTO_UDP)
		return NEXT;
	struct address from = {{ip.source[0], ip.source[1], ip.source[2], ip.source[3]}};
	struct address to = {{ip.destination[0], ip.destination[1], ip.destination[2], ip.destination[3]}};
	return guard_vxlan(skb, offset, &from, &to, more);
}

INLINE int receive(struct __sk_buff *skb, const u32 l2)
{
	if (skb->protocol == ETHERTYPE_IPV4)
		return receive_ipv4(skb, l2);
	if (skb->protocol == ETHERTYPE_IPV6)
		return receive_ipv6(skb, l2);
	return NEXT;
}

/* One pair of programs for uplinks with Ethernet headers, one for those without
 * any (another tunnel's device). */
#define ETHERNET_HEADER 14

SECTION("tc") int rw_egress(struct __sk_buff *skb)
{
	return encapsulate(skb, ETHERNET_HEADER);
}

SECTION("tc") int rw_ingress(struct __sk_buff *skb)
{
	return receive(skb, ETHERNET_HEADER);
}

SECTION("tc") int rw_egress_l3(struct __sk_buff *skb)
{
	return encapsulate(skb, 0);
}

SECTION("tc") int rw_ingress_l3(struct __sk_buff *skb)
{
	return receive(skb, 0);
}

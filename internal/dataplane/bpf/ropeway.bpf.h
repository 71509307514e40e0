/* SPDX-License-Identifier: Apache-2.0
 *
 * The few definitions of the kernel's BPF interface that ropeway.bpf.c needs,
 * written down from its documented layout so that the build needs no kernel
 * headers. Numbers of helpers and layouts of packets never change.
 */
#ifndef ROPEWAY_BPF_H
#define ROPEWAY_BPF_H

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;

#define SECTION(name) __attribute__((section(name), used))
#define INLINE static __attribute__((always_inline)) inline

/* A map's description is a struct of pointers to arrays and types that the
 * loader reads from the BTF. */
#define MAP_NUMBER(field, value) int(*field)[value]
#define MAP_TYPE(field, type) typeof(type) *field

enum {
	MAP_HASH = 1,
	MAP_ARRAY = 2,
	MAP_PERCPU_ARRAY = 6,
	MAP_LPM_TRIE = 11,
	MAP_NO_PREALLOC = 1,
};

/* What a program returns: let the next program decide, or drop. The values are
 * the same for tcx and for a clsact filter in direct-action mode. */
enum {
	NEXT = -1,
	DROP = 2,
};

/* The context of a tc program, up to the last field that is used here. */
struct __sk_buff {
	u32 len;
	u32 pkt_type;
	u32 mark;
	u32 queue_mapping;
	u32 protocol; /* network byte order */
	u32 vlan_present;
	u32 vlan_tci;
	u32 vlan_proto;
	u32 priority;
	u32 ingress_ifindex;
	u32 ifindex;
	u32 tc_index;
	u32 cb[5];
	u32 hash;
	u32 tc_classid;
	u32 data;
	u32 data_end;
};

static void *(*map_lookup)(void *map, const void *key) = (void *)1;
static long (*store_bytes)(struct __sk_buff *, u32 offset, const void *from, u32 len, u64 flags) = (void *)9;
static long (*l3_csum_replace)(struct __sk_buff *, u32 offset, u64 from, u64 to, u64 size) = (void *)10;
static long (*load_bytes)(const void *skb, u32 offset, void *to, u32 len) = (void *)26;
static long (*adjust_room)(struct __sk_buff *, int len_diff, u32 mode, u64 flags) = (void *)50;

enum {
	ROOM_BEHIND_MAC = 1,
	ROOM_FIXED_GSO = 1 << 0,
	ROOM_ENCAP_L3_IPV4 = 1 << 1,
	ROOM_NO_CSUM_RESET = 1 << 5,
};

#define EALREADY 114

#define MARK_BARE 0x72770001 /* BareMark in bpf.go */

/* Both byte orders are little endian: bpf2go builds for bpfel only. */
#define BE16(x) ((u16)__builtin_bswap16((u16)(x)))
#define BE32(x) ((u32)__builtin_bswap32((u32)(x)))

#define ETHERTYPE_IPV4 BE16(0x0800)
#define ETHERTYPE_IPV6 BE16(0x86dd)

enum {
	PROTO_IPIP = 4,
	PROTO_UDP = 17,
	PROTO_IPV6_FRAGMENT = 44,
	PROTO_BARE = 253, /* for experiments (RFC 3692); BareProtocol in bpf.go */
};

#define IPV4_DF BE16(0x4000)
#define IPV4_MF BE16(0x2000)
#define IPV4_OFFSET BE16(0x1fff)

/* RFC 791, section 3.1, without options. */
struct ipv4 {
	u8 version_ihl;
	u8 tos;
	u16 total_length;
	u16 id;
	u16 fragment; /* flags and offset */
	u8 ttl;
	u8 protocol;
	u16 checksum;
	u32 source;
	u32 destination;
};

/* RFC 8200, section 3. */
struct ipv6 {
	u32 version_class_flow;
	u16 payload_length;
	u8 next_header;
	u8 hop_limit;
	u32 source[4];
	u32 destination[4];
};

/* RFC 8200, section 4.5. */
struct ipv6_fragment {
	u8 next_header;
	u8 reserved;
	u16 offset; /* the upper 13 bits */
	u32 id;
};

/* RFC 768 and RFC 7348, section 5. */
struct vxlan {
	u16 source_port;
	u16 destination_port;
	u16 length;
	u16 checksum;
	u32 flags;
	u32 vni; /* the upper 24 bits */
};

struct ethernet {
	u8 destination[6];
	u8 source[6];
	u16 type;
} __attribute__((packed));

#endif

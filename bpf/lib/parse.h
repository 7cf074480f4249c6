/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
#pragma once
/* Floor 3: bytes to struct packet. All bounds checks of a packet's headers are here. Each parser
 * returns 0 or a negative drop reason. */
#include "flow.h"
#include "../config/features.h"
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <linux/tcp.h>
#include <linux/udp.h>

#undef SOURCE_FILE
#define SOURCE_FILE FILE_PARSE

#define IPV4_DO_NOT_FRAGMENT 0x4000
#define IPV4_MORE_FRAGMENTS 0x2000
#define IPV4_OFFSET_MASK 0x1fff
#define IPV6_MORE_FRAGMENTS 0x0001
#define IPV6_OFFSET_MASK 0xfff8
#define ICMP_ECHOREPLY 0
#define ICMP_DEST_UNREACH 3
#define ICMP_ECHO 8
#define ICMP_TIME_EXCEEDED 11
#define ICMP_PARAMETERPROB 12
#define ICMP_TIMESTAMP 13
#define ICMP_TIMESTAMPREPLY 14
#define ICMPV6_ERROR_FIRST 1
#define ICMPV6_ERROR_LAST 4
#define ICMPV6_ECHO_REQUEST 128
#define ICMPV6_ECHO_REPLY 129
#define ICMPV6_MLD_FIRST 130
#define ICMPV6_NDP_LAST 137
#define ICMPV6_MLD2_REPORT 143
#define LONGEST_IP 60
#define LONGEST_TRANSPORT 60
#define MOST_EXTENSIONS 8
#define EXTENSION_BYTES 256
#define IPPROTO_MOBILITY 135
#define IPPROTO_HIP 139
#define IPPROTO_SHIM6 140

/* Both families' ICMP header, up to the identifier of an echo (linux/icmp.h needs a C library). */
struct icmp_header {
	__u8 type;
	__u8 code;
	__sum16 checksum;
	__be16 id;
	__be16 sequence;
};

/* How every IPv6 extension header begins (RFC 8200, 4; RFC 4302, 2.2). */
struct extension_header {
	__u8 next_header;
	__u8 length; /* in units that depend on the header, the first not counted */
	union {
		struct {
			__u8 type;
			__u8 segments_left;
		} routing;
		__be16 fragment_offset;
	};
	__be32 fragment_id;
};

struct sctp_header {
	__be16 source;
	__be16 destination;
	__be32 tag;
	__be32 checksum;
};

enum sctp_chunk {
	SCTP_INIT = 1,
	SCTP_INIT_ACK = 2,
	SCTP_ABORT = 6,
	SCTP_SHUTDOWN = 7,
	SCTP_SHUTDOWN_ACK = 8,
	SCTP_SHUTDOWN_COMPLETE = 14,
};

/* A position in the packet and its end; data_end moves with no step. */
struct cursor {
	void *position;
	void *end;
};

static __always_inline void *take(struct cursor *cursor, __u32 size)
{
	void *header = cursor->position;

	if (header + size > cursor->end)
		return NULL;
	cursor->position = header + size;
	return header;
}

static __always_inline __u8 icmpv4_kind(__u8 type)
{
	switch (type) {
	case ICMP_ECHO:
	case ICMP_TIMESTAMP:
		return PACKET_REQUEST;
	case ICMP_ECHOREPLY:
	case ICMP_TIMESTAMPREPLY:
		return PACKET_REPLY;
	case ICMP_DEST_UNREACH:
	case ICMP_TIME_EXCEEDED:
	case ICMP_PARAMETERPROB:
		return PACKET_ERROR;
	}
	return PACKET_STRANGE;
}

static __always_inline __u8 icmpv6_kind(__u8 type)
{
	if (type == ICMPV6_ECHO_REQUEST)
		return PACKET_REQUEST;
	if (type == ICMPV6_ECHO_REPLY)
		return PACKET_REPLY;
	if (type >= ICMPV6_ERROR_FIRST && type <= ICMPV6_ERROR_LAST)
		return PACKET_ERROR;
	if ((type >= ICMPV6_MLD_FIRST && type <= ICMPV6_NDP_LAST) || type == ICMPV6_MLD2_REPORT)
		return PACKET_CONTROL;
	return PACKET_STRANGE;
}

static __always_inline __u8 request_type(const struct packet *packet)
{
	if (packet->kind != PACKET_REPLY)
		return packet->icmp_type;
	if (packet->family == FAMILY_IPV6)
		return ICMPV6_ECHO_REQUEST;
	return packet->icmp_type == ICMP_ECHOREPLY ? ICMP_ECHO : ICMP_TIMESTAMP;
}

/* What lies behind the end of a first fragment is not what its receiver puts there (RFC 7112). */
static __always_inline bool reaches_beyond(const struct packet *packet, __u32 header)
{
	return packet->fragment == FRAGMENT_FIRST &&
	       packet->l3 + packet->length < packet->l4 + header;
}

static __always_inline int parse_tcp(struct packet *packet, struct cursor *cursor)
{
	struct tcphdr *tcp = take(cursor, sizeof(*tcp));

	if (!tcp || unlikely(reaches_beyond(packet, sizeof(*tcp))))
		return REFUSE(packet, CT_TRUNCATED_OR_INVALID_HEADER);
	packet->source_port = tcp->source;
	packet->destination_port = tcp->dest;
	packet->tcp_flags = ((__u8 *)tcp)[13];
	return 0;
}

static __always_inline int parse_udp(struct packet *packet, struct cursor *cursor)
{
	struct udphdr *udp = take(cursor, sizeof(*udp));

	if (!udp || unlikely(reaches_beyond(packet, sizeof(*udp))))
		return REFUSE(packet, CT_TRUNCATED_OR_INVALID_HEADER);
	packet->source_port = udp->source;
	packet->destination_port = udp->dest;
	return 0;
}

/* What the chunk does to an association, in TCP's words. */
static __always_inline __u8 flags_of_chunk(__u8 type)
{
	switch (type) {
	case SCTP_INIT:
		return TCP_SYN;
	case SCTP_INIT_ACK:
		return TCP_SYN | TCP_ACK;
	case SCTP_ABORT:
	case SCTP_SHUTDOWN_COMPLETE:
		return TCP_RST;
	case SCTP_SHUTDOWN:
	case SCTP_SHUTDOWN_ACK:
		return TCP_FIN;
	}
	return TCP_ACK;
}

/* Chunks that open or end an association come first in their packet (RFC 9260, 6.10); one that does
 * not leaves the flow to its lifetime. */
static __always_inline int parse_sctp(struct packet *packet, struct cursor *cursor)
{
	struct sctp_header *sctp = take(cursor, sizeof(*sctp));
	__u8 *chunk = take(cursor, 1);

	if (!sctp || !chunk || unlikely(reaches_beyond(packet, sizeof(*sctp) + 1)))
		return REFUSE(packet, CT_TRUNCATED_OR_INVALID_HEADER);
	packet->source_port = sctp->source;
	packet->destination_port = sctp->destination;
	packet->tcp_flags = flags_of_chunk(*chunk);
	return 0;
}

static __always_inline int parse_icmp(struct packet *packet, struct cursor *cursor)
{
	struct icmp_header *icmp = take(cursor, sizeof(*icmp));

	if (!icmp || unlikely(reaches_beyond(packet, sizeof(*icmp))))
		return REFUSE(packet, CT_TRUNCATED_OR_INVALID_HEADER);
	packet->icmp_type = icmp->type;
	packet->icmp_code = icmp->code;
	packet->kind =
	    packet->family == FAMILY_IPV4 ? icmpv4_kind(icmp->type) : icmpv6_kind(icmp->type);
	packet->source_port = icmp->id;
	packet->destination_port = bpf_htons(request_type(packet));
	/* Neighbours are not discovered in pieces (RFC 6980, 5). */
	if (packet->kind == PACKET_CONTROL && unlikely(packet->fragment != FRAGMENT_NONE))
		return REFUSE(packet, INVALID_PACKET_DROPPED);
	return 0;
}

static __always_inline __u8 icmp_protocol(const struct packet *packet)
{
	return packet->family == FAMILY_IPV4 ? IPPROTO_ICMP : IPPROTO_ICMPV6;
}

/* ICMP of the other family: no receiver listens to it. */
static __always_inline bool is_foreign_icmp(const struct packet *packet)
{
	return packet->protocol == (packet->family == FAMILY_IPV4 ? IPPROTO_ICMPV6 : IPPROTO_ICMP);
}

static __always_inline bool has_ports(__u8 protocol)
{
	return protocol == IPPROTO_TCP || protocol == IPPROTO_UDP || protocol == IPPROTO_SCTP;
}

/* All other protocols are PACKET_PLAIN, with ports of 0. */
static __always_inline int parse_l4(struct packet *packet, struct cursor *cursor)
{
	if (packet->fragment == FRAGMENT_LATER)
		return 0;
	if (packet->protocol == IPPROTO_TCP)
		return parse_tcp(packet, cursor);
	if (packet->protocol == IPPROTO_UDP)
		return parse_udp(packet, cursor);
	if (packet->protocol == icmp_protocol(packet))
		return parse_icmp(packet, cursor);
	if (packet->protocol == IPPROTO_SCTP)
		return parse_sctp(packet, cursor);
	return is_foreign_icmp(packet) ? REFUSE(packet, UNKNOWN_L4_PROTOCOL) : 0;
}

static __always_inline __u8 fragment_kind(bool has_offset, bool more)
{
	if (has_offset)
		return FRAGMENT_LATER;
	return more ? FRAGMENT_FIRST : FRAGMENT_NONE;
}

/* BIG TCP batches say a length of 0: their true one is the buffer's. */
static __always_inline int check_length(struct packet *packet, struct __sk_buff *skb, __u32 length,
					__u32 headers)
{
	__u32 available = skb->len - packet->l3;

	packet->length = length;
	if (unlikely(length < headers || length > available)) {
		if (length || !skb->gso_size)
			return REFUSE(packet, CT_TRUNCATED_OR_INVALID_HEADER);
		packet->length = available;
	}
	return 0;
}

static __always_inline int parse_ipv4(struct __sk_buff *skb, struct packet *packet,
				      struct cursor *cursor)
{
	struct iphdr *ip = take(cursor, sizeof(*ip));
	__u32 header;
	__u16 fragment;
	int dropped;

	if (!ip)
		return REFUSE(packet, CT_TRUNCATED_OR_INVALID_HEADER);
	header = ip->ihl * 4;
	if (ip->version != 4 || header < sizeof(*ip))
		return REFUSE(packet, INVALID_PACKET_DROPPED);
	if (header > sizeof(*ip) && !take(cursor, header - sizeof(*ip)))
		return REFUSE(packet, CT_TRUNCATED_OR_INVALID_HEADER);
	dropped = check_length(packet, skb, bpf_ntohs(ip->tot_len), header);
	if (dropped)
		return dropped;
	fragment = bpf_ntohs(ip->frag_off);
	map_ipv4(&packet->source, bpf_ntohl(ip->saddr));
	map_ipv4(&packet->destination, bpf_ntohl(ip->daddr));
	packet->l4 = packet->l3 + header;
	packet->protocol = ip->protocol;
	packet->ttl = ip->ttl;
	packet->fragment_id = ip->id;
	packet->fragment =
	    fragment_kind(fragment & IPV4_OFFSET_MASK, fragment & IPV4_MORE_FRAGMENTS);
	/* A second fragment inside the transport header could rewrite what was judged: TCP's flags,
	 * SCTP's first chunk (RFC 3128). */
	if ((fragment & IPV4_OFFSET_MASK) == 1 &&
	    (packet->protocol == IPPROTO_TCP || packet->protocol == IPPROTO_SCTP))
		return REFUSE(packet, INVALID_PACKET_DROPPED);
	return parse_l4(packet, cursor);
}

static __always_inline bool is_extension_header(__u8 protocol)
{
	switch (protocol) {
	case IPPROTO_HOPOPTS:
	case IPPROTO_ROUTING:
	case IPPROTO_FRAGMENT:
	case IPPROTO_AH:
	case IPPROTO_DSTOPTS:
	case IPPROTO_MOBILITY:
	case IPPROTO_HIP:
	case IPPROTO_SHIM6:
		return true;
	}
	return false;
}

static __always_inline __u32 extension_length(__u8 protocol, __u8 length)
{
	if (protocol == IPPROTO_FRAGMENT)
		return sizeof(struct extension_header);
	if (protocol == IPPROTO_AH)
		return (length + 2) * 4;
	return (length + 1) * 8;
}

/* Where the walk along a chain is. */
struct extension_walk {
	__u32 first; /* offset of the first extension header */
	__u32 at;
	__u8 fragmented;
};

/* Hop-by-hop options stand first only, a fragment header comes once (RFC 8200, 4.1); a packet that
 * is to visit others than its destination is judged by the wrong address (RFC 5095). */
static __always_inline bool is_allowed_here(const struct extension_walk *walk, __u8 protocol,
					    const struct extension_header *header)
{
	switch (protocol) {
	case IPPROTO_HOPOPTS:
		return walk->at == walk->first;
	case IPPROTO_ROUTING:
		return header->routing.type && !header->routing.segments_left;
	case IPPROTO_FRAGMENT:
		return !walk->fragmented;
	}
	return true;
}

static __always_inline void note_fragment(struct packet *packet,
					  const struct extension_header *header)
{
	__u16 offset = bpf_ntohs(header->fragment_offset);

	packet->fragment_id = header->fragment_id;
	packet->fragment = fragment_kind(offset & IPV6_OFFSET_MASK, offset & IPV6_MORE_FRAGMENTS);
}

/* Moves l4 and protocol of an IPv6 packet, or of one that is quoted, behind its extension headers.
 * A later fragment's chain ends with the fragment header. Returns 0 or a negative drop reason;
 * global for the verifier's sake, as parse_headers is. */
__noinline int walk_extensions(struct __sk_buff *skb, struct packet *packet)
{
	struct extension_walk walk = {};
	struct extension_header header;
	__u8 protocol;

	if (!packet)
		return -DROP_INVALID_IPV6_EXTENSION_HEADER;
	walk.first = walk.at = packet->l4;
	for (int count = 0; count <= MOST_EXTENSIONS; count++) {
		protocol = packet->protocol;
		packet->l4 = walk.at;
		if (!is_extension_header(protocol) || packet->fragment == FRAGMENT_LATER)
			return 0;
		if (bpf_skb_load_bytes(skb, walk.at, &header, sizeof(header)))
			return REFUSE(packet, CT_TRUNCATED_OR_INVALID_HEADER);
		if (!is_allowed_here(&walk, protocol, &header))
			break;
		walk.at += extension_length(protocol, header.length);
		if (walk.at > walk.first + EXTENSION_BYTES)
			break;
		packet->protocol = header.next_header;
		if (protocol != IPPROTO_FRAGMENT)
			continue;
		walk.fragmented = true;
		note_fragment(packet, &header);
	}
	return REFUSE(packet, INVALID_IPV6_EXTENSION_HEADER);
}

/* The chain's end is where the transport header is read next. */
static __always_inline int skip_extensions(struct __sk_buff *skb, struct packet *packet,
					   struct cursor *cursor)
{
	int dropped = walk_extensions(skb, packet);
	__u32 l4 = packet->l4;

	if (dropped)
		return dropped;
	if (l4 > ETH_HLEN + sizeof(struct ipv6hdr) + EXTENSION_BYTES)
		return REFUSE(packet, INVALID_IPV6_EXTENSION_HEADER);
	cursor->position = (void *)(long)skb->data + l4;
	cursor->end = (void *)(long)skb->data_end;
	return 0;
}

static __always_inline int parse_ipv6(struct __sk_buff *skb, struct packet *packet,
				      struct cursor *cursor)
{
	struct ipv6hdr *ip = take(cursor, sizeof(*ip));
	int dropped;

	if (!ip)
		return REFUSE(packet, CT_TRUNCATED_OR_INVALID_HEADER);
	if (ip->version != 6)
		return REFUSE(packet, INVALID_PACKET_DROPPED);
	dropped = check_length(packet, skb, bpf_ntohs(ip->payload_len) + sizeof(*ip), sizeof(*ip));
	if (dropped)
		return dropped;
	copy_bytes(&packet->source, &ip->saddr, sizeof(packet->source));
	copy_bytes(&packet->destination, &ip->daddr, sizeof(packet->destination));
	if (is_mapped_ipv4(&packet->source) || is_mapped_ipv4(&packet->destination))
		return REFUSE(packet, INVALID_PACKET_DROPPED);
	packet->l4 = packet->l3 + sizeof(*ip);
	packet->protocol = ip->nexthdr;
	packet->ttl = ip->hop_limit;
	packet->fragment = FRAGMENT_NONE;
	if (unlikely(is_extension_header(packet->protocol))) {
		dropped = skip_extensions(skb, packet, cursor);
		if (dropped)
			return dropped;
	}
	return parse_l4(packet, cursor);
}

static __always_inline int parse_once(struct __sk_buff *skb, struct packet *packet, __u32 l3)
{
	struct cursor cursor = {
	    .position = (void *)(long)skb->data,
	    .end = (void *)(long)skb->data_end,
	};
	void *ethernet = NULL;

	if (l3) {
		ethernet = take(&cursor, ETH_HLEN);
		if (!ethernet)
			return REFUSE(packet, CT_TRUNCATED_OR_INVALID_HEADER);
		copy_bytes(packet->macs, ethernet, sizeof(packet->macs));
	}
	packet->l3 = l3;
	if (skb->protocol == bpf_htons(ETH_P_IP) && ipv4_enabled) {
		packet->family = FAMILY_IPV4;
		return parse_ipv4(skb, packet, &cursor);
	}
	if (skb->protocol == bpf_htons(ETH_P_IPV6) && ipv6_enabled) {
		packet->family = FAMILY_IPV6;
		return parse_ipv6(skb, packet, &cursor);
	}
	return REFUSE(packet, UNSUPPORTED_L3_PROTOCOL);
}

/* How far the headers may reach, as far as is known. */
static __always_inline __u32 reach_of_headers(const struct packet *packet)
{
	__u32 longest = ETH_HLEN + LONGEST_IP;

	return (packet->l4 > longest ? packet->l4 : longest) + LONGEST_TRANSPORT;
}

/* Headers can sit beyond the directly readable part; then that part is grown and read again, and
 * once more when only that showed a chain of extension headers. l3 is the length of the link
 * header: ETH_HLEN or 0. A global function: the verifier looks at it alone and forgets which of the
 * many ways through it was taken, or every later step would be verified once per way. */
__noinline int parse_headers(struct __sk_buff *skb, struct packet *packet, __u32 l3)
{
	__u32 wanted, readable;
	int dropped = -DROP_CT_TRUNCATED_OR_INVALID_HEADER;

	if (!packet)
		return dropped;
	for (int round = 0; round < 3; round++) {
		dropped = parse_once(skb, packet, l3);
		if (likely(dropped != -DROP_CT_TRUNCATED_OR_INVALID_HEADER))
			return dropped;
		readable = (void *)(long)skb->data_end - (void *)(long)skb->data;
		wanted = reach_of_headers(packet);
		wanted = skb->len < wanted ? skb->len : wanted;
		if (readable >= wanted || bpf_skb_pull_data(skb, wanted))
			return dropped;
	}
	return dropped;
}

/* Returns 0 or a negative drop reason. */
static __always_inline int parse_packet(struct __sk_buff *skb, struct flow *flow, __u32 l3)
{
	return parse_headers(skb, &flow->packet, l3);
}

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
#define LONGEST_HEADERS (ETH_HLEN + 60 + 60)

/* Both families' ICMP header, up to the identifier of an echo (linux/icmp.h needs a C library). */
struct icmp_header {
	__u8 type;
	__u8 code;
	__sum16 checksum;
	__be16 id;
	__be16 sequence;
};

struct ipv6_fragment {
	__u8 next_header;
	__u8 reserved;
	__be16 offset;
	__be32 id;
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

static __always_inline int parse_icmp(struct packet *packet, struct cursor *cursor)
{
	struct icmp_header *icmp = take(cursor, sizeof(*icmp));

	if (!icmp)
		return REFUSE(packet, CT_TRUNCATED_OR_INVALID_HEADER);
	packet->icmp_type = icmp->type;
	packet->icmp_code = icmp->code;
	packet->kind =
	    packet->family == FAMILY_IPV4 ? icmpv4_kind(icmp->type) : icmpv6_kind(icmp->type);
	packet->source_port = icmp->id;
	packet->destination_port = bpf_htons(request_type(packet));
	return 0;
}

static __always_inline __u8 icmp_protocol(const struct packet *packet)
{
	return packet->family == FAMILY_IPV4 ? IPPROTO_ICMP : IPPROTO_ICMPV6;
}

/* Other protocols parse as PACKET_PLAIN without ports: the caller decides what becomes of them. */
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
	return 0;
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
	/* A second fragment inside the transport header could rewrite ports (RFC 3128). */
	if ((fragment & IPV4_OFFSET_MASK) == 1 && packet->protocol == IPPROTO_TCP)
		return REFUSE(packet, INVALID_PACKET_DROPPED);
	return parse_l4(packet, cursor);
}

static __always_inline int parse_ipv6_fragment(struct packet *packet, struct cursor *cursor)
{
	struct ipv6_fragment *header = take(cursor, sizeof(*header));
	__u16 offset;

	if (!header)
		return REFUSE(packet, CT_TRUNCATED_OR_INVALID_HEADER);
	offset = bpf_ntohs(header->offset);
	packet->protocol = header->next_header;
	packet->fragment_id = header->id;
	packet->fragment = fragment_kind(offset & IPV6_OFFSET_MASK, offset & IPV6_MORE_FRAGMENTS);
	packet->l4 += sizeof(*header);
	return 0;
}

static __always_inline bool is_extension_header(__u8 protocol)
{
	return protocol == IPPROTO_HOPOPTS || protocol == IPPROTO_ROUTING ||
	       protocol == IPPROTO_DSTOPTS || protocol == IPPROTO_FRAGMENT;
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
	if (unlikely(packet->protocol == IPPROTO_FRAGMENT)) {
		dropped = parse_ipv6_fragment(packet, cursor);
		if (dropped)
			return dropped;
	}
	if (is_extension_header(packet->protocol)) {
		/* Listener reports carry a router alert (RFC 3810); every pod sends some. */
		if (top_byte(&packet->destination) == 0xff)
			return silently(packet, REFUSE(packet, UNKNOWN_L3_TARGET_ADDRESS));
		return REFUSE(packet, INVALID_IPV6_EXTENSION_HEADER);
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

static __always_inline bool has_hidden_bytes(struct __sk_buff *skb)
{
	__u64 readable = (void *)(long)skb->data_end - (void *)(long)skb->data;

	return readable < skb->len && readable < LONGEST_HEADERS;
}

/* Headers can sit beyond the directly readable part; then that part is grown and read again. l3 is
 * the length of the link header: ETH_HLEN or 0. A global function: the verifier looks at it alone
 * and forgets which of the many ways through it was taken, or every later step would be verified
 * once per way. */
__noinline int parse_headers(struct __sk_buff *skb, struct packet *packet, __u32 l3)
{
	__u32 wanted;
	int dropped;

	if (!packet)
		return -DROP_CT_TRUNCATED_OR_INVALID_HEADER;
	dropped = parse_once(skb, packet, l3);
	if (likely(dropped != -DROP_CT_TRUNCATED_OR_INVALID_HEADER) || !has_hidden_bytes(skb))
		return dropped;
	wanted = skb->len < LONGEST_HEADERS ? skb->len : LONGEST_HEADERS;
	if (bpf_skb_pull_data(skb, wanted))
		return dropped;
	return parse_once(skb, packet, l3);
}

/* Returns 0 or a negative drop reason. */
static __always_inline int parse_packet(struct __sk_buff *skb, struct flow *flow, __u32 l3)
{
	return parse_headers(skb, &flow->packet, l3);
}

/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
#pragma once
/* Floor 11: a pod hears by ICMP that its own policy denied what it sent, and whoever asked for a
 * service that nobody serves it, so that they fail at once and not by a timeout. The packet is
 * dropped, counted and reported like any other; only then it is turned into the answer. */
#include "answer.h"
#include "dsr.h"
#include "events.h"
#include <linux/if_packet.h>

#undef SOURCE_FILE
#define SOURCE_FILE FILE_LXC

/* Of the packet itself, so that the answer fits what every link carries (RFC 1812, 4.3.2.3; RFC
 * 4443, 2.4). */
#define LONGEST_QUOTE_IPV4 (576 - 28)
#define LONGEST_QUOTE_IPV6 (1280 - 48)
#define QUOTE_CHUNK 32
#define REFUSAL_TTL 64
#define TOS_INTERNET_CONTROL 0xc0
#define ICMP_ADMINISTRATIVELY_PROHIBITED 13
#define ICMPV6_DEST_UNREACH 1
#define ICMPV6_ADMINISTRATIVELY_PROHIBITED 1
#define ICMP_PORT_UNREACHABLE 3
#define ICMPV6_PORT_UNREACHABLE 4
#define ICMP_FRAGMENTATION_NEEDED 4
#define ICMPV6_PACKET_TOO_BIG 2

struct refusal4 {
	struct iphdr ip;
	struct icmp_header icmp;
};

struct refusal6 {
	struct ipv6hdr ip;
	struct icmp_header icmp;
};

/* What the answer says, and as whose word. */
struct refusal {
	struct address from;
	__u16 mtu; /* too large a packet: what would fit */
	__u8 type;
	__u8 code;
};

/* The pod that sent it was denied by its own egress policy. */
static __always_inline bool is_own_denial(const struct flow *flow, int result)
{
	return (result == -DROP_POLICY_DENIED || result == -DROP_POLICY_DENY) &&
	       flow->settings->flags & NODE_DENY_RESPONSE && flow->denier == 1 + CT_EGRESS &&
	       !(flow->flags & EVENT_IS_REPLY);
}

/* A refusal that the pod is told of, of a packet that may be answered at all (RFC 1122, 3.2.2; RFC
 * 4443, 2.4 e) and is still as the pod sent it. */
static __always_inline bool is_answered(const struct __sk_buff *skb, const struct flow *flow,
					int result)
{
	const struct packet *packet = &flow->packet;

	if (likely(result >= 0))
		return false;
	if (!is_own_denial(flow, result) && !(flow->translation & TRANSLATION_REJECTED))
		return false;
	return skb->pkt_type == PACKET_HOST && packet->kind < PACKET_ERROR &&
	       packet->fragment != FRAGMENT_LATER;
}

/* "Destination unreachable", and why. */
static __always_inline struct refusal refusal_of(const struct packet *packet, bool nobody,
						 const struct address *from)
{
	struct refusal refusal = {.from = *from, .type = ICMP_DEST_UNREACH};

	if (packet->family == FAMILY_IPV4) {
		refusal.code = nobody ? ICMP_PORT_UNREACHABLE : ICMP_ADMINISTRATIVELY_PROHIBITED;
		return refusal;
	}
	refusal.type = ICMPV6_DEST_UNREACH;
	refusal.code = nobody ? ICMPV6_PORT_UNREACHABLE : ICMPV6_ADMINISTRATIVELY_PROHIBITED;
	return refusal;
}

/* The packet leaves no room for what the backend must be told with it. */
static __always_inline void refuse_size(const struct flow *flow, struct refusal *refusal)
{
	__u8 family = flow->packet.family;

	refusal->mtu = flow->settings->mtu - told_size(family);
	refusal->type = family == FAMILY_IPV4 ? ICMP_DEST_UNREACH : ICMPV6_PACKET_TOO_BIG;
	refusal->code = family == FAMILY_IPV4 ? ICMP_FRAGMENTATION_NEEDED : 0;
}

/* What a checksum makes of a piece of the quote, which stands at offset. Negative: it can't be
 * read. Global, as parse_headers is, and for the same reason. */
__noinline __s64 sum_chunk(struct __sk_buff *skb, __u32 offset, __u32 size, __s64 sum)
{
	__be32 chunk[QUOTE_CHUNK / 4] = {};

	size = size < QUOTE_CHUNK ? size : QUOTE_CHUNK;
	/* The compiler knows it, the verifier does not. */
	asm volatile("" : "+r"(size));
	if (!size || size > QUOTE_CHUNK || bpf_skb_load_bytes(skb, offset, chunk, size))
		return -1;
	return bpf_csum_diff(NULL, 0, chunk, sizeof(chunk), sum);
}

/* The same of all the quote. */
static __always_inline __s64 sum_quote(struct __sk_buff *skb, __u32 offset, __u32 length, __s64 sum)
{
	for (__u32 at = 0; at < LONGEST_QUOTE_IPV6 && at < length && sum >= 0; at += QUOTE_CHUNK)
		sum = sum_chunk(skb, offset + at, length - at, sum);
	return sum;
}

static __always_inline int write_refusal4(struct __sk_buff *skb, const struct packet *packet,
					  const struct refusal *refusal, __u32 quote)
{
	struct refusal4 answer = {};
	__s64 sum;

	answer.ip.version = 4;
	answer.ip.ihl = 5;
	answer.ip.tos = TOS_INTERNET_CONTROL;
	answer.ip.tot_len = bpf_htons(sizeof(answer) + quote);
	answer.ip.frag_off = bpf_htons(IPV4_DO_NOT_FRAGMENT);
	answer.ip.ttl = REFUSAL_TTL;
	answer.ip.protocol = IPPROTO_ICMP;
	answer.ip.saddr = bpf_htonl(ipv4_of(&refusal->from));
	answer.ip.daddr = bpf_htonl(ipv4_of(&packet->source));
	answer.ip.check =
	    fold_checksum(bpf_csum_diff(NULL, 0, (__be32 *)&answer.ip, sizeof(answer.ip), 0));
	answer.icmp.type = refusal->type;
	answer.icmp.code = refusal->code;
	answer.icmp.sequence = bpf_htons(refusal->mtu);
	sum = bpf_csum_diff(NULL, 0, (__be32 *)&answer.icmp, sizeof(answer.icmp), 0);
	sum = sum_quote(skb, ETH_HLEN + sizeof(answer), quote, sum);
	if (sum < 0)
		return -1;
	answer.icmp.checksum = fold_checksum(sum);
	return bpf_skb_store_bytes(skb, ETH_HLEN, &answer, sizeof(answer), 0);
}

static __always_inline __s64 sum_pseudo_header(const struct address *source,
					       const struct address *destination, __u32 length)
{
	struct ipv6_pseudo_header pseudo = {
	    .source = *source,
	    .destination = *destination,
	    .length = bpf_htonl(length),
	    .next_header = bpf_htonl(IPPROTO_ICMPV6),
	};

	return bpf_csum_diff(NULL, 0, (__be32 *)&pseudo, sizeof(pseudo), 0);
}

static __always_inline int write_refusal6(struct __sk_buff *skb, const struct packet *packet,
					  const struct refusal *refusal, __u32 quote)
{
	struct refusal6 answer = {};
	__u32 length = sizeof(answer.icmp) + quote;
	__s64 sum = sum_pseudo_header(&refusal->from, &packet->source, length);

	answer.ip.version = 6;
	answer.ip.payload_len = bpf_htons(length);
	answer.ip.nexthdr = IPPROTO_ICMPV6;
	answer.ip.hop_limit = REFUSAL_TTL;
	copy_bytes(&answer.ip.saddr, &refusal->from, sizeof(refusal->from));
	copy_bytes(&answer.ip.daddr, &packet->source, sizeof(packet->source));
	answer.icmp.type = refusal->type;
	answer.icmp.code = refusal->code;
	answer.icmp.sequence = bpf_htons(refusal->mtu);
	sum = bpf_csum_diff(NULL, 0, (__be32 *)&answer.icmp, sizeof(answer.icmp), sum);
	sum = sum_quote(skb, ETH_HLEN + sizeof(answer), quote, sum);
	if (sum < 0)
		return -1;
	answer.icmp.checksum = fold_checksum(sum);
	return bpf_skb_store_bytes(skb, ETH_HLEN, &answer, sizeof(answer), 0);
}

static __always_inline int swap_macs(struct __sk_buff *skb, const struct packet *packet)
{
	__u8 macs[2 * ETH_ALEN];

	copy_bytes(macs, packet->macs + ETH_ALEN, ETH_ALEN);
	copy_bytes(macs + ETH_ALEN, packet->macs, ETH_ALEN);
	return bpf_skb_store_bytes(skb, 0, macs, sizeof(macs), 0);
}

/* Room for the headers of the answer in front of as much of the packet as it quotes. */
static __always_inline int make_room(struct __sk_buff *skb, __u32 headers, __u32 quote)
{
	return bpf_skb_change_tail(skb, ETH_HLEN + quote, 0)
		   ?: bpf_skb_adjust_room(skb, headers, BPF_ADJ_ROOM_MAC, 0);
}

/* Turns the packet into the answer to it. Returns 0, or negative: it could not. Global, as
 * parse_headers is, and for the same reason. */
__noinline int write_refusal(struct __sk_buff *skb, struct packet *packet,
			     const struct refusal *refusal)
{
	bool ipv4 = packet && packet->family == FAMILY_IPV4;
	__u32 headers = ipv4 ? sizeof(struct refusal4) : sizeof(struct refusal6);
	__u32 longest = ipv4 ? LONGEST_QUOTE_IPV4 : LONGEST_QUOTE_IPV6;
	__u32 quote;

	if (!packet || !refusal)
		return -1;
	quote = packet->length < longest ? packet->length : longest;
	if (is_zero_address(&refusal->from) || make_room(skb, headers, quote) ||
	    swap_macs(skb, packet))
		return -1;
	return ipv4 ? write_refusal4(skb, packet, refusal, quote)
		    : write_refusal6(skb, packet, refusal, quote);
}

/* Whether a client outside is told of the refusal: as is_answered. */
static __always_inline bool is_client_answered(const struct __sk_buff *skb, const struct flow *flow,
					       int result)
{
	return unlikely(result < 0) && native_l2 && flow->translation & TRANSLATION_REJECTED &&
	       is_answered(skb, flow, result);
}

/* The answer goes back to where the client's packet came from, as the frontend's word. */
static __always_inline int answer_client_refusal(struct __sk_buff *skb, struct flow *flow,
						 int result)
{
	struct refusal refusal = refusal_of(&flow->packet, true, &flow->packet.destination);

	if (result == -DROP_UNSUPPORTED_PROTOCOL_FOR_DSR_ENCAP)
		refuse_size(flow, &refusal);
	if (!take_answer_token(0) || write_refusal(skb, &flow->packet, &refusal))
		return TCX_DROP;
	skb->mark = MARK_KIND_SERVICE;
	return bpf_redirect(skb->ifindex, 0);
}

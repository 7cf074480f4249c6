/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
#pragma once
/* Floor 12: what a pod is told of a packet that was refused. A connection whose last backend has
 * gone is reset: an ICMP error would end a connection that is being opened only (RFC 5927, 5); an
 * established one takes it for a passing trouble. */
#include "deny.h"

#undef SOURCE_FILE
#define SOURCE_FILE FILE_LXC

#define TCP_HEADER_WORDS 5

struct reset4 {
	struct iphdr ip;
	struct tcphdr tcp;
};

struct reset6 {
	struct ipv6hdr ip;
	struct tcphdr tcp;
};

/* What acknowledges something belongs to a connection. */
static __always_inline bool belongs_to_connection(const struct packet *packet)
{
	return packet->protocol == IPPROTO_TCP && packet->tcp_flags & TCP_ACK &&
	       !(packet->tcp_flags & TCP_RST);
}

/* The segment in hand, answered (RFC 9293, 3.10.7.1); its checksum covers nothing yet. */
static __always_inline int turn_segment(struct __sk_buff *skb, const struct packet *packet,
					struct tcphdr *answer)
{
	struct tcphdr segment;

	if (bpf_skb_load_bytes(skb, packet->l4, &segment, sizeof(segment)))
		return -1;
	answer->source = segment.dest;
	answer->dest = segment.source;
	answer->seq = segment.ack_seq;
	answer->doff = TCP_HEADER_WORDS;
	answer->rst = 1;
	return 0;
}

/* The pseudo header says the addresses as 128 bits: those that IPv4 maps into them sum up to what
 * its own would, but for the ffff of each, which count as nothing. */
static __always_inline __sum16 segment_checksum(const struct packet *packet, struct tcphdr *tcp)
{
	struct ipv6_pseudo_header pseudo = {
	    .source = packet->destination,
	    .destination = packet->source,
	    .length = bpf_htonl(sizeof(*tcp)),
	    .next_header = bpf_htonl(IPPROTO_TCP),
	};
	__s64 sum = bpf_csum_diff(NULL, 0, (__be32 *)&pseudo, sizeof(pseudo), 0);

	return fold_checksum(bpf_csum_diff(NULL, 0, (__be32 *)tcp, sizeof(*tcp), sum));
}

static __always_inline int write_reset4(struct __sk_buff *skb, const struct packet *packet)
{
	struct reset4 answer = {};

	if (turn_segment(skb, packet, &answer.tcp))
		return -1;
	answer.tcp.check = segment_checksum(packet, &answer.tcp);
	answer.ip.version = 4;
	answer.ip.ihl = 5;
	answer.ip.tot_len = bpf_htons(sizeof(answer));
	answer.ip.frag_off = bpf_htons(IPV4_DO_NOT_FRAGMENT);
	answer.ip.ttl = REFUSAL_TTL;
	answer.ip.protocol = IPPROTO_TCP;
	answer.ip.saddr = bpf_htonl(ipv4_of(&packet->destination));
	answer.ip.daddr = bpf_htonl(ipv4_of(&packet->source));
	answer.ip.check =
	    fold_checksum(bpf_csum_diff(NULL, 0, (__be32 *)&answer.ip, sizeof(answer.ip), 0));
	return bpf_skb_change_tail(skb, ETH_HLEN + sizeof(answer), 0)
		   ?: bpf_skb_store_bytes(skb, ETH_HLEN, &answer, sizeof(answer), 0);
}

static __always_inline int write_reset6(struct __sk_buff *skb, const struct packet *packet)
{
	struct reset6 answer = {};

	if (turn_segment(skb, packet, &answer.tcp))
		return -1;
	answer.tcp.check = segment_checksum(packet, &answer.tcp);
	answer.ip.version = 6;
	answer.ip.payload_len = bpf_htons(sizeof(answer.tcp));
	answer.ip.nexthdr = IPPROTO_TCP;
	answer.ip.hop_limit = REFUSAL_TTL;
	copy_bytes(&answer.ip.saddr, &packet->destination, sizeof(packet->destination));
	copy_bytes(&answer.ip.daddr, &packet->source, sizeof(packet->source));
	return bpf_skb_change_tail(skb, ETH_HLEN + sizeof(answer), 0)
		   ?: bpf_skb_store_bytes(skb, ETH_HLEN, &answer, sizeof(answer), 0);
}

/* Turns the packet into a reset of its connection, as the frontend's word. Returns 0, or negative:
 * it could not. */
static __noinline int write_reset(struct __sk_buff *skb, const struct packet *packet)
{
	int error =
	    packet->family == FAMILY_IPV4 ? write_reset4(skb, packet) : write_reset6(skb, packet);

	return error ? error : swap_macs(skb, packet);
}

/* Turns the packet into what its pod is told, as often as it is told anything; nobody: there is no
 * backend. Global, as parse_headers is, and for the same reason. Returns as write_reset does. */
__noinline int write_answer(struct __sk_buff *skb, struct packet *packet, __u16 endpoint,
			    bool nobody)
{
	struct node_settings *settings = node_settings();
	struct refusal refusal;

	if (!packet || !settings || !take_answer_token(endpoint))
		return -1;
	if (nobody && belongs_to_connection(packet))
		return write_reset(skb, packet);
	refusal = refusal_of(packet, nobody,
			     packet->family == FAMILY_IPV4 ? &settings->router_ipv4
							   : &settings->router_ipv6);
	return write_refusal(skb, packet, &refusal);
}

/* The answer goes back to the pod: not by the way out of the host's end, where to_container might
 * stand. Returns what the kernel is told. */
static __always_inline int answer_pod(struct __sk_buff *skb, struct flow *flow)
{
	__u16 endpoint = flow->source.endpoint ? flow->source.endpoint->id : 0;

	if (write_answer(skb, &flow->packet, endpoint, flow->translation & TRANSLATION_REJECTED))
		return TCX_DROP;
	return bpf_redirect_peer(skb->ifindex, 0);
}

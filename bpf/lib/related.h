/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
#pragma once
/* Floor 7: ICMP errors. They pass when the packet they quote belongs to a live flow between the
 * very addresses they travel between. */
#include "conntrack.h"
#include "fragment.h"

#undef SOURCE_FILE
#define SOURCE_FILE FILE_CONNTRACK

#define ICMP_HEADER_LENGTH 8

/* The quoted packet's addresses, protocol and where its transport header starts. */
static __always_inline int quoted_ipv4(struct __sk_buff *skb, __u32 offset, struct packet *quoted)
{
	struct iphdr ip;

	if (bpf_skb_load_bytes(skb, offset, &ip, sizeof(ip)) || ip.ihl < 5 ||
	    ip.frag_off & bpf_htons(IPV4_OFFSET_MASK))
		return -1;
	map_ipv4(&quoted->source, bpf_ntohl(ip.saddr));
	map_ipv4(&quoted->destination, bpf_ntohl(ip.daddr));
	quoted->protocol = ip.protocol;
	quoted->l4 = offset + ip.ihl * 4;
	return 0;
}

static __always_inline int quoted_ipv6(struct __sk_buff *skb, __u32 offset, struct packet *quoted)
{
	struct ipv6hdr ip;

	if (bpf_skb_load_bytes(skb, offset, &ip, sizeof(ip)))
		return -1;
	copy_bytes(&quoted->source, &ip.saddr, sizeof(quoted->source));
	copy_bytes(&quoted->destination, &ip.daddr, sizeof(quoted->destination));
	quoted->protocol = ip.nexthdr;
	quoted->l4 = offset + sizeof(ip);
	return walk_extensions(skb, quoted) || quoted->fragment == FRAGMENT_LATER ? -1 : 0;
}

static __always_inline int quoted_icmp(struct __sk_buff *skb, struct packet *quoted)
{
	struct icmp_header icmp;

	if (bpf_skb_load_bytes(skb, quoted->l4, &icmp, sizeof(icmp)))
		return -1;
	quoted->icmp_type = icmp.type;
	quoted->kind =
	    quoted->family == FAMILY_IPV4 ? icmpv4_kind(icmp.type) : icmpv6_kind(icmp.type);
	quoted->source_port = icmp.id;
	quoted->destination_port = bpf_htons(request_type(quoted));
	return quoted->kind == PACKET_REQUEST || quoted->kind == PACKET_REPLY ? 0 : -1;
}

static __always_inline int quoted_ports(struct __sk_buff *skb, struct packet *quoted)
{
	__be16 ports[2];

	if (quoted->protocol == icmp_protocol(quoted))
		return quoted_icmp(skb, quoted);
	if (!has_ports(quoted->protocol))
		return 0;
	if (bpf_skb_load_bytes(skb, quoted->l4, ports, sizeof(ports)))
		return -1;
	quoted->source_port = ports[0];
	quoted->destination_port = ports[1];
	return 0;
}

/* Reads what an ICMP error quotes; negative: cut off, a later fragment, or ICMP that starts no
 * flow. Global, as parse_headers is, and for the same reason.
 */
__noinline int parse_quoted(struct __sk_buff *skb, const struct packet *packet,
			    struct packet *quoted)
{
	__u32 offset;
	int error;

	if (!packet || !quoted)
		return -1;
	offset = packet->l4 + ICMP_HEADER_LENGTH;
	quoted->family = packet->family;
	error = packet->family == FAMILY_IPV4 ? quoted_ipv4(skb, offset, quoted)
					      : quoted_ipv6(skb, offset, quoted);
	return error ?: quoted_ports(skb, quoted);
}

static __always_inline int strange_icmp(struct flow *flow)
{
	return flow->packet.family == FAMILY_IPV4 ? DROP(flow, UNKNOWN_ICMPV4_TYPE)
						  : DROP(flow, UNKNOWN_ICMPV6_TYPE);
}

/* Routers report about anybody's packets, pods about those they were sent. */
static __always_inline bool may_report(const struct flow *flow, const struct packet *quoted)
{
	return !is_workload(flow->source.identity) ||
	       same_address(&quoted->destination, &flow->packet.source);
}

/* An error is only believed on its way to the sender of what it quotes. */
static __noinline int track_error(struct __sk_buff *skb, struct flow *flow)
{
	struct packet quoted = {};
	struct ct_key key;
	struct ct_entry *entry;
	bool by_low;

	if (parse_quoted(skb, &flow->packet, &quoted) ||
	    !same_address(&quoted.source, &flow->packet.destination) || !may_report(flow, &quoted))
		return strange_icmp(flow);
	by_low = canonical_key(&quoted, &key);
	entry = bpf_map_lookup_elem(&conntrack, &key);
	flow->now = coarse_seconds();
	if (!entry || flow->now >= entry->expires)
		return strange_icmp(flow);
	recall_rules(flow, entry);
	for (__u32 index = CT_EGRESS; index <= CT_INGRESS; index++) {
		if (entry->side[index].judged & CT_DENIED)
			return drop_denied(flow, &entry->side[index], index);
	}
	/* What the client sent to the frontend is quoted as it went to the backend. */
	if (services_enabled && by_low != !!(entry->flags & CT_INITIATOR_HIGH))
		note_frontend(flow, entry);
	flow->state = CONNECTION_RELATED;
	flow->report = true;
	return 0;
}

/* The tracker's door: any packet the parser knows. */
static __always_inline int track_packet(struct __sk_buff *skb, struct flow *flow, __u32 scope)
{
	const struct packet *packet = &flow->packet;
	int dropped;

	if (unlikely(packet->fragment != FRAGMENT_NONE) &&
	    !(flow->translation & TRANSLATION_GIVEN)) {
		dropped = resolve_fragment(flow, scope);
		if (dropped)
			return dropped;
	}
	if (unlikely(packet->kind >= PACKET_ERROR)) {
		return packet->kind == PACKET_ERROR ? track_error(skb, flow) : strange_icmp(flow);
	}
	return track(skb, flow);
}

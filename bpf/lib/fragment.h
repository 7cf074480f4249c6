/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
#pragma once
/* Floor 4: pieces of a datagram. The first carries the transport header; the map lends what matters
 * of it to the others. */
#include "parse.h"

#undef SOURCE_FILE
#define SOURCE_FILE FILE_FRAGMENT

static __always_inline struct fragment_key fragment_key_of(const struct packet *packet, __u32 scope)
{
	struct fragment_key key = {
	    .source = packet->source,
	    .destination = packet->destination,
	    .id = packet->fragment_id,
	    .scope = scope,
	    .protocol = packet->family == FAMILY_IPV4 ? packet->protocol : 0,
	};

	return key;
}

/* Whether the first fragment says more than this one about the flow. */
static __always_inline bool needs_first(const struct packet *packet)
{
	if (packet->family == FAMILY_IPV6 && is_extension_header(packet->protocol))
		return true;
	return has_ports(packet->protocol) || packet->protocol == icmp_protocol(packet);
}

static __always_inline int remember_first(struct packet *packet, const struct fragment_key *key)
{
	struct fragment_entry first = {
	    .source_port = packet->source_port,
	    .destination_port = packet->destination_port,
	    .seen = coarse_seconds(),
	    .protocol = packet->protocol,
	    .kind = packet->kind,
	    .icmp_type = packet->icmp_type,
	    .icmp_code = packet->icmp_code,
	};

	/* Errors quote no more than fits (RFC 1812, 4.3.2.3; RFC 4443, 2.4), and what is about
	 * neighbours is never cut (RFC 6980). */
	if (packet->kind >= PACKET_ERROR)
		return REFUSE(packet, IP_FRAGMENTATION_NOT_SUPPORTED);
	bpf_map_update_elem(&fragments, key, &first, BPF_ANY);
	return 0;
}

/* scope: ifindex, or VNI in the overlay. Global, as parse_headers is, and for the same reason. */
__noinline int resolve_piece(struct packet *packet, __u32 scope)
{
	struct fragment_entry *known;
	struct fragment_key key;

	if (!packet)
		return -DROP_FIRST_LOGICAL_DATAGRAM_FRAGMENT_NOT_FOUND;
	key = fragment_key_of(packet, scope);
	if (packet->fragment == FRAGMENT_FIRST)
		return remember_first(packet, &key);
	if (!needs_first(packet))
		return 0;
	known = bpf_map_lookup_elem(&fragments, &key);
	if (!known)
		return REFUSE(packet, FIRST_LOGICAL_DATAGRAM_FRAGMENT_NOT_FOUND);
	packet->source_port = known->source_port;
	packet->destination_port = known->destination_port;
	packet->protocol = known->protocol;
	packet->kind = known->kind;
	packet->icmp_type = known->icmp_type;
	packet->icmp_code = known->icmp_code;
	return 0;
}

static __always_inline int resolve_fragment(struct flow *flow, __u32 scope)
{
	return resolve_piece(&flow->packet, scope);
}

/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
#pragma once
/* Floor 4: pieces of a datagram. The first carries the ports; the map lends them to the others. */
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
	    .protocol = packet->protocol,
	};

	return key;
}

/* scope: ifindex, or VNI in the overlay. */
static __noinline int resolve_fragment(struct flow *flow, __u32 scope)
{
	struct packet *packet = &flow->packet;
	struct fragment_key key = fragment_key_of(packet, scope);
	struct fragment_entry *known;

	if (packet->protocol != IPPROTO_TCP && packet->protocol != IPPROTO_UDP)
		return DROP(flow, IP_FRAGMENTATION_NOT_SUPPORTED);
	if (packet->fragment == FRAGMENT_FIRST) {
		struct fragment_entry ports = {
		    .source_port = packet->source_port,
		    .destination_port = packet->destination_port,
		    .seen = coarse_seconds(),
		};

		bpf_map_update_elem(&fragments, &key, &ports, BPF_ANY);
		return 0;
	}
	known = bpf_map_lookup_elem(&fragments, &key);
	if (!known)
		return DROP(flow, FIRST_LOGICAL_DATAGRAM_FRAGMENT_NOT_FOUND);
	packet->source_port = known->source_port;
	packet->destination_port = known->destination_port;
	return 0;
}

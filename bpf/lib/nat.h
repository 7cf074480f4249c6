/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
#pragma once
/* Floor 8: masquerade. What pods send out of the cluster leaves with the node's address and a port
 * of the node's own range; what comes back is translated the other way. */
#include "related.h"
#include "rewrite.h"

#undef SOURCE_FILE
#define SOURCE_FILE FILE_NAT

#define NAT_PROBES 16

/* Whose flows the node's address can be shared among, by port or identifier. */
static __always_inline bool is_translated_protocol(const struct packet *packet)
{
	return has_ports(packet->protocol) || packet->protocol == icmp_protocol(packet);
}

/* A flow's tuple as the pod's end (inside) and the world's (outside) see it. */
static __always_inline __be16 inside_port(const struct packet *packet, bool leaving)
{
	if (packet->kind != PACKET_PLAIN)
		return packet->source_port;
	return leaving ? packet->source_port : packet->destination_port;
}

static __always_inline __be16 outside_port(const struct packet *packet, bool leaving)
{
	if (packet->kind != PACKET_PLAIN)
		return packet->destination_port;
	return leaving ? packet->destination_port : packet->source_port;
}

/* The key under which a packet from a pod (or quoted as such) is known. */
static __always_inline struct nat_key forward_key(const struct packet *packet)
{
	struct nat_key key = {
	    .source = packet->source,
	    .destination = packet->destination,
	    .source_port = inside_port(packet, true),
	    .destination_port = outside_port(packet, true),
	    .protocol = packet->protocol,
	    .way = NAT_FORWARD,
	};

	return key;
}

/* The key under which the world's answer is known. */
static __always_inline struct nat_key reverse_key(const struct packet *packet)
{
	struct nat_key key = {
	    .source = packet->source,
	    .destination = packet->destination,
	    .source_port = outside_port(packet, false),
	    .destination_port = inside_port(packet, false),
	    .protocol = packet->protocol,
	    .way = NAT_REVERSE,
	};

	return key;
}

/* The same flow, seen from its other end. */
static __always_inline void swap_ends(struct nat_key *key)
{
	struct address source = key->source;
	__be16 port = key->source_port;

	key->source = key->destination;
	key->destination = source;
	key->source_port = key->destination_port;
	key->destination_port = port;
}

static __always_inline const struct address *own_address(const struct flow *flow)
{
	return flow->packet.family == FAMILY_IPV4 ? &flow->settings->ipv4 : &flow->settings->ipv6;
}

/* SCTP's checksum covers the ports and the data: a new port would cost a walk over all of the
 * packet (RFC 9260, 6.8), so the flow keeps its own or is not translated. */
static __always_inline bool keeps_port(__u8 protocol)
{
	return protocol == IPPROTO_SCTP;
}

/* Candidate ports: the flow's own if it may be had, then a walk from a place the flow determines.
 */
struct port_walk {
	__u16 first;
	__u16 range;
	__u16 wanted;
	__u32 start;
};

static __always_inline struct port_walk port_walk_of(const struct node_settings *settings,
						     const struct nat_key *forward, __be16 port)
{
	struct port_walk walk = {
	    .first = settings->nat_first_port,
	    .range = settings->nat_last_port - settings->nat_first_port + 1,
	    .wanted = bpf_ntohs(port),
	};

	walk.start = (__u32)forward->source.lo ^ (__u32)(forward->source.lo >> 32) ^
		     (__u32)(forward->destination.lo >> 32) * 2654435761U ^ bpf_get_prandom_u32();
	return walk;
}

static __always_inline __be16 candidate(const struct port_walk *walk, __u32 probe)
{
	__u16 range = walk->range ?: 1;

	if (!probe && walk->wanted >= walk->first && walk->wanted - walk->first < range)
		return bpf_htons(walk->wanted);
	return bpf_htons(walk->first + (walk->start + probe * 0x9e37U) % range);
}

/* The way back of a masqueraded flow: its key, and in *entry its value instead of the flow's. */
static __always_inline struct nat_key turn_back(const struct nat_key *forward,
						struct nat_entry *entry)
{
	struct nat_key reverse = {
	    .source = forward->destination,
	    .destination = entry->address,
	    .source_port = forward->destination_port,
	    .destination_port = entry->port,
	    .protocol = forward->protocol,
	    .way = NAT_REVERSE,
	};

	entry->address = forward->source;
	entry->port = forward->source_port;
	return reverse;
}

/* Finds a free port of reverse's destination and remembers the flow both ways; entry is the value
 * of the way back, and the flow's afterwards. Returns whether it could. Global, as parse_headers
 * is, and for the same reason. */
__noinline int allocate(const struct nat_key *forward, struct nat_key *reverse,
			struct nat_entry *entry)
{
	struct node_settings *settings = node_settings();
	struct port_walk walk;

	if (!settings || !forward || !reverse || !entry)
		return false;
	walk = port_walk_of(settings, forward, entry->port);
	for (__u32 probe = 0; probe < NAT_PROBES; probe++) {
		reverse->destination_port = candidate(&walk, probe);
		if (keeps_port(forward->protocol)) {
			probe = NAT_PROBES;
			reverse->destination_port = entry->port;
		}
		if (bpf_map_update_elem(&snat, reverse, entry, BPF_NOEXIST))
			continue;
		entry->address = reverse->destination;
		entry->port = reverse->destination_port;
		if (!bpf_map_update_elem(&snat, forward, entry, BPF_ANY))
			return true;
		bpf_map_delete_elem(&snat, reverse);
		return false;
	}
	return false;
}

/* Remembers a pod's flow under a port of this node. */
static __noinline int allocate_masquerade(struct flow *flow, const struct nat_key *forward)
{
	struct nat_entry entry = {
	    .address = *own_address(flow),
	    .endpoint = flow->source.endpoint ? flow->source.endpoint->id : 0,
	    .created = flow->now,
	    .seen = flow->now,
	};
	struct nat_key reverse = turn_back(forward, &entry);

	return allocate(forward, &reverse, &entry);
}

/* Once a second, so that either way of a flow says when it was last used; a way back that went
 * missing is put back. */
static __noinline int refresh(const struct nat_key *forward, struct nat_entry *known, __u32 now)
{
	struct nat_entry entry = *known, *back;
	struct nat_key reverse;

	known->seen = entry.seen = now;
	reverse = turn_back(forward, &entry);
	back = bpf_map_lookup_elem(&snat, &reverse);
	if (back)
		back->seen = now;
	else
		bpf_map_update_elem(&snat, &reverse, &entry, BPF_NOEXIST);
	return 0;
}

/* The same by an answer, of a flow towards asked: for a masqueraded one who answers, for one of a
 * service its frontend. */
static __noinline int refresh_by_answer(const struct nat_key *reverse, struct nat_entry *known,
					const struct address *asked, __be16 asked_port)
{
	struct nat_key forward = {
	    .source = known->address,
	    .destination = *asked,
	    .source_port = known->port,
	    .destination_port = asked_port,
	    .protocol = reverse->protocol,
	    .way = NAT_FORWARD,
	};
	struct nat_entry *entry = bpf_map_lookup_elem(&snat, &forward);

	known->seen = coarse_seconds();
	if (entry)
		entry->seen = known->seen;
	return 0;
}

/* The world opened this flow towards the pod's own address: its answers keep that address. */
static __noinline bool was_opened_outside(const struct flow *flow)
{
	struct ct_key key;
	bool by_low = canonical_key(&flow->packet, &key);
	struct ct_entry *entry = bpf_map_lookup_elem(&conntrack, &key);

	if (!entry || coarse_seconds() >= entry->expires)
		return false;
	return by_low == !!(entry->flags & CT_INITIATOR_HIGH);
}

static __always_inline bool is_current(const struct flow *flow, const struct nat_entry *known)
{
	return known && same_address(&known->address, own_address(flow));
}

/* The node's end of the pod's flow into change: 1; 0: the flow is not to be translated; or a
 * negative reason. */
static __noinline int find_translation(struct flow *flow, struct change *change)
{
	struct nat_key key = forward_key(&flow->packet);
	struct nat_entry *known;

	/* The answer to a ping keeps its address, also while the pod pings back under the same
	 * number. */
	if (flow->packet.kind == PACKET_REPLY)
		return 0;
	known = bpf_map_lookup_elem(&snat, &key);
	flow->now = coarse_seconds();
	if (!is_current(flow, known)) {
		if (was_opened_outside(flow))
			return 0;
		known = allocate_masquerade(flow, &key) ? bpf_map_lookup_elem(&snat, &key) : NULL;
		if (!known)
			return keeps_port(key.protocol)
				   ? DROP(flow, UNSUPPORTED_PROTOCOL_FOR_NAT_MASQUERADE)
				   : DROP(flow, NO_MAPPING_FOR_NAT_MASQUERADE);
	} else if (known->seen != flow->now) {
		refresh(&key, known, flow->now);
	}
	change->from = key.source;
	change->from_port = key.source_port;
	change->to = known->address;
	change->to_port = known->port;
	return 1;
}

/* Gives the packet of a local pod the node's address. Returns 1: done, 0: not to be translated, or
 * a negative reason. */
static __always_inline int masquerade(struct __sk_buff *skb, struct flow *flow)
{
	struct change change = {.is_source = 1};
	int found = find_translation(flow, &change);

	return found > 0 ? rewrite(skb, flow, &change) ?: 1 : found;
}

/* What became of the packet an ICMP error quotes, and in change what that means for the quote.
 * Going out it quotes the world's answer as the pod got it, coming in the pod's packet as it left.
 */
static __always_inline struct nat_entry *find_quoted(const struct packet *quoted, bool leaving,
						     struct change *change)
{
	struct nat_key key = leaving ? reverse_key(quoted) : forward_key(quoted);
	struct nat_entry *known;

	key.way = leaving ? NAT_FORWARD : NAT_REVERSE;
	swap_ends(&key);
	known = bpf_map_lookup_elem(&snat, &key);
	if (!known || known->service)
		return NULL;
	change->from = leaving ? key.source : key.destination;
	change->from_port = leaving ? key.source_port : key.destination_port;
	change->to = known->address;
	change->to_port = known->port;
	return known;
}

/* A pod's ICMP error about an answer from outside. */
static __noinline int masquerade_error(struct __sk_buff *skb, struct flow *flow)
{
	struct packet quoted = {};
	struct change change = {};
	int dropped;

	if (parse_quoted(skb, &flow->packet, &quoted))
		return strange_icmp(flow);
	if (!find_quoted(&quoted, true, &change))
		return 0;
	dropped = rewrite_quoted(skb, flow, &quoted, &change);
	if (dropped)
		return dropped;
	change.from = flow->packet.source;
	change.from_port = change.to_port = 0;
	change.is_source = 1;
	return rewrite(skb, flow, &change) ?: 1;
}

/* The packet's destination is the pod's again, in the packet and in what is known of it. */
static __always_inline int give_back(struct __sk_buff *skb, struct flow *flow,
				     struct change *change)
{
	struct packet *packet = &flow->packet;
	int dropped = rewrite(skb, flow, change);

	if (dropped)
		return dropped;
	packet->destination = change->to;
	if (packet->kind == PACKET_PLAIN)
		packet->destination_port = change->to_port;
	else
		packet->source_port = change->to_port;
	/* Its ports are known by now, even if it is a later fragment. */
	packet->fragment = FRAGMENT_NONE;
	return 1;
}

/* An answer to a masqueraded flow. Returns as masquerade does. */
static __noinline int unmasquerade(struct __sk_buff *skb, struct flow *flow)
{
	struct nat_key key = reverse_key(&flow->packet);
	struct nat_entry *known;
	struct change change = {.from = key.destination, .from_port = key.destination_port};

	/* Who pings the node means the node, whatever number a pod's ping has there. */
	if (flow->packet.kind == PACKET_REQUEST)
		return 0;
	known = bpf_map_lookup_elem(&snat, &key);
	if (!known || known->service)
		return 0;
	if (known->seen != coarse_seconds())
		refresh_by_answer(&key, known, &key.source, key.source_port);
	change.to = known->address;
	change.to_port = known->port;
	return give_back(skb, flow, &change);
}

/* An ICMP error about a masqueraded packet. */
static __noinline int unmasquerade_error(struct __sk_buff *skb, struct flow *flow)
{
	struct packet quoted = {};
	struct change change = {.is_source = 1};
	int dropped;

	if (parse_quoted(skb, &flow->packet, &quoted) || !find_quoted(&quoted, false, &change))
		return 0;
	dropped = rewrite_quoted(skb, flow, &quoted, &change);
	if (dropped)
		return dropped;
	change.from = flow->packet.destination;
	change.from_port = change.to_port = flow->packet.source_port;
	change.is_source = 0;
	return give_back(skb, flow, &change);
}

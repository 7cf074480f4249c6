/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
#pragma once
/* Floor 11: the other way to tell a backend's node of the frontend, where there is no tunnel: the
 * client's packet as it is, inside another to the backend's address (RFC 2003, RFC 2473). Backends
 * without this data path can read it, too. */
#include "nodeport.h"

#undef SOURCE_FILE
#define SOURCE_FILE FILE_NODEPORT

#define OUTER_TTL 64

/* Among a service's backends: the one with an address. */
struct backend_search {
	struct address wanted;
	__u32 first;
	__u32 number;
};

static long look_for_address(__u32 index, struct backend_search *asked)
{
	__u32 number = slot_of(asked->first + index);
	struct backend *backend = live_backend(number);

	if (!backend || !same_address(&backend->address, &asked->wanted))
		return 0;
	asked->number = number;
	return 1;
}

static __always_inline int write_outer4(struct __sk_buff *skb, const struct packet *packet,
					const struct address *own, const struct address *backend)
{
	struct iphdr outer = {
	    .version = 4,
	    .ihl = 5,
	    .tot_len = bpf_htons(packet->length + sizeof(outer)),
	    .frag_off = bpf_htons(IPV4_DO_NOT_FRAGMENT),
	    .ttl = OUTER_TTL,
	    .protocol = IPPROTO_IPIP,
	    .saddr = bpf_htonl(ipv4_of(own)),
	    .daddr = bpf_htonl(ipv4_of(backend)),
	};

	outer.check = fold_checksum(bpf_csum_diff(NULL, 0, (__be32 *)&outer, sizeof(outer), 0));
	return bpf_skb_adjust_room(skb, sizeof(outer), BPF_ADJ_ROOM_MAC,
				   BPF_F_ADJ_ROOM_ENCAP_L3_IPV4)
		   ?: bpf_skb_store_bytes(skb, packet->l3, &outer, sizeof(outer), 0);
}

static __always_inline int write_outer6(struct __sk_buff *skb, const struct packet *packet,
					const struct address *own, const struct address *backend)
{
	struct ipv6hdr outer = {
	    .version = 6,
	    .payload_len = bpf_htons(packet->length),
	    .nexthdr = IPPROTO_IPV6,
	    .hop_limit = OUTER_TTL,
	};

	copy_bytes(&outer.saddr, own, sizeof(*own));
	copy_bytes(&outer.daddr, backend, sizeof(*backend));
	return bpf_skb_adjust_room(skb, sizeof(outer), BPF_ADJ_ROOM_MAC,
				   BPF_F_ADJ_ROOM_ENCAP_L3_IPV6)
		   ?: bpf_skb_store_bytes(skb, packet->l3, &outer, sizeof(outer), 0);
}

/* The client's packet, wrapped, to a backend of another node. */
static __noinline int send_wrapped(struct __sk_buff *skb, struct flow *flow,
				   struct outside_work *work)
{
	struct packet *packet = &flow->packet;
	const struct address *own = own_address(flow);
	const struct address *backend = &work->flow.backend_address;
	int dropped;

	flow->direction = DIRECTION_EGRESS;
	flow->destination.identity =
	    identity_of(lookup_ipcache(packet->family, backend), packet->family);
	if (!has_room(skb, flow))
		return refuse_large(flow);
	dropped = check_ttl(flow) ?: remember_choice(flow) ?: add_link_header(skb, flow)
		  ?: decrement_ttl(skb, flow);
	if (dropped)
		return dropped;
	if (packet->family == FAMILY_IPV4 ? write_outer4(skb, packet, own, backend)
					  : write_outer6(skb, packet, own, backend))
		return DROP(flow, ERROR_WRITING_TO_PACKET);
	packet->length += told_size(packet->family);
	packet->protocol = packet->family == FAMILY_IPV4 ? IPPROTO_IPIP : IPPROTO_IPV6;
	packet->source = *own;
	packet->destination = *backend;
	return leave_translated(skb, flow);
}

static __always_inline bool is_wrapped(const struct packet *packet)
{
	return packet->protocol == (packet->family == FAMILY_IPV4 ? IPPROTO_IPIP : IPPROTO_IPV6);
}

/* The backend that was asked for, under its own port, into work->flow. */
static __noinline bool find_asked_backend(struct flow *flow, const struct service *service,
					  struct outside_work *work, const struct address *address)
{
	const struct service_range *range = &service->range[SERVICE_EXTERNAL];
	struct backend_search asked = {.wanted = *address, .first = range->first};
	struct backend *backend;

	bpf_loop(range->count, look_for_address, &asked, 0);
	backend = live_backend(asked.number);
	if (!asked.number || !backend)
		return false;
	work->flow = (struct service_flow){
	    .backend_address = *address,
	    .backend_port = backend->port,
	    .backend = asked.number,
	    .service = service->id,
	    .flags = SERVICE_FLOW_DSR,
	    .created = flow->now,
	    .expires = flow->now + service_lifetime(&flow->packet, 0),
	};
	return true;
}

/* Takes the outer header off. */
static __always_inline int take_off(struct __sk_buff *skb, struct flow *flow)
{
	__u32 outer = told_size(flow->packet.family);
	__u32 l3 = flow->packet.l3;

	if (flow->packet.l4 - l3 != outer || flow->packet.fragment != FRAGMENT_NONE ||
	    bpf_skb_adjust_room(skb, -(__s32)outer, BPF_ADJ_ROOM_MAC, 0))
		return DROP(flow, INVALID_PACKET_DROPPED);
	return parse_packet(skb, flow, l3);
}

/* A client's packet that a node of the cluster has wrapped for a backend here becomes what the
 * backend is to get. The source is checked by whoever goes on. Returns 0 or a negative reason. */
static __noinline int unwrap(struct __sk_buff *skb, struct flow *flow, struct outside_work *work)
{
	struct packet *packet = &flow->packet;
	struct address backend = packet->destination;
	struct service *service;
	struct told told = {};
	int dropped;

	if (!bpf_map_lookup_elem(&nodes, &packet->source))
		return DROP(flow, ENCAPSULATION_TRAFFIC_IS_PROHIBITED);
	dropped = take_off(skb, flow);
	if (dropped)
		return dropped;
	if (packet->fragment != FRAGMENT_NONE && resolve_fragment(flow, skb->ifindex))
		return DROP(flow, FIRST_LOGICAL_DATAGRAM_FRAGMENT_NOT_FOUND);
	told.address = packet->destination;
	told.port = packet->destination_port;
	flow->now = coarse_seconds();
	service = service_of_told(flow, &told);
	if (!service || !has_ports(packet->protocol))
		return DROP(flow, INVALID_IDENTITY);
	if (!recall_flow(flow, service, work) && !find_asked_backend(flow, service, work, &backend))
		return DROP(flow, SERVICE_BACKEND_NOT_FOUND);
	plan(&work->destination, false, &told.address, told.port, &work->flow.backend_address,
	     work->flow.backend_port);
	flow->destination.service = service->id;
	flow->translation |= TRANSLATION_DSR;
	return remember_choice(flow) ?: write_destination(skb, flow, work)
	       ?: remember_told(flow, &told, service->id);
}

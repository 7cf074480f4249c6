/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
#pragma once
/* Floor 11: ICMP errors about flows of clients outside. Each end hears of the packets it sent, from
 * whom it sent them to. */
#include "nodeport.h"

#undef SOURCE_FILE
#define SOURCE_FILE FILE_NODEPORT

/* The frontend's flow with the client that an ICMP error quotes an answer of, into work. Returns
 * whether there is one. */
static __noinline bool recall_quoted(struct __sk_buff *skb, struct flow *flow,
				     struct outside_work *work)
{
	struct packet *packet = &flow->packet, *quoted = &work->quoted;
	struct service_flow *known;

	__builtin_memset(quoted, 0, sizeof(*quoted));
	if (parse_quoted(skb, packet, quoted) || !has_ports(quoted->protocol) ||
	    !same_address(&quoted->source, &packet->destination))
		return false;
	canonical_key(quoted, &work->key);
	work->key.zone = CT_ZONE_SERVICE;
	known = bpf_map_lookup_elem(&service_flows, &work->key);
	flow->now = coarse_seconds();
	if (!known || flow->now >= known->expires)
		return false;
	work->flow = *known;
	work->is_fresh = false;
	return true;
}

/* Writes an end of what the error quotes. */
static __always_inline int write_quoted(struct __sk_buff *skb, struct flow *flow,
					struct outside_work *work, struct change *change)
{
	return rewrite_quoted(skb, flow, &work->quoted, change);
}

/* An ICMP error about what a backend sent to a client: it quotes the frontend. Returns as
 * serve_outside. */
static __noinline int serve_error(struct __sk_buff *skb, struct flow *flow,
				  struct outside_work *work)
{
	const struct packet *packet = &flow->packet, *quoted = &work->quoted;
	int dropped;

	if (!recall_quoted(skb, flow, work))
		return BACKEND_NONE;
	flow->state = CONNECTION_RELATED;
	plan(&work->source, true, &quoted->source, quoted->source_port, &work->flow.backend_address,
	     work->flow.backend_port);
	plan(&work->destination, false, &packet->destination, packet->destination_port,
	     &work->flow.backend_address, packet->destination_port);
	dropped = write_quoted(skb, flow, work, &work->source);
	if (dropped)
		return dropped;
	if (!lookup_endpoint(&work->flow.backend_address))
		return BACKEND_AWAY;
	return write_destination(skb, flow, work) ?: BACKEND_HERE;
}

/* The client that an error quotes is to the backend what this node made of it. */
static __always_inline int quote_own_end(struct __sk_buff *skb, struct flow *flow,
					 struct outside_work *work)
{
	const struct packet *quoted = &work->quoted;
	struct nat_entry *known;

	work->forward = (struct nat_key){
	    .source = quoted->destination,
	    .destination = quoted->source,
	    .source_port = quoted->destination_port,
	    .destination_port = quoted->source_port,
	    .protocol = quoted->protocol,
	    .way = NAT_FORWARD,
	};
	known = bpf_map_lookup_elem(&snat, &work->forward);
	if (!known)
		return strange_icmp(flow);
	plan(&work->source, false, &quoted->destination, quoted->destination_port, &known->address,
	     known->port);
	return write_quoted(skb, flow, work, &work->source);
}

/* The error goes on to a backend of another node, as this node's word. */
static __noinline int send_error(struct __sk_buff *skb, struct flow *flow,
				 struct outside_work *work)
{
	struct packet *packet = &flow->packet;
	struct way way = way_to(flow, &work->flow.backend_address);
	int dropped;

	flow->destination.identity = identity_of(way.known, packet->family);
	flow->direction = DIRECTION_EGRESS;
	dropped = check_ttl(flow) ?: add_link_header(skb, flow);
	if (!dropped && work->flow.flags & SERVICE_FLOW_SNAT)
		dropped = quote_own_end(skb, flow, work);
	if (dropped)
		return dropped;
	plan(&work->source, true, &packet->source, packet->source_port,
	     own_end(flow, way.tunnelled), packet->source_port);
	dropped = write_destination(skb, flow, work) ?: write_source(skb, flow, work);
	return dropped ?: set_out(skb, flow, &way);
}

/* The client's flow that an ICMP error quotes as it went to a backend of another node, into work.
 * Returns whether there is one. */
static __noinline bool find_quoted_client(struct __sk_buff *skb, struct flow *flow,
					  struct outside_work *work)
{
	struct packet *packet = &flow->packet, *quoted = &work->quoted;
	struct frontend *frontend;
	struct nat_entry *known;

	__builtin_memset(quoted, 0, sizeof(*quoted));
	if (parse_quoted(skb, packet, quoted) || !has_ports(quoted->protocol) ||
	    !same_address(&quoted->source, &packet->destination))
		return false;
	work->reverse = forward_key(quoted);
	work->reverse.way = NAT_REVERSE;
	swap_ends(&work->reverse);
	known = bpf_map_lookup_elem(&snat, &work->reverse);
	if (!known || !known->service)
		return false;
	frontend = frontend_of(known->service);
	if (!frontend || frontend->protocol != quoted->protocol)
		return false;
	plan(&work->source, true, &quoted->source, quoted->source_port, &known->address,
	     known->port);
	plan(&work->destination, false, &quoted->destination, quoted->destination_port,
	     &frontend->address, frontend->port);
	return true;
}

/* An ICMP error about what this node sent to a backend goes on to the client, as the frontend's
 * word. Returns as answer_client. */
static __noinline int answer_error(struct __sk_buff *skb, struct flow *flow,
				   struct outside_work *work)
{
	struct packet *packet = &flow->packet;
	struct change *client = &work->source, *frontend = &work->destination;
	int dropped;

	if (!find_quoted_client(skb, flow, work))
		return 0;
	flow->state = CONNECTION_RELATED;
	flow->direction = DIRECTION_EGRESS;
	dropped = check_ttl(flow) ?: add_link_header(skb, flow);
	dropped = dropped ?: write_quoted(skb, flow, work, client);
	dropped = dropped ?: write_quoted(skb, flow, work, frontend);
	if (dropped)
		return dropped;
	work->entry.address = client->to;
	plan(&work->source, true, &packet->source, packet->source_port, &frontend->to,
	     packet->source_port);
	plan(&work->destination, false, &packet->destination, packet->destination_port,
	     &work->entry.address, packet->destination_port);
	dropped = write_destination(skb, flow, work) ?: write_source(skb, flow, work)
		  ?: decrement_ttl(skb, flow);
	return dropped ?: leave_translated(skb, flow);
}

/* The host's ICMP error about what a client of a service sent it. */
static __noinline int leave_as_error(struct __sk_buff *skb, struct flow *flow,
				     struct outside_work *work)
{
	struct packet *packet = &flow->packet, *quoted = &work->quoted;
	struct nat_entry *known;
	int dropped;

	__builtin_memset(quoted, 0, sizeof(*quoted));
	if (parse_quoted(skb, packet, quoted) || !has_ports(quoted->protocol))
		return 0;
	work->forward = told_key(quoted);
	known = bpf_map_lookup_elem(&snat, &work->forward);
	if (!known)
		return 0;
	plan(&work->destination, false, &quoted->destination, quoted->destination_port,
	     &known->address, known->port);
	plan(&work->source, true, &packet->source, packet->source_port, &known->address,
	     packet->source_port);
	dropped = write_quoted(skb, flow, work, &work->destination);
	return dropped ?: write_source(skb, flow, work);
}

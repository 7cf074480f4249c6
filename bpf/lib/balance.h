/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
#pragma once
/* Floor 8: services, packet by packet. What a pod sends to a frontend goes on as if it had been
 * sent to a backend: found by balance() before the flow is tracked, written by settle() once it may
 * pass. What comes back leaves as the frontend's (restore_frontend).
 *
 * The three doors are global functions, as parse_headers is, and for the same reason: they know the
 * packet and the workspace, but no flow. */
#include "related.h"
#include "rewrite.h"
#include "service.h"

#undef SOURCE_FILE
#define SOURCE_FILE FILE_BALANCE

/* Packets to pods, wherever they are, ask for no service: they pay nothing. */
static __always_inline bool may_be_service(const struct flow *flow)
{
	return services_enabled && flow->settings->flags & NODE_SERVICES &&
	       !is_workload(flow->destination.identity);
}

/* The key of the client's flow towards the frontend. */
static __always_inline void service_flow_key(const struct packet *packet, struct ct_key *key)
{
	canonical_key(packet, key);
	key->zone = CT_ZONE_SERVICE;
}

/* The key under which a flow towards a frontend without an address of its own, a node port at any
 * node, is known by what it goes to: it remembers the address that was asked for. */
static __always_inline void anywhere_key(const struct packet *packet, struct ct_key *key)
{
	canonical_key(packet, key);
	key->zone = CT_ZONE_NAT;
}

static __always_inline bool is_anywhere(const struct frontend *frontend)
{
	return is_zero_address(&frontend->address) ||
	       (is_mapped_ipv4(&frontend->address) && !ipv4_of(&frontend->address));
}

/* Whether an established flow may stay with what it was given. One that is closed and opened again
 * is a new one. */
static __always_inline bool keeps_backend(const struct packet *packet,
					  const struct service_flow *known)
{
	if (!known || coarse_seconds() >= known->expires)
		return false;
	if (known->flags & SERVICE_FLOW_CLOSED && is_opening(packet))
		return false;
	return is_same_backend(live_backend(known->backend), &known->backend_address,
			       known->backend_port);
}

/* Nobody serves: the sender is told, or not, or its packet goes its own way. */
static __always_inline int miss_backend(struct packet *packet, const struct service *service,
					struct workspace *space)
{
	if (service->flags & SERVICE_LOOSE)
		return 0;
	space->is_rejected = service->flags & SERVICE_REJECT;
	return REFUSE(packet, SERVICE_BACKEND_NOT_FOUND);
}

/* A backend for a new flow, into the workspace. Returns 1, or as miss_backend does. */
static __noinline int choose_for_pod(struct packet *packet, const struct service *service,
				     const struct node_settings *settings, struct workspace *space)
{
	struct service_client client = {.address = packet->source, .scope = SERVICE_INTERNAL};
	struct service_flow *flow = &space->flow;
	struct backend *backend;

	flow->service = service->id;
	client.hash = service->flags & SERVICE_MAGLEV ? hash_flow(settings->hash_seed, packet)
						      : bpf_get_prandom_u32();
	backend = choose_backend(service, &client, &flow->backend);
	if (!backend || family_of(&backend->address) != packet->family)
		return miss_backend(packet, service, space);
	flow->backend_address = backend->address;
	flow->backend_port = backend->port;
	flow->created = coarse_seconds();
	flow->expires = 0;
	flow->flags = 0;
	return 1;
}

/* No stack believes a packet that comes from its own address. */
static __always_inline int turn_hairpin(struct packet *packet, struct workspace *space)
{
	space->client = packet->source;
	space->client_port = packet->source_port;
	loopback_of(packet->family, &packet->source);
	return TRANSLATION_HAIRPIN | TRANSLATION_CLIENT;
}

/* From here on the packet is seen as one to the backend; its bytes still name the frontend. */
static __always_inline int give_backend(struct packet *packet, struct workspace *space)
{
	int translation = TRANSLATION_GIVEN | TRANSLATION_ASKED;

	/* A new port would cost SCTP's checksum a walk over all of the packet. */
	if (packet->protocol == IPPROTO_SCTP &&
	    packet->destination_port != space->flow.backend_port)
		return REFUSE(packet, UNKNOWN_L4_PROTOCOL);
	space->asked = packet->destination;
	space->asked_port = packet->destination_port;
	packet->destination = space->flow.backend_address;
	packet->destination_port = space->flow.backend_port;
	if (same_address(&packet->destination, &packet->source))
		translation |= turn_hairpin(packet, space);
	return translation;
}

/* The service the packet asks for; NULL: none that this pod is given. */
static __always_inline struct service *
service_of_pod(const struct packet *packet, const struct node_settings *settings, __u16 endpoint)
{
	const struct address *address = &packet->destination;
	struct service *service =
	    find_service(settings, address, packet->destination_port, packet->protocol);

	if (!service || is_usurped(service, address) ||
	    is_skipped(service, address, packet->destination_port, packet->protocol, 0, endpoint))
		return NULL;
	return service;
}

static __always_inline int balance_request(struct packet *packet, struct workspace *space,
					   __u16 endpoint)
{
	struct node_settings *settings = node_settings();
	struct service_flow *known;
	struct service *service;
	int result;

	service = settings ? service_of_pod(packet, settings, endpoint) : NULL;
	if (!service)
		return 0;
	service_flow_key(packet, &space->key);
	known = bpf_map_lookup_elem(&service_flows, &space->key);
	if (known && keeps_backend(packet, known)) {
		space->flow = *known;
	} else {
		space->flow.owner = endpoint;
		result = choose_for_pod(packet, service, settings, space);
		if (result <= 0)
			return result;
	}
	return give_backend(packet, space);
}

/* A pod's error about what a frontend sent it, which is quoted in the workspace: the frontend's
 * packet came from the backend. Both are written at once, since an error is never answered. */
static __noinline int balance_error(struct __sk_buff *skb, struct packet *packet,
				    struct workspace *space)
{
	struct packet *quoted = &space->quoted;
	struct change change = {.is_source = 1};
	struct service_flow *known;
	int dropped;

	if (!has_ports(quoted->protocol) || !same_address(&quoted->source, &packet->destination))
		return 0;
	service_flow_key(quoted, &space->key);
	known = bpf_map_lookup_elem(&service_flows, &space->key);
	if (!known || coarse_seconds() >= known->expires)
		return 0;
	change.from = quoted->source;
	change.from_port = quoted->source_port;
	change.to = known->backend_address;
	change.to_port = known->backend_port;
	dropped = rewrite_quote(skb, packet, quoted, &change);
	if (dropped)
		return dropped;
	change.is_source = 0;
	change.from_port = change.to_port = packet->source_port;
	dropped = rewrite_packet(skb, packet, &change);
	packet->destination = change.to;
	space->asked = change.from;
	space->asked_port = 0;
	return dropped ? dropped : TRANSLATION_ASKED;
}

/* What a pod answers to itself goes to an address that is nobody's: only what belongs to a flow may
 * pass. */
static __always_inline int balance_hairpin(struct packet *packet)
{
	if (packet->kind != PACKET_ERROR && !is_tracked(packet))
		return REFUSE(packet, UNKNOWN_L3_TARGET_ADDRESS);
	return TRANSLATION_HAIRPIN;
}

/* Gives what a pod sends a backend, if it asks for a service. Returns enum translation, 0: the
 * packet is left alone, or a negative reason. */
__noinline int balance_packet(struct __sk_buff *skb, struct packet *packet, __u16 endpoint)
{
	struct workspace *space = own_workspace();
	struct address loopback;

	if (!packet || !space)
		return 0;
	space->is_rejected = false;
	loopback_of(packet->family, &loopback);
	if (unlikely(same_address(&packet->destination, &loopback)))
		return balance_hairpin(packet);
	if (packet->kind == PACKET_ERROR) {
		__builtin_memset(&space->quoted, 0, sizeof(space->quoted));
		return parse_quoted(skb, packet, &space->quoted)
			   ? 0
			   : balance_error(skb, packet, space);
	}
	return has_ports(packet->protocol) ? balance_request(packet, space, endpoint) : 0;
}

static __always_inline int balance(struct __sk_buff *skb, struct flow *flow)
{
	struct workspace *space = own_workspace();
	int result;

	if (unlikely(flow->packet.fragment != FRAGMENT_NONE)) {
		result = resolve_fragment(flow, skb->ifindex);
		if (result)
			return result;
	}
	result = balance_packet(skb, &flow->packet,
				flow->source.endpoint ? flow->source.endpoint->id : 0);
	if (!space || !result)
		return 0;
	if (result > 0)
		flow->translation = result;
	else if (space->is_rejected)
		flow->translation = TRANSLATION_REJECTED;
	if (flow->translation & (TRANSLATION_GIVEN | TRANSLATION_REJECTED))
		flow->destination.service = space->flow.service;
	return result;
}

/* A pod that asks one backend by ever more frontends opens one tracked flow at a time, but is
 * remembered with each: so it pays for these as well. */
static __always_inline int charge_service_flow(struct packet *packet, struct ct_quota *quota)
{
	struct node_settings *settings = node_settings();
	__s64 allowed = settings ? settings->ct_quota : 0, live;

	live = __sync_fetch_and_add(&quota->service_opened, 1) - quota->service_closed;
	if (live < allowed || !allowed)
		return 0;
	__sync_fetch_and_add(&quota->service_opened, -1ULL);
	return REFUSE(packet, DROP_RATE_LIMITED);
}

/* Returns 0 or a negative reason. */
static __noinline int store_service_flow(struct packet *packet, const struct ct_key *key,
					 const struct service_flow *flow)
{
	struct ct_quota *quota = flow->owner ? quota_of(flow->owner) : NULL;
	int dropped;

	if (bpf_map_lookup_elem(&service_flows, key))
		quota = NULL;
	dropped = quota ? charge_service_flow(packet, quota) : 0;
	if (dropped || !bpf_map_update_elem(&service_flows, key, flow, BPF_ANY))
		return dropped;
	if (quota)
		__sync_fetch_and_add(&quota->service_opened, -1ULL);
	return REFUSE(packet, CT_MAP_INSERTION_FAILED);
}

/* Where the frontend is a node port at any node: what was asked for cannot be told from it. */
static __always_inline int remember_asked(struct packet *packet, const struct workspace *space)
{
	struct service_flow asked = space->flow;
	struct ct_key key;

	anywhere_key(packet, &key);
	asked.backend_address = space->asked;
	asked.backend_port = space->asked_port;
	asked.backend = 0;
	return store_service_flow(packet, &key, &asked);
}

/* Keeps the flow's entry as long as the tracked flow. Returns 0 or a negative reason. */
static __noinline int remember_flow(struct packet *packet, struct workspace *space, bool closed)
{
	struct frontend *frontend;
	int dropped;

	space->flow.expires = space->expires;
	if (closed)
		space->flow.flags |= SERVICE_FLOW_CLOSED;
	dropped = store_service_flow(packet, &space->key, &space->flow);
	frontend = frontend_of(space->flow.service);
	if (dropped || !frontend || !is_anywhere(frontend))
		return dropped;
	return remember_asked(packet, space);
}

/* Writes what balance_packet found into a packet that may pass. Returns 0 or a negative reason. */
__noinline int settle_packet(struct __sk_buff *skb, struct packet *packet, __u8 translation)
{
	struct workspace *space = own_workspace();
	struct change change = {};
	int dropped = 0;

	if (!packet || !space)
		return -DROP_ERROR_WRITING_TO_PACKET;
	/* A flow that is not remembered yet expires at 0. */
	if (translation & TRANSLATION_CLOSED || space->flow.expires != space->expires)
		dropped = remember_flow(packet, space, translation & TRANSLATION_CLOSED);
	if (dropped)
		return dropped;
	change.from = space->asked;
	change.from_port = space->asked_port;
	change.to = packet->destination;
	change.to_port = packet->destination_port;
	dropped = rewrite_packet(skb, packet, &change);
	if (dropped || !(translation & TRANSLATION_HAIRPIN))
		return dropped;
	change.is_source = 1;
	change.from = space->client;
	change.to = packet->source;
	change.from_port = change.to_port = packet->source_port;
	return rewrite_packet(skb, packet, &change);
}

static __always_inline int settle(struct __sk_buff *skb, struct flow *flow)
{
	if (likely(!(flow->translation & TRANSLATION_GIVEN)))
		return 0;
	return settle_packet(skb, &flow->packet, flow->translation);
}

/* How a client knows the backend that sent the packet, or that an error is about. */
struct restoring {
	struct change change;
	__u32 service; /* the frontend it asked for */
	__u8 translation;
	__u8 is_about; /* the packet in hand is an error: what it quotes is looked at */
};

/* The frontend of a node port at any node, as this flow's client has asked for it. */
static __always_inline bool recall_asked(const struct packet *seen, struct workspace *space,
					 struct restoring *restoring)
{
	struct service_flow *known;

	anywhere_key(seen, &space->key);
	known = bpf_map_lookup_elem(&service_flows, &space->key);
	if (!known)
		return false;
	if (!restoring->is_about && known->expires != space->expires)
		known->expires = space->expires;
	restoring->change.to = known->backend_address;
	restoring->change.to_port = known->backend_port;
	return true;
}

/* What the node that the client asked has told of its frontend. */
static __always_inline bool recall_told(const struct packet *seen, struct restoring *restoring)
{
	bool about = restoring->is_about;
	struct nat_key key = {
	    .source = about ? seen->source : seen->destination,
	    .destination = about ? seen->destination : seen->source,
	    .source_port = about ? seen->source_port : seen->destination_port,
	    .destination_port = about ? seen->destination_port : seen->source_port,
	    .protocol = seen->protocol,
	    .way = NAT_DSR,
	};
	struct nat_entry *known = bpf_map_lookup_elem(&snat, &key);
	__u32 now = coarse_seconds();

	if (!known)
		return false;
	if (known->seen != now)
		known->seen = now;
	restoring->change.to = known->address;
	restoring->change.to_port = known->port;
	return true;
}

/* What the backend is known as to the client, into the change. seen: the reply, or what an error
 * quotes of the request. Returns whether it is known. */
static __noinline int find_frontend(const struct packet *seen, struct workspace *space,
				    struct restoring *restoring)
{
	struct frontend *frontend;

	if (restoring->translation & TRANSLATION_DSR)
		return recall_told(seen, restoring);
	frontend = frontend_of(restoring->service);
	if (!frontend || !frontend->port)
		return false;
	restoring->change.to = frontend->address;
	restoring->change.to_port = frontend->port;
	return is_anywhere(frontend) ? recall_asked(seen, space, restoring) : true;
}

/* The reply that ends a flow: a client that opens it again may be given another backend. */
static __always_inline void close_service_flow(const struct packet *packet, struct workspace *space,
					       const struct restoring *restoring)
{
	struct packet *asked = &space->quoted;
	struct service_flow *known;

	__builtin_memset(asked, 0, sizeof(*asked));
	asked->source =
	    restoring->translation & TRANSLATION_HAIRPIN ? packet->source : packet->destination;
	asked->source_port = packet->destination_port;
	asked->destination = restoring->change.to;
	asked->destination_port = restoring->change.to_port;
	asked->protocol = packet->protocol;
	service_flow_key(asked, &space->key);
	known = bpf_map_lookup_elem(&service_flows, &space->key);
	if (!known)
		return;
	known->expires = space->expires;
	__sync_fetch_and_or(&known->flags, SERVICE_FLOW_CLOSED);
}

/* The packet's source, and for a pod that talks to itself its destination, as the client knows
 * them. */
static __noinline int write_reply(struct __sk_buff *skb, struct packet *packet,
				  struct workspace *space, struct restoring *restoring)
{
	struct change *change = &restoring->change;
	int dropped;

	change->is_source = 1;
	change->from = packet->source;
	change->from_port = packet->source_port;
	space->client = packet->source;
	space->client_port = packet->source_port;
	if (packet->kind == PACKET_ERROR)
		change->to_port = change->from_port;
	dropped = rewrite_packet(skb, packet, change);
	packet->source = change->to;
	packet->source_port = change->to_port;
	if (dropped || !(restoring->translation & TRANSLATION_HAIRPIN))
		return dropped;
	change->is_source = 0;
	change->from = packet->destination;
	change->to = space->client;
	change->from_port = change->to_port = packet->destination_port;
	packet->destination = space->client;
	return rewrite_packet(skb, packet, change);
}

static __noinline int restore_reply(struct __sk_buff *skb, struct packet *packet,
				    struct workspace *space, struct restoring *restoring)
{
	if (!find_frontend(packet, space, restoring))
		return REFUSE(packet, UNKNOWN_CONNECTION_TRACKING_STATE);
	if (packet->protocol == IPPROTO_SCTP && restoring->change.to_port != packet->source_port)
		return REFUSE(packet, UNKNOWN_L4_PROTOCOL);
	if (restoring->translation & TRANSLATION_CLOSED)
		close_service_flow(packet, space, restoring);
	return write_reply(skb, packet, space, restoring);
}

/* The quoted source of a pod that talks to itself. */
static __always_inline int write_quoted_client(struct __sk_buff *skb, struct packet *packet,
					       const struct packet *quoted)
{
	struct change change = {
	    .is_source = 1,
	    .from = quoted->source,
	    .to = packet->source,
	    .from_port = quoted->source_port,
	    .to_port = quoted->source_port,
	};

	return rewrite_quote(skb, packet, quoted, &change);
}

/* An error about what the client sent: it quotes the packet as the backend was to get it, and may
 * come from the backend itself. */
static __noinline int restore_error(struct __sk_buff *skb, struct packet *packet,
				    struct workspace *space, struct restoring *restoring)
{
	struct packet *quoted = &space->quoted;
	int dropped;

	__builtin_memset(&space->client, 0, sizeof(space->client));
	__builtin_memset(quoted, 0, sizeof(*quoted));
	if (parse_quoted(skb, packet, quoted) || !find_frontend(quoted, space, restoring))
		return REFUSE(packet, UNKNOWN_CONNECTION_TRACKING_STATE);
	restoring->change.from = quoted->destination;
	restoring->change.from_port = quoted->destination_port;
	dropped = rewrite_quote(skb, packet, quoted, &restoring->change);
	if (dropped || !same_address(&packet->source, &quoted->destination))
		return dropped;
	if (restoring->translation & TRANSLATION_HAIRPIN)
		dropped = write_quoted_client(skb, packet, quoted);
	return dropped ? dropped : write_reply(skb, packet, space, restoring);
}

/* Gives what a backend sends, or an error about what it was sent, the frontend's address. Returns 0
 * or a negative reason. */
__noinline int restore_packet(struct __sk_buff *skb, struct packet *packet, __u32 service,
			      __u8 translation)
{
	struct workspace *space = own_workspace();
	struct restoring restoring = {.service = service, .translation = translation};

	if (!packet || !space)
		return -DROP_ERROR_WRITING_TO_PACKET;
	restoring.is_about = packet->kind == PACKET_ERROR;
	return restoring.is_about ? restore_error(skb, packet, space, &restoring)
				  : restore_reply(skb, packet, space, &restoring);
}

/* Gives the client back who it asked: to be called with what a backend sends, and with errors about
 * what it was sent, after it is tracked and before it is handed on. Returns 0 or a negative
 * reason. */
static __always_inline int restore_frontend(struct __sk_buff *skb, struct flow *flow)
{
	if (likely(!services_enabled ||
		   !(flow->translation & (TRANSLATION_RESTORE | TRANSLATION_DSR))))
		return 0;
	flow->translation |= TRANSLATION_CLIENT;
	return restore_packet(skb, &flow->packet, flow->source.service, flow->translation);
}

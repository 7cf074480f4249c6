/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
#pragma once
/* Floor 10: clients outside the cluster and the services they ask for. A flow keeps the backend it
 * was given. A backend of this node sees the client; one of another node sees this node, at a port
 * of its own for each flow, and answers here. */
#include "balance.h"
#include "deliver.h"
#include "dsr.h"

#undef SOURCE_FILE
#define SOURCE_FILE FILE_NODEPORT

/* Where a packet goes once its backend is known. */
enum backend_place {
	BACKEND_NONE = 0, /* no service was asked for */
	BACKEND_HERE = 1, /* a pod of this node or the node itself; the packet is rewritten */
	BACKEND_AWAY = 2, /* behind the tunnel or the network; the packet is as it came */
};

/* What one packet's translation needs: too much for the stack. */
struct outside_work {
	struct ct_key key; /* of the flow in service_flows */
	struct service_flow flow;
	__u32 is_fresh; /* flow was given its backend by this packet */
	__u32 is_due;	/* once a second: what the flow relies on is looked at again */
	struct service_client client;
	struct change source;
	struct change destination;
	struct packet quoted;
	struct nat_key forward;
	struct nat_key reverse;
	struct nat_entry entry;
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct outside_work);
} outside SEC(".maps");

static __always_inline struct outside_work *outside_work(void)
{
	__u32 zero = 0;

	return bpf_map_lookup_elem(&outside, &zero);
}

static __always_inline bool are_services_known(const struct flow *flow)
{
	return services_enabled && flow->settings->flags & NODE_SERVICES;
}

/* Traffic policies know clients of the cluster, by any of their addresses, and others. */
static __always_inline __u8 scope_of(__u32 identity)
{
	bool of_cluster = identity == IDENTITY_HOST || identity == IDENTITY_REMOTE_NODE ||
			  is_workload(identity) || identity >= IDENTITY_LOCAL_NODE;

	return of_cluster ? SERVICE_INTERNAL : SERVICE_EXTERNAL;
}

/* The life of a flow of which only the client is heard: TCP that goes on after its SYN was
 * answered, one that said FIN waits for the other side like one that has just begun. */
static __always_inline __u32 heard_of(const struct packet *packet, __u32 flags)
{
	if (packet->tcp_flags & (TCP_FIN | TCP_RST))
		return flags | SERVICE_FLOW_CLOSED;
	if (packet->tcp_flags && !is_opening(packet))
		return flags | SERVICE_FLOW_SEEN_REPLY;
	return flags;
}

static __always_inline __u32 service_lifetime(const struct packet *packet, __u32 flags)
{
	if (packet->tcp_flags & TCP_RST)
		return lifetime_of(packet, CT_CLOSED);
	if (flags & SERVICE_FLOW_CLOSED)
		return lifetime_of(packet, 0);
	return lifetime_of(packet, flags & SERVICE_FLOW_SEEN_REPLY ? CT_SEEN_REPLY : 0);
}

/* The flow goes on with the backend it has, unless that is gone or the client begins anew. */
static __always_inline bool is_kept(const struct service_flow *known, const struct packet *packet,
				    const struct service *service, __u32 now)
{
	if (!known || now >= known->expires || known->service != service->id)
		return false;
	if (known->flags & SERVICE_FLOW_CLOSED && is_opening(packet))
		return false;
	return is_same_backend(live_backend(known->backend), &known->backend_address,
			       known->backend_port);
}

/* The flow in hand, as it was found; flags and expiry move on. Returns whether it was. */
static __noinline bool recall_flow(struct flow *flow, const struct service *service,
				   struct outside_work *work)
{
	const struct packet *packet = &flow->packet;
	struct service_flow *known;
	__u32 expires;

	canonical_key(packet, &work->key);
	work->key.zone = CT_ZONE_SERVICE;
	known = bpf_map_lookup_elem(&service_flows, &work->key);
	work->is_fresh = !is_kept(known, packet, service, flow->now);
	if (work->is_fresh)
		return false;
	if (heard_of(packet, known->flags) != known->flags)
		known->flags = heard_of(packet, known->flags);
	expires = flow->now + service_lifetime(packet, known->flags);
	work->is_due = known->expires != expires;
	if (known->expires < expires || known->flags & SERVICE_FLOW_CLOSED)
		known->expires = expires;
	work->flow = *known;
	return true;
}

/* A backend for a new flow. Returns false when there is none. */
static __noinline bool choose_for_client(struct flow *flow, const struct service *service,
					 struct outside_work *work)
{
	const struct packet *packet = &flow->packet;
	struct backend *backend;
	__u32 number = 0, flags;

	work->client.hash = hash_flow(flow->settings->hash_seed, packet);
	if (!(service->flags & SERVICE_MAGLEV))
		work->client.hash ^= bpf_get_prandom_u32();
	backend = choose_backend(service, &work->client, &number);
	if (!backend || family_of(&backend->address) != packet->family)
		return false;
	flags = packet->tcp_flags & (TCP_FIN | TCP_RST) ? SERVICE_FLOW_CLOSED : 0;
	if (service->flags & SERVICE_DSR)
		flags |= SERVICE_FLOW_DSR;
	work->flow.backend_address = backend->address;
	work->flow.backend_port = backend->port;
	work->flow.backend = number;
	work->flow.service = service->id;
	work->flow.owner = 0;
	work->flow.flags = flags;
	work->flow.own_port = 0;
	work->flow.created = flow->now;
	work->flow.expires = flow->now + service_lifetime(packet, flags);
	return true;
}

/* The client's next packets are given the same backend. */
static __noinline int remember_choice(struct flow *flow)
{
	struct outside_work *work = outside_work();

	if (!work || !work->is_fresh ||
	    !bpf_map_update_elem(&service_flows, &work->key, &work->flow, BPF_ANY))
		return 0;
	return DROP(flow, CT_MAP_INSERTION_FAILED);
}

/* Whom the service gives this packet to, into work->flow. Returns 0: nobody, the packet goes its
 * way; 1: somebody; or a negative reason. */
static __noinline int find_backend(struct flow *flow, const struct service *service,
				   struct outside_work *work)
{
	const struct packet *packet = &flow->packet;

	work->client.address = packet->source;
	work->client.scope = scope_of(flow->source.identity);
	if (!(service->flags & SERVICE_OUTSIDE))
		return DROP(flow, IS_A_CLUSTERIP);
	if (!is_source_allowed(service, &work->client))
		return DROP(flow, DENIED_BY_LB_SRC_RANGE_CHECK);
	flow->now = coarse_seconds();
	flow->state = CONNECTION_ESTABLISHED;
	if (recall_flow(flow, service, work))
		return 1;
	flow->state = CONNECTION_NEW;
	flow->report = true;
	if (choose_for_client(flow, service, work))
		return 1;
	if (service->flags & SERVICE_LOOSE) {
		flow->state = CONNECTION_UNKNOWN;
		flow->report = false;
		return 0;
	}
	if (service->flags & SERVICE_REJECT)
		flow->translation |= TRANSLATION_REJECTED;
	return DROP(flow, SERVICE_BACKEND_NOT_FOUND);
}

/* What was asked for, for events. */
static __always_inline void note_asked(struct flow *flow, __u32 service)
{
	struct workspace *space = own_workspace();

	flow->destination.service = service;
	if (!space)
		return;
	space->asked = flow->packet.destination;
	space->asked_port = flow->packet.destination_port;
	flow->translation |= TRANSLATION_ASKED;
}

static __always_inline void plan(struct change *change, bool is_source, const struct address *from,
				 __be16 from_port, const struct address *to, __be16 to_port)
{
	change->from = *from;
	change->from_port = from_port;
	change->to = *to;
	change->to_port = to_port;
	change->is_source = is_source;
}

/* The packet is for the backend, in its bytes and in what is known of it. */
static __always_inline int write_destination(struct __sk_buff *skb, struct flow *flow,
					     struct outside_work *work)
{
	struct packet *packet = &flow->packet;
	int dropped = rewrite(skb, flow, &work->destination);

	packet->destination = work->destination.to;
	packet->destination_port = work->destination.to_port;
	return dropped;
}

/* The packet's source is another; reports tell both. */
static __always_inline void note_source(struct flow *flow, const struct outside_work *work)
{
	struct packet *packet = &flow->packet;
	struct workspace *space = own_workspace();

	if (space) {
		space->client = packet->source;
		space->client_port = packet->source_port;
		flow->translation |= TRANSLATION_CLIENT;
	}
	packet->source = work->source.to;
	packet->source_port = work->source.to_port;
}

static __always_inline int write_source(struct __sk_buff *skb, struct flow *flow,
					struct outside_work *work)
{
	int dropped = rewrite(skb, flow, &work->source);

	note_source(flow, work);
	return dropped;
}

/* Both ends of a packet with ports. */
static __always_inline int write_ends(struct __sk_buff *skb, struct flow *flow,
				      struct outside_work *work)
{
	struct packet *packet = &flow->packet;
	int dropped = rewrite_ends(skb, packet, &work->source, &work->destination);

	note_source(flow, work);
	packet->destination = work->destination.to;
	packet->destination_port = work->destination.to_port;
	return dropped;
}

/* Asks whether the packet is for a service, and translates it if the backend lives here. Returns
 * enum backend_place or a negative reason. */
static __noinline int serve_outside(struct __sk_buff *skb, struct flow *flow,
				    struct outside_work *work)
{
	const struct packet *packet = &flow->packet;
	struct service *service;
	struct endpoint *local;
	struct told told = {};
	int result;

	service = lookup_service(&packet->destination, packet->destination_port, packet->protocol);
	if (!service)
		return BACKEND_NONE;
	result = find_backend(flow, service, work);
	if (result <= 0)
		return result;
	if (keeps_port(packet->protocol) && packet->destination_port != work->flow.backend_port)
		return DROP(flow, UNKNOWN_L4_PROTOCOL);
	note_asked(flow, service->id);
	plan(&work->destination, false, &packet->destination, packet->destination_port,
	     &work->flow.backend_address, work->flow.backend_port);
	local = lookup_endpoint(&work->flow.backend_address);
	if (!local)
		return BACKEND_AWAY;
	if (is_pod(local)) {
		set_party(flow, &flow->destination, local);
		flow->translation |= TRANSLATION_GIVEN;
		return write_destination(skb, flow, work) ?: BACKEND_HERE;
	}
	told.address = packet->destination;
	told.port = packet->destination_port;
	return remember_choice(flow) ?: write_destination(skb, flow, work)
	       ?: remember_told(flow, &told, service->id) ?: BACKEND_HERE;
}

/* This node's end of a flow towards a backend of another node. Behind the tunnel it is the address
 * that nodes there know to be behind the tunnel, so that answers come back the same way. */
static __always_inline const struct address *own_end(const struct flow *flow, bool tunnelled)
{
	const struct node_settings *settings = flow->settings;

	if (!tunnelled)
		return own_address(flow);
	return flow->packet.family == FAMILY_IPV4 ? &settings->router_ipv4 : &settings->router_ipv6;
}

static __always_inline void fill_service_keys(const struct packet *packet,
					      struct outside_work *work, const struct address *own,
					      __u32 now)
{
	work->forward = (struct nat_key){
	    .source = packet->source,
	    .destination = packet->destination,
	    .source_port = packet->source_port,
	    .destination_port = packet->destination_port,
	    .protocol = packet->protocol,
	    .way = NAT_FORWARD,
	};
	work->reverse = (struct nat_key){
	    .source = work->flow.backend_address,
	    .destination = *own,
	    .source_port = work->flow.backend_port,
	    .protocol = packet->protocol,
	    .way = NAT_REVERSE,
	};
	work->entry = (struct nat_entry){
	    .address = packet->source,
	    .port = packet->source_port,
	    .created = now,
	    .seen = now,
	    .service = work->flow.service,
	};
}

/* Once a second, as refresh. */
static __always_inline void refresh_service(struct outside_work *work, struct nat_entry *known,
					    __u32 now)
{
	struct nat_entry *back;

	known->seen = now;
	work->reverse.destination_port = known->port;
	back = bpf_map_lookup_elem(&snat, &work->reverse);
	if (back)
		back->seen = now;
	else
		bpf_map_update_elem(&snat, &work->reverse, &work->entry, BPF_NOEXIST);
}

/* Remembers the port with a flow that stands; a fresh one is remembered as a whole. */
static __always_inline void note_own_port(struct outside_work *work, __be16 port)
{
	if (work->flow.own_port == port)
		return;
	work->flow.own_port = port;
	if (!work->is_fresh)
		bpf_map_update_elem(&service_flows, &work->key, &work->flow, BPF_EXIST);
}

/* The port of this node in snat, for a flow that has none or that was not asked about for a second.
 * Returns 0 or a negative reason. Global, as parse_headers is, and for the same reason. */
__noinline int look_up_own_port(struct packet *packet, struct outside_work *work,
				const struct address *own, __u32 now)
{
	struct nat_entry *known;

	if (!packet || !work || !own)
		return -DROP_NO_MAPPING_FOR_NAT_MASQUERADE;
	fill_service_keys(packet, work, own, now);
	known = bpf_map_lookup_elem(&snat, &work->forward);
	if (!work->is_fresh && known && same_address(&known->address, own)) {
		if (known->seen != now)
			refresh_service(work, known, now);
		note_own_port(work, known->port);
		return 0;
	}
	if (!allocate(&work->forward, &work->reverse, &work->entry))
		return keeps_port(packet->protocol)
			   ? REFUSE(packet, UNSUPPORTED_PROTOCOL_FOR_NAT_MASQUERADE)
			   : REFUSE(packet, NO_MAPPING_FOR_NAT_MASQUERADE);
	note_own_port(work, work->entry.port);
	return 0;
}

/* The address and port of this node that the backend sees, into work->source. Packets of one second
 * use what the first of them has found. */
static __always_inline int find_own_end(struct flow *flow, struct outside_work *work,
					const struct address *own)
{
	struct packet *packet = &flow->packet;
	int dropped = 0;

	if (work->is_fresh || work->is_due || !work->flow.own_port)
		dropped = look_up_own_port(packet, work, own, flow->now);
	if (!dropped)
		plan(&work->source, true, &packet->source, packet->source_port, own,
		     work->flow.own_port);
	return dropped;
}

/* Out of a native device, or not at all: the stack would take a packet with one of its own
 * addresses for a forged one. */
static __always_inline int leave_translated(struct __sk_buff *skb, struct flow *flow)
{
	int result = route_to_network(skb, flow);

	if (unlikely(result == DECISION_STACK))
		return DROP(flow, FIB_LOOKUP_FAILED);
	skb->mark = MARK_KIND_SERVICE;
	return result;
}

/* Where a backend of another node is found. */
struct way {
	struct ipcache_entry *known;
	bool tunnelled;
};

static __always_inline struct way way_to(const struct flow *flow, const struct address *backend)
{
	struct way way = {.known = lookup_ipcache(flow->packet.family, backend)};

	way.tunnelled = tunnel_enabled && way.known && way.known->flags & IPCACHE_TUNNEL;
	return way;
}

static __always_inline int set_out(struct __sk_buff *skb, struct flow *flow, const struct way *way)
{
	int dropped = decrement_ttl(skb, flow);

	if (dropped)
		return dropped;
	if (!way->tunnelled)
		return leave_translated(skb, flow);
	flow->next_hop = way->known->tunnel_endpoint;
	return encapsulate(skb, flow);
}

/* The backend sees this node as the client. */
static __noinline int write_both_ends(struct __sk_buff *skb, struct flow *flow,
				      struct outside_work *work, bool tunnelled)
{
	const struct address *own = own_end(flow, tunnelled);
	int dropped;

	if (is_zero_address(own))
		return DROP(flow, NO_MAPPING_FOR_NAT_MASQUERADE);
	work->flow.flags |= SERVICE_FLOW_SNAT;
	dropped = find_own_end(flow, work, own) ?: remember_choice(flow);
	return dropped ?: write_ends(skb, flow, work);
}

/* Only nodes and pods of this cluster know an option when they see it; what is wrapped, others may
 * as well. */
static __always_inline bool answers_itself(const struct outside_work *work,
					   const struct ipcache_entry *known)
{
	if (!(work->flow.flags & SERVICE_FLOW_DSR))
		return false;
	return wraps() ||
	       (known && (is_workload(known->identity) || known->flags & IPCACHE_HOST_ADDRESS));
}

/* A flow with a handshake tells it with that; others can't know which packet arrives. */
static __always_inline bool must_tell(const struct packet *packet, const struct outside_work *work)
{
	if (wraps())
		return true;
	if (packet->fragment == FRAGMENT_LATER)
		return false;
	return packet->protocol == IPPROTO_UDP || work->is_fresh || is_opening(packet);
}

/* Of a batch it is the segments that leave. Those of TCP begin no flow. */
static __always_inline bool has_room(const struct __sk_buff *skb, const struct flow *flow)
{
	const struct packet *packet = &flow->packet;
	__u32 length = packet->length;

	if (skb->gso_size) {
		if (wraps() || packet->protocol != IPPROTO_UDP)
			return wraps();
		length = packet->l4 - packet->l3 + sizeof(struct udphdr) + skb->gso_size;
	}
	return length + told_size(packet->family) <= flow->settings->mtu;
}

/* The client is told to send less at once. */
static __always_inline int refuse_large(struct flow *flow)
{
	flow->translation = TRANSLATION_REJECTED;
	return DROP(flow, UNSUPPORTED_PROTOCOL_FOR_DSR_ENCAP);
}

/* The backend sees the client, and is told of the frontend. What has no room for that goes without,
 * unless it is the first that the backend hears of the flow. */
static __noinline int write_frontend(struct __sk_buff *skb, struct flow *flow,
				     struct outside_work *work)
{
	struct told told = {.address = work->destination.from, .port = work->destination.from_port};
	bool tells = must_tell(&flow->packet, work);
	int dropped;

	if (tells && !has_room(skb, flow)) {
		if (work->is_fresh)
			return refuse_large(flow);
		tells = false;
	}
	dropped = remember_choice(flow) ?: write_destination(skb, flow, work);
	return dropped || !tells ? dropped : write_option(skb, flow, &told);
}

/* To a backend of another node. */
static __noinline int send_to_backend(struct __sk_buff *skb, struct flow *flow,
				      struct outside_work *work)
{
	struct way way = way_to(flow, &work->flow.backend_address);
	int dropped;

	flow->destination.identity = identity_of(way.known, flow->packet.family);
	flow->direction = DIRECTION_EGRESS;
	dropped = check_ttl(flow) ?: add_link_header(skb, flow);
	if (dropped)
		return dropped;
	dropped = answers_itself(work, way.known) ? write_frontend(skb, flow, work)
						  : write_both_ends(skb, flow, work, way.tunnelled);
	return dropped ?: set_out(skb, flow, &way);
}

/* The client and the frontend of an answer of a backend of another node, into work. Returns whether
 * it is one. */
static __noinline bool find_client(struct flow *flow, struct outside_work *work)
{
	const struct packet *packet = &flow->packet;
	struct nat_entry *known;
	struct frontend *frontend;

	work->reverse = reverse_key(packet);
	known = bpf_map_lookup_elem(&snat, &work->reverse);
	if (!known || !known->service)
		return false;
	frontend = frontend_of(known->service);
	if (!frontend || frontend->protocol != packet->protocol)
		return false;
	plan(&work->destination, false, &packet->destination, packet->destination_port,
	     &known->address, known->port);
	plan(&work->source, true, &packet->source, packet->source_port, &frontend->address,
	     frontend->port);
	if (known->seen != flow->now)
		refresh_by_answer(&work->reverse, known, &work->source.to, work->source.to_port);
	return true;
}

/* An answer of a backend of another node goes on to the client. Returns 0: it is none, a decision
 * or a negative reason. */
static __noinline int answer_client(struct __sk_buff *skb, struct flow *flow,
				    struct outside_work *work)
{
	struct packet *packet = &flow->packet;
	int dropped;

	flow->now = coarse_seconds();
	if (!find_client(flow, work))
		return 0;
	flow->state = CONNECTION_REPLY;
	flow->flags |= EVENT_IS_REPLY;
	flow->direction = DIRECTION_EGRESS;
	dropped = check_ttl(flow) ?: add_link_header(skb, flow);
	if (dropped)
		return dropped;
	dropped = write_ends(skb, flow, work) ?: decrement_ttl(skb, flow)
		  ?: leave_translated(skb, flow);
	/* Reported of those that drop only. */
	if (record_decisions || unlikely(dropped < 0))
		flow->destination.identity = identity_of(
		    lookup_ipcache(packet->family, &packet->destination), packet->family);
	return dropped;
}

/* A client that asks the host itself is answered as such, whatever it asked before. */
static __noinline int forget_told(const struct flow *flow)
{
	struct nat_key key = told_key(&flow->packet);

	return bpf_map_delete_elem(&snat, &key);
}

/* What is for a backend here is no answer, though its answers will be given another source. */
static __always_inline int restore_answer(struct __sk_buff *skb, struct flow *flow)
{
	return flow->destination.service ? 0 : restore_frontend(skb, flow);
}

/* Answers of the host to clients of a service leave as the frontend's. */
static __noinline int leave_as_frontend(struct __sk_buff *skb, struct flow *flow,
					struct outside_work *work)
{
	struct packet *packet = &flow->packet;
	struct nat_entry *known;

	work->forward = told_key(packet);
	swap_ends(&work->forward);
	known = bpf_map_lookup_elem(&snat, &work->forward);
	if (!known)
		return 0;
	if (known->seen != coarse_seconds())
		known->seen = coarse_seconds();
	plan(&work->source, true, &packet->source, packet->source_port, &known->address,
	     known->port);
	return write_source(skb, flow, work);
}

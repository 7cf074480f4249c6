/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
#pragma once
/* Floor 11: services of sockets. A socket names its destination once; what it is given instead is
 * remembered, so that it sees the frontend whenever it asks who it talks to. Whom a socket talks to
 * is a struct service_key: it may be one. */
#include "events.h"
#include "service.h"
#include <linux/errno.h>

#undef SOURCE_FILE
#define SOURCE_FILE FILE_SOCKET

#define SOCKET_PEERS (sizeof(((struct socket_peers *)NULL)->peer) / sizeof(struct service_key))

/* What is said of a socket. */
struct socket_report {
	struct service_key peer;
	struct service_key original; /* what stood there before; zero: nothing else */
	__u32 service;
	__u8 point; /* enum translation_point */
	__u8 verdict;
	__u8 reason;  /* why it was refused: enum drop_reason; 0: no packet would have dropped */
	__u8 reverse; /* the peer speaks to the socket */
	__u32 suppressed;
};

static __always_inline void describe_peer(struct event *event, const struct socket_report *report)
{
	event->protocol = report->peer.protocol;
	if (report->reverse) {
		event->source = report->peer.address;
		event->source_port = report->peer.port;
		event->original_source = report->original.address;
		event->original_source_port = report->original.port;
	} else {
		event->destination = report->peer.address;
		event->destination_port = report->peer.port;
		event->original_destination = report->original.address;
		event->original_destination_port = report->original.port;
	}
	if (!is_mapped_ipv4(&report->peer.address))
		event->flags |= EVENT_IS_IPV6;
}

/* Returns whether there is room for it. */
static __noinline int report_socket(__u64 cookie, const struct socket_report *report)
{
	struct node_settings *settings = node_settings();
	struct event_state *state = event_counters();
	struct event *event;
	__u64 sequence;

	if (!settings || !state || !events_enabled)
		return false;
	sequence = __sync_fetch_and_add(&state->sequence[RING_NORMAL], 1);
	if (!may_emit(settings, RING_NORMAL, EVENT_SOCKET, 0))
		return false;
	event = bpf_ringbuf_reserve(&events, sizeof(*event), 0);
	if (!event) {
		__sync_fetch_and_add(&state->lost[RING_NORMAL], 1);
		return false;
	}
	__builtin_memset(event, 0, sizeof(*event));
	event->time = bpf_ktime_get_ns();
	event->sequence = sequence;
	event->cpu = bpf_get_smp_processor_id();
	event->kind = EVENT_SOCKET;
	event->ring = RING_NORMAL;
	event->point = report->point;
	event->verdict = report->verdict;
	event->reason = report->reason;
	event->suppressed = report->suppressed;
	event->service = report->service;
	event->socket_cookie = cookie;
	event->cgroup = bpf_get_current_cgroup_id();
	describe_peer(event, report);
	submit(event, settings);
	return true;
}

/* Whether a translation is worth a report. Low aggregation leaves out what comes back, medium also
 * what the socket was told before: each datagram says it again. */
static __always_inline bool is_traced(const struct node_settings *settings, bool reverse,
				      bool repeated)
{
	if (likely(!(settings->flags & NODE_TRACE_SOCKETS)))
		return false;
	return !(reverse && settings->aggregation >= AGGREGATION_LOW) &&
	       !(repeated && settings->aggregation >= AGGREGATION_MEDIUM);
}

/* Before and after, as two events. */
static __always_inline void trace_translation(__u64 cookie, const struct service_key *before,
					      const struct service_key *after, __u32 service,
					      bool reverse, bool repeated)
{
	struct node_settings *settings = node_settings();
	struct socket_report report = {
	    .peer = *before,
	    .service = service,
	    .point = reverse ? TRANSLATION_PRE_REVERSE : TRANSLATION_PRE_FORWARD,
	    .verdict = VERDICT_TRACED,
	    .reverse = reverse,
	};

	if (!settings || !is_traced(settings, reverse, repeated))
		return;
	report_socket(cookie, &report);
	report.original = *before;
	report.peer = *after;
	report.point = reverse ? TRANSLATION_POST_REVERSE : TRANSLATION_POST_FORWARD;
	report.verdict = VERDICT_TRANSLATED;
	report_socket(cookie, &report);
}

static __always_inline struct socket_service_key memory_of(__u64 cookie,
							   const struct service_key *peer)
{
	struct socket_service_key key = {
	    .cookie = cookie,
	    .address = peer->address,
	    .port = peer->port,
	    .protocol = peer->protocol,
	};

	return key;
}

/* Written only when it is new: a socket that sends datagrams comes by with each. Returns whether it
 * is. */
static __always_inline bool remember(__u64 cookie, const struct service_key *asked,
				     const struct service_key *given, __u32 service)
{
	struct socket_service_key key = memory_of(cookie, given);
	struct socket_service *known = bpf_map_lookup_elem(&socket_services, &key);
	struct socket_service fresh = {
	    .address = asked->address,
	    .port = asked->port,
	    .service = service,
	};

	if (known && known->service == service && known->port == asked->port &&
	    same_address(&known->address, &asked->address))
		return false;
	bpf_map_update_elem(&socket_services, &key, &fresh, BPF_ANY);
	return true;
}

/* Looked up first, which takes no lock: nearly always there is nothing. */
static __always_inline void forget(__u64 cookie, const struct service_key *peer)
{
	struct socket_service_key key = memory_of(cookie, peer);

	if (unlikely(bpf_map_lookup_elem(&socket_services, &key)))
		bpf_map_delete_elem(&socket_services, &key);
}

/* The service has nobody to give. Counted as the drop that its first packet would have been, and
 * reported no more often. */
static __noinline int refuse(__u64 cookie, const struct service_key *asked, __u32 service)
{
	struct bucket_key key = {.reason = DROP_SERVICE_BACKEND_NOT_FOUND};
	struct node_settings *settings = node_settings();
	__u32 index = DROP_SERVICE_BACKEND_NOT_FOUND * 4 + DIRECTION_EGRESS;
	struct counter *counter = bpf_map_lookup_elem(&counters, &index);
	struct socket_report report = {
	    .peer = *asked,
	    .service = service,
	    .point = TRANSLATION_PRE_FORWARD,
	    .verdict = VERDICT_DROPPED,
	    .reason = DROP_SERVICE_BACKEND_NOT_FOUND,
	};

	if (counter)
		counter->packets++;
	if (settings && events_enabled && !is_muted(settings, NODE_MUTE_DROPS) &&
	    may_report_drop(settings, &key, 0, &report.suppressed) &&
	    !report_socket(cookie, &report) && report.suppressed)
		hold_back_again(&key, report.suppressed);
	return -ECONNREFUSED;
}

/* The node itself asks: its loopback is where its node ports and host ports are, too. */
static __always_inline struct service *find_service_of_host(const struct service_key *asked)
{
	if (!is_host_internal(&asked->address))
		return NULL;
	return lookup_node_port(family_of(&asked->address), asked->port, asked->protocol);
}

/* Who asks, at a socket. */
struct asker {
	__u64 cookie; /* of the socket */
	__u64 netns;
	bool is_host;
};

/* The service a socket asks for, or NULL when it is to be left alone. */
static __always_inline struct service *service_of_socket(const struct node_settings *settings,
							 const struct asker *asker,
							 const struct service_key *asked)
{
	const struct address *address = &asked->address;
	struct service *service = find_service(settings, address, asked->port, asked->protocol);

	if (!service)
		return asker->is_host ? find_service_of_host(asked) : NULL;
	if (is_usurped(service, address) ||
	    is_skipped(service, address, asked->port, asked->protocol, asker->netns, 0))
		return NULL;
	return service;
}

/* A connection goes anywhere; the datagrams of one socket go to one backend while there are the
 * same. */
static __always_inline struct service_client client_of_socket(const struct asker *asker,
							      __u8 protocol)
{
	struct service_client client = client_of_netns(asker->netns);

	if (protocol == IPPROTO_UDP)
		client.hash = mix(0, asker->cookie);
	return client;
}

enum answer_to_socket {
	SOCKET_LEFT_ALONE = 0,
	SOCKET_GIVEN = 1,
	SOCKET_GIVEN_ANEW = 2, /* for the first time */
};

/* Whom the socket is given for whom it asked. Returns enum answer_to_socket or a negative errno. */
static __noinline int translate_peer(const struct asker *asker, const struct service_key *asked,
				     struct service_key *given)
{
	struct node_settings *settings = node_settings();
	struct service_client client;
	struct service *service;
	struct backend *backend;
	__u32 number = 0;
	bool is_new;

	if (!settings || !(settings->flags & NODE_SERVICES))
		return SOCKET_LEFT_ALONE;
	service = service_of_socket(settings, asker, asked);
	if (!service) {
		forget(asker->cookie, asked);
		return SOCKET_LEFT_ALONE;
	}
	client = client_of_socket(asker, asked->protocol);
	backend = choose_backend(service, &client, &number);
	if (!backend && service->flags & SERVICE_LOOSE)
		return SOCKET_LEFT_ALONE;
	if (!backend)
		return refuse(asker->cookie, asked, service->id);
	if (family_of(&backend->address) != family_of(&asked->address))
		return SOCKET_LEFT_ALONE;
	given->address = backend->address;
	given->port = backend->port;
	given->protocol = asked->protocol;
	is_new = remember(asker->cookie, asked, given, service->id);
	trace_translation(asker->cookie, asked, given, service->id, false, !is_new);
	return is_new ? SOCKET_GIVEN_ANEW : SOCKET_GIVEN;
}

/* A socket of datagrams may talk to many; the last of them are forgotten with it, older ones by
 * their age. */
static __always_inline void note_peer(struct socket_peers *peers, const struct service_key *given)
{
	peers->peer[peers->next++ % SOCKET_PEERS] = *given;
}

static __always_inline void forget_peers(__u64 cookie, const struct socket_peers *peers)
{
	for (__u32 at = 0; at < SOCKET_PEERS; at++)
		if (peers->peer[at].port)
			forget(cookie, &peers->peer[at]);
}

/* Whom the socket asked for when it was given this peer. Returns whether it did. */
static __noinline int recall_peer(__u64 cookie, const struct service_key *given,
				  struct service_key *asked)
{
	struct socket_service_key key = memory_of(cookie, given);
	struct socket_service *known = bpf_map_lookup_elem(&socket_services, &key);

	if (!known)
		return false;
	asked->address = known->address;
	asked->port = known->port;
	asked->protocol = given->protocol;
	trace_translation(cookie, given, asked, known->service, true, false);
	return true;
}

/* What clients outside reach a service by, on addresses that sockets of the node may want, too. A
 * host port is shared with the host knowingly. */
static __always_inline bool is_taken(const struct service *service)
{
	return service &&
	       service->flags & (SERVICE_NODE_PORT | SERVICE_EXTERNAL_IP | SERVICE_OUTSIDE) &&
	       !(service->flags & SERVICE_HOST_PORT);
}

/* A node port at every address of a family; those that only serve outside clients are known at the
 * node's own address only. */
static __always_inline bool is_node_port_taken(const struct node_settings *settings, __u8 family,
					       __be16 port, __u8 protocol)
{
	const struct address *own = family == FAMILY_IPV4 ? &settings->ipv4 : &settings->ipv6;

	return is_taken(lookup_node_port(family, port, protocol)) ||
	       is_taken(lookup_service(own, port, protocol));
}

/* Whether a service has what a socket of the host was bound to. One of IPv6's that is bound to all
 * addresses hears IPv4 as well, as a rule. */
static __always_inline bool is_bind_taken(const struct node_settings *settings,
					  const struct service_key *bound)
{
	__u8 family = family_of(&bound->address);

	if (is_taken(lookup_service(&bound->address, bound->port, bound->protocol)))
		return true;
	if (!is_node_port(settings, bound->port) || !is_host_internal(&bound->address))
		return false;
	return is_node_port_taken(settings, family, bound->port, bound->protocol) ||
	       (is_zero_address(&bound->address) &&
		is_node_port_taken(settings, FAMILY_IPV4, bound->port, bound->protocol));
}

static __noinline int check_bind(__u64 cookie, __u64 netns, const struct service_key *bound)
{
	struct node_settings *settings = node_settings();
	struct socket_report report = {.peer = *bound, .verdict = VERDICT_DROPPED};

	if (!settings || !(settings->flags & NODE_SERVICES) || netns != settings->netns)
		return 0;
	if (likely(!is_bind_taken(settings, bound)))
		return 0;
	if (!is_muted(settings, NODE_MUTE_DROPS))
		report_socket(cookie, &report);
	return -EADDRINUSE;
}

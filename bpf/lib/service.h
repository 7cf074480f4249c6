/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
#pragma once
/* Floor 5: services. Which frontend an address is, and which backend a new flow gets. Knows neither
 * packets nor sockets: all hooks that translate ask here. */
#include "identity.h"
#include "../config/service.h"

#undef SOURCE_FILE
#define SOURCE_FILE FILE_SERVICE

#define CLIENT_OF_NETNS (~0ULL)

/* Who asks. */
struct service_client {
	struct address address; /* or its network namespace, see client_of_netns */
	__u32 hash;		/* of the flow's tuple, see hash_flow */
	__u8 scope;		/* enum service_scope */
};

/* Which backend of a range is looked for. */
struct membership {
	__u32 first;
	__u32 wanted;
	bool found;
};

static __always_inline struct service *lookup_service(const struct address *address, __be16 port,
						      __u8 protocol)
{
	struct service_key key = {.address = *address, .port = port, .protocol = protocol};

	return bpf_map_lookup_elem(&services, &key);
}

static __always_inline bool is_node_port(const struct node_settings *settings, __be16 port)
{
	__u16 number = bpf_ntohs(port);

	return number >= settings->node_port_first && number <= settings->node_port_last;
}

/* The node port at whatever address of whatever node: the caller knows that it is one. */
static __always_inline struct service *lookup_node_port(__u8 family, __be16 port, __u8 protocol)
{
	struct address any = {};

	if (family == FAMILY_IPV4)
		map_ipv4(&any, 0);
	return lookup_service(&any, port, protocol);
}

static __always_inline __u8 family_of(const struct address *address)
{
	return is_mapped_ipv4(address) ? FAMILY_IPV4 : FAMILY_IPV6;
}

/* An address of this node itself. */
static __always_inline bool is_own_address(const struct address *address)
{
	struct endpoint *local = lookup_endpoint(address);

	return local && !is_pod(local);
}

static __always_inline bool is_node_address(const struct address *address)
{
	struct ipcache_entry *known = lookup_ipcache(family_of(address), address);

	return known && known->flags & IPCACHE_HOST_ADDRESS;
}

/* What somebody of the cluster asks for: a frontend, or a node port at any address of any node. Its
 * own loopback, and the zero address, which is the same to it, are nobody else's. */
static __always_inline struct service *find_service(const struct node_settings *settings,
						    const struct address *address, __be16 port,
						    __u8 protocol)
{
	struct service *service;

	if (is_host_internal(address))
		return NULL;
	service = lookup_service(address, port, protocol);
	if (service || !is_node_port(settings, port) || !is_node_address(address))
		return service;
	return lookup_node_port(family_of(address), port, protocol);
}

/* Whoever may write a Service could take any address of the world away from the cluster by naming
 * it (CVE-2020-8554): such an address counts only where it is this node's. */
static __always_inline bool is_usurped(const struct service *service, const struct address *address)
{
	return external_ip_mitigation &&
	       service->flags & (SERVICE_EXTERNAL_IP | SERVICE_HOST_PORT) &&
	       !is_own_address(address);
}

/* A local redirect that leaves this client alone: named by its network namespace or its endpoint,
 * whichever the caller knows. */
static __always_inline bool is_skipped(const struct service *service, const struct address *address,
				       __be16 port, __u8 protocol, __u64 netns, __u16 endpoint)
{
	struct skip_redirect_key key = {
	    .address = *address,
	    .netns = netns,
	    .port = port,
	    .endpoint = endpoint,
	    .protocol = protocol,
	};

	return service->flags & SERVICE_REDIRECT && bpf_map_lookup_elem(&skip_redirect, &key);
}

static __always_inline struct frontend *frontend_of(__u32 id)
{
	return bpf_map_lookup_elem(&frontends, &id);
}

/* The backend under a number, or NULL when it is gone. */
static __always_inline struct backend *live_backend(__u32 number)
{
	struct backend *backend = bpf_map_lookup_elem(&backends, &number);

	return backend && backend->flags & BACKEND_LIVE ? backend : NULL;
}

/* Whether the flow's backend is still the one it was given. */
static __always_inline bool is_same_backend(const struct backend *backend,
					    const struct address *address, __be16 port)
{
	return backend && backend->port == port && same_address(&backend->address, address);
}

static __always_inline struct service_client client_of_netns(__u64 cookie)
{
	struct service_client client = {
	    .address = {.hi = CLIENT_OF_NETNS, .lo = cookie},
	    .hash = bpf_get_prandom_u32(),
	    .scope = SERVICE_INTERNAL,
	};

	return client;
}

/* Clients outside may be kept out by their address. */
static __always_inline bool is_source_allowed(const struct service *service,
					      const struct service_client *client)
{
	struct source_range_key key = {
	    .prefixlen = 160,
	    .service = service->id,
	    .address = client->address,
	};

	if (client->scope != SERVICE_EXTERNAL ||
	    !(service->flags & (SERVICE_SOURCES_ALLOWED | SERVICE_SOURCES_DENIED)))
		return true;
	return !bpf_map_lookup_elem(&source_ranges, &key) ==
	       !!(service->flags & SERVICE_SOURCES_DENIED);
}

static __always_inline __u32 mix(__u32 hash, __u64 value)
{
	value = (value ^ hash) * 0x9E3779B97F4A7C15ULL;
	return value >> 32 ^ value;
}

/* The same for a flow on every node: they are given the same seed, and Maglev then agrees. */
static __always_inline __u32 hash_flow(__u32 seed, const struct packet *packet)
{
	__u32 hash = mix(seed, packet->source.hi);

	hash = mix(hash, packet->source.lo);
	hash = mix(hash, packet->destination.hi);
	hash = mix(hash, packet->destination.lo);
	return mix(hash, (__u64)packet->source_port << 32 | (__u64)packet->destination_port << 16 |
			     packet->protocol);
}

static __always_inline __u32 slot_of(__u32 index)
{
	__u32 *number = bpf_map_lookup_elem(&slots, &index);

	return number ? *number : 0;
}

static long look_into_slot(__u32 index, struct membership *asked)
{
	asked->found = slot_of(asked->first + index) == asked->wanted;
	return asked->found;
}

/* Whether a backend is (still) a candidate. */
static __noinline bool is_candidate(const struct service_range *range, __u32 number)
{
	struct membership asked = {.first = range->first, .wanted = number};

	bpf_loop(range->count, look_into_slot, &asked, 0);
	return asked.found;
}

/* The backend this client had last, if it may keep it; else 0. */
static __noinline __u32 remembered_backend(const struct service *service,
					   const struct service_range *range,
					   const struct affinity_key *key, __u32 now)
{
	struct affinity_entry *known = bpf_map_lookup_elem(&affinity, key);

	if (!known || now - known->seen >= service->affinity || !live_backend(known->backend))
		return 0;
	if (known->revision != service->revision) {
		if (!is_candidate(range, known->backend))
			return 0;
		known->revision = service->revision;
	}
	if (known->seen != now)
		known->seen = now;
	return known->backend;
}

/* The number of the backend a new flow gets, into *number. Returns it, or NULL when the service has
 * none for this client. */
static __always_inline struct backend *
choose_backend(const struct service *service, const struct service_client *client, __u32 *number)
{
	const struct service_range *range = &service->range[client->scope & 1];
	struct affinity_key key = {.client = client->address, .service = service->id};
	struct affinity_entry fresh = {.revision = service->revision};
	struct backend *backend;
	__u32 count = range->count;

	if (!count)
		return NULL;
	if (service->flags & SERVICE_AFFINITY) {
		fresh.seen = coarse_seconds();
		*number = remembered_backend(service, range, &key, fresh.seen);
		if (*number)
			return live_backend(*number);
	}
	*number = slot_of(range->first + client->hash % count);
	backend = live_backend(*number);
	if (unlikely(!backend)) {
		/* It has gone since the range was read: its neighbour. */
		*number = slot_of(range->first + (client->hash + 1) % count);
		backend = live_backend(*number);
	}
	if (backend && service->flags & SERVICE_AFFINITY) {
		fresh.backend = *number;
		bpf_map_update_elem(&affinity, &key, &fresh, BPF_ANY);
	}
	return backend;
}

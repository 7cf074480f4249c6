/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
#pragma once
/* Floor 4: who an address is. Cluster 0 in keys is this cluster. */
#include "parse.h"
#include "../config/features.h"
#include "../config/service.h"

#undef SOURCE_FILE
#define SOURCE_FILE FILE_IDENTITY

static __always_inline struct endpoint *lookup_endpoint(const struct address *address)
{
	return bpf_map_lookup_elem(&endpoints, address);
}

static __always_inline bool is_pod(const struct endpoint *endpoint)
{
	return !(endpoint->flags & ENDPOINT_HOST);
}

static __always_inline struct ipcache_entry *lookup_ipcache(__u8 family,
							    const struct address *address)
{
	struct ipcache_key key = {
	    .prefixlen = IPCACHE_HOST_PREFIX,
	    .family = family,
	    .address = *address,
	};
	struct ipcache_entry *entry = bpf_map_lookup_elem(&ipcache_hosts, &key);

	return entry ? entry : bpf_map_lookup_elem(&ipcache, &key);
}

/* An address nobody has told us about is the world. */
static __always_inline __u32 identity_of(const struct ipcache_entry *entry, __u8 family)
{
	if (entry)
		return entry->identity;
	return family == FAMILY_IPV4 ? IDENTITY_WORLD_IPV4 : IDENTITY_WORLD_IPV6;
}

static __always_inline bool is_world(__u32 identity)
{
	return identity == IDENTITY_WORLD || identity == IDENTITY_WORLD_IPV4 ||
	       identity == IDENTITY_WORLD_IPV6;
}

/* Pods of this or another node; not nodes, not the world, not prefixes. */
static __always_inline bool is_workload(__u32 identity)
{
	if (identity < IDENTITY_CLUSTER_FIRST)
		return identity == IDENTITY_HEALTH || identity == IDENTITY_INIT ||
		       identity == IDENTITY_UNMANAGED || identity == IDENTITY_INGRESS;
	return identity < IDENTITY_LOCAL_CIDR;
}

/* The host is an endpoint, too; this says whether it has a policy that must be asked. */
static __always_inline bool is_host_judged(const struct flow *flow)
{
	return host_firewall_enabled && flow->settings->flags & NODE_HOST_POLICY;
}

static __always_inline void set_party(const struct flow *flow, struct party *party,
				      struct endpoint *endpoint)
{
	party->identity = endpoint->identity;
	party->endpoint = is_pod(endpoint) || is_host_judged(flow) ? endpoint : NULL;
}

/* A pod of this node; the host may be asked for its policy, but is nobody to deliver to. */
static __always_inline bool is_local_pod(const struct party *party)
{
	return party->endpoint && is_pod(party->endpoint);
}

/* The host itself, for what it keeps though none of its known addresses is on it. */
static __always_inline struct endpoint *host_endpoint(const struct flow *flow)
{
	const struct node_settings *settings = flow->settings;

	return lookup_endpoint(is_zero_address(&settings->ipv4) ? &settings->ipv6
								: &settings->ipv4);
}

/* The identity a trusted program of this node put into the mark; 0: none. */
static __always_inline __u32 marked_identity(__u32 mark)
{
	if ((mark & MARK_KIND_MASK) != MARK_KIND_IDENTITY)
		return IDENTITY_UNKNOWN;
	return (mark & 0xff) << 16 | mark >> 16;
}

/* Whom a pod sees when it reaches itself by a service. */
static __always_inline void loopback_of(__u8 family, struct address *loopback)
{
	loopback->hi = bpf_cpu_to_be64(service_loopback_ipv6_high);
	loopback->lo = bpf_cpu_to_be64(service_loopback_ipv6_low);
	if (family == FAMILY_IPV4)
		map_ipv4(loopback, service_loopback_ipv4);
}

/* Only the data path itself gives packets that source, and only on the way from a pod to itself. */
static __always_inline bool is_from_loopback(const struct packet *packet)
{
	struct address loopback;

	loopback_of(packet->family, &loopback);
	return same_address(&packet->source, &loopback);
}

static __always_inline bool is_multicast(const struct packet *packet)
{
	if (packet->family == FAMILY_IPV6)
		return top_byte(&packet->destination) == 0xff;
	return ipv4_of(&packet->destination) >> 28 >= 0xe;
}

/* A pod may use its own addresses only; the one it lacks, all zero, is not its own. */
static __always_inline int check_source(struct flow *flow, const struct iface *iface)
{
	const struct packet *packet = &flow->packet;
	const struct address *own = packet->family == FAMILY_IPV4 ? &iface->ipv4 : &iface->ipv6;

	if (likely(same_address(&packet->source, own) && !is_zero_address(own)))
		return 0;
	if (iface->endpoint.flags & ENDPOINT_NO_SOURCE_CHECK)
		return 0;
	return DROP(flow, INVALID_SOURCE_IP);
}

/* Only the node's own addresses speak as the host. Others came through the host's stack and are who
 * the ipcache says; a pod of this node never comes this way, nor does one behind a tunnel: whoever
 * uses its address came in by a device that nobody watches. */
static __always_inline int identify_sender_behind_stack(struct __sk_buff *skb, struct flow *flow)
{
	struct packet *packet = &flow->packet;
	struct endpoint *local = lookup_endpoint(&packet->source);
	__u32 marked = marked_identity(skb->mark);
	struct ipcache_entry *known;

	if ((local && is_pod(local)) || is_from_loopback(packet))
		return DROP(flow, INVALID_SOURCE_IP);
	if (local && (!marked || marked == IDENTITY_HOST)) {
		set_party(flow, &flow->source, local);
		return 0;
	}
	if (marked) {
		flow->source.identity = marked;
		return 0;
	}
	known = lookup_ipcache(packet->family, &packet->source);
	if (tunnel_enabled && known && known->flags & IPCACHE_TUNNEL)
		return DROP(flow, INVALID_SOURCE_IP);
	flow->source.identity = identity_of(known, packet->family);
	return 0;
}

/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
#pragma once
/* Floor 8: the node's own routes, for what leaves the cluster. */
#include "identity.h"

#undef SOURCE_FILE
#define SOURCE_FILE FILE_FIB

#define AF_INET 2
#define AF_INET6 10

static __always_inline void fill_fib_question(const struct __sk_buff *skb, const struct flow *flow,
					      struct bpf_fib_lookup *fib)
{
	const struct packet *packet = &flow->packet;

	fib->ifindex = skb->ifindex;
	fib->l4_protocol = packet->protocol;
	fib->tot_len = skb->gso_size ? 0 : packet->length;
	if (packet->family == FAMILY_IPV4) {
		fib->family = AF_INET;
		fib->ipv4_src = bpf_htonl(ipv4_of(&packet->source));
		fib->ipv4_dst = bpf_htonl(ipv4_of(&packet->destination));
	} else {
		fib->family = AF_INET6;
		copy_bytes(fib->ipv6_src, &packet->source, sizeof(fib->ipv6_src));
		copy_bytes(fib->ipv6_dst, &packet->destination, sizeof(fib->ipv6_dst));
	}
}

static __always_inline void note_gateway(struct flow *flow, const struct bpf_fib_lookup *fib)
{
	flow->ifindex = fib->ifindex;
	flow->next_hop_family = fib->family;
	if (fib->family == AF_INET)
		map_ipv4(&flow->next_hop, bpf_ntohl(fib->ipv4_dst));
	else
		copy_bytes(&flow->next_hop, fib->ipv6_dst, sizeof(flow->next_hop));
}

/* Returns DECISION_NETWORK with the way out noted, or DECISION_STACK for what only the stack can
 * do: "fragmentation needed" and "no route". The latter it says of addresses of the node, too, and
 * of broadcast ones, so their identity becomes the host's: whoever goes on must be allowed to talk
 * to it. Link-local addresses are never routed (RFC 4291, 2.5.6). */
static __noinline int route_to_network(struct __sk_buff *skb, struct flow *flow)
{
	struct bpf_fib_lookup fib = {};
	long result;

	if (is_host_internal(&flow->packet.destination) || is_link_local(&flow->packet.destination))
		return DROP(flow, UNKNOWN_L3_TARGET_ADDRESS);
	fill_fib_question(skb, flow, &fib);
	result = bpf_fib_lookup(skb, &fib, sizeof(fib), BPF_FIB_LOOKUP_SKIP_NEIGH);
	switch (result) {
	case BPF_FIB_LKUP_RET_SUCCESS:
	case BPF_FIB_LKUP_RET_NO_NEIGH:
		break;
	case BPF_FIB_LKUP_RET_BLACKHOLE:
	case BPF_FIB_LKUP_RET_UNREACHABLE:
	case BPF_FIB_LKUP_RET_PROHIBIT:
		return DROP(flow, FIB_LOOKUP_FAILED);
	case BPF_FIB_LKUP_RET_FRAG_NEEDED:
		flow->point = POINT_TO_STACK;
		return DECISION_STACK;
	default:
		flow->destination.identity = IDENTITY_HOST;
		flow->point = POINT_TO_STACK;
		return DECISION_STACK;
	}
	/* A pod's address that no pod has: through the host it would come back as the host's own.
	 */
	if (fib.ifindex == flow->settings->host_ifindex)
		return DROP(flow, STALE_OR_UNROUTABLE_IP);
	note_gateway(flow, &fib);
	flow->point = POINT_TO_NETWORK;
	return DECISION_NETWORK;
}

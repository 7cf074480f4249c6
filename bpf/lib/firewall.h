/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
#pragma once
/* Floor 9: the host's own traffic on native devices, held to the host's policy. Nothing here runs
 * before a policy speaks of the host (is_host_judged). */
#include "fib.h"
#include "nat.h"

/* One end of a TCP flow as a socket of this node would have it. */
static __always_inline void fill_local_end(const struct packet *packet, bool arriving,
					   struct bpf_sock_tuple *tuple)
{
	const struct address *local = arriving ? &packet->destination : &packet->source;
	__be16 port = arriving ? packet->destination_port : packet->source_port;

	if (packet->family == FAMILY_IPV4) {
		tuple->ipv4.daddr = bpf_htonl(ipv4_of(local));
		tuple->ipv4.dport = port;
		return;
	}
	copy_bytes(tuple->ipv6.daddr, local, sizeof(tuple->ipv6.daddr));
	tuple->ipv6.dport = port;
}

static __always_inline void fill_far_end(const struct packet *packet, bool arriving,
					 struct bpf_sock_tuple *tuple)
{
	const struct address *far = arriving ? &packet->source : &packet->destination;
	__be16 port = arriving ? packet->source_port : packet->destination_port;

	if (packet->family == FAMILY_IPV4) {
		tuple->ipv4.saddr = bpf_htonl(ipv4_of(far));
		tuple->ipv4.sport = port;
		return;
	}
	copy_bytes(tuple->ipv6.saddr, far, sizeof(tuple->ipv6.saddr));
	tuple->ipv6.sport = port;
}

static __always_inline bool has_socket(struct __sk_buff *skb, const struct packet *packet,
				       struct bpf_sock_tuple *tuple)
{
	__u32 size = packet->family == FAMILY_IPV4 ? sizeof(tuple->ipv4) : sizeof(tuple->ipv6);
	struct bpf_sock *socket = bpf_skc_lookup_tcp(skb, tuple, size, BPF_F_CURRENT_NETNS, 0);

	if (!socket)
		return false;
	bpf_sk_release(socket);
	return true;
}

/* Who opened a TCP flow that is first seen in its middle, because the policy or the tracker is
 * younger? If the host listens on its end's port, the other one did; if it only has a socket for
 * this very flow, the host did; else whoever sends is believed to. Without this, the first word
 * of a server would open a flow of the host's, and be held to the wrong rules. */
static __noinline bool was_opened_by_receiver(struct __sk_buff *skb, const struct flow *flow,
					      bool arriving)
{
	const struct packet *packet = &flow->packet;
	struct bpf_sock_tuple tuple = {};

	fill_local_end(packet, arriving, &tuple);
	if (has_socket(skb, packet, &tuple))
		return !arriving;
	fill_far_end(packet, arriving, &tuple);
	return arriving && has_socket(skb, packet, &tuple);
}

/* A router on the way speaks of a tunnel's packet, which is not tracked: the tunnel must hear. */
static __noinline bool is_about_tunnel(struct __sk_buff *skb, const struct flow *flow)
{
	struct packet quoted = {};

	if (!tunnel_enabled || parse_quoted(skb, &flow->packet, &quoted))
		return false;
	return quoted.protocol == IPPROTO_UDP &&
	       quoted.destination_port == bpf_htons(flow->settings->tunnel_port) &&
	       same_address(&quoted.source, &flow->packet.destination) &&
	       bpf_map_lookup_elem(&nodes, &quoted.destination);
}

/* The overlay's own packets between nodes of the cluster, also in pieces: those without a port come
 * to nothing without the one that has it. What they carry is judged elsewhere. */
static __always_inline bool is_tunnel(const struct flow *flow, bool arriving)
{
	const struct packet *packet = &flow->packet;
	const struct address *own = arriving ? &packet->destination : &packet->source;
	const struct address *far = arriving ? &packet->source : &packet->destination;

	if (!tunnel_enabled || packet->protocol != IPPROTO_UDP ||
	    !same_address(own, own_address(flow)))
		return false;
	if (packet->fragment != FRAGMENT_LATER &&
	    packet->destination_port != bpf_htons(flow->settings->tunnel_port))
		return false;
	return bpf_map_lookup_elem(&nodes, far);
}

/* Holds a packet with the host at one end to the host's policy. Neighbour discovery always passes:
 * without it there is no network to speak of. */
static __always_inline int judge_host(struct __sk_buff *skb, struct flow *flow, bool arriving)
{
	const struct packet *packet = &flow->packet;
	int dropped;

	if (packet->kind == PACKET_CONTROL || is_tunnel(flow, arriving))
		return DECISION_STACK;
	if (packet->kind == PACKET_ERROR && arriving && is_about_tunnel(skb, flow))
		return DECISION_STACK;
	if (packet->protocol == IPPROTO_TCP && packet->fragment == FRAGMENT_NONE &&
	    !is_opening(packet) && !is_tracked(packet))
		flow->answers = was_opened_by_receiver(skb, flow, arriving);
	dropped = track_packet(skb, flow, skb->ifindex);
	return dropped ?: DECISION_STACK;
}

/* Whether the stack keeps what goes to an address that is none we know of: a broadcast one, or one
 * the host has since a moment ago. Other packets it forwards. */
static __noinline bool stays_here(struct __sk_buff *skb, struct flow *flow)
{
	struct bpf_fib_lookup fib = {};
	long result;

	if (is_multicast(&flow->packet) || is_link_local(&flow->packet.destination))
		return true;
	fill_fib_question(skb, flow, &fib);
	result = bpf_fib_lookup(skb, &fib, sizeof(fib), BPF_FIB_LOOKUP_SKIP_NEIGH);
	return result < 0 || result == BPF_FIB_LKUP_RET_NOT_FWDED ||
	       result == BPF_FIB_LKUP_RET_FWD_DISABLED;
}

/* The host is the receiver; returns whether it is. local: who has the destination address. */
static __always_inline bool note_host_as_receiver(struct __sk_buff *skb, struct flow *flow,
						  struct endpoint *local)
{
	if (!local)
		local = stays_here(skb, flow) ? host_endpoint(flow) : NULL;
	if (!local || is_pod(local))
		return false;
	set_party(flow, &flow->destination, local);
	flow->point = POINT_TO_HOST;
	return true;
}

/* The host is the sender; returns whether it is. What it sends from a link-local address was never
 * on another device. */
static __always_inline bool note_host_as_sender(struct __sk_buff *skb, struct flow *flow)
{
	const struct packet *packet = &flow->packet;
	struct endpoint *local = lookup_endpoint(&packet->source);

	if (!local && is_link_local(&packet->source) && !skb->ingress_ifindex)
		local = host_endpoint(flow);
	if (!local || is_pod(local))
		return false;
	set_party(flow, &flow->source, local);
	flow->destination.identity =
	    identity_of(lookup_ipcache(packet->family, &packet->destination), packet->family);
	flow->direction = DIRECTION_EGRESS;
	flow->point = POINT_TO_NETWORK;
	return true;
}

/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
#pragma once
/* Floor 8: the tunnel. The VXLAN key carries the sender's identity. */
#include "identity.h"

#undef SOURCE_FILE
#define SOURCE_FILE FILE_ENCAP

#define TUNNEL_TTL 64

/* Identities that mean something on this node only travel as what other nodes know them for. */
static __always_inline __u32 travelling_identity(__u32 identity, __u8 family)
{
	if (identity == IDENTITY_HOST || identity == IDENTITY_KUBE_APISERVER ||
	    identity >= IDENTITY_LOCAL_NODE)
		return IDENTITY_REMOTE_NODE;
	if (identity >= IDENTITY_LOCAL_CIDR)
		return family == FAMILY_IPV4 ? IDENTITY_WORLD_IPV4 : IDENTITY_WORLD_IPV6;
	return identity;
}

/* Sends to the node behind next_hop. Returns DECISION_TUNNEL. */
static __always_inline int encapsulate(struct __sk_buff *skb, struct flow *flow)
{
	const struct address *node = &flow->next_hop;
	struct bpf_tunnel_key key = {.tunnel_ttl = TUNNEL_TTL};
	__u64 flags = BPF_F_ZERO_CSUM_TX;

	flow->ifindex = flow->settings->tunnel_ifindex;
	if (!flow->ifindex || is_zero_address(node))
		return DROP(flow, NO_TUNNEL_OR_ENCAPSULATION_ENDPOINT);
	flow->vni = travelling_identity(flow->source.identity, flow->packet.family);
	flow->point = POINT_TO_OVERLAY;
	key.tunnel_id = flow->vni;
	if (is_mapped_ipv4(node)) {
		key.remote_ipv4 = ipv4_of(node);
	} else {
		copy_bytes(key.remote_ipv6, node, sizeof(key.remote_ipv6));
		flags = BPF_F_TUNINFO_IPV6;
	}
	if (bpf_skb_set_tunnel_key(skb, &key, sizeof(key), flags))
		return DROP(flow, ERROR_WRITING_TO_PACKET);
	return DECISION_TUNNEL;
}

/* The sending node and its claim about the sender, into next_hop and vni. Nodes send to the one
 * address they know us by. Pods may not send there, but perhaps to another address of this node,
 * and masquerade gives what they send their node's address. */
static __always_inline int decapsulate(struct __sk_buff *skb, struct flow *flow)
{
	const struct address *own = &flow->settings->ipv4;
	struct bpf_tunnel_key key = {};
	struct address local;

	if (!bpf_skb_get_tunnel_key(skb, &key, sizeof(key), 0)) {
		map_ipv4(&flow->next_hop, key.remote_ipv4);
		map_ipv4(&local, key.local_ipv4);
	} else if (!bpf_skb_get_tunnel_key(skb, &key, sizeof(key), BPF_F_TUNINFO_IPV6)) {
		copy_bytes(&flow->next_hop, key.remote_ipv6, sizeof(flow->next_hop));
		copy_bytes(&local, key.local_ipv6, sizeof(local));
		own = &flow->settings->ipv6;
	} else {
		return DROP(flow, ERROR_RETRIEVING_TUNNEL_KEY);
	}
	flow->vni = key.tunnel_id;
	return same_address(&local, own) ? 0 : DROP(flow, ENCAPSULATION_TRAFFIC_IS_PROHIBITED);
}

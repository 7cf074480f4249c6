/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* The VXLAN device: what other nodes send. The tunnel key is a claim; it is believed only when the
 * ipcache says the same of the sender. */
#include "../lib/finish.h"
#include "../lib/related.h"

#undef SOURCE_FILE
#define SOURCE_FILE FILE_OVERLAY

#define IDENTITY_BITS 24

/* Identities of other clusters are not known yet. */
static __always_inline int check_cluster(struct flow *flow)
{
	__u32 cluster = flow->vni >> (IDENTITY_BITS - cluster_id_bits);

	if (cluster && cluster != flow->settings->cluster)
		return DROP(flow, INVALID_CLUSTER_ID);
	return 0;
}

static __always_inline bool claim_holds(__u32 claimed, const struct ipcache_entry *known,
					__u8 family)
{
	if (claimed == travelling_identity(known->identity, family))
		return true;
	return claimed == IDENTITY_REMOTE_NODE && known->flags & IPCACHE_HOST_ADDRESS;
}

/* The outer source is a node, the inner one lives there and has the identity it claims; nobody
 * outside speaks for an address of this node. */
static __always_inline int identify_remote(struct flow *flow)
{
	const struct packet *packet = &flow->packet;
	struct ipcache_entry *known;

	if (!flow->vni)
		return DROP(flow, INVALID_VNI);
	if (flow->vni == IDENTITY_HOST)
		return DROP(flow, INVALID_IDENTITY);
	if (check_cluster(flow))
		return -DROP_INVALID_CLUSTER_ID;
	if (!bpf_map_lookup_elem(&nodes, &flow->next_hop))
		return DROP(flow, INVALID_IDENTITY);
	if (lookup_endpoint(&packet->source))
		return DROP(flow, INVALID_IDENTITY);
	known = lookup_ipcache(packet->family, &packet->source);
	if (!known || !same_address(&known->tunnel_endpoint, &flow->next_hop) ||
	    !claim_holds(flow->vni, known, packet->family))
		return DROP(flow, INVALID_IDENTITY);
	flow->source.identity = known->identity;
	return 0;
}

static __always_inline int deliver(struct __sk_buff *skb, struct flow *flow)
{
	struct endpoint *local = lookup_endpoint(&flow->packet.destination);
	int dropped;

	if (!local)
		return DROP(flow, UNKNOWN_L3_TARGET_ADDRESS);
	set_party(flow, &flow->destination, local);
	if (!is_pod(local)) {
		dropped = flow->destination.endpoint ? track_packet(skb, flow, flow->vni) : 0;
		return dropped ?: prepare_host(skb, flow);
	}
	dropped = check_ttl(flow) ?: track_packet(skb, flow, flow->vni);
	return dropped ?: decrement_ttl(skb, flow) ?: prepare_local(skb, flow);
}

static __always_inline int handle_overlay_packet(struct __sk_buff *skb, struct flow *flow)
{
	int dropped;

	flow->settings = node_settings();
	flow->direction = DIRECTION_INGRESS;
	if (!flow->settings)
		return DROP(flow, DROP_HOST_NOT_READY);
	if (skb->vlan_present)
		return DROP(flow, VLAN_FILTERED);
	dropped = parse_packet(skb, flow, ETH_HLEN) ?: decapsulate(skb, flow);
	if (dropped)
		return dropped;
	dropped = identify_remote(flow);
	if (unlikely(dropped))
		return dropped;
	if (flow->packet.kind == PACKET_CONTROL)
		return DROP(flow, FORBIDDEN_ICMPV6_MESSAGE);
	return deliver(skb, flow);
}

SEC("tc")
int from_overlay(struct __sk_buff *skb)
{
	struct flow flow = {};
	int result = handle_overlay_packet(skb, &flow);

	return finish(skb, &flow, result);
}

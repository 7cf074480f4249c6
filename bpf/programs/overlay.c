/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* The VXLAN device: what other nodes send. The tunnel key is a claim; it is believed only when the
 * ipcache says the same of the sender. */
#include "../lib/balance.h"
#include "../lib/finish.h"
#include "../lib/nodeport_error.h"

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

/* A node speaks for itself, and for clients outside that asked it for a service. */
static __always_inline bool claim_holds(__u32 claimed, const struct ipcache_entry *known,
					__u8 family)
{
	if (claimed == travelling_identity(known->identity, family))
		return true;
	return known->flags & IPCACHE_HOST_ADDRESS &&
	       (claimed == IDENTITY_REMOTE_NODE || (services_enabled && is_world(claimed)));
}

/* Of a client outside, no more is known than that it is. */
static __always_inline __u32 believed_identity(__u32 claimed, const struct ipcache_entry *known,
					       __u8 family)
{
	if (is_world(claimed) && known->flags & IPCACHE_HOST_ADDRESS)
		return identity_of(NULL, family);
	return known->identity;
}

/* A client outside that keeps its address: the node it asked tells of the frontend, or has told. */
static __noinline bool is_told_client(struct __sk_buff *skb, struct flow *flow,
				      const struct ipcache_entry *known)
{
	struct packet *packet = &flow->packet;
	__u32 identity = identity_of(known, packet->family);
	struct nat_entry *told;
	struct nat_key key;

	if (!services_enabled || likely(is_workload(flow->vni)) || !are_services_known(flow) ||
	    is_workload(identity) || flow->vni != travelling_identity(identity, packet->family))
		return false;
	if (packet->fragment != FRAGMENT_NONE && resolve_fragment(flow, flow->vni))
		return false;
	flow->source.identity = identity;
	if (may_tell(packet) && hear_frontend(skb, flow) > 0)
		return true;
	key = told_key(packet);
	told = packet->kind == PACKET_PLAIN ? bpf_map_lookup_elem(&snat, &key) : NULL;
	if (!told)
		return false;
	flow->destination.service = told->service;
	flow->translation |= TRANSLATION_DSR;
	return true;
}

/* The outer source is a node, the inner one lives there and has the identity it claims; nobody
 * outside speaks for an address of this node. */
static __always_inline int identify_remote(struct __sk_buff *skb, struct flow *flow)
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
	if (is_from_loopback(packet) || lookup_endpoint(&packet->source))
		return DROP(flow, INVALID_IDENTITY);
	known = lookup_ipcache(packet->family, &packet->source);
	if (is_told_client(skb, flow, known))
		return 0;
	if (!known || !same_address(&known->tunnel_endpoint, &flow->next_hop) ||
	    !claim_holds(flow->vni, known, packet->family))
		return DROP(flow, INVALID_IDENTITY);
	flow->source.identity = believed_identity(flow->vni, known, packet->family);
	return 0;
}

/* Answers of backends here to clients outside that asked this node. Returns 0 for all else. */
static __always_inline int pass_answer(struct __sk_buff *skb, struct flow *flow)
{
	struct outside_work *work;

	if (!are_services_known(flow))
		return 0;
	work = outside_work();
	if (!work || (flow->packet.fragment != FRAGMENT_NONE && resolve_fragment(flow, flow->vni)))
		return 0;
	if (flow->packet.kind == PACKET_ERROR)
		return answer_error(skb, flow, work);
	return answer_client(skb, flow, work);
}

static __always_inline int deliver(struct __sk_buff *skb, struct flow *flow)
{
	struct endpoint *local = lookup_endpoint(&flow->packet.destination);
	int dropped;

	if (!local)
		return DROP(flow, UNKNOWN_L3_TARGET_ADDRESS);
	set_party(flow, &flow->destination, local);
	if (!is_pod(local)) {
		dropped = pass_answer(skb, flow);
		if (dropped)
			return dropped;
		dropped = flow->destination.endpoint ? track_packet(skb, flow, flow->vni) : 0;
		return dropped ?: keep_told(skb, flow) ?: prepare_host(skb, flow);
	}
	dropped =
	    check_ttl(flow) ?: track_packet(skb, flow, flow->vni) ?: restore_answer(skb, flow);
	return dropped ?: keep_told(skb, flow) ?: decrement_ttl(skb, flow) ?: prepare_local(skb, flow);
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
	dropped = identify_remote(skb, flow);
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

/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* The node's own veth pair: what the host's stack sends to pods surfaces at one end, what pods send
 * to the host goes in at the other. */
#include "../lib/answer.h"
#include "../lib/balance.h"
#include "../lib/finish.h"
#include "../lib/related.h"

#undef SOURCE_FILE
#define SOURCE_FILE FILE_HOST

static __always_inline int parse_from_host(struct __sk_buff *skb, struct flow *flow)
{
	int dropped;

	flow->settings = node_settings();
	flow->direction = DIRECTION_INGRESS;
	if (!flow->settings)
		return DROP(flow, DROP_HOST_NOT_READY);
	dropped = parse_packet(skb, flow, ETH_HLEN);
	return dropped ?: identify_sender_behind_stack(skb, flow);
}

/* Nobody but pods is reached this way. */
static __always_inline int find_destination(struct flow *flow)
{
	struct packet *packet = &flow->packet;
	struct endpoint *local = lookup_endpoint(&packet->destination);
	struct ipcache_entry *known;

	if (local) {
		set_party(flow, &flow->destination, local);
		return is_pod(local) ? 0 : DROP(flow, UNKNOWN_L3_TARGET_ADDRESS);
	}
	known = lookup_ipcache(packet->family, &packet->destination);
	flow->destination.identity = identity_of(known, packet->family);
	if (!tunnel_enabled || !known || !(known->flags & IPCACHE_TUNNEL))
		return DROP(flow, UNKNOWN_L3_TARGET_ADDRESS);
	flow->next_hop = known->tunnel_endpoint;
	return 0;
}

/* To a pod of another node, or to its host behind the tunnel. */
static __always_inline int send_to_node(struct __sk_buff *skb, struct flow *flow)
{
	int dropped = 0;

	flow->direction = DIRECTION_EGRESS;
	if (flow->source.endpoint)
		dropped = track_packet(skb, flow, skb->ifindex);
	return dropped ?: encapsulate(skb, flow);
}

static __always_inline int handle_host_packet(struct __sk_buff *skb, struct flow *flow)
{
	int dropped;

	if (skb->protocol == bpf_htons(ETH_P_ARP))
		return answer_host_arp(skb, flow);
	dropped = parse_from_host(skb, flow);
	if (dropped)
		return dropped;
	if (flow->packet.kind == PACKET_CONTROL)
		return answer_host_control(skb, flow);
	if (is_multicast(&flow->packet))
		return silently(&flow->packet, DROP(flow, UNKNOWN_L3_TARGET_ADDRESS));
	dropped = find_destination(flow);
	if (dropped)
		return dropped;
	if (!flow->destination.endpoint)
		return send_to_node(skb, flow);
	dropped = track_packet(skb, flow, skb->ifindex) ?: restore_frontend(skb, flow);
	return dropped ?: prepare_local(skb, flow);
}

SEC("tc")
int from_host(struct __sk_buff *skb)
{
	struct flow flow = {};
	int result = handle_host_packet(skb, &flow);

	return finish(skb, &flow, result);
}

SEC("tc")
int to_host(struct __sk_buff *skb)
{
	struct flow flow = {.point = POINT_TO_HOST};

	return finish(skb, &flow, DECISION_STACK);
}

/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* The host-side end of a pod's veth pair: what pods send, and with endpoint routes what the host's
 * stack sends to them. One instance serves all pods; whose packet it is says the interface. */
#include "../lib/answer.h"
#include "../lib/finish.h"
#include "../lib/related.h"

#undef SOURCE_FILE
#define SOURCE_FILE FILE_LXC

#define VXLAN_PORT 8472
#define GENEVE_PORT 6081
#define WIREGUARD_PORT 51871
#define DHCPV4_SERVER_PORT 67
#define DHCPV6_SERVER_PORT 547

static __always_inline bool is_tunnel_port(const struct flow *flow, __u16 port)
{
	return port == flow->settings->tunnel_port || port == VXLAN_PORT || port == GENEVE_PORT ||
	       port == WIREGUARD_PORT;
}

static __always_inline bool is_encapsulation(const struct flow *flow)
{
	const struct packet *packet = &flow->packet;

	if (packet->protocol == IPPROTO_UDP)
		return is_tunnel_port(flow, bpf_ntohs(packet->destination_port));
	return packet->protocol == IPPROTO_IPIP || packet->protocol == IPPROTO_IPV6 ||
	       packet->protocol == IPPROTO_GRE;
}

static __always_inline bool is_node(const struct flow *flow, const struct endpoint *local,
				    const struct ipcache_entry *known)
{
	if (local)
		return !is_pod(local);
	if (known && known->flags & (IPCACHE_UNDERLAY | IPCACHE_HOST_ADDRESS))
		return true;
	return bpf_map_lookup_elem(&nodes, &flow->packet.destination);
}

/* Masquerade makes a pod's packet a node's packet: one that is encapsulated would be taken for a
 * tunnel's, with whatever identity the pod wrote into it. */
static __noinline int check_uncommon(struct flow *flow, const struct endpoint *local,
				     const struct ipcache_entry *known)
{
	const struct packet *packet = &flow->packet;
	__u16 from = bpf_ntohs(packet->source_port);

	if (is_encapsulation(flow) && is_node(flow, local, known))
		return DROP(flow, ENCAPSULATION_TRAFFIC_IS_PROHIBITED);
	if (!is_tracked_protocol(packet))
		return DROP(flow, UNKNOWN_L4_PROTOCOL);
	if (packet->protocol == IPPROTO_UDP &&
	    (from == DHCPV4_SERVER_PORT || from == DHCPV6_SERVER_PORT))
		return DROP(flow, INVALID_PACKET_DROPPED);
	return 0;
}

/* From a pod towards whoever is at the destination address. */
static __always_inline int forward(struct __sk_buff *skb, struct flow *flow)
{
	struct packet *packet = &flow->packet;
	struct endpoint *local = lookup_endpoint(&packet->destination);
	struct ipcache_entry *known = NULL;
	int dropped;

	if (local) {
		set_party(&flow->destination, local);
	} else {
		known = lookup_ipcache(packet->family, &packet->destination);
		flow->destination.identity = identity_of(known, packet->family);
	}
	if (packet->protocol != IPPROTO_TCP) {
		dropped = check_uncommon(flow, local, known);
		if (dropped)
			return dropped;
	}
	dropped = track_packet(skb, flow, skb->ifindex);
	if (unlikely(dropped))
		return dropped;
	if (flow->destination.pod)
		return check_ttl(flow) ?: decrement_ttl(skb, flow) ?: prepare_local(skb, flow);
	if (local)
		return prepare_host(skb, flow);
	if (tunnel_enabled && known && known->flags & IPCACHE_TUNNEL) {
		flow->next_hop = known->tunnel_endpoint;
		return encapsulate(skb, flow);
	}
	return check_ttl(flow) ?: route_to_network(skb, flow);
}

static __always_inline int handle_pod_packet(struct __sk_buff *skb, struct flow *flow)
{
	__u32 ifindex = skb->ifindex;
	struct iface *iface = bpf_map_lookup_elem(&ifaces, &ifindex);
	int dropped;

	flow->settings = node_settings();
	flow->direction = DIRECTION_EGRESS;
	if (!iface)
		return DROP(flow, UNKNOWN_SENDER);
	if (!flow->settings)
		return DROP(flow, DROP_HOST_NOT_READY);
	set_party(&flow->source, &iface->endpoint);
	if (skb->vlan_present || skb->protocol == bpf_htons(ETH_P_8021Q) ||
	    skb->protocol == bpf_htons(ETH_P_8021AD))
		return DROP(flow, VLAN_FILTERED);
	if (skb->protocol == bpf_htons(ETH_P_ARP))
		return answer_pod_arp(skb, flow, iface);
	dropped = parse_packet(skb, flow, ETH_HLEN);
	if (dropped)
		return dropped;
	if (flow->packet.kind == PACKET_CONTROL)
		return answer_pod_control(skb, flow, iface);
	dropped = check_source(flow, iface);
	if (unlikely(dropped))
		return dropped;
	if (is_multicast(&flow->packet))
		return silently(flow, DROP(flow, UNKNOWN_L3_TARGET_ADDRESS));
	return forward(skb, flow);
}

SEC("tc")
int from_container(struct __sk_buff *skb)
{
	struct flow flow = {};
	int result = handle_pod_packet(skb, &flow);

	return finish(skb, &flow, result);
}

/* Answers to ARP and neighbour discovery come this way, too, and pass. */
static __always_inline int handle_packet_to_pod(struct __sk_buff *skb, struct flow *flow)
{
	__u32 ifindex = skb->ifindex;
	struct iface *iface = bpf_map_lookup_elem(&ifaces, &ifindex);
	int dropped;

	flow->settings = node_settings();
	flow->direction = DIRECTION_INGRESS;
	flow->point = POINT_TO_ENDPOINT;
	if (skb->protocol != bpf_htons(ETH_P_IP) && skb->protocol != bpf_htons(ETH_P_IPV6))
		return DECISION_STACK;
	if (!iface)
		return DROP(flow, STALE_OR_UNROUTABLE_IP);
	if (!flow->settings)
		return DROP(flow, DROP_HOST_NOT_READY);
	set_party(&flow->destination, &iface->endpoint);
	dropped = parse_packet(skb, flow, ETH_HLEN);
	if (dropped)
		return dropped;
	if (flow->packet.kind == PACKET_CONTROL)
		return DECISION_STACK;
	if (!is_tracked_protocol(&flow->packet))
		return DROP(flow, UNKNOWN_L4_PROTOCOL);
	dropped = identify_sender_behind_stack(skb, flow);
	return dropped ?: track_packet(skb, flow, skb->ifindex) ?: DECISION_STACK;
}

SEC("tc")
int to_container(struct __sk_buff *skb)
{
	struct flow flow = {};
	int result = handle_packet_to_pod(skb, &flow);

	return finish(skb, &flow, result);
}

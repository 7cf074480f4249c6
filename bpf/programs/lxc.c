/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* The host-side end of a pod's veth pair: what pods send, and with endpoint routes what the host's
 * stack sends to them. One instance serves all pods; whose packet it is says the interface. */
#include "../lib/answer.h"
#include "../lib/balance.h"
#include "../lib/finish.h"
#include "../lib/related.h"
#include "../lib/reset.h"

#undef SOURCE_FILE
#define SOURCE_FILE FILE_LXC

#define VXLAN_PORT 8472
#define GENEVE_PORT 6081
#define WIREGUARD_PORT 51871
#define DHCPV4_SERVER_PORT 67
#define DHCPV6_SERVER_PORT 547

enum encapsulation {
	ENCAPSULATION_NONE = 0,
	ENCAPSULATION_UDP = 1, /* a tunnel's port */
	ENCAPSULATION_IP = 2,  /* a protocol that carries packets */
};

static __always_inline int encapsulation_of(const struct packet *packet, __u32 tunnel_port)
{
	__u16 port = bpf_ntohs(packet->destination_port);

	if (packet->protocol == IPPROTO_IPIP || packet->protocol == IPPROTO_IPV6 ||
	    packet->protocol == IPPROTO_GRE)
		return ENCAPSULATION_IP;
	if (packet->protocol != IPPROTO_UDP)
		return ENCAPSULATION_NONE;
	if (port == tunnel_port || port == VXLAN_PORT || port == GENEVE_PORT ||
	    port == WIREGUARD_PORT)
		return ENCAPSULATION_UDP;
	return ENCAPSULATION_NONE;
}

/* What a pod may not send to anybody. Returns a negative reason or the kind of encapsulation, which
 * the destination decides about. Global, as parse_headers is, and for the same reason. */
__noinline int check_protocol(struct packet *packet, __u32 tunnel_port)
{
	int encapsulation;
	__u16 from;

	if (!packet)
		return -DROP_UNKNOWN_L4_PROTOCOL;
	encapsulation = encapsulation_of(packet, tunnel_port);
	from = bpf_ntohs(packet->source_port);
	if (packet->protocol == IPPROTO_UDP &&
	    (from == DHCPV4_SERVER_PORT || from == DHCPV6_SERVER_PORT))
		return REFUSE(packet, INVALID_PACKET_DROPPED);
	return encapsulation;
}

/* Who is at the destination address. */
struct target {
	struct endpoint *local;	     /* a pod of this node, or the node itself */
	struct ipcache_entry *known; /* of others, if anything is known */
};

static __always_inline struct target find_target(struct flow *flow)
{
	const struct packet *packet = &flow->packet;
	struct target target = {.local = lookup_endpoint(&packet->destination)};

	if (target.local) {
		set_party(flow, &flow->destination, target.local);
	} else {
		target.known = lookup_ipcache(packet->family, &packet->destination);
		flow->destination.identity = identity_of(target.known, packet->family);
	}
	return target;
}

static __always_inline bool is_node(const struct flow *flow, const struct target *target)
{
	if (target->local)
		return !is_pod(target->local);
	if (target->known && target->known->flags & (IPCACHE_UNDERLAY | IPCACHE_HOST_ADDRESS))
		return true;
	return bpf_map_lookup_elem(&nodes, &flow->packet.destination);
}

/* The cluster's own tunnel port at an address that is no pod's: it may lead to a node by an address
 * that nobody has told us of. */
static __always_inline bool may_lead_to_node(const struct flow *flow)
{
	const struct packet *packet = &flow->packet;

	return tunnel_enabled && packet->protocol == IPPROTO_UDP &&
	       packet->destination_port == bpf_htons(flow->settings->tunnel_port) &&
	       !is_workload(flow->destination.identity);
}

/* Masquerade makes a pod's packet a node's packet: one that is encapsulated would be taken for a
 * tunnel's, with whatever identity the pod wrote into it. */
static __always_inline int check_encapsulation(struct flow *flow, const struct target *target)
{
	int result = check_protocol(&flow->packet, flow->settings->tunnel_port);

	if (likely(result <= 0))
		return result;
	if (may_lead_to_node(flow) || is_node(flow, target))
		return DROP(flow, ENCAPSULATION_TRAFFIC_IS_PROHIBITED);
	if (result == ENCAPSULATION_IP && !is_workload(flow->destination.identity))
		return DROP(flow, UNKNOWN_L4_PROTOCOL);
	return 0;
}

/* The host's own word about a packet that reaches it by one of its lesser addresses. */
static __always_inline int judge_arrival_at_host(struct flow *flow, struct ct_entry *entry)
{
	struct endpoint *host = is_host_judged(flow) ? host_endpoint(flow) : NULL;

	if (!host)
		return 0;
	set_party(flow, &flow->destination, host);
	return judge_side(flow, entry, CT_INGRESS, &flow->destination, flow->source.identity,
			  flow->packet.destination_port);
}

/* What goes to the stack for want of a route may reach the node itself: so the pod must be allowed
 * to, unless the node began. */
static __noinline int judge_as_host(struct flow *flow)
{
	struct workspace *space = own_workspace();
	struct ct_entry entry = {};
	int dropped;

	if (flow->destination.identity != IDENTITY_HOST || flow->state == CONNECTION_REPLY ||
	    flow->state == CONNECTION_RELATED)
		return DECISION_STACK;
	if (space)
		forget_audits(space);
	dropped = judge_side(flow, &entry, CT_EGRESS, &flow->source, IDENTITY_HOST,
			     flow->packet.destination_port)
		      ?: judge_arrival_at_host(flow, &entry);
	recall_rules(flow, &entry);
	return dropped ?: DECISION_STACK;
}

/* What the stack is to fragment, or to complain about, it must know as the pod's. */
static __always_inline int leave_node(struct __sk_buff *skb, struct flow *flow)
{
	int result = check_ttl(flow) ?: route_to_network(skb, flow);

	if (unlikely(result == DECISION_STACK))
		return judge_as_host(flow);
	if (result < 0)
		return result;
	/* The frontend may be an address of this node: it is not the host that speaks. */
	if (flow->translation & (TRANSLATION_RESTORE | TRANSLATION_DSR))
		skb->mark = MARK_KIND_SERVICE;
	return restore_frontend(skb, flow) ?: result;
}

/* The backend of the frontend the packet asks for takes the destination's place. What a pod answers
 * to itself finds the pod. */
static __always_inline int give_target(struct __sk_buff *skb, struct flow *flow,
				       struct target *target)
{
	int result = balance(skb, flow);

	if (result <= 0)
		return result;
	if (flow->translation & TRANSLATION_GIVEN || !(flow->translation & TRANSLATION_HAIRPIN)) {
		*target = find_target(flow);
		return 0;
	}
	target->local = flow->source.endpoint;
	flow->destination.endpoint = flow->source.endpoint;
	flow->destination.identity = flow->source.identity;
	return 0;
}

static __always_inline int hand_to(struct __sk_buff *skb, struct flow *flow,
				   const struct target *target)
{
	bool tunnelled = tunnel_enabled && target->known && target->known->flags & IPCACHE_TUNNEL;
	int dropped;

	if (!target->local && !tunnelled)
		return leave_node(skb, flow);
	dropped = restore_frontend(skb, flow);
	if (unlikely(dropped))
		return dropped;
	if (is_local_pod(&flow->destination))
		return check_ttl(flow) ?: decrement_ttl(skb, flow) ?: prepare_local(skb, flow);
	if (target->local)
		return prepare_host(skb, flow);
	flow->next_hop = target->known->tunnel_endpoint;
	return encapsulate(skb, flow);
}

/* From a pod towards whoever is at the destination address. */
static __always_inline int forward(struct __sk_buff *skb, struct flow *flow)
{
	struct target target = find_target(flow);
	int dropped = 0;

	if (may_be_service(flow)) {
		dropped = give_target(skb, flow, &target);
		if (dropped)
			return dropped;
	}
	if (flow->packet.protocol != IPPROTO_TCP) {
		dropped = check_encapsulation(flow, &target);
		if (dropped)
			return dropped;
	}
	dropped = track_packet(skb, flow, skb->ifindex);
	if (likely(!dropped))
		dropped = settle(skb, flow);
	if (unlikely(dropped))
		return dropped;
	return hand_to(skb, flow, &target);
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
	flow->source.endpoint = &iface->endpoint;
	flow->source.identity = iface->endpoint.identity;
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
		return silently(&flow->packet, DROP(flow, UNKNOWN_L3_TARGET_ADDRESS));
	return forward(skb, flow);
}

SEC("tc")
int from_container(struct __sk_buff *skb)
{
	struct flow flow = {};
	int result = handle_pod_packet(skb, &flow);
	int action = finish(skb, &flow, result);

	return likely(!is_answered(skb, &flow, result)) ? action : answer_pod(skb, &flow);
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
	set_party(flow, &flow->destination, &iface->endpoint);
	dropped = parse_packet(skb, flow, ETH_HLEN);
	if (dropped)
		return dropped;
	if (flow->packet.kind == PACKET_CONTROL)
		return DECISION_STACK;
	dropped = identify_sender_behind_stack(skb, flow);
	dropped = dropped ?: track_packet(skb, flow, skb->ifindex);
	return dropped ?: restore_frontend(skb, flow) ?: DECISION_STACK;
}

SEC("tc")
int to_container(struct __sk_buff *skb)
{
	struct flow flow = {};
	int result = handle_packet_to_pod(skb, &flow);

	return finish(skb, &flow, result);
}

/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* The node's native devices: masquerade on the way out, its reverse and direct delivery on the way
 * in. They carry the node's own traffic, too; whatever is not clearly a pod's goes on untouched,
 * unless the host has a policy. */
#include "../lib/finish.h"
#include "../lib/firewall.h"
#include "../lib/balance.h"
#include "../lib/deny.h"
#include "../lib/ipip.h"
#include "../lib/nodeport_error.h"

#undef SOURCE_FILE
#define SOURCE_FILE FILE_NETDEV

#define VLAN_NUMBER_MASK 0x0fff

static __always_inline __u32 link_header_length(void)
{
	return native_l2 ? ETH_HLEN : 0;
}

/* Under a host policy the tunnel's port is anybody's, but for the nodes of the cluster. */
static __always_inline bool is_from_tunnel_end(const struct node_settings *settings, __be32 far_end)
{
	struct address node;

	if (!host_firewall_enabled || !(settings->flags & NODE_HOST_POLICY))
		return true;
	map_ipv4(&node, bpf_ntohl(far_end));
	return bpf_map_lookup_elem(&nodes, &node);
}

/* A packet of the overlay to or from this node's underlay address, known without parsing all of it:
 * on a node of an overlay nearly every packet of the native device is one. What it carries is for
 * from_overlay to judge. */
static __always_inline bool is_own_tunnel(struct __sk_buff *skb, bool arriving)
{
	void *l3 = (void *)(long)skb->data + link_header_length();
	void *end = (void *)(long)skb->data_end;
	const struct iphdr *ip = l3;
	const struct udphdr *udp = (void *)(ip + 1);
	struct node_settings *settings = node_settings();

	if (!tunnel_enabled || !settings || skb->protocol != bpf_htons(ETH_P_IP) ||
	    skb->vlan_present || (void *)(udp + 1) > end)
		return false;
	if (ip->version != 4 || ip->ihl != 5 || ip->protocol != IPPROTO_UDP ||
	    ip->frag_off & bpf_htons(IPV4_MORE_FRAGMENTS | IPV4_OFFSET_MASK))
		return false;
	return udp->dest == bpf_htons(settings->tunnel_port) &&
	       (arriving ? ip->daddr : ip->saddr) == bpf_htonl(ipv4_of(&settings->ipv4)) &&
	       is_from_tunnel_end(settings, arriving ? ip->saddr : ip->daddr);
}

/* Frames of a VLAN belong to another device. One with a priority only, which is VLAN 0, the stack
 * takes for untagged (IEEE 802.1Q, 6.9), and one with two such tags as well; the latter nobody
 * sends who means well. Returns 0: to be read. */
static __noinline int check_tag(struct __sk_buff *skb, struct flow *flow)
{
	__be16 inner;

	if (skb->vlan_tci & VLAN_NUMBER_MASK)
		return DECISION_STACK;
	if (skb->protocol != bpf_htons(ETH_P_8021Q) && skb->protocol != bpf_htons(ETH_P_8021AD))
		return 0;
	if (!bpf_skb_load_bytes(skb, ETH_HLEN, &inner, sizeof(inner)) &&
	    inner & bpf_htons(VLAN_NUMBER_MASK))
		return DECISION_STACK;
	return DROP(flow, VLAN_FILTERED);
}

/* Reads the packet, if it is one the data path may have to do with: IP of no VLAN. Returns 0, a
 * reason why it can't be read in full, or DECISION_STACK. */
static __always_inline int look_at(struct __sk_buff *skb, struct flow *flow)
{
	int result;

	flow->settings = node_settings();
	if (!flow->settings)
		return DECISION_STACK;
	if (unlikely(skb->vlan_present)) {
		result = check_tag(skb, flow);
		if (result)
			return result;
	}
	return parse_packet(skb, flow, link_header_length());
}

/* Nobody outside has an address of this node, nor, in tunnel mode, one of any pod, nor the one that
 * stands for a pod to itself. */
static __always_inline int check_outside_source(struct flow *flow)
{
	const struct packet *packet = &flow->packet;
	struct ipcache_entry *known = lookup_ipcache(packet->family, &packet->source);

	flow->source.identity = identity_of(known, packet->family);
	if (is_from_loopback(packet) || lookup_endpoint(&packet->source))
		return DROP(flow, INVALID_SOURCE_IP);
	if (tunnel_enabled && known && known->flags & IPCACHE_TUNNEL &&
	    !(known->flags & IPCACHE_UNDERLAY))
		return DROP(flow, INVALID_SOURCE_IP);
	return 0;
}

/* from_overlay looks closer at what such a packet brings. */
static __always_inline bool carries_tunnel(const struct flow *flow)
{
	return flow->packet.protocol == IPPROTO_UDP &&
	       flow->packet.destination_port == bpf_htons(flow->settings->tunnel_port) &&
	       same_address(&flow->packet.destination, own_address(flow)) &&
	       (!is_host_judged(flow) || bpf_map_lookup_elem(&nodes, &flow->packet.source));
}

/* What the parser gives up on behind the addresses may still be the stack's to take, unless a
 * policy should judge it. */
static __always_inline int handle_unreadable(struct __sk_buff *skb, struct flow *flow, int dropped)
{
	const struct packet *packet = &flow->packet;
	int spoofed;

	if (dropped == -DROP_VLAN_FILTERED)
		return dropped;
	if (dropped == DECISION_STACK || !packet->l4)
		return DECISION_STACK;
	spoofed = check_outside_source(flow);
	if (spoofed)
		return spoofed;
	if (!is_host_judged(flow) ||
	    !note_host_as_receiver(skb, flow, lookup_endpoint(&packet->destination)))
		return DECISION_STACK;
	return dropped;
}

/* Returns as unmasquerade does. */
static __always_inline int translate_back(struct __sk_buff *skb, struct flow *flow)
{
	struct packet *packet = &flow->packet;

	if (packet->fragment != FRAGMENT_NONE && resolve_fragment(flow, skb->ifindex))
		return 0;
	if (packet->kind == PACKET_ERROR)
		return unmasquerade_error(skb, flow);
	return is_translated_protocol(packet) ? unmasquerade(skb, flow) : 0;
}

/* Another node may have told which frontend the client asked for; pods have nothing to tell.
 * Returns 0 or a negative reason. */
static __always_inline int hear(struct __sk_buff *skb, struct flow *flow)
{
	int result;

	if (likely(!may_tell(&flow->packet)) || !are_services_known(flow) ||
	    is_workload(flow->source.identity) || flow->destination.service)
		return 0;
	result = hear_frontend(skb, flow);
	return result < 0 ? result : 0;
}

/* A pod is told in the tunnel, if there is one. */
static __always_inline int hear_for_pod(struct __sk_buff *skb, struct flow *flow)
{
	return tunnel_enabled ? 0 : hear(skb, flow);
}

/* The node itself, where it is a backend, is reached without the tunnel. */
static __always_inline int hear_for_host(struct __sk_buff *skb, struct flow *flow)
{
	if (likely(!(flow->settings->flags & NODE_HOST_BACKENDS)))
		return 0;
	return hear(skb, flow) ?: keep_told(skb, flow);
}

static __always_inline int deliver_to_pod(struct __sk_buff *skb, struct flow *flow)
{
	int dropped;

	flow->direction = DIRECTION_INGRESS;
	dropped = check_ttl(flow) ?: add_link_header(skb, flow) ?: hear_for_pod(skb, flow);
	if (dropped)
		return dropped;
	dropped = track_packet(skb, flow, skb->ifindex) ?: restore_answer(skb, flow);
	if (flow->translation & TRANSLATION_GIVEN)
		dropped = dropped ?: remember_choice(flow);
	else
		dropped = dropped ?: keep_told(skb, flow);
	return dropped ?: decrement_ttl(skb, flow) ?: prepare_local(skb, flow);
}

/* Of a packet that is no client's: perhaps it comes from a backend elsewhere. Returns 0 if not. */
static __always_inline int handle_answer(struct __sk_buff *skb, struct flow *flow,
					 struct outside_work *work)
{
	if (flow->packet.kind == PACKET_PLAIN)
		return answer_client(skb, flow, work);
	return flow->packet.kind == PACKET_ERROR ? answer_error(skb, flow, work) : 0;
}

static __always_inline int send_away(struct __sk_buff *skb, struct flow *flow,
				     struct outside_work *work)
{
	if (wraps() && work->flow.flags & SERVICE_FLOW_DSR)
		return send_wrapped(skb, flow, work);
	return send_to_backend(skb, flow, work);
}

/* Services that are asked for from outside, and answers of their backends elsewhere. Returns 0 for
 * everything else, and for what has a backend here and was made its own. */
static __always_inline int handle_service(struct __sk_buff *skb, struct flow *flow)
{
	struct outside_work *work = outside_work();
	bool is_error = flow->packet.kind == PACKET_ERROR;
	int result;

	if (!work ||
	    (flow->packet.fragment != FRAGMENT_NONE && resolve_fragment(flow, skb->ifindex)))
		return 0;
	result = is_error ? serve_error(skb, flow, work) : serve_outside(skb, flow, work);
	if (result == BACKEND_NONE)
		return handle_answer(skb, flow, work);
	if (result == BACKEND_AWAY)
		return is_error ? send_error(skb, flow, work) : send_away(skb, flow, work);
	return result < 0 ? result : 0;
}

/* Another node may have wrapped what is for a backend here. Returns 0 or a negative reason. */
static __always_inline int look_inside(struct __sk_buff *skb, struct flow *flow)
{
	struct outside_work *work;
	struct endpoint *local;
	int dropped;

	if (!wraps() || likely(!is_wrapped(&flow->packet)) || !are_services_known(flow))
		return 0;
	local = lookup_endpoint(&flow->packet.destination);
	if (!local || (!is_pod(local) && !(flow->settings->flags & NODE_HOST_BACKENDS)))
		return 0;
	work = outside_work();
	dropped = work ? unwrap(skb, flow, work) : 0;
	return dropped ?: check_outside_source(flow);
}

/* The host is asked itself. */
static __always_inline int forget_service(struct flow *flow)
{
	if (unlikely(flow->settings->flags & NODE_HOST_BACKENDS) && !flow->destination.service &&
	    is_opening(&flow->packet))
		forget_told(flow);
	return 0;
}

/* What is to no pod, as it came: a service may be asked for, or it is an answer to what left with
 * an address of this node. Returns 0: whoever is at the destination by now gets it. */
static __always_inline int arrive_at_node(struct __sk_buff *skb, struct flow *flow, bool is_own)
{
	int result = are_services_known(flow) ? handle_service(skb, flow) : 0;

	if (result)
		return result;
	if (!is_own || flow->destination.service)
		return 0;
	result = translate_back(skb, flow);
	if (result < 0)
		return result;
	if (result || is_host_judged(flow))
		return 0;
	return hear_for_host(skb, flow) ?: forget_service(flow) ?: DECISION_STACK;
}

static __always_inline int handle_arrival(struct __sk_buff *skb, struct flow *flow)
{
	const struct packet *packet = &flow->packet;
	struct endpoint *local;
	bool is_own;
	int result;

	flow->direction = DIRECTION_INGRESS;
	result = look_at(skb, flow);
	if (unlikely(result))
		return handle_unreadable(skb, flow, result);
	if (is_multicast(packet) && !is_host_judged(flow))
		return DECISION_STACK;
	if (carries_tunnel(flow))
		return DECISION_STACK;
	result = check_outside_source(flow) ?: look_inside(skb, flow);
	if (result)
		return result;
	is_own = same_address(&packet->destination, own_address(flow));
	local = is_own ? NULL : lookup_endpoint(&packet->destination);
	/* A pod's address is nobody's frontend. */
	if (!local || !is_pod(local)) {
		result = arrive_at_node(skb, flow, is_own);
		if (result)
			return result;
		local = flow->destination.endpoint ?: lookup_endpoint(&packet->destination);
	}
	if (local && is_pod(local)) {
		set_party(flow, &flow->destination, local);
		return deliver_to_pod(skb, flow);
	}
	result = local ? hear_for_host(skb, flow) ?: forget_service(flow) : 0;
	if (result)
		return result;
	if (is_host_judged(flow) && note_host_as_receiver(skb, flow, local))
		return judge_host(skb, flow, true);
	return DECISION_STACK;
}

SEC("tc")
int from_netdev(struct __sk_buff *skb)
{
	struct flow flow = {};
	int result = is_own_tunnel(skb, true) ? DECISION_STACK : handle_arrival(skb, &flow);
	int action = finish_passing(skb, &flow, result);

	return is_client_answered(skb, &flow, result) ? answer_client_refusal(skb, &flow, result)
						      : action;
}

static __always_inline bool is_masqueraded_family(const struct flow *flow)
{
	__u32 wanted =
	    flow->packet.family == FAMILY_IPV4 ? NODE_MASQUERADE_IPV4 : NODE_MASQUERADE_IPV6;

	return flow->settings->flags & wanted && !is_zero_address(own_address(flow));
}

/* Pods know each other by their own addresses, wherever they are. */
static __always_inline bool leaves_the_cluster(struct flow *flow)
{
	const struct packet *packet = &flow->packet;
	struct ipcache_entry *known = lookup_ipcache(packet->family, &packet->destination);

	flow->destination.identity = identity_of(known, packet->family);
	return !known || known->flags & IPCACHE_HOST_ADDRESS || !is_workload(known->identity);
}

static __always_inline int translate(struct __sk_buff *skb, struct flow *flow)
{
	struct packet *packet = &flow->packet;
	int dropped;

	if (packet->fragment != FRAGMENT_NONE) {
		dropped = resolve_fragment(flow, skb->ifindex);
		if (dropped)
			return dropped;
	}
	if (!is_translated_protocol(packet))
		return DROP(flow, UNSUPPORTED_PROTOCOL_FOR_NAT_MASQUERADE);
	if (packet->kind == PACKET_ERROR)
		return masquerade_error(skb, flow);
	if (packet->kind > PACKET_ERROR)
		return strange_icmp(flow);
	return masquerade(skb, flow);
}

/* The host's own answer to a client of a service. Returns 0 or a negative reason. */
static __always_inline int leave_as_service(struct __sk_buff *skb, struct flow *flow)
{
	const struct packet *packet = &flow->packet;
	struct outside_work *work;

	if (!services_enabled || !(flow->settings->flags & NODE_HOST_BACKENDS))
		return 0;
	work = outside_work();
	if (!work || (packet->fragment != FRAGMENT_NONE && resolve_fragment(flow, skb->ifindex)))
		return 0;
	if (packet->kind == PACKET_ERROR)
		return leave_as_error(skb, flow, work);
	return leave_as_frontend(skb, flow, work);
}

static __always_inline int handle_departure(struct __sk_buff *skb, struct flow *flow)
{
	const struct packet *packet = &flow->packet;
	struct endpoint *local;
	bool by_host;
	int result;

	result = look_at(skb, flow);
	if (result == DECISION_STACK || !packet->l4)
		return DECISION_STACK;
	by_host = is_host_judged(flow) && note_host_as_sender(skb, flow);
	if (by_host)
		result = result ?: judge_host(skb, flow, false);
	if (result < 0)
		return by_host ? result : DECISION_STACK;
	result = leave_as_service(skb, flow);
	if (result || by_host)
		return result ?: DECISION_STACK;
	if (!is_masqueraded_family(flow) || same_address(&packet->source, own_address(flow)))
		return DECISION_STACK;
	local = lookup_endpoint(&packet->source);
	if (!local || !is_pod(local) || !leaves_the_cluster(flow))
		return DECISION_STACK;
	set_party(flow, &flow->source, local);
	flow->direction = DIRECTION_EGRESS;
	result = translate(skb, flow);
	return result > 0 ? DECISION_NETWORK : result ?: DECISION_STACK;
}

/* What this node passes on for others is neither its own nor its pods'. */
static __always_inline bool is_passed_on(const struct __sk_buff *skb)
{
	return services_enabled && skb->mark == MARK_KIND_SERVICE;
}

SEC("tc")
int to_netdev(struct __sk_buff *skb)
{
	struct flow flow = {};
	int result = is_passed_on(skb) || is_own_tunnel(skb, false) ? DECISION_STACK
								    : handle_departure(skb, &flow);

	return finish_passing(skb, &flow, result);
}

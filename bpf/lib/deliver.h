/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
#pragma once
/* Floor 9: the last step. A packet is rewritten for where it goes (prepare_*), then handed to the
 * kernel (hand_over); between the two it is counted and reported. */
#include "encap.h"
#include "fib.h"
#include "../abi/decision.h"
#include <linux/if_packet.h>

#undef SOURCE_FILE
#define SOURCE_FILE FILE_DELIVER

/* From ip_decrease_ttl: the checksum grows by what the TTL lost, with the carry around. */
static __always_inline void decrement_ttl4(struct iphdr *ip)
{
	__u32 check = (__u32)ip->check + bpf_htons(0x0100);

	ip->check = check + (check >= 0xffff);
	ip->ttl--;
}

/* Forwarding costs one hop. check_ttl has made sure that there is one to spare. */
static __always_inline int decrement_ttl(struct __sk_buff *skb, struct flow *flow)
{
	void *l3 = (void *)(long)skb->data + ETH_HLEN;
	void *end = (void *)(long)skb->data_end;

	if (l3 + sizeof(struct iphdr) > end)
		return DROP(flow, ERROR_WRITING_TO_PACKET);
	if (flow->packet.family == FAMILY_IPV4)
		decrement_ttl4(l3);
	else
		((struct ipv6hdr *)l3)->hop_limit--;
	return 0;
}

static __always_inline int check_ttl(struct flow *flow)
{
	return likely(flow->packet.ttl > 1) ? 0 : DROP(flow, TTL_EXCEEDED);
}

/* macs: destination then source, as in the frame. */
static __always_inline int write_macs(struct __sk_buff *skb, struct flow *flow, const __u8 *macs)
{
	void *data = (void *)(long)skb->data;
	void *end = (void *)(long)skb->data_end;

	if (data + ETH_HLEN > end)
		return DROP(flow, ERROR_WRITING_TO_PACKET);
	copy_bytes(data, macs, 2 * ETH_ALEN);
	return 0;
}

/* Frames from the tunnel or the host carry a MAC address that is not the receiving device's; the
 * pod's IP layer would drop them as somebody else's. */
static __always_inline void claim(struct __sk_buff *skb)
{
	if (unlikely(skb->pkt_type != PACKET_HOST))
		bpf_skb_change_type(skb, PACKET_HOST);
}

/* Into a pod of this node. struct endpoint holds its MAC and the host side's next to each other, in
 * the order of the frame. */
static __always_inline int prepare_local(struct __sk_buff *skb, struct flow *flow)
{
	const struct endpoint *pod = flow->destination.endpoint;

	flow->ifindex = pod->ifindex;
	flow->point = POINT_TO_ENDPOINT;
	flow->direction = DIRECTION_INGRESS;
	claim(skb);
	return write_macs(skb, flow, pod->mac) ?: DECISION_LOCAL;
}

/* To the node itself, as if the packet had come in through the host's end of the node's veth pair.
 */
static __always_inline int prepare_host(struct __sk_buff *skb, struct flow *flow)
{
	void *data = (void *)(long)skb->data;
	void *end = (void *)(long)skb->data_end;

	flow->ifindex = flow->settings->host_ifindex;
	flow->point = POINT_TO_HOST;
	if (!flow->ifindex)
		return DROP(flow, DROP_HOST_NOT_READY);
	if (data + ETH_HLEN > end)
		return DROP(flow, ERROR_WRITING_TO_PACKET);
	copy_bytes(data, flow->settings->host_mac, ETH_ALEN);
	return DECISION_HOST;
}

static __always_inline int redirect_to_gateway(const struct flow *flow)
{
	struct bpf_redir_neigh gateway = {.nh_family = flow->next_hop_family};

	if (gateway.nh_family == AF_INET)
		gateway.ipv4_nh = bpf_htonl(ipv4_of(&flow->next_hop));
	else
		copy_bytes(gateway.ipv6_nh, &flow->next_hop, sizeof(gateway.ipv6_nh));
	return bpf_redirect_neigh(flow->ifindex, &gateway, sizeof(gateway), 0);
}

static __always_inline int hand_over(const struct flow *flow, int action)
{
	switch (action) {
	case DECISION_LOCAL:
		return bpf_redirect_peer(flow->ifindex, 0);
	case DECISION_HOST:
		return bpf_redirect(flow->ifindex, BPF_F_INGRESS);
	case DECISION_TUNNEL:
	case DECISION_ANSWERED:
		return bpf_redirect(flow->ifindex, 0);
	case DECISION_NETWORK:
		return redirect_to_gateway(flow);
	default:
		return TCX_NEXT;
	}
}

/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
#pragma once
/* Floor 6: ARP and neighbour discovery are answered here, so that a pod's gateway needs no
 * neighbour and no pod hears another's questions. */
#include "identity.h"
#include "../abi/decision.h"

#undef SOURCE_FILE
#define SOURCE_FILE FILE_L2

#define ARP_REQUEST 1
#define ARP_REPLY 2
#define NDP_HOP_LIMIT 255
#define NDP_SOLICITED_OVERRIDE 0x60000000
#define NDP_ROUTER 0x80000000
#define NDP_TARGET_LINK_OPTION 0x0201
#define NEIGHBOUR_SOLICITATION 135
#define NEIGHBOUR_ADVERTISEMENT 136
#define ROUTER_ADVERTISEMENT 134
#define ROUTER_REDIRECT 137

struct arp_frame {
	__u8 destination_mac[6];
	__u8 source_mac[6];
	__be16 ethertype;
	__be16 hardware;
	__be16 protocol;
	__u8 hardware_length;
	__u8 protocol_length;
	__be16 operation;
	__u8 sender_mac[6];
	__u8 sender_ip[4];
	__u8 target_mac[6];
	__u8 target_ip[4];
} __attribute__((packed));

static __always_inline bool same_mac(const __u8 *a, const __u8 *b)
{
	__u8 difference = 0;

	for (int i = 0; i < ETH_ALEN; i++)
		difference |= a[i] ^ b[i];
	return !difference;
}

static __always_inline void map_ipv4_bytes(struct address *address, const __u8 *bytes)
{
	map_ipv4(address, (__u32)bytes[0] << 24 | bytes[1] << 16 | bytes[2] << 8 | bytes[3]);
}

/* The ARP frame, after checking that it is about Ethernet and IPv4; NULL: it is not. */
static __always_inline struct arp_frame *arp_frame_of(struct __sk_buff *skb)
{
	struct arp_frame *frame = (void *)(long)skb->data;

	if ((void *)(frame + 1) > (void *)(long)skb->data_end)
		return NULL;
	if (frame->hardware != bpf_htons(1) || frame->protocol != bpf_htons(ETH_P_IP) ||
	    frame->hardware_length != ETH_ALEN || frame->protocol_length != 4)
		return NULL;
	return frame;
}

/* Turns a request into its reply: the target is at mac. */
static __always_inline void turn_arp(struct arp_frame *frame, const __u8 *mac)
{
	__u8 asked[4];

	copy_bytes(asked, frame->target_ip, sizeof(asked));
	copy_bytes(frame->target_mac, frame->sender_mac, ETH_ALEN);
	copy_bytes(frame->target_ip, frame->sender_ip, sizeof(asked));
	copy_bytes(frame->sender_mac, mac, ETH_ALEN);
	copy_bytes(frame->sender_ip, asked, sizeof(asked));
	copy_bytes(frame->destination_mac, frame->target_mac, ETH_ALEN);
	copy_bytes(frame->source_mac, mac, ETH_ALEN);
	frame->operation = bpf_htons(ARP_REPLY);
}

/* A pod asks for its gateway, with its own addresses; anything else it says in ARP is unwanted:
 * foreign claims are dropped as malformed, words about itself silently. */
static __noinline int answer_pod_arp(struct __sk_buff *skb, struct flow *flow,
				     const struct iface *iface)
{
	struct arp_frame *frame;
	struct address sender, target;

	bpf_skb_pull_data(skb, sizeof(struct arp_frame));
	frame = arp_frame_of(skb);
	if (!frame)
		return DROP(flow, INVALID_PACKET_DROPPED);
	map_ipv4_bytes(&sender, frame->sender_ip);
	map_ipv4_bytes(&target, frame->target_ip);
	if (!same_address(&sender, &iface->ipv4) ||
	    !same_mac(frame->sender_mac, iface->endpoint.mac))
		return DROP(flow, INVALID_PACKET_DROPPED);
	if (frame->operation != bpf_htons(ARP_REQUEST) ||
	    !same_address(&target, &flow->settings->router_ipv4))
		return silently(&flow->packet, DROP(flow, UNKNOWN_L3_TARGET_ADDRESS));
	turn_arp(frame, iface->endpoint.host_mac);
	flow->ifindex = skb->ifindex;
	return DECISION_ANSWERED;
}

/* What the host hears as the address of its neighbours on the node's own veth pair: from_host takes
 * whatever it is sent, so any address but the host's own will do. */
static __always_inline void neighbour_mac_for_host(__u8 *mac, const __u8 *host_mac)
{
	copy_bytes(mac, host_mac, ETH_ALEN);
	mac[ETH_ALEN - 1] ^= 1;
}

/* The host asks for a pod. */
static __noinline int answer_host_arp(struct __sk_buff *skb, struct flow *flow)
{
	struct arp_frame *frame;
	__u8 mac[ETH_ALEN];

	bpf_skb_pull_data(skb, sizeof(struct arp_frame));
	frame = arp_frame_of(skb);
	if (!frame)
		return DROP(flow, INVALID_PACKET_DROPPED);
	if (frame->operation != bpf_htons(ARP_REQUEST))
		return silently(&flow->packet, DROP(flow, UNKNOWN_L3_TARGET_ADDRESS));
	neighbour_mac_for_host(mac, frame->sender_mac);
	turn_arp(frame, mac);
	flow->ifindex = skb->ifindex;
	return DECISION_ANSWERED;
}

struct neighbour_message {
	__u8 type;
	__u8 code;
	__sum16 checksum;
	__be32 flags;
	struct in6_addr target;
};

struct neighbour_advertisement {
	struct neighbour_message message;
	__be16 option; /* type and length: the target's link address */
	__u8 mac[6];
};

struct ipv6_pseudo_header {
	struct address source;
	struct address destination;
	__be32 length;
	__be32 next_header;
};

struct ipv6_frame_header {
	__u8 macs[12];
	__be16 ethertype;
	struct ipv6hdr ip;
} __attribute__((packed));

static __always_inline __sum16 fold_checksum(__u32 sum)
{
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	return (__sum16)~sum;
}

static __always_inline __sum16 icmpv6_checksum(const struct address *source,
					       const struct address *destination,
					       struct neighbour_advertisement *body)
{
	struct ipv6_pseudo_header pseudo = {
	    .source = *source,
	    .destination = *destination,
	    .length = bpf_htonl(sizeof(*body)),
	    .next_header = bpf_htonl(IPPROTO_ICMPV6),
	};
	__s64 sum = bpf_csum_diff(NULL, 0, (__be32 *)&pseudo, sizeof(pseudo), 0);

	return fold_checksum(bpf_csum_diff(NULL, 0, (__be32 *)body, sizeof(*body), sum));
}

static __always_inline int write_advertisement(struct __sk_buff *skb, struct flow *flow,
					       const struct ipv6_frame_header *header,
					       const struct neighbour_advertisement *body)
{
	if (bpf_skb_change_tail(skb, sizeof(*header) + sizeof(*body), 0) ||
	    bpf_skb_store_bytes(skb, 0, header, sizeof(*header), 0) ||
	    bpf_skb_store_bytes(skb, sizeof(*header), body, sizeof(*body), 0))
		return DROP(flow, ERROR_WRITING_TO_PACKET);
	flow->ifindex = skb->ifindex;
	return DECISION_ANSWERED;
}

/* Replaces the solicitation in hand by the answer to it: target is at mac. */
static __noinline int advertise(struct __sk_buff *skb, struct flow *flow,
				const struct address *target, const __u8 *mac)
{
	struct ipv6_frame_header header = {.ethertype = bpf_htons(ETH_P_IPV6)};
	struct neighbour_advertisement body = {};

	copy_bytes(header.macs, flow->packet.macs + ETH_ALEN, ETH_ALEN);
	copy_bytes(header.macs + ETH_ALEN, mac, ETH_ALEN);
	header.ip.version = 6;
	header.ip.payload_len = bpf_htons(sizeof(body));
	header.ip.nexthdr = IPPROTO_ICMPV6;
	header.ip.hop_limit = NDP_HOP_LIMIT;
	copy_bytes(&header.ip.saddr, target, sizeof(*target));
	copy_bytes(&header.ip.daddr, &flow->packet.source, sizeof(*target));
	body.message.type = NEIGHBOUR_ADVERTISEMENT;
	body.message.flags = bpf_htonl(NDP_ROUTER | NDP_SOLICITED_OVERRIDE);
	copy_bytes(&body.message.target, target, sizeof(*target));
	body.option = bpf_htons(NDP_TARGET_LINK_OPTION);
	copy_bytes(body.mac, mac, ETH_ALEN);
	body.message.checksum = icmpv6_checksum(target, &flow->packet.source, &body);
	return write_advertisement(skb, flow, &header, &body);
}

/* The address a solicitation or advertisement is about. */
static __always_inline int neighbour_target(struct __sk_buff *skb, struct flow *flow,
					    struct address *target)
{
	__u32 offset = flow->packet.l4 + __builtin_offsetof(struct neighbour_message, target);

	if (flow->packet.ttl != NDP_HOP_LIMIT)
		return DROP(flow, INVALID_PACKET_DROPPED);
	if (bpf_skb_load_bytes(skb, offset, target, sizeof(*target)))
		return DROP(flow, CT_TRUNCATED_OR_INVALID_HEADER);
	return 0;
}

static __always_inline bool is_own_or_link_local(const struct address *address,
						 const struct iface *iface)
{
	return same_address(address, &iface->ipv6) || is_link_local(address);
}

static __always_inline int answer_pod_neighbour(struct __sk_buff *skb, struct flow *flow,
						const struct iface *iface)
{
	const struct packet *packet = &flow->packet;
	struct address target;
	int dropped = neighbour_target(skb, flow, &target);

	if (dropped)
		return dropped;
	if (is_own_or_link_local(&target, iface))
		return silently(&flow->packet, DROP(flow, UNKNOWN_L3_TARGET_ADDRESS));
	if (packet->icmp_type == NEIGHBOUR_ADVERTISEMENT || is_zero_address(&packet->source) ||
	    !same_address(&target, &flow->settings->router_ipv6))
		return DROP(flow, FORBIDDEN_ICMPV6_MESSAGE);
	return advertise(skb, flow, &target, iface->endpoint.host_mac);
}

/* Neighbour discovery and multicast listener messages of a pod. */
static __noinline int answer_pod_control(struct __sk_buff *skb, struct flow *flow,
					 const struct iface *iface)
{
	const struct packet *packet = &flow->packet;
	__u8 type = packet->icmp_type;

	if (type == ROUTER_ADVERTISEMENT || type == ROUTER_REDIRECT)
		return DROP(flow, FORBIDDEN_ICMPV6_MESSAGE);
	if (!is_zero_address(&packet->source) && !is_own_or_link_local(&packet->source, iface))
		return DROP(flow, INVALID_SOURCE_IP);
	if (type == NEIGHBOUR_SOLICITATION || type == NEIGHBOUR_ADVERTISEMENT)
		return answer_pod_neighbour(skb, flow, iface);
	return silently(&flow->packet, DROP(flow, UNKNOWN_L3_TARGET_ADDRESS));
}

/* The host asks on the node's own veth pair for whom it may reach: everybody is here. */
static __noinline int answer_host_control(struct __sk_buff *skb, struct flow *flow)
{
	struct address target;
	__u8 mac[ETH_ALEN];

	if (flow->packet.icmp_type != NEIGHBOUR_SOLICITATION ||
	    is_zero_address(&flow->packet.source))
		return silently(&flow->packet, DROP(flow, UNKNOWN_L3_TARGET_ADDRESS));
	if (neighbour_target(skb, flow, &target))
		return DROP(flow, INVALID_PACKET_DROPPED);
	neighbour_mac_for_host(mac, flow->packet.macs + ETH_ALEN);
	return advertise(skb, flow, &target, mac);
}

/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
#pragma once
/* Floor 7: one end of a packet becomes another address and port, checksums included. By helpers
 * only: direct writes would cost every packet of the device a copy of what it shares with its
 * socket. */
#include "parse.h"

#undef SOURCE_FILE
#define SOURCE_FILE FILE_NAT

#define IPV4_CHECKSUM_OFFSET 10
#define IPV4_SOURCE_OFFSET 12
#define IPV4_DESTINATION_OFFSET 16
#define IPV6_SOURCE_OFFSET 8
#define IPV6_DESTINATION_OFFSET 24
#define TCP_CHECKSUM_OFFSET 16
#define UDP_CHECKSUM_OFFSET 6
#define ICMP_CHECKSUM_OFFSET 2
#define ICMP_ID_OFFSET 4

/* One end, before and after. */
struct change {
	struct address from;
	struct address to;
	__be16 from_port;
	__be16 to_port;
	__u8 is_source;
};

static __always_inline __u32 checksum_offset(const struct packet *packet)
{
	switch (packet->protocol) {
	case IPPROTO_TCP:
		return packet->l4 + TCP_CHECKSUM_OFFSET;
	case IPPROTO_UDP:
		return packet->l4 + UDP_CHECKSUM_OFFSET;
	default:
		return packet->l4 + ICMP_CHECKSUM_OFFSET;
	}
}

/* Where the end's port is in the transport header; an ICMP flow has one identifier for both ends.
 */
static __always_inline __u32 port_offset(const struct packet *packet, bool is_source)
{
	if (packet->protocol == icmp_protocol(packet))
		return packet->l4 + ICMP_ID_OFFSET;
	return packet->l4 + (is_source ? 0 : 2);
}

/* The bytes of an address as they stand in a header: its last 4, or all 16. */
static __always_inline __be32 *header_bytes(struct address *address, __u8 family)
{
	return (__be32 *)address + (family == FAMILY_IPV4 ? 3 : 0);
}

/* What a 32-bit word of the packet adds to its checksum by becoming another; folded at the end. */
static __always_inline __u64 exchange(__u64 sum, __be32 from, __be32 to)
{
	return sum + to + (__u32)~from;
}

static __always_inline __u64 exchange_address(__u64 sum, const struct change *change, __u8 family)
{
	const __be32 *from = (const __be32 *)&change->from, *to = (const __be32 *)&change->to;

	if (family == FAMILY_IPV6) {
		sum = exchange(sum, from[0], to[0]);
		sum = exchange(sum, from[1], to[1]);
		sum = exchange(sum, from[2], to[2]);
	}
	return exchange(sum, from[3], to[3]);
}

static __always_inline __u32 fold_to_word(__u64 sum)
{
	sum = (sum & 0xffffffff) + (sum >> 32);
	return (sum & 0xffffffff) + (sum >> 32);
}

static __always_inline __u32 address_difference(const struct change *change, __u8 family)
{
	return fold_to_word(exchange_address(0, change, family));
}

/* The pseudo header's part of a transport checksum. */
static __always_inline int fix_pseudo_header(struct __sk_buff *skb, const struct packet *packet,
					     __u32 difference)
{
	__u64 flags = BPF_F_PSEUDO_HDR;

	/* Neither checksum covers addresses. */
	if (packet->protocol == IPPROTO_ICMP || packet->protocol == IPPROTO_SCTP)
		return 0;
	if (packet->protocol == IPPROTO_UDP)
		flags |= BPF_F_MARK_MANGLED_0;
	if (packet->family == FAMILY_IPV6 &&
	    !bpf_l4_csum_replace(skb, checksum_offset(packet), 0, difference, flags | BPF_F_IPV6))
		return 0;
	return bpf_l4_csum_replace(skb, checksum_offset(packet), 0, difference, flags);
}

static __always_inline int write_port(struct __sk_buff *skb, const struct packet *packet,
				      const struct change *change)
{
	__u64 flags = sizeof(change->to_port);

	if (change->from_port == change->to_port)
		return 0;
	if (packet->protocol == IPPROTO_UDP)
		flags |= BPF_F_MARK_MANGLED_0;
	return bpf_l4_csum_replace(skb, checksum_offset(packet), change->from_port, change->to_port,
				   flags)
		   ?: bpf_skb_store_bytes(skb, port_offset(packet, change->is_source),
					  &change->to_port, sizeof(change->to_port), 0);
}

/* l3: offset of the IP header, of the packet itself or of one that it quotes. */
static __always_inline int write_address(struct __sk_buff *skb, __u32 l3, __u8 family,
					 struct change *change)
{
	__u32 offset;

	if (family == FAMILY_IPV6) {
		offset = change->is_source ? IPV6_SOURCE_OFFSET : IPV6_DESTINATION_OFFSET;
		return bpf_skb_store_bytes(skb, l3 + offset, &change->to, 16, 0);
	}
	offset = change->is_source ? IPV4_SOURCE_OFFSET : IPV4_DESTINATION_OFFSET;
	return bpf_l3_csum_replace(skb, l3 + IPV4_CHECKSUM_OFFSET,
				   *header_bytes(&change->from, family),
				   *header_bytes(&change->to, family), 4)
		   ?: bpf_skb_store_bytes(skb, l3 + offset, header_bytes(&change->to, family), 4,
					  0);
}

/* Writes a change of the packet's own headers. Later fragments have no transport header. Global, as
 * parse_headers is, and for the same reason; it knows no flow. */
__noinline int rewrite_packet(struct __sk_buff *skb, struct packet *packet, struct change *change)
{
	if (!packet || !change)
		return -DROP_ERROR_WRITING_TO_PACKET;
	if (packet->fragment != FRAGMENT_LATER &&
	    (fix_pseudo_header(skb, packet, address_difference(change, packet->family)) ||
	     write_port(skb, packet, change)))
		return REFUSE(packet, ERROR_WHILE_CORRECTING_L4_CHECKSUM);
	if (write_address(skb, packet->l3, packet->family, change))
		return REFUSE(packet, ERROR_WRITING_TO_PACKET);
	return 0;
}

static __always_inline int write_addresses(struct __sk_buff *skb, const struct packet *packet,
					   const struct change *source,
					   const struct change *destination, __u32 difference)
{
	struct address both[2] = {source->to, destination->to};
	__be32 ipv4[2];

	if (packet->family == FAMILY_IPV6)
		return bpf_skb_store_bytes(skb, packet->l3 + IPV6_SOURCE_OFFSET, both, sizeof(both),
					   0);
	ipv4[0] = *header_bytes(&both[0], FAMILY_IPV4);
	ipv4[1] = *header_bytes(&both[1], FAMILY_IPV4);
	return bpf_l3_csum_replace(skb, packet->l3 + IPV4_CHECKSUM_OFFSET, 0, difference, 0)
		   ?: bpf_skb_store_bytes(skb, packet->l3 + IPV4_SOURCE_OFFSET, ipv4, sizeof(ipv4),
					  0);
}

static __always_inline int write_ports(struct __sk_buff *skb, const struct packet *packet,
				       const struct change *source,
				       const struct change *destination)
{
	__be16 from[2] = {source->from_port, destination->from_port};
	__be16 to[2] = {source->to_port, destination->to_port};
	__u64 flags = packet->protocol == IPPROTO_UDP ? BPF_F_MARK_MANGLED_0 : 0;
	__be32 before, after;

	copy_bytes(&before, from, sizeof(before));
	copy_bytes(&after, to, sizeof(after));
	if (before == after)
		return 0;
	return bpf_l4_csum_replace(skb, checksum_offset(packet), 0,
				   fold_to_word(exchange(0, before, after)), flags)
		   ?: bpf_skb_store_bytes(skb, packet->l4, &after, sizeof(after), 0);
}

/* Writes new ends of a packet with ports, both at once: each helper costs as much for two as for
 * one. Global, as rewrite_packet is. */
__noinline int rewrite_ends(struct __sk_buff *skb, struct packet *packet, struct change *source,
			    struct change *destination)
{
	__u32 difference;

	if (!packet || !source || !destination)
		return -DROP_ERROR_WRITING_TO_PACKET;
	difference = fold_to_word(exchange_address(exchange_address(0, source, packet->family),
						   destination, packet->family));
	if (packet->fragment != FRAGMENT_LATER && (fix_pseudo_header(skb, packet, difference) ||
						   write_ports(skb, packet, source, destination)))
		return REFUSE(packet, ERROR_WHILE_CORRECTING_L4_CHECKSUM);
	if (write_addresses(skb, packet, source, destination, difference))
		return REFUSE(packet, ERROR_WRITING_TO_PACKET);
	return 0;
}

static __always_inline int rewrite(struct __sk_buff *skb, struct flow *flow, struct change *change)
{
	return rewrite_packet(skb, &flow->packet, change);
}

/* A device without link headers: whoever else is sent the packet has them. */
static __always_inline int add_link_header(struct __sk_buff *skb, struct flow *flow)
{
	__be16 ethertype = skb->protocol;

	if (native_l2 || flow->packet.l3)
		return 0;
	if (bpf_skb_change_head(skb, ETH_HLEN, 0) ||
	    bpf_skb_store_bytes(skb, 2 * ETH_ALEN, &ethertype, sizeof(ethertype), 0))
		return DROP(flow, ERROR_WRITING_TO_PACKET);
	flow->packet.l3 += ETH_HLEN;
	flow->packet.l4 += ETH_HLEN;
	return 0;
}

/* Writes a change of the packet an ICMP error quotes. Inside IPv4 the quoted header's checksum
 * balances the address; the quoted transport checksum is left as it is, since nobody verifies it.
 * Global, as rewrite_packet is.
 */
__noinline int rewrite_quote(struct __sk_buff *skb, struct packet *packet,
			     const struct packet *quoted, struct change *change)
{
	__u32 checksum, quoted_l3;

	if (!packet || !quoted || !change)
		return -DROP_ERROR_WRITING_TO_PACKET;
	checksum = packet->l4 + ICMP_CHECKSUM_OFFSET;
	quoted_l3 = packet->l4 + sizeof(struct icmp_header);
	if (packet->family == FAMILY_IPV6 &&
	    bpf_l4_csum_replace(skb, checksum, 0, address_difference(change, packet->family), 0))
		return REFUSE(packet, ERROR_WHILE_CORRECTING_L4_CHECKSUM);
	if (bpf_l4_csum_replace(skb, checksum, change->from_port, change->to_port, 2) ||
	    bpf_skb_store_bytes(skb, port_offset(quoted, change->is_source), &change->to_port, 2,
				0) ||
	    write_address(skb, quoted_l3, packet->family, change))
		return REFUSE(packet, ERROR_WRITING_TO_PACKET);
	return 0;
}

static __always_inline int rewrite_quoted(struct __sk_buff *skb, struct flow *flow,
					  const struct packet *quoted, struct change *change)
{
	return rewrite_quote(skb, &flow->packet, quoted, change);
}

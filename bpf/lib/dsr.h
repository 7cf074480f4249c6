/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
#pragma once
/* Floor 9: backends that answer clients themselves. The node that was asked tells the backend's
 * node of the frontend, in an option of the IP header; that node remembers it for the answers. */
#include "answer.h"
#include "nat.h"
#include "service.h"

#undef SOURCE_FILE
#define SOURCE_FILE FILE_NODEPORT

#define DSR_OPTION_IPV4 0x9a
#define DSR_OPTION_IPV6 0x1b
#define IPV4_NEXT_OFFSET 20
#define IPV6_NEXT_OFFSET 40
#define IPV6_NEXT_HEADER_OFFSET 6

/* An option of IPv4 that only the first fragment has (RFC 791, 3.1). */
struct dsr_option4 {
	__u8 type;
	__u8 length;
	__be16 port;
	__be32 address;
};

/* A destination options header with one option, which who doesn't know it skips (RFC 8200, 4.2). */
struct dsr_option6 {
	__u8 next_header;
	__u8 length;
	__u8 type;
	__u8 option_length;
	struct address address;
	__be16 port;
	__u16 padding;
} __attribute__((packed));

/* A service's address and port, as a client knows them. */
struct told {
	struct address address;
	__be16 port;
};

static __always_inline __u32 option_size(__u8 family)
{
	return family == FAMILY_IPV4 ? sizeof(struct dsr_option4) : sizeof(struct dsr_option6);
}

/* A client's packet is wrapped for its backend, instead. */
static __always_inline bool wraps(void)
{
	return dsr_ipip && !tunnel_enabled;
}

/* By how much a packet grows that tells of its frontend. */
static __always_inline __u32 told_size(__u8 family)
{
	if (wraps())
		return family == FAMILY_IPV4 ? sizeof(struct iphdr) : sizeof(struct ipv6hdr);
	return option_size(family);
}

static __always_inline int write_option4(struct __sk_buff *skb, struct packet *packet,
					 const struct told *told)
{
	struct {
		struct iphdr ip;
		struct dsr_option4 option;
	} header = {};

	if (packet->l4 - packet->l3 != sizeof(header.ip) ||
	    bpf_skb_load_bytes(skb, packet->l3, &header.ip, sizeof(header.ip)) ||
	    bpf_skb_adjust_room(skb, sizeof(header.option), BPF_ADJ_ROOM_NET,
				BPF_F_ADJ_ROOM_FIXED_GSO))
		return -1;
	header.ip.ihl += sizeof(header.option) / 4;
	header.ip.tot_len = bpf_htons(packet->length + sizeof(header.option));
	header.ip.check = 0;
	header.option.type = DSR_OPTION_IPV4;
	header.option.length = sizeof(header.option);
	header.option.port = told->port;
	header.option.address = bpf_htonl(ipv4_of(&told->address));
	header.ip.check =
	    fold_checksum(bpf_csum_diff(NULL, 0, (__be32 *)&header, sizeof(header), 0));
	return bpf_skb_store_bytes(skb, packet->l3, &header, sizeof(header), 0);
}

static __always_inline int write_option6(struct __sk_buff *skb, struct packet *packet,
					 const struct told *told)
{
	struct {
		struct ipv6hdr ip;
		struct dsr_option6 option;
	} header = {};

	if (bpf_skb_load_bytes(skb, packet->l3, &header.ip, sizeof(header.ip)) ||
	    header.ip.nexthdr == IPPROTO_HOPOPTS ||
	    bpf_skb_adjust_room(skb, sizeof(header.option), BPF_ADJ_ROOM_NET,
				BPF_F_ADJ_ROOM_FIXED_GSO))
		return -1;
	header.option.next_header = header.ip.nexthdr;
	header.option.length = sizeof(header.option) / 8 - 1;
	header.option.type = DSR_OPTION_IPV6;
	header.option.option_length = sizeof(header.option) - 4;
	header.option.address = told->address;
	header.option.port = told->port;
	header.ip.nexthdr = IPPROTO_DSTOPTS;
	header.ip.payload_len =
	    bpf_htons(packet->length - sizeof(header.ip) + sizeof(header.option));
	return bpf_skb_store_bytes(skb, packet->l3, &header, sizeof(header), 0);
}

/* Puts the frontend into the packet, or into each datagram that is yet to be cut from it. What has
 * options of its own already can't tell it. */
static __noinline int write_option(struct __sk_buff *skb, struct flow *flow,
				   const struct told *told)
{
	struct packet *packet = &flow->packet;
	__u32 size = option_size(packet->family);

	if (packet->family == FAMILY_IPV4 ? write_option4(skb, packet, told)
					  : write_option6(skb, packet, told))
		return DROP(flow, UNSUPPORTED_PROTOCOL_FOR_DSR_ENCAP);
	packet->l4 += size;
	packet->length += size;
	return 0;
}

/* Whether there is room for an option of ours between the headers; nearly no packet has any. */
static __always_inline bool may_tell(const struct packet *packet)
{
	__u32 between = packet->l4 - packet->l3;

	return unlikely(between >= (packet->family == FAMILY_IPV4
					? IPV4_NEXT_OFFSET + sizeof(struct dsr_option4)
					: IPV6_NEXT_OFFSET + sizeof(struct dsr_option6)));
}

static __always_inline bool read_option4(struct __sk_buff *skb, const struct packet *packet,
					 struct told *told)
{
	struct dsr_option4 option;

	if (bpf_skb_load_bytes(skb, packet->l3 + IPV4_NEXT_OFFSET, &option, sizeof(option)) ||
	    option.type != DSR_OPTION_IPV4 || option.length != sizeof(option))
		return false;
	map_ipv4(&told->address, bpf_ntohl(option.address));
	told->port = option.port;
	return true;
}

static __always_inline bool read_option6(struct __sk_buff *skb, const struct packet *packet,
					 struct told *told)
{
	struct dsr_option6 option;
	__u8 next;

	if (bpf_skb_load_bytes(skb, packet->l3 + IPV6_NEXT_HEADER_OFFSET, &next, 1) ||
	    next != IPPROTO_DSTOPTS ||
	    bpf_skb_load_bytes(skb, packet->l3 + IPV6_NEXT_OFFSET, &option, sizeof(option)) ||
	    option.type != DSR_OPTION_IPV6 || option.option_length != sizeof(option) - 4)
		return false;
	told->address = option.address;
	told->port = option.port;
	return true;
}

/* Reads the frontend out of the packet; returns whether it tells one. */
static __noinline bool read_option(struct __sk_buff *skb, const struct packet *packet,
				   struct told *told)
{
	return packet->family == FAMILY_IPV4 ? read_option4(skb, packet, told)
					     : read_option6(skb, packet, told);
}

/* The service whose frontend it is, at whichever node; NULL: none that answers this way. Nobody can
 * make a pod speak as anything else than such a frontend. */
static __noinline struct service *service_of_told(const struct flow *flow, const struct told *told)
{
	const struct packet *packet = &flow->packet;
	struct service *service = lookup_service(&told->address, told->port, packet->protocol);
	__u32 needed = SERVICE_DSR | SERVICE_OUTSIDE;
	struct ipcache_entry *known;

	if (!service && is_node_port(flow->settings, told->port)) {
		known = lookup_ipcache(packet->family, &told->address);
		if (known && known->flags & IPCACHE_HOST_ADDRESS)
			service = lookup_node_port(packet->family, told->port, packet->protocol);
		/* Clients outside ask the other node: they are none of this entry. */
		needed = SERVICE_DSR;
	}
	return service && (service->flags & needed) == needed ? service : NULL;
}

/* The key of what is known of a frontend: the client's flow as the backend gets it. */
static __always_inline struct nat_key told_key(const struct packet *packet)
{
	struct nat_key key = {
	    .source = packet->source,
	    .destination = packet->destination,
	    .source_port = packet->source_port,
	    .destination_port = packet->destination_port,
	    .protocol = packet->protocol,
	    .way = NAT_DSR,
	};

	return key;
}

/* What answers are to leave as, of a packet that is as its backend gets it. A client that uses one
 * port for two frontends of one backend would hear the wrong one. */
static __noinline int remember_told(struct flow *flow, const struct told *told, __u32 service)
{
	struct nat_key key = told_key(&flow->packet);
	struct nat_entry *known = bpf_map_lookup_elem(&snat, &key);
	struct nat_entry entry = {
	    .address = told->address,
	    .port = told->port,
	    .created = flow->now,
	    .seen = flow->now,
	    .service = service,
	};

	if (known && same_address(&known->address, &told->address) && known->port == told->port) {
		known->seen = flow->now;
		return 0;
	}
	if (known && !is_opening(&flow->packet) && flow->now - known->seen < ct_lifetime_any)
		return DROP(flow, NAT_NOT_NEEDED);
	if (bpf_map_update_elem(&snat, &key, &entry, BPF_ANY))
		return DROP(flow, NO_MAPPING_FOR_NAT_MASQUERADE);
	return 0;
}

/* Believes what a packet to a backend of this node tells of its frontend. Returns 1: it tells one,
 * 0: it tells nothing, or a negative reason. */
static __noinline int hear_frontend(struct __sk_buff *skb, struct flow *flow)
{
	struct told told = {};
	struct service *service;

	if (!read_option(skb, &flow->packet, &told))
		return 0;
	service = service_of_told(flow, &told);
	if (!service)
		return DROP(flow, INVALID_IDENTITY);
	flow->destination.service = service->id;
	flow->translation |= TRANSLATION_DSR;
	return 1;
}

/* Remembers what was heard, of a packet that may pass: what is denied leaves nothing behind. */
static __noinline int keep_heard(struct __sk_buff *skb, struct flow *flow)
{
	struct told told = {};

	if (!read_option(skb, &flow->packet, &told))
		return 0;
	flow->now = coarse_seconds();
	return remember_told(flow, &told, flow->destination.service);
}

static __always_inline int keep_told(struct __sk_buff *skb, struct flow *flow)
{
	if (likely(!(flow->translation & TRANSLATION_DSR) || !flow->destination.service ||
		   !may_tell(&flow->packet)))
		return 0;
	return keep_heard(skb, flow);
}

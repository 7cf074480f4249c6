/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
#pragma once
/* Floor 12: services in the device's driver. Here go packets of flows that from_netdev has opened,
 * if their backend is on another node; all decisions were made there. Whatever is unusual or can't
 * go on at once is left to it as it came: nothing is dropped here, so nothing needs a reason. */
#include "finish.h"
#include "nodeport.h"

#undef SOURCE_FILE
#define SOURCE_FILE FILE_XDP

#define VXLAN_HAS_VNI 0x08000000
#define VXLAN_SOURCE_PORTS 0x8000
#define TRANSPORT_WORDS 9
#define IPV4_WORDS 3

/* RFC 7348, 5 */
struct vxlan_header {
	__be32 flags;
	__be32 vni; /* and 8 reserved bits */
};

/* What stands before a packet in the tunnel, over IPv4. */
struct tunnel_header {
	struct ethhdr ethernet;
	struct iphdr ip;
	struct udphdr udp;
	struct vxlan_header vxlan;
} __attribute__((packed));

/* A packet's way out of the device it came in by. */
struct driver_exit {
	__u8 macs[12]; /* destination, source */
};

/* What of a packet's headers is read and changed; all within its bounds. */
struct headers {
	union {
		struct iphdr *ipv4;
		struct ipv6hdr *ipv6;
	};
	union {
		struct tcphdr *tcp;
		struct udphdr *udp;
		__be32 *ports; /* source, destination */
	};
	__sum16 *checksum;
};

/* The headers of a packet that begins at an offset. Family and offset are known when this is
 * compiled: the verifier compares each access with what was asked here. */
static __always_inline bool find_headers(const struct xdp_md *ctx, __u32 start, __u8 family,
					 __u8 protocol, struct headers *found)
{
	void *end = (void *)(long)ctx->data_end;
	__u32 size = family == FAMILY_IPV4 ? sizeof(struct iphdr) : sizeof(struct ipv6hdr);

	found->ipv4 = (void *)(long)ctx->data + start + ETH_HLEN;
	found->ports = (void *)found->ipv4 + size;
	found->checksum = protocol == IPPROTO_TCP ? &found->tcp->check : &found->udp->check;
	/* Else the compiler asks for the protocol again where the checksum is used, and the
	 * verifier takes that for another one. */
	barrier_var(found->checksum);
	if (protocol == IPPROTO_TCP)
		return (void *)(found->tcp + 1) <= end;
	return (void *)(found->udp + 1) <= end && (void *)(found->checksum + 1) <= end;
}

static __always_inline bool read_ports(const struct headers *headers, struct packet *packet,
				       const void *end)
{
	packet->source_port = headers->udp->source;
	packet->destination_port = headers->udp->dest;
	if (packet->protocol != IPPROTO_TCP)
		return true;
	if ((void *)(headers->tcp + 1) > end)
		return false;
	packet->tcp_flags = ((__u8 *)headers->tcp)[13];
	return true;
}

static __always_inline bool read_ipv4(const struct xdp_md *ctx, __u32 start, struct packet *packet)
{
	void *end = (void *)(long)ctx->data_end;
	struct iphdr *ip = (void *)(long)ctx->data + start + ETH_HLEN;
	struct headers headers;

	if ((void *)(ip + 1) > end || ip->version != 4 || ip->ihl != 5 ||
	    ip->frag_off & bpf_htons(IPV4_MORE_FRAGMENTS | IPV4_OFFSET_MASK))
		return false;
	if (ip->protocol != IPPROTO_TCP && ip->protocol != IPPROTO_UDP)
		return false;
	packet->family = FAMILY_IPV4;
	packet->protocol = ip->protocol;
	packet->ttl = ip->ttl;
	packet->length = bpf_ntohs(ip->tot_len);
	map_ipv4(&packet->source, bpf_ntohl(ip->saddr));
	map_ipv4(&packet->destination, bpf_ntohl(ip->daddr));
	return find_headers(ctx, start, FAMILY_IPV4, packet->protocol, &headers) &&
	       read_ports(&headers, packet, end);
}

static __always_inline bool read_ipv6(const struct xdp_md *ctx, __u32 start, struct packet *packet)
{
	void *end = (void *)(long)ctx->data_end;
	struct ipv6hdr *ip = (void *)(long)ctx->data + start + ETH_HLEN;
	struct headers headers;

	if ((void *)(ip + 1) > end || ip->version != 6)
		return false;
	if (ip->nexthdr != IPPROTO_TCP && ip->nexthdr != IPPROTO_UDP)
		return false;
	packet->family = FAMILY_IPV6;
	packet->protocol = ip->nexthdr;
	packet->ttl = ip->hop_limit;
	packet->length = bpf_ntohs(ip->payload_len) + sizeof(*ip);
	copy_bytes(&packet->source, &ip->saddr, sizeof(packet->source));
	copy_bytes(&packet->destination, &ip->daddr, sizeof(packet->destination));
	if (is_mapped_ipv4(&packet->source) || is_mapped_ipv4(&packet->destination))
		return false;
	return find_headers(ctx, start, FAMILY_IPV6, packet->protocol, &headers) &&
	       read_ports(&headers, packet, end);
}

static __always_inline __u32 shortest(const struct packet *packet)
{
	__u32 ip = packet->family == FAMILY_IPV4 ? sizeof(struct iphdr) : sizeof(struct ipv6hdr);

	return ip +
	       (packet->protocol == IPPROTO_TCP ? sizeof(struct tcphdr) : sizeof(struct udphdr));
}

/* Reads what begins at an offset, if it is plain TCP or UDP: without IP options, extension headers,
 * tags or fragments, and as long as it says. */
static __always_inline bool read_plain(const struct xdp_md *ctx, __u32 start, struct packet *packet)
{
	struct ethhdr *ethernet = (void *)(long)ctx->data + start;
	__u64 there = (void *)(long)ctx->data_end - (void *)ethernet;
	bool is_plain = false;

	if ((void *)(ethernet + 1) > (void *)(long)ctx->data_end)
		return false;
	packet->l3 = start + ETH_HLEN;
	if (ethernet->h_proto == bpf_htons(ETH_P_IP) && ipv4_enabled)
		is_plain = read_ipv4(ctx, start, packet);
	else if (ethernet->h_proto == bpf_htons(ETH_P_IPV6) && ipv6_enabled)
		is_plain = read_ipv6(ctx, start, packet);
	return is_plain && packet->ttl > 1 && packet->length >= shortest(packet) &&
	       packet->length + ETH_HLEN <= there;
}

static __always_inline __u32 fold(__u32 sum)
{
	sum = (sum & 0xffff) + (sum >> 16);
	return (sum & 0xffff) + (sum >> 16);
}

/* Addresses and ports, in the order of the header, as far as there are. */
static __always_inline void collect(const struct headers *headers, __u8 family, __be32 *words)
{
	if (family == FAMILY_IPV4)
		copy_bytes(words, &headers->ipv4->saddr, 8);
	else
		copy_bytes(words, &headers->ipv6->saddr, 32);
	words[TRANSPORT_WORDS - 1] = *headers->ports;
}

/* Between local stacks packets travel with checksums that a device has yet to finish: so far they
 * are only the pseudo header's sum. No finished one can be told to be that, but for one in 65,536,
 * which takes the longer way. */
static __always_inline bool is_finished(const struct xdp_md *ctx, __u32 start, __u8 family,
					const struct packet *packet)
{
	__u32 header = family == FAMILY_IPV4 ? sizeof(struct iphdr) : sizeof(struct ipv6hdr);
	__be32 words[TRANSPORT_WORDS] = {};
	struct headers headers;

	if (!find_headers(ctx, start, family, packet->protocol, &headers))
		return false;
	collect(&headers, family, words);
	words[TRANSPORT_WORDS - 1] = bpf_htonl(packet->length - header + packet->protocol);
	return fold(bpf_csum_diff(NULL, 0, words, sizeof(words), 0)) != *headers.checksum;
}

/* Whether the packet's checksum can be corrected without looking at all of it. */
static __always_inline bool is_checksum_ready(const struct xdp_md *ctx, __u32 start,
					      const struct packet *packet)
{
	return packet->family == FAMILY_IPV4 ? is_finished(ctx, start, FAMILY_IPV4, packet)
					     : is_finished(ctx, start, FAMILY_IPV6, packet);
}

/* A checksum after what it covers has changed; a wrong one stays wrong. */
static __always_inline __sum16 corrected(__sum16 checksum, __be32 *before, __be32 *after,
					 __u32 size)
{
	return ~fold(bpf_csum_diff(before, size, after, size, (__u16)~checksum));
}

static __always_inline void correct_transport(__sum16 *checksum, __u8 protocol, __be32 *before,
					      __be32 *after)
{
	__sum16 sum = corrected(*checksum, before, after, TRANSPORT_WORDS * sizeof(*before));

	if (protocol != IPPROTO_UDP)
		*checksum = sum;
	else if (*checksum) /* else it is a datagram without one (RFC 768) */
		*checksum = sum ?: 0xffff;
}

/* What changes of a header of IPv4: the second half, without its checksum. */
static __always_inline void collect_ipv4(const struct iphdr *ip, __be32 *words)
{
	words[0] = bpf_htonl((__u32)ip->ttl << 24 | (__u32)ip->protocol << 16);
	words[1] = ip->saddr;
	words[2] = ip->daddr;
}

static __always_inline void write_ipv4(struct iphdr *ip, const struct outside_work *work)
{
	__be32 before[IPV4_WORDS], after[IPV4_WORDS];

	collect_ipv4(ip, before);
	ip->ttl--;
	ip->saddr = bpf_htonl(ipv4_of(&work->source.to));
	ip->daddr = bpf_htonl(ipv4_of(&work->destination.to));
	collect_ipv4(ip, after);
	ip->check = corrected(ip->check, before, after, sizeof(before));
}

static __always_inline void write_ipv6(struct ipv6hdr *ip, const struct outside_work *work)
{
	ip->hop_limit--;
	copy_bytes(&ip->saddr, &work->source.to, sizeof(ip->saddr));
	copy_bytes(&ip->daddr, &work->destination.to, sizeof(ip->daddr));
}

static __always_inline bool write_family(struct xdp_md *ctx, __u8 family,
					 const struct packet *packet,
					 const struct outside_work *work)
{
	__be32 before[TRANSPORT_WORDS] = {}, after[TRANSPORT_WORDS] = {};
	struct headers headers;

	if (!find_headers(ctx, 0, family, packet->protocol, &headers))
		return false;
	collect(&headers, family, before);
	if (family == FAMILY_IPV4)
		write_ipv4(headers.ipv4, work);
	else
		write_ipv6(headers.ipv6, work);
	headers.udp->source = work->source.to_port;
	headers.udp->dest = work->destination.to_port;
	collect(&headers, family, after);
	correct_transport(headers.checksum, packet->protocol, before, after);
	return true;
}

/* The packet at the start of the frame gets other ends, has made one more hop, and leaves. */
static __noinline bool write_frame_ends(struct xdp_md *ctx, const struct flow *flow,
					const struct outside_work *work)
{
	return flow->packet.family == FAMILY_IPV4
		   ? write_family(ctx, FAMILY_IPV4, &flow->packet, work)
		   : write_family(ctx, FAMILY_IPV6, &flow->packet, work);
}

/* The next hop from source to destination, if it is known and behind the device the packet came in
 * by. Other devices may not take packets from a driver. */
static __noinline bool find_exit(struct xdp_md *ctx, const struct address *source,
				 const struct address *destination, __u32 length,
				 struct driver_exit *exit)
{
	struct bpf_fib_lookup fib = {.ifindex = ctx->ingress_ifindex, .tot_len = length};

	if (is_mapped_ipv4(destination)) {
		fib.family = AF_INET;
		fib.ipv4_src = bpf_htonl(ipv4_of(source));
		fib.ipv4_dst = bpf_htonl(ipv4_of(destination));
	} else {
		fib.family = AF_INET6;
		copy_bytes(fib.ipv6_src, source, sizeof(fib.ipv6_src));
		copy_bytes(fib.ipv6_dst, destination, sizeof(fib.ipv6_dst));
	}
	if (bpf_fib_lookup(ctx, &fib, sizeof(fib), 0) != BPF_FIB_LKUP_RET_SUCCESS ||
	    fib.ifindex != ctx->ingress_ifindex)
		return false;
	copy_bytes(exit->macs, fib.dmac, ETH_ALEN);
	copy_bytes(exit->macs + ETH_ALEN, fib.smac, ETH_ALEN);
	return true;
}

static __always_inline int send_back(struct xdp_md *ctx, const struct flow *flow,
				     const struct outside_work *work,
				     const struct driver_exit *exit)
{
	struct ethhdr *ethernet;

	if (!write_frame_ends(ctx, flow, work))
		return XDP_ABORTED;
	ethernet = (void *)(long)ctx->data;
	if ((void *)(ethernet + 1) > (void *)(long)ctx->data_end)
		return XDP_ABORTED;
	copy_bytes(ethernet, exit->macs, sizeof(exit->macs));
	count(flow, FORWARDED, flow->packet.length + ETH_HLEN);
	return XDP_TX;
}

/* The tunnel's headers before the packet, which is ready. Its flows take different ways through the
 * network by the source port. */
static __noinline int write_tunnel(struct xdp_md *ctx, const struct flow *flow,
				   const struct driver_exit *exit, __u32 hash)
{
	const struct node_settings *settings = flow->settings;
	struct tunnel_header *tunnel;
	__u32 length = flow->packet.length + sizeof(*tunnel);

	if (!settings || bpf_xdp_adjust_head(ctx, -(int)sizeof(*tunnel)))
		return XDP_ABORTED;
	tunnel = (void *)(long)ctx->data;
	if ((void *)(tunnel + 1) > (void *)(long)ctx->data_end)
		return XDP_ABORTED;
	__builtin_memset(tunnel, 0, sizeof(*tunnel));
	copy_bytes(tunnel, exit->macs, sizeof(exit->macs));
	tunnel->ethernet.h_proto = bpf_htons(ETH_P_IP);
	tunnel->ip.version = 4;
	tunnel->ip.ihl = 5;
	tunnel->ip.ttl = TUNNEL_TTL;
	tunnel->ip.protocol = IPPROTO_UDP;
	tunnel->ip.tot_len = bpf_htons(length);
	tunnel->ip.saddr = bpf_htonl(ipv4_of(&settings->ipv4));
	tunnel->ip.daddr = bpf_htonl(ipv4_of(&flow->next_hop));
	tunnel->ip.check =
	    ~fold(bpf_csum_diff(NULL, 0, (void *)tunnel + ETH_HLEN, sizeof(tunnel->ip), 0));
	tunnel->udp.source = bpf_htons(VXLAN_SOURCE_PORTS | (hash & (VXLAN_SOURCE_PORTS - 1)));
	tunnel->udp.dest = bpf_htons(settings->tunnel_port);
	tunnel->udp.len = bpf_htons(length - sizeof(tunnel->ip));
	tunnel->vxlan.flags = bpf_htonl(VXLAN_HAS_VNI);
	tunnel->vxlan.vni = bpf_htonl(flow->vni << 8);
	return XDP_TX;
}

/* Into the tunnel to the node behind next_hop, as encapsulate would. */
static __noinline int send_through_tunnel(struct xdp_md *ctx, struct flow *flow,
					  const struct outside_work *work)
{
	const struct packet *packet = &flow->packet;
	__u32 length = packet->length + sizeof(struct tunnel_header);
	struct driver_exit exit;
	int result;

	if (!is_mapped_ipv4(&flow->next_hop) ||
	    !find_exit(ctx, &flow->settings->ipv4, &flow->next_hop, length, &exit))
		return XDP_PASS;
	flow->source.identity =
	    identity_of(lookup_ipcache(packet->family, &packet->source), packet->family);
	flow->vni = travelling_identity(flow->source.identity, packet->family);
	result = send_back(ctx, flow, work, &exit);
	return result == XDP_TX
		   ? write_tunnel(ctx, flow, &exit, hash_flow(flow->settings->hash_seed, packet))
		   : result;
}

/* The backend of a known flow, into work. Returns whether the client has one. */
static __noinline bool recall_outside(struct flow *flow, const struct service *service,
				      struct outside_work *work)
{
	work->is_fresh = false;
	work->client.address = flow->packet.source;
	work->client.scope = SERVICE_EXTERNAL;
	if (!(service->flags & SERVICE_OUTSIDE) || !is_source_allowed(service, &work->client) ||
	    !recall_flow(flow, service, work))
		return false;
	work->destination.to = work->flow.backend_address;
	work->destination.to_port = work->flow.backend_port;
	return true;
}

/* Whom the backend of another node sees, into work: this node, or the client if the backend answers
 * it and has been told as what. Returns whether that is known. */
static __always_inline bool plan_source(struct flow *flow, struct outside_work *work,
					const struct way *way)
{
	const struct packet *packet = &flow->packet;

	if (work->flow.flags & SERVICE_FLOW_SNAT)
		return !find_own_end(flow, work, own_end(flow, way->tunnelled));
	if (!answers_itself(work, way->known) || must_tell(packet, work) ||
	    lookup_endpoint(&work->flow.backend_address))
		return false;
	work->source.to = packet->source;
	work->source.to_port = packet->source_port;
	return true;
}

static __noinline int pass_to_backend(struct xdp_md *ctx, struct flow *flow,
				      const struct service *service, struct outside_work *work)
{
	struct driver_exit exit;
	struct way way;

	if (!recall_outside(flow, service, work))
		return XDP_PASS;
	way = way_to(flow, &work->flow.backend_address);
	if (!plan_source(flow, work, &way))
		return XDP_PASS;
	flow->direction = DIRECTION_EGRESS;
	if (way.tunnelled) {
		flow->next_hop = way.known->tunnel_endpoint;
		return send_through_tunnel(ctx, flow, work);
	}
	if (!find_exit(ctx, &work->source.to, &work->destination.to, flow->packet.length, &exit))
		return XDP_PASS;
	return send_back(ctx, flow, work, &exit);
}

/* An answer of a backend of another node, as it came or behind start bytes of a tunnel. */
static __always_inline int pass_to_client(struct xdp_md *ctx, struct flow *flow,
					  struct outside_work *work, __u32 start)
{
	struct driver_exit exit;

	if (!find_client(flow, work) ||
	    !find_exit(ctx, &work->source.to, &work->destination.to, flow->packet.length, &exit))
		return XDP_PASS;
	if (start && bpf_xdp_adjust_head(ctx, start))
		return XDP_PASS;
	flow->direction = DIRECTION_EGRESS;
	return send_back(ctx, flow, work, &exit);
}

/* A packet of the overlay, and a sender whom that node may speak for: what from_overlay asks. */
static __always_inline bool is_sent_by(const struct packet *packet, const struct address *node)
{
	struct ipcache_entry *known = lookup_ipcache(packet->family, &packet->source);

	return known && known->flags & IPCACHE_TUNNEL &&
	       same_address(&known->tunnel_endpoint, node) && bpf_map_lookup_elem(&nodes, node);
}

static __always_inline bool is_tunnelled(const struct flow *flow)
{
	const struct packet *packet = &flow->packet;

	return tunnel_enabled && packet->protocol == IPPROTO_UDP &&
	       packet->destination_port == bpf_htons(flow->settings->tunnel_port) &&
	       same_address(&packet->destination, &flow->settings->ipv4);
}

/* What comes through the tunnel may be an answer to a client outside. */
static __noinline int look_into_tunnel(struct xdp_md *ctx, struct flow *flow,
				       struct outside_work *work)
{
	const __u32 start = sizeof(struct tunnel_header);
	struct tunnel_header *tunnel = (void *)(long)ctx->data;
	struct address node = flow->packet.source;

	if ((void *)(tunnel + 1) > (void *)(long)ctx->data_end ||
	    tunnel->vxlan.flags != bpf_htonl(VXLAN_HAS_VNI))
		return XDP_PASS;
	if (!read_plain(ctx, start, &flow->packet) ||
	    !same_address(&flow->packet.destination, own_end(flow, true)) ||
	    !is_sent_by(&flow->packet, &node) || !is_checksum_ready(ctx, start, &flow->packet))
		return XDP_PASS;
	return pass_to_client(ctx, flow, work, start);
}

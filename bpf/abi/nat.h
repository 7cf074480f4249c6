/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
#pragma once
#include "types.h"

/* snat: translations of both ways. The forward key is the flow as the pod sent it, the reverse key
 * the flow as the world answers it; each value is the other end of the rewrite. */
enum nat_way {
	NAT_FORWARD = 1,
	NAT_REVERSE = 2,
	NAT_DSR =
	    3, /* what the replies of a backend here leave as: told by the node the client asked */
};

struct nat_key {
	struct address source;
	struct address destination;
	__be16 source_port; /* ICMP: the identifier at the pod's end, the request's type at the
			       other */
	__be16 destination_port;
	__u8 protocol;
	__u8 way; /* enum nat_way */
	__u16 cluster;
};

struct nat_entry {
	struct address address; /* what the source (forward) or destination (reverse) becomes */
	__be16 port;
	__u16 endpoint; /* owner: for quotas and the list of heaviest users */
	__u32 created;	/* coarse seconds */
	__u32 seen;
	__u32 service; /* of a client's flow towards a backend of another node; 0: masquerade */
};

/* fragments: what only the first fragment says, for those that follow. */
struct fragment_key {
	struct address source;
	struct address destination;
	__be32 id;
	__u32 scope;   /* ifindex, or VNI in the overlay: two senders may share a tuple */
	__u8 protocol; /* 0 in IPv6: its fragments may name an extension header */
	__u8 reserved[7];
};

struct fragment_entry {
	__be16 source_port;
	__be16 destination_port;
	__u32 seen;    /* coarse seconds */
	__u8 protocol; /* behind all extension headers */
	__u8 kind;     /* ICMP: request or reply */
	__u8 icmp_type;
	__u8 icmp_code;
};

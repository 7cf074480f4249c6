/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
#pragma once
#include "types.h"

enum endpoint_flags {
	ENDPOINT_HOST = 1 << 0, /* an address of this node itself: deliver to the stack */
	ENDPOINT_NO_SOURCE_CHECK = 1 << 1, /* the pod may send from foreign addresses */
};

/* endpoints: address -> who lives there, on this node. */
struct endpoint {
	__u32 ifindex; /* host-side interface; 0 for the host itself */
	__u32 identity;
	__u16 id;	  /* endpoint id, unique on the node */
	__u16 subject;	  /* index into policy_active */
	__u32 flags;	  /* enum endpoint_flags */
	__u8 mac[6];	  /* of the interface inside the pod */
	__u8 host_mac[6]; /* of the host-side interface */
	__u32 reserved;
};

/* ifaces: ifindex of the host-side interface -> the sender, with the addresses it may use. */
struct iface {
	struct endpoint endpoint;
	struct address ipv4; /* zero: the pod has none */
	struct address ipv6;
};

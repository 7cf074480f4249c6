/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
#pragma once
#include "types.h"

/* Key of both ipcache maps. prefixlen counts the bits behind it: 32 for family and cluster, then
 * those of the 128-bit address (an IPv4 /24 is 32 + 96 + 24). In the hash of host entries it is
 * always IPCACHE_HOST_PREFIX. */
struct ipcache_key {
	__u32 prefixlen;
	__u8 family; /* enum family: ::/0 must never match IPv4 */
	__u8 reserved;
	__u16 cluster;
	struct address address;
};

enum ipcache_bits {
	IPCACHE_FIXED_BITS = 32,
	IPCACHE_HOST_PREFIX = 160,
};

enum ipcache_flags {
	IPCACHE_TUNNEL = 1 << 0,       /* reached through tunnel_endpoint */
	IPCACHE_HOST_ADDRESS = 1 << 1, /* an address of a node (local or remote), not of a pod */
	IPCACHE_UNDERLAY = 1 << 2,     /* a node's underlay address: carries the tunnels */
};

struct ipcache_entry {
	__u32 identity;
	__u32 flags; /* enum ipcache_flags */
	struct address tunnel_endpoint;
};

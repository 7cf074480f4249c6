/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
#pragma once
#include "types.h"

/* Reserved security identities; the numbers are the ones Cilium's users know. */
enum reserved_identity {
	IDENTITY_UNKNOWN = 0,
	IDENTITY_HOST = 1,
	IDENTITY_WORLD = 2,
	IDENTITY_UNMANAGED = 3,
	IDENTITY_HEALTH = 4,
	IDENTITY_INIT = 5,
	IDENTITY_REMOTE_NODE = 6,
	IDENTITY_KUBE_APISERVER = 7,
	IDENTITY_INGRESS = 8,
	IDENTITY_WORLD_IPV4 = 9,
	IDENTITY_WORLD_IPV6 = 10,
	IDENTITY_CLUSTER_FIRST = 256,
	IDENTITY_CLUSTER_LAST = 65535,
	IDENTITY_LOCAL_CIDR = 0x1000000, /* 1 << 24: node-local CIDR identities */
	IDENTITY_LOCAL_NODE = 0x2000000, /* 2 << 24: node-local remote-node identities */
};

/* The packet mark: identity in the upper bits as Cilium users expect, the kind in MARK_KIND_MASK.
 */
enum packet_mark {
	MARK_KIND_MASK = 0x0F00,
	MARK_KIND_HOST = 0x0C00,
	MARK_KIND_IDENTITY = 0x0F00,
	MARK_KIND_SERVICE = 0x0300, /* translated here for a client outside: not the host's own */
	MARK_KIND_PROXY_INGRESS = 0x0A00,
	MARK_KIND_PROXY_EGRESS = 0x0B00,
};

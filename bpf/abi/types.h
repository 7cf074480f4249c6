/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
#pragma once
/* The scalar types of the layouts. Types come from the UAPI headers only: __be16/__be32/__be64 keep
 * their names in BTF, so the reader of the layouts knows which fields are in network byte order. */
#include <linux/types.h>

/* An address of either family. IPv4 is v4-mapped (::ffff:a.b.c.d), so one path serves both. */
struct address {
	__be64 hi;
	__be64 lo;
};

enum family {
	FAMILY_IPV4 = 4,
	FAMILY_IPV6 = 6,
};

/* Which side of a policy judged: the sender's egress or the receiver's ingress policy. */
enum direction {
	DIRECTION_UNKNOWN = 0,
	DIRECTION_INGRESS = 1,
	DIRECTION_EGRESS = 2,
};

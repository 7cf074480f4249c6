/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
#pragma once
#include "types.h"

/* Legs that may share a 5-tuple are kept apart by zone. */
enum ct_zone {
	CT_ZONE_POD = 0,
	CT_ZONE_SERVICE = 1,
	CT_ZONE_PROXY = 2,
	CT_ZONE_HOST = 3,
	CT_ZONE_NAT = 4,
};

enum ct_icmp {
	CT_ICMP_TYPE_MASK = 0xff,
	CT_ICMP_ASKED_BY_HIGH = 0x100,
};

/* The canonical tuple: the lower address first (as big-endian numbers), then the lower port. ICMP
 * flows carry the identifier in low_port and the normalised request type in high_port, with
 * CT_ICMP_ASKED_BY_HIGH added when the higher address asks: both ends may ping with one identifier.
 * Protocols without ports have 0 in both. */
struct ct_key {
	struct address low;
	struct address high;
	__be16 low_port;
	__be16 high_port;
	__u8 protocol;
	__u8 zone; /* enum ct_zone */
	__u16 cluster;
};

/* What one side's policy said. judged is read and written as one word:
 * bit 63: denied; bits 62..32: policy revision; bits 31..0: peer identity. 0: never judged here. */
struct ct_side {
	__u64 judged;
	__u32 cookie;
	__u16 endpoint; /* endpoint id of the side that judged */
	__u8 match;	/* enum policy_match */
	__u8 flags;	/* enum policy_flags */
};

enum ct_side_index {
	CT_EGRESS = 0,	/* by the initiator's egress policy */
	CT_INGRESS = 1, /* by the responder's ingress policy */
};

enum ct_flags {
	CT_INITIATOR_HIGH = 1 << 0, /* the flow was opened by the higher half of the tuple */
	CT_SEEN_REPLY = 1 << 1,
	CT_CLOSING_ORIGINAL = 1 << 2, /* FIN or SHUTDOWN seen from the initiator */
	CT_CLOSING_REPLY = 1 << 3,    /* the same from the responder */
	CT_CLOSED = 1 << 4,	      /* RST or ABORT, or both closed */
	CT_NODE_PORT = 1 << 5,
	CT_PROXY = 1 << 6,
	CT_TRANSLATED =
	    1 << 7, /* replies leave with the frontend's address in place of the backend's */
	CT_SERVICE_DSR =
	    1 << 8, /* the same, for a frontend of another node: frontend_* of nat_entry */
};

/* Index 0 of the pairs is the original direction, 1 the reply. Times are seconds of
 * CLOCK_MONOTONIC (bpf_ktime_get_coarse_ns / 1e9). */
struct ct_entry {
	struct ct_side side[2]; /* enum ct_side_index */
	__u64 packets[2];
	__u64 bytes[2];
	__u32 created;
	__u32 expires;
	__u32 reported[2];	/* when this direction was last reported */
	__u32 flags;		/* enum ct_flags */
	__u32 source_identity;	/* of the initiator, for reports */
	__u8 flags_reported[2]; /* TCP flags reported so far, per direction */
	__u16 owner;		/* endpoint whose quota pays */
	__be16 proxy_port;
	__u16 padding;
	__u8 prefix[2];	  /* per side: bits of protocol and port in the key of the deciding entry */
	__u8 any_peer[2]; /* per side: the entry for any peer decided */
	__u32 service;	  /* frontend the initiator asked for, by what it knows or told; 0: none */
};

/* ct_quota[endpoint id]: how many live entries an endpoint has is the difference. Each has one kind
 * of writer, so that neither loses what the other counts. */
struct ct_quota {
	__u64 opened;	      /* by the programs: entries made, less those they replaced */
	__u64 closed;	      /* by the agent: entries it removed */
	__u64 service_opened; /* the same of service_flows, which clients of services pay for */
	__u64 service_closed;
};

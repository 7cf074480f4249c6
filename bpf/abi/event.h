/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
#pragma once
#include "types.h"

enum event_kind {
	EVENT_DROP = 1,	   /* a packet ended here */
	EVENT_TRACE = 2,   /* a packet was forwarded */
	EVENT_VERDICT = 3, /* a policy let a flow begin, or would have denied it */
	EVENT_SOCKET = 4,  /* a socket's destination was translated */
};

/* Hubble's TraceObservationPoint numbers. */
enum observation_point {
	POINT_UNKNOWN = 0,
	POINT_TO_PROXY = 1,
	POINT_TO_HOST = 2,
	POINT_TO_STACK = 3,
	POINT_TO_OVERLAY = 4,
	POINT_FROM_ENDPOINT = 5,
	POINT_FROM_PROXY = 6,
	POINT_FROM_HOST = 7,
	POINT_FROM_STACK = 8,
	POINT_FROM_OVERLAY = 9,
	POINT_FROM_NETWORK = 10,
	POINT_TO_NETWORK = 11,
	POINT_TO_ENDPOINT = 101,
};

/* Hubble's Verdict numbers. */
enum event_verdict {
	VERDICT_UNKNOWN = 0,
	VERDICT_FORWARDED = 1,
	VERDICT_DROPPED = 2,
	VERDICT_AUDIT = 4,
	VERDICT_REDIRECTED = 5,
	VERDICT_TRACED = 6,	/* a socket's address, before it is translated */
	VERDICT_TRANSLATED = 7, /* the same, after */
};

/* Hubble's TraceReason numbers. */
enum connection_state {
	CONNECTION_UNKNOWN = 0,
	CONNECTION_NEW = 1,
	CONNECTION_ESTABLISHED = 2,
	CONNECTION_REPLY = 3,
	CONNECTION_RELATED = 4,
};

/* Hubble's SocketTranslationPoint numbers: point of an event of kind EVENT_SOCKET. */
enum translation_point {
	TRANSLATION_UNKNOWN = 0,
	TRANSLATION_PRE_FORWARD = 1,
	TRANSLATION_POST_FORWARD = 2,
	TRANSLATION_PRE_REVERSE = 3,
	TRANSLATION_POST_REVERSE = 4,
};

/* Source files that may appear in an event, for "file and line of a drop". */
enum source_file {
	FILE_UNKNOWN = 0,
	FILE_LXC = 1,
	FILE_HOST = 2,
	FILE_OVERLAY = 3,
	FILE_NETDEV = 4,
	FILE_PARSE = 5,
	FILE_POLICY = 6,
	FILE_CONNTRACK = 7,
	FILE_NAT = 8,
	FILE_ENCAP = 9,
	FILE_FIB = 10,
	FILE_L2 = 11,
	FILE_IDENTITY = 12,
	FILE_FRAGMENT = 13,
	FILE_DELIVER = 14,
	FILE_SERVICE = 15,
	FILE_BALANCE = 16,
	FILE_NODEPORT = 17,
	FILE_SOCKET = 18,
	FILE_XDP = 19,
};

enum event_flags {
	EVENT_IS_REPLY = 1 << 0,
	EVENT_IS_IPV6 = 1 << 1,
	EVENT_ENCRYPTED = 1 << 2,
	EVENT_FIRST_REPORT = 1 << 3, /* opens a flow */
	EVENT_LAST_REPORT = 1 << 4,  /* closes a flow */
	EVENT_JUDGED_APART = 1 << 5, /* events of their own tell what was judged */
	/* In a record: it stands for that side's verdict, too, which comes before the trace. */
	EVENT_WITH_EGRESS_VERDICT = 1 << 6,
	EVENT_WITH_INGRESS_VERDICT = 1 << 7,
};

/* One fixed record for everything the data path says: no fields come later without a new layout
 * version. Addresses and ports are as on the wire; times are bpf_ktime_get_ns.
 *
 * Verdicts that let a flow begin differ from the trace of its first packet in kind and direction
 * alone. So the record of such a trace may stand for them, too: its flags say for which. Whoever
 * reads the ring makes events of it: egress verdict, ingress verdict, trace, numbered from
 * sequence on. */
struct event {
	__u64 time;
	__u64 sequence; /* per CPU and ring; a gap is a loss */
	struct address source;
	struct address destination;
	struct address original_source; /* before translation; zero: not translated */
	struct address original_destination;
	struct address tunnel; /* the other node of an overlay packet */
	__u64 socket_cookie;
	__u64 cgroup;
	__u32 egress_cookie;
	__u32 ingress_cookie;
	__u32 source_identity;
	__u32 destination_identity;
	__u16 source_endpoint;
	__u16 destination_endpoint;
	__be16 source_port;
	__be16 destination_port;
	__be16 original_source_port;
	__be16 original_destination_port;
	__be16 proxy_port;
	__u16 line;
	__u32 length;
	__u32 ifindex;
	__u32 vni;
	__u32 suppressed; /* events like this one that the token bucket held back before it */
	__u16 cpu;
	__u16 vlan;
	__u8 source_mac[6];
	__u8 destination_mac[6];
	__u8 kind;    /* enum event_kind */
	__u8 point;   /* enum observation_point */
	__u8 verdict; /* enum event_verdict */
	__u8 reason;  /* enum drop_reason; of an audit verdict: what was not enforced */
	__u8 file;    /* enum source_file */
	__u8 protocol;
	__u8 icmp_type;
	__u8 icmp_code;
	__u8 tcp_flags;
	__u8 direction;	   /* enum direction: see struct happening and direction_of_trace */
	__u8 state;	   /* enum connection_state */
	__u8 flags;	   /* enum event_flags */
	__u8 egress_match; /* enum policy_match */
	__u8 ingress_match;
	__u8 auth;
	__u8 ring;     /* enum event_ring */
	__u32 service; /* frontend the flow's initiator asked for; 0: none */
};

/* Drops, and what would have been dropped, travel in their own ring, which traces can't fill. */
enum event_ring {
	RING_PRIORITY = 0,
	RING_NORMAL = 1,
};

/* event_state, one per CPU: taken by fetch-add before the reserve, so that a failed reserve is a
 * gap. */
struct event_state {
	__u64 sequence[2]; /* enum event_ring */
	__u64 lost[2];
};

/* counters, per CPU: index = reason * 4 + direction. */
struct counter {
	__u64 packets;
	__u64 bytes;
};

/* drop_buckets: one token bucket per endpoint and reason. */
struct bucket_key {
	__u16 endpoint;
	__u16 reason; /* enum drop_reason or enum bucket_use */
};

/* Buckets for something else than reports of drops. */
enum bucket_use {
	BUCKET_DENY_RESPONSE = 1 << 8,
	BUCKET_EVENTS = 1 << 9, /* all events of a ring, which stands in place of the endpoint */
};

struct bucket {
	__u64 filled; /* ktime of the last refill */
	__u32 tokens;
	__u32 suppressed;
};

/* suppressed: what the buckets held back, by rule. */
struct suppressed_key {
	__u32 cookie;
	__u16 endpoint;
	__u16 reason; /* enum drop_reason, or BUCKET_EVENTS with an enum event_kind */
};

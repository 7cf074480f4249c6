/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
#pragma once
#include "types.h"

enum decision_action {
	DECISION_NONE = 0,
	DECISION_DROP = 1,
	DECISION_STACK = 2,    /* up the host's stack */
	DECISION_LOCAL = 3,    /* into a local pod */
	DECISION_TUNNEL = 4,   /* encapsulated */
	DECISION_NETWORK = 5,  /* out of a native device */
	DECISION_HOST = 6,     /* to the node itself */
	DECISION_ANSWERED = 7, /* answered here (ARP, neighbour discovery) */
};

/* decision[0], per CPU: what the last program run on this CPU did. BPF_PROG_TEST_RUN shows neither
 * the redirect target nor the tunnel key; written only when the constant record_decisions is set.
 */
struct decision {
	__u32 action; /* enum decision_action */
	__u32 reason; /* enum drop_reason */
	__u32 ifindex;
	__u32 vni;
	struct address tunnel;
	__u32 source_identity;
	__u32 destination_identity;
	__u32 egress_cookie;
	__u32 ingress_cookie;
	__u32 state; /* enum connection_state */
	__u32 line;
};

/* policy_cases: input and answer of the batch program that judges many (subject, peer, protocol,
 * port) in one run. */
struct policy_case {
	__u32 subject;
	__u32 peer;
	__u8 direction;
	__u8 protocol;
	__be16 port;
	__u8 verdict;
	__u8 match;
	__u16 reason;
	__u32 cookie;
	__u32 precedence;
};

/* Context of the batch program: which of policy_cases to judge. */
struct policy_batch {
	__u32 first;
	__u32 count;
};

/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
#pragma once
#include "types.h"

/* policy_active[subject]: one word, so that a rule change is one 8-byte store.
 * revision is never 0 once a subject is live: a zero word means "no policy known", which denies. */
struct policy_active {
	__u32 slot;	/* index into policies */
	__u32 revision; /* node-wide, never reused; 31 bits, the top bit belongs to conntrack */
};

/* Key of an inner map. prefixlen counts the bits behind it: peer and direction are always whole
 * (POLICY_FIXED_BITS), then 8 bits of protocol and up to 16 of port, most significant first. */
struct policy_key {
	__u32 prefixlen;
	__u32 peer;	/* identity; 0 is any peer */
	__u8 direction; /* enum direction */
	__u8 protocol;
	__be16 port; /* destination port; for ICMP the type */
};

enum policy_bits {
	POLICY_FIXED_BITS = 40,
	POLICY_PROTOCOL_BITS = 48,
	POLICY_FULL_BITS = 64,
};

enum policy_verdict {
	POLICY_VERDICT_DENY = 0,
	POLICY_VERDICT_ALLOW = 1,
};

/* Hubble's policy_match_type numbers. */
enum policy_match {
	POLICY_MATCH_NONE = 0,
	POLICY_MATCH_L3_ONLY = 1,
	POLICY_MATCH_L3_L4 = 2,
	POLICY_MATCH_L4_ONLY = 3,
	POLICY_MATCH_ALL = 4,
	POLICY_MATCH_L3_PROTOCOL = 5,
	POLICY_MATCH_PROTOCOL_ONLY = 6,
};

enum policy_flags {
	POLICY_AUDIT = 1 << 0,	 /* a denial that is reported, not enforced */
	POLICY_DEFAULT = 1 << 2, /* no rule matched: the default verdict of the direction */
};

/* The higher precedence wins, a tie denies. From the top: 8 bits tier, 16 bits priority, 1 bit
 * deny, 7 bits specificity; control computes it, the kernel only compares. */
struct policy_entry {
	__u32 precedence;
	__u32 cookie; /* names the set of rules behind the verdict; 0: none */
	__be16 proxy_port;
	__u8 verdict; /* enum policy_verdict */
	__u8 match;   /* enum policy_match */
	__u8 prefix;  /* bits of protocol and port this entry was written for */
	__u8 flags;   /* enum policy_flags */
	__u16 reserved;
};

/* policy_counters, per CPU: what entries were asked about. An entry counts each packet it judged,
 * and each that dropped by what it had said of the flow before; packets of a flow it allowed are
 * counted by the flow. */
struct policy_counter_key {
	__u32 peer;   /* identity; 0: the entry for any peer decided */
	__u32 cookie; /* of the entry: what it said before a change of rules is told apart */
	__u16 subject;
	__be16 port;	/* as far as the entry's prefix reaches */
	__u8 direction; /* enum direction */
	__u8 protocol;
	__u8 bits; /* of protocol and port, as in the entry's key */
	__u8 reserved;
};

struct policy_counter {
	__u64 packets;
	__u64 bytes;
	__u64 last; /* coarse seconds of CLOCK_MONOTONIC */
};

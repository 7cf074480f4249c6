/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
#pragma once
/* Floor 5: one side's verdict.
 *
 * The precedence list:
 *  1. A subject without a revision, or whose slot holds no map, has no policy yet: denied (165).
 *  2. Two entries are looked up by longest prefix of protocol and port: the one for this peer and
 * the one for any peer. Neither exists: denied (165), since a complete map always has a default.
 *  3. Only one exists: it decides.
 *  4. Both exist: the higher precedence decides.
 *  5. Equal precedence: an entry that denies decides.
 * Which entries exist, so that the longest prefix is also the right one, is the control plane's
 * work. */
#include "identity.h"

#undef SOURCE_FILE
#define SOURCE_FILE FILE_POLICY

#define POLICY_REVISION_MASK 0x7fffffff

/* What is asked of one subject's rules. */
struct policy_question {
	struct policy_active active;
	__u32 peer;
	__u8 direction; /* enum direction */
	__u8 protocol;
	__be16 port;
};

static __always_inline struct policy_active active_policy(__u32 subject)
{
	__u64 *word = bpf_map_lookup_elem(&policy_active, &subject);
	union {
		__u64 word;
		struct policy_active active;
	} read = {};

	/* One load: a slot of one revision with the number of another would outlive the change. */
	if (word)
		read.word = *(volatile __u64 *)word;
	return read.active;
}

static __always_inline struct policy_entry *stronger(struct policy_entry *of_peer,
						     struct policy_entry *of_any)
{
	if (!of_peer || !of_any)
		return of_peer ? of_peer : of_any;
	if (of_peer->precedence != of_any->precedence)
		return of_peer->precedence > of_any->precedence ? of_peer : of_any;
	return of_any->verdict == POLICY_VERDICT_DENY ? of_any : of_peer;
}

/* What the deciding entry said; reason 0: allowed. */
struct policy_answer {
	__u32 reason; /* enum drop_reason */
	__u32 cookie;
	__u32 precedence;
	__u8 match;    /* enum policy_match */
	__u8 flags;    /* enum policy_flags */
	__u8 prefix;   /* bits of protocol and port in the deciding entry's key */
	__u8 any_peer; /* it was the entry for any peer */
	__u32 known;   /* an entry decided */
};

static __always_inline struct policy_entry *deciding_entry(const struct policy_question *question,
							   struct policy_answer *answer)
{
	struct policy_key key = {
	    .prefixlen = POLICY_FULL_BITS,
	    .peer = question->peer,
	    .direction = question->direction,
	    .protocol = question->protocol,
	    .port = question->port,
	};
	struct policy_entry *of_peer, *of_any, *decides;
	__u32 slot = question->active.slot;
	void *rules = bpf_map_lookup_elem(&policies, &slot);

	if (!rules || !(question->active.revision & POLICY_REVISION_MASK))
		return NULL;
	of_peer = bpf_map_lookup_elem(rules, &key);
	key.peer = IDENTITY_UNKNOWN;
	of_any = bpf_map_lookup_elem(rules, &key);
	decides = stronger(of_peer, of_any);
	answer->any_peer = decides == of_any;
	return decides;
}

static __always_inline enum drop_reason reason_of(const struct policy_entry *entry)
{
	if (entry->verdict == POLICY_VERDICT_ALLOW)
		return FORWARDED;
	return entry->flags & POLICY_DEFAULT ? DROP_POLICY_DENIED : DROP_POLICY_DENY;
}

/* Answers one question. Returns the reason again: 0 is an allow. */
static __always_inline int judge(const struct policy_question *question,
				 struct policy_answer *answer)
{
	struct policy_entry *entry = deciding_entry(question, answer);

	if (!entry) {
		answer->reason = DROP_NO_CONFIGURATION_AVAILABLE_TO_PERFORM_POLICY_DECISION;
		return answer->reason;
	}
	answer->reason = reason_of(entry);
	answer->cookie = entry->cookie;
	answer->precedence = entry->precedence;
	answer->match = entry->match;
	answer->flags = entry->flags;
	answer->prefix = entry->prefix;
	answer->known = true;
	return answer->reason;
}

/* The port as far as an entry of so many bits names it. */
static __always_inline __be16 port_within(__be16 port, __u8 bits)
{
	__u32 port_bits = bits > 8 ? bits - 8 : 0;

	return port & bpf_htons(port_bits < 16 ? ~(0xffffU >> port_bits) : 0xffff);
}

/* Counts a packet for the entry that spoke about it. */
static __always_inline int count_entry(const struct policy_counter_key *key, __u32 length,
				       __u32 now)
{
	struct policy_counter first = {.packets = 1, .bytes = length, .last = now};
	struct policy_counter *counter;

	counter = bpf_map_lookup_elem(&policy_counters, key);
	if (!counter)
		return bpf_map_update_elem(&policy_counters, key, &first, BPF_NOEXIST);
	counter->packets++;
	counter->bytes += length;
	counter->last = now;
	return 0;
}

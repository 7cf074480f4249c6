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

struct policy_question {
	__u32 slot;
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

/* The deciding entry, or NULL when there is no policy to ask. */
static __always_inline struct policy_entry *decide(const struct policy_question *question)
{
	struct policy_key key = {
	    .prefixlen = POLICY_FULL_BITS,
	    .peer = question->peer,
	    .direction = question->direction,
	    .protocol = question->protocol,
	    .port = question->port,
	};
	struct policy_entry *of_peer, *of_any;
	void *rules = bpf_map_lookup_elem(&policies, &question->slot);

	if (!rules)
		return NULL;
	of_peer = bpf_map_lookup_elem(rules, &key);
	key.peer = IDENTITY_UNKNOWN;
	of_any = bpf_map_lookup_elem(rules, &key);
	return stronger(of_peer, of_any);
}

/* 0: allowed; else the reason. */
static __always_inline enum drop_reason reason_of(const struct policy_entry *entry)
{
	if (!entry)
		return DROP_NO_CONFIGURATION_AVAILABLE_TO_PERFORM_POLICY_DECISION;
	if (entry->verdict == POLICY_VERDICT_ALLOW)
		return FORWARDED;
	return entry->flags & POLICY_DEFAULT ? DROP_POLICY_DENIED : DROP_POLICY_DENY;
}

/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
#pragma once
/* Floor 11: the boundary. Every entry program ends here, and only here a result becomes a counter,
 * an event, a decision record and an action of the kernel. */
#include "deliver.h"
#include "events.h"

static __always_inline void count(const struct flow *flow, __u32 reason, __u32 length)
{
	__u32 index = reason * 4 + flow->direction;
	struct counter *counter = bpf_map_lookup_elem(&counters, &index);

	if (counter) {
		counter->packets++;
		counter->bytes += length;
	}
}

static __noinline int record(const struct flow *flow, int result)
{
	__u32 zero = 0;
	struct decision *done = bpf_map_lookup_elem(&decision, &zero);

	if (!done)
		return 0;
	done->action = result < 0 ? DECISION_DROP : result;
	done->reason = result < 0 ? -result : FORWARDED;
	done->ifindex = result < 0 ? 0 : flow->ifindex;
	done->vni = flow->vni;
	done->tunnel = flow->next_hop;
	done->source_identity = flow->source.identity;
	done->destination_identity = flow->destination.identity;
	done->egress_cookie = flow->cookie[CT_EGRESS];
	done->ingress_cookie = flow->cookie[CT_INGRESS];
	done->state = flow->state;
	done->line = flow->packet.line;
	return 0;
}

static __always_inline int drop(struct __sk_buff *skb, struct flow *flow, __u32 reason)
{
	count(flow, reason, skb->len);
	if (events_enabled && flow->settings && !flow->packet.silent &&
	    !is_muted(flow->settings, NODE_MUTE_DROPS))
		report_drop(skb, flow, reason);
	return TCX_DROP;
}

/* result: enum decision_action, or a negative drop reason. */
static __always_inline int finish(struct __sk_buff *skb, struct flow *flow, int result)
{
	if (record_decisions)
		record(flow, result);
	if (unlikely(result < 0))
		return drop(skb, flow, -result);
	count(flow, FORWARDED, skb->len);
	if (events_enabled && flow->settings && (flow->report || unlikely(flow->audited)))
		report_passing(skb, flow);
	return hand_over(flow, result);
}

/* For programs that see the node's own traffic, too: what is neither dropped nor taken over nor
 * judged goes on as if no program were here, not counted and not reported. */
static __always_inline int finish_passing(struct __sk_buff *skb, struct flow *flow, int result)
{
	if (result < 0 || result == DECISION_LOCAL || flow->state != CONNECTION_UNKNOWN)
		return finish(skb, flow, result);
	if (record_decisions)
		record(flow, result);
	return TCX_NEXT;
}

/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
#pragma once
/* Floor 5: which packets of an established flow are worth a report. Medium aggregation: the first
 * reply, the close, TCP flags seen for the first time, and one per interval and direction. */
#include "flow.h"
#include "../config/events.h"

static __always_inline void recall_rules(struct flow *flow, const struct ct_entry *entry)
{
	flow->cookie[CT_EGRESS] = entry->side[CT_EGRESS].cookie;
	flow->cookie[CT_INGRESS] = entry->side[CT_INGRESS].cookie;
	flow->match[CT_EGRESS] = entry->side[CT_EGRESS].match;
	flow->match[CT_INGRESS] = entry->side[CT_INGRESS].match;
	if (!entry->service)
		return;
	if (flow->flags & EVENT_IS_REPLY)
		flow->source.service = entry->service;
	else
		flow->destination.service = entry->service;
}

/* added: what this packet changed in the flow's life (enum ct_flags). */
static __always_inline void aggregate(struct flow *flow, struct ct_entry *entry, __u32 added,
				      bool reply)
{
	const struct node_settings *settings = flow->settings;
	__u32 *reported = reply ? &entry->reported[1] : &entry->reported[0];
	__u8 *seen = reply ? &entry->flags_reported[1] : &entry->flags_reported[0];
	__u8 unseen = flow->packet.tcp_flags & settings->report_tcp_flags & ~*seen;

	if (likely(!added && !unseen && settings->aggregation >= AGGREGATION_MEDIUM &&
		   flow->now - *reported < settings->report_interval))
		return;
	*reported = flow->now;
	if (unseen)
		*seen |= unseen;
	if (added & CT_CLOSED)
		flow->flags |= EVENT_LAST_REPORT;
	flow->report = true;
	recall_rules(flow, entry);
}

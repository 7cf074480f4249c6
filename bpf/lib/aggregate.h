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

/* Whether a packet that changed nothing in its flow's life is to be reported. */
static __always_inline bool is_report_due(const struct node_settings *settings,
					  const struct packet *packet, const struct ct_entry *entry,
					  __u32 now, bool reply)
{
	__u32 reported = reply ? entry->reported[1] : entry->reported[0];
	__u8 seen = reply ? entry->flags_reported[1] : entry->flags_reported[0];

	return unlikely(packet->tcp_flags & settings->report_tcp_flags & ~seen ||
			settings->aggregation < AGGREGATION_MEDIUM ||
			now - reported >= settings->report_interval);
}

/* added: what this packet changed in the flow's life (enum ct_flags). Returns whether the packet is
 * reported. */
static __always_inline bool aggregate(const struct packet *packet, struct ct_entry *entry,
				      __u32 now, __u32 added, bool reply)
{
	const struct node_settings *settings = node_settings();

	if (!settings || (!added && !is_report_due(settings, packet, entry, now, reply)))
		return false;
	if (reply) {
		entry->reported[1] = now;
		entry->flags_reported[1] |= packet->tcp_flags & settings->report_tcp_flags;
	} else {
		entry->reported[0] = now;
		entry->flags_reported[0] |= packet->tcp_flags & settings->report_tcp_flags;
	}
	return true;
}

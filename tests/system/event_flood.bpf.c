/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Reports packets that there are none of, with the very functions packets are reported by: as many
 * events as a processor can make. */
#include "../../bpf/lib/events.h"

static __always_inline struct flow made_up(void)
{
	return (struct flow){
	    .settings = node_settings(),
	    .packet =
		{
		    .family = FAMILY_IPV4,
		    .protocol = IPPROTO_UDP,
		    .length = 60,
		    .source_port = bpf_htons(4000),
		    .destination_port = bpf_htons(5000),
		},
	    .point = POINT_TO_STACK,
	    .direction = DIRECTION_INGRESS,
	};
}

SEC("tc")
int flood_traces(struct __sk_buff *skb)
{
	struct flow flow = made_up();

	if (flow.settings)
		report_trace(skb, &flow, ends_of(&flow), false);
	return 0;
}

SEC("tc")
int flood_drops(struct __sk_buff *skb)
{
	struct flow flow = made_up();

	if (flow.settings)
		report_drop(skb, &flow, DROP_POLICY_DENIED);
	return 0;
}

char flood_license[] SEC("license") = "Dual BSD/GPL";

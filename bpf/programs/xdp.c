/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Native devices, in the driver: flows between clients outside and backends of other nodes, which
 * this node only passes on, need no socket buffer. Attached where asked for; nothing depends on it.
 */
#include "../lib/xdp.h"

#undef SOURCE_FILE
#define SOURCE_FILE FILE_XDP

static __always_inline int pass_on(struct xdp_md *ctx, struct flow *flow, struct outside_work *work)
{
	const struct packet *packet = &flow->packet;
	struct service *service;

	if (is_tunnelled(flow))
		return look_into_tunnel(ctx, flow, work);
	if (!is_checksum_ready(ctx, 0, packet))
		return XDP_PASS;
	service = lookup_service(&packet->destination, packet->destination_port, packet->protocol);
	if (service)
		return pass_to_backend(ctx, flow, service, work);
	if (same_address(&packet->destination, own_address(flow)))
		return pass_to_client(ctx, flow, work, 0);
	return XDP_PASS;
}

SEC("xdp")
int from_driver(struct xdp_md *ctx)
{
	struct flow flow = {.settings = node_settings(), .now = coarse_seconds()};
	struct outside_work *work = outside_work();

	if (!native_l2 || !work || !flow.settings || !are_services_known(&flow) ||
	    !read_plain(ctx, 0, &flow.packet))
		return XDP_PASS;
	return pass_on(ctx, &flow, work);
}

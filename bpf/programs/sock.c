/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Sockets, at the root of the node's cgroups: a service is translated once, when a socket names its
 * destination, and no packet of it needs to be touched. */
#include "../lib/service.h"

#undef SOURCE_FILE
#define SOURCE_FILE FILE_SOCKET

#define SOCKET_PROCEED 1

static __always_inline int translate_socket(struct bpf_sock_addr *ctx, const struct address *asked,
					    struct address *given)
{
	struct service *service = lookup_service(asked, ctx->user_port, ctx->protocol);
	struct service_client client = client_of_netns(bpf_get_netns_cookie(ctx));
	struct backend *backend;
	__u32 number = 0;

	if (!services_enabled || !service)
		return 0;
	backend = choose_backend(service, &client, &number);
	if (!backend)
		return 0;
	*given = backend->address;
	ctx->user_port = backend->port;
	return 1;
}

SEC("cgroup/connect4")
int sock_connect4(struct bpf_sock_addr *ctx)
{
	struct address asked, given;

	map_ipv4(&asked, bpf_ntohl(ctx->user_ip4));
	if (translate_socket(ctx, &asked, &given))
		ctx->user_ip4 = bpf_htonl(ipv4_of(&given));
	return SOCKET_PROCEED;
}

/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Sockets, at the root of the node's cgroups: a service is translated once, when a socket names its
 * destination, and no packet of it needs to be touched. The programs of IPv6 see sockets of IPv6
 * that talk IPv4, too: those use mapped addresses, as all of the data path does. */
#include "../lib/socket.h"

#undef SOURCE_FILE
#define SOURCE_FILE FILE_SOCKET

#define AF_INET 2
#define SOCKET_REFUSE 0
#define SOCKET_PROCEED 1

/* SCTP's calls do not come by here; its packets are translated one by one. */
static __always_inline bool is_balanced(__u32 protocol)
{
	return services_enabled && (protocol == IPPROTO_TCP || protocol == IPPROTO_UDP);
}

static __always_inline struct service_key peer_ipv4(const struct bpf_sock_addr *ctx)
{
	struct service_key peer = {.port = ctx->user_port, .protocol = ctx->protocol};

	map_ipv4(&peer.address, bpf_ntohl(ctx->user_ip4));
	return peer;
}

static __always_inline struct service_key peer_ipv6(const struct bpf_sock_addr *ctx)
{
	struct service_key peer = {.port = ctx->user_port, .protocol = ctx->protocol};
	__be32 *words = (__be32 *)&peer.address;

	words[0] = ctx->user_ip6[0];
	words[1] = ctx->user_ip6[1];
	words[2] = ctx->user_ip6[2];
	words[3] = ctx->user_ip6[3];
	return peer;
}

static __always_inline void give_ipv4(struct bpf_sock_addr *ctx, const struct service_key *peer)
{
	ctx->user_ip4 = bpf_htonl(ipv4_of(&peer->address));
	ctx->user_port = peer->port;
}

static __always_inline void give_ipv6(struct bpf_sock_addr *ctx, const struct service_key *peer)
{
	const __be32 *words = (const __be32 *)&peer->address;

	ctx->user_ip6[0] = words[0];
	ctx->user_ip6[1] = words[1];
	ctx->user_ip6[2] = words[2];
	ctx->user_ip6[3] = words[3];
	ctx->user_port = peer->port;
}

/* What is remembered of a connection is found again by its peer when it is closed. */
static __always_inline void note_given(struct bpf_sock_addr *ctx, const struct service_key *given)
{
	struct bpf_sock *socket = ctx->sk;
	struct socket_peers *peers;

	if (ctx->protocol != IPPROTO_UDP || !socket)
		return;
	peers = bpf_sk_storage_get(&socket_peers, socket, NULL, BPF_SK_STORAGE_GET_F_CREATE);
	if (peers)
		note_peer(peers, given);
}

/* Returns as translate_peer does. */
static __always_inline int ask(struct bpf_sock_addr *ctx, const struct service_key *asked,
			       struct service_key *given)
{
	int result;
	struct node_settings *settings = node_settings();
	struct asker asker = {};

	if (!settings || !is_balanced(ctx->protocol))
		return 0;
	asker.netns = bpf_get_netns_cookie(ctx);
	asker.is_host = asker.netns == settings->netns;
	if (!pod_sockets_enabled && !asker.is_host)
		return 0;
	asker.cookie = bpf_get_socket_cookie(ctx);
	result = translate_peer(&asker, asked, given);
	if (result == SOCKET_GIVEN_ANEW)
		note_given(ctx, given);
	return result;
}

static __always_inline int send_ipv4(struct bpf_sock_addr *ctx)
{
	struct service_key asked = peer_ipv4(ctx), given = {};
	int result = ask(ctx, &asked, &given);

	if (result > 0)
		give_ipv4(ctx, &given);
	if (result >= 0)
		return SOCKET_PROCEED;
	bpf_set_retval(result);
	return SOCKET_REFUSE;
}

static __always_inline int send_ipv6(struct bpf_sock_addr *ctx)
{
	struct service_key asked = peer_ipv6(ctx), given = {};
	int result = ask(ctx, &asked, &given);

	if (result > 0)
		give_ipv6(ctx, &given);
	if (result >= 0)
		return SOCKET_PROCEED;
	bpf_set_retval(result);
	return SOCKET_REFUSE;
}

static __always_inline int name_ipv4(struct bpf_sock_addr *ctx)
{
	struct service_key given = peer_ipv4(ctx), asked = {};

	if (is_balanced(ctx->protocol) && recall_peer(bpf_get_socket_cookie(ctx), &given, &asked))
		give_ipv4(ctx, &asked);
	return SOCKET_PROCEED;
}

static __always_inline int name_ipv6(struct bpf_sock_addr *ctx)
{
	struct service_key given = peer_ipv6(ctx), asked = {};

	if (is_balanced(ctx->protocol) && recall_peer(bpf_get_socket_cookie(ctx), &given, &asked))
		give_ipv6(ctx, &asked);
	return SOCKET_PROCEED;
}

SEC("cgroup/connect4")
int sock_connect4(struct bpf_sock_addr *ctx)
{
	return send_ipv4(ctx);
}

SEC("cgroup/connect6")
int sock_connect6(struct bpf_sock_addr *ctx)
{
	return send_ipv6(ctx);
}

SEC("cgroup/sendmsg4")
int sock_sendmsg4(struct bpf_sock_addr *ctx)
{
	return send_ipv4(ctx);
}

SEC("cgroup/sendmsg6")
int sock_sendmsg6(struct bpf_sock_addr *ctx)
{
	return send_ipv6(ctx);
}

SEC("cgroup/recvmsg4")
int sock_recvmsg4(struct bpf_sock_addr *ctx)
{
	return name_ipv4(ctx);
}

SEC("cgroup/recvmsg6")
int sock_recvmsg6(struct bpf_sock_addr *ctx)
{
	return name_ipv6(ctx);
}

SEC("cgroup/getpeername4")
int sock_getpeername4(struct bpf_sock_addr *ctx)
{
	return name_ipv4(ctx);
}

SEC("cgroup/getpeername6")
int sock_getpeername6(struct bpf_sock_addr *ctx)
{
	return name_ipv6(ctx);
}

static __always_inline int judge_bind(struct bpf_sock *ctx, const struct service_key *bound)
{
	int result = check_bind(bpf_get_socket_cookie(ctx), bpf_get_netns_cookie(ctx), bound);

	if (likely(!result))
		return SOCKET_PROCEED;
	bpf_set_retval(result);
	return SOCKET_REFUSE;
}

SEC("cgroup/post_bind4")
int sock_post_bind4(struct bpf_sock *ctx)
{
	struct service_key bound = {.port = bpf_htons(ctx->src_port), .protocol = ctx->protocol};

	if (!is_balanced(ctx->protocol))
		return SOCKET_PROCEED;
	map_ipv4(&bound.address, bpf_ntohl(ctx->src_ip4));
	return judge_bind(ctx, &bound);
}

SEC("cgroup/post_bind6")
int sock_post_bind6(struct bpf_sock *ctx)
{
	struct service_key bound = {.port = bpf_htons(ctx->src_port), .protocol = ctx->protocol};
	__be32 *words = (__be32 *)&bound.address;

	if (!is_balanced(ctx->protocol))
		return SOCKET_PROCEED;
	words[0] = ctx->src_ip6[0];
	words[1] = ctx->src_ip6[1];
	words[2] = ctx->src_ip6[2];
	words[3] = ctx->src_ip6[3];
	return judge_bind(ctx, &bound);
}

static __always_inline struct service_key peer_of(const struct bpf_sock *ctx)
{
	struct service_key peer = {.port = ctx->dst_port, .protocol = ctx->protocol};
	__be32 *words = (__be32 *)&peer.address;

	if (ctx->family == AF_INET) {
		map_ipv4(&peer.address, bpf_ntohl(ctx->dst_ip4));
		return peer;
	}
	words[0] = ctx->dst_ip6[0];
	words[1] = ctx->dst_ip6[1];
	words[2] = ctx->dst_ip6[2];
	words[3] = ctx->dst_ip6[3];
	return peer;
}

/* A socket is closed: nobody will ask for it again. */
SEC("cgroup/sock_release")
int sock_release(struct bpf_sock *ctx)
{
	struct socket_peers *peers;
	struct service_key peer;

	if (!is_balanced(ctx->protocol))
		return SOCKET_PROCEED;
	if (ctx->protocol == IPPROTO_UDP) {
		peers = bpf_sk_storage_get(&socket_peers, ctx, NULL, 0);
		if (peers)
			forget_peers(bpf_get_socket_cookie(ctx), peers);
		return SOCKET_PROCEED;
	}
	peer = peer_of(ctx);
	if (peer.port)
		forget(bpf_get_socket_cookie(ctx), &peer);
	return SOCKET_PROCEED;
}

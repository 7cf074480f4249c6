/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
#pragma once
#include "types.h"

/* services: an address and port that stand for others. Node ports have one key per address of this
 * node, and one with the family's zero address that stands for any address of any node. */
struct service_key {
	struct address address;
	__be16 port;
	__u8 protocol;
	__u8 reserved[5];
};

/* Who asks: somebody of the cluster (pods, nodes), or somebody outside. Traffic policies may give
 * them different backends. */
enum service_scope {
	SERVICE_INTERNAL = 0,
	SERVICE_EXTERNAL = 1,
};

enum service_flags {
	SERVICE_MAGLEV = 1 << 0,	  /* its ranges are tables asked by hash, not lists */
	SERVICE_AFFINITY = 1 << 1,	  /* a client stays with its backend */
	SERVICE_SOURCES_ALLOWED = 1 << 2, /* only from source_ranges, if asked from outside */
	SERVICE_SOURCES_DENIED = 1 << 3,  /* not from source_ranges */
	SERVICE_DSR = 1 << 4,		  /* backends of other nodes answer the client themselves */
	SERVICE_OUTSIDE = 1 << 5,	  /* clients outside the cluster are served */
	SERVICE_REJECT = 1 << 6,	  /* without a backend the client is told */
	SERVICE_LOOSE = 1 << 7,		  /* without a backend the packet goes its way untouched */
	SERVICE_EXTERNAL_IP = 1 << 8,	  /* an address that somebody wrote into a Service */
	SERVICE_HOST_PORT = 1 << 9,
	SERVICE_NODE_PORT = 1 << 10,
	SERVICE_REDIRECT = 1 << 11, /* a local redirect: skip_redirect is asked before */
	SERVICE_KEEPS_CLIENT =
	    1 << 12, /* outside clients keep their address: local backends only */
};

/* Backends of one scope: slots[first] .. slots[first + count - 1]. */
struct service_range {
	__u32 first;
	__u32 count; /* 0: no backend */
};

struct service {
	struct service_range range[2]; /* enum service_scope */
	__u32 id;		       /* of the frontend: index into frontends; never 0 */
	__u32 flags;		       /* enum service_flags */
	__u32 affinity;		       /* seconds a client stays, after its last connection */
	__u32 revision;		       /* of its ranges: node-wide, never reused */
};

/* frontends[id]: what replies are given back as. The id of a gone frontend is given out again only
 * when no flow can remember it. */
struct frontend {
	struct address address;
	__be16 port;
	__u8 protocol;
	__u8 flags;
	__u32 reserved;
};

enum backend_flags {
	BACKEND_LIVE = 1 << 0,	   /* flows it has go on; 0: it is gone, they are given another */
	BACKEND_DRAINING = 1 << 1, /* not chosen any more */
};

/* backends[number]; slots hold numbers. Address, port and protocol never change under a number
 * while a slot or a flow may name it. */
struct backend {
	struct address address;
	__be16 port;
	__u8 protocol;
	__u8 flags; /* enum backend_flags */
	__u32 reserved;
};

/* affinity: which backend a client has. The client is its address, or for sockets the cookie of its
 * network namespace in lo (with hi all ones: no address looks so). */
struct affinity_key {
	struct address client;
	__u32 service;
	__u32 reserved;
};

struct affinity_entry {
	__u32 backend;
	__u32 seen;	/* coarse seconds */
	__u32 revision; /* of the service's ranges that hold the backend */
};

/* source_ranges: prefixlen counts 32 bits of service, then those of the 128-bit address. */
struct source_range_key {
	__u32 prefixlen;
	__u32 service;
	struct address address;
};

/* socket_services: what a socket asked for, by what it was given. */
struct socket_service_key {
	__u64 cookie;
	struct address address;
	__be16 port;
	__u8 protocol;
	__u8 reserved[5];
};

struct socket_service {
	struct address address;
	__be16 port;
	__u16 reserved;
	__u32 service;
};

/* socket_peers: whom a socket was given lately, so that it can be forgotten with the socket. */
struct socket_peers {
	struct service_key peer[4];
	__u32 next;
	__u32 reserved;
};

/* skip_redirect: pods whose traffic to a redirected frontend is left alone, by the cookie of their
 * network namespace and by their endpoint id (one of both is 0). */
struct skip_redirect_key {
	struct address address;
	__u64 netns;
	__be16 port;
	__u16 endpoint;
	__u8 protocol;
	__u8 reserved[3];
};

enum service_flow_flags {
	SERVICE_FLOW_SEEN_REPLY = 1 << 0,
	SERVICE_FLOW_CLOSED = 1 << 1,
	SERVICE_FLOW_DSR = 1 << 2,  /* the backend answers the client itself */
	SERVICE_FLOW_SNAT = 1 << 3, /* the backend sees the node as the client */
};

/* service_flows: flows that are translated packet by packet. The key is the client's own tuple,
 * towards the frontend, in zone CT_ZONE_SERVICE. Not an LRU: a full map refuses new flows. */
struct service_flow {
	struct address backend_address;
	__u32 backend; /* its number; what backends says of it must still agree */
	__u32 service;
	__be16 backend_port;
	__u16 owner; /* endpoint of the client, if it lives here */
	__u32 created;
	__u32 expires;	 /* coarse seconds */
	__u32 flags;	 /* enum service_flow_flags */
	__be16 own_port; /* with SERVICE_FLOW_SNAT: of this node, as snat has it */
	__u16 reserved[3];
};

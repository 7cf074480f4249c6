/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
#pragma once
#include "types.h"

enum node_flags {
	NODE_TUNNEL = 1 << 0, /* remote pods are reached through VXLAN */
	NODE_MASQUERADE_IPV4 = 1 << 1,
	NODE_MASQUERADE_IPV6 = 1 << 2,
	NODE_READER_ASLEEP = 1 << 3,
	NODE_HOST_POLICY = 1 << 4,   /* the host is an endpoint with a policy, which is asked */
	NODE_DENY_RESPONSE = 1 << 5, /* a local pod is told by ICMP that its packet was denied */
	NODE_SERVICES = 1 << 6,	     /* there are services: packets are looked up */
	NODE_HOST_BACKENDS = 1 << 7, /* some service has the node itself for a backend */
	NODE_TRACE_SOCKETS = 1 << 8, /* translations of sockets are reported */
	NODE_MUTE_DROPS = 1 << 9,    /* these are counted, and not reported */
	NODE_MUTE_TRACES = 1 << 10,
	NODE_MUTE_VERDICTS = 1 << 11,
};

enum aggregation {
	AGGREGATION_NONE = 0,	/* every packet is reported */
	AGGREGATION_LOW = 1,	/* what sockets receive is left out */
	AGGREGATION_MEDIUM = 3, /* new, close, changed TCP flags, one per interval */
};

/* node[0]: what may change while the programs run. */
struct node_settings {
	struct address ipv4; /* the underlay address masqueraded traffic leaves with */
	struct address ipv6;
	struct address router_ipv4; /* the pods' gateway */
	struct address router_ipv6;
	__u32 flags;	    /* enum node_flags */
	__u32 host_ifindex; /* the host's end of the node's own veth pair */
	__u32 net_ifindex;  /* its other end, where the host's packets surface */
	__u32 tunnel_ifindex;
	__u32 native_ifindex; /* the device of the default route */
	__u32 mtu;	      /* of the pods */
	__u8 host_mac[6];     /* of host_ifindex */
	__u8 reserved[2];
	__u32 aggregation;	/* enum aggregation */
	__u32 report_interval;	/* seconds between two reports of one established flow */
	__u32 report_tcp_flags; /* TCP flags whose first sight is reported */
	__u32 drop_rate;	/* reports per second, endpoint and reason; 0: unlimited */
	__u32 drop_burst;
	__u32 event_rate;  /* events per second of each of the two rings; 0: as many as there are */
	__u32 event_burst; /* of these, at once after a pause */
	__u16 nat_first_port; /* host byte order */
	__u16 nat_last_port;
	__u16 tunnel_port; /* host byte order */
	__u16 cluster;
	__u32 ct_quota;	       /* conntrack entries one endpoint may open; 0: unlimited */
	__u16 node_port_first; /* host byte order */
	__u16 node_port_last;
	__u32 hash_seed; /* of Maglev: the same on every node of the cluster */
	__u64 netns;	 /* cookie of the node's own network namespace; 0: not known */
};

/* nodes: every underlay address of the cluster's nodes. */
struct node_entry {
	__u32 flags; /* enum ipcache_flags */
	__u32 mtu;
};

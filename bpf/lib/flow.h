/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
#pragma once
/* Floor 2: what is known about the packet in hand. It lives on the entry program's stack; each step
 * reads what earlier steps found and adds its own. */
#include "maps.h"

enum packet_kind {
	PACKET_PLAIN = 0,   /* TCP, UDP, SCTP, or a protocol without ports */
	PACKET_REQUEST = 1, /* ICMP that opens a flow */
	PACKET_REPLY = 2,   /* ICMP that answers a request */
	PACKET_ERROR = 3,   /* ICMP about another packet, which it quotes */
	PACKET_CONTROL = 4, /* neighbour discovery and multicast listener messages */
	PACKET_STRANGE = 5, /* any other ICMP */
};

enum fragment_kind {
	FRAGMENT_NONE = 0,
	FRAGMENT_FIRST = 1,
	FRAGMENT_LATER = 2,
};

enum tcp_flag {
	TCP_FIN = 1 << 0,
	TCP_SYN = 1 << 1,
	TCP_RST = 1 << 2,
	TCP_ACK = 1 << 4,
};

/* The parser's result. */
struct packet {
	struct address source;
	struct address destination;
	__be16 source_port;	 /* ICMP: the identifier; 0: the protocol has no ports */
	__be16 destination_port; /* ICMP: the request's type, also in a reply */
	__u16 l3;		 /* offset of the IP header */
	__u16 l4;     /* offset of the transport header, behind IPv6's extension headers */
	__u32 length; /* from the IP header on */
	__be32 fragment_id;
	__u8 protocol;
	__u8 family;	/* enum family */
	__u8 tcp_flags; /* SCTP: those with the meaning of the first chunk */
	__u8 icmp_type;
	__u8 icmp_code;
	__u8 ttl;
	__u8 fragment; /* enum fragment_kind */
	__u8 kind;     /* enum packet_kind */
	__u8 macs[12]; /* destination, source */
	__u16 line;    /* where it was dropped */
	__u8 file;     /* enum source_file */
	__u8 silent;   /* a drop that is counted but not reported */
};

/* One end of the flow. */
struct party {
	struct endpoint *endpoint; /* of this node, whose policy is asked: a pod, or the host */
	__u32 identity;
	__u32 service; /* the frontend it is known as to the other end; 0: none */
};

/* What services have to do with the packet. */
enum translation {
	TRANSLATION_GIVEN = 1 << 0,    /* the destination is a backend that was given for a
					  frontend; its ports are known, also a later fragment's */
	TRANSLATION_RESTORE = 1 << 1,  /* the source is a backend: it leaves as the frontend */
	TRANSLATION_DSR = 1 << 2,      /* the same, for the frontend of another node */
	TRANSLATION_HAIRPIN = 1 << 3,  /* a pod and itself */
	TRANSLATION_CLOSED = 1 << 4,   /* with this packet the tracked flow is over */
	TRANSLATION_REJECTED = 1 << 5, /* no backend: the sender is told */
	TRANSLATION_ASKED = 1 << 6,    /* workspace.asked is the destination before translation */
	TRANSLATION_CLIENT = 1 << 7,   /* workspace.client is the source before translation */
};

struct flow {
	struct packet packet;
	struct node_settings *settings;
	struct party source;
	struct party destination;
	struct address next_hop; /* the tunnel's other end, or the gateway */
	__u8 next_hop_family;	 /* AF_INET or AF_INET6 of a gateway */
	__u8 translation;	 /* enum translation */
	__u8 denier;		 /* whose policy ended it: 1 + enum ct_side_index; 0: nobody's */
	__u8 answers;		 /* should nobody know its flow, the receiver has opened it */
	__u32 now;		 /* coarse seconds */
	__u32 ifindex;		 /* where it goes; 0: nowhere yet */
	__u32 vni;
	__u32 cookie[2]; /* enum ct_side_index */
	__u8 match[2];
	__u8 audited;	/* a side's policy would have dropped it: see workspace */
	__u8 direction; /* enum direction */
	__u8 point;	/* enum observation_point */
	__u8 state;	/* enum connection_state */
	__u8 report;	/* aggregation lets it be reported */
	__u8 flags;	/* enum event_flags */
};

/* What the steps of one run leave for each other where the stack has no room. Nothing in it means
 * anything to the next run. */
struct workspace {
	struct ct_entry entry;	  /* a flow that is being opened or judged again */
	struct ct_key key;	  /* of the packet's flow in service_flows */
	struct service_flow flow; /* that flow, as it was found or is to be remembered */
	struct packet quoted;	  /* by an ICMP error */
	struct address asked;	  /* the destination the packet or its socket had asked for */
	struct address client;	  /* the source before it was translated */
	__be16 asked_port;
	__be16 client_port;
	__u32 expires;	  /* of the tracked flow, after this packet */
	bool is_rejected; /* there is no backend, and the sender is told */
	__u8 audited[2];  /* per side: the reason its policy would have dropped it for; or 0 */
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct workspace);
} workspace SEC(".maps");

/* A step that ends the packet returns DROP(flow, NAME): the negative reason, with its place noted.
 * The parser, which knows no flow, returns REFUSE(packet, NAME). Each header says which file it is
 * in SOURCE_FILE. */
#define REFUSE(packet, name) dropped_at((packet), DROP_##name, SOURCE_FILE, __LINE__)
#define DROP(flow, name) REFUSE(&(flow)->packet, name)

static __always_inline int dropped_at(struct packet *packet, enum drop_reason reason,
				      enum source_file file, __u16 line)
{
	packet->file = file;
	packet->line = line;
	return -(int)reason;
}

/* Broadcast and multicast are everyday noise of a pod: counted, never reported. */
static __always_inline int silently(struct packet *packet, int dropped)
{
	packet->silent = true;
	return dropped;
}

static __always_inline struct workspace *own_workspace(void)
{
	__u32 zero = 0;

	return bpf_map_lookup_elem(&workspace, &zero);
}

static __always_inline struct node_settings *node_settings(void)
{
	__u32 zero = 0;

	return bpf_map_lookup_elem(&node, &zero);
}

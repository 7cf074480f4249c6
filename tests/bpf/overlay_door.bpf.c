/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Test runs carry no tunnel metadata. This door gives a packet what its control block asks for (key, sending
 * node, whether there is any, and the node it was sent to) and goes on to from_overlay. What is set as remote
 * is read as local, since a set key is one to send by. */
#include <linux/bpf.h>
#include <linux/pkt_cls.h>
#include <bpf/bpf_helpers.h>

struct {
	__uint(type, BPF_MAP_TYPE_PROG_ARRAY);
	__uint(max_entries, 1);
	__uint(key_size, sizeof(__u32));
	__uint(value_size, sizeof(__u32));
} behind SEC(".maps");

SEC("tc")
int door(struct __sk_buff *skb)
{
	struct bpf_tunnel_key key = {
		.tunnel_id = skb->cb[0],
		.local_ipv4 = skb->cb[1],
		.remote_ipv4 = skb->cb[3],
	};

	if (skb->cb[2])
		bpf_skb_set_tunnel_key(skb, &key, sizeof(key), 0);
	bpf_tail_call(skb, &behind, 0);
	return TC_ACT_UNSPEC;
}

char door_license[] SEC("license") = "Dual BSD/GPL";

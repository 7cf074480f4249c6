/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
#pragma once
/* Floor 0: the compiler, the helpers, and what every step needs. */
#include <linux/bpf.h>
#include <linux/pkt_cls.h>
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_endian.h>
#include <stdbool.h>
#include "../abi/types.h"
#include "../abi/uapi.h"

#define NS_PER_SECOND 1000000000ULL

#define likely(condition) __builtin_expect(!!(condition), 1)
#define unlikely(condition) __builtin_expect(!!(condition), 0)

#define copy_bytes(to, from, size) __builtin_memcpy((to), (from), (size))

/* CLOCK_MONOTONIC in whole seconds, cheap: it steps with the timer tick. */
static __always_inline __u32 coarse_seconds(void)
{
	return bpf_ktime_get_coarse_ns() / NS_PER_SECOND;
}

static __always_inline bool same_address(const struct address *a, const struct address *b)
{
	return a->lo == b->lo && a->hi == b->hi;
}

static __always_inline bool is_zero_address(const struct address *address)
{
	return !address->hi && !address->lo;
}

static __always_inline bool is_mapped_ipv4(const struct address *address)
{
	return !address->hi && (bpf_be64_to_cpu(address->lo) >> 32) == 0xffff;
}

/* The IPv4 address inside a v4-mapped one, in host byte order. */
static __always_inline __u32 ipv4_of(const struct address *address)
{
	return (__u32)bpf_be64_to_cpu(address->lo);
}

static __always_inline void map_ipv4(struct address *address, __u32 host_order)
{
	address->hi = 0;
	address->lo = bpf_cpu_to_be64(0xffff00000000ULL | host_order);
}

static __always_inline __u8 top_byte(const struct address *address)
{
	return bpf_be64_to_cpu(address->hi) >> 56;
}

/* ::1, 127.0.0.0/8 and "this host" (0.0.0.0/8, ::): nothing that may be on a wire (RFC 6890). */
static __always_inline bool is_host_internal(const struct address *address)
{
	if (is_mapped_ipv4(address))
		return ipv4_of(address) >> 24 == 127 || !(ipv4_of(address) >> 24);
	return !address->hi && bpf_be64_to_cpu(address->lo) <= 1;
}

/* fe80::/10 */
static __always_inline bool is_link_local(const struct address *address)
{
	return bpf_be64_to_cpu(address->hi) >> 54 == 0xfe80 >> 6;
}

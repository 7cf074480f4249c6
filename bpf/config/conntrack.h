/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
#pragma once
/* Lifetimes of tracked flows, in seconds since the last packet. */
#include <linux/types.h>

/* TCP, until its handshake is over. */
const volatile __u32 ct_lifetime_syn = 60;

/* TCP, once it is over. */
const volatile __u32 ct_lifetime_tcp = 8000;

/* TCP, after a reset or the second FIN; not renewed by stragglers. */
const volatile __u32 ct_lifetime_closing = 10;

/* SCTP, once its handshake is over: heartbeats come at most 120 s apart (RFC 9260, 8.3). */
const volatile __u32 ct_lifetime_sctp = 300;

/* UDP, and every protocol without ports. */
const volatile __u32 ct_lifetime_any = 60;

/* ICMP requests and their replies. */
const volatile __u32 ct_lifetime_icmp = 60;

/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
#pragma once
/* How services are reached. Set before load; the verifier removes what is off. */
#include <linux/types.h>
#include <stdbool.h>

/* Services are translated at all; off: somebody else does it. */
const volatile bool services_enabled = true;

/* Sockets of pods are translated, too; off: only those of the host, and pods packet by packet. */
const volatile bool pod_sockets_enabled = true;

/* An external IP is only translated where the node has the address itself (CVE-2020-8554). */
const volatile bool external_ip_mitigation = true;

/* The frontend travels to a backend's node in an outer header (IPIP); off: in an IP option. */
const volatile bool dsr_ipip = false;

/* Whom a pod sees when it reaches itself by a service, in host byte order: 169.254.42.1. */
const volatile __u32 service_loopback_ipv4 = 0xa9fe2a01;

/* The upper half of the same for IPv6, 100::a9fe:2a01: never routed (RFC 6666). */
const volatile __u64 service_loopback_ipv6_high = 0x0100000000000000;

/* Its lower half. */
const volatile __u64 service_loopback_ipv6_low = 0xa9fe2a01;

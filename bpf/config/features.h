/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
#pragma once
/* What the node does at all. Set before load; the verifier removes what is off. */
#include <linux/types.h>
#include <stdbool.h>

/* IPv4 packets of pods are forwarded; off: they drop as an unsupported protocol. */
const volatile bool ipv4_enabled = true;

/* IPv6 packets of pods are forwarded; off: they drop as an unsupported protocol. */
const volatile bool ipv6_enabled = true;

/* Remote pods are reached through the VXLAN device; off: by the node's own routes. */
const volatile bool tunnel_enabled = true;

/* The host may have a policy; off: nobody asks for it. */
const volatile bool host_firewall_enabled = true;

/* Native devices carry Ethernet headers; off for devices that start at the IP header. */
const volatile bool native_l2 = true;

/* Bits of an identity, below bit 24, that hold the cluster's id: 8 for 255 clusters, 9 for 511. */
const volatile __u32 cluster_id_bits = 8;

/* Each run writes what it did to decision[0]: for tests, since test runs don't show redirects. */
const volatile bool record_decisions = false;

/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
#pragma once
#include <linux/types.h>
#include <stdbool.h>

/* Packets are reported through the rings; off: they are only counted. */
const volatile bool events_enabled = true;

/* Denials that a pod is told of by ICMP, per second and endpoint; those beyond are silent. */
const volatile __u32 deny_response_rate = 100;

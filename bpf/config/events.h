/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
#pragma once
#include <linux/types.h>
#include <stdbool.h>

/* Packets are reported through the rings; off: they are only counted. */
const volatile bool events_enabled = true;

/* Events per second that each of the two rings is given; 0: as many as there are. */
const volatile __u32 events_rate = 0;

/* Of these, how many at once after a pause. */
const volatile __u32 events_burst = 0;

/* Denials that a pod is told of by ICMP, per second and endpoint; those beyond are silent. */
const volatile __u32 deny_response_rate = 100;

/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
#pragma once
#include <stdbool.h>

/* Packets are reported through the rings; off: they are only counted. */
const volatile bool events_enabled = true;

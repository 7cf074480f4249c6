/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
#pragma once
/* UAPI numbers newer than the system's headers. */
#ifndef BPF_F_PEER
#define BPF_F_PEER (1ULL << 2)
#endif
#define TCX_NEXT (-1) /* linux/bpf.h, enum tcx_action_base, kernel 6.6 (e420bed02507) */
#define TCX_DROP 2
#define TCX_REDIRECT 7
#define BPF_FIB_LOOKUP_SKIP_NEIGH (1U << 2) /* linux/bpf.h, kernel 6.3 (31de4105f00d) */
#define BPF_F_IPV6 (1ULL << 7) /* linux/bpf.h, kernel 6.16 (ead7f9b8de65); older ones refuse it */

/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* The data path as one object: programs/ holds the entry points, lib/ the steps of a packet's path,
 * abi/ what user space sees, config/ what is set before load. */
#include "programs/lxc.c"
#include "programs/host.c"
#include "programs/overlay.c"
#include "programs/sock.c"
#include "programs/netdev.c"
#include "programs/xdp.c"
#include "programs/batch.c"

char cilia_license[] SEC("license") = "Dual BSD/GPL";

/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
#pragma once
/* BTF holds only the types that something refers to. This union refers to every type of the
 * layouts, so that user space can read all of them from the object. A new type needs a line here; a
 * test compares the list with the headers. */
#include "conntrack.h"
#include "decision.h"
#include "drop.h"
#include "endpoint.h"
#include "event.h"
#include "identity.h"
#include "ipcache.h"
#include "nat.h"
#include "node.h"
#include "policy.h"
#include "service.h"
#include "types.h"

union abi_types {
	struct address address;
	enum family family;
	enum direction direction;
	enum ct_zone ct_zone;
	enum ct_icmp ct_icmp;
	struct ct_key ct_key;
	struct ct_side ct_side;
	enum ct_side_index ct_side_index;
	enum ct_flags ct_flags;
	struct ct_entry ct_entry;
	struct ct_quota ct_quota;
	enum decision_action decision_action;
	struct decision decision;
	struct policy_case policy_case;
	struct policy_batch policy_batch;
	enum drop_reason drop_reason;
	enum endpoint_flags endpoint_flags;
	struct endpoint endpoint;
	struct iface iface;
	enum event_kind event_kind;
	enum observation_point observation_point;
	enum event_verdict event_verdict;
	enum connection_state connection_state;
	enum translation_point translation_point;
	enum source_file source_file;
	enum event_flags event_flags;
	struct event event;
	enum event_ring event_ring;
	struct event_state event_state;
	struct counter counter;
	struct bucket_key bucket_key;
	enum bucket_use bucket_use;
	struct bucket bucket;
	struct suppressed_key suppressed_key;
	enum reserved_identity reserved_identity;
	enum packet_mark packet_mark;
	struct ipcache_key ipcache_key;
	enum ipcache_bits ipcache_bits;
	enum ipcache_flags ipcache_flags;
	struct ipcache_entry ipcache_entry;
	enum nat_way nat_way;
	struct nat_key nat_key;
	struct nat_entry nat_entry;
	struct fragment_key fragment_key;
	struct fragment_entry fragment_entry;
	enum node_flags node_flags;
	enum aggregation aggregation;
	struct node_settings node_settings;
	struct node_entry node_entry;
	struct policy_active policy_active;
	struct policy_key policy_key;
	enum policy_bits policy_bits;
	enum policy_verdict policy_verdict;
	enum policy_match policy_match;
	enum policy_flags policy_flags;
	struct policy_entry policy_entry;
	struct policy_counter_key policy_counter_key;
	struct policy_counter policy_counter;
	struct service_key service_key;
	enum service_scope service_scope;
	enum service_flags service_flags;
	struct service_range service_range;
	struct service service;
	struct frontend frontend;
	enum backend_flags backend_flags;
	struct backend backend;
	struct affinity_key affinity_key;
	struct affinity_entry affinity_entry;
	struct source_range_key source_range_key;
	struct socket_service_key socket_service_key;
	struct socket_service socket_service;
	struct socket_peers socket_peers;
	struct skip_redirect_key skip_redirect_key;
	enum service_flow_flags service_flow_flags;
	struct service_flow service_flow;
};

const volatile union abi_types abi_types = {};

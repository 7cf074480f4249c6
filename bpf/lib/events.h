/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
#pragma once
/* Floor 10: what the outside hears of a packet. */
#include "parse.h"
#include "../config/events.h"
#include "../abi/event.h"

/* flag: one of NODE_MUTE_DROPS, NODE_MUTE_TRACES, NODE_MUTE_VERDICTS. */
static __always_inline bool is_muted(const struct node_settings *settings, __u32 flag)
{
	return unlikely(settings->flags & flag);
}

/* The reader that goes to sleep asks, in the settings, to be woken; whoever sees it first does. */
static __always_inline bool must_wake(struct node_settings *settings)
{
	if (likely(!(settings->flags & NODE_READER_ASLEEP)))
		return false;
	return __sync_fetch_and_and(&settings->flags, ~NODE_READER_ASLEEP) & NODE_READER_ASLEEP;
}

/* Hands the event over. The reader looks once more after asking: what was submitted before that it
 * finds, and who submits after that sees it ask. In between it may have found the event unfinished;
 * only a record can wake it then, so an empty one of the same size does. */
static __always_inline void submit(struct event *event, struct node_settings *settings)
{
	struct event *nudge;

	if (unlikely(must_wake(settings))) {
		bpf_ringbuf_submit(event, BPF_RB_FORCE_WAKEUP);
		return;
	}
	bpf_ringbuf_submit(event, BPF_RB_NO_WAKEUP);
	if (likely(!must_wake(settings)))
		return;
	nudge = bpf_ringbuf_reserve(&events_priority, sizeof(*nudge), 0);
	if (nudge)
		bpf_ringbuf_discard(nudge, BPF_RB_FORCE_WAKEUP);
}

static __always_inline struct event_state *event_counters(void)
{
	__u32 zero = 0;

	return bpf_map_lookup_elem(&event_state, &zero);
}

static __always_inline void describe_packet(struct event *event, const struct packet *packet)
{
	bool with_ports = has_ports(packet->protocol);

	event->source = packet->source;
	event->destination = packet->destination;
	event->source_port = with_ports ? packet->source_port : 0;
	event->destination_port = with_ports ? packet->destination_port : 0;
	event->protocol = packet->protocol;
	event->icmp_type = packet->icmp_type;
	event->icmp_code = packet->icmp_code;
	event->tcp_flags = packet->protocol == IPPROTO_TCP ? packet->tcp_flags : 0;
	event->length = packet->length;
	copy_bytes(event->destination_mac, packet->macs, sizeof(event->destination_mac));
	copy_bytes(event->source_mac, packet->macs + 6, sizeof(event->source_mac));
}

/* A socket's request is on its way to what the frontend was translated to; the frontend of a flow
 * that is no longer new is remembered by number. */
static __always_inline void describe_frontend(struct event *event, __u32 service)
{
	struct frontend *frontend = bpf_map_lookup_elem(&frontends, &service);

	if (!frontend)
		return;
	event->original_destination = frontend->address;
	event->original_destination_port = frontend->port;
}

/* Which frontend was asked for, and what the packet was before it was translated. */
static __always_inline void describe_service(struct event *event, const struct flow *flow)
{
	struct workspace *space = own_workspace();
	__u8 translated = flow->translation;

	event->service = flow->source.service ?: flow->destination.service;
	if (!space)
		return;
	if (translated & TRANSLATION_ASKED) {
		event->original_destination = space->asked;
		event->original_destination_port = space->asked_port;
	} else if (flow->destination.service) {
		describe_frontend(event, flow->destination.service);
	}
	if (translated & TRANSLATION_CLIENT) {
		event->original_source = space->client;
		event->original_source_port = space->client_port;
	}
}

static __always_inline void describe_flow(struct event *event, const struct flow *flow)
{
	describe_packet(event, &flow->packet);
	event->source_identity = flow->source.identity;
	event->destination_identity = flow->destination.identity;
	if (unlikely(flow->translation || flow->source.service || flow->destination.service))
		describe_service(event, flow);
	event->vni = flow->vni;
	if (flow->vni)
		event->tunnel = flow->next_hop;
	event->egress_cookie = flow->cookie[CT_EGRESS];
	event->ingress_cookie = flow->cookie[CT_INGRESS];
	event->egress_match = flow->match[CT_EGRESS];
	event->ingress_match = flow->match[CT_INGRESS];
	event->state = flow->state;
	event->flags = flow->flags;
	if (flow->packet.family == FAMILY_IPV6)
		event->flags |= EVENT_IS_IPV6;
}

/* CPUs share a bucket without a lock: one that refills late, after another, must not find time that
 * runs backwards. What is less than a token stays in the time of the last filling. */
static __always_inline void refill(struct bucket *bucket, __u32 rate, __u32 burst, __u64 now)
{
	__u64 filled = *(volatile __u64 *)&bucket->filled;
	__u64 longest = burst * NS_PER_SECOND / rate, elapsed, tokens;

	if (now <= filled)
		return;
	elapsed = now - filled < longest ? now - filled : longest;
	tokens = elapsed * rate / NS_PER_SECOND;
	if (!tokens)
		return;
	tokens += bucket->tokens;
	bucket->tokens = tokens < burst ? tokens : burst;
	bucket->filled = now - elapsed * rate % NS_PER_SECOND / rate;
}

/* Takes a token from the bucket, which is filled with rate tokens per second up to burst.
 * *held_back: how often there was none since the last time. */
static __always_inline bool take_token(const struct bucket_key *key, __u32 rate, __u32 burst,
				       __u32 *held_back)
{
	struct bucket *bucket = bpf_map_lookup_elem(&drop_buckets, key);
	__u64 now = bpf_ktime_get_ns();
	__u32 tokens;

	if (!bucket) {
		struct bucket full = {.filled = now, .tokens = burst};

		if (full.tokens)
			full.tokens--;
		bpf_map_update_elem(&drop_buckets, key, &full, BPF_ANY);
		return true;
	}
	refill(bucket, rate, burst, now);
	tokens = *(volatile __u32 *)&bucket->tokens;
	if (!tokens) {
		__sync_fetch_and_add(&bucket->suppressed, 1);
		return false;
	}
	bucket->tokens = tokens - 1;
	*held_back = __sync_lock_test_and_set(&bucket->suppressed, 0);
	return true;
}

/* A pod that runs into its policy all the time is not told all the time; nor are clients outside,
 * all of them together. */
static __always_inline bool take_answer_token(__u16 endpoint)
{
	struct bucket_key key = {.endpoint = endpoint, .reason = BUCKET_DENY_RESPONSE};
	__u32 held_back;

	return take_token(&key, deny_response_rate, deny_response_rate, &held_back);
}

static __always_inline void note_suppressed(__u32 cookie, __u16 endpoint, __u16 reason)
{
	struct suppressed_key key = {.cookie = cookie, .endpoint = endpoint, .reason = reason};
	__u64 *count = bpf_map_lookup_elem(&suppressed, &key), one = 1;

	if (count)
		__sync_fetch_and_add(count, 1);
	else
		bpf_map_update_elem(&suppressed, &key, &one, BPF_ANY);
}

/* What was held back is still to be said: the event that was to say it did not come about. */
static __always_inline void hold_back_again(const struct bucket_key *key, __u32 held_back)
{
	struct bucket *bucket = bpf_map_lookup_elem(&drop_buckets, key);

	if (bucket)
		__sync_fetch_and_add(&bucket->suppressed, held_back);
}

/* Whether the node's limit leaves room for one more event. It has its sequence number already: what
 * is held back is a gap, which whoever reads the ring tells as loss. */
static __always_inline bool may_emit(const struct node_settings *settings, __u8 ring, __u8 kind,
				     __u32 cookie)
{
	struct bucket_key key = {.endpoint = ring, .reason = BUCKET_EVENTS};
	__u32 rate = settings->event_rate, held_back;

	if (!rate || take_token(&key, rate, settings->event_burst, &held_back))
		return true;
	note_suppressed(cookie, 0, BUCKET_EVENTS | kind);
	return false;
}

/* Ids of the endpoints of this node that the packet comes from and goes to; 0: neither is. */
struct ends {
	__u16 source;
	__u16 destination;
};

/* The fields that say what happened to the packet. */
struct happening {
	__u8 kind;
	__u8 verdict;
	__u8 reason;
	__u8 ring;
	__u8 direction;	    /* of a drop or a verdict: the side that judged */
	__u8 with_verdicts; /* of a trace: its record tells what rules let begin, too */
	__u32 suppressed;
	struct ends ends;
};

static __always_inline __u32 deciding_cookie(const struct flow *flow, __u8 direction)
{
	return flow->cookie[direction == DIRECTION_INGRESS ? CT_INGRESS : CT_EGRESS];
}

/* That of the connection, as this end sees it: an answer has the direction in which it was asked
 * for. */
static __always_inline __u8 direction_of_trace(const struct flow *flow)
{
	if (flow->flags & EVENT_IS_REPLY && flow->direction)
		return DIRECTION_INGRESS + DIRECTION_EGRESS - flow->direction;
	return flow->direction;
}

/* This side's rules let the flow begin. Who is not isolated has nobody to name. */
static __always_inline bool let_begin(const struct flow *flow, __u32 side)
{
	return flow->state == CONNECTION_NEW && flow->cookie[side];
}

/* Flags of a record that tells what rules let begin, too. */
static __always_inline __u8 verdicts_within(const struct flow *flow)
{
	return (let_begin(flow, CT_EGRESS) ? EVENT_WITH_EGRESS_VERDICT : 0) |
	       (let_begin(flow, CT_INGRESS) ? EVENT_WITH_INGRESS_VERDICT : 0);
}

/* How many events a record with these flags stands for. */
static __always_inline __u32 events_within(__u8 flags)
{
	return 1 + !!(flags & EVENT_WITH_EGRESS_VERDICT) + !!(flags & EVENT_WITH_INGRESS_VERDICT);
}

/* Returns whether there is room for it. Global, as parse_headers is, and for the same reason: it
 * can't follow the pointers in a flow. */
__noinline int write_event(struct __sk_buff *skb, const struct flow *flow,
			   const struct happening *happening)
{
	struct node_settings *settings = node_settings();
	struct event_state *state = event_counters();
	struct event *event;
	__u64 sequence;
	__u8 verdicts;
	bool priority;
	__u32 count;

	if (!flow || !happening || !settings || !state)
		return false;
	priority = happening->ring == RING_PRIORITY;
	verdicts = happening->with_verdicts ? verdicts_within(flow) : 0;
	count = events_within(verdicts);
	sequence = priority ? __sync_fetch_and_add(&state->sequence[0], count)
			    : __sync_fetch_and_add(&state->sequence[1], count);
	if (count == 1 && !may_emit(settings, happening->ring, happening->kind,
				    deciding_cookie(flow, happening->direction)))
		return false;
	event = priority ? bpf_ringbuf_reserve(&events_priority, sizeof(*event), 0)
			 : bpf_ringbuf_reserve(&events, sizeof(*event), 0);
	if (!event) {
		__sync_fetch_and_add(priority ? &state->lost[0] : &state->lost[1], count);
		return false;
	}
	__builtin_memset(event, 0, sizeof(*event));
	event->time = bpf_ktime_get_ns();
	event->sequence = sequence;
	event->cpu = bpf_get_smp_processor_id();
	event->kind = happening->kind;
	event->verdict = happening->verdict;
	event->reason = happening->reason;
	event->ring = happening->ring;
	event->suppressed = happening->suppressed;
	event->source_endpoint = happening->ends.source;
	event->destination_endpoint = happening->ends.destination;
	event->ifindex = skb->ifindex;
	event->vlan = skb->vlan_present ? skb->vlan_tci : 0;
	describe_flow(event, flow);
	event->flags |= verdicts;
	event->direction = happening->direction;
	if (happening->kind == EVENT_DROP) {
		event->file = flow->packet.file;
		event->line = flow->packet.line;
	} else {
		event->point = flow->point;
	}
	submit(event, settings);
	return true;
}

static __always_inline __u16 id_of(const struct endpoint *endpoint)
{
	return endpoint ? endpoint->id : 0;
}

static __always_inline struct ends ends_of(const struct flow *flow)
{
	struct ends ends = {
	    .source = id_of(flow->source.endpoint),
	    .destination = id_of(flow->destination.endpoint),
	};

	return ends;
}

/* What a flow points to. After a global function has seen the flow, the verifier takes its pointers
 * for mere numbers. */
struct pointers {
	struct node_settings *settings;
	struct endpoint *source;
	struct endpoint *destination;
};

static __always_inline struct pointers pointers_of(const struct flow *flow)
{
	struct pointers pointers = {
	    .settings = flow->settings,
	    .source = flow->source.endpoint,
	    .destination = flow->destination.endpoint,
	};

	return pointers;
}

/* Puts them back, which the compiler must not find needless. */
static __always_inline void put_back(struct flow *flow, struct pointers pointers)
{
	volatile struct flow *forgotten = flow;

	forgotten->settings = pointers.settings;
	forgotten->source.endpoint = pointers.source;
	forgotten->destination.endpoint = pointers.destination;
}

static __always_inline void report_trace(struct __sk_buff *skb, const struct flow *flow,
					 struct ends ends, bool with_verdicts)
{
	struct happening trace = {
	    .kind = EVENT_TRACE,
	    .verdict = VERDICT_FORWARDED,
	    .ring = RING_NORMAL,
	    .direction = direction_of_trace(flow),
	    .with_verdicts = with_verdicts,
	    .ends = ends,
	};

	write_event(skb, flow, &trace);
}

/* One side's word about a packet that goes on: that it would have denied it, or that its rules let
 * the flow begin. What is allowed must not wash drops away. */
static __always_inline void report_verdict(struct __sk_buff *skb, const struct flow *flow,
					   struct ends ends, __u32 side, __u8 audited)
{
	struct happening verdict = {
	    .kind = EVENT_VERDICT,
	    .verdict = audited ? VERDICT_AUDIT : VERDICT_FORWARDED,
	    .reason = audited,
	    .ring = audited ? RING_PRIORITY : RING_NORMAL,
	    .direction = side == CT_EGRESS ? DIRECTION_EGRESS : DIRECTION_INGRESS,
	    .ends = ends,
	};

	if (audited || let_begin(flow, side))
		write_event(skb, flow, &verdict);
}

static __always_inline void report_verdicts(struct __sk_buff *skb, const struct flow *flow,
					    struct ends ends)
{
	struct workspace *space = own_workspace();

	if (!space)
		return;
	report_verdict(skb, flow, ends, CT_EGRESS, space->audited[CT_EGRESS]);
	report_verdict(skb, flow, ends, CT_INGRESS, space->audited[CT_INGRESS]);
}

/* What there is to say of a packet that goes on. What rules let begin is told in the record of its
 * trace. But what audit let pass goes by the other ring, and a limit holds back one event at a
 * time: then verdicts have records of their own. Global, as write_event is, and for the same
 * reason. */
__noinline int tell_passing(struct __sk_buff *skb, struct flow *flow, const struct ends *ends)
{
	const struct node_settings *settings = node_settings();
	bool traced, judged, together;

	if (!flow || !ends || !settings)
		return 0;
	traced = flow->report && !is_muted(settings, NODE_MUTE_TRACES);
	judged = (flow->flags & EVENT_FIRST_REPORT || flow->audited) &&
		 !is_muted(settings, NODE_MUTE_VERDICTS);
	together = traced && judged && !flow->audited && !settings->event_rate;
	if (judged)
		flow->flags |= EVENT_JUDGED_APART;
	if (judged && !together)
		report_verdicts(skb, flow, *ends);
	if (traced)
		report_trace(skb, flow, *ends, together);
	return 0;
}

/* A packet that goes on. */
static __noinline int report_passing(struct __sk_buff *skb, struct flow *flow)
{
	struct pointers pointers = pointers_of(flow);
	struct ends ends = ends_of(flow);

	tell_passing(skb, flow, &ends);
	put_back(flow, pointers);
	return 0;
}

/* Whether a drop may be reported; *held_back: how many like it could not since the last report. One
 * flooded endpoint must not hide the drops of the others. */
static __always_inline bool may_report_drop(const struct node_settings *settings,
					    const struct bucket_key *key, __u32 cookie,
					    __u32 *held_back)
{
	if (!settings->drop_rate ||
	    take_token(key, settings->drop_rate, settings->drop_burst, held_back))
		return true;
	note_suppressed(cookie, key->endpoint, key->reason);
	return false;
}

/* Whose drop it is: that of the end whose policy denied it, else of the end it is going to or
 * coming from. */
static __always_inline __u16 endpoint_to_blame(const struct flow *flow)
{
	bool by_receiver = flow->direction == DIRECTION_INGRESS;
	const struct party *blamed;

	if (flow->denier && flow->flags & EVENT_IS_REPLY)
		by_receiver = !by_receiver;
	blamed = by_receiver ? &flow->destination : &flow->source;
	return blamed->endpoint ? blamed->endpoint->id : 0;
}

static __noinline int report_drop(struct __sk_buff *skb, struct flow *flow, __u32 reason)
{
	struct bucket_key key = {.endpoint = endpoint_to_blame(flow), .reason = reason};
	struct happening drop = {
	    .kind = EVENT_DROP,
	    .verdict = VERDICT_DROPPED,
	    .reason = reason,
	    .ring = RING_PRIORITY,
	    .direction = flow->direction,
	    .ends = ends_of(flow),
	};
	struct pointers pointers = pointers_of(flow);
	__u32 cookie = deciding_cookie(flow, flow->direction);

	if (!may_report_drop(flow->settings, &key, cookie, &drop.suppressed))
		return 0;
	if (!write_event(skb, flow, &drop) && drop.suppressed)
		hold_back_again(&key, drop.suppressed);
	put_back(flow, pointers);
	return 0;
}

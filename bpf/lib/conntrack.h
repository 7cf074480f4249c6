/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
#pragma once
/* Floor 6: flows. One entry per flow under its canonical tuple, looked up once per packet; it holds
 * what each local side's policy said, and for which policy and peer it said so. */
#include "aggregate.h"
#include "policy.h"
#include "../config/conntrack.h"
#include "../config/service.h"

#undef SOURCE_FILE
#define SOURCE_FILE FILE_CONNTRACK

#define EEXIST 17
#define CT_DENIED (1ULL << 63)
#define CT_CLOSING_ANY (CT_CLOSING_ORIGINAL | CT_CLOSING_REPLY | CT_CLOSED)

/* A flow as its initiator sees it. */
struct opening {
	struct party initiator;
	struct party responder;
	__be16 port;
	__u8 protocol;
};

static __always_inline int compare_numbers(__be64 a, __be64 b)
{
	__u64 x = bpf_be64_to_cpu(a), y = bpf_be64_to_cpu(b);

	return x < y ? -1 : x > y;
}

static __always_inline bool sent_by_low(const struct packet *packet)
{
	int order = compare_numbers(packet->source.hi, packet->destination.hi);

	if (!order)
		order = compare_numbers(packet->source.lo, packet->destination.lo);
	if (!order && packet->kind == PACKET_PLAIN)
		order =
		    (int)bpf_ntohs(packet->source_port) - (int)bpf_ntohs(packet->destination_port);
	return order <= 0;
}

/* Fills key; returns whether the packet's sender is the key's lower half. */
static __always_inline bool canonical_key(const struct packet *packet, struct ct_key *key)
{
	bool by_low = sent_by_low(packet);

	key->low = by_low ? packet->source : packet->destination;
	key->high = by_low ? packet->destination : packet->source;
	key->protocol = packet->protocol;
	key->zone = CT_ZONE_POD;
	key->cluster = 0;
	if (packet->kind == PACKET_PLAIN) {
		key->low_port = by_low ? packet->source_port : packet->destination_port;
		key->high_port = by_low ? packet->destination_port : packet->source_port;
		return by_low;
	}
	key->low_port = packet->source_port;
	key->high_port = packet->destination_port;
	if ((packet->kind == PACKET_REQUEST) != by_low)
		key->high_port |= bpf_htons(CT_ICMP_ASKED_BY_HIGH);
	return by_low;
}

/* What judged must hold for the side's verdict to be still good; 0: no policy is known. */
static __always_inline __u64 expected_word(const struct endpoint *pod, __u32 peer)
{
	__u64 revision = active_policy(pod->subject).revision & POLICY_REVISION_MASK;

	return revision ? revision << 32 | peer : 0;
}

static __always_inline struct opening seen_by_initiator(const struct flow *flow, bool reply)
{
	const struct packet *packet = &flow->packet;
	bool swap = reply && packet->kind == PACKET_PLAIN;
	struct opening opening = {
	    .initiator = reply ? flow->destination : flow->source,
	    .responder = reply ? flow->source : flow->destination,
	    .port = swap ? packet->source_port : packet->destination_port,
	    .protocol = packet->protocol,
	};

	return opening;
}

static __always_inline __u8 direction_of(__u32 index)
{
	return index == CT_EGRESS ? DIRECTION_EGRESS : DIRECTION_INGRESS;
}

/* What is asked of one side. */
struct side_question {
	__u32 index; /* enum ct_side_index */
	__u32 peer;
	__u32 length; /* of the packet */
	__u32 now;
	__u16 subject;
	__u16 endpoint;
	__be16 port;
	__u8 protocol;
	__u8 reserved;
};

static __always_inline struct side_question side_question(const struct flow *flow, __u32 index,
							  const struct party *party, __u32 peer,
							  __be16 port)
{
	struct side_question question = {
	    .index = index,
	    .peer = peer,
	    .length = flow->packet.length,
	    .now = flow->now,
	    .subject = party->endpoint ? party->endpoint->subject : 0,
	    .endpoint = party->endpoint ? party->endpoint->id : 0,
	    .port = port,
	    .protocol = flow->packet.protocol,
	};

	return question;
}

/* Counts the packet for the entry that decided about one side. */
static __always_inline int count_side(const struct side_question *asked,
				      const struct ct_entry *entry)
{
	struct policy_counter_key key = {};
	__u32 index = asked->index & 1;

	key.peer = entry->any_peer[index] ? IDENTITY_UNKNOWN : asked->peer;
	key.cookie = entry->side[index].cookie;
	key.subject = asked->subject;
	key.port = port_within(asked->port, entry->prefix[index]);
	key.direction = direction_of(index);
	key.protocol = entry->prefix[index] ? asked->protocol : 0;
	key.bits = entry->prefix[index];
	return count_entry(&key, asked->length, asked->now);
}

/* The flow ends by this side's policy. */
static __always_inline void blame(struct flow *flow, __u32 index)
{
	flow->direction = index == CT_EGRESS ? DIRECTION_EGRESS : DIRECTION_INGRESS;
	flow->denier = 1 + index;
}

/* The packet goes on, but is told of. */
static __always_inline void note_audit(struct flow *flow, enum drop_reason reason, __u32 index)
{
	struct workspace *space = own_workspace();

	flow->audited = true;
	if (space)
		space->audited[index] = reason;
}

/* Before sides are asked (anew). */
static __always_inline void forget_audits(struct workspace *space)
{
	space->audited[CT_EGRESS] = 0;
	space->audited[CT_INGRESS] = 0;
}

static __always_inline void note_answer(const struct side_question *asked,
					const struct policy_answer *answer, __u64 judged,
					struct ct_entry *entry)
{
	struct ct_side *side = &entry->side[asked->index & 1];

	side->judged = judged << 32 | asked->peer;
	side->cookie = answer->cookie;
	side->endpoint = asked->endpoint;
	side->match = answer->match;
	side->flags = answer->flags;
	entry->prefix[asked->index & 1] = answer->prefix;
	entry->any_peer[asked->index & 1] = answer->any_peer;
	if (answer->reason && !(answer->flags & POLICY_AUDIT))
		side->judged |= CT_DENIED;
}

/* Asks one side's policy, notes the answer in the entry and counts it. Global, as parse_headers is,
 * and for the same reason. Returns as judge does. */
__noinline int ask_side(const struct side_question *asked, struct ct_entry *entry,
			struct policy_answer *answer)
{
	struct policy_question question = {};
	__u64 judged;

	if (!asked || !entry || !answer)
		return DROP_NO_CONFIGURATION_AVAILABLE_TO_PERFORM_POLICY_DECISION;
	question.active = active_policy(asked->subject);
	question.peer = asked->peer;
	question.direction = direction_of(asked->index);
	question.protocol = asked->protocol;
	question.port = asked->port;
	judged = question.active.revision & POLICY_REVISION_MASK;
	judge(&question, answer);
	if (!asked->peer || !answer->known)
		return answer->reason;
	note_answer(asked, answer, judged, entry);
	count_side(asked, entry);
	return answer->reason;
}

/* Asks one side's policy; audit turns a denial into a note. A peer that nobody has described yet
 * might be one that a rule denies, so "any" does not mean it. */
static __always_inline int judge_side(struct flow *flow, struct ct_entry *entry, __u32 index,
				      const struct party *party, __u32 peer, __be16 port)
{
	struct policy_answer answer = {};
	struct side_question question = side_question(flow, index, party, peer, port);
	enum drop_reason reason = ask_side(&question, entry, &answer);

	if (unlikely(!peer)) {
		blame(flow, index);
		return index == CT_EGRESS ? DROP(flow, UNKNOWN_L3_TARGET_ADDRESS)
					  : DROP(flow, INVALID_IDENTITY);
	}
	if (!answer.known) {
		blame(flow, index);
		return DROP(flow, NO_CONFIGURATION_AVAILABLE_TO_PERFORM_POLICY_DECISION);
	}
	if (!reason)
		return 0;
	if (answer.flags & POLICY_AUDIT) {
		note_audit(flow, reason, index);
		return 0;
	}
	blame(flow, index);
	return dropped_at(&flow->packet, reason, SOURCE_FILE, __LINE__);
}

/* Judges every side that lives here, the initiator's first; the first denial ends it. A pod may
 * always talk to itself. */
static __always_inline int judge_sides(struct flow *flow, struct ct_entry *entry,
				       const struct opening *opening)
{
	int dropped = 0;

	if (flow->translation & TRANSLATION_HAIRPIN)
		return 0;
	if (opening->initiator.endpoint)
		dropped = judge_side(flow, entry, CT_EGRESS, &opening->initiator,
				     opening->responder.identity, opening->port);
	if (!dropped && opening->responder.endpoint)
		dropped = judge_side(flow, entry, CT_INGRESS, &opening->responder,
				     opening->initiator.identity, opening->port);
	recall_rules(flow, entry);
	return dropped;
}

/* Until more is heard than SYN or INIT and what answers it, the opener may be anybody: a flood of
 * forged ones, each of which is answered, must not be remembered for hours. */
static __always_inline __u32 lifetime_of(const struct packet *packet, __u32 flags)
{
	bool answered = flags & CT_SEEN_REPLY && !(packet->tcp_flags & TCP_SYN);

	if (packet->protocol == IPPROTO_TCP) {
		if (flags & CT_CLOSED)
			return ct_lifetime_closing;
		return answered ? ct_lifetime_tcp : ct_lifetime_syn;
	}
	if (packet->protocol == IPPROTO_SCTP) {
		if (flags & CT_CLOSED)
			return ct_lifetime_closing;
		return answered ? ct_lifetime_sctp : ct_lifetime_syn;
	}
	return packet->kind == PACKET_PLAIN ? ct_lifetime_any : ct_lifetime_icmp;
}

/* Endpoints that open more flows than the node allows each would starve the others. The sender
 * pays when it lives here, else the receiver. */
static __always_inline struct ct_quota *quota_of(__u32 owner)
{
	return bpf_map_lookup_elem(&ct_quota, &owner);
}

static __always_inline void repay(__u32 owner)
{
	struct ct_quota *quota = quota_of(owner);

	if (quota)
		__sync_fetch_and_add(&quota->opened, -1ULL);
}

static __always_inline int charge(struct flow *flow, __u32 owner)
{
	struct ct_quota *quota = quota_of(owner);
	__s64 allowed = flow->settings->ct_quota, live;

	if (!quota)
		return 0;
	/* Signed: the agent may already have counted one that was replaced. */
	live = __sync_fetch_and_add(&quota->opened, 1) - quota->closed;
	if (live < allowed || !allowed)
		return 0;
	__sync_fetch_and_add(&quota->opened, -1ULL);
	return DROP(flow, DROP_RATE_LIMITED);
}

static __always_inline __u16 owner_of(const struct opening *opening)
{
	const struct endpoint *pod =
	    opening->initiator.endpoint ? opening->initiator.endpoint : opening->responder.endpoint;

	return pod ? pod->id : 0;
}

/* flags of a flow whose first packet this is: a stray FIN or RST leaves nothing to wait for. */
static __always_inline __u32 first_flags(const struct packet *packet, bool by_low)
{
	__u32 flags = by_low ? 0 : CT_INITIATOR_HIGH;

	if (packet->tcp_flags & (TCP_RST | TCP_FIN))
		flags |= CT_CLOSED;
	return flags;
}

/* stale: an expired or closed entry is in the way and is replaced; its owner gets the quota back.
 */
static __always_inline int store_flow(struct flow *flow, struct ct_key *key, struct ct_entry *fresh,
				      const struct ct_entry *stale)
{
	__u16 old_owner = stale ? stale->owner : 0;
	int dropped, error;

	dropped = charge(flow, fresh->owner);
	if (dropped)
		return dropped;
	if (stale)
		repay(old_owner);
	error = bpf_map_update_elem(&conntrack, key, fresh, stale ? BPF_ANY : BPF_NOEXIST);
	if (likely(!error))
		return 0;
	repay(fresh->owner);
	/* Another CPU opened the same flow in between, with the same verdict. */
	if (error == -EEXIST)
		return 0;
	return DROP(flow, CT_MAP_INSERTION_FAILED);
}

static __always_inline void count_first(struct ct_entry *entry, const struct packet *packet,
					bool reply)
{
	if (unlikely(reply)) {
		entry->packets[1] = 1;
		entry->bytes[1] = packet->length;
		entry->flags_reported[1] = packet->tcp_flags;
		return;
	}
	entry->packets[0] = 1;
	entry->bytes[0] = packet->length;
	entry->flags_reported[0] = packet->tcp_flags;
}

/* What the socket asked for that sends to a backend, if it was translated when it connected. */
static __noinline int recall_socket(struct __sk_buff *skb, struct flow *flow)
{
	const struct packet *packet = &flow->packet;
	struct socket_service_key key = {
	    .cookie = bpf_get_socket_cookie(skb),
	    .address = packet->destination,
	    .port = packet->destination_port,
	    .protocol = packet->protocol,
	};
	struct socket_service *known = NULL;
	struct workspace *space = own_workspace();

	if (key.cookie)
		known = bpf_map_lookup_elem(&socket_services, &key);
	if (!known || !space)
		return 0;
	flow->destination.service = known->service;
	flow->translation |= TRANSLATION_ASKED;
	space->asked = known->address;
	space->asked_port = known->port;
	return 0;
}

static __always_inline bool may_ask_socket(const struct flow *flow)
{
	return services_enabled && flow->settings->flags & NODE_SERVICES && !flow->translation &&
	       !flow->answers && has_ports(flow->packet.protocol);
}

static __always_inline __u32 service_flags(const struct flow *flow)
{
	if (flow->translation & TRANSLATION_GIVEN)
		return CT_TRANSLATED;
	if (flow->translation & TRANSLATION_DSR)
		return CT_SERVICE_DSR;
	return flow->vni && is_world(flow->source.identity) ? CT_NODE_PORT : 0;
}

/* For who keeps flows of services, whose lifetime follows this one's. */
static __always_inline void note_lifetime(__u8 translation, __u32 expires)
{
	struct workspace *space;

	if (likely(!translation))
		return;
	space = own_workspace();
	if (space)
		space->expires = expires;
}

/* A flow never seen before: judged, and remembered when it may pass. A denied one leaves no entry.
 */
static __noinline int open_flow(struct __sk_buff *skb, struct flow *flow, struct ct_key *key,
				struct ct_entry *stale, bool by_low)
{
	const struct packet *packet = &flow->packet;
	struct workspace *space = own_workspace();
	struct opening opening;
	struct ct_entry *fresh;
	int dropped;

	if (!space)
		return DROP(flow, CT_MAP_INSERTION_FAILED);
	fresh = &space->entry;
	__builtin_memset(fresh, 0, sizeof(*fresh));
	forget_audits(space);
	flow->state = flow->answers ? CONNECTION_REPLY : CONNECTION_NEW;
	if (packet->kind == PACKET_REPLY)
		return DROP(flow, UNKNOWN_CONNECTION_TRACKING_STATE);
	if (unlikely(flow->answers)) {
		fresh->flags = CT_SEEN_REPLY;
		flow->flags |= EVENT_IS_REPLY;
	}
	if (may_ask_socket(flow))
		recall_socket(skb, flow);
	opening = seen_by_initiator(flow, flow->answers);
	fresh->service = opening.responder.service;
	dropped = judge_sides(flow, fresh, &opening);
	if (dropped)
		return dropped;
	count_first(fresh, packet, flow->answers);
	fresh->created = flow->now;
	fresh->reported[0] = flow->now;
	fresh->flags |= first_flags(packet, by_low != flow->answers) | service_flags(flow);
	fresh->expires = flow->now + lifetime_of(packet, fresh->flags);
	fresh->source_identity = opening.initiator.identity;
	fresh->owner = owner_of(&opening);
	flow->flags |= EVENT_FIRST_REPORT;
	flow->report = true;
	note_lifetime(flow->translation, fresh->expires);
	return store_flow(flow, key, fresh, stale);
}

/* The policy, a peer's identity or an endpoint behind an address changed: asks again as if the flow
 * began now. The entry is replaced under its key, never changed in place: its memory may already
 * belong to another flow. Counters keep what they have. */
static __noinline int judge_again(struct flow *flow, struct ct_key *key, struct ct_entry *entry,
				  bool reply)
{
	struct opening opening = seen_by_initiator(flow, reply);
	struct workspace *space = own_workspace();
	struct ct_entry *changed;
	int dropped;

	if (!space)
		return DROP(flow, CT_MAP_INSERTION_FAILED);
	changed = &space->entry;
	*changed = *entry;
	__builtin_memset(changed->side, 0, sizeof(changed->side));
	forget_audits(space);
	dropped = judge_sides(flow, changed, &opening);
	if (changed->side[CT_EGRESS].cookie != entry->side[CT_EGRESS].cookie ||
	    changed->side[CT_INGRESS].cookie != entry->side[CT_INGRESS].cookie)
		flow->report = true;
	bpf_map_update_elem(&conntrack, key, changed, BPF_EXIST);
	return dropped;
}

/* The packet of a flow that this side's policy has ended. */
static __always_inline int drop_denied(struct flow *flow, const struct ct_side *side, __u32 index)
{
	blame(flow, index);
	return side->flags & POLICY_DEFAULT ? DROP(flow, POLICY_DENIED) : DROP(flow, POLICY_DENY);
}

/* 0: still good; 1: must be judged again; negative: denied, and still so. */
static __always_inline int check_side(struct flow *flow, const struct ct_entry *entry, __u32 index,
				      const struct party *judge, __u32 peer)
{
	const struct ct_side *side = &entry->side[index];
	__u64 judged = side->judged;

	if (!judge->endpoint)
		return 0;
	if (unlikely(!judged || (judged & ~CT_DENIED) != expected_word(judge->endpoint, peer) ||
		     side->endpoint != judge->endpoint->id))
		return 1;
	if (likely(!(judged & CT_DENIED)))
		return 0;
	return drop_denied(flow, side, index);
}

/* Global, as parse_headers is, and for the same reason. */
__noinline int count_again(const struct side_question *asked, const struct ct_entry *entry)
{
	return asked && entry ? count_side(asked, entry) : 0;
}

/* A packet that a remembered denial drops: the entry behind that is counted as if asked again. */
static __noinline int drop_remembered(struct flow *flow, const struct ct_entry *entry, bool reply,
				      int dropped)
{
	const struct opening opening = seen_by_initiator(flow, reply);
	struct side_question asked;

	recall_rules(flow, entry);
	if (flow->denier == 1 + CT_EGRESS)
		asked = side_question(flow, CT_EGRESS, &opening.initiator,
				      opening.responder.identity, opening.port);
	else
		asked = side_question(flow, CT_INGRESS, &opening.responder,
				      opening.initiator.identity, opening.port);
	count_again(&asked, entry);
	return dropped;
}

static __always_inline int check_sides(struct flow *flow, struct ct_key *key,
				       struct ct_entry *entry, bool reply)
{
	const struct party *initiator = reply ? &flow->destination : &flow->source;
	const struct party *responder = reply ? &flow->source : &flow->destination;
	int result;

	result = check_side(flow, entry, CT_EGRESS, initiator, responder->identity);
	if (likely(!result))
		result = check_side(flow, entry, CT_INGRESS, responder, initiator->identity);
	if (likely(!result) || flow->translation & TRANSLATION_HAIRPIN)
		return 0;
	if (result > 0)
		return judge_again(flow, key, entry, reply);
	return drop_remembered(flow, entry, reply, result);
}

/* What a packet changes in a flow's life. */
static __always_inline __u32 transitions(const struct packet *packet, __u32 flags, bool reply)
{
	__u32 added = reply ? CT_SEEN_REPLY : 0;

	if (!packet->tcp_flags)
		return added & ~flags;
	if (packet->tcp_flags & TCP_FIN)
		added |= reply ? CT_CLOSING_REPLY : CT_CLOSING_ORIGINAL;
	if (packet->tcp_flags & TCP_RST)
		added |= CT_CLOSED;
	if (((flags | added) & CT_CLOSING_ORIGINAL) && ((flags | added) & CT_CLOSING_REPLY))
		added |= CT_CLOSED;
	return added & ~flags;
}

/* What a packet of an established flow meant. */
enum touched {
	TOUCHED_REPORTED = 1 << 0, /* aggregation lets it be reported */
	TOUCHED_CLOSED = 1 << 1,   /* with it the flow is over */
};

/* Notes what a packet of an established flow begins or ends, and whether it is reported. Global, as
 * parse_headers is, and for the same reason. Returns enum touched. */
__noinline int touch_entry(const struct packet *packet, struct ct_entry *entry, __u32 now,
			   bool reply, __u8 translation)
{
	__u32 flags, added, expires;
	int touched = 0;

	if (!packet || !entry)
		return 0;
	flags = entry->flags;
	added = transitions(packet, flags, reply);
	if (added) {
		__sync_fetch_and_or(&entry->flags, added);
		if (added & CT_CLOSED)
			touched = TOUCHED_CLOSED;
	}
	if (!(flags & CT_CLOSED)) {
		expires = now + lifetime_of(packet, flags | added);
		/* A forged SYN does not cut it short. */
		if (entry->expires < expires || added & CT_CLOSED)
			entry->expires = expires;
	}
	note_lifetime(translation, entry->expires);
	if (events_enabled && aggregate(packet, entry, now, added, reply))
		touched |= TOUCHED_REPORTED;
	return touched;
}

/* TCP or UDP in the middle of its flow: nothing begins or ends. A call costs more than all that has
 * to be done then. */
static __always_inline bool goes_on(const struct packet *packet, __u32 flags, bool reply)
{
	__u32 wanted = packet->protocol == IPPROTO_TCP || reply ? CT_SEEN_REPLY : 0;

	return (packet->protocol == IPPROTO_TCP || packet->protocol == IPPROTO_UDP) &&
	       !(packet->tcp_flags & (TCP_SYN | TCP_FIN | TCP_RST)) && !(flags & CT_CLOSING_ANY) &&
	       (flags & wanted) == wanted;
}

/* lifetime_of and what follows from it, of a packet that goes on. */
static __always_inline void prolong(const struct flow *flow, struct ct_entry *entry)
{
	__u32 expires =
	    flow->now + (flow->packet.protocol == IPPROTO_TCP ? ct_lifetime_tcp : ct_lifetime_any);

	if (entry->expires < expires)
		entry->expires = expires;
	note_lifetime(flow->translation, entry->expires);
}

static __always_inline void touch(struct flow *flow, struct ct_entry *entry, bool reply)
{
	const struct packet *packet = &flow->packet;
	int touched;

	if (reply) {
		entry->packets[1]++;
		entry->bytes[1] += packet->length;
	} else {
		entry->packets[0]++;
		entry->bytes[0] += packet->length;
	}
	if (likely(goes_on(packet, entry->flags, reply) &&
		   !(events_enabled &&
		     is_report_due(flow->settings, packet, entry, flow->now, reply)))) {
		prolong(flow, entry);
		return;
	}
	touched = touch_entry(packet, entry, flow->now, reply, flow->translation);
	if (touched & TOUCHED_CLOSED && flow->translation)
		flow->translation |= TRANSLATION_CLOSED;
	if (!(touched & TOUCHED_REPORTED))
		return;
	if (touched & TOUCHED_CLOSED)
		flow->flags |= EVENT_LAST_REPORT;
	flow->report = true;
	recall_rules(flow, entry);
}

/* A SYN or INIT that opens, as opposed to what answers it. */
static __always_inline bool is_opening(const struct packet *packet)
{
	return (packet->tcp_flags & (TCP_SYN | TCP_ACK)) == TCP_SYN;
}

/* Whether the packet belongs to a flow that is tracked. */
static __always_inline bool is_tracked(const struct packet *packet)
{
	struct ct_key key;
	struct ct_entry *entry;

	canonical_key(packet, &key);
	entry = bpf_map_lookup_elem(&conntrack, &key);
	return entry && coarse_seconds() < entry->expires;
}

/* The packet comes from a backend, or is about one: its client knows it as a frontend. */
static __always_inline void note_frontend(struct flow *flow, const struct ct_entry *entry)
{
	flow->source.service = entry->service;
	flow->destination.service = 0;
	if (entry->flags & CT_TRANSLATED)
		flow->translation |= TRANSLATION_RESTORE;
	else if (entry->flags & CT_SERVICE_DSR)
		flow->translation |= TRANSLATION_DSR;
}

/* Routers may bring a client to another node while it talks to one frontend: then it is told of
 * what was asked here, or the other way round. Its replies are what they were. */
static __always_inline bool has_moved(const struct flow *flow, const struct ct_entry *entry)
{
	return flow->translation & (TRANSLATION_GIVEN | TRANSLATION_DSR) &&
	       entry->flags & (CT_TRANSLATED | CT_SERVICE_DSR) && flow->destination.service &&
	       flow->destination.service == entry->service;
}

/* Replies of a translated flow are given another source: so the flow must not share its tuple with
 * one that reaches the same backend by another frontend, or by its own address. */
static __noinline int check_service(struct flow *flow, const struct ct_entry *entry, bool reply)
{
	__u32 asked = flow->translation & TRANSLATION_GIVEN ? flow->destination.service : 0;
	__u32 known = entry->flags & CT_TRANSLATED ? entry->service : 0;

	if (!reply)
		return asked == known || has_moved(flow, entry) ? 0 : DROP(flow, NAT_NOT_NEEDED);
	if (asked)
		return DROP(flow, NAT_NOT_NEEDED);
	note_frontend(flow, entry);
	return 0;
}

static __always_inline bool concerns_service(const struct flow *flow, const struct ct_entry *entry)
{
	return services_enabled &&
	       (entry->flags & (CT_TRANSLATED | CT_SERVICE_DSR) || flow->translation);
}

/* Finds the packet's flow, or opens it, and holds it to the policies at its ends. */
static __always_inline int track(struct __sk_buff *skb, struct flow *flow)
{
	const struct packet *packet = &flow->packet;
	struct ct_key key;
	bool by_low = canonical_key(packet, &key);
	struct ct_entry *entry = bpf_map_lookup_elem(&conntrack, &key);
	bool reply;
	int dropped;

	flow->now = coarse_seconds();
	if (!entry || flow->now >= entry->expires)
		return open_flow(skb, flow, &key, entry, by_low);
	reply = by_low == !!(entry->flags & CT_INITIATOR_HIGH);
	if (unlikely(is_opening(packet))) {
		/* Either end of an association may begin it anew (RFC 9260, 5.2). */
		if (entry->flags & CT_CLOSING_ANY || (reply && packet->protocol == IPPROTO_SCTP))
			return open_flow(skb, flow, &key, entry, by_low);
		if (reply)
			return DROP(flow, UNKNOWN_CONNECTION_TRACKING_STATE);
	}
	flow->state = reply ? CONNECTION_REPLY : CONNECTION_ESTABLISHED;
	if (reply) {
		flow->flags |= EVENT_IS_REPLY;
		/* Behind the node's address is the client it was judged as. */
		if (unlikely(entry->flags & CT_NODE_PORT))
			flow->destination.identity = entry->source_identity;
	}
	if (unlikely(concerns_service(flow, entry))) {
		dropped = check_service(flow, entry, reply);
		if (dropped)
			return dropped;
	}
	dropped = check_sides(flow, &key, entry, reply);
	if (unlikely(dropped))
		return dropped;
	touch(flow, entry, reply);
	return 0;
}

/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Judges many questions in one run, with the very function packets are judged by: how user space
 * compares the kernel's verdicts with its own. */
#include "../lib/policy.h"
#include "../abi/decision.h"

/* A syscall program may sleep: it must say when it holds entries. */
extern void bpf_rcu_read_lock(void) __ksym;
extern void bpf_rcu_read_unlock(void) __ksym;

static __always_inline void answer_case(struct policy_case *question)
{
	struct policy_answer answer = {};
	struct policy_question asked = {
	    .active = active_policy(question->subject),
	    .peer = question->peer,
	    .direction = question->direction,
	    .protocol = question->protocol,
	    .port = question->port,
	};

	question->reason = judge(&asked, &answer);
	question->verdict = question->reason ? POLICY_VERDICT_DENY : POLICY_VERDICT_ALLOW;
	question->match = answer.match;
	question->cookie = answer.cookie;
	question->precedence = answer.precedence;
}

static long answer_next(__u32 index, struct policy_batch *batch)
{
	__u32 number = batch->first + index;
	struct policy_case *question = bpf_map_lookup_elem(&policy_cases, &number);

	if (!question)
		return 1;
	bpf_rcu_read_lock();
	answer_case(question);
	bpf_rcu_read_unlock();
	return 0;
}

SEC("syscall")
int judge_policies(struct policy_batch *asked)
{
	struct policy_batch batch = *asked;

	return bpf_loop(batch.count, answer_next, &batch, 0);
}

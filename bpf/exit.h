/* The one exit: counts the reason and turns it into what the hook is told. */

static __always_inline bool exit_is_sent(int reason)
{
	return reason == REASON_FORWARDED || reason == REASON_TABLE_FULL ||
	       (FEATURE_NAT && reason == REASON_ANSWERED);
}

static __always_inline bool exit_is_drop(int reason)
{
	return reason == REASON_NO_BACKEND || reason == REASON_TTL_EXCEEDED ||
	       reason == REASON_NO_ROUTE || reason == REASON_BUSY ||
	       reason == REASON_BACKEND_GONE || reason == REASON_TOO_BIG ||
	       reason == REASON_DROP_PACKET || reason == REASON_NO_CALL_ID;
}

/* A packet that goes nowhere, whose client is told why. */
static __always_inline bool exit_is_refusal(int reason)
{
	return reason == REASON_NO_BACKEND || reason == REASON_TTL_EXCEEDED ||
	       reason == REASON_TOO_BIG;
}

#if HOOK_IS_XDP

/* Passes a packet up: with its mark in the metadata, or counted here. */
static __always_inline int exit_pass(struct hook_context *ctx, int reason, struct packet *packet,
				     u32 mark)
{
	struct handover handover = { .magic = HANDOVER_MAGIC, .reason = reason, .mark = mark };

	if (packet->interface & INTERFACE_NO_METADATA)
		return HOOK_PASS;
	if (reason != REASON_NO_METADATA && !mark) {
		stats_count_reason(packet->cpu, reason, 1);
		return HOOK_PASS;
	}
	if (reason != REASON_NO_METADATA && !hook_hand_over(ctx, &handover))
		return HOOK_PASS;
	maps_interface(packet->ifindex)->flags |= INTERFACE_NO_METADATA;
	return HOOK_PASS;
}

#else

/* Passes a packet up with its mark. */
static __always_inline int exit_pass(struct hook_context *ctx, int reason, struct packet *packet,
				     u32 mark)
{
	if (mark)
		ctx->mark = mark;
	stats_count_reason(packet->cpu, reason, hook_segments(ctx));
	return HOOK_PASS;
}

#endif

static __always_inline int exit_with(struct hook_context *ctx, int reason, struct packet *packet,
				     u32 mark)
{
	if (reason == REASON_HANDED_OVER)
		return HOOK_PASS;
	if (exit_is_sent(reason)) {
		stats_count_reason(packet->cpu, reason, hook_segments(ctx));
		return packet->action;
	}
	if (exit_is_drop(reason)) {
		stats_count_reason(packet->cpu, reason, hook_segments(ctx));
		/* it may have become an answer: refuse.h */
		return packet->action ? packet->action : HOOK_DROP;
	}
	return exit_pass(ctx, reason, packet, mark);
}

#if !HOOK_IS_XDP

/* The exit of what this host sends. */
static __always_inline int exit_egress(struct hook_context *ctx, int reason)
{
	if (reason == REASON_ANSWERED)
		stats_count_reason(bpf_get_smp_processor_id(), reason, hook_segments(ctx));
	return reason == REASON_OK || reason == REASON_ANSWERED ? HOOK_PASS : HOOK_DROP;
}

#endif

/* The same, but what is refused goes to the program that tells its client. */
static __always_inline int exit_or_refuse(struct hook_context *ctx, int reason,
					  struct journey *journey)
{
	if (exit_is_refusal(reason)) {
		journey->reason = reason;
		programs.call(ctx, PROGRAM_REFUSE);
	}
	return exit_with(ctx, reason, &journey->packet, journey->mark);
}

/* What a packet is to the balancer: nobody's business at a glance, or of which mark and service. */
#define FILTER_SHIFT (64 - FILTER_BITS)

static __always_inline bool classify_filter_has(u64 sum)
{
	u32 word = sum >> (FILTER_SHIFT + 6);
	u64 *bits = filter.lookup(&word);

	return bits && *bits >> (sum >> FILTER_SHIFT & 63) & 1;
}

/* Some service or rule names where the packet goes, or perhaps does. */
static __always_inline bool classify_concerns(struct hook_context *ctx, struct packet *packet)
{
	return classify_filter_has(packet->target_sum) ||
	       classify_filter_has(packet->address_sum) || hook_mark(ctx);
}

static __always_inline u64 classify_switch(u32 index)
{
	u64 *word = switches.lookup(&index);

	return word ? READ_ONCE(*word) : 0;
}

/* Where the packet goes, as a verdict holds it. */
static __always_inline void classify_target(struct packet *packet, struct verdict *target)
{
	if (packet_is_ipv6(packet)) {
		target->virtual[0] = packet->key[2];
		target->virtual[1] = packet->key[3];
		target->target = (packet->key[4] >> 16) | FAMILY_IPV6 << 24;
	} else {
		target->virtual[0] = packet->key[0] >> 32;
		target->virtual[1] = 0;
		target->target = (packet->key[1] >> 16) | FAMILY_IPV4 << 24;
	}
}

/* By the rules and the services themselves. */
static __always_inline int classify_anew(struct hook_context *ctx, struct journey *journey,
					 u64 marks)
{
	int reason = mark_classify(ctx, &journey->packet, marks, &journey->mark);

	return reason ? reason : service_find(journey);
}

/*
 * Leaves mark, service and its version in the journey.  What is found is remembered until the next
 * change, unless a rule looks at more than where the packet goes.
 */
static __always_inline int classify_packet(struct hook_context *ctx, struct journey *journey)
{
	u32 index = journey->packet.target_sum >> 32 & (VERDICTS - 1);
	struct verdict target = {}, *known = verdicts.lookup(&index);
	u64 epoch, marks;
	int reason;

	/* read before the rules: what changes after this is not remembered as of now */
	epoch = classify_switch(SWITCH_EPOCH);
	marks = classify_switch(SWITCH_MARKS);
	if (!known || hook_mark(ctx) || !MARK_BY_TARGET(marks))
		return classify_anew(ctx, journey, marks);
	classify_target(&journey->packet, &target);
	journey->verdict = index + 1;
	if (known->epoch == epoch && known->target == target.target &&
	    known->virtual[0] == target.virtual[0] && known->virtual[1] == target.virtual[1]) {
		journey->mark = known->mark;
		if (known->reason)
			return known->reason;
		journey->service = known->service;
		return service_enter(journey) ? REASON_OK : REASON_INTERNAL;
	}
	reason = classify_anew(ctx, journey, marks);
	target.epoch = epoch;
	target.mark = journey->mark;
	target.service = journey->service;
	target.reason = reason;
	*known = target;
	return reason;
}

/* The packet's address is this host's now; asked once in a jiffy. */
static __always_inline bool classify_is_local(struct hook_context *ctx, struct journey *journey)
{
	u32 index = journey->verdict - 1;
	struct verdict *known = verdicts.lookup(&index);

	if (!journey->verdict || !known)
		return nexthop_is_local(ctx, &journey->packet);
	if (known->local_at == journey->now)
		return true;
	if (!nexthop_is_local(ctx, &journey->packet))
		return false;
	known->local_at = journey->now;
	return true;
}

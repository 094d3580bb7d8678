/* What a packet is to the balancer: nobody's business at a glance, or of which mark and service. */
#define FILTER_SHIFT (64 - FILTER_BITS)

static __always_inline bool classify_filter_has(u64 sum)
{
	u64 bits = *ROW(filter, sum >> (FILTER_SHIFT + 6));

	return bits >> (sum >> FILTER_SHIFT & 63) & 1;
}

/* Some service or rule names where the packet goes, or perhaps does. */
static __always_inline bool classify_concerns(struct hook_context *ctx, struct packet *packet)
{
	return classify_filter_has(packet->target_sum) ||
	       classify_filter_has(packet_address_sum(packet)) || hook_mark(ctx);
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

/* By the rules and the services themselves; ordered rules have a program of their own. */
static __always_inline int classify_anew(struct hook_context *ctx, struct journey *journey)
{
	if (!MARK_ORDERED(journey->marks)) {
		mark_by_target(ctx, journey);
	} else if (!journey->ruled) {
		programs.call(ctx, PROGRAM_RULES);
		return REASON_INTERNAL;
	}
	journey->ruled = 0;
	if (!mark_is_current(journey)) {
		programs.call(ctx, PROGRAM_NEW);
		return REASON_INTERNAL;
	}
	return journey->excluded ? REASON_MARK_EXCLUDED : service_find(journey);
}

/* What this CPU remembers of the packet's target is true still. */
static __always_inline bool classify_is_known(struct journey *journey, struct verdict *known,
					      struct verdict *target)
{
	return known->epoch == journey->epoch && known->target == target->target &&
	       known->virtual[0] == target->virtual[0] && known->virtual[1] == target->virtual[1];
}

/*
 * Leaves mark, service and its version in the journey.  What is found is remembered until the next
 * change, unless a rule looks at more than where the packet goes.
 */
static __always_inline int classify_packet(struct hook_context *ctx, struct journey *journey)
{
	u64 index = journey->packet.target_sum >> 32 & (VERDICTS - 1);
	struct verdict target = {}, *known = CPU_ROW(verdicts, journey->packet.cpu, index);

	if (!journey->ruled) {
		/* read before the rules: what changes after this is not remembered as of now */
		journey->epoch = READ_ONCE(*ROW(switches, SWITCH_EPOCH));
		journey->marks = READ_ONCE(*ROW(switches, SWITCH_MARKS));
	}
	if (hook_mark(ctx) || !MARK_BY_TARGET(journey->marks))
		return classify_anew(ctx, journey);
	classify_target(&journey->packet, &target);
	journey->verdict = index + 1;
	if (classify_is_known(journey, known, &target)) {
		journey->mark = known->mark;
		if (known->reason)
			return known->reason;
		journey->service = known->service;
		service_enter(journey);
		return REASON_OK;
	}
	target.reason = classify_anew(ctx, journey);
	/* no finding */
	if (target.reason == REASON_INTERNAL)
		return REASON_INTERNAL;
	target.epoch = journey->epoch;
	target.mark = journey->mark;
	target.service = journey->service;
	*known = target;
	return target.reason;
}

/* The packet's address is this host's now; asked once in a jiffy. */
static __always_inline bool classify_is_local(struct hook_context *ctx, struct journey *journey)
{
	struct verdict *known = CPU_ROW(verdicts, journey->packet.cpu, journey->verdict - 1);

	if (!journey->verdict)
		return nexthop_is_local(ctx, &journey->packet);
	if (known->local_at == journey->now)
		return true;
	if (!nexthop_is_local(ctx, &journey->packet))
		return false;
	known->local_at = journey->now;
	return true;
}

/*
 * twos: the less loaded of two members that are drawn by weight.
 *
 * One pass over the list adds the weights up, SCAN_STEP members a run.  A number is drawn below the
 * sum so far; whenever it falls within what the last step added, that step is the draw's, with what
 * is left of the number.  So each step is drawn as often as its weights say, whatever comes after
 * it, and only the two steps that are drawn in the end are walked again.
 */
#define TWOS_DRAWN (1U << 31)

/* A number below `limit`. */
static __always_inline u64 schedule_draw(u64 limit)
{
	u64 high = bpf_get_prandom_u32();

	return (high << 32 | bpf_get_prandom_u32()) % limit;
}

/* Draws anew after a step that added so much; IPVS gives the first of all one chance more. */
static __always_inline void schedule_twos_draw(struct journey *journey, u64 added)
{
	u64 first = !journey->weights, number;

	if (!added)
		return;
	journey->weights += added + first;
	for (u32 i = 0; i < 2; i++) {
		number = schedule_draw(journey->weights);
		if (number >= added + first)
			continue;
		journey->draws[i].scan = journey->scan;
		journey->draws[i].left = number ? number - first : 0;
	}
}

/* One step of the pass. */
static __always_inline void schedule_twos_add(struct journey *journey,
					      struct service_config *config)
{
	struct member *member;

	if (!journey->scan)
		journey->weights = 0;
	/* verifier, where it knows bounds of the sum: "BPF program is too large" */
	WRITE_ONCE(journey->added, 0);
#pragma clang loop unroll(disable)
	for (u32 i = 0; i < SCAN_STEP; i++) {
		member = schedule_member(config, journey->scan + i);
		if (!member)
			break;
		if (schedule_is_usable(member))
			WRITE_ONCE(journey->added, READ_ONCE(journey->added) + member->weight);
	}
	schedule_twos_draw(journey, READ_ONCE(journey->added));
}

/* The place of the member that a draw meets, + 1; 0 where all of its step have become unusable. */
static __always_inline u32 schedule_twos_find(struct journey *journey,
					      struct service_config *config, struct draw *draw)
{
	u32 scan = draw->scan;
	struct member *member;
	u64 left;

	WRITE_ONCE(journey->best, 0);
#pragma clang loop unroll(disable)
	for (u32 i = 0; i < SCAN_STEP; i++) {
		member = schedule_member(config, scan + i);
		if (!member || !schedule_is_usable(member))
			continue;
		WRITE_ONCE(journey->best, scan + i + 1);
		left = READ_ONCE(draw->left);
		if (left < member->weight)
			break;
		WRITE_ONCE(draw->left, left - member->weight);
	}
	return READ_ONCE(journey->best);
}

/* The second is less loaded than the first, for its weight. */
static __always_inline bool schedule_twos_prefers(struct service_config *config, u32 first,
						  u32 second)
{
	struct member *one = schedule_member(config, first - 1);
	struct member *other = schedule_member(config, second - 1);
	struct load *load, *other_load;

	if (!one || !other)
		return other;
	load = ROW(loads, one->backend);
	other_load = ROW(loads, other->backend);
	return (load->active * 256 + load->total) * other->weight >
	       (other_load->active * 256 + other_load->total) * one->weight;
}

static __always_inline int schedule_twos(struct journey *journey, struct service_config *config)
{
	u32 first, second;

	if (!(journey->scan & TWOS_DRAWN)) {
		schedule_twos_add(journey, config);
		journey->scan += SCAN_STEP;
		if (journey->scan >= config->list_length)
			journey->scan = TWOS_DRAWN;
		return SCHEDULE_AGAIN;
	}
	if (!journey->weights)
		return REASON_NO_BACKEND;
	first = schedule_twos_find(journey, config, &journey->draws[0]);
	second = schedule_twos_find(journey, config, &journey->draws[1]);
	if (schedule_twos_prefers(config, first, second))
		first = second;
	return first ? schedule_take(journey, config, first - 1) : REASON_NO_BACKEND;
}

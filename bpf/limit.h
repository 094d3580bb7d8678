/* Thresholds: whether a backend has as many connections as it may, with IPVS's hysteresis. */

/*
 * A backend's thresholds and what came of them in one word, so that no change of the one passes a
 * change of the other by; 0: it has none.
 *
 *   bits  0 to 30  upper: with so many connections it is overloaded,
 *        31 to 61  lower: and with less than so many not any more
 *        63        overloaded
 */
#define LIMIT_BITS 31
#define LIMIT_MASK ((1ULL << LIMIT_BITS) - 1)
#define LIMIT_OVERLOADED (1ULL << 63)
/* How often a change of the word that meets another CPU's is tried again. */
#define LIMIT_ATTEMPTS 8

/* The word once the backend has so many connections; between the thresholds as it was. */
static __always_inline u64 limit_judge(u64 limit, s64 total)
{
	if (total >= (s64)(limit & LIMIT_MASK))
		return limit | LIMIT_OVERLOADED;
	if (total < (s64)(limit >> LIMIT_BITS & LIMIT_MASK))
		return limit & ~LIMIT_OVERLOADED;
	return limit;
}

/*
 * The backend's count has come to `total` by a change of this CPU's.  Others may have changed it
 * again before this one gets here, so what it is now has the last word.
 */
static __always_inline void limit_follow(u64 reference, s64 total)
{
	u64 *limit = ROW(limits, reference), before, after;
	struct load *load = ROW(loads, reference);

#pragma clang loop unroll(disable)
	for (int i = 0; i < LIMIT_ATTEMPTS; i++) {
		before = READ_ONCE(*limit);
		if (!before)
			return;
		after = limit_judge(limit_judge(before, total), READ_ONCE(load->total));
		clock_let_others();
		if (after == before || word_change(limit, before, after))
			return;
	}
}

/* The backend has one connection more for a moment; where CPUs interfere, another has judged it. */
static __always_inline void limit_touch(u64 reference)
{
	u64 *limit = ROW(limits, reference), before = READ_ONCE(*limit), after;
	u64 total = READ_ONCE(ROW(loads, reference)->total);

	if (!before)
		return;
	after = limit_judge(limit_judge(before, total + 1), total);
	if (after != before)
		word_change(limit, before, after);
}

/* The backend is overloaded: by the word, but where the count says plainly what it is by now. */
static __always_inline bool limit_is_reached(u32 backend)
{
	u64 limit = READ_ONCE(*ROW(limits, backend));

	if (!limit)
		return false;
	return limit_judge(limit, READ_ONCE(ROW(loads, backend)->total)) & LIMIT_OVERLOADED;
}

/* Other thresholds for the backend, which is judged by them at once; false where CPUs interfere. */
static __always_inline bool limit_set(u32 backend, u64 thresholds)
{
	u64 *limit = ROW(limits, backend), before, after;
	struct load *load = ROW(loads, backend);

#pragma clang loop unroll(disable)
	for (int i = 0; i < LIMIT_ATTEMPTS; i++) {
		before = READ_ONCE(*limit);
		after = thresholds;
		if (thresholds)
			after = limit_judge(thresholds | (before & LIMIT_OVERLOADED),
					    READ_ONCE(load->total));
		if (after == before || word_change(limit, before, after))
			return true;
	}
	return false;
}

/*
 * Schedulers that take the member with the least load for its weight: they differ in what they call
 * load.  Of equals the first in the list is taken.
 */

/*
 * A product of load and weight is exact in 64 bits: a backend's connections are all in one table, so
 * that its load is below 2^32, and a weight is below 2^31.
 */
_Static_assert(CONNECTION_SLOTS <= 1 << 23, "257 times as many is below 2^32");

/* A count; another CPU may for a moment have taken away what it has not been given yet. */
static __always_inline u64 least_count(u64 *count)
{
	s64 value = READ_ONCE(*count);

	return value < 0 ? 0 : value;
}

/* What the scheduler calls the member's load. */
static __always_inline u64 least_load(u32 scheduler, struct member *member)
{
	struct load *load = ROW(loads, member->backend);
	u64 active;

	if (scheduler == SCHEDULER_FO || scheduler == SCHEDULER_OVF)
		return 1;
	active = least_count(&load->active);
	if (scheduler == SCHEDULER_LC || scheduler == SCHEDULER_WLC)
		return active * 256 + least_count(&load->total);
	/* nq: one with nothing to do comes before all others, whatever its weight */
	if (scheduler == SCHEDULER_NQ && !active)
		return 0;
	return active + 1;
}

/* What the scheduler calls its weight; with 0 it is not taken. */
static __always_inline u32 least_weight(u32 scheduler, struct member *member)
{
	struct load *load = ROW(loads, member->backend);

	if (scheduler == SCHEDULER_LC)
		return 1;
	if (scheduler == SCHEDULER_OVF && least_count(&load->active) > member->weight)
		return 0;
	return member->weight;
}

/* Begins a scan; whatever has a weight is less than what stands for nobody, 1 / 0. */
static __always_inline void least_begin(struct journey *journey)
{
	if (journey->scan)
		return;
	journey->best = 0;
	journey->best_load = 1;
	journey->best_weight = 0;
}

/* Notes the member at this place if it has less than the best so far and is usable. */
static __always_inline void least_compare(struct journey *journey, struct member *member, u32 place,
					  u64 load, u32 weight)
{
	if (journey->best_load * weight <= load * journey->best_weight)
		return;
	if (!schedule_is_usable(member))
		return;
	journey->best = place + 1;
	journey->best_load = load;
	journey->best_weight = weight;
}

/* Looks at the next members; at the end of the list, or where nobody can have less, takes the best. */
static __always_inline int least_scan(struct journey *journey, struct service_config *config,
				      u32 scheduler)
{
	struct member *member;
	u32 place;

	least_begin(journey);
	for (u32 i = 0; i < SCAN_STEP; i++) {
		place = journey->scan + i;
		member = schedule_member(config, place);
		if (!member || !journey->best_load)
			return schedule_take(journey, config, journey->best - 1);
		least_compare(journey, member, place, least_load(scheduler, member),
			      least_weight(scheduler, member));
	}
	journey->scan += SCAN_STEP;
	return SCHEDULE_AGAIN;
}

/* wlc: all connections, an active one as much as 257 others, for the weight. */
static __always_inline int schedule_wlc(struct journey *journey, struct service_config *config)
{
	return least_scan(journey, config, SCHEDULER_WLC);
}

/* lc: the same whatever the weight. */
static __always_inline int schedule_lc(struct journey *journey, struct service_config *config)
{
	return least_scan(journey, config, SCHEDULER_LC);
}

/* sed: active connections with the one that comes, for the weight. */
static __always_inline int schedule_sed(struct journey *journey, struct service_config *config)
{
	return least_scan(journey, config, SCHEDULER_SED);
}

/* nq: the first that has no active connection; else as sed. */
static __always_inline int schedule_nq(struct journey *journey, struct service_config *config)
{
	return least_scan(journey, config, SCHEDULER_NQ);
}

/* fo: the greatest weight. */
static __always_inline int schedule_fo(struct journey *journey, struct service_config *config)
{
	return least_scan(journey, config, SCHEDULER_FO);
}

/* ovf: the greatest weight of those with no more active connections than weight. */
static __always_inline int schedule_ovf(struct journey *journey, struct service_config *config)
{
	return least_scan(journey, config, SCHEDULER_OVF);
}

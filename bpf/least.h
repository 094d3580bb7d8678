/*
 * Schedulers that take the member with the least load for its weight: they differ in what they call
 * load.  Of equals the first in the list is taken.
 */

/*
 * A product of load and weight is exact in 63 bits and a sign: a backend's connections are all in one
 * table, so that its load is below 2^32, and a weight is below 2^31.  A load may be below 0 for a
 * moment, where a CPU takes away what another is about to add.
 */
_Static_assert(CONNECTION_SLOTS <= 1 << 23, "257 times as many is below 2^32");

/* The best so far. */
struct least {
	s64 load;
	s64 weight;
	u32 place; /* + 1 */
};

/* What the scheduler calls the member's load. */
static __always_inline s64 least_load(u32 scheduler, struct member *member)
{
	struct load *load = ROW(loads, member->backend);
	s64 active;

	if (scheduler == SCHEDULER_FO || scheduler == SCHEDULER_OVF)
		return 1;
	active = READ_ONCE(load->active);
	if (scheduler == SCHEDULER_LC || scheduler == SCHEDULER_WLC)
		return active * 256 + (s64)READ_ONCE(load->total);
	/* nq: one with nothing to do comes before all others, whatever its weight */
	if (scheduler == SCHEDULER_NQ && active <= 0)
		return 0;
	return active + 1;
}

/* What the scheduler calls its weight; with 0 it is not taken. */
static __always_inline s64 least_weight(u32 scheduler, struct member *member)
{
	struct load *load = ROW(loads, member->backend);
	s64 weight = member->weight;

	if (scheduler == SCHEDULER_LC)
		return 1;
	if (scheduler == SCHEDULER_OVF && (s64)READ_ONCE(load->active) > weight)
		return 0;
	return weight;
}

/*
 * The best of the runs before; at first nobody, 1 / 0, to whom whoever has a weight is preferred.
 * Through memory, as all that goes from run to run: the verifier would follow each value's own way.
 */
static __always_inline void least_begin(struct journey *journey, struct least *least)
{
	if (!journey->scan) {
		WRITE_ONCE(journey->best_load, 1);
		WRITE_ONCE(journey->best_weight, 0);
		WRITE_ONCE(journey->best, 0);
	}
	least->load = READ_ONCE(journey->best_load);
	least->weight = READ_ONCE(journey->best_weight);
	least->place = READ_ONCE(journey->best);
}

/* The run is at its end. */
static __always_inline void least_end(struct journey *journey, struct least *least)
{
	WRITE_ONCE(journey->best_load, least->load);
	WRITE_ONCE(journey->best_weight, least->weight);
	WRITE_ONCE(journey->best, least->place);
}

/* Looks at the members from a place on; true at the end of the list. */
static __always_inline bool least_look(struct journey *journey, struct service_config *config,
				       u32 scheduler, struct least *least)
{
	u32 place = journey->scan;
	struct member *member;
	s64 load, weight;

	for (u32 i = 0; i < SCAN_STEP; i++, place++) {
		member = schedule_member(config, place);
		if (!member)
			return true;
		load = least_load(scheduler, member);
		weight = least_weight(scheduler, member);
		if (least->load * weight <= load * least->weight || !schedule_is_usable(member))
			continue;
		least->load = load;
		least->weight = weight;
		least->place = place + 1;
	}
	return false;
}

/* Looks at the next members; at the end of the list, or where nobody can have less, takes the best. */
static __always_inline int least_scan(struct journey *journey, struct service_config *config,
				      u32 scheduler)
{
	struct least least;
	bool is_over;

	least_begin(journey, &least);
	is_over = least_look(journey, config, scheduler, &least);
	least_end(journey, &least);
	if (is_over || least.load <= 0)
		return schedule_take(journey, config, READ_ONCE(journey->best) - 1);
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

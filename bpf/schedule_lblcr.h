/*
 * lblcr: a set of backends for each destination.
 *
 * A seat holds a backend and when it came, so that of equals the one that came last is found first,
 * as in IPVS's list.  Seats are free where their backend is gone.
 */

/* The one of two loads, each for its weight, that a search prefers; of equals, what came later. */
static __always_inline bool schedule_lblcr_prefers(u64 mine, u64 yours, bool came_later)
{
	return mine > yours || (mine == yours && came_later);
}

/* Compares a member of the set with the most loaded so far. */
static __always_inline void schedule_lblcr_most(struct locality *found, struct member *member,
						struct destination_seat *seat, u64 load, u32 number)
{
	if (READ_ONCE(found->most) &&
	    !schedule_lblcr_prefers(load * READ_ONCE(found->most_weight),
				    READ_ONCE(found->most_load) * member->weight,
				    seat->order > READ_ONCE(found->most_order)))
		return;
	WRITE_ONCE(found->most, number + 1);
	WRITE_ONCE(found->most_load, load);
	WRITE_ONCE(found->most_weight, member->weight);
	WRITE_ONCE(found->most_order, seat->order);
}

/* Compares a member of the set with the least loaded so far. */
static __always_inline void schedule_lblcr_least(struct locality *found, struct member *member,
						 struct destination_seat *seat, u64 load, u32 place)
{
	if (READ_ONCE(found->kept) &&
	    !schedule_lblcr_prefers(READ_ONCE(found->kept_load) * member->weight,
				    load * READ_ONCE(found->kept_weight),
				    seat->order > READ_ONCE(found->kept_order)))
		return;
	WRITE_ONCE(found->kept, place + 1);
	WRITE_ONCE(found->kept_load, load);
	WRITE_ONCE(found->kept_weight, member->weight);
	WRITE_ONCE(found->kept_order, seat->order);
}

/* One seat: free, or of a backend that may be the least or the most loaded of the set. */
static __always_inline void schedule_lblcr_seat(struct journey *journey,
						struct service_config *config,
						struct destination_seat *seat, u32 number)
{
	u64 reference = READ_ONCE(seat->backend), load;
	struct locality *found = &journey->locality;
	struct member *member;
	u32 place = 0;

	if (!backend_word(reference)) {
		WRITE_ONCE(found->free, number + 1);
		return;
	}
	WRITE_ONCE(found->live, READ_ONCE(found->live) + 1);
	member = schedule_local_member(config, reference, &place);
	if (!member || !member->weight)
		return;
	load = schedule_local_load(member->backend);
	schedule_lblcr_most(found, member, seat, load, number);
	if (schedule_is_usable(member))
		schedule_lblcr_least(found, member, seat, load, place);
}

/* One step over the set; true after the last. */
static __always_inline bool schedule_lblcr_look(struct journey *journey,
						struct service_config *config)
{
	struct destination_key key = {};
	struct destination_set *set;

	schedule_local_key(journey, config, 0, &key);
#pragma clang loop unroll(disable)
	for (u32 i = 0; i < LOCAL_STEP; i++) {
		key.part = journey->scan + i;
		if (key.part >= journey->locality.parts)
			return true;
		set = destinations.lookup(&key);
		if (!set) {
			/* pushed out of the table: all of it is free */
			WRITE_ONCE(journey->locality.free, key.part * LOCAL_SEATS + 1);
			continue;
		}
		set->used = journey->now;
#pragma clang loop unroll(disable)
		for (u32 j = 0; j < LOCAL_SEATS; j++)
			schedule_lblcr_seat(journey, config, &set->seats[j],
					    key.part * LOCAL_SEATS + j);
	}
	journey->scan += LOCAL_STEP;
	return false;
}

/* The seat of a number, NULL where its part is not in the table. */
static __always_inline struct destination_seat *
schedule_lblcr_at(struct journey *journey, struct service_config *config, u32 number)
{
	struct destination_key key = {};
	struct destination_set *set;

	schedule_local_key(journey, config, number / LOCAL_SEATS, &key);
	set = destinations.lookup(&key);
	return set ? &set->seats[number & (LOCAL_SEATS - 1)] : NULL;
}

/* The set's first part. */
static __always_inline struct destination_set *schedule_lblcr_head(struct journey *journey,
								   struct service_config *config)
{
	struct destination_key key = {};

	schedule_local_key(journey, config, 0, &key);
	return destinations.lookup(&key);
}

/* Throws the most loaded out of a set of several that has not changed for long. */
static __always_inline void schedule_lblcr_shrink(struct journey *journey,
						  struct service_config *config)
{
	u64 expiration = *ROW(switches, SWITCH_LBLCR_EXPIRATION);
	struct destination_set *set = schedule_lblcr_head(journey, config);
	struct locality *found = &journey->locality;
	struct destination_seat *seat;

	if (!set || READ_ONCE(found->live) < 2 || journey->now - set->changed <= expiration)
		return;
	if (!READ_ONCE(found->most))
		return;
	seat = schedule_lblcr_at(journey, config, READ_ONCE(found->most) - 1);
	if (!seat)
		return;
	WRITE_ONCE(seat->backend, 0);
	set->changed = journey->now;
}

/* Sets the chosen backend down on a free seat, or on the first of another part. */
static __always_inline void schedule_lblcr_join(struct journey *journey,
						struct service_config *config)
{
	struct destination_set *set = schedule_lblcr_head(journey, config);
	struct locality *found = &journey->locality;
	struct destination_seat *seat = NULL;
	u32 number, parts = found->parts;
	u64 order;

	if (!set)
		return schedule_local_write(journey, config, 0, 1);
	number = READ_ONCE(found->free) ? READ_ONCE(found->free) - 1 : parts * LOCAL_SEATS;
	if (number >= LOCAL_PARTS * LOCAL_SEATS)
		return;
	order = __sync_fetch_and_add(&set->order, 1) + 1;
	set->changed = journey->now;
	if (number < parts * LOCAL_SEATS)
		seat = schedule_lblcr_at(journey, config, number);
	else
		set->parts = parts + 1;
	if (!seat)
		return schedule_local_write(journey, config, number / LOCAL_SEATS, order);
	WRITE_ONCE(seat->order, order);
	WRITE_ONCE(seat->backend, journey->backend);
}

/* Begins with the destination's set, if there is one. */
static __always_inline void schedule_lblcr_begin(struct journey *journey,
						 struct service_config *config)
{
	struct destination_set *set;
	u64 expiration = *ROW(switches, SWITCH_LBLCR_EXPIRATION);

	schedule_local_begin(journey);
	set = schedule_local_find(journey, config, expiration);
	if (set)
		journey->locality.parts = set->parts;
	else
		journey->scan = LOCAL_LIST;
}

/* The set's least loaded is no worse than the whole list's: the latter is of the set, too. */
static __always_inline bool schedule_lblcr_has_best(struct journey *journey)
{
	struct locality *found = &journey->locality;

	return found->kept && READ_ONCE(found->kept_load) * READ_ONCE(journey->best_weight) <=
				      READ_ONCE(journey->best_load) * READ_ONCE(found->kept_weight);
}

/* After the list: the set's, where nobody has room; else the list's, which joins the set. */
static __always_inline int schedule_lblcr_end(struct journey *journey,
					      struct service_config *config)
{
	struct locality *found = &journey->locality;
	int reason;

	if (found->kept && !READ_ONCE(found->room))
		return schedule_take(journey, config, found->kept - 1);
	reason = schedule_take(journey, config, READ_ONCE(journey->best) - 1);
	if (reason != REASON_OK)
		return reason;
	if (!found->parts)
		schedule_local_write(journey, config, 0, 1);
	else if (!schedule_lblcr_has_best(journey))
		schedule_lblcr_join(journey, config);
	return REASON_OK;
}

/* lblcr: the least loaded of the set, unless it has more than it should and another has room. */
static __always_inline int schedule_lblcr(struct journey *journey, struct service_config *config)
{
	struct locality *found = &journey->locality;

	if (!journey->scan)
		schedule_lblcr_begin(journey, config);
	if (!(journey->scan & LOCAL_LIST)) {
		if (!schedule_lblcr_look(journey, config))
			return SCHEDULE_AGAIN;
		schedule_lblcr_shrink(journey, config);
		if (READ_ONCE(found->kept) && !schedule_local_is_busy(config, found->kept - 1))
			return schedule_take(journey, config, found->kept - 1);
		journey->scan = LOCAL_LIST;
		return SCHEDULE_AGAIN;
	}
	if (!schedule_local_list(journey, config))
		return SCHEDULE_AGAIN;
	return schedule_lblcr_end(journey, config);
}

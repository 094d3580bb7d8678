/*
 * The schedulers for caches, which go by the destination: lblc keeps one backend for each, lblcr a
 * set of them, and both ask wlc where those have more than they should and another has room.
 *
 * What is kept is a hint, never more: a backend in it counts where it still is a member, so entries
 * that two CPUs change at once, or that are pushed out of the table, do no harm.
 */
#define LOCAL_SEATS 8 /* of a part */
#define LOCAL_PARTS 128 /* of a set */
/* Parts of a set that are looked at in one run. */
#define LOCAL_STEP 16
/* In `scan`: the set has been looked at, the list is next. */
#define LOCAL_LIST (1U << 31)

/* How IPVS counts what a backend carries. */
static __always_inline u64 schedule_local_load(u32 id)
{
	struct load *load = ROW(loads, id);

	return load->active * 256 + load->total;
}

/* The key of a part of what is kept for the packet's destination. */
static __always_inline void schedule_local_key(struct journey *journey,
					       struct service_config *config, u32 part,
					       struct destination_key *key)
{
	struct packet *packet = &journey->packet;

	if (packet_is_ipv6(packet))
		__builtin_memcpy(key->address, packet->flow6.virtual, 16);
	else
		key->address[0] = packet->flow4.virtual;
	key->service = journey->service;
	key->since = config->since;
	key->part = part;
}

/* The member that a reference names, with its place; NULL where it is none any more. */
static __always_inline struct member *schedule_local_member(struct service_config *config,
							    u64 reference, u32 *place)
{
	u64 row = (u32)reference & (BACKEND_CAPACITY - 1);
	struct member *member;

	if (!backend_word(reference))
		return NULL;
	/* two versions of a service that follow each other have their places in two halves */
	if (config->generation & 1)
		row += BACKEND_CAPACITY;
	/* verifier of 6.1, where the compiler knows a bound: "register with unbounded min value" */
	asm volatile("" : "+r"(row));
	*place = *ROW(member_places, row);
	member = schedule_member(config, *place);
	return member && member->backend == (u32)reference ? member : NULL;
}

/* Nothing is known yet.  Kept in the journey, so that the verifier need not follow the values. */
static __always_inline void schedule_local_begin(struct journey *journey)
{
	struct locality *found = &journey->locality;

	journey->best = 0;
	found->kept = 0;
	found->most = 0;
	found->live = 0;
	found->free = 0;
	found->room = 0;
	found->parts = 0;
}

/* The destination's set where it was used lately. */
static __always_inline struct destination_set *
schedule_local_find(struct journey *journey, struct service_config *config, u64 expiration)
{
	struct destination_key key = {};
	struct destination_set *set;

	schedule_local_key(journey, config, 0, &key);
	set = destinations.lookup(&key);
	if (!set || journey->now - set->used > expiration)
		return NULL;
	return set;
}

/* A part in which the backend that was chosen sits alone. */
static __always_inline void schedule_local_write(struct journey *journey,
						 struct service_config *config, u32 part, u64 order)
{
	struct destination_set set = {
		.used = journey->now,
		.changed = journey->now,
		.order = order,
		.parts = 1,
	};
	struct destination_key key = {};

	set.seats[0].backend = journey->backend;
	set.seats[0].order = order;
	schedule_local_key(journey, config, part, &key);
	destinations.update(&key, &set);
}

/* The member that is kept has more than it should: IPVS's word for it is overloaded. */
static __always_inline bool schedule_local_is_busy(struct service_config *config, u32 place)
{
	struct member *member = schedule_member(config, place);

	return !member || ROW(loads, member->backend)->active > member->weight;
}

/* One step of wlc over the list, which notes whether a member has room; true after the last. */
static __always_inline bool schedule_local_list(struct journey *journey,
						struct service_config *config)
{
	u32 first = journey->scan & ~LOCAL_LIST;
	struct member *member;
	u64 load;

#pragma clang loop unroll(disable)
	for (u32 i = 0; i < SCAN_STEP; i++) {
		member = schedule_member(config, first + i);
		if (!member)
			return true;
		if (ROW(loads, member->backend)->active * 2 < member->weight)
			WRITE_ONCE(journey->locality.room, 1);
		if (!schedule_is_usable(member))
			continue;
		load = schedule_local_load(member->backend);
		if (READ_ONCE(journey->best) && READ_ONCE(journey->best_load) * member->weight <=
							load * READ_ONCE(journey->best_weight))
			continue;
		WRITE_ONCE(journey->best, first + i + 1);
		WRITE_ONCE(journey->best_load, load);
		WRITE_ONCE(journey->best_weight, member->weight);
	}
	journey->scan += SCAN_STEP;
	return false;
}

/* lblc: notes the destination's backend, if it is a member with a weight. */
static __always_inline void schedule_lblc_look(struct journey *journey,
					       struct service_config *config)
{
	u64 expiration = *ROW(switches, SWITCH_LBLC_EXPIRATION);
	struct destination_set *set;
	struct member *member;
	u32 place = 0;

	set = schedule_local_find(journey, config, expiration);
	if (!set)
		return;
	set->used = journey->now;
	member = schedule_local_member(config, READ_ONCE(set->seats[0].backend), &place);
	if (member && member->weight)
		journey->locality.kept = place + 1;
}

/* lblc: the destination's backend, unless it has more than it should and another has room. */
static __always_inline int schedule_lblc(struct journey *journey, struct service_config *config)
{
	struct locality *found = &journey->locality;
	int reason;

	if (!journey->scan) {
		schedule_local_begin(journey);
		schedule_lblc_look(journey, config);
		if (found->kept && !schedule_local_is_busy(config, found->kept - 1))
			return schedule_take(journey, config, found->kept - 1);
	}
	if (!schedule_local_list(journey, config))
		return SCHEDULE_AGAIN;
	if (found->kept && !READ_ONCE(found->room))
		return schedule_take(journey, config, found->kept - 1);
	reason = schedule_take(journey, config, READ_ONCE(journey->best) - 1);
	if (reason == REASON_OK)
		schedule_local_write(journey, config, 0, 1);
	return reason;
}

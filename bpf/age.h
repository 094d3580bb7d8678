/* Ageing: takes expired entries out of the counts, and gives their slots back. */

/* Removes the entry of a slot if its time is up, or by force; tells whether it did. */
static __always_inline bool age_slot(u32 table, struct slot *slot, u64 word, bool force, u64 now)
{
	struct connection *connection = (struct connection *)slot;
	struct account account = {};
	u32 service;

	if (!word_is_used(word))
		return false;
	if (!force && now < table_end(table, slot, word) + CLAIM_DELAY)
		return false;
	if (table_holds_persistence(table)) {
		service = table_service(table, slot);
		if (!word_change(&slot->word, word, word_make(0, STATE_DEAD, 0, word)))
			return false;
		share_return(table, service);
		return true;
	}
	connection_read(connection, word, &account);
	return connection_remove(table_is_ipv6(table), connection, &account, now);
}

/*
 * A slot whose entry was removed is free again where the next one of the bucket is: no search goes
 * past it.  Under the lock, so that no insert goes past it meanwhile.
 */
static __always_inline void age_tidy(u32 table, u32 place)
{
	u64 *lock = table_lock(table, place), word;
	bool next_is_free = false;
	struct slot *slot;

	if (!lock)
		return;
	slot = table_slot(table, place & ~(BUCKET_SLOTS - 1));
	next_is_free = !READ_ONCE(slot->word);
#pragma clang loop unroll(disable)
	for (u32 step = 1; step <= BUCKET_SLOTS; step++) {
		slot = table_slot(table, (place & ~(BUCKET_SLOTS - 1)) | (BUCKET_SLOTS - step));
		word = READ_ONCE(slot->word);
		if (next_is_free && word_state(word) == STATE_DEAD)
			word = word_change(&slot->word, word, 0) ? 0 : word;
		next_is_free = !word;
	}
	table_unlock(lock);
}

/* Ages the slot behind the hand, and notes where a round ends. */
static __always_inline void age_next(u32 table, struct hand *hand, u64 now)
{
	u32 place = hand->place++ & (table_slots(table) - 1);
	struct slot *slot = table_slot(table, place);

	age_slot(table, slot, READ_ONCE(slot->word), false, now);
	if (place != table_slots(table) - 1)
		return;
	*ROW(rounds, table) = hand->began;
	hand->began = now;
}

/* Ages the slots that follow this CPU's clock hand, at most a bucket's, and tidies that bucket. */
static __always_inline void age_behind_hand(u32 table, u64 cpu, u32 slots, u64 now)
{
	struct hand *hand = CPU_ROW(hands, cpu, table);

#pragma clang loop unroll(disable)
	for (u32 i = 0; i < BUCKET_SLOTS; i++) {
		if (i >= slots)
			break;
		age_next(table, hand, now);
		if (!(hand->place & (BUCKET_SLOTS - 1)))
			break;
	}
	if (!(hand->place & (BUCKET_SLOTS - 1)))
		age_tidy(table, (hand->place - BUCKET_SLOTS) & (table_slots(table) - 1));
}

/* A few of the table that the packet's connection goes into; for a choice by load, a bucket's. */
static __always_inline void age_connections(struct journey *journey)
{
	u32 slots = journey->catch_ups ? BUCKET_SLOTS : HAND_STEP;

	if (packet_is_ipv6(&journey->packet))
		age_behind_hand(TABLE_CONNECTIONS6, journey->packet.cpu, slots, journey->now);
	else
		age_behind_hand(TABLE_CONNECTIONS4, journey->packet.cpu, slots, journey->now);
}

/* A few of the table that the client's new entry went into. */
static __always_inline void age_persistence(struct journey *journey)
{
	if (!journey->bound)
		return;
	if (packet_is_ipv6(&journey->packet))
		age_behind_hand(TABLE_PERSISTENCE6, journey->packet.cpu, HAND_STEP, journey->now);
	else
		age_behind_hand(TABLE_PERSISTENCE4, journey->packet.cpu, HAND_STEP, journey->now);
}

/* No hand has seen the whole table since ROUND_LIMIT ago. */
static __always_inline bool age_is_overdue(u32 table, u64 now)
{
	return now - *ROW(rounds, table) > ROUND_LIMIT;
}

/* One entry of the service in the hash's bucket goes, so that it may have another there. */
static __always_inline bool age_make_room(u32 table, u32 hash, struct journey *journey)
{
	struct seat seat = {};

	if (!table_seek_victim(table, hash, journey->now, journey->service, &seat))
		return false;
	return age_slot(table, table_slot(table, seat.place), seat.word, true, journey->now);
}

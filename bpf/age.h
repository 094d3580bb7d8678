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
	clock_let_others();
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

/* The slots from the one where the search for the entry in slot `step` begins up to that, as bits. */
static __always_inline u64 age_passed(u32 table, struct slot *slot, u64 step)
{
	u64 home = table_hash(table, slot) & (BUCKET_SLOTS - 1);
	u64 bits = ((u64)2 << (step - home & 63)) - 1;

	return bits << home | bits >> (64 - home & 63);
}

/* Under the bucket's lock: frees every removed slot that no search passes. */
static __always_inline void age_unclog(u32 table, u64 first)
{
	u64 passed = 0, word;
	struct slot *slot;

#pragma clang loop unroll(disable)
	for (u64 step = 0; step < BUCKET_SLOTS; step++) {
		slot = table_slot(table, first + step);
		if (word_is_used(READ_ONCE(slot->word)))
			passed |= age_passed(table, slot, step);
	}
#pragma clang loop unroll(disable)
	for (u64 step = 0; step < BUCKET_SLOTS; step++) {
		slot = table_slot(table, first + step);
		word = READ_ONCE(slot->word);
		if (word_state(word) == STATE_DEAD && !(passed >> step & 1))
			word_change(&slot->word, word, 0);
	}
}

/*
 * A slot whose entry was removed is free again where the next one of the bucket is: no search goes
 * past it.  Under the lock, so that no insert goes past it meanwhile.  A sweep takes the time to ask
 * of those that are left whether any search does.
 */
static __always_inline void age_tidy(u32 table, u64 place, bool in_sweep)
{
	u64 *lock = table_lock(table, place), first = place & ~((u64)BUCKET_SLOTS - 1), word;
	bool next_is_free, is_left = false;
	struct slot *slot;

	if (!lock)
		return;
	slot = table_slot(table, first);
	next_is_free = !READ_ONCE(slot->word);
#pragma clang loop unroll(disable)
	for (u64 step = 1; step <= BUCKET_SLOTS; step++) {
		slot = table_slot(table, first | (BUCKET_SLOTS - step));
		word = READ_ONCE(slot->word);
		if (next_is_free && word_state(word) == STATE_DEAD)
			word = word_change(&slot->word, word, 0) ? 0 : word;
		next_is_free = !word;
		if (word_state(word) == STATE_DEAD)
			is_left = true;
	}
	if (in_sweep && is_left)
		age_unclog(table, first);
	table_unlock(lock);
}

/*
 * Notes the first entries of a bucket that are over, and whether any slot has been removed.  In the
 * journey, which is a map: what the verifier knows of one slot it need not follow into the next.
 */
static __always_inline void age_look(u32 table, struct journey *journey, u64 first)
{
	struct slot *slot;
	u64 word;
	u32 over;

	WRITE_ONCE(journey->over, 0);
	WRITE_ONCE(journey->dead, 0);
#pragma clang loop unroll(disable)
	for (u64 step = 0; step < BUCKET_SLOTS; step++) {
		slot = table_slot(table, first + step);
		word = READ_ONCE(slot->word);
		if (word_state(word) == STATE_DEAD)
			WRITE_ONCE(journey->dead, 1);
		if (!word_is_used(word) ||
		    journey->now < table_end(table, slot, word) + CLAIM_DELAY)
			continue;
		over = READ_ONCE(journey->over);
		if (over >= AGE_STEP)
			break;
		journey->places[over & (AGE_STEP - 1)] = first + step;
		WRITE_ONCE(journey->over, over + 1);
	}
}

/* The clock hand moves on to the next bucket; notes where a round ends. */
static __always_inline void age_move(u32 table, struct hand *hand, u64 now)
{
	hand->inserts -= hand->inserts < HAND_INSERTS ? hand->inserts : HAND_INSERTS;
	hand->place = (hand->place + BUCKET_SLOTS) & (table_slots(table) - 1);
	if (hand->place)
		return;
	*ROW(rounds, table) = hand->began;
	hand->began = now;
}

/* Ages the bucket at this CPU's clock hand, AGE_STEP entries at most; then others are for later. */
static __always_inline void age_bucket(u32 table, struct journey *journey)
{
	struct hand *hand = CPU_ROW(hands, journey->packet.cpu, table);
	u64 first = hand->place;
	struct slot *slot;

	age_look(table, journey, first);
#pragma clang loop unroll(disable)
	for (u32 i = 0; i < AGE_STEP; i++) {
		if (i >= READ_ONCE(journey->over))
			break;
		slot = table_slot(table, READ_ONCE(journey->places[i]));
		if (age_slot(table, slot, READ_ONCE(slot->word), false, journey->now))
			WRITE_ONCE(journey->dead, 1);
	}
	if (READ_ONCE(journey->dead))
		age_tidy(table, first, false);
	if (READ_ONCE(journey->over) < AGE_STEP)
		age_move(table, hand, journey->now);
}

/* Counts an insert of this CPU; after every HAND_INSERTS the bucket at its hand is due. */
static __always_inline bool age_is_due(u32 table, u64 cpu)
{
	return ++CPU_ROW(hands, cpu, table)->inserts >= HAND_INSERTS;
}

/* A bucket of a table that the packet's entries go into; each is but once in the program. */
static __always_inline void age_due(struct journey *journey)
{
	bool ipv6 = packet_is_ipv6(&journey->packet);

	if (journey->due & DUE_PERSISTENCE) {
		journey->due &= ~DUE_PERSISTENCE;
		if (ipv6)
			age_bucket(TABLE_PERSISTENCE6, journey);
		else
			age_bucket(TABLE_PERSISTENCE4, journey);
		return;
	}
	journey->due = 0;
	if (ipv6)
		age_bucket(TABLE_CONNECTIONS6, journey);
	else
		age_bucket(TABLE_CONNECTIONS4, journey);
}

/* No hand has seen the whole table since ROUND_LIMIT ago. */
static __always_inline bool age_is_overdue(u32 table, u64 now)
{
	return now - *ROW(rounds, table) > ROUND_LIMIT;
}

/* One entry of the service in the hash's bucket goes, so that it may have another there. */
static __always_inline bool age_make_room(u32 table, u64 hash, struct journey *journey)
{
	struct seat *seat = &journey->seat;

	if (!table_seek_victim(table, hash, journey->now, journey->service, seat))
		return false;
	return age_slot(table, table_slot(table, seat->place), seat->word, true, journey->now);
}

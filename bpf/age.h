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
static __always_inline void age_tidy(u32 table, u64 place)
{
	u64 *lock = table_lock(table, place), word;
	bool next_is_free = false;
	struct slot *slot;

	if (!lock)
		return;
	slot = table_slot(table, place & ~((u64)BUCKET_SLOTS - 1));
	next_is_free = !READ_ONCE(slot->word);
#pragma clang loop unroll(disable)
	for (u32 step = 1; step <= BUCKET_SLOTS; step++) {
		slot = table_slot(table,
				  (place & ~((u64)BUCKET_SLOTS - 1)) | (BUCKET_SLOTS - step));
		word = READ_ONCE(slot->word);
		if (next_is_free && word_state(word) == STATE_DEAD)
			word = word_change(&slot->word, word, 0) ? 0 : word;
		next_is_free = !word;
	}
	table_unlock(lock);
}

/* Ages the bucket at this CPU's clock hand, moves the hand on, and notes where a round ends. */
static __always_inline void age_bucket(u32 table, u64 cpu, u64 now)
{
	struct hand *hand = CPU_ROW(hands, cpu, table);
	u64 first = hand->place, word;
	bool dead = false;
	struct slot *slot;

#pragma clang loop unroll(disable)
	for (u64 step = 0; step < BUCKET_SLOTS; step++) {
		slot = table_slot(table, first + step);
		word = READ_ONCE(slot->word);
		if (word_state(word) == STATE_DEAD || age_slot(table, slot, word, false, now))
			dead = true;
	}
	if (dead)
		age_tidy(table, first);
	hand->inserts = 0;
	hand->place = (first + BUCKET_SLOTS) & (table_slots(table) - 1);
	if (hand->place)
		return;
	*ROW(rounds, table) = hand->began;
	hand->began = now;
}

/* Counts an insert of this CPU; after every HAND_INSERTS the bucket at its hand is due. */
static __always_inline bool age_is_due(u32 table, u64 cpu)
{
	return ++CPU_ROW(hands, cpu, table)->inserts >= HAND_INSERTS;
}

static __always_inline void age_due_bucket(u32 table, u64 cpu, u64 now)
{
	if (CPU_ROW(hands, cpu, table)->inserts >= HAND_INSERTS)
		age_bucket(table, cpu, now);
}

/* What is due of the tables that the packet's entries go into. */
static __always_inline void age_due(struct journey *journey)
{
	u64 cpu = journey->packet.cpu, now = journey->now;

	if (packet_is_ipv6(&journey->packet)) {
		age_due_bucket(TABLE_CONNECTIONS6, cpu, now);
		age_due_bucket(TABLE_PERSISTENCE6, cpu, now);
	} else {
		age_due_bucket(TABLE_CONNECTIONS4, cpu, now);
		age_due_bucket(TABLE_PERSISTENCE4, cpu, now);
	}
}

/* A bucket of the table of the packet's connection. */
static __always_inline void age_connections(struct journey *journey)
{
	if (packet_is_ipv6(&journey->packet))
		age_bucket(TABLE_CONNECTIONS6, journey->packet.cpu, journey->now);
	else
		age_bucket(TABLE_CONNECTIONS4, journey->packet.cpu, journey->now);
}

/* No hand has seen the whole table since ROUND_LIMIT ago. */
static __always_inline bool age_is_overdue(u32 table, u64 now)
{
	return now - *ROW(rounds, table) > ROUND_LIMIT;
}

/* One entry of the service in the hash's bucket goes, so that it may have another there. */
static __always_inline bool age_make_room(u32 table, u64 hash, struct journey *journey)
{
	struct seat seat = {};

	if (!table_seek_victim(table, hash, journey->now, journey->service, &seat))
		return false;
	return age_slot(table, table_slot(table, seat.place), seat.word, true, journey->now);
}

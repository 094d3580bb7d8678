/*
 * Set-associative tables in arrays.  A hash names a bucket and the slot in it where a search
 * begins; the search goes round the bucket and ends at a slot that nothing uses.  Searches take no
 * lock: they read the word, then the key, and whoever acts on what it found changes the word or
 * reads it again.  A slot's key and body are written only while its word says BUSY.
 */
#define TABLE_TAKEN 0
#define TABLE_FOUND 1
#define TABLE_FULL 2
#define RANK_STAYS (~0ULL)

static __always_inline bool table_is_ipv6(u32 table)
{
	return table == TABLE_CONNECTIONS6 || table == TABLE_PERSISTENCE6;
}

static __always_inline bool table_holds_persistence(u32 table)
{
	return table == TABLE_PERSISTENCE4 || table == TABLE_PERSISTENCE6;
}

static __always_inline u32 table_slots(u32 table)
{
	return table_holds_persistence(table) ? PERSISTENCE_SLOTS : CONNECTION_SLOTS;
}

static __always_inline struct slot *table_slot(u32 table, u64 place)
{
	/* verifier of 6.1, where the compiler knows a bound: "register with unbounded min value" */
	asm volatile("" : "+r"(place));
	if (table == TABLE_CONNECTIONS4)
		return (struct slot *)ROW(connections4, place);
	if (table == TABLE_CONNECTIONS6)
		return (struct slot *)ROW(connections6, place);
	if (table == TABLE_PERSISTENCE4)
		return (struct slot *)ROW(persistence4, place);
	return (struct slot *)ROW(persistence6, place);
}

/* The place where a search for this hash looks after `step` slots. */
static __always_inline u64 table_place(u32 table, u64 hash, u64 step)
{
	u64 first = hash & (table_slots(table) - 1);

	return (first & ~((u64)BUCKET_SLOTS - 1)) | ((first + step) & (BUCKET_SLOTS - 1));
}

/* One branch for all words: the verifier would follow each in every slot of a bucket. */
static __always_inline bool table_has_key(u32 table, struct slot *slot, const u64 *key)
{
	u64 differs = (slot->key[0] ^ key[0]) | (slot->key[1] ^ key[1]);

	if (table_is_ipv6(table))
		differs |= (slot->key[2] ^ key[2]) | (slot->key[3] ^ key[3]) |
			   (slot->key[4] ^ key[4]);
	asm volatile("" : "+r"(differs));
	return !differs;
}

/* The slot that holds the key, with its place and its word as it was before the key was read. */
static __always_inline struct slot *table_find(u32 table, const u64 *key, u64 hash,
					       struct seat *seat)
{
	struct slot *slot;

#pragma clang loop unroll(disable)
	for (u64 step = 0; step < BUCKET_SLOTS; step++) {
		seat->place = table_place(table, hash, step);
		slot = table_slot(table, seat->place);
		seat->word = READ_ONCE(slot->word);
		if (!seat->word)
			return NULL;
		if (table_has_key(table, slot, key) && word_is_used(seat->word))
			return slot;
	}
	return NULL;
}

/* The hash of the key that a slot holds. */
static __always_inline u32 table_hash(u32 table, struct slot *slot)
{
	if (table_holds_persistence(table))
		return table_is_ipv6(table) ? hash_flow6(slot->key) : hash_flow4(slot->key);
	return table_is_ipv6(table) ? hash_connection6(slot->key) : hash_connection4(slot->key);
}

/* The lock of the bucket of a hash or place, taken; NULL where another CPU holds it too long. */
static __always_inline u64 *table_lock(u32 table, u64 hash)
{
	u64 *lock = ROW(locks, (hash & (table_slots(table) - 1)) / BUCKET_SLOTS);

#pragma clang loop unroll(disable)
	for (u32 i = 0; i < LOCK_ATTEMPTS; i++) {
		if (!READ_ONCE(*lock) && word_change(lock, 0, 1))
			return lock;
		bpf_ktime_get_ns(); /* takes some 30 ns, in which its holder has the line for itself */
	}
	return NULL;
}

static __always_inline void table_unlock(u64 *lock)
{
	barrier();
	WRITE_ONCE(*lock, 0);
}

/* Until when the slot's entry lives. */
static __always_inline u64 table_end(u32 table, struct slot *slot, u64 word)
{
	if (table_holds_persistence(table))
		return expiry_of_persistence((struct persistence *)slot, word);
	return expiry_of_connection(READ_ONCE(((struct connection *)slot)->seen), word);
}

static __always_inline u32 table_service(u32 table, struct slot *slot)
{
	if (table_holds_persistence(table))
		return ((struct persistence *)slot)->service;
	return ((struct connection *)slot)->service;
}

/* How soon a slot's entry may go: 0 for at once, then the half-open by their end, others never. */
static __always_inline u64 table_rank(u32 table, struct slot *slot, u64 word, u64 now)
{
	u64 end, stays = word_flags(word) & SLOT_CONFIRMED;

	if (!word_is_used(word))
		return word_state(word) == STATE_BUSY ? RANK_STAYS : 0;
	end = table_end(table, slot, word);
	if (now >= end + CLAIM_DELAY)
		return 0;
	if (!table_holds_persistence(table))
		stays &= !state_is_over(word_state(word));
	/* verifier of 6.1, where it is a branch of the loop: "back-edge" */
	return end | -stays;
}

/* The seat is in a map, so that the verifier need not follow what it knows of each from slot to slot. */
static __always_inline void table_note(struct seat *seat, u64 place, u64 word, u64 rank)
{
	WRITE_ONCE(seat->place, place);
	WRITE_ONCE(seat->word, word);
	WRITE_ONCE(seat->rank, rank);
}

/* Under the bucket's lock: where the key is, or else the slot that it may best take. */
static __always_inline int table_seek(u32 table, const u64 *key, u64 hash, u64 now,
				      struct seat *seat)
{
	struct slot *slot;
	u64 place, rank, word;

	WRITE_ONCE(seat->rank, RANK_STAYS);
#pragma clang loop unroll(disable)
	for (u64 step = 0; step < BUCKET_SLOTS; step++) {
		place = table_place(table, hash, step);
		slot = table_slot(table, place);
		word = READ_ONCE(slot->word);
		if (word && table_has_key(table, slot, key) && word_is_used(word)) {
			table_note(seat, place, word, 0);
			return TABLE_FOUND;
		}
		rank = word ? table_rank(table, slot, word, now) : 0;
		if (rank < READ_ONCE(seat->rank))
			table_note(seat, place, word, rank);
		if (!word)
			break;
	}
	return READ_ONCE(seat->rank) == RANK_STAYS ? TABLE_FULL : TABLE_TAKEN;
}

/* The same among the entries of one service, by simpler means: nothing here is free. */
static __always_inline u64 table_victim_rank(u32 table, struct slot *slot, u64 word, u64 now)
{
	u64 confirmed = word_flags(word) & SLOT_CONFIRMED;
	struct persistence *entry = (struct persistence *)slot;
	struct connection *connection = (struct connection *)slot;

	if (table_holds_persistence(table)) {
		if (confirmed && (now < word_expires(word) || entry->counts & COUNT_MASK))
			return RANK_STAYS;
		return word_expires(word);
	}
	if (confirmed && !state_is_over(word_state(word)))
		return RANK_STAYS;
	return connection->seen;
}

/* The service's entry in the hash's bucket that may best go, for one more of the same service. */
static __always_inline bool table_seek_victim(u32 table, u64 hash, u64 now, u32 service,
					      struct seat *seat)
{
	struct slot *slot;
	u64 place, rank, word;

	WRITE_ONCE(seat->rank, RANK_STAYS);
#pragma clang loop unroll(disable)
	for (u64 step = 0; step < BUCKET_SLOTS; step++) {
		place = table_place(table, hash, step);
		slot = table_slot(table, place);
		word = READ_ONCE(slot->word);
		if (!word_is_used(word) || table_service(table, slot) != service)
			continue;
		rank = table_victim_rank(table, slot, word, now);
		if (rank < READ_ONCE(seat->rank))
			table_note(seat, place, word, rank);
	}
	return READ_ONCE(seat->rank) != RANK_STAYS;
}

/*
 * Under the bucket's lock: the seat's slot, now BUSY; NULL where its entry was changed meanwhile.
 * Nobody without the lock changes a slot that has no entry.
 */
static __always_inline struct slot *table_claim(u32 table, struct seat *seat)
{
	struct slot *slot = table_slot(table, seat->place);
	u64 busy = word_make(0, STATE_BUSY, 0, seat->word + WORD_GENERATION);

	clock_let_others();
	if (!word_is_used(seat->word))
		WRITE_ONCE(slot->word, busy);
	else if (!word_change(&slot->word, seat->word, busy))
		return NULL;
	barrier();
	return slot;
}

static __always_inline void table_write_key(u32 table, struct slot *slot, const u64 *key)
{
	slot->key[0] = key[0];
	slot->key[1] = key[1];
	if (!table_is_ipv6(table))
		return;
	slot->key[2] = key[2];
	slot->key[3] = key[3];
	slot->key[4] = key[4];
}

/* Makes a slot that is filled visible. */
static __always_inline void table_publish(struct slot *slot, u64 word)
{
	barrier();
	WRITE_ONCE(slot->word, word);
}

/* Until when an entry lives, computed from itself alone. */

/*
 * The counts of a persistence entry, with its generation, so that nothing meant for a former entry
 * of the slot changes them.
 *
 *   bits  0 to 23  connections
 *        24 to 47  those of them in a lasting state
 *        48        watched: a sweep found them wrong, and they have not changed since
 *        49 to 63  generation
 */
#define COUNT_BITS 24
#define COUNT_MASK ((1ULL << COUNT_BITS) - 1)
#define COUNTS_WATCHED (1ULL << 48)
#define COUNTS_MASK (COUNTS_WATCHED - 1)
#define COUNTS_GENERATION_SHIFT 49
#define COUNTS_GENERATIONS (1ULL << (64 - COUNTS_GENERATION_SHIFT))

static __always_inline u64 counts_generation(u64 counts)
{
	return counts >> COUNTS_GENERATION_SHIFT;
}

static __always_inline u64 counts_active(u64 counts)
{
	return counts >> COUNT_BITS & COUNT_MASK;
}

/* A count that may be below 0 for a moment. */
static __always_inline s64 counts_signed(u64 counts)
{
	return (s64)(counts << (64 - COUNT_BITS)) >> (64 - COUNT_BITS);
}

static __always_inline u64 counts_make(u64 generation, u64 active, u64 connections)
{
	return generation << COUNTS_GENERATION_SHIFT | (active & COUNT_MASK) << COUNT_BITS |
	       (connections & COUNT_MASK);
}

/* A connection lives for its state's time after its last packet. */
static __always_inline u64 expiry_of_connection(u64 seen, u64 word)
{
	return seen + state_timeout(word_state(word));
}

/* Until when a connection of the entry lives, as far as they told; jiffies, 0: none lives. */
static __always_inline u64 expiry_held(struct persistence *entry)
{
	u64 until = entry->inactive_until;

	if (counts_active(READ_ONCE(entry->counts)) && entry->active_until > until)
		until = entry->active_until;
	return until;
}

/* IPVS: a timer that ends while connections live is armed for 60 s, again and again. */
static __always_inline u64 expiry_of_persistence(struct persistence *entry, u64 word)
{
	u64 expires = word_expires(word);
	u64 held = expiry_held(entry);

	if (word_flags(word) & SLOT_STRICT || held <= expires)
		return expires;
	return expires + (held - expires + REARM_TIMEOUT - 1) / REARM_TIMEOUT * REARM_TIMEOUT;
}

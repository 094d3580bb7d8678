/* Until when an entry lives, computed from itself alone. */

#define COUNT_BITS 24
#define COUNT_MASK ((1ULL << COUNT_BITS) - 1)
#define COUNTS_GENERATION_SHIFT 48

static __always_inline u64 counts_active(u64 counts)
{
	return counts >> COUNT_BITS & COUNT_MASK;
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

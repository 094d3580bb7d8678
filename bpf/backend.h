/* Backends by id and generation, and how much each carries. */
/* The backend's word where it is still the one that `reference` names, else 0. */
static __always_inline u64 backend_word(u64 reference)
{
	u64 word = READ_ONCE(ROW(backends, reference)->word);

	if (word >> 32 != reference >> 32 || !(word & BACKEND_PRESENT))
		return 0;
	return word;
}

/* The backend's id is its own still: it may have been removed, and come back. */
static __always_inline bool backend_is_same(u64 reference)
{
	return READ_ONCE(ROW(backends, reference)->word) >> 32 == reference >> 32;
}

/* Adds to what the backend carries; nothing where its id belongs to another by now. */
static __always_inline void backend_load(u64 reference, s64 active, s64 total)
{
	struct load *load = ROW(loads, reference);

	if (!backend_is_same(reference))
		return;
	if (active)
		__sync_fetch_and_add(&load->active, active);
	if (total)
		limit_follow(reference, __sync_fetch_and_add(&load->total, total) + total);
}

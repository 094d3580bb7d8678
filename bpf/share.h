/* Each service's share of the tables: what is its own no other service can take. */

static __always_inline u64 *share_count(struct share *share, u32 table)
{
	/* verifier, where the compiler leaves the mask out: "unbounded memory access" */
	asm volatile("" : "+r"(table));
	return (u64 *)share + (table & 3);
}

static __always_inline u64 *share_of(u32 table, u32 service)
{
	return share_count(ROW(shares, service), table);
}

/* Counts one more entry of the service; false, and nothing counted, where it may have no more. */
static __always_inline bool share_take(u32 table, u32 service)
{
	u64 *used = share_of(table, service);
	struct pool *pool = ROW(pools, table);

	if (__sync_fetch_and_add(used, 1) < pool->own)
		return true;
	if (__sync_fetch_and_add(&pool->borrowed, 1) < pool->limit)
		return true;
	__sync_fetch_and_add(&pool->borrowed, -1);
	__sync_fetch_and_add(used, -1);
	return false;
}

/* Counts one entry less. */
static __always_inline void share_return(u32 table, u32 service)
{
	u64 *used = share_of(table, service);
	struct pool *pool = ROW(pools, table);

	if (__sync_fetch_and_add(used, -1) > pool->own)
		__sync_fetch_and_add(&pool->borrowed, -1);
}

/*
 * The ends that backends by fullnat get packets from.  Each address of the pool has a row for every
 * port, and a row is one connection's alone, so that no two can be taken for each other, whatever
 * their backends are.  A row that names no living connection any more is free: nobody gives one back.
 *
 *   bits  0 to 49  the connection's place + 1; of one that is being made when that began, in jiffies
 *        50        it is being made
 *        51        the connection is of IPv6
 *        52 to 63  the generation of its slot: word.h
 */
#define SOURCE_MAKING (1ULL << 50)
#define SOURCE_IPV6 (1ULL << 51)
#define SOURCE_PLACE_MASK (SOURCE_MAKING - 1)
/* Rows that a new connection looks at; and how long one may be in the making. */
#define SOURCE_ATTEMPTS 32
#define SOURCE_PATIENCE ((u64)60 * HZ)

static __always_inline bool fullnat_is_used(u64 route)
{
	return FEATURE_FULLNAT && route_method(route) == METHOD_FULLNAT;
}

/* The slot that a row names, where it holds a connection that has the row. */
static __always_inline struct slot *source_slot(u32 table, u64 source, u64 holder)
{
	struct slot *slot = table_slot(table, (holder & SOURCE_PLACE_MASK) - 1);
	u64 word = READ_ONCE(slot->word);

	if (!holder || holder & SOURCE_MAKING || !(holder & SOURCE_IPV6) == table_is_ipv6(table))
		return NULL;
	if (!word_is_used(word) || !word_is_same(word, holder) || !fullnat_is_used(word) ||
	    route_source(word) != source)
		return NULL;
	return slot;
}

/* The row is some connection's, or about to be. */
static __always_inline bool source_is_held(u32 table, u64 source, u64 holder, u64 now)
{
	struct slot *slot;

	if (holder & SOURCE_MAKING)
		return now - (holder & SOURCE_PLACE_MASK) < SOURCE_PATIENCE;
	slot = source_slot(table, source, holder);
	return slot && now < table_end(table, slot, READ_ONCE(slot->word)) + CLAIM_DELAY;
}

/* The row that this CPU looks at next: each goes through all, so that a row is not soon used again. */
static __always_inline u64 source_next(u32 table, u64 cpu)
{
	u32 family = table_is_ipv6(table);
	struct source_pool *pool = ROW(source_pools, family);
	u64 *cursor = CPU_ROW(source_cursors, cpu, family);
	u64 count = READ_ONCE(pool->count), ports = READ_ONCE(pool->ports), turn, port;

	if (!count || !ports)
		return 0;
	turn = (*cursor)++ + count * ports / CPUS * cpu;
	port = pool->first_port + turn / count % ports;
	return (u64)pool->index[turn % count & (SOURCES - 1)] << 16 | (port & 0xffff);
}

/* Takes a row for the journey's connection to be; false where those that it looks at are in use. */
static __always_inline bool source_take(u32 table, struct journey *journey)
{
	u64 source, holder, *row;

#pragma clang loop unroll(disable)
	for (u32 i = 0; i < SOURCE_ATTEMPTS; i++) {
		source = source_next(table, journey->packet.cpu);
		row = ROW(source_ports, source);
		holder = READ_ONCE(*row);
		/* no port is 0, so nor is a row */
		if (!source || source_is_held(table, source, holder, journey->now) ||
		    !word_change(row, holder, SOURCE_MAKING | journey->now))
			continue;
		journey->route = route_from(journey->route, source);
		return true;
	}
	return false;
}

/* The journey's connection has come to be, in its seat: the row is its own. */
static __always_inline void source_keep(u32 table, struct journey *journey, u64 source)
{
	u64 holder = (journey->seat.place + 1) |
		     (journey->seat.word + WORD_GENERATION & WORD_GENERATION_MASK);

	if (table_is_ipv6(table))
		holder |= SOURCE_IPV6;
	WRITE_ONCE(*ROW(source_ports, source), holder);
}

/* It has not. */
static __always_inline void source_return(u64 source)
{
	WRITE_ONCE(*ROW(source_ports, source), 0);
}

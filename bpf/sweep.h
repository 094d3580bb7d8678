/* A sweep's steps: removes what has expired, and counts anew what is left. */

/* Counts an entry for its service. */
static __always_inline void sweep_share(u32 table, u32 service)
{
	(*share_count(ROW(share_recounts, service), table))++;
}

/* Lets the filter's next half pass what has the sum. */
static __always_inline void sweep_pass(u64 sum)
{
	*ROW(filter, FILTER_WORDS + (sum >> (64 - FILTER_BITS + 6))) |=
		1ULL << (sum >> (64 - FILTER_BITS) & 63);
}

/* And what comes back of a connection by nat or fullnat. */
static __always_inline void sweep_answer(u32 table, struct slot *slot, u64 word)
{
	struct backend *backend = ROW(backends, ((struct connection *)slot)->backend);
	u64 *address = (u64 *)backend->address;
	u64 ports = slot->key[table_is_ipv6(table) ? 4 : 1];
	u64 sum = table_is_ipv6(table) ? hash_address6(address[0], address[1]) :
					 hash_address4((u32)address[0]);

	sweep_pass(sum + hash_backend(route_port(word), ports >> 32));
}

/* Lets the filter's next half pass what the connection is about. */
static __always_inline void sweep_concern(u32 table, struct slot *slot, u64 word)
{
	sweep_pass(table_is_ipv6(table) ? hash_virtual6(slot->key) + hash_target(slot->key[4]) :
					  hash_virtual4(slot->key[0]) + hash_target(slot->key[1]));
	if (route_method(word) & METHOD_NAT)
		sweep_answer(table, slot, word);
}

/* Counts a connection for the backend that it goes to. */
static __always_inline void sweep_count(struct connection *connection, u64 word)
{
	u64 reference = connection->backend;
	struct load *load = ROW(recounts, reference);

	if (!backend_is_same(reference))
		return;
	load->total++;
	load->active += state_is_active(word_state(word));
}

/*
 * Persistence entries' counts are compared a bucket at a time first: a sum of what the connections
 * weigh, from which what the entries count weighs is taken away.  Only where something is left over,
 * the next sweep counts each entry of the bucket for itself: those rows are far more, and each
 * connection's is another that is not in the CPU's caches.
 */
#define SUM_SUSPECT 1ULL

static __always_inline u64 *sweep_sum(bool ipv6, u64 place)
{
	place = (place & (PERSISTENCE_SLOTS - 1)) / BUCKET_SLOTS;
	return ipv6 ? ROW(bucket_sums6, place) : ROW(bucket_sums4, place);
}

static __always_inline u64 *sweep_recount(bool ipv6, u64 place)
{
	return ipv6 ? ROW(entry_recounts6, place) : ROW(entry_recounts4, place);
}

/* An even number that differs from entry to entry, times something that differs with the counts. */
static __always_inline u64 sweep_weight(u64 reference, s64 connections, s64 lasting)
{
	u64 mixed = reference * 0x9e3779b97f4a7c15ULL;

	mixed = (mixed ^ mixed >> 29) * 0xbf58476d1ce4e5b9ULL;
	return mixed * (connections + lasting * 0x94d049bb133111ebULL) << 1;
}

/* Counts a connection for its entry; where two generations meet the entry tells which one counts. */
static __always_inline void sweep_recount_one(bool ipv6, u64 reference, bool lasting)
{
	u64 *row = sweep_recount(ipv6, reference), counted = *row, generation = reference >> 32;
	struct persistence *entry;

	if (counts_generation(counted) != generation) {
		entry = persist_at(ipv6 ? TABLE_PERSISTENCE6 : TABLE_PERSISTENCE4, (u32)reference);
		if (counted && counts_generation(READ_ONCE(entry->counts)) != generation)
			return;
		counted = counts_make(generation, 0, 0);
	}
	*row = counted + counts_make(0, lasting, 1);
}

/* Counts a connection for its persistence entry. */
static __always_inline void sweep_controlled(bool ipv6, struct connection *connection, u64 word)
{
	bool lasting = state_is_lasting(word_state(word));
	u64 reference = connection->persistence, *sum;

	if (!(word_flags(word) & SLOT_CONTROLLED) || reference >> 32 == PERSISTENCE_GONE)
		return;
	sum = sweep_sum(ipv6, reference);
	*sum += sweep_weight(reference, 1, lasting);
	if (*sum & SUM_SUSPECT)
		sweep_recount_one(ipv6, reference, lasting);
}

/*
 * Compares an entry's counts with its connections as counted.  What differs is watched: any change
 * ends that, so counts that are watched still have stood still since the sweep before, and what was
 * counted meanwhile is right.
 */
static __always_inline void sweep_compare(struct sweep_item *item, struct persistence *entry,
					  u64 counts, u64 counted)
{
	if (counts_generation(counted) != counts_generation(counts))
		counted = 0;
	if (!((counted ^ counts) & COUNTS_MASK))
		return;
	if (!(counts & COUNTS_WATCHED))
		word_change(&entry->counts, counts, counts | COUNTS_WATCHED);
	else if (item->heal)
		item->healed += word_change(&entry->counts, counts,
					    (counts & ~COUNTS_MASK & ~COUNTS_WATCHED) |
						    (counted & COUNTS_MASK));
}

/* Takes a persistence entry's counts out of its bucket's sum; compares them in one that is suspect. */
static __always_inline void sweep_entry(bool ipv6, struct sweep_item *item, u64 place,
					struct persistence *entry)
{
	u64 *sum = sweep_sum(ipv6, place), counts = READ_ONCE(entry->counts);
	bool used = word_is_used(READ_ONCE(entry->word));
	u64 *row = sweep_recount(ipv6, place);

	if (used)
		*sum -= sweep_weight(counts_generation(counts) << 32 | place, counts_signed(counts),
				     counts_signed(counts >> COUNT_BITS));
	if (!(*sum & SUM_SUSPECT))
		return;
	if (used)
		sweep_compare(item, entry, counts, *row);
	*row = 0;
}

/* At the end of a persistence bucket: it is suspect if its connections weigh something else. */
static __always_inline void sweep_judge(bool ipv6, struct sweep_item *item, u64 place)
{
	u64 *sum = sweep_sum(ipv6, place);
	bool suspect = *sum & ~SUM_SUSPECT;

	item->suspect += suspect;
	*sum = suspect ? SUM_SUSPECT : 0;
}

static __always_inline void sweep_keep(u32 table, struct slot *slot, u64 word)
{
	struct connection *connection = (struct connection *)slot;

	sweep_share(table, table_service(table, slot));
	if (table_holds_persistence(table))
		return;
	sweep_count(connection, word);
	sweep_controlled(table_is_ipv6(table), connection, word);
	sweep_concern(table, slot, word);
}

/* One slot; what a service loses by force is not counted. */
static __always_inline void sweep_slot(u32 table, struct sweep_item *item, u64 place, u64 now)
{
	struct slot *slot = table_slot(table, place);
	u64 word = READ_ONCE(slot->word);
	u32 evict = item->evict;

	if (!word_is_used(word) || (evict && evict != table_service(table, slot) + 1))
		return;
	if (age_slot(table, slot, word, evict, now))
		item->removed++;
	else
		sweep_keep(table, slot, word);
}

static __always_inline void sweep_table(u32 table, struct sweep_item *item, u64 now)
{
	u32 first = item->place;
	bool in_full = !item->evict;

#pragma clang loop unroll(disable)
	for (u32 i = 0; i < SWEEP_STEP; i++) {
		sweep_slot(table, item, first + i, now);
		if (in_full && table_holds_persistence(table))
			sweep_entry(table_is_ipv6(table), item, first + i,
				    persist_at(table, first + i));
	}
	item->place = first + SWEEP_STEP;
	if (item->place & (BUCKET_SLOTS - 1))
		return;
	/* at the end of a bucket */
	age_tidy(table, first & (table_slots(table) - 1), true);
	if (in_full && table_holds_persistence(table))
		sweep_judge(table_is_ipv6(table), item, first);
}

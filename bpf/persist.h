/* Persistence entries: one client's backend for one service, keyed as IPVS keys its templates. */

static __always_inline struct service_config *service_config_of(u32 service)
{
	return ROW(service_configs, READ_ONCE(*ROW(service_switches, service)));
}

static __always_inline bool persist_any_port(struct service_config *config)
{
	return config->flags & (SERVICE_ANY_PORT | SERVICE_FTP);
}

static __always_inline void persist_key4(struct packet *packet, struct service_config *config,
					 struct flow4 *key)
{
	key->client = packet->flow4.client & config->netmask[0];
	if (config->flags & SERVICE_BY_MARK) {
		key->virtual = bpf_htonl(config->mark);
		return;
	}
	key->virtual = packet->flow4.virtual;
	key->protocol = packet->flow4.protocol;
	if (!persist_any_port(config))
		key->virtual_port = packet->flow4.virtual_port;
}

static __always_inline void persist_key6(struct packet *packet, struct service_config *config,
					 struct flow6 *key)
{
	for (int i = 0; i < 4; i++)
		key->client[i] = packet->flow6.client[i] & config->netmask[i];
	if (config->flags & SERVICE_BY_MARK) {
		key->virtual[0] = bpf_htonl(config->mark);
		return;
	}
	__builtin_memcpy(key->virtual, packet->flow6.virtual, 16);
	key->protocol = packet->flow6.protocol;
	if (!persist_any_port(config))
		key->virtual_port = packet->flow6.virtual_port;
}

/* In a key of a client's call some bits of the Call-ID's hash are where other keys have none. */
static __always_inline void persist_key_call(struct journey *journey)
{
	u64 *ports = &journey->client[packet_is_ipv6(&journey->packet) ? 4 : 1];

	if (FEATURE_SIP && journey->by_call)
		*ports = call_key(*ports, call_tag(&journey->packet));
}

/* Leaves the key and its hash in the journey. */
static __always_inline void persist_key(struct journey *journey, struct service_config *config)
{
	__builtin_memset(journey->client, 0, sizeof(journey->client));
	if (packet_is_ipv6(&journey->packet)) {
		persist_key6(&journey->packet, config, &journey->client6);
		persist_key_call(journey);
		journey->client_hash = hash_flow6(journey->client);
	} else {
		persist_key4(&journey->packet, config, &journey->client4);
		persist_key_call(journey);
		journey->client_hash = hash_flow4(journey->client);
	}
}

static __always_inline struct persistence *persist_at(u32 table, u32 place)
{
	return (struct persistence *)table_slot(table, place);
}

/* The table that the packet's persistence entry belongs in. */
static __always_inline u32 persist_table(struct packet *packet)
{
	return packet_is_ipv6(packet) ? TABLE_PERSISTENCE6 : TABLE_PERSISTENCE4;
}

/* A removed or drained backend gets nobody, a quiesced one nobody if the setting says so. */
static __always_inline bool persist_is_usable(u64 reference, u64 settings)
{
	u64 word = backend_word(reference);

	if (!word || word & BACKEND_DRAINING)
		return false;
	return !(word & BACKEND_QUIESCED && settings & SETTING_EXPIRE_QUIESCENT_TEMPLATE);
}

/* Keeps the later of two ends; a race between CPUs costs at most one interval of telling. */
static __always_inline void persist_extend(struct persistence *entry, bool lasting, u64 until)
{
	if (lasting && entry->active_until < until)
		entry->active_until = until;
	if (!lasting && entry->inactive_until < until)
		entry->inactive_until = until;
}

/*
 * The entry's only connection has come to end sooner than it told.  One that another CPU makes at
 * this moment tells of itself anew with its client's next packet.
 */
static __always_inline void persist_shorten(struct persistence *entry, u64 until)
{
	u64 before = READ_ONCE(entry->inactive_until);

	if (before > until && (READ_ONCE(entry->counts) & COUNT_MASK) == 1)
		word_change(&entry->inactive_until, before, until);
}

/* The entry is still the one that `reference` names. */
static __always_inline bool persist_is_same(struct persistence *entry, u64 reference)
{
	return counts_generation(READ_ONCE(entry->counts)) == reference >> 32;
}

/* Adds to the connections of the entry, if it still is the one that `reference` names. */
static __always_inline bool persist_count(struct persistence *entry, u64 reference, s64 connections,
					  s64 active)
{
	u64 counts, after;

#pragma clang loop unroll(disable)
	for (int i = 0; i < COUNT_ATTEMPTS; i++) {
		counts = READ_ONCE(entry->counts);
		if (counts_generation(counts) != reference >> 32)
			return false;
		if (!(connections | active))
			return true;
		/* below 0 for a moment, where what is taken away is told only then */
		after = counts_make(counts_generation(counts), counts_active(counts) + active,
				    counts + connections);
		clock_let_others();
		if (word_change(&entry->counts, counts, after))
			return true;
	}
	return false;
}

/* A connection of the client is confirmed, so its entry is. */
static __always_inline void persist_confirm(struct persistence *entry)
{
	u64 word = READ_ONCE(entry->word);

	if (word_is_used(word) && !(word_flags(word) & SLOT_CONFIRMED))
		word_change(&entry->word, word, word | (u64)SLOT_CONFIRMED << WORD_FLAGS_SHIFT);
}

/* The entry's word with its timer armed anew. */
static __always_inline u64 persist_renewed(struct persistence *entry, u64 word, u64 now)
{
	u64 flags = word_flags(word);

	if (now >= word_expires(word))
		flags |= SLOT_REARMED;
	return word_make(now + (flags & SLOT_REARMED ? REARM_TIMEOUT : entry->timeout), STATE_BOUND,
			 flags, word);
}

/* The entry gets a connection; false where it is another client's by now. */
static __always_inline bool persist_hold(struct journey *journey, struct persistence *entry,
					 u64 reference)
{
	u32 state = backend_first_state(journey);

	if (journey->one_packet)
		return persist_count(entry, reference, 0, 0);
	if (!persist_count(entry, reference, 1, state_is_lasting(state)))
		return false;
	persist_extend(entry, state_is_lasting(state), journey->now + state_timeout(state));
	return true;
}

/* A new connection uses the entry: its only renewal.  False where it was taken away meanwhile. */
static __always_inline bool persist_use(struct journey *journey, struct persistence *entry,
					struct seat *seat)
{
	u64 backend = entry->backend, counts = READ_ONCE(entry->counts);
	u64 reference = counts_generation(counts) << 32 | seat->place;
	u64 fresh = persist_renewed(entry, seat->word, journey->now);

	/* no connection will tell that the client came again */
	if (journey->one_packet)
		fresh |= (u64)SLOT_CONFIRMED << WORD_FLAGS_SHIFT;
	barrier();
	clock_let_others();
	if (fresh == seat->word) {
		if (READ_ONCE(entry->word) != fresh)
			return false;
	} else if (!word_change(&entry->word, seat->word, fresh)) {
		return false;
	}
	if (!persist_hold(journey, entry, reference))
		return false;
	journey->backend = backend;
	journey->persistence = reference;
	journey->controlled = 1;
	return true;
}

static __always_inline bool persist_is_live(struct journey *journey, struct persistence *entry,
					    u64 word)
{
	return journey->now < word_expires(word) ||
	       journey->now < expiry_of_persistence(entry, word);
}

/* The entry may serve a new connection now. */
static __always_inline bool persist_serves(struct journey *journey, struct persistence *entry,
					   u64 word)
{
	return persist_is_live(journey, entry, word) &&
	       persist_is_usable(entry->backend, journey->settings);
}

/*
 * Removes an entry that a new connection met and that may not serve it, whoever serves it instead:
 * where its backend comes back, or gets a weight again, the client is not its any more.
 */
static __always_inline void persist_dismiss(struct journey *journey, struct persistence *entry,
					    struct seat *seat)
{
	u32 service = entry->service;

	if (word_change(&entry->word, seat->word, word_make(0, STATE_DEAD, 0, seat->word)))
		share_return(persist_table(&journey->packet), service);
}

/* The entry in a place is not one for another call whose hash has the same bits. */
static __always_inline bool persist_fits(u32 table, struct journey *journey, u64 place)
{
	return !FEATURE_SIP || !journey->by_call || call_is_same(table, place, &journey->packet);
}

/* The client's entry if it has one that lives. */
static __always_inline struct persistence *persist_find(u32 table, struct journey *journey,
							struct seat *seat)
{
	struct persistence *entry;

	entry = (struct persistence *)table_find(table, journey->client, journey->client_hash,
						 seat);
	if (!entry || !persist_fits(table, journey, seat->place))
		return NULL;
	return persist_is_live(journey, entry, seat->word) ? entry : NULL;
}

/* Fills a slot that is this CPU's, for the journey's backend. */
static __always_inline void persist_fill(u32 table, struct journey *journey,
					 struct service_config *config, struct slot *slot,
					 struct seat *seat)
{
	struct persistence *entry = (struct persistence *)slot;
	u64 generation = counts_generation(entry->counts) + 1 & COUNTS_GENERATIONS - 1;
	u32 state = backend_first_state(journey);
	u64 flags = config->flags & SERVICE_STRICT ? SLOT_STRICT : 0;

	table_write_key(table, slot, journey->client);
	if (FEATURE_SIP && journey->by_call)
		call_note(table, seat->place, &journey->packet);
	entry->backend = journey->backend;
	entry->timeout = config->persistence_timeout;
	entry->service = journey->service;
	entry->active_until = 0;
	entry->inactive_until = 0;
	if (!journey->one_packet)
		persist_extend(entry, state_is_lasting(state), journey->now + state_timeout(state));
	WRITE_ONCE(entry->counts,
		   counts_make(generation, !journey->one_packet && state_is_lasting(state),
			       !journey->one_packet));
	journey->persistence = generation << 32 | seat->place;
	journey->controlled = 1;
	journey->bound = 1;
	table_publish(slot, word_make(journey->now + entry->timeout, STATE_BOUND, flags,
				      seat->word + WORD_GENERATION));
}

/* Under the bucket's lock: takes the seat for the client. */
static __always_inline int persist_sit(u32 table, struct journey *journey,
				       struct service_config *config, struct seat *seat)
{
	struct slot *slot = table_slot(table, seat->place);
	u32 gone;

	gone = table_service(table, slot);
	slot = table_claim(table, seat);
	if (!slot)
		return REASON_BUSY;
	persist_fill(table, journey, config, slot, seat);
	if (word_is_used(seat->word))
		share_return(table, gone);
	return REASON_OK;
}

/* Uses the entry that another CPU has made meanwhile; else, or where that is over, takes a seat. */
static __always_inline int persist_bind_locked(u32 table, struct journey *journey,
					       struct service_config *config)
{
	struct seat *seat = &journey->seat;
	struct persistence *entry;
	int found;

	found = table_seek(table, journey->client, journey->client_hash, journey->now, seat);
	if (found == TABLE_FULL)
		return REASON_TABLE_FULL;
	entry = persist_at(table, seat->place);
	/* two calls of one client and one hash: the second goes without an entry */
	if (found == TABLE_FOUND && !persist_fits(table, journey, seat->place))
		return REASON_TABLE_FULL;
	if (found == TABLE_FOUND && persist_serves(journey, entry, seat->word))
		return persist_use(journey, entry, seat) ? REASON_OK : REASON_BUSY;
	return persist_sit(table, journey, config, seat);
}

/*
 * Binds the client to the journey's backend; where another CPU was first, the journey to its.  The
 * caller has taken the service's share for it.
 */
static __always_inline int persist_bind_in(u32 table, struct journey *journey,
					   struct service_config *config)
{
	u64 *lock = table_lock(table, journey->client_hash);
	int reason = REASON_BUSY;

	if (lock) {
		reason = persist_bind_locked(table, journey, config);
		table_unlock(lock);
	}
	if (!journey->bound)
		share_return(table, journey->service);
	return reason;
}

static __always_inline int persist_bind(struct journey *journey, struct service_config *config)
{
	if (packet_is_ipv6(&journey->packet))
		return persist_bind_in(TABLE_PERSISTENCE6, journey, config);
	return persist_bind_in(TABLE_PERSISTENCE4, journey, config);
}

/* Connections: find, create, refresh, remove. */
#define CONNECTION_EXISTS (-17)

static __always_inline struct connection *connection_find(struct packet *packet, struct seat *seat)
{
	u64 *key = packet->key;

	if (packet_is_ipv6(packet))
		return (struct connection *)table_find(TABLE_CONNECTIONS6, key, packet->hash, seat);
	return (struct connection *)table_find(TABLE_CONNECTIONS4, key, packet->hash, seat);
}

/*
 * Has the line fetched where the search for the packet's connection will begin: a store goes on
 * without it, a load would not.  Nothing reads what it writes.
 */
static __always_inline void connection_fetch(struct packet *packet)
{
	u32 table = packet_is_ipv6(packet) ? TABLE_CONNECTIONS6 : TABLE_CONNECTIONS4;
	struct slot *slot = table_slot(table, packet->hash);

	WRITE_ONCE(((struct connection *)slot)->fetched, 0);
}

/* The table that the packet's connection belongs in. */
static __always_inline u32 connection_table(struct packet *packet)
{
	return packet_is_ipv6(packet) ? TABLE_CONNECTIONS6 : TABLE_CONNECTIONS4;
}

/* What a connection said when it was read; its slot may hold another by now. */
struct account {
	u64 word;
	u64 seen;
	u64 backend;
	u64 persistence;
	u32 service;
	u32 mark;
};

static __always_inline void connection_read(struct connection *connection, u64 word,
					    struct account *account)
{
	account->word = word;
	account->seen = READ_ONCE(connection->seen);
	account->backend = connection->backend;
	account->persistence = connection->persistence;
	account->service = connection->service;
	account->mark = connection->mark;
	barrier();
}

/* The persistence entry that controls the connection, if it has one. */
static __always_inline struct persistence *connection_entry(bool ipv6, struct account *account)
{
	if (!(word_flags(account->word) & SLOT_CONTROLLED))
		return NULL;
	return persist_at(ipv6 ? TABLE_PERSISTENCE6 : TABLE_PERSISTENCE4,
			  (u32)account->persistence);
}

/*
 * Has the connection name no entry, where its own is gone: generations of entries begin anew after
 * 32,768, and a connection may live longer than so many.
 */
static __always_inline void connection_part(struct connection *connection, struct account *account)
{
	u64 nobody = (u64)PERSISTENCE_GONE << 32 | (u32)account->persistence;

	word_change(&connection->persistence, account->persistence, nobody);
}

/* Tells the persistence entry what became of its connection by `now`; false if it is gone. */
static __always_inline bool connection_tell(bool ipv6, struct account *account, u64 after, u64 now)
{
	struct persistence *entry = connection_entry(ipv6, account);
	bool before_lasts = state_is_lasting(word_state(account->word));
	bool lasts = state_is_lasting(word_state(after));

	if (!entry)
		return true;
	if (!persist_count(entry, account->persistence, 0, (s64)lasts - before_lasts))
		return persist_is_same(entry, account->persistence);
	persist_extend(entry, lasts, expiry_of_connection(now, after));
	if (!lasts)
		persist_shorten(entry, expiry_of_connection(now, after));
	if (word_flags(after) & SLOT_CONFIRMED)
		persist_confirm(entry);
	return true;
}

/* The word after a packet, by what that makes of every state. */
static __always_inline u64 connection_next(u64 row, u64 word)
{
	u32 state = state_follow(row, word_state(word));
	u64 flags = word_flags(word);

	if (state_is_answered(state))
		flags |= SLOT_CONFIRMED;
	return word_make(word & WORD_ROUTE_MASK, state, flags, word);
}

/* What a change of state brings with it. */
static __always_inline void connection_moved(struct account *account, u64 after)
{
	s64 active = (s64)state_is_active(word_state(after)) -
		     state_is_active(word_state(account->word));

	if (active)
		backend_load(account->backend, active, 0);
}

/* The word would stay as it is: an established connection's packet that says nothing else, or UDP. */
static __always_inline bool connection_is_steady(struct packet *packet, u64 word)
{
	if (word_state(word) == STATE_ESTABLISHED)
		return (packet->flags & (TCP_FIN | TCP_SYN | TCP_RST | TCP_ACK)) == TCP_ACK;
	if (!FEATURE_SCTP || word_state(word) == STATE_UDP)
		return word_state(word) == STATE_UDP && word_flags(word) & SLOT_CONFIRMED;
	return word_state(word) == STATE_SCTP_ESTABLISHED && packet->flags == PACKET_SCTP_DATA;
}

/* There is nothing to tell the connection's persistence entry or control connection yet. */
static __always_inline bool connection_is_told(struct connection *connection, u64 word, u64 now)
{
	if (!(word_flags(word) & SLOT_CONTROLLED) && !expect_is_data(word))
		return true;
	return (u32)now - connection->told < TELL_INTERVAL;
}

/*
 * Notes the time of a packet that changes nothing else; false if there is more to do.  The time is
 * a plain store: whoever has taken the slot meanwhile had a packet now, too.
 */
static __always_inline bool connection_keep(struct packet *packet, struct connection *connection,
					    struct account *account, u64 now)
{
	u64 word = account->word;

	if (!connection_is_steady(packet, word) || !connection_is_told(connection, word, now))
		return false;
	if (account->seen != now)
		WRITE_ONCE(connection->seen, now);
	return READ_ONCE(connection->word) == word;
}

/* Steps the state; leaves the word as it is then, 0 if the slot is another's by now. */
static __always_inline u64 connection_step(struct packet *packet, struct connection *connection,
					   struct account *account, u32 view)
{
	u64 row = state_row_of(packet, view), after;

#pragma clang loop unroll(disable)
	for (int i = 0; i < WORD_ATTEMPTS; i++) {
		after = connection_next(row, account->word);
		clock_let_others();
		if (after == account->word) {
			if (READ_ONCE(connection->word) == after)
				return after;
		} else if (word_change(&connection->word, account->word, after)) {
			connection_moved(account, after);
			return after;
		}
		after = READ_ONCE(connection->word);
		if (!word_is_same(after, account->word) || !word_is_used(after))
			return 0;
		account->word = after;
	}
	return account->word;
}

/* Notes the packet's time and steps the state; false if the slot is another's by now. */
static __always_inline bool connection_refresh(struct packet *packet, struct connection *connection,
					       struct account *account, u32 view, u64 now)
{
	u64 after;

	if (account->seen != now)
		WRITE_ONCE(connection->seen, now);
	after = connection_step(packet, connection, account, view);
	if (!(word_flags(after) & SLOT_CONTROLLED) && !expect_is_data(after))
		return after;
	if (after == account->word && connection_is_told(connection, after, now))
		return true;
	if (expect_is_data(after))
		expect_keep_control(packet_is_ipv6(packet), account->persistence, now);
	else if (!connection_tell(packet_is_ipv6(packet), account, after, now))
		connection_part(connection, account);
	connection->told = now;
	return true;
}

/* Takes a connection that is no more out of all counts. */
static __always_inline void connection_forget(bool ipv6, struct account *account, u64 now)
{
	u64 expires = expiry_of_connection(account->seen, account->word);
	u64 end = now < expires ? now : expires;
	u32 state = word_state(account->word);
	struct persistence *entry = connection_entry(ipv6, account);

	backend_load(account->backend, state_is_active(state) ? -1 : 0, -1);
	share_return(ipv6 ? TABLE_CONNECTIONS6 : TABLE_CONNECTIONS4, account->service);
	if (!entry)
		return;
	if (persist_count(entry, account->persistence, -1, state_is_lasting(state) ? -1 : 0))
		persist_extend(entry, false, end);
}

/* Removes the connection if nothing has changed it since it was read; one CPU of several does. */
static __always_inline bool connection_remove(bool ipv6, struct connection *connection,
					      struct account *account, u64 now)
{
	u64 dead = word_make(0, STATE_DEAD, 0, account->word);

	clock_let_others();
	if (!word_change(&connection->word, account->word, dead))
		return false;
	connection_forget(ipv6, account, now);
	return true;
}

/*
 * IPVS's rules for a SYN or INIT that finds a connection (conn_reuse_mode); and a drained backend
 * gets no new connection under the name of an old one either.
 */
static __always_inline bool connection_is_reused(struct packet *packet, u64 word, u64 backend_word,
						 u64 settings)
{
	u32 state = word_state(word);

	if (!(packet->flags & TCP_SYN))
		return false;
	if (settings & SETTING_EXPIRE_NODEST_CONN && backend_word & BACKEND_QUIESCED)
		return true;
	if (backend_word & BACKEND_DRAINING && !state_is_active(state))
		return true;
	if (word_flags(word) & SLOT_CONTROLLED)
		return false;
	if (state == STATE_TIME_WAIT || state == STATE_CLOSE || state == STATE_SCTP_CLOSED)
		return settings & (SETTING_REUSE_CLOSED | SETTING_REUSE_FIN_WAIT);
	return state == STATE_FIN_WAIT && settings & SETTING_REUSE_FIN_WAIT;
}

/* Fills a slot that is this CPU's with the journey's connection. */
static __always_inline void connection_fill(u32 table, struct journey *journey, struct slot *slot,
					    struct seat *seat)
{
	struct connection *connection = (struct connection *)slot;
	u32 state = FEATURE_FTP && journey->listening ? STATE_LISTEN : backend_first_state(journey);
	u64 flags = journey->controlled ? SLOT_CONTROLLED : 0;

	/* opened sloppily: no later packet would confirm it */
	if (state == STATE_ESTABLISHED || state == STATE_SCTP_ESTABLISHED)
		flags |= SLOT_CONFIRMED;

	table_write_key(table, slot, journey->packet.key);
	connection->backend = journey->backend;
	connection->persistence = journey->persistence;
	WRITE_ONCE(connection->seen, journey->now);
	connection->told = journey->now;
	connection->service = journey->service;
	connection->mark = journey->mark;
	table_publish(slot, word_make(journey->route, state, flags, seat->word + WORD_GENERATION));
}

/* Under the bucket's lock: takes the seat; leaves what it held before in `evicted`. */
static __always_inline int connection_sit(u32 table, struct journey *journey, struct seat *seat,
					  struct account *evicted)
{
	struct slot *slot = table_slot(table, seat->place);

	connection_read((struct connection *)slot, seat->word, evicted);
	slot = table_claim(table, seat);
	if (!slot) {
		evicted->word = 0;
		return REASON_BUSY;
	}
	connection_fill(table, journey, slot, seat);
	return REASON_OK;
}

/* Under the bucket's lock: the flow has a connection already; OK where that is over. */
static __always_inline int connection_meet(u32 table, struct journey *journey, struct seat *seat)
{
	struct connection *connection = (struct connection *)table_slot(table, seat->place);
	u64 backend = READ_ONCE(connection->backend);

	if (journey->now >= expiry_of_connection(READ_ONCE(connection->seen), seat->word))
		return REASON_OK;
	if (READ_ONCE(connection->word) != seat->word)
		return REASON_BUSY;
	journey->backend = backend;
	journey->route = seat->word & WORD_ROUTE_MASK;
	return CONNECTION_EXISTS;
}

static __always_inline int connection_create_locked(u32 table, struct journey *journey,
						    struct account *evicted)
{
	struct seat *seat = &journey->seat;
	int found, reason = REASON_OK;

	found = table_seek(table, journey->packet.key, journey->packet.hash, journey->now, seat);
	if (found == TABLE_FULL)
		return REASON_TABLE_FULL;
	if (found == TABLE_FOUND)
		reason = connection_meet(table, journey, seat);
	return reason ? reason : connection_sit(table, journey, seat, evicted);
}

static __always_inline int connection_create_in(u32 table, struct journey *journey,
						struct account *evicted)
{
	u64 *lock = table_lock(table, journey->packet.hash);
	int reason;

	if (!lock)
		return REASON_BUSY;
	reason = connection_create_locked(table, journey, evicted);
	table_unlock(lock);
	return reason;
}

/*
 * Makes the flow's connection, unless another CPU has; then that one's backend is the answer.  The
 * caller has taken the service's share for it.
 */
static __always_inline int connection_create(struct journey *journey)
{
	bool ipv6 = packet_is_ipv6(&journey->packet);
	struct account evicted = {};
	int reason;

	reason = ipv6 ? connection_create_in(TABLE_CONNECTIONS6, journey, &evicted) :
			connection_create_in(TABLE_CONNECTIONS4, journey, &evicted);
	if (word_is_used(evicted.word))
		connection_forget(ipv6, &evicted, journey->now);
	if (reason)
		share_return(connection_table(&journey->packet), journey->service);
	else
		backend_load(journey->backend,
			     !(FEATURE_FTP && journey->listening) &&
				     state_is_active(backend_first_state(journey)),
			     1);
	return reason;
}

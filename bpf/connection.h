/* Connections: find, create, refresh, remove. */
#define EEXIST_ERROR (-17)

static __always_inline struct connection *connection_find(struct packet *packet)
{
	if (packet_is_ipv6(packet))
		return connections6.lookup(&packet->flow6);
	return connections4.lookup(&packet->flow4);
}

static __always_inline void connection_delete(struct packet *packet)
{
	if (packet_is_ipv6(packet))
		connections6.delete(&packet->flow6);
	else
		connections4.delete(&packet->flow4);
}

static __always_inline int connection_insert(struct packet *packet, struct connection *connection)
{
	if (packet_is_ipv6(packet))
		return connections6.insert(&packet->flow6, connection);
	return connections4.insert(&packet->flow4, connection);
}

/* Tells the persistence entry that controls this connection what became of it. */
static __always_inline void connection_tell(struct packet *packet, struct connection *connection,
					    u32 before, u32 after, u64 now)
{
	struct persistence *entry =
		persist_of(packet, connection->service, connection->persistence);

	if (!entry)
		return;
	if (state_is_lasting(before) && !state_is_lasting(after))
		__sync_fetch_and_add(&entry->active, -1);
	if (!state_is_lasting(before) && state_is_lasting(after))
		__sync_fetch_and_add(&entry->active, 1);
	persist_extend(entry, state_is_lasting(after), now + connection->timeout);
	connection->told = now;
}

/* Moves to state `next`; of several CPUs that see the same change, one counts it. */
static __always_inline void connection_move(struct packet *packet, struct connection *connection,
					    u64 word, u32 next, u64 now)
{
	u32 state = state_of(word);
	u64 moved = (word & ~(u64)STATE_MASK) | next;

	if (__sync_val_compare_and_swap(&connection->word, word, moved) != word)
		return;
	connection->timeout = state_timeout(next);
	if (state_is_active(state) != state_is_active(next))
		backend_load(connection->backend, state_is_active(next) ? 1 : -1, 0);
	if (connection->persistence)
		connection_tell(packet, connection, state, next, now);
}

/* Steps the state, and lets the connection live on from now. */
static __always_inline void connection_refresh(struct packet *packet, struct connection *connection,
					       u64 now)
{
	u64 word = connection->word;
	u32 next = state_next(state_of(word), packet);

	if (next != state_of(word))
		connection_move(packet, connection, word, next, now);
	connection->expires = now + connection->timeout;
	if (connection->persistence && now - connection->told >= TELL_INTERVAL)
		connection_tell(packet, connection, next, next, now);
}

/* Takes the connection out of all counts and deletes it; one CPU of several does. */
static __always_inline bool connection_remove(struct packet *packet, struct connection *connection,
					      u64 word, u64 now)
{
	u64 end = now < connection->expires ? now : connection->expires;
	u32 state = state_of(word);
	u64 dead = (word & ~(u64)STATE_MASK) | STATE_DEAD;
	struct persistence *entry;

	if (state == STATE_DEAD ||
	    __sync_val_compare_and_swap(&connection->word, word, dead) != word)
		return false;
	backend_load(connection->backend, state_is_active(state) ? -1 : 0, -1);
	if (connection->persistence) {
		entry = persist_of(packet, connection->service, connection->persistence);
		if (entry) {
			persist_extend(entry, false, end);
			persist_release(entry, state_is_lasting(state));
		}
	}
	connection_delete(packet);
	return true;
}

/*
 * IPVS's rules for a SYN that finds a connection (conn_reuse_mode); and a drained backend gets no
 * new connection under the name of an old one either.
 */
static __always_inline bool connection_is_reused(struct packet *packet,
						 struct connection *connection, u64 backend_word,
						 u64 settings)
{
	u32 state = state_of(connection->word);

	if (packet_protocol(packet) != IPPROTO_TCP || !(packet->flags & TCP_SYN))
		return false;
	if (settings & SETTING_EXPIRE_NODEST_CONN && backend_word & BACKEND_QUIESCED)
		return true;
	if (backend_word & BACKEND_DRAINING && !state_is_active(state))
		return true;
	if (connection->persistence)
		return false;
	if (state == STATE_TIME_WAIT || state == STATE_CLOSE)
		return settings & (SETTING_REUSE_CLOSED | SETTING_REUSE_FIN_WAIT);
	return state == STATE_FIN_WAIT && settings & SETTING_REUSE_FIN_WAIT;
}

/* Makes the flow's connection, unless another CPU has; then that one's backend is the answer. */
static __always_inline int connection_create(struct journey *journey)
{
	struct packet *packet = &journey->packet;
	struct connection connection = {}, *other;
	u32 state = state_first(packet);
	int error = EEXIST_ERROR;

	connection.word = (u64)bpf_get_prandom_u32() << STATE_BITS | state;
	connection.backend = journey->backend;
	connection.timeout = state_timeout(state);
	connection.expires = journey->now + connection.timeout;
	connection.told = journey->now;
	connection.service = journey->service;
	connection.persistence = journey->persistence;
	connection.mark = journey->mark;
	for (int i = 0; i < BUSY_ATTEMPTS; i++) {
		error = connection_insert(packet, &connection);
		if (error != EEXIST_ERROR)
			break;
		other = connection_find(packet);
		if (!other || state_of(other->word) == STATE_DEAD)
			continue;
		journey->backend = other->backend;
		return EEXIST_ERROR;
	}
	if (error == EEXIST_ERROR)
		return REASON_BUSY;
	if (error)
		return REASON_TABLE_FULL;
	backend_load(journey->backend, state_is_active(state), 1);
	return REASON_OK;
}

/* A new connection from its backend on: persistence entry, connection, first packet. */

/* The service is as it was when the decision began; if not, the decision starts over. */
static __always_inline void connect_recheck(struct hook_context *ctx, struct journey *journey)
{
	u64 word = READ_ONCE(*ROW(service_switches, journey->service));

	if (journey->controlled || word == journey->service_switch)
		return;
	if (journey->attempts++ >= DECISION_ATTEMPTS)
		return;
	journey->scan = 0;
	journey->best = 0;
	journey->backend = 0;
	programs.call(ctx, PROGRAM_NEW);
}

/* On to the connection; first, now and then, some ageing. */
static __always_inline void connect_go(struct hook_context *ctx, struct journey *journey)
{
	u64 cpu = journey->packet.cpu;

	journey->due = 0;
	if (!journey->one_packet && age_is_due(connection_table(&journey->packet), cpu))
		journey->due |= DUE_CONNECTIONS;
	if (journey->bound && age_is_due(persist_table(&journey->packet), cpu))
		journey->due |= DUE_PERSISTENCE;
	if (journey->due)
		programs.call(ctx, PROGRAM_AGE);
	programs.call(ctx, PROGRAM_CONNECT);
}

/* Another CPU was at the same slot: once more, and not for ever. */
static __always_inline void connect_again(struct hook_context *ctx, struct journey *journey,
					  u32 program)
{
	if (journey->attempts++ >= DECISION_ATTEMPTS)
		return;
	if (program == PROGRAM_BIND)
		programs.call(ctx, PROGRAM_BIND);
	else
		programs.call(ctx, PROGRAM_CONNECT);
}

/* Binds the client; without room for an entry it is served all the same. */
static __always_inline int connect_bind(struct hook_context *ctx, struct journey *journey)
{
	struct service_config *config = ROW(service_configs, journey->config);
	int reason;

	if (!share_take(persist_table(&journey->packet), journey->service)) {
		journey->wanting = PROGRAM_BIND;
		programs.call(ctx, PROGRAM_ROOM);
	}
	reason = persist_bind(journey, config);
	if (reason == REASON_BUSY)
		connect_again(ctx, journey, PROGRAM_BIND);
	if (reason != REASON_TABLE_FULL)
		return reason;
	journey->full = 1;
	return REASON_OK;
}

/* Takes back what the persistence entry was told of a connection that came to nothing. */
static __always_inline void connect_unbind(struct journey *journey)
{
	struct persistence *entry;

	if (!journey->controlled)
		return;
	entry = persist_at(persist_table(&journey->packet), (u32)journey->persistence);
	persist_count(entry, journey->persistence, -1,
		      state_is_lasting(backend_first_state(journey)) ? -1 : 0);
}

/* The service's share of connections, or the program that makes room; false if there is none. */
static __always_inline bool connect_may_create(struct hook_context *ctx, struct journey *journey)
{
	if (journey->without)
		return false;
	if (share_take(connection_table(&journey->packet), journey->service))
		return true;
	journey->wanting = PROGRAM_CONNECT;
	programs.call(ctx, PROGRAM_ROOM);
	return false;
}

/* Counts a connection that came to be, or a packet that is one by itself. */
static __always_inline int connect_count(struct journey *journey)
{
	stats_count_connection(journey->packet.cpu, journey->service, journey->backend);
	return REASON_OK;
}

/* A connection by fullnat, with the source that its backend is to see. */
static __always_inline int connect_create_fullnat(struct journey *journey)
{
	u32 table = connection_table(&journey->packet);
	bool is_taken = packet_is_ipv6(&journey->packet) ?
				source_take(TABLE_CONNECTIONS6, journey) :
				source_take(TABLE_CONNECTIONS4, journey);
	u64 source = route_source(journey->route);
	int reason;

	if (!is_taken) {
		share_return(table, journey->service);
		return REASON_TABLE_FULL;
	}
	reason = connection_create(journey);
	if (reason == REASON_OK)
		source_keep(table, journey, source);
	else
		source_return(source);
	return reason;
}

/* A connection that FTP expected has come: it is expected no more, and counts as no other. */
static __always_inline int connect_meet_expected(struct journey *journey)
{
	struct account account = {};
	struct connection *connection = expect_find(&journey->packet, journey->now, &account);

	if (connection)
		connection_remove(packet_is_ipv6(&journey->packet), connection, &account,
				  journey->now);
	return REASON_OK;
}

/* Leaves OK where the packet may go, with a connection or, for want of room, without one. */
static __always_inline int connect_create(struct hook_context *ctx, struct journey *journey)
{
	int reason = REASON_TABLE_FULL;

	if (!FEATURE_FTP || !journey->expected)
		journey->route = backend_route(journey);
	if (journey->one_packet) {
		limit_touch(journey->backend);
		return connect_count(journey);
	}
	if (connect_may_create(ctx, journey))
		reason = fullnat_is_used(journey->route) ? connect_create_fullnat(journey) :
							   connection_create(journey);
	if (reason == REASON_BUSY)
		connect_again(ctx, journey, PROGRAM_CONNECT);
	if (FEATURE_FTP && reason == REASON_OK && journey->expected)
		return connect_meet_expected(journey);
	if (reason == REASON_OK)
		return connect_count(journey);
	connect_unbind(journey);
	if (reason == REASON_TABLE_FULL)
		journey->full = 1;
	/* what the backend would answer could not be told from anything else */
	if (reason == REASON_TABLE_FULL && fullnat_is_used(journey->route))
		return REASON_BUSY;
	return reason == REASON_BUSY ? reason : REASON_OK;
}

/* Sends the packet that opens a connection. */
static __always_inline int connect_send(struct hook_context *ctx, struct journey *journey)
{
	struct forwarding forwarding = {
		.now = journey->now,
		.route = journey->route,
		.backend = (u32)journey->backend,
		.service = journey->service,
		.mark = journey->mark,
		.probe_interval = NEXTHOP_LIFE,
		.reason = journey->full ? REASON_TABLE_FULL : REASON_FORWARDED,
	};

	return forward_send(ctx, &journey->packet, &forwarding);
}

/* Lets one entry of the service go where the journey wants one. */
static __always_inline bool connect_evict(struct journey *journey)
{
	bool ipv6 = packet_is_ipv6(&journey->packet);

	if (journey->wanting == PROGRAM_BIND)
		return ipv6 ? age_make_room(TABLE_PERSISTENCE6, journey->client_hash, journey) :
			      age_make_room(TABLE_PERSISTENCE4, journey->client_hash, journey);
	return ipv6 ? age_make_room(TABLE_CONNECTIONS6, journey->packet.hash, journey) :
		      age_make_room(TABLE_CONNECTIONS4, journey->packet.hash, journey);
}

/* Goes back to what wanted room; without any, on without the entry. */
static __always_inline void connect_make_room(struct hook_context *ctx, struct journey *journey)
{
	if (connect_evict(journey))
		connect_again(ctx, journey, journey->wanting);
	if (journey->wanting == PROGRAM_BIND) {
		journey->full = 1;
		connect_go(ctx, journey);
	} else {
		journey->without = 1;
		programs.call(ctx, PROGRAM_CONNECT);
	}
}

/* A new connection, as far as its backend: what it is, whether it may be, who chooses. */

/* The packet may open a connection though it opens none by itself: the service is sloppy. */
static __always_inline bool new_is_let(struct journey *journey)
{
	struct service_config *config = ROW(service_configs, journey->config);
	u32 protocol = packet_protocol(&journey->packet);

	if (journey->packet.flags & TCP_RST)
		return false;
	if (protocol == IPPROTO_SCTP)
		return journey->settings & SETTING_SLOPPY_SCTP;
	return journey->settings & SETTING_SLOPPY_TCP || config->flags & SERVICE_SLOPPY_TCP;
}

/* Why the packet may open nothing, whatever it has a connection or not. */
static __always_inline int new_admit(struct hook_context *ctx, struct journey *journey)
{
	struct packet *packet = &journey->packet;
	int reason = classify_packet(ctx, journey);

	if (reason || STOP_AFTER == STAGE_CLASSIFIED)
		return reason ? reason : REASON_NO_SERVICE;
	if (!packet_is_opening(packet) && !new_is_let(journey))
		return REASON_NOT_OPENING;
	if (packet_client_port(packet) == FTP_DATA_PORT)
		return REASON_SOURCE_PORT_20;
	if (journey->settings & SETTING_REQUIRE_LOCAL && !classify_is_local(ctx, journey))
		return REASON_NOT_LOCAL;
	return STOP_AFTER == STAGE_LOCAL ? REASON_NO_SERVICE : REASON_OK;
}

/* The packet has a connection all the same: on to the program that knows what then. */
static __always_inline void new_look(struct hook_context *ctx, struct journey *journey)
{
	struct seat seat = {};

	if (!journey->unknown && connection_find(&journey->packet, &seat))
		programs.call(ctx, PROGRAM_KNOWN);
	journey->unknown = 1;
}

/*
 * The setting drop_packet takes one of so many packets that are to open something, the first at once,
 * as IPVS's countdown does; one and the same for all CPUs, none of which has to try again.
 */
static __always_inline bool new_is_dropped(struct journey *journey)
{
	u64 rate = *ROW(switches, SWITCH_DROP_RATE);

	if (!rate || journey->counted)
		return false;
	journey->counted = 1;
	return __sync_fetch_and_add(ROW(drop_count, 0), 1) % rate == 0;
}

/* The packet is one of those that drop_packet counts: what else keeps it, IPVS asks only after this. */
static __always_inline bool new_may_drop(struct packet *packet, int reason)
{
	if (reason == REASON_FTP_NOT_PERSISTENT)
		return packet_is_opening(packet);
	return reason == REASON_OK || reason == REASON_SOURCE_PORT_20;
}

/* The client's entry, if it has one. */
static __always_inline struct persistence *
new_find(struct journey *journey, struct service_config *config, struct seat *seat)
{
	persist_key(journey, config);
	if (packet_is_ipv6(&journey->packet))
		return persist_find(TABLE_PERSISTENCE6, journey, seat);
	return persist_find(TABLE_PERSISTENCE4, journey, seat);
}

/* The packet's Call-ID is known, or will be when this program begins again; IPVS asks UDP alone. */
static __always_inline bool new_has_call(struct hook_context *ctx, struct journey *journey)
{
	if (packet_protocol(&journey->packet) != IPPROTO_UDP)
		return false;
	if (journey->call == CALL_UNKNOWN) {
		call_begin(&journey->packet);
		programs.call(ctx, PROGRAM_CALL);
	}
	return journey->call == CALL_KNOWN;
}

/* Asks the scheduler; for a choice by counts after some ageing, where that is overdue. */
static __always_inline void new_schedule(struct hook_context *ctx, struct journey *journey,
					 struct service_config *config)
{
	journey->scheduler = config->scheduler;
	if (config->flags & SERVICE_BY_COUNTS &&
	    age_is_overdue(connection_table(&journey->packet), journey->now)) {
		journey->catch_ups = CATCH_UP_BUCKETS;
		journey->due = DUE_CONNECTIONS;
		programs.call(ctx, PROGRAM_AGE);
	}
	programs.call(ctx, PROGRAM_SCHEDULER + config->scheduler);
}

static __always_inline int new_decide(struct hook_context *ctx, struct journey *journey)
{
	struct persistence *entry = NULL;
	struct service_config *config;
	struct seat seat = {};
	int reason;

	if (packet_follows(&journey->packet))
		return REASON_OTHER_PROTOCOL;
	if (FEATURE_FTP) {
		expect_look(journey);
		if (READ_ONCE(journey->expected)) {
			connect_go(ctx, journey);
			return REASON_INTERNAL;
		}
	}
	/* verifier, where it knows the reason: "BPF program is too large", each searched for anew */
	WRITE_ONCE(journey->reason, new_admit(ctx, journey));
	reason = READ_ONCE(journey->reason);
	config = ROW(service_configs, journey->config);
	journey->persistent = reason == REASON_OK && config->flags & SERVICE_PERSISTENT;
	journey->one_packet = config->flags & SERVICE_ONE_PACKET &&
			      packet_protocol(&journey->packet) == IPPROTO_UDP;
	journey->by_call = FEATURE_SIP && journey->persistent && config->flags & SERVICE_SIP;
	if (journey->persistent && !journey->by_call)
		entry = new_find(journey, config, &seat);
	new_look(ctx, journey);
	if (new_may_drop(&journey->packet, reason) && new_is_dropped(journey))
		return REASON_DROP_PACKET;
	if (reason)
		return reason;
	if (FEATURE_SIP && journey->by_call) {
		if (!new_has_call(ctx, journey))
			return REASON_NO_CALL_ID;
		entry = new_find(journey, config, &seat);
	}
	/* looked for before the connection is, so that memory answers both at once, and used after */
	if (entry && !persist_is_usable(entry->backend, journey->settings)) {
		persist_dismiss(journey, entry, &seat);
		entry = NULL;
	}
	if (entry && !persist_use(journey, entry, &seat) && journey->attempts++ < DECISION_ATTEMPTS)
		programs.call(ctx, PROGRAM_NEW);
	if (STOP_AFTER == STAGE_PERSISTENT)
		return REASON_NO_SERVICE;
	if (journey->backend)
		connect_go(ctx, journey);
	new_schedule(ctx, journey, config);
	return REASON_INTERNAL;
}

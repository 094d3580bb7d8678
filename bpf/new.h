/* A new connection, as far as its backend: what it is, whether it may be, who chooses. */

/* A persistent client's entry gives the backend, else the scheduler will. */
static __always_inline int new_choose(struct hook_context *ctx, struct journey *journey)
{
	struct service_config *config = ROW(service_configs, journey->config);

	journey->persistent = config->flags & SERVICE_PERSISTENT;
	if (journey->persistent)
		persist_choose(journey, config);
	if (STOP_AFTER == STAGE_PERSISTENT)
		return REASON_NO_SERVICE;
	if (journey->backend)
		connect_go(ctx, journey);
	journey->scheduler = config->scheduler;
	if (config->scheduler == SCHEDULER_WLC &&
	    age_is_overdue(connection_table(&journey->packet), journey->now)) {
		journey->catch_ups = CATCH_UP_RUNS;
		programs.call(ctx, PROGRAM_AGE);
	}
	programs.call(ctx, PROGRAM_SCHEDULER + config->scheduler);
	return REASON_INTERNAL;
}

static __always_inline int new_decide(struct hook_context *ctx, struct journey *journey)
{
	struct packet *packet = &journey->packet;
	int reason = classify_packet(ctx, journey);

	if (reason || STOP_AFTER == STAGE_CLASSIFIED)
		return reason ? reason : REASON_NO_SERVICE;
	if (!packet_is_opening(packet))
		return REASON_NOT_OPENING;
	if (packet_client_port(packet) == FTP_DATA_PORT)
		return REASON_SOURCE_PORT_20;
	if (journey->settings & SETTING_REQUIRE_LOCAL && !classify_is_local(ctx, journey))
		return REASON_NOT_LOCAL;
	if (STOP_AFTER == STAGE_LOCAL)
		return REASON_NO_SERVICE;
	return new_choose(ctx, journey);
}

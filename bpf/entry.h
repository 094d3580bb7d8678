/* The entry: what is not for us goes up, what is known is sent, the rest begins its journey. */

/* VRRP's virtual MACs, 00:00:5e:00:01:xx and 00:00:5e:00:02:xx, as words. */
#define VRRP_MASK 0x000000ffffffffffULL
#define VRRP_IPV4 0x00000001005e0000ULL
#define VRRP_IPV6 0x00000002005e0000ULL

#if HOOK_IS_XDP

/* The frame is for this host at layer 2. */
static __always_inline bool entry_is_for_host(struct hook_context *ctx, struct packet *packet)
{
	struct interface *interface = maps_interface(packet->ifindex);
	u64 mac = packet_destination_mac(ctx);
	struct mac_key key = {};

	packet->interface = interface->flags;
	if (interface->mac == mac)
		return true;
	if ((mac & VRRP_MASK) == VRRP_IPV4 || (mac & VRRP_MASK) == VRRP_IPV6)
		return true;
	key.mac = mac;
	key.ifindex = packet->ifindex;
	return local_macs.lookup(&key);
}

#else

/* The frame is for this host at layer 2: the kernel has looked already. */
static __always_inline bool entry_is_for_host(struct hook_context *ctx, struct packet *packet)
{
	return HOOK_LOAD(ctx, pkt_type) == 0;
}

#endif

/* Why a packet to a removed backend goes nowhere; up, where no service of its family is left. */
static __always_inline int entry_gone(struct packet *packet, u64 settings)
{
	u64 served = packet_is_ipv6(packet) ? SETTING_IPV6_SERVICE : SETTING_IPV4_SERVICE;

	return settings & served ? REASON_BACKEND_GONE : REASON_NO_SERVICE;
}

/* The packet is not to be sent where its connection says; leaves why, or that it is a new one. */
static __always_inline bool entry_is_over(struct packet *packet, struct connection *connection,
					  struct account *account, u64 now, int *reason)
{
	u64 backend = 0, settings;

	if (now < expiry_of_connection(account->seen, account->word)) {
		backend = backend_word(account->backend);
		if (backend && !(packet->flags & TCP_SYN))
			return false;
		settings = *ROW(switches, SWITCH_SETTINGS);
		if (!backend && !(settings & SETTING_EXPIRE_NODEST_CONN)) {
			*reason = entry_gone(packet, settings);
			return true;
		}
		if (backend && !connection_is_reused(packet, account->word, backend, settings))
			return false;
	}
	connection_remove(packet_is_ipv6(packet), connection, account, now);
	return true;
}

/* On to the program for tunnels or fullnat, with a packet of a known connection. */
static __always_inline int entry_send(struct hook_context *ctx, struct packet *packet,
				      struct forwarding *forwarding, u64 now)
{
	struct journey *journey = maps_journey();

	forwarding->now = now;
	forwarding->probe_interval = 2 * NEXTHOP_LIFE;
	journey->mark = 0;
	journey->settings = 0;
	return fullnat_is_used(forwarding->route) ? forward_call_fullnat(ctx, packet, forwarding) :
						    tunnel_call(ctx, packet, forwarding);
}

/*
 * The fast path: a packet that changes nothing of its connection but times and counters, and whose
 * backend's next hop is known.  REASON_OK where it is any other, which the program for known
 * connections looks at from the beginning.
 */
static __always_inline int entry_plain(struct hook_context *ctx, struct packet *packet,
				       struct connection *connection, struct seat *seat, u64 now)
{
	struct forwarding forwarding = { .reason = REASON_FORWARDED };
	struct account account = {};
	struct lane *lane;

	connection_read(connection, seat->word, &account);
	if (now >= expiry_of_connection(account.seen, account.word) ||
	    !backend_word(account.backend) || !connection_keep(packet, connection, &account, now))
		return REASON_OK;
	if (STOP_AFTER == STAGE_REFRESHED)
		return REASON_NO_SERVICE;
	lane = CPU_ROW(lanes, packet->cpu, account.backend);
	if (nat_is_used(account.word) &&
	    (!nat_is_plain(ctx, packet) || expect_is_control(account.word)))
		return REASON_OK;
	forwarding.route = account.word & WORD_ROUTE_MASK;
	forwarding.backend = (u32)account.backend;
	forwarding.service = account.service;
	if (!forward_is_plain(packet, &lane->hop, now))
		return REASON_OK;
	if (fullnat_is_used(account.word) ||
	    (tunnel_is_used(account.word) && !tunnel_is_plain(packet, &lane->hop, account.backend)))
		return entry_send(ctx, packet, &forwarding, now);
	return forward_transmit(ctx, packet, lane, &forwarding);
}

#if HOOK_IS_XDP

/* The exit of the fast path: in XDP what goes nowhere is found out elsewhere. */
static __always_inline int entry_exit(struct hook_context *ctx, int reason, struct packet *packet)
{
	return exit_with(ctx, reason, packet, 0);
}

#else

/* Refuses a packet that is in no journey yet, and about which nothing is left to be decided. */
static __always_inline int entry_refuse(struct hook_context *ctx, int reason, struct packet *packet,
					u32 mark)
{
	struct journey *journey = maps_journey();

	journey->packet = *packet;
	journey->mark = mark;
	journey->settings = 0;
	return exit_or_refuse(ctx, reason, journey);
}

/* The exit of the fast path, which most often leads to a backend. */
static __always_inline int entry_exit(struct hook_context *ctx, int reason, struct packet *packet)
{
	if (!exit_is_sent(reason) && exit_is_refusal(reason))
		return entry_refuse(ctx, reason, packet, 0);
	return exit_with(ctx, reason, packet, 0);
}

#endif

/* Any packet of a connection that is known; REASON_OK where there is none. */
static __always_inline int entry_known(struct hook_context *ctx, struct packet *packet, u64 now)
{
	struct forwarding forwarding = { .now = now,
					 .probe_interval = 2 * NEXTHOP_LIFE,
					 .reason = REASON_FORWARDED };
	struct account account = {};
	struct connection *connection;
	struct seat seat = {};
	int reason = REASON_OK;

	connection = connection_find(packet, &seat);
	if (!connection)
		return REASON_OK;
	connection_read(connection, seat.word, &account);
	if (entry_is_over(packet, connection, &account, now, &reason))
		return reason;
	if (!connection_refresh(packet, connection, &account,
				state_view(route_method(account.word)), now))
		return REASON_OK;
	forwarding.route = account.word & WORD_ROUTE_MASK;
	forwarding.backend = (u32)account.backend;
	forwarding.service = account.service;
	forwarding.mark = account.mark;
	return forward_send(ctx, packet, &forwarding);
}

/* A packet that most likely has no connection. */
static __always_inline bool entry_is_first(struct packet *packet)
{
	return (packet->flags & (TCP_SYN | TCP_ACK | TCP_RST)) == TCP_SYN;
}

/* Starts the journey of a packet that no connection knows, or probably none. */
static __always_inline void entry_begin(struct packet *packet, u64 now, bool unknown)
{
	struct journey *journey = maps_journey();

	/* the rest is written before it is read */
	journey->packet = *packet;
	journey->now = now;
	journey->settings = *ROW(switches, SWITCH_SETTINGS);
	journey->attempts = 0;
	journey->unknown = unknown;
	journey->counted = 0;
	journey->call = CALL_UNKNOWN;
	journey->backend = 0;
	journey->scan = 0;
	journey->controlled = 0;
	journey->bound = 0;
	journey->catch_ups = 0;
	journey->full = 0;
	journey->without = 0;
	journey->mark = 0;
	journey->ruled = 0;
	journey->asked = 0;
	journey->excluded = 0;
	journey->service = 0;
	journey->persistence = 0;
	journey->verdict = 0;
	journey->expected = 0;
	journey->listening = 0;
}

/* The end of what turned out to be no answer: perhaps some service's, else the host's. */
static __always_inline int entry_other(struct hook_context *ctx, struct journey *journey)
{
	struct packet *packet = &journey->packet;

	if (!journey->concerned)
		return exit_with(ctx, journey->seen ? REASON_ANSWER_LEFT : REASON_NO_SERVICE,
				 packet, 0);
	entry_begin(packet, journey->now, !entry_is_first(packet));
	programs.call(ctx, PROGRAM_NEW);
	return exit_with(ctx, REASON_INTERNAL, packet, 0);
}

/* Each family has its own: of a program for both the verifier would follow their mixtures, too. */
static __always_inline void entry_call_quote(struct hook_context *ctx, struct packet *packet)
{
	if (packet_is_ipv6(packet))
		programs.call(ctx, PROGRAM_QUOTE6);
	else
		programs.call(ctx, PROGRAM_QUOTE4);
}

/* On to the program for errors that quote a flow, with what is of no protocol that is balanced. */
static __always_inline void entry_quote(struct hook_context *ctx, struct packet *packet)
{
	struct journey *journey = maps_journey();

	journey->packet = *packet;
	journey->seen = 0;
	entry_call_quote(ctx, packet);
}

/* On to the program for fragments, which has ports only of a packet's first. */
static __always_inline void entry_fragment(struct hook_context *ctx, struct packet *packet)
{
	if (packet_is_ipv6(packet))
		programs.call(ctx, PROGRAM_FRAGMENT6);
	else
		programs.call(ctx, PROGRAM_FRAGMENT4);
}

/* The same with a fragment of which nothing is settled yet. */
static __always_inline void entry_begin_fragment(struct hook_context *ctx, struct packet *packet)
{
	struct journey *journey = maps_journey();

	journey->packet = *packet;
	journey->seen = 0;
	entry_fragment(ctx, packet);
}

/* Sends an answer, or goes on to the program for answers; REASON_OK for what is none at a glance. */
static __always_inline int entry_answer(struct hook_context *ctx, struct packet *packet, u64 now,
					bool concerned)
{
	struct journey *journey = maps_journey();
	int reason;

	if (!answer_concerns(packet))
		return REASON_OK;
	reason = packet_is_ipv6(packet) ? answer_plain(TABLE_CONNECTIONS6, ctx, packet, now) :
					  answer_plain(TABLE_CONNECTIONS4, ctx, packet, now);
	if (reason)
		return reason;
	journey->packet = *packet;
	journey->now = now;
	journey->concerned = concerned;
	journey->seen = 0;
	programs.call(ctx, PROGRAM_ANSWER);
	return REASON_INTERNAL;
}

/* The way of a packet whose type and offset are known. */
static __always_inline int entry_flow(struct hook_context *ctx, struct packet *packet)
{
	int reason = packet_parse(ctx, packet);
	struct connection *connection = NULL;
	struct seat seat = {};
	bool concerned;
	u64 now;

	if (reason == REASON_OTHER_PROTOCOL)
		entry_quote(ctx, packet);
	if (reason == REASON_FRAGMENT)
		entry_begin_fragment(ctx, packet);
	if (reason)
		return exit_with(ctx, reason, packet, 0);
	if (STOP_AFTER == STAGE_PARSED)
		return HOOK_PASS;
	packet_hash(packet);
	if (!entry_is_for_host(ctx, packet))
		return exit_with(ctx, REASON_OTHER_HOST, packet, 0);
	concerned = classify_concerns(ctx, packet);
	if (!concerned && !FEATURE_NAT)
		return exit_with(ctx, REASON_NO_SERVICE, packet, 0);
	if (STOP_AFTER == STAGE_CONCERNED)
		return HOOK_PASS;
	now = clock_now();
	if (concerned && entry_is_first(packet))
		/* what it is about is found out while memory answers */
		connection_fetch(packet);
	else if (concerned)
		connection = connection_find(packet, &seat);
	if (FEATURE_NAT && !connection) {
		reason = entry_answer(ctx, packet, now, concerned);
		if (reason || !concerned)
			return exit_with(ctx, reason ? reason : REASON_NO_SERVICE, packet, 0);
	}
	if (STOP_AFTER == STAGE_FOUND && connection)
		return HOOK_PASS;
	if (connection) {
		reason = entry_plain(ctx, packet, connection, &seat, now);
		if (reason)
			return entry_exit(ctx, reason, packet);
	}
	entry_begin(packet, now, !connection && !entry_is_first(packet));
	if (STOP_AFTER == STAGE_BEGUN)
		return HOOK_PASS;
	if (connection)
		programs.call(ctx, PROGRAM_KNOWN);
	else
		programs.call(ctx, PROGRAM_NEW);
	return exit_with(ctx, REASON_INTERNAL, packet, 0);
}

/* The families part here, so that neither asks again which it is. */
static __always_inline int entry_packet(struct hook_context *ctx)
{
	u64 cpu = bpf_get_smp_processor_id();
	struct packet frame = { .cpu = cpu };
	struct packet packet4 = { .cpu = cpu, .type = ETHERNET_IPV4 };
	struct packet packet6 = { .cpu = cpu, .type = ETHERNET_IPV6 };
	int reason;

	hook_prepare(ctx);
	reason = packet_parse_ethernet(ctx, &frame);
	if (reason)
		return exit_with(ctx, reason, &frame, 0);
	if (!packet_has_feature(&frame))
		return exit_with(ctx, REASON_NO_SERVICE, &frame, 0);
	if (packet_is_ipv6(&frame)) {
		packet6.ip_offset = frame.ip_offset;
		packet6.vlan = frame.vlan;
		return entry_flow(ctx, &packet6);
	}
	packet4.ip_offset = frame.ip_offset;
	packet4.vlan = frame.vlan;
	return entry_flow(ctx, &packet4);
}

#if !HOOK_IS_XDP

/* Finishes an answer that XDP handed over: by the program for answers, as the verifier would have it. */
static __always_inline int entry_finish_answer(struct hook_context *ctx, struct packet *packet)
{
	struct journey *journey = maps_journey();

	journey->packet = *packet;
	journey->now = clock_now();
	journey->concerned = 0;
	journey->seen = 1;
	programs.call(ctx, PROGRAM_ANSWER);
	return exit_with(ctx, REASON_INTERNAL, packet, 0);
}

/* Finishes an error that quotes a flow: by the program for these. */
static __always_inline void entry_finish_quote(struct hook_context *ctx, struct packet *packet,
					       struct forwarding *forwarding)
{
	struct journey *journey = maps_journey();

	journey->packet = *packet;
	journey->forwarding = *forwarding;
	journey->seen = 1;
	entry_call_quote(ctx, packet);
}

/* Finishes a fragment: by the program for these. */
static __always_inline void entry_finish_fragment(struct hook_context *ctx, struct packet *packet,
						  struct forwarding *forwarding)
{
	struct journey *journey = maps_journey();

	journey->packet = *packet;
	journey->forwarding = *forwarding;
	journey->seen = 1;
	entry_fragment(ctx, packet);
}

/* Finishes what XDP handed over. */
static __always_inline int entry_handed_over(struct hook_context *ctx, struct handover *handover)
{
	struct forwarding forwarding = { .route = handover->route,
					 .backend = handover->backend,
					 .service = handover->service,
					 .mark = handover->mark,
					 .reason = handover->reason };
	struct packet packet = { .cpu = bpf_get_smp_processor_id() };
	u32 reason = handover->reason, mark = handover->mark;
	int parsed;

	if (!exit_is_sent(reason) && !exit_is_refusal(reason))
		return exit_with(ctx, reason, &packet, mark);
	hook_prepare(ctx);
	parsed = packet_parse_ethernet(ctx, &packet);
	if (!parsed)
		parsed = packet_parse(ctx, &packet);
	if (parsed == REASON_OTHER_PROTOCOL)
		entry_finish_quote(ctx, &packet, &forwarding);
	if (parsed == REASON_FRAGMENT)
		entry_finish_fragment(ctx, &packet, &forwarding);
	if (parsed)
		return exit_with(ctx, REASON_INTERNAL, &packet, 0);
	if (exit_is_refusal(reason))
		return entry_refuse(ctx, reason, &packet, mark);
	if (FEATURE_NAT && reason == REASON_ANSWERED)
		return entry_finish_answer(ctx, &packet);
	return entry_exit(ctx, forward_send(ctx, &packet, &forwarding), &packet);
}

#endif

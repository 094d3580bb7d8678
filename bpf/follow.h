/* The programs for fragments: a packet's first goes the way of any packet, the others follow it. */

/* Some service or rule names the destination, by whatever port. */
static __always_inline bool follow_concerns(struct packet *packet)
{
	return classify_filter_has(packet_address_sum(packet) + hash_of_fragment());
}

/* Replaces an address of a fragment without ports. */
static __always_inline int follow_replace(struct hook_context *ctx, struct packet *packet,
					  bool is_source, const __be32 *address)
{
	void *header = (void *)HOOK_LOAD(ctx, data) + packet_network(packet);
	void *end = (void *)HOOK_LOAD(ctx, data_end);
	u64 change = 0;

	if (packet_is_ipv6(packet))
		return packet_replace_address6(header, end, is_source, address, &change);
	return packet_replace_address4(header, end, is_source, address, &change);
}

/* Has a fragment go to a backend by nat or fullnat. */
static __always_inline int follow_to_backend(struct hook_context *ctx, struct packet *packet,
					     u32 id, u64 route)
{
	struct end end = {};
	int reason = REASON_OK;

	__builtin_memcpy(end.address, ROW(backends, id)->address, sizeof(end.address));
	if (fullnat_is_used(route) && !fullnat_is_here(&end))
		reason = follow_replace(ctx, packet, true,
					ROW(sources, route_source(route) >> 16)->address);
	return reason ? reason : follow_replace(ctx, packet, false, end.address);
}

/* Has a fragment of what a backend by fullnat answers go to its client; false where that is over. */
static __always_inline bool follow_to_client(struct hook_context *ctx, struct packet *packet,
					     u64 route)
{
	u32 table = packet_is_ipv6(packet) ? TABLE_CONNECTIONS6 : TABLE_CONNECTIONS4;
	u64 source = route_source(route), holder = READ_ONCE(*ROW(source_ports, source));
	struct slot *slot = source_slot(table, source, holder);
	struct end client = {};

	if (!slot)
		return false;
	fullnat_client(table, (struct connection *)slot, &client);
	if (!word_is_same(READ_ONCE(slot->word), holder) ||
	    follow_replace(ctx, packet, false, client.address))
		return false;
	packet_direct(packet, client.address);
	return true;
}

/* Sends a later fragment the way of the first. */
static __always_inline int follow_first(struct hook_context *ctx, struct packet *packet, u64 now)
{
	struct forwarding forwarding = { .now = now,
					 .probe_interval = 2 * NEXTHOP_LIFE,
					 .reason = REASON_FORWARDED };
	struct fragment_key key = {};
	struct fragment *first;
	int reason = REASON_OK;

	fragment_key_of(packet, &key);
	first = fragments.lookup(&key);
	if (!first || now >= first->until)
		return follow_concerns(packet) ? REASON_FRAGMENT_EARLY : REASON_FRAGMENT;
	if (!backend_word(first->backend))
		return REASON_BACKEND_GONE;
	forwarding.backend = (u32)first->backend;
	forwarding.service = first->service;
	forwarding.mark = first->mark;
	if (FEATURE_NAT && first->is_answer) {
		if (fullnat_is_used(first->route) && !follow_to_client(ctx, packet, first->route))
			return REASON_FRAGMENT_EARLY;
		reason = follow_replace(ctx, packet, true, first->address);
		return reason ? reason : answer_leave(ctx, packet, &forwarding);
	}
	if (nat_is_used(first->route) || fullnat_is_used(first->route))
		reason = follow_to_backend(ctx, packet, forwarding.backend, first->route);
	else
		forwarding.route = first->route;
	return reason ? reason : forward_send(ctx, packet, &forwarding);
}

/* The first fragment: on to the programs that any packet goes through. */
static __always_inline int follow_begin(struct hook_context *ctx, struct packet *packet, u64 now)
{
	struct journey *journey = maps_journey();

	if (classify_concerns(ctx, packet)) {
		entry_begin(packet, now, false);
		programs.call(ctx, PROGRAM_KNOWN);
		return REASON_INTERNAL;
	}
	if (!answer_concerns(packet))
		return REASON_FRAGMENT;
	journey->packet = *packet;
	journey->now = now;
	journey->concerned = 0;
	journey->seen = 0;
	programs.call(ctx, PROGRAM_ANSWER);
	return REASON_INTERNAL;
}

static __always_inline int follow_packet(struct hook_context *ctx, struct packet *packet)
{
	int reason = packet_parse_fragment(ctx, packet);
	u64 now = clock_now();

	if (reason)
		return reason;
	if (!entry_is_for_host(ctx, packet))
		return REASON_OTHER_HOST;
	packet_hash(packet);
	if (packet->fragment & FRAGMENT_LATER)
		return follow_first(ctx, packet, now);
	return follow_begin(ctx, packet, now);
}

#if !HOOK_IS_XDP

/* Finishes what XDP handed over: of a later fragment it has seen to the addresses. */
static __always_inline int follow_finish(struct hook_context *ctx, struct packet *packet,
					 struct forwarding *forwarding)
{
	struct journey *journey = maps_journey();

	if (packet_parse_fragment(ctx, packet))
		return REASON_INTERNAL;
	packet_hash(packet);
	forwarding->now = clock_now();
	if (exit_is_refusal(forwarding->reason))
		return entry_refuse(ctx, forwarding->reason, packet, forwarding->mark);
	if (!FEATURE_NAT || forwarding->reason != REASON_ANSWERED)
		return entry_exit(ctx, forward_send(ctx, packet, forwarding), packet);
	if (packet->fragment & FRAGMENT_LATER)
		return exit_with(ctx, answer_leave(ctx, packet, forwarding), packet, 0);
	return entry_finish_answer(ctx, packet);
}

#endif

/* The programs' whole way, once the families have parted. */
static __always_inline int follow_exit(struct hook_context *ctx, struct packet *packet)
{
	struct journey *journey = maps_journey();
	int reason;

#if !HOOK_IS_XDP
	if (journey->seen)
		return follow_finish(ctx, packet, &journey->forwarding);
#endif
	reason = follow_packet(ctx, packet);
	/* nobody is told of any fragment but the first */
	if (!exit_is_refusal(reason) || packet->fragment & FRAGMENT_LATER)
		return exit_with(ctx, reason, packet, 0);
	journey->packet = *packet;
	journey->mark = 0;
	journey->settings = 0;
	return exit_or_refuse(ctx, reason, journey);
}

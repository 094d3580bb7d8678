/*
 * fullnat: both ends of a packet are replaced, so that its backend answers to this host whatever its
 * routes are.  To it the client is an address of the pool with a port of its own: source.h.
 */

/* What the backend of a connection sees as its client. */
static __always_inline void fullnat_source(u64 route, struct end *end)
{
	u64 source = route_source(route);

	__builtin_memcpy(end->address, ROW(sources, source >> 16)->address, sizeof(end->address));
	end->port = bpf_htons(source & 0xffff);
}

/* The end is this host's: what is sent there keeps its source. */
static __always_inline bool fullnat_is_here(struct end *end)
{
	struct address_key key = {};

	__builtin_memcpy(key.address, end->address, sizeof(key.address));
	return local_addresses.lookup(&key);
}

/* The client's end of the connection, as its slot has it now. */
static __always_inline void fullnat_client(u32 table, struct connection *connection,
					   struct end *end)
{
	struct slot *slot = (struct slot *)connection;
	u64 *address = (u64 *)end->address;

	if (table_is_ipv6(table)) {
		address[0] = slot->key[0];
		address[1] = slot->key[1];
		end->port = slot->key[4];
	} else {
		address[0] = (u32)slot->key[0];
		address[1] = 0;
		end->port = slot->key[1];
	}
}

/* The row of the end that the packet goes to; 0 where it is no address of the pool. */
static __always_inline u64 fullnat_row(struct packet *packet)
{
	struct address_key key = {};
	u64 address[2], *known;
	u32 *number;

	nat_address(packet, false, address);
	__builtin_memcpy(key.address, address, sizeof(key.address));
	number = source_numbers.lookup(&key);
	if (!number)
		return 0;
	/* the number may be another address's by now */
	known = (u64 *)ROW(sources, *number)->address;
	if (known[0] != address[0] || known[1] != address[1])
		return 0;
	return (u64)*number << 16 | bpf_ntohs(packet_virtual_port(packet));
}

/* The backend's end of the connection is the packet's source. */
static __always_inline bool fullnat_is_from(u32 table, struct packet *packet,
					    struct connection *connection, u64 word)
{
	u64 ports = ((struct slot *)connection)->key[table_is_ipv6(table) ? 4 : 1];
	u64 key[5];

	answer_key(packet, key);
	return (u8)(ports >> 32) == packet_protocol(packet) &&
	       route_port(word) == packet_client_port(packet) &&
	       answer_is_from(table, connection, key);
}

/* The live connection whose backend sent the packet, what it says, and its two ends. */
static __always_inline struct connection *fullnat_find(u32 table, struct packet *packet, u64 now,
						       struct account *account, struct end *virtual,
						       struct end *client)
{
	u64 row = fullnat_row(packet), holder = READ_ONCE(*ROW(source_ports, row));
	struct connection *connection;
	struct slot *slot;
	u64 word;

	if (!row)
		return NULL;
	slot = source_slot(table, row, holder);
	if (!slot)
		return NULL;
	connection = (struct connection *)slot;
	word = READ_ONCE(slot->word);
	if (!word_is_same(word, holder) || !word_is_used(word) ||
	    !fullnat_is_from(table, packet, connection, word))
		return NULL;
	connection_read(connection, word, account);
	answer_virtual(table, connection, virtual);
	fullnat_client(table, connection, client);
	if (now >= expiry_of_connection(account->seen, account->word))
		return NULL;
	return connection;
}

/* The packet's ports, and the checksum that covers them, where they are not for nat_replace. */
static __always_inline int fullnat_prepare(struct hook_context *ctx, struct packet *packet,
					   __be16 source, __be16 destination)
{
	u32 change;

	/* what covers the whole packet cannot be reckoned from a part of it */
	if (packet->fragment)
		return REASON_OK;
	if (!nat_is_sctp(packet))
		return nat_prepare(ctx, packet);
	change = nat_port_change(packet, true, source) |
		 nat_port_change(packet, false, destination);
	return change ? nat_change_sctp(ctx, packet, change) : REASON_OK;
}

/* Gives the packet both ends. */
static __always_inline int fullnat_translate(struct hook_context *ctx, struct packet *packet,
					     struct end *source, struct end *destination)
{
	int reason = fullnat_prepare(ctx, packet, source->port, destination->port);

	if (reason == REASON_OK)
		reason = nat_replace(ctx, packet, true, source);
	if (reason == REASON_OK)
		reason = nat_replace(ctx, packet, false, destination);
	return reason;
}

/* The backend is this host, which answers its client itself: the packet keeps its source. */
static __always_inline int fullnat_here(struct hook_context *ctx, struct packet *packet,
					struct lane *lane, struct forwarding *forwarding,
					struct end *destination)
{
	int reason = fullnat_prepare(ctx, packet, packet_client_port(packet), destination->port);

	if (reason == REASON_OK)
		reason = nat_replace(ctx, packet, false, destination);
	return reason ? reason : forward_count_here(ctx, packet, lane, forwarding);
}

#if HOOK_IS_XDP

/* Sends the packet to its backend; TC does where XDP cannot. */
static __always_inline int fullnat_send(struct hook_context *ctx, struct packet *packet,
					struct forwarding *forwarding)
{
	struct lane *lane = CPU_ROW(lanes, packet->cpu, forwarding->backend);
	struct end source = {}, destination = {};
	int reason;

	if (packet->ttl < LEAST_TTL)
		return REASON_TTL_EXCEEDED;
	if (nat_is_for_kernel(ctx, packet))
		return forward_hand_over(ctx, packet, forwarding);
	fullnat_source(forwarding->route, &source);
	forward_end(forwarding, &destination);
	reason = forward_settle(ctx, packet, lane, forwarding, packet->bytes);
	if (reason == REASON_LOCAL_BACKEND)
		return fullnat_here(ctx, packet, lane, forwarding, &destination);
	if (reason == REASON_OK)
		reason = fullnat_translate(ctx, packet, &source, &destination);
	if (reason == REASON_OK)
		reason = forward_leave(ctx, packet, &lane->hop);
	return reason ? reason : forward_count(packet, lane, forwarding);
}

/* Sends an answer to its client; TC does where XDP cannot. */
static __always_inline int fullnat_answer(struct hook_context *ctx, struct packet *packet,
					  struct forwarding *forwarding, struct end *virtual,
					  struct end *client)
{
	const u64 *address = (const u64 *)client->address;
	int reason;

	if (nat_is_for_kernel(ctx, packet) ||
	    !answer_find_way(ctx, packet, address, forwarding->now))
		return answer_hand_over(ctx, packet, forwarding);
	reason = fullnat_translate(ctx, packet, virtual, client);
	if (reason == REASON_OK)
		reason = forward_leave(ctx, packet, &answer_way_to(packet, address)->hop);
	if (reason)
		return reason;
	answer_count(packet, forwarding, 1, packet->bytes);
	return REASON_ANSWERED;
}

#else

/* What XDP handed over does not say it. */
static __always_inline bool fullnat_settle_route(struct packet *packet,
						 struct forwarding *forwarding)
{
	struct connection *connection;
	struct seat seat = {};

	if (route_source(forwarding->route))
		return true;
	packet_hash(packet);
	connection = connection_find(packet, &seat);
	forwarding->route = seat.word & WORD_ROUTE_MASK;
	return connection && fullnat_is_used(seat.word) &&
	       (u32)READ_ONCE(connection->backend) == forwarding->backend;
}

/* Sends the packet to its backend. */
static __always_inline int fullnat_send(struct hook_context *ctx, struct packet *packet,
					struct forwarding *forwarding)
{
	struct lane *lane = CPU_ROW(lanes, packet->cpu, forwarding->backend);
	struct neighbour_parameters neighbour = {};
	u32 ifindex = 0, mtu = 0, segments = hook_segments(ctx);
	struct end source = {}, destination = {};
	bool is_cut;
	int reason;

	if (packet->ttl < LEAST_TTL)
		return REASON_TTL_EXCEEDED;
	if (!fullnat_settle_route(packet, forwarding))
		return REASON_BUSY;
	fullnat_source(forwarding->route, &source);
	forward_end(forwarding, &destination);
	reason = nexthop_route(ctx, forwarding->backend, &ifindex, &mtu, &neighbour);
	if (reason == REASON_LOCAL_BACKEND)
		return fullnat_here(ctx, packet, lane, forwarding, &destination);
	if (reason)
		return reason;
	is_cut = forward_is_too_big(ctx, packet, mtu, 0);
	if (is_cut && !cut_may(ctx, packet))
		return REASON_TOO_BIG;
	reason = fullnat_translate(ctx, packet, &source, &destination);
	if (reason == REASON_OK && is_cut)
		return forward_prepare(ctx, packet) ? REASON_INTERNAL :
						      cut_call(ctx, packet, forwarding);
	if (reason == REASON_OK)
		reason = forward_redirect(ctx, packet, ifindex, &neighbour);
	return reason ? reason : forward_count(ctx, packet, lane, forwarding, segments);
}

/* Sends an answer to its client; the host could tell the backend nothing of one that cannot go. */
static __always_inline int fullnat_answer(struct hook_context *ctx, struct packet *packet,
					  struct forwarding *forwarding, struct end *virtual,
					  struct end *client)
{
	struct neighbour_parameters neighbour = {};
	u32 ifindex = 0, mtu = 0, segments = hook_segments(ctx);
	int reason;

	if (packet->ttl < LEAST_TTL)
		return REASON_TTL_EXCEEDED;
	if (nexthop_way(ctx, packet_is_ipv6(packet), client->address, &ifindex, &mtu, &neighbour))
		return REASON_NO_ROUTE;
	if (forward_is_too_big(ctx, packet, mtu, 0))
		return REASON_TOO_BIG;
	reason = fullnat_translate(ctx, packet, virtual, client);
	if (reason == REASON_OK)
		reason = forward_redirect(ctx, packet, ifindex, &neighbour);
	if (reason)
		return reason;
	answer_count(packet, forwarding, segments,
		     packet->bytes + (segments - 1) * packet->headers);
	return REASON_ANSWERED;
}

#endif

/* The way of a packet to its backend, once the families have parted. */
static __always_inline int fullnat_exit(struct hook_context *ctx, struct packet *packet)
{
	struct journey *journey = maps_journey();
	int reason = fullnat_send(ctx, packet, &journey->forwarding);

	if (!exit_is_refusal(reason))
		return exit_with(ctx, reason, packet, journey->forwarding.mark);
	journey->packet.mtu = packet->mtu;
	return exit_or_refuse(ctx, reason, journey);
}

/* Sends what is an answer; REASON_OK for any other packet. */
static __always_inline int fullnat_return_of(u32 table, struct hook_context *ctx,
					     struct packet *packet)
{
	struct journey *journey = maps_journey();
	struct forwarding forwarding = { .now = journey->now };
	struct end virtual = {}, client = {};
	struct connection *connection;
	struct account account = {};
	bool is_taken;

	connection = fullnat_find(table, packet, journey->now, &account, &virtual, &client);
	if (!connection)
		return REASON_OK;
	is_taken = journey->seen ? READ_ONCE(connection->word) == account.word :
				   answer_follow(packet, connection, &account, journey->now);
	if (!is_taken)
		return REASON_OK;
	forwarding.backend = (u32)account.backend;
	forwarding.service = account.service;
	forwarding.route = account.word & WORD_ROUTE_MASK;
	fragment_note(packet, &forwarding, virtual.address);
	return fullnat_answer(ctx, packet, &forwarding, &virtual, &client);
}

/* The way of what may be an answer. */
static __always_inline int fullnat_return(u32 table, struct hook_context *ctx,
					  struct packet *packet)
{
	struct journey *journey = maps_journey();
	int reason = fullnat_return_of(table, ctx, packet);

	if (!reason)
		return entry_other(ctx, journey);
	if (!exit_is_refusal(reason))
		return exit_with(ctx, reason, packet, 0);
	journey->packet.mtu = packet->mtu;
	journey->mark = 0;
	journey->settings = 0;
	return exit_or_refuse(ctx, reason, journey);
}

/* Answers: what backends by nat send back goes on to their clients, as from the virtual end. */

/* Of a flow's last key word: the client's port and the protocol. */
#define ANSWER_CLIENT_MASK 0x000000ff0000ffffULL
/* How an answer leaves: it came from a backend, or this host is its backend. */
#define ANSWER_PASSING 1
#define ANSWER_LEAVING 2
/* Of a route: port and method; what comes back of fullnat is looked for as of nat, too: fullnat.h. */
#define ANSWER_METHODS (FEATURE_FULLNAT ? ROUTE_METHODS - 1 & ~METHOD_TUNNEL : ROUTE_METHODS - 1)
#define ANSWER_ROUTE_MASK (0xffffULL | (u64)ANSWER_METHODS << ROUTE_METHOD_SHIFT)

/* The part of the hash's sum that is the source's. */
static __always_inline u64 answer_source_sum(struct packet *packet)
{
	return packet_is_ipv6(packet) ? hash_address6(packet->key[0], packet->key[1]) :
					hash_address4((u32)packet->key[0]);
}

/* The packet comes from where some backend by nat has an end, or perhaps does. */
static __always_inline bool answer_concerns(struct packet *packet)
{
	u64 sum = answer_source_sum(packet);

	if (!FEATURE_NAT)
		return false;
	return classify_filter_has(
		       sum + hash_backend(packet_client_port(packet), packet_protocol(packet))) ||
	       classify_filter_has(sum + hash_backend(0, 0));
}

/* The key's last word with both ports exchanged. */
static __always_inline u64 answer_ports(u64 ports)
{
	return (ports & 0xff00000000) | (ports >> 16 & 0xffff) | (ports & 0xffff) << 16;
}

/* The key by which the connection is found: the client's end first, then the backend's. */
static __always_inline void answer_key(struct packet *packet, u64 *key)
{
	if (packet_is_ipv6(packet)) {
		key[0] = packet->key[2];
		key[1] = packet->key[3];
		key[2] = packet->key[0];
		key[3] = packet->key[1];
		key[4] = answer_ports(packet->key[4]);
	} else {
		key[0] = packet->key[0] >> 32 | packet->key[0] << 32;
		key[1] = answer_ports(packet->key[1]);
	}
}

/* The slot is of a connection by nat of this client, to this port of its backend. */
static __always_inline bool answer_has_key(u32 table, struct slot *slot, u64 word, const u64 *key)
{
	u64 ports = key[table_is_ipv6(table) ? 4 : 1];
	u64 route = route_make(METHOD_NAT, ports >> 16);
	u64 differs = (word ^ route) & ANSWER_ROUTE_MASK;

	if (table_is_ipv6(table))
		differs |= (slot->key[0] ^ key[0]) | (slot->key[1] ^ key[1]) |
			   ((slot->key[4] ^ ports) & ANSWER_CLIENT_MASK);
	else
		differs |= (u32)(slot->key[0] ^ key[0]) |
			   ((slot->key[1] ^ ports) & ANSWER_CLIENT_MASK);
	asm volatile("" : "+r"(differs));
	return !differs;
}

/* The connection's backend has the address in the key. */
static __always_inline bool answer_is_from(u32 table, struct connection *connection, const u64 *key)
{
	u64 reference = READ_ONCE(connection->backend);
	u64 *address = (u64 *)ROW(backends, reference)->address, differs;

	if (table_is_ipv6(table))
		differs = (address[0] ^ key[2]) | (address[1] ^ key[3]);
	else
		differs = (u32)address[0] ^ key[0] >> 32;
	asm volatile("" : "+r"(differs));
	return !differs && backend_is_same(reference);
}

static __always_inline struct connection *answer_look_up(u32 table, const u64 *key, u64 hash,
							 struct seat *seat)
{
	struct slot *slot;

#pragma clang loop unroll(disable)
	for (u64 step = 0; step < BUCKET_SLOTS; step++) {
		seat->place = table_place(table, hash, step);
		slot = table_slot(table, seat->place);
		seat->word = READ_ONCE(slot->word);
		if (!seat->word)
			return NULL;
		if (answer_has_key(table, slot, seat->word, key) && word_is_used(seat->word) &&
		    answer_is_from(table, (struct connection *)slot, key))
			return (struct connection *)slot;
	}
	return NULL;
}

/* The virtual end of the connection, as its slot has it now. */
static __always_inline void answer_virtual(u32 table, struct connection *connection,
					   struct end *end)
{
	struct slot *slot = (struct slot *)connection;
	u64 *address = (u64 *)end->address;

	if (table_is_ipv6(table)) {
		address[0] = slot->key[2];
		address[1] = slot->key[3];
		end->port = slot->key[4] >> 16;
	} else {
		address[0] = slot->key[0] >> 32;
		address[1] = 0;
		end->port = slot->key[1] >> 16;
	}
}

/* The live connection whose backend sent the packet, what it says, and its virtual end. */
static __always_inline struct connection *answer_find(u32 table, struct packet *packet, u64 now,
						      struct account *account, struct end *end)
{
	struct connection *connection;
	struct seat seat = {};
	u64 key[5];

	answer_key(packet, key);
	connection = answer_look_up(
		table, key, table_is_ipv6(table) ? hash_connection6(key) : hash_connection4(key),
		&seat);
	if (!connection)
		return NULL;
	connection_read(connection, seat.word, account);
	answer_virtual(table, connection, end);
	if (now >= expiry_of_connection(account->seen, account->word))
		return NULL;
	return connection;
}

static __always_inline void answer_count(struct packet *packet, struct forwarding *forwarding,
					 u64 packets, u64 bytes)
{
	struct answers *backend = CPU_ROW(backend_answers, packet->cpu, forwarding->backend);
	struct answers *service = CPU_ROW(service_answers, packet->cpu, forwarding->service);

	backend->out_packets += packets;
	backend->out_bytes += bytes;
	service->out_packets += packets;
	service->out_bytes += bytes;
}

/* Has the packet come from the virtual end; in a program of its own, where that takes more. */
static __always_inline int answer_translate(struct hook_context *ctx, struct packet *packet,
					    struct forwarding *forwarding, struct end *end)
{
	struct journey *journey = maps_journey();

	if (!nat_is_to_be_mended(ctx, packet, true, end->port))
		return nat_replace(ctx, packet, true, end);
	journey->forwarding = *forwarding;
	journey->end = *end;
	journey->is_answer = 1;
	programs.call(ctx, PROGRAM_MEND);
	return REASON_INTERNAL;
}

#if HOOK_IS_XDP

/* What this CPU knows of the way to the address, or will. */
static __always_inline struct way *answer_way_to(struct packet *packet, const u64 *address)
{
	u64 sum = packet_is_ipv6(packet) ? hash_address6(address[0], address[1]) :
					   hash_address4(address[0]);

	return CPU_ROW(ways, packet->cpu, sum >> 40);
}

/* The same of the packet's destination. */
static __always_inline struct way *answer_way(struct packet *packet)
{
	u64 address[2];

	nat_address(packet, false, address);
	return answer_way_to(packet, address);
}

static __always_inline bool answer_knows(struct packet *packet, struct way *way)
{
	u64 address[2];

	nat_address(packet, false, address);
	return way->address[0] == address[0] && way->address[1] == address[1];
}

/* Asks for the way to an address anew; false where only the kernel can go it. */
static __always_inline bool answer_learn(struct hook_context *ctx, struct packet *packet,
					 struct way *way, const u64 *address, u64 now)
{
	struct hop *hop = &way->hop;
	u64 probe;
	int answer;

	way->address[0] = address[0];
	way->address[1] = address[1];
	answer = nexthop_learn(ctx, hop, packet_is_ipv6(packet), (__be32 *)way->address, now);
	if (answer != FIB_SUCCESS)
		/* whoever has the row next asks again */
		hop->until = 0;
	if (answer != FIB_SUCCESS || hop->road == ROAD_TC)
		return false;
	probe = *(u32 *)(hop->destination + 2) + hop->ifindex * 0x9e3779b1U;
	return !nexthop_is_probe_due(ROW(way_probes, probe), now, NEXTHOP_LIFE);
}

/* Has TC send the answer, by the kernel's own neighbour table. */
static __always_inline int answer_hand_over(struct hook_context *ctx, struct packet *packet,
					    struct forwarding *forwarding)
{
	struct handover handover = { .magic = HANDOVER_MAGIC,
				     .reason = REASON_ANSWERED,
				     .backend = forwarding->backend,
				     .service = forwarding->service };

	packet->action = HOOK_PASS;
	return hook_hand_over(ctx, &handover) ? REASON_NO_METADATA : REASON_HANDED_OVER;
}

/* The way to an address, asked for where this CPU does not know; false: the driver cannot go it. */
static __always_inline bool answer_find_way(struct hook_context *ctx, struct packet *packet,
					    const u64 *address, u64 now)
{
	struct way *way = answer_way_to(packet, address);

	if (now >= way->hop.until || way->address[0] != address[0] || way->address[1] != address[1])
		if (!answer_learn(ctx, packet, way, address, now))
			return false;
	return forward_is_plain(packet, &way->hop, now);
}

/* Sends a packet that is as its client is to get it. */
static __always_inline int answer_leave(struct hook_context *ctx, struct packet *packet,
					struct forwarding *forwarding)
{
	struct way *way = answer_way(packet);
	u64 address[2];
	int reason;

	nat_address(packet, false, address);
	if (!answer_find_way(ctx, packet, address, forwarding->now))
		return answer_hand_over(ctx, packet, forwarding);
	reason = forward_leave(ctx, packet, &way->hop);
	if (reason)
		return reason;
	answer_count(packet, forwarding, 1, packet->bytes);
	return REASON_ANSWERED;
}

/* The driver can send the answer where the way leads. */
static __always_inline int answer_transmit(struct hook_context *ctx, struct packet *packet,
					   struct forwarding *forwarding, struct end *end)
{
	struct way *way = answer_way(packet);
	int reason = answer_translate(ctx, packet, forwarding, end);

	if (reason == REASON_OK)
		reason = forward_leave(ctx, packet, &way->hop);
	if (reason)
		return reason;
	answer_count(packet, forwarding, 1, packet->bytes);
	return REASON_ANSWERED;
}

/*
 * The fast path, in the entry, without a loop that the verifier would follow on each of its paths: an
 * answer whose connection is in the slot where its search begins, that changes nothing of it but times
 * and counters, by a way that is known.  REASON_OK for any other packet.
 */
static __always_inline int answer_plain(u32 table, struct hook_context *ctx, struct packet *packet,
					u64 now)
{
	struct forwarding forwarding = {};
	struct connection *connection;
	struct account account = {};
	struct end end = {};
	struct slot *slot;
	u64 key[5], word;

	answer_key(packet, key);
	slot = table_slot(table,
			  table_is_ipv6(table) ? hash_connection6(key) : hash_connection4(key));
	connection = (struct connection *)slot;
	word = READ_ONCE(slot->word);
	if (!answer_has_key(table, slot, word, key) || !word_is_used(word) ||
	    !answer_is_from(table, connection, key))
		return REASON_OK;
	connection_read(connection, word, &account);
	answer_virtual(table, connection, &end);
	if (now >= expiry_of_connection(account.seen, account.word) ||
	    !connection_keep(packet, connection, &account, now) || expect_is_control(account.word))
		return REASON_OK;
	if (!answer_knows(packet, answer_way(packet)) || !nat_is_plain(ctx, packet) ||
	    !forward_is_plain(packet, &answer_way(packet)->hop, now))
		return REASON_OK;
	forwarding.backend = (u32)account.backend;
	forwarding.service = account.service;
	return answer_transmit(ctx, packet, &forwarding, &end);
}

/* Sends any answer. */
static __always_inline int answer_send(struct hook_context *ctx, struct packet *packet,
				       struct forwarding *forwarding, struct end *end)
{
	u64 address[2];

	nat_address(packet, false, address);
	fragment_note(packet, forwarding, end->address);
	if (nat_is_for_kernel(ctx, packet) || expect_is_control(forwarding->route) ||
	    !answer_find_way(ctx, packet, address, forwarding->now))
		return answer_hand_over(ctx, packet, forwarding);
	return answer_transmit(ctx, packet, forwarding, end);
}

#else

/* Finds the kernel's way to the packet's destination, which has room for it. */
static __always_inline bool answer_route(struct hook_context *ctx, struct packet *packet,
					 u32 *ifindex, struct neighbour_parameters *neighbour)
{
	u64 address[2];
	u32 mtu = 0;

	nat_address(packet, false, address);
	if (packet->ttl < LEAST_TTL || nexthop_way(ctx, packet_is_ipv6(packet), (__be32 *)address,
						   ifindex, &mtu, neighbour) != FIB_SUCCESS)
		return false;
	return !mtu || hook_segment_bytes(ctx, packet->bytes, packet->headers) <= mtu;
}

/* Sends a packet that is as its client is to get it; nobody is told where it cannot go on. */
static __always_inline int answer_leave(struct hook_context *ctx, struct packet *packet,
					struct forwarding *forwarding)
{
	struct neighbour_parameters neighbour = {};
	u32 ifindex = 0;

	if (!answer_route(ctx, packet, &ifindex, &neighbour))
		return REASON_NO_ROUTE;
	if (forward_redirect(ctx, packet, ifindex, &neighbour))
		return REASON_INTERNAL;
	answer_count(packet, forwarding, 1, packet->bytes);
	return REASON_ANSWERED;
}

/* Sends any answer; where it cannot go on, the host tells the backend why, as a router does. */
static __always_inline int answer_transmit(struct hook_context *ctx, struct packet *packet,
					   struct forwarding *forwarding, struct end *end)
{
	struct neighbour_parameters neighbour = {};
	u32 ifindex = 0, segments = hook_segments(ctx);
	int reason;

	if (!answer_route(ctx, packet, &ifindex, &neighbour))
		return REASON_ANSWER_LEFT;
	reason = answer_translate(ctx, packet, forwarding, end);
	if (reason == REASON_OK)
		reason = forward_redirect(ctx, packet, ifindex, &neighbour);
	if (reason)
		return reason;
	answer_count(packet, forwarding, segments,
		     packet->bytes + (segments - 1) * packet->headers);
	return REASON_ANSWERED;
}

/* On to the program that reads what a backend says on an FTP control connection. */
static __always_inline int answer_call_ftp(struct hook_context *ctx, struct packet *packet,
					   struct forwarding *forwarding, struct end *end,
					   u32 is_answer)
{
	struct journey *journey = maps_journey();

	journey->packet = *packet;
	journey->forwarding = *forwarding;
	journey->end = *end;
	journey->is_answer = is_answer;
	if (packet_is_ipv6(packet))
		programs.call(ctx, PROGRAM_FTP6);
	else
		programs.call(ctx, PROGRAM_FTP4);
	return REASON_INTERNAL;
}

static __always_inline int answer_send(struct hook_context *ctx, struct packet *packet,
				       struct forwarding *forwarding, struct end *end)
{
	fragment_note(packet, forwarding, end->address);
	if (expect_is_control(forwarding->route))
		return answer_call_ftp(ctx, packet, forwarding, end, ANSWER_PASSING);
	return answer_transmit(ctx, packet, forwarding, end);
}

/* TC has no fast path. */
static __always_inline int answer_plain(u32 table, struct hook_context *ctx, struct packet *packet,
					u64 now)
{
	return REASON_OK;
}

#endif

/* The connection's state follows an answer; false where the slot is another's by now. */
static __always_inline bool answer_follow(struct packet *packet, struct connection *connection,
					  struct account *account, u64 now)
{
	return connection_keep(packet, connection, account, now) ||
	       connection_refresh(packet, connection, account, VIEW_OUTPUT, now);
}

/* The packet is an answer: its connection's state follows, unless XDP has seen to that. */
static __always_inline bool answer_take(u32 table, struct packet *packet, u64 now, bool seen,
					struct account *account, struct end *end)
{
	struct connection *connection = answer_find(table, packet, now, account, end);

	if (!connection)
		return false;
	if (seen)
		return READ_ONCE(connection->word) == account->word;
	return answer_follow(packet, connection, account, now);
}

/* Sends what is an answer; REASON_OK for any other packet. */
static __always_inline int answer_packet_of(struct hook_context *ctx, struct packet *packet,
					    u64 now, bool seen)
{
	struct forwarding forwarding = { .now = now };
	struct account account = {};
	struct end end = {};
	bool is_answer;

	is_answer = packet_is_ipv6(packet) ?
			    answer_take(TABLE_CONNECTIONS6, packet, now, seen, &account, &end) :
			    answer_take(TABLE_CONNECTIONS4, packet, now, seen, &account, &end);
	if (!is_answer)
		return REASON_OK;
	forwarding.backend = (u32)account.backend;
	forwarding.service = account.service;
	if (expect_is_control(account.word))
		forwarding.route = account.word & WORD_ROUTE_MASK;
	return answer_send(ctx, packet, &forwarding, &end);
}

#if !HOOK_IS_XDP

/* Has an answer of this host's own come from the virtual end, and counts it. */
static __always_inline int answer_go_from_here(struct hook_context *ctx, struct packet *packet,
					       struct forwarding *forwarding, struct end *end)
{
	u32 segments = hook_segments(ctx);
	int reason = REASON_OK;

	if (nat_is_sctp(packet) && nat_port(packet, true) != end->port)
		reason = nat_map_sctp(ctx, packet, true, end->port);
	if (reason == REASON_OK)
		reason = nat_replace(ctx, packet, true, end);
	if (reason)
		return reason;
	answer_count(packet, forwarding, segments,
		     packet->bytes + (segments - 1) * packet->headers);
	return REASON_ANSWERED;
}

/* The same, where the packet is one; REASON_OK for any other. */
static __always_inline int answer_from_here(struct hook_context *ctx, struct packet *packet,
					    u64 now)
{
	struct forwarding forwarding = { .now = now };
	struct account account = {};
	struct end end = {};
	bool is_answer;

	is_answer = packet_is_ipv6(packet) ?
			    answer_take(TABLE_CONNECTIONS6, packet, now, false, &account, &end) :
			    answer_take(TABLE_CONNECTIONS4, packet, now, false, &account, &end);
	if (!is_answer)
		return REASON_OK;
	forwarding.backend = (u32)account.backend;
	forwarding.service = account.service;
	if (expect_is_control(account.word)) {
		forwarding.route = account.word & WORD_ROUTE_MASK;
		return answer_call_ftp(ctx, packet, &forwarding, &end, ANSWER_LEAVING);
	}
	return answer_go_from_here(ctx, packet, &forwarding, &end);
}

#endif

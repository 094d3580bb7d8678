/*
 * ICMP errors about balanced flows: what quotes a packet of a known connection goes where the
 * connection's own packets go, and with nat so does what a backend says of its client's packets.
 */

/* Of ICMP: destination unreachable, source quench, time exceeded; of ICMPv6 all below this. */
#define QUOTE_TYPES4 (1 << 3 | 1 << 4 | 1 << 11)
#define QUOTE_TYPES6 128
#define QUOTE_OFFSET4 bpf_htons(0x1fff)
#define QUOTE_OFFSET6 bpf_htons(0xfff8)
#define QUOTE_EXTENSIONS 3

/* Reads the ports, of which each of the three protocols has its own in the first four bytes. */
static __always_inline bool quote_read_ports(struct hook_context *ctx, struct quote *quote)
{
	__be16 ports[2];

	if (quote->protocol != IPPROTO_TCP && quote->protocol != IPPROTO_UDP &&
	    quote->protocol != IPPROTO_SCTP)
		return false;
	if (hook_load(ctx, quote->transport, ports, sizeof(ports), sizeof(ports)))
		return false;
	quote->source_port = ports[0];
	quote->destination_port = ports[1];
	return true;
}

/* The message's first bytes: an error's type, and its checksum. */
static __always_inline bool quote_read_message(struct hook_context *ctx, struct packet *packet,
					       struct quote *quote)
{
	struct icmp_error error;

	if (hook_load(ctx, quote->message, &error, sizeof(error), sizeof(error)))
		return false;
	quote->sum = error.sum;
	quote->header = quote->message + sizeof(error);
	if (packet_is_ipv6(packet))
		return error.type < QUOTE_TYPES6;
	return error.type < 32 && QUOTE_TYPES4 >> error.type & 1;
}

static __always_inline bool quote_read4(struct hook_context *ctx, struct packet *packet,
					struct quote *quote)
{
	struct iphdr ip;

	if (hook_load(ctx, packet->ip_offset, &ip, sizeof(ip), sizeof(ip)))
		return false;
	if (ip.protocol != IPPROTO_ICMP || ip.frag_off & IPV4_FRAGMENT)
		return false;
	packet->ttl = ip.ttl;
	packet->headers = ip.ihl * 4;
	quote->outer[0] = ip.saddr;
	quote->outer[2] = ip.daddr;
	quote->outer_sum = ip.check;
	quote->message = packet->ip_offset + ip.ihl * 4;
	if (!quote_read_message(ctx, packet, quote) ||
	    hook_load(ctx, quote->header, &ip, sizeof(ip), sizeof(ip)))
		return false;
	if (ip.version != 4 || ip.ihl < 5 || ip.frag_off & QUOTE_OFFSET4)
		return false;
	quote->inner[0] = ip.saddr;
	quote->inner[2] = ip.daddr;
	quote->inner_sum = ip.check;
	quote->protocol = ip.protocol;
	quote->transport = quote->header + ip.ihl * 4;
	return quote_read_ports(ctx, quote);
}

/* Goes past extension headers, from one of type `next`; the offset then is of what follows. */
static __always_inline bool quote_walk(struct hook_context *ctx, u8 *next, u32 *offset)
{
	u8 extension[4];

#pragma unroll
	for (int i = 0; i < QUOTE_EXTENSIONS; i++) {
		if (*next != IPPROTO_HOPOPTS && *next != IPPROTO_ROUTING &&
		    *next != IPPROTO_DSTOPTS && *next != IPPROTO_FRAGMENT)
			return true;
		if (hook_load(ctx, *offset, extension, sizeof(extension), sizeof(extension)))
			return false;
		if (*next == IPPROTO_FRAGMENT && *(__be16 *)(extension + 2) & QUOTE_OFFSET6)
			return false;
		*offset += *next == IPPROTO_FRAGMENT ? 8 : ((u32)extension[1] + 1) * 8;
		*next = extension[0];
	}
	return true;
}

static __always_inline bool quote_read6(struct hook_context *ctx, struct packet *packet,
					struct quote *quote)
{
	struct ipv6hdr ip;
	u64 *addresses = (void *)&ip + __builtin_offsetof(struct ipv6hdr, saddr);
	u8 next;

	if (hook_load(ctx, packet->ip_offset, &ip, sizeof(ip), sizeof(ip)))
		return false;
	packet->ttl = ip.hop_limit;
	__builtin_memcpy(quote->outer, addresses, sizeof(quote->outer));
	next = ip.nexthdr;
	quote->message = packet->ip_offset + sizeof(ip);
	/* a fragment of a message is none */
	if (next == IPPROTO_FRAGMENT || !quote_walk(ctx, &next, &quote->message) ||
	    next != IPPROTO_ICMPV6)
		return false;
	packet->headers = quote->message - packet->ip_offset;
	if (!quote_read_message(ctx, packet, quote) ||
	    hook_load(ctx, quote->header, &ip, sizeof(ip), sizeof(ip)))
		return false;
	if (ip.version != 6)
		return false;
	__builtin_memcpy(quote->inner, addresses, sizeof(quote->inner));
	next = ip.nexthdr;
	quote->transport = quote->header + sizeof(ip);
	if (!quote_walk(ctx, &next, &quote->transport))
		return false;
	quote->protocol = next;
	return quote_read_ports(ctx, quote);
}

/* The error was sent to whom it quotes: any other is a forgery. */
static __always_inline bool quote_is_addressed(struct quote *quote)
{
	return quote->outer[2] == quote->inner[0] && quote->outer[3] == quote->inner[1];
}

/* The packet's key becomes that of the quoted flow, as its client sends it: the quote is an answer. */
static __always_inline void quote_key(struct packet *packet, struct quote *quote)
{
	u64 ports = quote->destination_port | (u64)quote->source_port << 16 |
		    (u64)quote->protocol << 32;
	if (packet_is_ipv6(packet)) {
		packet->key[0] = quote->inner[2];
		packet->key[1] = quote->inner[3];
		packet->key[2] = quote->inner[0];
		packet->key[3] = quote->inner[1];
		packet->key[4] = ports;
	} else {
		packet->key[0] = quote->inner[2] | quote->inner[0] << 32;
		packet->key[1] = ports;
	}
	packet_hash(packet);
}

/* Puts another address in the place of one, 16 bytes or 4; leaves what that adds to sums over it. */
static __always_inline u64 quote_replace_address(struct hook_context *ctx, struct packet *packet,
						 u32 offset, const u64 *before, const u64 *after)
{
	u64 change = checksum_change(before[0], after[0]);

	if (!packet_is_ipv6(packet)) {
		hook_store(ctx, offset, (void *)after, 4, 4);
		return change;
	}
	change += checksum_change(before[0] >> 32, after[0] >> 32);
	change += checksum_change(before[1], after[1]);
	change += checksum_change(before[1] >> 32, after[1] >> 32);
	hook_store(ctx, offset, (void *)after, 16, 16);
	return change;
}

static __always_inline void quote_store_sum(struct hook_context *ctx, u32 offset, u16 sum)
{
	hook_store(ctx, offset, &sum, sizeof(sum), sizeof(sum));
}

/*
 * nat: the error's own destination and the source that it quotes become another end; of an error
 * from a backend its source, and the destination.
 */
static __always_inline void quote_replace(struct hook_context *ctx, struct packet *packet,
					  struct quote *quote, bool is_answer, struct end *end)
{
	u32 outer = packet->ip_offset + nat_address_offset(packet, is_answer);
	u32 inner = quote->header + nat_address_offset(packet, !is_answer);
	__be16 port = is_answer ? quote->destination_port : quote->source_port;
	const u64 *address = (const u64 *)end->address;
	u64 outside, inside;
	u16 sum;

	outside = quote_replace_address(ctx, packet, outer, quote->outer + (is_answer ? 0 : 2),
					address);
	inside = quote_replace_address(ctx, packet, inner, quote->inner + (is_answer ? 2 : 0),
				       address);
	if (packet_is_ipv6(packet)) {
		/* the message's sum covers its own addresses, too */
		inside += outside;
	} else {
		quote->outer_sum = checksum_after(quote->outer_sum, outside);
		quote_store_sum(ctx, packet->ip_offset + IPV4_CHECKSUM, quote->outer_sum);
		sum = checksum_after(quote->inner_sum, inside);
		quote_store_sum(ctx, quote->header + IPV4_CHECKSUM, sum);
		inside += checksum_change(quote->inner_sum, sum);
		quote->inner_sum = sum;
	}
	inside += checksum_change(port, end->port);
	hook_store(ctx, quote->transport + (is_answer ? 2 : 0), &end->port, sizeof(end->port),
		   sizeof(end->port));
	quote->sum = checksum_after(quote->sum, inside);
	quote_store_sum(ctx, quote->message + __builtin_offsetof(struct icmp_error, sum),
			quote->sum);
}

/* On to the program for errors about connections by fullnat. */
static __always_inline void quote_call_fullnat(struct hook_context *ctx, struct packet *packet,
					       u64 now, bool is_answer)
{
	struct journey *journey = maps_journey();

	journey->packet = *packet;
	journey->now = now;
	journey->is_answer = is_answer;
	if (packet_is_ipv6(packet))
		programs.call(ctx, PROGRAM_QUOTE_FULLNAT6);
	else
		programs.call(ctx, PROGRAM_QUOTE_FULLNAT4);
}

/* Finds the connection that an error about what went to a client quotes; leaves where its packets go. */
static __always_inline bool quote_find(struct packet *packet, struct forwarding *forwarding)
{
	struct connection *connection;
	struct account account = {};
	struct seat seat = {};

	connection = connection_find(packet, &seat);
	if (!connection)
		return false;
	connection_read(connection, seat.word, &account);
	if (forwarding->now >= expiry_of_connection(account.seen, account.word) ||
	    !backend_word(account.backend) || READ_ONCE(connection->word) != account.word)
		return false;
	forwarding->backend = (u32)account.backend;
	forwarding->service = account.service;
	forwarding->route = account.word & WORD_ROUTE_MASK;
	forwarding->probe_interval = 2 * NEXTHOP_LIFE;
	forwarding->reason = REASON_FORWARDED;
	return true;
}

/* An error about what went to a client: to the backend that sent it, and counted as its packet. */
static __always_inline int quote_forward(struct hook_context *ctx, struct packet *packet,
					 struct quote *quote, u64 now)
{
	struct forwarding forwarding = { .now = now };
	struct end *end = &maps_journey()->end;

	if (!quote_find(packet, &forwarding))
		return REASON_OTHER_PROTOCOL;
	if (fullnat_is_used(forwarding.route)) {
		quote_call_fullnat(ctx, packet, now, false);
		return REASON_INTERNAL;
	}
	if (nat_is_used(forwarding.route)) {
		forward_end(&forwarding, end);
		quote_replace(ctx, packet, quote, false, end);
		/* the packet is as it has to be by now */
		forwarding.route = 0;
	}
	return forward_send(ctx, packet, &forwarding);
}

/* The key by which answers are looked for, of what a backend quotes of its client's packets. */
static __always_inline bool quote_is_answer(struct packet *packet, struct quote *quote)
{
	u64 sum = packet_is_ipv6(packet) ? hash_address6(quote->inner[2], quote->inner[3]) :
					   hash_address4(quote->inner[2]);

	return classify_filter_has(sum + hash_backend(quote->destination_port, quote->protocol)) ||
	       classify_filter_has(sum + hash_backend(0, 0));
}

/* An error about what went to a backend: to its client, from the virtual end. */
static __always_inline int quote_answer(u32 table, struct hook_context *ctx, struct packet *packet,
					struct quote *quote, u64 now)
{
	struct forwarding forwarding = { .now = now };
	struct connection *connection;
	struct account account = {};
	struct end *end = &maps_journey()->end;

	/* answer_find turns the key round */
	connection = answer_find(table, packet, now, &account, end);
	if (!connection || READ_ONCE(connection->word) != account.word)
		return REASON_OTHER_PROTOCOL;
	forwarding.backend = (u32)account.backend;
	forwarding.service = account.service;
	quote_replace(ctx, packet, quote, true, end);
	return answer_leave(ctx, packet, &forwarding);
}

/* An error about what went to a client of a backend by fullnat, which knows neither of its ends. */
static __always_inline int quote_fullnat(struct hook_context *ctx, struct packet *packet,
					 struct forwarding *forwarding)
{
	struct journey *journey = maps_journey();

	if (!quote_find(packet, forwarding))
		return REASON_OTHER_PROTOCOL;
	forward_end(forwarding, &journey->end);
	fullnat_source(forwarding->route, &journey->other);
	quote_replace(ctx, packet, &journey->quote, false, &journey->end);
	if (!fullnat_is_here(&journey->end))
		quote_replace(ctx, packet, &journey->quote, true, &journey->other);
	forwarding->route = 0;
	return forward_send(ctx, packet, forwarding);
}

/* An error about what went to such a backend. */
static __always_inline int quote_return(u32 table, struct hook_context *ctx, struct packet *packet,
					struct forwarding *forwarding)
{
	struct journey *journey = maps_journey();
	struct end *virtual = &journey->end, *client = &journey->other;
	struct connection *connection;
	struct account account = {};

	connection = fullnat_find(table, packet, forwarding->now, &account, virtual, client);
	if (!connection || READ_ONCE(connection->word) != account.word)
		return REASON_OTHER_PROTOCOL;
	forwarding->backend = (u32)account.backend;
	forwarding->service = account.service;
	quote_replace(ctx, packet, &journey->quote, true, virtual);
	quote_replace(ctx, packet, &journey->quote, false, client);
	packet_direct(packet, client->address);
	return answer_leave(ctx, packet, forwarding);
}

/* The whole way of such errors, once the families have parted. */
static __always_inline int quote_fullnat_exit(u32 table, struct hook_context *ctx,
					      struct packet *packet)
{
	struct journey *journey = maps_journey();
	struct forwarding forwarding = { .now = journey->now };
	int reason = journey->is_answer ? quote_return(table, ctx, packet, &forwarding) :
					  quote_fullnat(ctx, packet, &forwarding);

	return exit_with(ctx, reason, packet, 0);
}

static __always_inline bool quote_read(struct hook_context *ctx, struct packet *packet,
				       struct quote *quote)
{
	return packet_is_ipv6(packet) ? quote_read6(ctx, packet, quote) :
					quote_read4(ctx, packet, quote);
}

/* Too big, for a router on the way of what is quoted: the MTU that it tells, else 0. */
static __always_inline u32 quote_mtu(struct hook_context *ctx, struct packet *packet,
				     struct quote *quote)
{
	struct icmp_error error;
	u32 mtu;

	if (hook_load(ctx, quote->message, &error, sizeof(error), sizeof(error)))
		return 0;
	mtu = bpf_ntohl(error.rest);
	if (packet_is_ipv6(packet))
		return error.type == ICMP6_PACKET_TOO_BIG ? mtu : 0;
	return error.type == ICMP4_UNREACHABLE && error.code == ICMP4_TOO_BIG ? mtu & 0xffff : 0;
}

/* On to the program that learns from an error about a packet of a tunnel's own. */
static __always_inline void quote_learn(struct hook_context *ctx, struct packet *packet,
					struct quote *quote)
{
	struct journey *journey = maps_journey();
	struct learning *learning = &journey->learning;
	u8 protocol = quote->protocol;

	if (!FEATURE_TUNNEL || (protocol != IPPROTO_IPIP && protocol != IPPROTO_IPV6 &&
				protocol != IPPROTO_GRE && protocol != IPPROTO_UDP))
		return;
	learning->mtu = quote_mtu(ctx, packet, quote);
	if (!learning->mtu)
		return;
	learning->protocol = protocol;
	learning->offset = quote->transport;
	learning->from[0] = quote->inner[0];
	learning->from[1] = quote->inner[1];
	learning->to[0] = quote->inner[2];
	learning->to[1] = quote->inner[3];
	journey->packet = *packet;
	programs.call(ctx, PROGRAM_LEARN);
}

/* What an error quotes, of which nothing is known yet: in the journey, as the stack has no room. */
static __always_inline struct quote *quote_begin(void)
{
	struct quote *quote = &maps_journey()->quote;

	__builtin_memset(quote, 0, sizeof(*quote));
	return quote;
}

/* The way of a packet of another protocol, which may be such an error. */
static __always_inline int quote_packet_of(struct hook_context *ctx, struct packet *packet)
{
	struct quote *quote = quote_begin();
	bool is_flow = quote_read(ctx, packet, quote);
	u64 now = clock_now();
	int reason;

	if (!quote_is_addressed(quote) || !entry_is_for_host(ctx, packet))
		return REASON_OTHER_PROTOCOL;
	if (!is_flow) {
		quote_learn(ctx, packet, quote);
		return REASON_OTHER_PROTOCOL;
	}
	quote_key(packet, quote);
	reason = quote_forward(ctx, packet, quote, now);
	if (reason == REASON_OTHER_PROTOCOL && quote->protocol == IPPROTO_UDP)
		quote_learn(ctx, packet, quote);
	if (!FEATURE_NAT || reason != REASON_OTHER_PROTOCOL || !quote_is_answer(packet, quote))
		return reason;
	reason = packet_is_ipv6(packet) ?
			 quote_answer(TABLE_CONNECTIONS6, ctx, packet, quote, now) :
			 quote_answer(TABLE_CONNECTIONS4, ctx, packet, quote, now);
	if (FEATURE_FULLNAT && reason == REASON_OTHER_PROTOCOL)
		quote_call_fullnat(ctx, packet, now, true);
	return reason;
}

#if !HOOK_IS_XDP

/* Finishes what XDP handed over, which has made the packet what it is to be. */
static __always_inline int quote_finish(struct hook_context *ctx, struct packet *packet,
					struct forwarding *forwarding)
{
	struct quote *quote = quote_begin();

	if (!quote_read(ctx, packet, quote))
		return REASON_INTERNAL;
	quote_key(packet, quote);
	if (forwarding->reason != REASON_ANSWERED)
		return forward_send(ctx, packet, forwarding);
	packet_direct(packet, (__be32 *)&quote->outer[2]);
	return answer_leave(ctx, packet, forwarding);
}

#else

static __always_inline int quote_finish(struct hook_context *ctx, struct packet *packet,
					struct forwarding *forwarding)
{
	return REASON_INTERNAL;
}

#endif

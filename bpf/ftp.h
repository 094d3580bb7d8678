/*
 * FTP's control connections by nat, in TC: what announces a data connection has it expected, and PASV's
 * reply names the service's address in the backend's place.  The reply keeps its length, so that no
 * sequence number changes: where the address is longer, the words before it are cut short, and where
 * it is shorter they get spaces.  Clients look for the numbers alone.
 */

#if FEATURE_FTP && !HOOK_IS_XDP

enum ftp_word {
	FTP_WORD_OTHER = 0,
	FTP_WORD_PORT = 1,
	FTP_WORD_EPRT = 2,
	FTP_WORD_PASV = 3, /* its reply, 227 */
	FTP_WORD_EPSV = 4, /* 229 */
};

/* The first four bytes of a line. */
#define FTP_FOUR(a, b, c, d) ((u32)(a) | (u32)(b) << 8 | (u32)(c) << 16 | (u32)(d) << 24)
/* Letters of either case. */
#define FTP_LETTERS 0x20202020
/* A code and the space after it. */
#define FTP_CODE 4
/* Of an address: four numbers. */
#define FTP_ADDRESS 4
#define FTP_END 6

static __always_inline u32 ftp_word_of(u32 first, bool is_answer)
{
	if (is_answer && first == FTP_FOUR('2', '2', '7', ' '))
		return FTP_WORD_PASV;
	if (is_answer && first == FTP_FOUR('2', '2', '9', ' '))
		return FTP_WORD_EPSV;
	if (is_answer)
		return FTP_WORD_OTHER;
	if ((first | FTP_LETTERS) == FTP_FOUR('p', 'o', 'r', 't'))
		return FTP_WORD_PORT;
	if ((first | FTP_LETTERS) == FTP_FOUR('e', 'p', 'r', 't'))
		return FTP_WORD_EPRT;
	return FTP_WORD_OTHER;
}

/* Reads the beginning of what the packet carries; false where that is none of what is looked for. */
static __always_inline bool ftp_read(struct hook_context *ctx, struct packet *packet,
				     struct ftp *ftp, bool is_answer)
{
	s64 bytes = (s64)packet->bytes - packet->headers;
	u32 offset = packet->ip_offset + packet->headers;

	__builtin_memset(ftp, 0, sizeof(*ftp));
	if (bytes <= FTP_CODE)
		return false;
	if (bytes > FTP_LINE)
		bytes = FTP_LINE;
	if (hook_load(ctx, offset, ftp->line, bytes, FTP_LINE))
		return false;
	WRITE_ONCE(ftp->bytes, bytes);
	WRITE_ONCE(ftp->word, ftp_word_of(*(u32 *)ftp->line, is_answer));
	return READ_ONCE(ftp->word) != FTP_WORD_OTHER;
}

/* A number of PORT's and PASV's has ended before this place. */
static __always_inline void ftp_end_number(struct ftp *ftp, u32 place)
{
	u64 count = READ_ONCE(ftp->count) + 1;

	WRITE_ONCE(ftp->numbers, READ_ONCE(ftp->numbers) << 8 | (READ_ONCE(ftp->value) & 0xff));
	WRITE_ONCE(ftp->count, READ_ONCE(ftp->value) > 255 ? 0 : count);
	if (count == FTP_ADDRESS)
		WRITE_ONCE(ftp->end, place);
	WRITE_ONCE(ftp->value, 0);
	WRITE_ONCE(ftp->in_number, 0);
}

/* Six numbers with commas between them: address and port. */
static __always_inline void ftp_step_numbers(struct ftp *ftp, u32 place, u8 byte)
{
	u64 digit = (u64)byte - '0', value = READ_ONCE(ftp->value);

	if (READ_ONCE(ftp->count) >= FTP_END)
		return;
	if (digit <= 9) {
		if (!READ_ONCE(ftp->in_number) && !READ_ONCE(ftp->count))
			WRITE_ONCE(ftp->start, place);
		WRITE_ONCE(ftp->in_number, 1);
		WRITE_ONCE(ftp->value, value > 255 ? value : value * 10 + digit);
		return;
	}
	if (READ_ONCE(ftp->in_number))
		ftp_end_number(ftp, place);
	/* between them there is a comma and nothing else; what else has digits is among the words */
	if (READ_ONCE(ftp->count) < FTP_END && byte != ',')
		WRITE_ONCE(ftp->count, 0);
}

/* |protocol|address|port| with any delimiter, of which EPSV's reply leaves out the first two. */
static __always_inline void ftp_step_delimited(struct ftp *ftp, u32 place, u8 byte)
{
	u64 digit = (u64)byte - '0', count = READ_ONCE(ftp->count);
	u64 value = READ_ONCE(ftp->value), delimiter = READ_ONCE(ftp->delimiter);

	if (!delimiter) {
		if (READ_ONCE(ftp->word) == FTP_WORD_EPSV && byte == '(')
			WRITE_ONCE(ftp->in_number, 1);
		else if (READ_ONCE(ftp->in_number) ||
			 (READ_ONCE(ftp->word) == FTP_WORD_EPRT && byte != ' '))
			WRITE_ONCE(ftp->delimiter, (u64)byte | 1 << 8);
		return;
	}
	if (byte == (u8)delimiter) {
		WRITE_ONCE(ftp->count, count + 1);
		if (count == 2)
			WRITE_ONCE(ftp->port, value);
		WRITE_ONCE(ftp->value, 0);
	} else if (count == 2) {
		WRITE_ONCE(ftp->value, digit > 9 || value > 65535 ? 1 << 16 : value * 10 + digit);
	}
}

/* The port that the line announces; 0 where it does not. */
static __always_inline u64 ftp_parse(struct ftp *ftp)
{
	u64 word = READ_ONCE(ftp->word);
	bool is_delimited = word == FTP_WORD_EPRT || word == FTP_WORD_EPSV;
	u64 port;
	u8 byte;

#pragma clang loop unroll(disable)
	for (u32 place = FTP_CODE; place < FTP_LINE; place++) {
		if (place >= READ_ONCE(ftp->bytes))
			break;
		byte = ftp->line[place];
		if (is_delimited)
			ftp_step_delimited(ftp, place, byte);
		else
			ftp_step_numbers(ftp, place, byte);
	}
	if (is_delimited)
		port = READ_ONCE(ftp->port);
	else
		port = READ_ONCE(ftp->count) == FTP_END ? READ_ONCE(ftp->numbers) & 0xffff : 0;
	return port <= 65535 ? port : 0;
}

/* The key of the control connection, as its client's packets have it. */
static __always_inline void ftp_control_key(struct packet *packet, struct journey *journey)
{
	struct packet *control = &journey->packet;
	u64 *address = (u64 *)journey->end.address, key[5];

	if (!journey->is_answer)
		return;
	answer_key(packet, key);
	if (packet_is_ipv6(packet)) {
		control->key[0] = key[0];
		control->key[1] = key[1];
		control->key[2] = address[0];
		control->key[3] = address[1];
		control->key[4] = (key[4] & ~(0xffffULL << 16)) | (u64)journey->end.port << 16;
	} else {
		control->key[0] = (u32)key[0] | address[0] << 32;
		control->key[1] = (key[1] & ~(0xffffULL << 16)) | (u64)journey->end.port << 16;
	}
}

/* Takes away what was expected in the same place of another backend: it has announced it since. */
static __always_inline void ftp_clear(struct packet *packet, struct journey *journey)
{
	struct connection *connection;
	struct account account = {};
	struct seat seat = {};

	connection = connection_find(packet, &seat);
	if (!connection)
		return;
	connection_read(connection, seat.word, &account);
	if (word_state(account.word) == STATE_LISTEN)
		connection_remove(packet_is_ipv6(packet), connection, &account, journey->now);
}

/*
 * Expects the data connection: an active one comes from the backend's port before its own, and the
 * client sees it come from the service's; a passive one comes from any port of the client's.
 */
static __always_inline void ftp_expect(struct hook_context *ctx, struct packet *packet,
				       struct journey *journey, __be16 port)
{
	struct packet *control = &journey->packet;
	struct connection *connection;
	struct account account = {};
	struct seat seat = {};
	__be16 before;

	ftp_control_key(packet, journey);
	packet_hash(control);
	connection = connection_find(control, &seat);
	if (!connection)
		return;
	connection_read(connection, seat.word, &account);
	if (!expect_is_control(account.word) || !backend_word(account.backend))
		return;
	if (journey->is_answer) {
		packet_change_port(control, true, 0);
		packet_change_port(control, false, port);
		journey->route = route_make(METHOD_NAT, port) | ROUTE_FTP_DATA;
	} else {
		before = bpf_htons(bpf_ntohs(packet_virtual_port(control)) - 1);
		packet_change_port(control, true, port);
		packet_change_port(control, false, before);
		before = bpf_htons(bpf_ntohs(route_port(account.word)) - 1);
		journey->route = route_make(METHOD_NAT, before) | ROUTE_FTP_DATA;
	}
	packet_hash(control);
	ftp_clear(control, journey);
	journey->backend = account.backend;
	journey->service = account.service;
	journey->mark = account.mark;
	journey->controlled = 0;
	journey->persistence = account.word >> WORD_GENERATION_SHIFT << 32 | seat.place;
	journey->listening = 1;
	if (share_take(connection_table(control), journey->service))
		connection_create(journey);
	journey->listening = 0;
}

/* The digits of one byte of an address, and a comma after it, unless it is the last. */
static __always_inline void ftp_write_byte(struct ftp *ftp, u32 value, bool is_last)
{
	u64 length = READ_ONCE(ftp->length);

	if (value >= 100)
		ftp->digits[length++ & 15] = '0' + value / 100;
	if (value >= 10)
		ftp->digits[length++ & 15] = '0' + value / 10 % 10;
	ftp->digits[length++ & 15] = '0' + value % 10;
	if (!is_last)
		ftp->digits[length++ & 15] = ',';
	WRITE_ONCE(ftp->length, length);
}

/* The byte that is at a place of the line once it has the other address. */
static __always_inline u8 ftp_byte_at(struct ftp *ftp, u64 place)
{
	/* read anew at each place: the verifier need not follow what it knows of them */
	u64 end = READ_ONCE(ftp->end), start = READ_ONCE(ftp->start);
	u64 begins = end - READ_ONCE(ftp->length);

	if (place >= begins && place < end)
		return ftp->digits[place - begins & 15];
	if (place + 1 == begins)
		return ftp->line[start - 1 & FTP_LINE - 1];
	return place < begins && place + 1 >= start ? ' ' : ftp->line[place & FTP_LINE - 1];
}

/* Writes the line with the other address: as much of the words as there is room for, then that. */
static __always_inline void ftp_write(struct ftp *ftp)
{
#pragma clang loop unroll(disable)
	for (u64 place = 0; place < FTP_LINE; place++)
		WRITE_ONCE(ftp->text[place & FTP_LINE - 1], ftp_byte_at(ftp, place));
}

/* PASV's reply names the backend's address, and there is room for the service's. */
static __always_inline bool ftp_is_to_be_written(struct packet *packet, struct journey *journey)
{
	struct ftp *ftp = &journey->ftp;
	u32 named = bpf_htonl(READ_ONCE(ftp->numbers) >> 16);

	return READ_ONCE(ftp->word) == FTP_WORD_PASV && !packet_is_ipv6(packet) &&
	       named == (u32)packet->key[0] && READ_ONCE(ftp->start) > FTP_CODE;
}

/* Reads what the packet says; true where it is to be written anew. */
static __always_inline bool ftp_look(struct hook_context *ctx, struct packet *packet,
				     struct journey *journey)
{
	struct ftp *ftp = &journey->ftp;
	u64 port;

	if (packet->fragment || !ftp_read(ctx, packet, ftp, journey->is_answer))
		return false;
	port = ftp_parse(ftp);
	if (!port)
		return false;
	ftp_expect(ctx, packet, journey, bpf_htons(port));
	return ftp_is_to_be_written(packet, journey);
}

/* The way of the programs that read, once the families have parted. */
static __always_inline int ftp_exit(struct hook_context *ctx, struct packet *packet)
{
	struct journey *journey = maps_journey();
	bool is_written = ftp_look(ctx, packet, journey);

	journey->packet = *packet;
	journey->forwarding.route &= ~ROUTE_FTP_CONTROL;
	if (is_written)
		programs.call(ctx, PROGRAM_FTP_WRITE);
	else
		programs.call(ctx, PROGRAM_FTP_SEND);
	return exit_with(ctx, REASON_INTERNAL, packet, journey->forwarding.mark);
}

/* The way of the one that has PASV's reply name the service's address. */
static __always_inline int ftp_rewrite(struct hook_context *ctx, struct journey *journey)
{
	u32 offset = journey->packet.ip_offset + journey->packet.headers;
	u32 sum = packet_transport(&journey->packet) + TCP_CHECKSUM;
	u32 address = journey->end.address[0];
	struct ftp *ftp = &journey->ftp;
	s64 change;

#pragma unroll
	for (u32 i = 0; i < FTP_ADDRESS; i++)
		ftp_write_byte(ftp, address >> 8 * i & 0xff, i == FTP_ADDRESS - 1);
	/* a byte of the words stays, which most often is the parenthesis */
	if (READ_ONCE(ftp->end) < READ_ONCE(ftp->length) + FTP_CODE + 1)
		return REASON_OK;
	ftp_write(ftp);
	change = bpf_csum_diff((void *)ftp->line, FTP_LINE, (void *)ftp->text, FTP_LINE, 0);
	if (bpf_l4_csum_replace(ctx, sum, 0, change, 0))
		return REASON_INTERNAL;
	change = READ_ONCE(ftp->bytes);
	if (!hook_has_bound(&change, FTP_LINE))
		return REASON_INTERNAL;
	return bpf_skb_store_bytes(ctx, offset, ftp->text, change, 0) ? REASON_INTERNAL : REASON_OK;
}

/* The way of the one that sends. */
static __always_inline int ftp_send(struct hook_context *ctx, struct journey *journey)
{
	struct forwarding *forwarding = &journey->forwarding;
	struct packet *packet = &journey->packet;
	struct lane *lane = CPU_ROW(lanes, packet->cpu, forwarding->backend);
	int reason;

	if (journey->is_answer == ANSWER_LEAVING)
		return exit_egress(ctx,
				   answer_go_from_here(ctx, packet, forwarding, &journey->end));
	reason = journey->is_answer ? answer_transmit(ctx, packet, forwarding, &journey->end) :
				      forward_transmit(ctx, packet, lane, forwarding);
	journey->mark = forwarding->mark;
	journey->settings = 0;
	return exit_or_refuse(ctx, reason, journey);
}

#endif

/* FTP's passive data connections: a client's SYN to a port that its control connection has announced. */

/* The connection that stands for one that is expected of the packet's client, by whatever port. */
static __always_inline struct connection *expect_find(struct packet *packet, u64 now,
						      struct account *account)
{
	bool ipv6 = packet_is_ipv6(packet);
	struct connection *connection;
	struct seat seat = {};
	u64 key[5], *ports;

	__builtin_memcpy(key, packet->key, sizeof(key));
	ports = ipv6 ? &key[4] : &key[1];
	*ports &= ~0xffffULL;
	connection = (struct connection *)(ipv6 ? table_find(TABLE_CONNECTIONS6, key,
							     hash_connection6(key), &seat) :
						  table_find(TABLE_CONNECTIONS4, key,
							     hash_connection4(key), &seat));
	if (!connection)
		return NULL;
	connection_read(connection, seat.word, account);
	if (now >= expiry_of_connection(account->seen, account->word) ||
	    !expect_is_data(account->word) || READ_ONCE(connection->word) != account->word)
		return NULL;
	return connection;
}

/* Where the journey's packet opens a connection that is expected, leaves what that is to be. */
static __always_inline void expect_look(struct journey *journey)
{
	struct packet *packet = &journey->packet;
	struct account account = {};

	WRITE_ONCE(journey->expected, 0);
	if (packet_protocol(packet) != IPPROTO_TCP || !entry_is_first(packet) ||
	    bpf_ntohs(packet_virtual_port(packet)) < *ROW(switches, SWITCH_UNPRIVILEGED))
		return;
	if (!expect_find(packet, journey->now, &account) || !backend_word(account.backend))
		return;
	journey->service = account.service;
	service_enter(journey);
	journey->backend = account.backend;
	journey->route = account.word & WORD_ROUTE_MASK;
	journey->persistence = account.persistence;
	journey->mark = account.mark;
	journey->persistent = 0;
	journey->one_packet = 0;
	WRITE_ONCE(journey->expected, 1);
}

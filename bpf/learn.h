/*
 * Path MTU of tunnels: an ICMP error about a tunnel's own packet comes to this host, which alone can
 * tell the client.  It is believed where it quotes, inside, a packet of a connection by that tunnel;
 * what is too large from then on is answered as if the road itself took no more.
 */

/* What the quoted tunnel carries, by its family; and where that is. */
struct learn_inner {
	u32 version;
	u32 offset;
};

/* Goes past what is between the outer IP header and the packet. */
static __always_inline bool learn_shim(struct hook_context *ctx, struct learning *learning,
				       struct learn_inner *inner)
{
	__be16 gre[2];
	u8 gue[2];

	inner->offset = learning->offset;
	inner->version = learning->protocol == IPPROTO_IPIP ? 4 : 6;
	if (learning->protocol == IPPROTO_GRE) {
		if (hook_load(ctx, inner->offset, gre, sizeof(gre), sizeof(gre)))
			return false;
		inner->version = gre[1] == ETHERNET_IPV4 ? 4 : 6;
		inner->offset += gre[0] & GRE_HAS_CHECKSUM ? GRE_HEADER + GRE_CHECKSUM : GRE_HEADER;
	} else if (learning->protocol == IPPROTO_UDP) {
		if (hook_load(ctx, inner->offset + sizeof(struct udphdr), gue, sizeof(gue),
			      sizeof(gue)))
			return false;
		inner->version = gue[1] == IPPROTO_IPIP ? 4 : 6;
		inner->offset += sizeof(struct udphdr) + GUE_HEADER;
	}
	return true;
}

/* The connection that the packet inside is of, as its client sends it. */
static __always_inline struct connection *learn_find4(struct hook_context *ctx, u32 offset,
						      struct seat *seat)
{
	struct iphdr ip;
	u64 key[2];
	u32 ports;

	if (hook_load(ctx, offset, &ip, sizeof(ip), sizeof(ip)) ||
	    hook_load(ctx, offset + ip.ihl * 4, &ports, sizeof(ports), sizeof(ports)))
		return NULL;
	key[0] = ip.saddr | (u64)ip.daddr << 32;
	key[1] = ports | (u64)ip.protocol << 32;
	return (struct connection *)table_find(TABLE_CONNECTIONS4, key, hash_connection4(key),
					       seat);
}

static __always_inline struct connection *learn_find6(struct hook_context *ctx, u32 offset,
						      struct seat *seat)
{
	struct ipv6hdr ip;
	u64 key[5];
	u32 ports;

	if (hook_load(ctx, offset, &ip, sizeof(ip), sizeof(ip)) ||
	    hook_load(ctx, offset + sizeof(ip), &ports, sizeof(ports), sizeof(ports)))
		return NULL;
	__builtin_memcpy(key, &ip.saddr, 32);
	key[4] = ports | (u64)ip.nexthdr << 32;
	return (struct connection *)table_find(TABLE_CONNECTIONS6, key, hash_connection6(key),
					       seat);
}

/* Notes what a router told of the way to a connection's backend. */
static __always_inline void learn_note(struct connection *connection, u64 word,
				       struct learning *learning, u64 now)
{
	struct account account = {};
	struct backend *backend;
	struct tunnel *tunnel;
	u64 *address, least, mtu = learning->mtu;

	connection_read(connection, word, &account);
	if (!tunnel_is_used(account.word) || !backend_word(account.backend) ||
	    now >= expiry_of_connection(account.seen, account.word))
		return;
	backend = ROW(backends, account.backend);
	tunnel = ROW(tunnels, account.backend);
	address = (u64 *)backend->address;
	if (address[0] != learning->to[0] || address[1] != learning->to[1])
		return;
	address = (u64 *)tunnel->source;
	if (address[0] != learning->from[0] || address[1] != learning->from[1])
		return;
	least = backend->family == FAMILY_IPV6 ? PATH_LEAST_MTU6 : PATH_LEAST_MTU4;
	mtu = mtu < least ? least : mtu;
	if (mtu <= 0xffff)
		WRITE_ONCE(tunnel->path, now + PATH_LIFE << 16 | mtu);
}

static __always_inline void learn_mtu(struct hook_context *ctx, struct journey *journey)
{
	struct learning *learning = &journey->learning;
	struct connection *connection = NULL;
	struct learn_inner inner = {};
	struct seat seat = {};

	if (!learn_shim(ctx, learning, &inner))
		return;
	if (FEATURE_IPV4 && inner.version == 4)
		connection = learn_find4(ctx, inner.offset, &seat);
	else if (FEATURE_IPV6 && inner.version == 6)
		connection = learn_find6(ctx, inner.offset, &seat);
	if (connection)
		learn_note(connection, seat.word, learning, clock_now());
}

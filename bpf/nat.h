/* nat: one end of a packet is replaced, and every checksum is right again. */

/* CRC32c's polynomial, its bits in the order of SCTP's checksum, as in all of these. */
#define CRC_POLYNOMIAL 0x82f63b78
#define CRC_ONE 0x80000000
/* The factor that stands for 1, 2, 4... bytes of zeros after a message. */
#define CRC_BYTES_1 0x00800000
#define CRC_BYTES_2 0x00008000
#define CRC_BYTES_4 0x82f63b78
#define CRC_BYTES_8 0x6ea2d55c
#define CRC_BYTES_16 0x18b8ea18
#define CRC_BYTES_32 0x510ac59a
#define CRC_BYTES_64 0xb82be955
#define CRC_BYTES_128 0xb8fdb1e7
#define CRC_BYTES_256 0x88e56f72
#define CRC_BYTES_512 0x74c360a4
#define CRC_BYTES_1024 0xe4172b16
#define CRC_BYTES_2048 0x0d65762a
#define CRC_BYTES_4096 0x35d73a62
#define CRC_BYTES_8192 0x28461564
#define CRC_BYTES_16384 0xbf455269
#define CRC_BYTES_32768 0xe2ea32dc

static __always_inline bool nat_is_used(u64 route)
{
	return FEATURE_NAT && route_method(route) == METHOD_NAT;
}

/* The product of two polynomials, modulo CRC32c's. */
static __always_inline u32 nat_crc_product(u32 left, u32 right)
{
	u32 product = 0;

#pragma clang loop unroll(disable)
	for (u32 i = 0; i < 32; i++) {
		product ^= right & -(left >> 31);
		left <<= 1;
		right = right >> 1 ^ (CRC_POLYNOMIAL & -(right & 1));
	}
	return product;
}

/* The value before so many more bytes, if their number has the bit; without a branch. */
static __always_inline u32 nat_crc_step(u32 value, u64 bytes, u32 bit, u32 factor)
{
	u32 has = -(u32)(bytes >> bit & 1);

	return nat_crc_product((factor & has) | (CRC_ONE & ~has), value);
}

/*
 * What the bits that change in the first four of so many bytes change in their CRC32c: it is linear,
 * and what follows them does not differ.
 */
static __always_inline u32 nat_crc_change(u32 value, u64 bytes)
{
	value = nat_crc_step(value, bytes, 0, CRC_BYTES_1);
	value = nat_crc_step(value, bytes, 1, CRC_BYTES_2);
	value = nat_crc_step(value, bytes, 2, CRC_BYTES_4);
	value = nat_crc_step(value, bytes, 3, CRC_BYTES_8);
	value = nat_crc_step(value, bytes, 4, CRC_BYTES_16);
	value = nat_crc_step(value, bytes, 5, CRC_BYTES_32);
	value = nat_crc_step(value, bytes, 6, CRC_BYTES_64);
	value = nat_crc_step(value, bytes, 7, CRC_BYTES_128);
	value = nat_crc_step(value, bytes, 8, CRC_BYTES_256);
	value = nat_crc_step(value, bytes, 9, CRC_BYTES_512);
	value = nat_crc_step(value, bytes, 10, CRC_BYTES_1024);
	value = nat_crc_step(value, bytes, 11, CRC_BYTES_2048);
	value = nat_crc_step(value, bytes, 12, CRC_BYTES_4096);
	value = nat_crc_step(value, bytes, 13, CRC_BYTES_8192);
	value = nat_crc_step(value, bytes, 14, CRC_BYTES_16384);
	return nat_crc_step(value, bytes, 15, CRC_BYTES_32768);
}

/* The address at one end of the packet, as it came. */
static __always_inline void nat_address(struct packet *packet, bool is_source, u64 *address)
{
	if (packet_is_ipv6(packet)) {
		address[0] = packet->key[is_source ? 0 : 2];
		address[1] = packet->key[is_source ? 1 : 3];
	} else {
		address[0] = is_source ? (u32)packet->key[0] : packet->key[0] >> 32;
		address[1] = 0;
	}
}

/* Where the address is in the IP header. */
static __always_inline u32 nat_address_offset(struct packet *packet, bool is_source)
{
	if (packet_is_ipv6(packet))
		return is_source ? 8 : 24;
	return is_source ? 12 : 16;
}

/* SCTP's addresses count in no checksum of its own. */
static __always_inline bool nat_is_sctp(struct packet *packet)
{
	return FEATURE_SCTP && packet_protocol(packet) == IPPROTO_SCTP;
}

/* Of ESP and AH there is nothing else to replace at all. */
static __always_inline bool nat_is_address_alone(struct packet *packet)
{
	return nat_is_sctp(packet) || packet_follows(packet);
}

/* The port at the end that is to be replaced. */
static __always_inline __be16 nat_port(struct packet *packet, bool is_source)
{
	return is_source ? packet_client_port(packet) : packet_virtual_port(packet);
}

/* The bits of SCTP's ports that change where one becomes `port`. */
static __always_inline u32 nat_port_change(struct packet *packet, bool is_source, __be16 port)
{
	return (u32)(nat_port(packet, is_source) ^ port) << (is_source ? 0 : 16);
}

/* Changes bits of an SCTP packet's ports, which the rest of it is summed up with. */
static __always_inline int nat_change_sctp(struct hook_context *ctx, struct packet *packet,
					   u32 change)
{
	u32 sum = nat_crc_change(change, packet->bytes - packet->transport);

	if (packet_change_word(ctx, packet_transport(packet), change) ||
	    packet_change_word(ctx, packet_transport(packet) + SCTP_CHECKSUM, sum))
		return REASON_INTERNAL;
	return REASON_OK;
}

/* Replaces a port of an SCTP packet. */
static __always_inline int nat_map_sctp(struct hook_context *ctx, struct packet *packet,
					bool is_source, __be16 port)
{
	u32 change = nat_port_change(packet, is_source, port);

	packet_change_port(packet, is_source, port);
	return nat_change_sctp(ctx, packet, change);
}

#if HOOK_IS_XDP

/* Only the kernel can do it: what XDP sees of a checksum may be half of one, or there is none yet. */
static __always_inline bool nat_is_for_kernel(struct hook_context *ctx, struct packet *packet)
{
	return packet->interface & INTERFACE_GENERIC || !packet_has_sum(ctx, packet);
}

/* The fast path can do it. */
static __always_inline bool nat_is_plain(struct hook_context *ctx, struct packet *packet)
{
	return !nat_is_address_alone(packet) && !nat_is_for_kernel(ctx, packet);
}

static __always_inline int nat_replace_address(struct hook_context *ctx, struct packet *packet,
					       bool is_source, struct end *to)
{
	void *header = (void *)HOOK_LOAD(ctx, data) + packet_network(packet);
	void *end = (void *)HOOK_LOAD(ctx, data_end);
	u64 change = 0;

	if (packet_is_ipv6(packet))
		return packet_replace_address6(header, end, is_source, to->address, &change);
	return packet_replace_address4(header, end, is_source, to->address, &change);
}

/* Replaces the packet's source or destination. */
static __always_inline int nat_replace(struct hook_context *ctx, struct packet *packet,
				       bool is_source, struct end *to)
{
	if (!nat_is_address_alone(packet))
		return packet_replace(ctx, packet, is_source, to);
	return nat_replace_address(ctx, packet, is_source, to);
}

/* A program of its own has to see to its port first. */
static __always_inline bool nat_is_to_be_mended(struct hook_context *ctx, struct packet *packet,
						bool is_source, __be16 port)
{
	return !packet->fragment && nat_is_sctp(packet) && nat_port(packet, is_source) != port;
}

static __always_inline int nat_mend(struct hook_context *ctx, struct packet *packet, bool is_source,
				    __be16 port)
{
	return nat_map_sctp(ctx, packet, is_source, port);
}

/* What has to be seen to first, of TCP and UDP. */
static __always_inline int nat_prepare(struct hook_context *ctx, struct packet *packet)
{
	return REASON_OK;
}

#else

/* TC is the kernel's own road. */
static __always_inline bool nat_is_plain(struct hook_context *ctx, struct packet *packet)
{
	return true;
}

/* Replaces an address, and mends the checksums by the kernel's helpers: they may be but begun. */
static __always_inline int nat_replace_address(struct hook_context *ctx, struct packet *packet,
					       bool is_source, struct end *to, u32 sum, u64 flags)
{
	u32 place = packet->ip_offset + nat_address_offset(packet, is_source);
	u64 before[2];
	s64 change;

	nat_address(packet, is_source, before);
	change = bpf_csum_diff((void *)before, sizeof(before), to->address, sizeof(to->address), 0);
	if (sum && bpf_l4_csum_replace(ctx, sum, 0, change, flags | BPF_F_PSEUDO_HDR))
		return REASON_INTERNAL;
	if (packet_is_ipv6(packet))
		return bpf_skb_store_bytes(ctx, place, to->address, 16, 0) ? REASON_INTERNAL :
									     REASON_OK;
	if (bpf_l3_csum_replace(ctx, packet->ip_offset + IPV4_CHECKSUM, 0, change, 0))
		return REASON_INTERNAL;
	return bpf_skb_store_bytes(ctx, place, to->address, 4, 0) ? REASON_INTERNAL : REASON_OK;
}

/* Gives UDP without a checksum a real one, as IPVS does. */
static __always_inline int nat_fill_sum(struct hook_context *ctx, struct packet *packet)
{
	u64 bytes = packet->bytes - packet->transport;
	u32 transport = packet_transport(packet);
	s64 sum = bpf_htons(bytes) + bpf_htons(IPPROTO_UDP);
	u16 check;

	sum = sum_of(ctx, packet, packet->ip_offset + nat_address_offset(packet, true),
		     packet_is_ipv6(packet) ? 32 : 8, sum);
	if (sum >= 0)
		sum = sum_of(ctx, packet, transport, bytes, sum);
	if (sum < 0)
		return REASON_INTERNAL;
	check = ~checksum_fold(sum);
	check = check ? check : 0xffff;
	return bpf_skb_store_bytes(ctx, transport + UDP_CHECKSUM, &check, sizeof(check), 0) ?
		       REASON_INTERNAL :
		       REASON_OK;
}

/* Replaces the packet's source or destination. */
static __always_inline int nat_replace(struct hook_context *ctx, struct packet *packet,
				       bool is_source, struct end *to)
{
	__be16 before = nat_port(packet, is_source);
	bool udp = packet_protocol(packet) == IPPROTO_UDP;
	u64 flags = udp ? BPF_F_MARK_MANGLED_0 : 0;
	u32 transport = packet_transport(packet);
	u32 sum = transport + (udp ? UDP_CHECKSUM : TCP_CHECKSUM);
	int reason;

	reason = nat_replace_address(ctx, packet, is_source, to,
				     nat_is_address_alone(packet) ? 0 : sum, flags);
	if (reason)
		return reason;
	if (!nat_is_address_alone(packet) && before != to->port &&
	    (bpf_l4_csum_replace(ctx, sum, before, to->port, flags | sizeof(before)) ||
	     bpf_skb_store_bytes(ctx, transport + (is_source ? 0 : 2), &to->port, sizeof(to->port),
				 0)))
		return REASON_INTERNAL;
	return REASON_OK;
}

/* A program of its own has to see to its port, or to a checksum that UDP came without, first. */
static __always_inline bool nat_is_to_be_mended(struct hook_context *ctx, struct packet *packet,
						bool is_source, __be16 port)
{
	/* what covers the whole packet cannot be reckoned from a part of it */
	if (packet->fragment)
		return false;
	if (nat_is_sctp(packet))
		return nat_port(packet, is_source) != port;
	return !packet_has_sum(ctx, packet);
}

static __always_inline int nat_mend(struct hook_context *ctx, struct packet *packet, bool is_source,
				    __be16 port)
{
	if (nat_is_sctp(packet))
		return nat_map_sctp(ctx, packet, is_source, port);
	return nat_fill_sum(ctx, packet);
}

/* What has to be seen to first, of TCP and UDP. */
static __always_inline int nat_prepare(struct hook_context *ctx, struct packet *packet)
{
	return packet_has_sum(ctx, packet) ? REASON_OK : nat_fill_sum(ctx, packet);
}

#endif

/* ICMP errors: a packet that goes nowhere is sent back to its client in a message that says why. */
#define ICMP4_UNREACHABLE 3
#define ICMP4_EXCEEDED 11
#define ICMP4_PORT 3
#define ICMP4_TOO_BIG 4
#define ICMP6_UNREACHABLE 1
#define ICMP6_PACKET_TOO_BIG 2
#define ICMP6_EXCEEDED 3
#define ICMP6_PORT 4
#define ICMP_HEADER 8
/* As Linux quotes: whole messages of at most 576 bytes, or of IPv6's least MTU. */
#define ICMP4_QUOTE (576 - sizeof(struct iphdr) - ICMP_HEADER)
#define ICMP6_QUOTE (1280 - sizeof(struct ipv6hdr) - ICMP_HEADER)
#define ICMP_TTL 64
/* The type of service of network control, with the packet's own below the precedence. */
#define ICMP4_PRECEDENCE 0xc0
#define ICMP4_SERVICE 0x1e

/* What a message begins with, as on the wire. */
struct icmp_error {
	u8 type;
	u8 code;
	u16 sum;
	__be32 rest; /* of "too big" the MTU */
};

/* Takes the right to one answer, of which a CPU has so many a second. */
static __always_inline bool icmp_may_answer(struct refusal *refusal, u64 now)
{
	u64 credit = refusal->credit + (now - refusal->credited_at) * REFUSALS_A_SECOND;

	if (credit > (u64)REFUSALS_AT_ONCE * HZ || now - refusal->credited_at > HZ)
		credit = (u64)REFUSALS_AT_ONCE * HZ;
	refusal->credited_at = now;
	refusal->credit = credit < HZ ? credit : credit - HZ;
	return credit >= HZ;
}

/* An address that one machine may have. */
static __always_inline bool icmp_is_unicast4(__be32 address)
{
	u32 first = bpf_ntohl(address) >> 24;

	return first != 0 && first != 127 && first < 224;
}

static __always_inline bool icmp_is_unicast6(const __be32 *address)
{
	u32 rest = address[0] | address[1] | address[2];

	return bpf_ntohl(address[0]) >> 24 != 0xff && (rest || bpf_ntohl(address[3]) > 1);
}

/* One machine sent the packet to one address: no other packet is answered. */
static __always_inline bool icmp_has_ends(struct packet *packet)
{
	if (packet_is_ipv6(packet))
		return icmp_is_unicast6(packet->flow6.client) &&
		       icmp_is_unicast6(packet->flow6.virtual);
	return icmp_is_unicast4(packet->flow4.client) && icmp_is_unicast4(packet->flow4.virtual);
}

static __always_inline void icmp_error4(struct packet *packet, int reason, struct icmp_error *error)
{
	error->type = reason == REASON_TTL_EXCEEDED ? ICMP4_EXCEEDED : ICMP4_UNREACHABLE;
	if (reason == REASON_NO_BACKEND)
		error->code = ICMP4_PORT;
	if (reason == REASON_TOO_BIG) {
		error->code = ICMP4_TOO_BIG;
		error->rest = bpf_htonl(packet->mtu & 0xffff);
	}
}

static __always_inline void icmp_error6(struct packet *packet, int reason, struct icmp_error *error)
{
	error->type = reason == REASON_TTL_EXCEEDED ? ICMP6_EXCEEDED : ICMP6_UNREACHABLE;
	if (reason == REASON_NO_BACKEND)
		error->code = ICMP6_PORT;
	if (reason == REASON_TOO_BIG) {
		error->type = ICMP6_PACKET_TOO_BIG;
		error->rest = bpf_htonl(packet->mtu);
	}
}

/* IPv4's header of an answer with a quote of so many bytes. */
static __always_inline void icmp_head4(struct packet *packet, struct refusal *refusal, u32 quote)
{
	struct iphdr *ip = (struct iphdr *)refusal->ip, *quoted = (void *)&refusal->message[1];

	refusal->ip[0] = 0;
	refusal->ip[1] = 0;
	refusal->ip[2] = 0;
	*(u8 *)ip = 0x45;
	ip->tos = ICMP4_PRECEDENCE | (quoted->tos & ICMP4_SERVICE);
	ip->tot_len = bpf_htons(sizeof(*ip) + ICMP_HEADER + quote);
	ip->frag_off = IPV4_DO_NOT_FRAGMENT;
	ip->ttl = ICMP_TTL;
	ip->protocol = IPPROTO_ICMP;
	ip->saddr = packet->flow4.virtual;
	ip->daddr = packet->flow4.client;
	ip->check = ~checksum_fold(checksum_words(refusal->ip, 3));
}

/* IPv6's; the sum of what of it counts in the message's checksum. */
static __always_inline u64 icmp_head6(struct packet *packet, struct refusal *refusal, u32 quote)
{
	struct ipv6hdr *ip = (struct ipv6hdr *)refusal->ip;
	u64 *addresses = &refusal->ip[1];

	refusal->ip[0] = 0;
	*(u8 *)ip = 0x60;
	ip->payload_len = bpf_htons(ICMP_HEADER + quote);
	ip->nexthdr = IPPROTO_ICMPV6;
	ip->hop_limit = ICMP_TTL;
	addresses[0] = packet->key[2];
	addresses[1] = packet->key[3];
	addresses[2] = packet->key[0];
	addresses[3] = packet->key[1];
	return checksum_words(addresses, 4) + ip->payload_len + bpf_htons(IPPROTO_ICMPV6);
}

/* Copies the frame's head, addresses exchanged, and what is quoted of the packet. */
static __always_inline int icmp_copy(struct hook_context *ctx, struct packet *packet,
				     struct refusal *refusal, u32 quote)
{
	u64 head[2];

#pragma clang loop unroll(disable)
	for (u32 i = 0; i < REFUSAL_WORDS; i++)
		WRITE_ONCE(refusal->message[i], 0);
	if (hook_load(ctx, 0, refusal->head, packet->ip_offset, sizeof(refusal->head)) ||
	    hook_load(ctx, packet->ip_offset, &refusal->message[1], quote, ICMP6_QUOTE))
		return -1;
	head[0] = refusal->head[0];
	head[1] = refusal->head[1];
	/* six bytes each, then type or tag */
	refusal->head[0] = head[0] >> 48 | (head[1] & 0xffffffff) << 16 | head[0] << 48;
	refusal->head[1] = (head[0] & 0xffffffffffff) >> 16 | head[1] >> 32 << 32;
	return 0;
}

/* Too big, and its sender wants it cut into fragments: it has done nothing wrong. */
static __always_inline bool icmp_is_to_fragment(struct packet *packet, struct refusal *refusal,
						int reason)
{
	struct iphdr *quoted = (void *)&refusal->message[1];

	return reason == REASON_TOO_BIG && !packet_is_ipv6(packet) &&
	       !(quoted->frag_off & IPV4_DO_NOT_FRAGMENT);
}

/* Writes the answer's headers before the quote, so that every pointer into the packet is stale. */
static __always_inline int icmp_write(struct hook_context *ctx, struct packet *packet,
				      struct refusal *refusal, u32 quote)
{
	u32 before = packet->ip_offset, head;

	head = packet_is_ipv6(packet) ? sizeof(struct ipv6hdr) : sizeof(struct iphdr);
	if (hook_cut(ctx, before + quote) || hook_push(ctx, head + ICMP_HEADER))
		return -1;
	if (hook_store(ctx, 0, refusal->head, before, sizeof(refusal->head)) ||
	    hook_store(ctx, before, refusal->ip, head, sizeof(refusal->ip)))
		return -1;
	return hook_store(ctx, before + head, refusal->message, ICMP_HEADER, ICMP_HEADER);
}

/* Makes the packet the answer to itself; below 0 where there is to be none, or can be none. */
static __always_inline int icmp_answer(struct hook_context *ctx, struct packet *packet, int reason)
{
	struct refusal *refusal = CPU_ROW(refusals, packet->cpu, HOOK_IS_XDP);
	u32 most = packet_is_ipv6(packet) ? ICMP6_QUOTE : ICMP4_QUOTE;
	u32 quote = packet->bytes < most ? packet->bytes : most;
	struct icmp_error error = {};
	u64 sum = 0;

	if (reason == REASON_TOO_BIG && !packet->mtu)
		return -1;
	if (!icmp_has_ends(packet) || !icmp_may_answer(refusal, clock_now()))
		return -1;
	if (icmp_copy(ctx, packet, refusal, quote) || icmp_is_to_fragment(packet, refusal, reason))
		return -1;
	if (packet_is_ipv6(packet)) {
		icmp_error6(packet, reason, &error);
		sum = icmp_head6(packet, refusal, quote);
	} else {
		icmp_error4(packet, reason, &error);
		icmp_head4(packet, refusal, quote);
	}
	refusal->message[0] = *(u64 *)&error;
	error.sum = ~checksum_fold(sum + checksum_words(refusal->message, REFUSAL_WORDS));
	refusal->message[0] = *(u64 *)&error;
	return icmp_write(ctx, packet, refusal, quote);
}

/*
 * The program for tunnels: any packet into any tunnel.  The outer headers are made up aside and
 * stored before the packet.
 */

/* Words of the longest: IPv6, UDP and GUE, or GRE with a checksum. */
#define WRAP_WORDS 7
#define WRAP_BYTES (WRAP_WORDS * 8)

/* What is put before the packet. */
struct wrapping {
	u64 words[WRAP_WORDS];
	struct tunnel_options options;
	struct tunnel_inner inner;
	u32 head; /* bytes of the IP header, */
	u32 bytes; /* and of all */
	bool is_outer6;
	bool has_sum; /* gue and gre: the outer header has one, */
	bool is_summed; /* over a packet whose own tells nothing */
	u64 sum; /* of the packet */
};

/* Bytes between the outer IP header and the packet. */
static __always_inline u32 wrap_shim(struct tunnel_options *options, bool has_sum)
{
	if (options->type == TUNNEL_TYPE_GUE)
		return sizeof(struct udphdr) + GUE_HEADER;
	if (options->type == TUNNEL_TYPE_GRE)
		return has_sum ? GRE_HEADER + GRE_CHECKSUM : GRE_HEADER;
	return 0;
}

/* How the packet is to be wrapped.  What is cut to segments later has no sum of all of them. */
static __always_inline void wrap_begin(struct hook_context *ctx, struct forwarding *forwarding,
				       struct wrapping *wrapping)
{
	*(u64 *)&wrapping->options = READ_ONCE(ROW(tunnels, forwarding->backend)->options);
	wrapping->is_outer6 = tunnel_is_outer6(forwarding);
	wrapping->has_sum = wrapping->options.flags & TUNNEL_CHECKSUM && hook_segments(ctx) == 1;
	wrapping->head = wrapping->is_outer6 ? sizeof(struct ipv6hdr) : sizeof(struct iphdr);
	wrapping->bytes = wrapping->head + wrap_shim(&wrapping->options, wrapping->has_sum);
}

/*
 * The sum of all bytes of TCP, or of UDP with a checksum, is that of what their checksum covers
 * beside them, also while that checksum is only begun; IPv4's header sums up to nothing.
 */
static __always_inline u64 wrap_sum_plain(struct packet *packet, const u64 *header)
{
	u64 pseudo =
		bpf_htons(packet->bytes - packet->transport) + bpf_htons(packet_protocol(packet));
	u64 sum;

	if (!packet_is_ipv6(packet))
		return (u16)~checksum_fold(pseudo + (u32)packet->key[0] + (packet->key[0] >> 32));
	sum = checksum_addresses(packet->key);
	pseudo += sum;
	sum += (header[0] & 0xffffffff) + (header[0] >> 32);
	return (u64)(u16)~checksum_fold(pseudo) + sum;
}

/* The packet's sum follows from what is in its headers. */
static __always_inline bool wrap_is_plain(struct hook_context *ctx, struct packet *packet)
{
	u32 head = packet_is_ipv6(packet) ? sizeof(struct ipv6hdr) : sizeof(struct iphdr);
	u8 protocol = packet_protocol(packet);

	/* `transport` is 0 where the packet is no segment or datagram itself */
	if (packet->fragment || packet->transport != head ||
	    (protocol != IPPROTO_TCP && protocol != IPPROTO_UDP))
		return false;
	return packet_has_sum(ctx, packet);
}

/* Reads what the outer header follows, from where the packet is by now. */
static __always_inline int wrap_read(struct hook_context *ctx, struct packet *packet,
				     struct wrapping *wrapping, u32 offset)
{
	u64 header[2];

	if (hook_load(ctx, offset, header, sizeof(header), sizeof(header)))
		return REASON_INTERNAL;
	if (packet_is_ipv6(packet))
		tunnel_inner6(header, &wrapping->inner);
	else
		tunnel_inner4(header, &wrapping->inner);
	if (wrapping->options.flags & TUNNEL_CUT)
		wrapping->inner.fragment = 0;
	if (wrapping->has_sum && !wrapping->is_summed)
		wrapping->sum = wrap_sum_plain(packet, header);
	return REASON_OK;
}

/* Has the whole packet summed up, where its own checksum does not tell its sum. */
static __always_inline bool wrap_settle_sum(struct hook_context *ctx, struct packet *packet,
					    struct wrapping *wrapping, struct journey *journey)
{
	if (!wrapping->has_sum || wrap_is_plain(ctx, packet))
		return true;
	if (!journey->summed)
		programs.call(ctx, PROGRAM_SUM);
	wrapping->is_summed = true;
	wrapping->sum = journey->sum;
	/* IPv6's header has no checksum that makes up for the hop limit's one less */
	if (packet_is_ipv6(packet))
		wrapping->sum += (u16)~bpf_htons(1);
	return journey->summed;
}

/* The program that sums up a packet. */
static __always_inline void wrap_sum_up(struct hook_context *ctx, struct journey *journey)
{
	struct packet *packet = &journey->packet;
	s64 sum = sum_of(ctx, packet, packet->ip_offset, packet->bytes, 0);

	if (sum < 0)
		return;
	journey->sum = sum;
	journey->summed = 1;
	tunnel_go(ctx, packet);
}

/* The port that a flow's packets come from: always the same. */
static __always_inline __be16 wrap_source_port(struct packet *packet,
					       struct tunnel_options *options)
{
	u32 hash = packet->hash;

	return bpf_htons(options->first_port + ((u64)hash * options->ports >> 32));
}

/* GUE: UDP, and four bytes that name the protocol; leaves the sum of both headers. */
static __always_inline u64 wrap_gue(struct packet *packet, struct wrapping *wrapping, u32 *shim)
{
	u32 bytes = packet->bytes + sizeof(struct udphdr) + GUE_HEADER;

	shim[0] = wrap_source_port(packet, &wrapping->options) | (u32)wrapping->options.port << 16;
	shim[1] = bpf_htons(bytes);
	shim[2] = (u32)tunnel_protocol(packet) << 8;
	return (u64)shim[0] + shim[1] + shim[2] + bpf_htons(bytes) + bpf_htons(IPPROTO_UDP);
}

/* GRE: four bytes that name the packet's type, and four for a checksum. */
static __always_inline u64 wrap_gre(struct packet *packet, struct wrapping *wrapping, u32 *shim)
{
	shim[0] = (wrapping->has_sum ? GRE_HAS_CHECKSUM : 0) | packet->type << 16;
	shim[1] = 0;
	return shim[0];
}

/* Writes what comes after the outer IP header; leaves its sum. */
static __always_inline u64 wrap_write_shim(struct packet *packet, struct wrapping *wrapping,
					   u32 *shim, u64 addresses)
{
	if (wrapping->options.type == TUNNEL_TYPE_GUE)
		return addresses + wrap_gue(packet, wrapping, shim);
	if (wrapping->options.type == TUNNEL_TYPE_GRE)
		return wrap_gre(packet, wrapping, shim);
	return 0;
}

/* The outer checksum over a header and the packet after it. */
static __always_inline void wrap_write_sum(struct wrapping *wrapping, u64 sum)
{
	u32 *shim = (u32 *)wrapping->words + (wrapping->is_outer6 ? 10 : 5);
	u16 check = ~checksum_fold(sum + wrapping->sum);

	if (wrapping->options.type == TUNNEL_TYPE_GRE)
		shim[1] = check;
	else
		shim[1] |= (u32)(check ? check : 0xffff) << 16;
}

static __always_inline u8 wrap_protocol(struct packet *packet, struct tunnel_options *options)
{
	if (options->type == TUNNEL_TYPE_GUE)
		return IPPROTO_UDP;
	return options->type == TUNNEL_TYPE_GRE ? IPPROTO_GRE : tunnel_protocol(packet);
}

/* Makes up all that is put before the packet. */
static __always_inline void wrap_write(struct packet *packet, struct forwarding *forwarding,
				       struct wrapping *wrapping)
{
	struct backend *backend = ROW(backends, forwarding->backend);
	u64 *source = (u64 *)ROW(tunnels, forwarding->backend)->source,
	    *destination = (u64 *)backend->address;
	u8 protocol = wrap_protocol(packet, &wrapping->options);
	u32 bytes = packet->bytes + wrapping->bytes - wrapping->head;
	u64 *words = wrapping->words, addresses, sum;

	if (wrapping->is_outer6) {
		words[0] = tunnel_head6(&wrapping->inner, protocol, bytes);
		words[1] = source[0];
		words[2] = source[1];
		words[3] = destination[0];
		words[4] = destination[1];
		addresses = checksum_addresses(words + 1);
		sum = wrap_write_shim(packet, wrapping, (u32 *)(words + 5), addresses);
	} else {
		tunnel_head4((struct iphdr *)words, &wrapping->inner, protocol, bytes,
			     (u32)source[0], (u32)destination[0]);
		addresses = (u64)(u32)source[0] + (u32)destination[0];
		sum = wrap_write_shim(packet, wrapping, (u32 *)words + 5, addresses);
	}
	if (wrapping->has_sum)
		wrap_write_sum(wrapping, sum);
}

/* Puts what was made up before the packet, in the room that is there for it. */
static __always_inline int wrap_store(struct hook_context *ctx, struct wrapping *wrapping, u32 head)
{
	return hook_store(ctx, head, wrapping->words, wrapping->bytes, WRAP_BYTES) ?
		       REASON_INTERNAL :
		       REASON_OK;
}

/* What the way to the backend takes: the road's MTU, or less where a router has told so; 0: unknown. */
static __always_inline u32 wrap_mtu(struct forwarding *forwarding, u32 mtu)
{
	struct tunnel *tunnel = ROW(tunnels, forwarding->backend);
	u64 path = READ_ONCE(tunnel->path);
	u32 told = path & 0xffff;

	if (!path)
		return mtu;
	if (clock_now() >= path >> 16) {
		word_change(&tunnel->path, path, 0);
		return mtu;
	}
	return mtu && mtu < told ? mtu : told;
}

/* Makes up the outer headers for the packet, before which there is room, and stores them. */
static __always_inline int wrap_fill(struct hook_context *ctx, struct packet *packet,
				     struct forwarding *forwarding, struct wrapping *wrapping,
				     u32 head)
{
	u32 offset = head + wrapping->bytes;

	if (!ROW(tunnels, forwarding->backend)->source[0])
		return REASON_NO_ROUTE;
	if (wrap_read(ctx, packet, wrapping, offset))
		return REASON_INTERNAL;
	wrap_write(packet, forwarding, wrapping);
	return wrap_store(ctx, wrapping, head);
}

#if HOOK_IS_XDP

/* Replaces all before the IP packet by what the road out wants, and the outer headers. */
static __always_inline int wrap_rewrite(struct hook_context *ctx, struct packet *packet,
					struct hop *hop, struct forwarding *forwarding,
					struct wrapping *wrapping)
{
	u32 head = hop->road == ROAD_TAGGED ? TAGGED_HEAD : PLAIN_HEAD;
	__be16 type = wrapping->is_outer6 ? ETHERNET_IPV6 : ETHERNET_IPV4;
	int reason;

	if (hook_pull(ctx, (int)(packet->ip_offset - head - wrapping->bytes)))
		return REASON_INTERNAL;
	if (packet_age(ctx, packet, packet_within(head + wrapping->bytes)))
		return REASON_INTERNAL;
	reason = wrap_fill(ctx, packet, forwarding, wrapping, head);
	if (reason)
		return reason;
	if (head == TAGGED_HEAD)
		return packet_write_tagged(ctx, hop, type);
	return packet_write_ethernet(ctx, hop, type);
}

/* Sends the packet to its backend; TC does where XDP cannot, or sees only half of a checksum. */
static __always_inline int wrap_send(struct hook_context *ctx, struct packet *packet,
				     struct forwarding *forwarding)
{
	struct lane *lane = CPU_ROW(lanes, packet->cpu, forwarding->backend);
	struct wrapping wrapping = {};
	int reason;

	if (packet->ttl < LEAST_TTL)
		return REASON_TTL_EXCEEDED;
	if (packet->interface & INTERFACE_GENERIC)
		return forward_hand_over(ctx, packet, forwarding);
	wrap_begin(ctx, forwarding, &wrapping);
	if (!wrap_settle_sum(ctx, packet, &wrapping, maps_journey()))
		return REASON_INTERNAL;
	if (packet->bytes + wrapping.bytes > wrap_mtu(forwarding, 0xffff))
		return forward_hand_over(ctx, packet, forwarding);
	reason = forward_settle(ctx, packet, lane, forwarding, packet->bytes + wrapping.bytes);
	if (reason == REASON_LOCAL_BACKEND)
		return forward_count_here(ctx, packet, lane, forwarding);
	if (reason)
		return reason;
	reason = wrap_rewrite(ctx, packet, &lane->hop, forwarding, &wrapping);
	if (reason)
		return reason;
	forward_go(packet, &lane->hop);
	return forward_count(packet, lane, forwarding);
}

#else

/*
 * Makes room for the outer headers, in the way that lets the kernel cut what is in them to size; the
 * kernel lets nobody shorten such a frame, which so is told nothing where that is to be done here.
 */
static __always_inline int wrap_make_room(struct hook_context *ctx, struct wrapping *wrapping,
					  bool is_cut)
{
	u64 flags = BPF_F_ADJ_ROOM_FIXED_GSO;

	if (is_cut)
		return bpf_skb_adjust_room(ctx, wrapping->bytes, BPF_ADJ_ROOM_MAC, flags);

	flags |= wrapping->is_outer6 ? BPF_F_ADJ_ROOM_ENCAP_L3_IPV6 : BPF_F_ADJ_ROOM_ENCAP_L3_IPV4;
	if (wrapping->options.type == TUNNEL_TYPE_GUE)
		flags |= BPF_F_ADJ_ROOM_ENCAP_L4_UDP;
	else if (wrapping->options.type == TUNNEL_TYPE_GRE)
		flags |= BPF_F_ADJ_ROOM_ENCAP_L4_GRE;
	return bpf_skb_adjust_room(ctx, wrapping->bytes, BPF_ADJ_ROOM_MAC, flags);
}

/* What is in the tunnel stays whole, and the outer packet may be cut: an IPv4 one without DF. */
static __always_inline bool wrap_may_cut(struct hook_context *ctx, struct packet *packet,
					 struct wrapping *wrapping)
{
	if (wrapping->is_outer6 || hook_segments(ctx) > 1)
		return false;
	return wrapping->options.flags & TUNNEL_CUT || cut_may(ctx, packet);
}

/* Sends the packet to its backend. */
static __always_inline int wrap_send(struct hook_context *ctx, struct packet *packet,
				     struct forwarding *forwarding)
{
	struct lane *lane = CPU_ROW(lanes, packet->cpu, forwarding->backend);
	/* the stack has no room for it */
	struct neighbour_parameters *neighbour = &maps_journey()->neighbour;
	u32 ifindex = 0, mtu = 0, segments = hook_segments(ctx);
	struct wrapping wrapping = {};
	bool is_cut;
	int reason;

	if (packet->ttl < LEAST_TTL)
		return REASON_TTL_EXCEEDED;
	/* of what XDP handed over, nobody has asked for it yet */
	packet_hash(packet);
	__builtin_memset(neighbour, 0, sizeof(*neighbour));
	reason = nexthop_route(ctx, forwarding->backend, &ifindex, &mtu, neighbour);
	if (reason == REASON_LOCAL_BACKEND)
		return forward_count_here(ctx, packet, lane, forwarding);
	if (reason)
		return reason;
	wrap_begin(ctx, forwarding, &wrapping);
	is_cut = forward_is_too_big(ctx, packet, wrap_mtu(forwarding, mtu), wrapping.bytes);
	if (is_cut && !wrap_may_cut(ctx, packet, &wrapping))
		return REASON_TOO_BIG;
	if (!wrap_settle_sum(ctx, packet, &wrapping, maps_journey()))
		return REASON_INTERNAL;
	if (forward_prepare(ctx, packet) || wrap_make_room(ctx, &wrapping, is_cut))
		return REASON_INTERNAL;
	reason = wrap_fill(ctx, packet, forwarding, &wrapping, PLAIN_HEAD);
	if (reason)
		return reason;
	if (is_cut)
		return cut_call(ctx, packet, forwarding);
	packet->action = redirect_neighbour(ifindex, neighbour, sizeof(*neighbour), 0);
	return forward_count(ctx, packet, lane, forwarding, segments);
}

#endif

/* The programs' whole way, once the families have parted. */
static __always_inline int wrap_exit(struct hook_context *ctx, struct packet *packet)
{
	struct journey *journey = maps_journey();
	int reason = wrap_send(ctx, packet, &journey->forwarding);

	if (!exit_is_refusal(reason))
		return exit_with(ctx, reason, packet, journey->forwarding.mark);
	journey->packet.mtu = packet->mtu;
	return exit_or_refuse(ctx, reason, journey);
}

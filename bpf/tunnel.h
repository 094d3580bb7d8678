/*
 * Tunnels: what is put before a packet on its way to its backend, with the fields that IPVS gives
 * it; and the fast path, of a packet that gets an IP header of its own family and nothing else.
 */
#define IPV4_CONGESTION 3
#define IPV4_CONGESTED 3
#define IPV4_CAPABLE 2
#define IPV6_LEAST_MTU 1280
#define IPV4_LEAST_MTU 68
#define GUE_HEADER 4
#define GRE_HEADER 4
#define GRE_CHECKSUM 4
#define GRE_HAS_CHECKSUM bpf_htons(0x8000)

/* What of the inner IP header the outer one follows. */
struct tunnel_inner {
	u8 service; /* type of service, or traffic class */
	u8 ttl;
	__be16 fragment; /* IPv4's DF */
};

static __always_inline bool tunnel_is_used(u64 route)
{
	return FEATURE_TUNNEL && route_method(route) == METHOD_TUNNEL;
}

/* Packets get an IP header that is as their own, and nothing else; no router has complained. */
static __always_inline bool tunnel_is_mere(struct tunnel *tunnel)
{
	struct tunnel_options *options = (struct tunnel_options *)&tunnel->options;

	return options->type == TUNNEL_TYPE_IPIP && !(options->flags & TUNNEL_CUT) &&
	       !READ_ONCE(tunnel->path);
}

static __always_inline bool tunnel_is_outer6(struct forwarding *forwarding)
{
	return FEATURE_TUNNEL && ROW(backends, forwarding->backend)->family == FAMILY_IPV6;
}

/* Congestion that the packet has met stays inside. */
static __always_inline u8 tunnel_service(u8 service)
{
	if ((service & IPV4_CONGESTION) == IPV4_CONGESTED)
		return (service & ~IPV4_CONGESTION) | IPV4_CAPABLE;
	return service;
}

/* Of an IPv4 header that its first 16 bytes are given of. */
static __always_inline void tunnel_inner4(const u64 *header, struct tunnel_inner *inner)
{
	inner->service = tunnel_service(header[0] >> 8);
	inner->fragment = header[0] >> 48 & IPV4_DO_NOT_FRAGMENT;
	inner->ttl = header[1];
}

static __always_inline void tunnel_inner6(const u64 *header, struct tunnel_inner *inner)
{
	inner->service = tunnel_service(bpf_ntohs(header[0]) >> 4);
	inner->fragment = 0;
	inner->ttl = header[0] >> 56;
}

/* IPv4's outer header around so many bytes. */
static __always_inline void tunnel_head4(struct iphdr *ip, struct tunnel_inner *inner, u8 protocol,
					 u32 bytes, __be32 source, __be32 destination)
{
	u16 id = inner->fragment ? 0 : bpf_get_prandom_u32();
	u64 sum;

	*(u32 *)ip = 0x45 | (u32)inner->service << 8 | (u32)bpf_htons(bytes + sizeof(*ip)) << 16;
	*((u32 *)ip + 1) = id | (u32)inner->fragment << 16;
	*((u32 *)ip + 2) = inner->ttl | (u32)protocol << 8;
	ip->saddr = source;
	ip->daddr = destination;
	sum = (u64) * (u32 *)ip + *((u32 *)ip + 1) + *((u32 *)ip + 2) + source + destination;
	ip->check = ~checksum_fold(sum);
}

/* IPv6's, all but the addresses. */
static __always_inline u64 tunnel_head6(struct tunnel_inner *inner, u8 protocol, u32 bytes)
{
	return bpf_htonl(6 << 28 | (u32)inner->service << 20) | (u64)bpf_htons(bytes) << 32 |
	       (u64)protocol << 48 | (u64)inner->ttl << 56;
}

/* The packet's own protocol number, as what a tunnel carries. */
static __always_inline u8 tunnel_protocol(struct packet *packet)
{
	return packet_is_ipv6(packet) ? IPPROTO_IPV6 : IPPROTO_IPIP;
}

/* On to the program for tunnels, of the packet's family. */
static __always_inline void tunnel_go(struct hook_context *ctx, struct packet *packet)
{
	if (packet_is_ipv6(packet))
		programs.call(ctx, PROGRAM_TUNNEL6);
	else
		programs.call(ctx, PROGRAM_TUNNEL4);
}

/* The same with a packet whose way is settled. */
static __always_inline int tunnel_call(struct hook_context *ctx, struct packet *packet,
				       struct forwarding *forwarding)
{
	struct journey *journey = maps_journey();

	journey->packet = *packet;
	journey->forwarding = *forwarding;
	journey->summed = 0;
	tunnel_go(ctx, packet);
	return REASON_INTERNAL;
}

#if HOOK_IS_XDP

/* What the fast path puts before a packet. */
static __always_inline u32 tunnel_plain_bytes(struct packet *packet)
{
	return packet_is_ipv6(packet) ? sizeof(struct ipv6hdr) : sizeof(struct iphdr);
}

/* The fast path can do it, where the road takes so many bytes more. */
static __always_inline bool tunnel_is_plain(struct packet *packet, struct hop *hop, u64 reference)
{
	struct backend *backend = ROW(backends, reference);
	struct tunnel *tunnel = ROW(tunnels, reference);
	u32 family = packet_is_ipv6(packet) ? FAMILY_IPV6 : FAMILY_IPV4;

	return tunnel_is_mere(tunnel) && backend->family == family && tunnel->source[0] &&
	       packet->bytes + tunnel_plain_bytes(packet) <= hop->mtu &&
	       !(packet->interface & INTERFACE_GENERIC);
}

/* Writes the outer header where it belongs in the frame. */
static __always_inline int tunnel_write4(struct packet *packet, void *header, void *end, u32 id)
{
	struct iphdr *ip = header, *own = ip + 1;
	struct tunnel_inner inner;

	if ((void *)(own + 1) > end)
		return REASON_INTERNAL;
	tunnel_inner4((u64 *)own, &inner);
	tunnel_head4(ip, &inner, IPPROTO_IPIP, packet->bytes, ROW(tunnels, id)->source[0],
		     ROW(backends, id)->address[0]);
	return REASON_OK;
}

static __always_inline int tunnel_write6(struct packet *packet, void *header, void *end, u32 id)
{
	struct ipv6hdr *ip = header, *own = ip + 1;
	u64 *words = header, *source = (u64 *)ROW(tunnels, id)->source,
	    *destination = (u64 *)ROW(backends, id)->address;
	struct tunnel_inner inner;

	if ((void *)(own + 1) > end)
		return REASON_INTERNAL;
	tunnel_inner6((u64 *)own, &inner);
	words[0] = tunnel_head6(&inner, IPPROTO_IPV6, packet->bytes);
	words[1] = source[0];
	words[2] = source[1];
	words[3] = destination[0];
	words[4] = destination[1];
	return REASON_OK;
}

/* Replaces all before the IP packet by `head` bytes for the road out and the outer header. */
static __always_inline int tunnel_rewrite(struct hook_context *ctx, struct packet *packet,
					  struct hop *hop, u32 head, u32 id)
{
	u32 more = tunnel_plain_bytes(packet);
	u64 offset = packet->ip_offset;
	void *header, *end;
	int reason;

	asm volatile("" : "+r"(offset));
	if (hook_pull(ctx, (int)(offset - head - more)))
		return REASON_INTERNAL;
	if (packet_age(ctx, packet, head + more))
		return REASON_INTERNAL;
	header = (void *)HOOK_LOAD(ctx, data) + head;
	end = (void *)HOOK_LOAD(ctx, data_end);
	reason = packet_is_ipv6(packet) ? tunnel_write6(packet, header, end, id) :
					  tunnel_write4(packet, header, end, id);
	if (reason)
		return reason;
	if (head == TAGGED_HEAD)
		return packet_write_tagged(ctx, hop, packet->type);
	return packet_write_ethernet(ctx, hop, packet->type);
}

#else

/* The kernel is asked for each packet, by the program for tunnels. */
static __always_inline bool tunnel_is_plain(struct packet *packet, struct hop *hop, u64 reference)
{
	return false;
}

#endif

/* Forwarding: dr, which rewrites the MACs and takes one from the TTL. */
#define LEAST_TTL 2
#define PLAIN_HEAD sizeof(struct ethhdr)
#define TAGGED_HEAD (sizeof(struct ethhdr) + sizeof(struct vlan_tag))

/* What forwarding needs to know of a packet's connection. */
struct forwarding {
	u64 now;
	u64 route; /* word.h */
	u32 backend;
	u32 service;
	u32 mark;
	u32 probe_interval; /* jiffies */
	u32 reason; /* under which it is counted: REASON_FORWARDED or REASON_TABLE_FULL */
	u32 padding;
};

#if HOOK_IS_XDP

/* Gives the packet to TC, which sends it by the kernel's own neighbour table. */
static __always_inline int forward_hand_over(struct hook_context *ctx, struct packet *packet,
					     struct forwarding *forwarding)
{
	struct handover handover = {
		.magic = HANDOVER_MAGIC,
		.reason = forwarding->reason,
		.mark = forwarding->mark,
		.backend = forwarding->backend,
		.service = forwarding->service,
		.route = forwarding->route,
	};

	packet->action = HOOK_PASS;
	if (hook_hand_over(ctx, &handover))
		return REASON_NO_METADATA;
	return REASON_HANDED_OVER;
}

/* The next hop is known, and the driver can send the packet there. */
static __always_inline bool forward_is_plain(struct packet *packet, struct hop *hop, u64 now)
{
	return packet->ttl >= LEAST_TTL && now < hop->until && hop->road != ROAD_TC &&
	       packet->bytes <= hop->mtu;
}

/* Replaces all before the IP packet by `head` bytes for the road out, and takes a hop from it. */
static __always_inline int forward_rewrite(struct hook_context *ctx, struct packet *packet,
					   struct hop *hop, u32 head)
{
	u64 offset = packet->ip_offset;

	/* else the compiler has every packet note early on whether its head fits, with and without tag */
	asm volatile("" : "+r"(offset));
	/* tags of the road in do not belong on the road out */
	if (offset != head && hook_pull(ctx, (int)(offset - head)))
		return REASON_INTERNAL;
	if (packet_age(ctx, packet, head))
		return REASON_INTERNAL;
	if (head == TAGGED_HEAD)
		return packet_write_tagged(ctx, hop, packet->type);
	return packet_write_ethernet(ctx, hop, packet->type);
}

/* Has the driver send the packet. */
static __always_inline int forward_leave(struct hook_context *ctx, struct packet *packet,
					 struct hop *hop)
{
	int reason = hop->road == ROAD_TAGGED ? forward_rewrite(ctx, packet, hop, TAGGED_HEAD) :
						forward_rewrite(ctx, packet, hop, PLAIN_HEAD);

	/* the hop may have been found by a packet of another interface */
	if (!reason)
		packet->action = hop->turning == packet->ifindex ? HOOK_TX :
								   bpf_redirect(hop->ifindex, 0);
	return reason;
}

/* The same for a backend, which it is counted for. */
static __always_inline int forward_transmit(struct hook_context *ctx, struct packet *packet,
					    struct lane *lane, struct forwarding *forwarding)
{
	int reason = forward_leave(ctx, packet, &lane->hop);

	if (reason)
		return reason;
	stats_count_packet(packet->cpu, forwarding->service, lane, 1, packet->bytes);
	return forwarding->reason;
}

/* Sends the packet to a backend; counted here, or by TC where it takes the kernel's road. */
static __always_inline int forward_send(struct hook_context *ctx, struct packet *packet,
					struct forwarding *forwarding)
{
	struct lane *lane = CPU_ROW(lanes, packet->cpu, forwarding->backend);
	struct hop *hop = &lane->hop;
	bool fresh = false;
	int reason;

	if (packet->ttl < LEAST_TTL)
		return REASON_TTL_EXCEEDED;
	if (forwarding->now >= hop->until) {
		reason = nexthop_resolve(ctx, hop, forwarding->backend, forwarding->now);
		if (reason)
			return reason;
		fresh = true;
	}
	/* generic XDP sees frames that TC will have cut to size again: only TC can tell */
	if (hop->road == ROAD_TC || packet->bytes > hop->mtu)
		return forward_hand_over(ctx, packet, forwarding);
	if (fresh || forwarding->probe_interval == NEXTHOP_LIFE)
		if (nexthop_is_probe_due(ROW(nexthop_probes, forwarding->backend), forwarding->now,
					 forwarding->probe_interval))
			return forward_hand_over(ctx, packet, forwarding);
	return forward_transmit(ctx, packet, lane, forwarding);
}

#else

/* Removes every tag of the road in, so that every pointer into the packet is stale after it. */
static __always_inline int forward_untag(struct hook_context *ctx, struct packet *packet)
{
	if (HOOK_LOAD(ctx, vlan_present) && bpf_skb_vlan_pop(ctx))
		return REASON_INTERNAL;
	if (packet->ip_offset > sizeof(struct ethhdr) && bpf_skb_vlan_pop(ctx))
		return REASON_INTERNAL;
	return REASON_OK;
}

/* Whatever there is to find out, the kernel is asked for each packet. */
static __always_inline bool forward_is_plain(struct packet *packet, struct hop *hop, u64 now)
{
	return true;
}

/* Sends the packet to a backend by the kernel's neighbour table, which keeps it while it asks. */
static __always_inline int forward_transmit(struct hook_context *ctx, struct packet *packet,
					    struct lane *lane, struct forwarding *forwarding)
{
	struct neighbour_parameters neighbour = {};
	u32 ifindex = 0, mtu = 0, segments = hook_segments(ctx);
	int reason;

	if (packet->ttl < LEAST_TTL)
		return REASON_TTL_EXCEEDED;
	reason = nexthop_route(ctx, forwarding->backend, &ifindex, &mtu, &neighbour);
	if (reason)
		return reason;
	if (mtu && hook_segment_bytes(ctx, packet->bytes, packet->headers) > mtu) {
		packet->mtu = mtu;
		return REASON_TOO_BIG;
	}
	if (forward_untag(ctx, packet))
		return REASON_INTERNAL;
	if (packet_age(ctx, packet, sizeof(struct ethhdr)))
		return REASON_INTERNAL;
	stats_count_packet(packet->cpu, forwarding->service, lane, segments,
			   packet->bytes + (segments - 1) * packet->headers);
	packet->action = redirect_neighbour(ifindex, &neighbour, sizeof(neighbour), 0);
	return forwarding->reason;
}

/* Sends the packet to a backend. */
static __always_inline int forward_send(struct hook_context *ctx, struct packet *packet,
					struct forwarding *forwarding)
{
	struct lane *lane = CPU_ROW(lanes, packet->cpu, forwarding->backend);

	return forward_transmit(ctx, packet, lane, forwarding);
}

#endif

/* Forwarding: every method takes one from the TTL and rewrites the MACs; dr does nothing else. */
#define LEAST_TTL 2

/* The end that the packet's connection has at its backend. */
static __always_inline void forward_end(struct forwarding *forwarding, struct end *end)
{
	struct backend *backend = ROW(backends, forwarding->backend);

	__builtin_memcpy(end->address, backend->address, sizeof(end->address));
	end->port = route_port(forwarding->route);
}

/* Has the packet go to that end, where the method says so. */
static __always_inline int forward_translate(struct hook_context *ctx, struct packet *packet,
					     struct forwarding *forwarding)
{
	struct journey *journey = maps_journey();
	struct end end = {};

	if (!nat_is_used(forwarding->route))
		return REASON_OK;
	forward_end(forwarding, &end);
	if (!nat_is_to_be_mended(ctx, packet, false, end.port))
		return nat_replace(ctx, packet, false, &end);
	journey->packet = *packet;
	journey->forwarding = *forwarding;
	journey->is_answer = 0;
	programs.call(ctx, PROGRAM_MEND);
	return REASON_INTERNAL;
}

/* On to the program for fullnat, with a packet whose way is settled. */
static __always_inline int forward_call_fullnat(struct hook_context *ctx, struct packet *packet,
						struct forwarding *forwarding)
{
	struct journey *journey = maps_journey();

	journey->packet = *packet;
	journey->forwarding = *forwarding;
	if (packet_is_ipv6(packet))
		programs.call(ctx, PROGRAM_FULLNAT6);
	else
		programs.call(ctx, PROGRAM_FULLNAT4);
	return REASON_INTERNAL;
}

/* Counts a packet that goes up, as its backend is this host. */
static __always_inline int forward_count_here(struct hook_context *ctx, struct packet *packet,
					      struct lane *lane, struct forwarding *forwarding)
{
	u32 segments = hook_segments(ctx);

	stats_count_packet(packet->cpu, forwarding->service, lane, segments,
			   packet->bytes + (segments - 1) * packet->headers);
	return REASON_LOCAL_BACKEND;
}

/* The backend is this host: its packet goes up, to the backend's end where the method says so. */
static __always_inline int forward_here(struct hook_context *ctx, struct packet *packet,
					struct lane *lane, struct forwarding *forwarding)
{
	int reason = forward_translate(ctx, packet, forwarding);

	return reason ? reason : forward_count_here(ctx, packet, lane, forwarding);
}

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
		.route = fullnat_is_used(forwarding->route) ? route_from(forwarding->route, 0) :
							      forwarding->route,
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

/* Has the driver send the packet, which has the hop's head by now. */
static __always_inline void forward_go(struct packet *packet, struct hop *hop)
{
	/* the hop may have been found by a packet of another interface */
	packet->action = hop->turning == packet->ifindex ? HOOK_TX : bpf_redirect(hop->ifindex, 0);
}

/* Has the driver send the packet. */
static __always_inline int forward_leave(struct hook_context *ctx, struct packet *packet,
					 struct hop *hop)
{
	int reason = hop->road == ROAD_TAGGED ? forward_rewrite(ctx, packet, hop, TAGGED_HEAD) :
						forward_rewrite(ctx, packet, hop, PLAIN_HEAD);

	if (!reason)
		forward_go(packet, hop);
	return reason;
}

/* The same of a packet that gets another IP header. */
static __always_inline int forward_leave_wrapped(struct hook_context *ctx, struct packet *packet,
						 struct hop *hop, u32 id)
{
	int reason = hop->road == ROAD_TAGGED ? tunnel_rewrite(ctx, packet, hop, TAGGED_HEAD, id) :
						tunnel_rewrite(ctx, packet, hop, PLAIN_HEAD, id);

	if (!reason)
		forward_go(packet, hop);
	return reason;
}

/* Counts a packet that was sent to its backend. */
static __always_inline int forward_count(struct packet *packet, struct lane *lane,
					 struct forwarding *forwarding)
{
	stats_count_packet(packet->cpu, forwarding->service, lane, 1, packet->bytes);
	return forwarding->reason;
}

/* Sends the packet to its backend; by tunnel, only what is plain. */
static __always_inline int forward_transmit(struct hook_context *ctx, struct packet *packet,
					    struct lane *lane, struct forwarding *forwarding)
{
	int reason = forward_translate(ctx, packet, forwarding);

	if (reason)
		return reason;
	reason = tunnel_is_used(forwarding->route) ?
			 forward_leave_wrapped(ctx, packet, &lane->hop, forwarding->backend) :
			 forward_leave(ctx, packet, &lane->hop);
	return reason ? reason : forward_count(packet, lane, forwarding);
}

/*
 * REASON_OK where XDP is to send the packet, of so many bytes on the road, by the lane's hop;
 * REASON_LOCAL_BACKEND where it is to go up.
 */
static __always_inline int forward_settle(struct hook_context *ctx, struct packet *packet,
					  struct lane *lane, struct forwarding *forwarding,
					  u64 bytes)
{
	struct hop *hop = &lane->hop;
	bool fresh = false;
	int reason;

	if (forwarding->now >= hop->until) {
		reason = nexthop_resolve(ctx, hop, forwarding->backend, forwarding->now);
		if (reason)
			return reason;
		fresh = true;
	}
	/* generic XDP sees frames that TC will have cut to size again: only TC can tell */
	if (hop->road == ROAD_TC || bytes > hop->mtu)
		return forward_hand_over(ctx, packet, forwarding);
	if (fresh || forwarding->probe_interval == NEXTHOP_LIFE)
		if (nexthop_is_probe_due(ROW(nexthop_probes, forwarding->backend), forwarding->now,
					 forwarding->probe_interval))
			return forward_hand_over(ctx, packet, forwarding);
	return REASON_OK;
}

/* Sends the packet to a backend; counted here, or by TC where it takes the kernel's road. */
static __always_inline int forward_send(struct hook_context *ctx, struct packet *packet,
					struct forwarding *forwarding)
{
	struct lane *lane = CPU_ROW(lanes, packet->cpu, forwarding->backend);
	int reason;

	fragment_note(packet, forwarding, NULL);
	if (packet->ttl < LEAST_TTL)
		return REASON_TTL_EXCEEDED;
	if (tunnel_is_used(forwarding->route))
		return tunnel_call(ctx, packet, forwarding);
	if (fullnat_is_used(forwarding->route))
		return forward_call_fullnat(ctx, packet, forwarding);
	if (nat_is_used(forwarding->route) &&
	    (nat_is_for_kernel(ctx, packet) || expect_is_control(forwarding->route)))
		return forward_hand_over(ctx, packet, forwarding);
	reason = forward_settle(ctx, packet, lane, forwarding, packet->bytes);
	if (reason == REASON_LOCAL_BACKEND)
		return forward_here(ctx, packet, lane, forwarding);
	return reason ? reason : forward_transmit(ctx, packet, lane, forwarding);
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

/* Leaves a frame with a plain Ethernet header and one hop less to go. */
static __always_inline int forward_prepare(struct hook_context *ctx, struct packet *packet)
{
	if (forward_untag(ctx, packet))
		return REASON_INTERNAL;
	return packet_age(ctx, packet, PLAIN_HEAD);
}

/* Sends the packet by the kernel's neighbour table, which keeps it while it asks. */
static __always_inline int forward_redirect(struct hook_context *ctx, struct packet *packet,
					    u32 ifindex, struct neighbour_parameters *neighbour)
{
	if (forward_prepare(ctx, packet))
		return REASON_INTERNAL;
	packet->action = redirect_neighbour(ifindex, neighbour, sizeof(*neighbour), 0);
	return REASON_OK;
}

/* Whatever there is to find out, the kernel is asked for each packet. */
static __always_inline bool forward_is_plain(struct packet *packet, struct hop *hop, u64 now)
{
	return true;
}

/* The packet is larger than the road takes, for which it grows by so many bytes. */
static __always_inline bool forward_is_too_big(struct hook_context *ctx, struct packet *packet,
					       u32 mtu, u32 more)
{
	u32 least = packet_is_ipv6(packet) ? IPV6_LEAST_MTU : IPV4_LEAST_MTU;

	if (!mtu || hook_segment_bytes(ctx, packet->bytes, packet->headers) + more <= mtu)
		return false;
	/* of a road that takes less than the least its sender is not told */
	packet->mtu = !more || mtu >= more + least ? mtu - more : 0;
	return true;
}

/* Counts a packet that was sent to its backend. */
static __always_inline int forward_count(struct hook_context *ctx, struct packet *packet,
					 struct lane *lane, struct forwarding *forwarding,
					 u32 segments)
{
	stats_count_packet(packet->cpu, forwarding->service, lane, segments,
			   packet->bytes + (segments - 1) * packet->headers);
	return forwarding->reason;
}

/* Sends the packet to a backend. */
static __always_inline int forward_transmit(struct hook_context *ctx, struct packet *packet,
					    struct lane *lane, struct forwarding *forwarding)
{
	struct neighbour_parameters neighbour = {};
	u32 ifindex = 0, mtu = 0, segments = hook_segments(ctx);
	bool is_cut;
	int reason;

	if (packet->ttl < LEAST_TTL)
		return REASON_TTL_EXCEEDED;
	if (tunnel_is_used(forwarding->route))
		return tunnel_call(ctx, packet, forwarding);
	if (fullnat_is_used(forwarding->route))
		return forward_call_fullnat(ctx, packet, forwarding);
	reason = nexthop_route(ctx, forwarding->backend, &ifindex, &mtu, &neighbour);
	if (reason == REASON_LOCAL_BACKEND)
		return forward_here(ctx, packet, lane, forwarding);
	if (reason)
		return reason;
	is_cut = forward_is_too_big(ctx, packet, mtu, 0);
	if (is_cut && !cut_may(ctx, packet))
		return REASON_TOO_BIG;
	reason = forward_translate(ctx, packet, forwarding);
	if (reason == REASON_OK && is_cut)
		return forward_prepare(ctx, packet) ? REASON_INTERNAL :
						      cut_call(ctx, packet, forwarding);
	if (reason == REASON_OK)
		reason = forward_redirect(ctx, packet, ifindex, &neighbour);
	return reason ? reason : forward_count(ctx, packet, lane, forwarding, segments);
}

/* On to the program that reads what the client says on an FTP control connection. */
static __always_inline int forward_call_ftp(struct hook_context *ctx, struct packet *packet,
					    struct forwarding *forwarding)
{
	struct journey *journey = maps_journey();

	journey->packet = *packet;
	journey->forwarding = *forwarding;
	journey->is_answer = 0;
	if (packet_is_ipv6(packet))
		programs.call(ctx, PROGRAM_FTP6);
	else
		programs.call(ctx, PROGRAM_FTP4);
	return REASON_INTERNAL;
}

/* Sends the packet to a backend. */
static __always_inline int forward_send(struct hook_context *ctx, struct packet *packet,
					struct forwarding *forwarding)
{
	struct lane *lane = CPU_ROW(lanes, packet->cpu, forwarding->backend);

	fragment_note(packet, forwarding, NULL);
	if (expect_is_control(forwarding->route))
		return forward_call_ftp(ctx, packet, forwarding);
	return forward_transmit(ctx, packet, lane, forwarding);
}

#endif

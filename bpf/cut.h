/* Cuts IPv4 packets that are too large for their road and may be cut: TC, as XDP cannot send twice. */

#if !HOOK_IS_XDP

/* The packet's sender lets it be cut.  A train of segments is not one packet. */
static __always_inline bool cut_may(struct hook_context *ctx, struct packet *packet)
{
	__be16 flags;

	if (packet_is_ipv6(packet) || hook_segments(ctx) > 1)
		return false;
	if (hook_load(ctx, packet->ip_offset + IPV4_FRAGMENT_FIELD, &flags, sizeof(flags),
		      sizeof(flags)))
		return false;
	return !(flags & IPV4_DO_NOT_FRAGMENT);
}

/* On to the program that sends the frame, which is as it is to leave, in parts. */
static __always_inline int cut_call(struct hook_context *ctx, struct packet *packet,
				    struct forwarding *forwarding)
{
	struct journey *journey = maps_journey();

	journey->packet = *packet;
	journey->forwarding = *forwarding;
	journey->cut.total = 0;
	programs.call(ctx, PROGRAM_CUT);
	return REASON_INTERNAL;
}

#endif

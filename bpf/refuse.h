/* What becomes of a packet that goes nowhere: its client is told, or the host has it after all. */

/* What comes to the FTP service by another port than its own is the host's, as under IPVS. */
static __always_inline bool refuse_is_ftp_data(struct journey *journey)
{
	struct service_config *config = ROW(service_configs, journey->config);

	return journey->settings & SETTING_FTP_SERVICE && config->flags & SERVICE_FTP &&
	       packet_virtual_port(&journey->packet) != FTP_PORT;
}

/* The packet's address is another machine's, to which the host may forward it. */
static __always_inline bool refuse_is_bypass(struct hook_context *ctx, struct journey *journey)
{
	struct service_config *config = ROW(service_configs, journey->config);

	return journey->settings & SETTING_CACHE_BYPASS && config->flags & SERVICE_BY_MARK &&
	       icmp_has_ends(&journey->packet) && !nexthop_is_local(ctx, &journey->packet);
}

/* Why the packet goes nowhere, or up. */
static __always_inline int refuse_settle(struct hook_context *ctx, struct journey *journey)
{
	int reason = journey->reason;

	if (reason != REASON_NO_BACKEND)
		return reason;
	if (refuse_is_ftp_data(journey))
		return REASON_FTP_NO_BACKEND;
	return refuse_is_bypass(ctx, journey) ? REASON_BYPASSED : reason;
}

#if HOOK_IS_XDP

/* Sends the answer back by the interface that the packet came by; TC does where XDP cannot. */
static __always_inline int refuse_send(struct hook_context *ctx, struct journey *journey,
				       int reason)
{
	struct packet *packet = &journey->packet;
	struct handover handover = { .magic = HANDOVER_MAGIC,
				     .reason = reason,
				     .mark = journey->mark };

	if (!(packet->interface & INTERFACE_TRANSMIT))
		return hook_hand_over(ctx, &handover) ? REASON_NO_METADATA : REASON_HANDED_OVER;
	if (!icmp_answer(ctx, packet, reason))
		packet->action = packet->interface & INTERFACE_NO_TX ?
					 bpf_redirect(packet->ifindex, 0) :
					 HOOK_TX;
	return reason;
}

#else

/* Sends the answer back by the interface that the packet came by. */
static __always_inline int refuse_send(struct hook_context *ctx, struct journey *journey,
				       int reason)
{
	struct packet *packet = &journey->packet;

	if (!icmp_answer(ctx, packet, reason))
		packet->action = bpf_redirect(packet->ifindex, 0);
	return reason;
}

#endif

/* The reason under which the packet is counted; one that is answered has an action. */
static __always_inline int refuse_packet_of(struct hook_context *ctx, struct journey *journey)
{
	int reason = refuse_settle(ctx, journey);

	return exit_is_refusal(reason) ? refuse_send(ctx, journey, reason) : reason;
}

/* The programs: the packet's journey as a list of calls, and the one exit. */
#include <uapi/linux/bpf.h>
#include <uapi/linux/if_ether.h>
#include <uapi/linux/in.h>
#include <uapi/linux/ip.h>
#include <uapi/linux/ipv6.h>
#include <uapi/linux/tcp.h>
#include <uapi/linux/udp.h>
#include <uapi/linux/pkt_cls.h>

#include "config.h"
#include "types.h"
#include "word.h"
#include "hook.h"
#include "hash.h"
#include "sctp.h"
#include "checksum.h"
#include "packet.h"
#include "journey.h"
#include "maps.h"
#include "clock.h"
#include "stats.h"
#include "mark.h"
#include "service.h"
#include "transitions.h"
#include "state.h"
#include "limit.h"
#include "backend.h"
#include "expiry.h"
#include "table.h"
#include "share.h"
#include "call.h"
#include "persist.h"
#include "expect.h"
#include "connection.h"
#include "source.h"
#include "age.h"
#include "schedule.h"
#include "least.h"
#include "schedule_hash.h"
#include "schedule_twos.h"
#include "schedule_local.h"
#include "schedule_lblcr.h"
#include "nexthop.h"
#include "classify.h"
#include "sum.h"
#include "nat.h"
#include "fragment.h"
#include "tunnel.h"
#include "cut.h"
#include "forward.h"
#include "answer.h"
#include "exit.h"
#include "wrap.h"
#include "fragments.h"
#include "icmp.h"
#include "refuse.h"
#include "entry.h"
#include "fullnat.h"
#include "quote.h"
#include "follow.h"
#include "learn.h"
#include "ftp_data.h"
#include "ftp.h"
#include "connect.h"
#include "new.h"

#if HOOK_IS_XDP

/* The XDP entry. */
int entry(struct hook_context *ctx)
{
	return entry_packet(ctx);
}

#else

/* The TC entry: the end of XDP's road, or the whole of it where there is no XDP. */
int entry(struct hook_context *ctx)
{
	u32 flags = maps_interface(hook_ifindex(ctx))->flags;
	struct handover *handover;

	if (flags & INTERFACE_GENERIC && hook_repair(ctx))
		return HOOK_PASS;
	handover = (void *)HOOK_LOAD(ctx, data_meta);
	if ((void *)(handover + 1) <= (void *)HOOK_LOAD(ctx, data) &&
	    handover->magic == HANDOVER_MAGIC)
		return entry_handed_over(ctx, handover);
	if (flags & INTERFACE_XDP && !(flags & INTERFACE_NO_METADATA))
		return HOOK_PASS;
	return entry_packet(ctx);
}

#endif

/* The new-connection program: mark, service, persistence entry; then a scheduler or connect. */
int new_connection(struct hook_context *ctx)
{
	struct journey *journey = maps_journey();

	return exit_with(ctx, new_decide(ctx, journey), &journey->packet, journey->mark);
}

/* The ordered mark rules: a long list, on which the verifier would follow all that comes after. */
int mark_packet(struct hook_context *ctx)
{
	struct journey *journey = maps_journey();

	if (!mark_by_rules(ctx, journey))
		programs.call(ctx, PROGRAM_RULES);
	programs.call(ctx, PROGRAM_NEW);
	return exit_with(ctx, REASON_INTERNAL, &journey->packet, 0);
}

/* The program for a packet that looked like the first of its connection and is not. */
int known_connection(struct hook_context *ctx)
{
	struct journey *journey = maps_journey();
	int reason = entry_known(ctx, &journey->packet, journey->now);

	if (reason)
		return exit_or_refuse(ctx, reason, journey);
	journey->unknown = 1;
	programs.call(ctx, PROGRAM_NEW);
	return exit_with(ctx, REASON_INTERNAL, &journey->packet, 0);
}

/* The ageing program: tables that are about to grow, or counts that a choice goes by. */
int age_tables(struct hook_context *ctx)
{
	struct journey *journey = maps_journey();

	age_due(journey);
	if (journey->due)
		programs.call(ctx, PROGRAM_AGE);
	if (!journey->catch_ups) {
		programs.call(ctx, PROGRAM_CONNECT);
		return exit_with(ctx, REASON_INTERNAL, &journey->packet, journey->mark);
	}
	if (--journey->catch_ups &&
	    age_is_overdue(connection_table(&journey->packet), journey->now)) {
		journey->due = DUE_CONNECTIONS;
		programs.call(ctx, PROGRAM_AGE);
	}
	journey->catch_ups = 0;
	programs.call(ctx, PROGRAM_SCHEDULER + journey->scheduler);
	return exit_with(ctx, REASON_INTERNAL, &journey->packet, journey->mark);
}

/* The bind program: the entry of a persistent client that has none yet, or whose entry is over. */
int bind_client(struct hook_context *ctx)
{
	struct journey *journey = maps_journey();
	int reason;

	connect_recheck(ctx, journey);
	reason = connect_bind(ctx, journey);
	if (reason || STOP_AFTER == STAGE_BOUND)
		return exit_with(ctx, reason, &journey->packet, journey->mark);
	connect_go(ctx, journey);
	return exit_with(ctx, REASON_INTERNAL, &journey->packet, journey->mark);
}

/* The connect program: connection, first packet on its way. */
int connect_backend(struct hook_context *ctx)
{
	struct journey *journey = maps_journey();
	int reason;

	connect_recheck(ctx, journey);
	if (STOP_AFTER == STAGE_AGED)
		return HOOK_PASS;
	reason = connect_create(ctx, journey);
	if (STOP_AFTER == STAGE_CREATED)
		return HOOK_PASS;
	if (reason == REASON_OK)
		reason = connect_send(ctx, journey);
	return exit_or_refuse(ctx, reason, journey);
}

/* The program for a service that has as many entries as it may: a lesser one of its own goes. */
int make_room(struct hook_context *ctx)
{
	struct journey *journey = maps_journey();

	connect_make_room(ctx, journey);
	return exit_with(ctx, REASON_INTERNAL, &journey->packet, journey->mark);
}

/* The program for a packet that goes nowhere: what tells its client so goes out, or nothing. */
int refuse_packet(struct hook_context *ctx)
{
	struct journey *journey = maps_journey();

	return exit_with(ctx, refuse_packet_of(ctx, journey), &journey->packet, journey->mark);
}

/* After a scheduler: chosen, to be gone on with, or nobody. */
static __always_inline int schedule_exit(struct hook_context *ctx, struct journey *journey,
					 int reason, u32 scheduler)
{
	if (STOP_AFTER == STAGE_SCHEDULED && reason != SCHEDULE_AGAIN)
		return HOOK_PASS;
	if (reason == REASON_OK && journey->persistent)
		programs.call(ctx, PROGRAM_BIND);
	else if (reason == REASON_OK)
		connect_go(ctx, journey);
	else if (reason == SCHEDULE_AGAIN)
		programs.call(ctx, PROGRAM_SCHEDULER + scheduler);
	else
		return exit_or_refuse(ctx, reason, journey);
	return exit_with(ctx, REASON_INTERNAL, &journey->packet, journey->mark);
}

/* The version of the service that the journey is on. */
static __always_inline struct service_config *schedule_config(struct journey *journey)
{
	return ROW(service_configs, journey->config);
}

int scheduler_rr(struct hook_context *ctx)
{
	struct journey *journey = maps_journey();
	struct service_config *config = schedule_config(journey);

	return schedule_exit(ctx, journey, schedule_rr(journey, config), SCHEDULER_RR);
}

int scheduler_wrr(struct hook_context *ctx)
{
	struct journey *journey = maps_journey();
	struct service_config *config = schedule_config(journey);

	return schedule_exit(ctx, journey, schedule_wrr(journey, config), SCHEDULER_WRR);
}

int scheduler_wlc(struct hook_context *ctx)
{
	struct journey *journey = maps_journey();
	struct service_config *config = schedule_config(journey);

	return schedule_exit(ctx, journey, schedule_wlc(journey, config), SCHEDULER_WLC);
}

int scheduler_sh(struct hook_context *ctx)
{
	struct journey *journey = maps_journey();
	struct service_config *config = schedule_config(journey);

	return schedule_exit(ctx, journey, schedule_sh(journey, config), SCHEDULER_SH);
}

int scheduler_lc(struct hook_context *ctx)
{
	struct journey *journey = maps_journey();
	struct service_config *config = schedule_config(journey);

	return schedule_exit(ctx, journey, schedule_lc(journey, config), SCHEDULER_LC);
}

int scheduler_sed(struct hook_context *ctx)
{
	struct journey *journey = maps_journey();
	struct service_config *config = schedule_config(journey);

	return schedule_exit(ctx, journey, schedule_sed(journey, config), SCHEDULER_SED);
}

int scheduler_nq(struct hook_context *ctx)
{
	struct journey *journey = maps_journey();
	struct service_config *config = schedule_config(journey);

	return schedule_exit(ctx, journey, schedule_nq(journey, config), SCHEDULER_NQ);
}

int scheduler_fo(struct hook_context *ctx)
{
	struct journey *journey = maps_journey();
	struct service_config *config = schedule_config(journey);

	return schedule_exit(ctx, journey, schedule_fo(journey, config), SCHEDULER_FO);
}

int scheduler_ovf(struct hook_context *ctx)
{
	struct journey *journey = maps_journey();
	struct service_config *config = schedule_config(journey);

	return schedule_exit(ctx, journey, schedule_ovf(journey, config), SCHEDULER_OVF);
}

int scheduler_dh(struct hook_context *ctx)
{
	struct journey *journey = maps_journey();
	struct service_config *config = schedule_config(journey);

	return schedule_exit(ctx, journey, schedule_dh(journey, config), SCHEDULER_DH);
}

int scheduler_mh(struct hook_context *ctx)
{
	struct journey *journey = maps_journey();
	struct service_config *config = schedule_config(journey);

	return schedule_exit(ctx, journey, schedule_mh(journey, config), SCHEDULER_MH);
}

int scheduler_twos(struct hook_context *ctx)
{
	struct journey *journey = maps_journey();
	struct service_config *config = schedule_config(journey);

	return schedule_exit(ctx, journey, schedule_twos(journey, config), SCHEDULER_TWOS);
}

/* What is of another protocol, once the families have parted: perhaps it quotes a known flow. */
static __always_inline int quote_exit(struct hook_context *ctx, struct packet *packet)
{
	struct journey *journey = maps_journey();
	int reason = journey->seen ? quote_finish(ctx, packet, &journey->forwarding) :
				     quote_packet_of(ctx, packet);

	return exit_with(ctx, reason, packet, 0);
}

int quote_packet4(struct hook_context *ctx)
{
	struct packet packet = maps_journey()->packet;

	packet.type = ETHERNET_IPV4;
	packet.fragment = 0;
	return quote_exit(ctx, &packet);
}

int quote_packet6(struct hook_context *ctx)
{
	struct packet packet = maps_journey()->packet;

	packet.type = ETHERNET_IPV6;
	packet.fragment = 0;
	return quote_exit(ctx, &packet);
}

/* The programs for fragments, of each family. */
int follow_packet4(struct hook_context *ctx)
{
	struct packet packet = maps_journey()->packet;

	packet.type = ETHERNET_IPV4;
	packet.ip_offset = packet_network(&packet);
	return follow_exit(ctx, &packet);
}

int follow_packet6(struct hook_context *ctx)
{
	struct packet packet = maps_journey()->packet;

	packet.type = ETHERNET_IPV6;
	packet.ip_offset = packet_network(&packet);
	return follow_exit(ctx, &packet);
}

#if FEATURE_IPV4 && !HOOK_IS_XDP

/* The program that sends a packet in fragments, until it comes to the last. */
int cut_packet(struct hook_context *ctx)
{
	return cut_exit(ctx, maps_journey());
}

#endif

#if FEATURE_TUNNEL

/* The programs for packets to a backend by tunnel, of each family. */
int wrap_packet4(struct hook_context *ctx)
{
	struct packet packet = maps_journey()->packet;

	packet.type = ETHERNET_IPV4;
	return wrap_exit(ctx, &packet);
}

int wrap_packet6(struct hook_context *ctx)
{
	struct packet packet = maps_journey()->packet;

	packet.type = ETHERNET_IPV6;
	return wrap_exit(ctx, &packet);
}

/* The program for an error about a tunnel's own packet, which then goes up. */
int learn_path(struct hook_context *ctx)
{
	struct journey *journey = maps_journey();

	learn_mtu(ctx, journey);
	return exit_with(ctx, REASON_OTHER_PROTOCOL, &journey->packet, 0);
}

/* The program that sums up a packet whose tunnel wants that; back to the one for tunnels. */
int sum_packet(struct hook_context *ctx)
{
	struct journey *journey = maps_journey();

	wrap_sum_up(ctx, journey);
	return exit_with(ctx, REASON_INTERNAL, &journey->packet, journey->mark);
}

#endif

#if FEATURE_NAT

/* The program for what a backend by nat may have sent back. */
int answer_packet(struct hook_context *ctx)
{
	struct journey *journey = maps_journey();
	int reason = answer_packet_of(ctx, &journey->packet, journey->now, journey->seen);

	if (reason)
		return exit_with(ctx, reason, &journey->packet, 0);
	if (FEATURE_FULLNAT && packet_is_ipv6(&journey->packet))
		programs.call(ctx, PROGRAM_RETURN6);
	else if (FEATURE_FULLNAT)
		programs.call(ctx, PROGRAM_RETURN4);
	return entry_other(ctx, journey);
}

/* The program for a packet that nat cannot change without seeing to its port or checksum first. */
int mend_packet(struct hook_context *ctx)
{
	struct journey *journey = maps_journey();
	struct forwarding *forwarding = &journey->forwarding;
	struct packet *packet = &journey->packet;
	u32 port = journey->is_answer ? journey->end.port : route_port(forwarding->route);
	int reason = journey->is_answer ? nat_mend(ctx, packet, true, port) :
					  nat_mend(ctx, packet, false, port);

	if (!reason)
		reason = journey->is_answer ?
				 answer_transmit(ctx, packet, forwarding, &journey->end) :
				 forward_send(ctx, packet, forwarding);
	return exit_or_refuse(ctx, reason, journey);
}

#endif

#if FEATURE_FTP && !HOOK_IS_XDP

/* The programs for what is said on FTP's control connections, of each family. */
int ftp_packet4(struct hook_context *ctx)
{
	struct packet packet = maps_journey()->packet;

	packet.type = ETHERNET_IPV4;
	return ftp_exit(ctx, &packet);
}

int ftp_packet6(struct hook_context *ctx)
{
	struct packet packet = maps_journey()->packet;

	packet.type = ETHERNET_IPV6;
	return ftp_exit(ctx, &packet);
}

/* The one that writes a reply anew, */
int ftp_write_packet(struct hook_context *ctx)
{
	struct journey *journey = maps_journey();
	int reason = ftp_rewrite(ctx, journey);

	if (!reason)
		programs.call(ctx, PROGRAM_FTP_SEND);
	return exit_with(ctx, REASON_INTERNAL, &journey->packet, journey->forwarding.mark);
}

/* and the one that then sends the packet. */
int ftp_send_packet(struct hook_context *ctx)
{
	return ftp_send(ctx, maps_journey());
}

#endif

#if FEATURE_FULLNAT

/* The programs for packets to a backend by fullnat, of each family, */
int fullnat_packet4(struct hook_context *ctx)
{
	struct packet packet = maps_journey()->packet;

	packet.type = ETHERNET_IPV4;
	return fullnat_exit(ctx, &packet);
}

int fullnat_packet6(struct hook_context *ctx)
{
	struct packet packet = maps_journey()->packet;

	packet.type = ETHERNET_IPV6;
	return fullnat_exit(ctx, &packet);
}

/* and those for what comes back. */
int return_packet4(struct hook_context *ctx)
{
	struct packet packet = maps_journey()->packet;

	packet.type = ETHERNET_IPV4;
	return fullnat_return(TABLE_CONNECTIONS4, ctx, &packet);
}

int return_packet6(struct hook_context *ctx)
{
	struct packet packet = maps_journey()->packet;

	packet.type = ETHERNET_IPV6;
	return fullnat_return(TABLE_CONNECTIONS6, ctx, &packet);
}

/* And for errors that quote packets of such connections. */
int quote_fullnat4(struct hook_context *ctx)
{
	struct packet packet = maps_journey()->packet;

	packet.type = ETHERNET_IPV4;
	packet.fragment = 0;
	return quote_fullnat_exit(TABLE_CONNECTIONS4, ctx, &packet);
}

int quote_fullnat6(struct hook_context *ctx)
{
	struct packet packet = maps_journey()->packet;

	packet.type = ETHERNET_IPV6;
	packet.fragment = 0;
	return quote_fullnat_exit(TABLE_CONNECTIONS6, ctx, &packet);
}

#endif

#if FEATURE_NAT && !HOOK_IS_XDP

/* The TC entry for what this host sends: it may be a backend by nat itself. */
int egress(struct hook_context *ctx)
{
	struct packet packet = { .cpu = bpf_get_smp_processor_id() };
	struct journey *journey;

	hook_prepare(ctx);
	if (packet_parse_ethernet(ctx, &packet) || !packet_has_feature(&packet) ||
	    packet_parse(ctx, &packet) || !answer_concerns(&packet))
		return HOOK_PASS;
	journey = maps_journey();
	journey->packet = packet;
	journey->now = clock_now();
	programs.call(ctx, PROGRAM_EGRESS);
	return HOOK_PASS;
}

/* The program for what this host as a backend may have sent: it goes on as from the virtual end. */
int egress_answer(struct hook_context *ctx)
{
	struct journey *journey = maps_journey();
	return exit_egress(ctx, answer_from_here(ctx, &journey->packet, journey->now));
}

#endif

#if FEATURE_SIP

/* The program that looks for a packet's Call-ID, some bytes a run; back to the new connection. */
int find_call(struct hook_context *ctx)
{
	struct journey *journey = maps_journey();

	if (!call_look(ctx, &journey->packet))
		programs.call(ctx, PROGRAM_CALL);
	journey->call = call_search_of(&journey->packet)->state == CALL_FOUND ? CALL_KNOWN :
										CALL_MISSING;
	programs.call(ctx, PROGRAM_NEW);
	return exit_with(ctx, REASON_INTERNAL, &journey->packet, journey->mark);
}

#endif

#if FEATURE_LOCALITY

int scheduler_lblc(struct hook_context *ctx)
{
	struct journey *journey = maps_journey();
	struct service_config *config = schedule_config(journey);

	return schedule_exit(ctx, journey, schedule_lblc(journey, config), SCHEDULER_LBLC);
}

int scheduler_lblcr(struct hook_context *ctx)
{
	struct journey *journey = maps_journey();
	struct service_config *config = schedule_config(journey);

	return schedule_exit(ctx, journey, schedule_lblcr(journey, config), SCHEDULER_LBLCR);
}

#endif

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
#include "packet.h"
#include "journey.h"
#include "maps.h"
#include "clock.h"
#include "stats.h"
#include "mark.h"
#include "service.h"
#include "state.h"
#include "backend.h"
#include "expiry.h"
#include "table.h"
#include "share.h"
#include "persist.h"
#include "connection.h"
#include "age.h"
#include "schedule.h"
#include "nexthop.h"
#include "classify.h"
#include "forward.h"
#include "exit.h"

/* VRRP's virtual MACs, 00:00:5e:00:01:xx and 00:00:5e:00:02:xx, as words. */
#define VRRP_MASK 0x000000ffffffffffULL
#define VRRP_IPV4 0x00000001005e0000ULL
#define VRRP_IPV6 0x00000002005e0000ULL

#if HOOK_IS_XDP

/* The frame is for this host at layer 2. */
static __always_inline bool entry_is_for_host(struct hook_context *ctx, struct packet *packet)
{
	u32 ifindex = packet->ifindex;
	struct interface *interface = interfaces.lookup(&ifindex);
	u64 mac = packet_destination_mac(ctx);
	struct mac_key key = {};

	if (interface) {
		packet->interface = interface->flags;
		if (interface->mac == mac)
			return true;
	}
	if ((mac & VRRP_MASK) == VRRP_IPV4 || (mac & VRRP_MASK) == VRRP_IPV6)
		return true;
	key.mac = mac;
	key.ifindex = packet->ifindex;
	return local_macs.lookup(&key);
}

#else

/* The frame is for this host at layer 2: the kernel has looked already. */
static __always_inline bool entry_is_for_host(struct hook_context *ctx, struct packet *packet)
{
	return ctx->pkt_type == 0;
}

#endif

static __always_inline u64 entry_settings(void)
{
	u32 index = SWITCH_SETTINGS;
	u64 *settings = switches.lookup(&index);

	return settings ? *settings : 0;
}

/* The packet is not to be sent where its connection says; leaves why, or that it is a new one. */
static __always_inline bool entry_is_over(struct packet *packet, struct connection *connection,
					  struct account *account, u64 now, int *reason)
{
	u64 backend = 0, settings;

	if (now < expiry_of_connection(account->seen, account->word)) {
		backend = backend_word(account->backend);
		if (backend && !(packet->flags & TCP_SYN))
			return false;
		settings = entry_settings();
		if (!backend && !(settings & SETTING_EXPIRE_NODEST_CONN)) {
			*reason = REASON_BACKEND_GONE;
			return true;
		}
		if (backend && !connection_is_reused(packet, account->word, backend, settings))
			return false;
	}
	connection_remove(packet_is_ipv6(packet), connection, account, now);
	return true;
}

/* The fast path: a packet of a connection that is known. */
static __always_inline int entry_known(struct hook_context *ctx, struct packet *packet, u64 now)
{
	struct forwarding forwarding = { .now = now, .probe_interval = 2 * NEXTHOP_LIFE };
	struct account account = {};
	struct connection *connection;
	struct seat seat = {};
	int reason = REASON_OK;

	connection = connection_find(packet, &seat);
	if (!connection)
		return STOP_AFTER == STAGE_FOUND ? REASON_NO_SERVICE : REASON_OK;
	connection_read(connection, seat.word, &account);
	if (STOP_AFTER == STAGE_FOUND)
		return REASON_NO_SERVICE;
	if (entry_is_over(packet, connection, &account, now, &reason))
		return reason;
	if (!connection_refresh(packet, connection, &account, now))
		return REASON_OK;
	if (STOP_AFTER == STAGE_REFRESHED)
		return REASON_NO_SERVICE;
	forwarding.backend = (u32)account.backend;
	forwarding.service = account.service;
	forwarding.mark = account.mark;
	return forward_send(ctx, packet, &forwarding);
}

/* Starts the journey of a packet that no connection knows. */
static __always_inline void entry_begin(struct packet *packet, u64 now)
{
	u32 zero = 0;
	struct journey *journey = journeys.lookup(&zero);

	if (!journey)
		return;
	/* the rest is written before it is read */
	journey->packet = *packet;
	journey->now = now;
	journey->settings = entry_settings();
	journey->attempts = 0;
	journey->backend = 0;
	journey->scan = 0;
	journey->controlled = 0;
	journey->bound = 0;
	journey->catch_ups = 0;
	journey->mark = 0;
	journey->service = 0;
	journey->persistence = 0;
	journey->verdict = 0;
}

static __always_inline int entry_packet(struct hook_context *ctx)
{
	struct packet packet = {};
	u64 now;
	int reason;

	hook_prepare(ctx);
	reason = packet_parse(ctx, &packet);
	if (reason)
		return exit_with(ctx, reason, &packet, 0);
	if (STOP_AFTER == STAGE_PARSED)
		return HOOK_PASS;
	if (!entry_is_for_host(ctx, &packet))
		return exit_with(ctx, REASON_OTHER_HOST, &packet, 0);
	if (!classify_concerns(ctx, &packet))
		return exit_with(ctx, REASON_NO_SERVICE, &packet, 0);
	if (STOP_AFTER == STAGE_CONCERNED)
		return HOOK_PASS;
	now = clock_now();
	reason = entry_known(ctx, &packet, now);
	if (reason)
		return exit_with(ctx, reason, &packet, 0);
	entry_begin(&packet, now);
	if (STOP_AFTER == STAGE_BEGUN)
		return HOOK_PASS;
	programs.call(ctx, PROGRAM_NEW);
	return exit_with(ctx, REASON_INTERNAL, &packet, 0);
}

#if HOOK_IS_XDP

/* The XDP entry. */
int entry(struct hook_context *ctx)
{
	return entry_packet(ctx);
}

#else

/* Finishes what XDP handed over. */
static __always_inline int entry_handed_over(struct hook_context *ctx, struct handover *handover)
{
	struct forwarding forwarding = { .backend = handover->backend,
					 .service = handover->service };
	struct packet packet = {};
	u32 reason = handover->reason, mark = handover->mark;

	if (reason != REASON_FORWARDED)
		return exit_with(ctx, reason, &packet, mark);
	hook_prepare(ctx);
	if (packet_parse(ctx, &packet))
		return exit_with(ctx, REASON_INTERNAL, &packet, 0);
	return exit_with(ctx, forward_send(ctx, &packet, &forwarding), &packet, 0);
}

/* The TC entry: the end of XDP's road, or the whole of it where there is no XDP. */
int entry(struct hook_context *ctx)
{
	u32 ifindex = hook_ifindex(ctx);
	struct interface *interface = interfaces.lookup(&ifindex);
	struct handover *handover;

	if (interface && interface->flags & INTERFACE_GENERIC && hook_repair(ctx))
		return HOOK_PASS;
	handover = (void *)(long)ctx->data_meta;
	if ((void *)(handover + 1) <= (void *)(long)ctx->data && handover->magic == HANDOVER_MAGIC)
		return entry_handed_over(ctx, handover);
	if (interface && interface->flags & INTERFACE_XDP &&
	    !(interface->flags & INTERFACE_NO_METADATA))
		return HOOK_PASS;
	return entry_packet(ctx);
}

#endif

/* The table that the packet's connection belongs in. */
static __always_inline u32 new_table(struct packet *packet)
{
	return packet_is_ipv6(packet) ? TABLE_CONNECTIONS6 : TABLE_CONNECTIONS4;
}

/* A persistent client's entry gives the backend, else the scheduler will. */
static __always_inline int new_choose(struct hook_context *ctx, struct journey *journey)
{
	struct service_config *config = service_configs.lookup(&journey->config);

	if (!config)
		return REASON_INTERNAL;
	journey->persistent = config->flags & SERVICE_PERSISTENT;
	if (journey->persistent)
		persist_choose(journey, config);
	if (STOP_AFTER == STAGE_PERSISTENT)
		return REASON_NO_SERVICE;
	if (journey->backend)
		programs.call(ctx, PROGRAM_CONNECT);
	journey->scheduler = config->scheduler;
	if (config->scheduler == SCHEDULER_WLC &&
	    age_is_overdue(new_table(&journey->packet), journey->now))
		programs.call(ctx, PROGRAM_CATCH_UP);
	programs.call(ctx, PROGRAM_SCHEDULER + config->scheduler);
	return REASON_INTERNAL;
}

static __always_inline int new_decide(struct hook_context *ctx, struct journey *journey)
{
	struct packet *packet = &journey->packet;
	int reason = classify_packet(ctx, journey);

	if (reason || STOP_AFTER == STAGE_CLASSIFIED)
		return reason ? reason : REASON_NO_SERVICE;
	if (!packet_is_opening(packet))
		return REASON_NOT_OPENING;
	if (packet_client_port(packet) == FTP_DATA_PORT)
		return REASON_SOURCE_PORT_20;
	if (journey->settings & SETTING_REQUIRE_LOCAL && !classify_is_local(ctx, journey))
		return REASON_NOT_LOCAL;
	if (STOP_AFTER == STAGE_LOCAL)
		return REASON_NO_SERVICE;
	return new_choose(ctx, journey);
}

/* The new-connection program: mark, service, persistence entry; then a scheduler or connect. */
int new_connection(struct hook_context *ctx)
{
	u32 zero = 0;
	struct journey *journey = journeys.lookup(&zero);

	if (!journey)
		return HOOK_PASS;
	return exit_with(ctx, new_decide(ctx, journey), &journey->packet, journey->mark);
}

/* The catch-up program: brings counts down before a choice by load, where nothing else has. */
int catch_up(struct hook_context *ctx)
{
	u32 zero = 0;
	struct journey *journey = journeys.lookup(&zero);
	bool ipv6;

	if (!journey)
		return HOOK_PASS;
	ipv6 = packet_is_ipv6(&journey->packet);
	if (ipv6)
		age_catch_up(TABLE_CONNECTIONS6, journey->now);
	else
		age_catch_up(TABLE_CONNECTIONS4, journey->now);
	if (++journey->catch_ups < CATCH_UP_RUNS &&
	    age_is_overdue(new_table(&journey->packet), journey->now))
		programs.call(ctx, PROGRAM_CATCH_UP);
	programs.call(ctx, PROGRAM_SCHEDULER + journey->scheduler);
	return exit_with(ctx, REASON_INTERNAL, &journey->packet, journey->mark);
}

/* The service is as it was when the decision began; if not, the decision starts over. */
static __always_inline void connect_recheck(struct hook_context *ctx, struct journey *journey)
{
	u64 *word = service_switches.lookup(&journey->service);

	if (journey->controlled || (word && *word == journey->service_switch))
		return;
	if (journey->attempts++ >= DECISION_ATTEMPTS)
		return;
	journey->scan = 0;
	journey->best = 0;
	journey->backend = 0;
	programs.call(ctx, PROGRAM_NEW);
}

/* Another CPU was at the same slot: once more, and not for ever. */
static __always_inline void connect_again(struct hook_context *ctx, struct journey *journey,
					  int reason, u32 program)
{
	if (reason == REASON_BUSY && journey->attempts++ < DECISION_ATTEMPTS)
		programs.call(ctx, program);
}

/* The bind program: the entry of a persistent client that has none yet, or whose entry is over. */
int bind_client(struct hook_context *ctx)
{
	u32 zero = 0, table, row;
	struct journey *journey = journeys.lookup(&zero);
	struct service_config *config;
	int reason = REASON_INTERNAL;

	if (!journey)
		return HOOK_PASS;
	connect_recheck(ctx, journey);
	row = journey->config;
	config = service_configs.lookup(&row);
	if (!config)
		return exit_with(ctx, reason, &journey->packet, journey->mark);
	table = packet_is_ipv6(&journey->packet) ? TABLE_PERSISTENCE6 : TABLE_PERSISTENCE4;
	if (!share_take(table, journey->service))
		programs.call(ctx, PROGRAM_BIND_ROOM);
	reason = persist_bind(journey, config);
	if (STOP_AFTER == STAGE_BOUND)
		return HOOK_PASS;
	connect_again(ctx, journey, reason, PROGRAM_BIND);
	/* without room for an entry the client is served all the same, and the want counted */
	if (reason == REASON_TABLE_FULL)
		stats_count_reason(reason, 1);
	else if (reason)
		return exit_with(ctx, reason, &journey->packet, journey->mark);
	programs.call(ctx, PROGRAM_CONNECT);
	return exit_with(ctx, REASON_INTERNAL, &journey->packet, journey->mark);
}

/* The program for a service that has as many persistence entries as it may: a lesser one goes. */
int bind_room(struct hook_context *ctx)
{
	u32 zero = 0;
	struct journey *journey = journeys.lookup(&zero);
	bool room;

	if (!journey)
		return HOOK_PASS;
	if (packet_is_ipv6(&journey->packet))
		room = age_make_room(TABLE_PERSISTENCE6, journey->client_hash, journey->service,
				     journey->now);
	else
		room = age_make_room(TABLE_PERSISTENCE4, journey->client_hash, journey->service,
				     journey->now);
	connect_again(ctx, journey, room ? REASON_BUSY : REASON_OK, PROGRAM_BIND);
	stats_count_reason(REASON_TABLE_FULL, 1);
	programs.call(ctx, PROGRAM_CONNECT);
	return exit_with(ctx, REASON_INTERNAL, &journey->packet, journey->mark);
}

/* Takes back what the persistence entry was told of a connection that came to nothing. */
static __always_inline void connect_unbind(struct journey *journey)
{
	struct packet *packet = &journey->packet;
	u32 table = packet_is_ipv6(packet) ? TABLE_PERSISTENCE6 : TABLE_PERSISTENCE4;
	struct persistence *entry;

	if (!journey->controlled)
		return;
	entry = persist_at(table, (u32)journey->persistence);
	if (entry)
		persist_count(entry, journey->persistence, -1,
			      state_is_lasting(state_first(packet)) ? -1 : 0);
}

/* Leaves OK where the packet may go, with a connection or, for want of room, without one. */
static __always_inline int connect_create(struct hook_context *ctx, struct journey *journey)
{
	int reason = connection_create(journey);

	connect_again(ctx, journey, reason, PROGRAM_CONNECT);
	if (reason == REASON_OK) {
		stats_count_connection(journey->service, (u32)journey->backend);
		return REASON_OK;
	}
	connect_unbind(journey);
	if (reason == REASON_TABLE_FULL)
		stats_count_reason(reason, 1);
	return reason == REASON_BUSY ? reason : REASON_OK;
}

/* Ages the tables that have grown: counts of expired entries fall without a daemon. */
static __always_inline void connect_age(struct journey *journey)
{
	bool ipv6 = packet_is_ipv6(&journey->packet);

	if (ipv6)
		age_behind_hand(TABLE_CONNECTIONS6, journey->now);
	else
		age_behind_hand(TABLE_CONNECTIONS4, journey->now);
	if (!journey->bound)
		return;
	if (ipv6)
		age_behind_hand(TABLE_PERSISTENCE6, journey->now);
	else
		age_behind_hand(TABLE_PERSISTENCE4, journey->now);
}

/* Sends the packet that opens a connection. */
static __always_inline int connect_send(struct hook_context *ctx, struct journey *journey)
{
	struct forwarding forwarding = { .probe_interval = NEXTHOP_LIFE };
	int reason;

	forwarding.now = journey->now;
	forwarding.backend = (u32)journey->backend;
	forwarding.service = journey->service;
	forwarding.mark = journey->mark;
	reason = forward_send(ctx, &journey->packet, &forwarding);
	return exit_with(ctx, reason, &journey->packet, journey->mark);
}

/* The connect program: connection, first packet on its way. */
int connect_backend(struct hook_context *ctx)
{
	u32 zero = 0;
	struct journey *journey = journeys.lookup(&zero);
	int reason;

	if (!journey)
		return HOOK_PASS;
	connect_recheck(ctx, journey);
	if (STOP_AFTER == STAGE_SCHEDULED)
		return HOOK_PASS;
	if (!share_take(new_table(&journey->packet), journey->service))
		programs.call(ctx, PROGRAM_CONNECT_ROOM);
	reason = connect_create(ctx, journey);
	if (STOP_AFTER == STAGE_CREATED)
		return HOOK_PASS;
	if (reason)
		return exit_with(ctx, reason, &journey->packet, journey->mark);
	connect_age(journey);
	if (STOP_AFTER == STAGE_AGED)
		return HOOK_PASS;
	return connect_send(ctx, journey);
}

/* The program for a service that has as many connections as it may: a lesser one goes, if any. */
int connect_room(struct hook_context *ctx)
{
	u32 zero = 0;
	struct journey *journey = journeys.lookup(&zero);
	bool room;

	if (!journey)
		return HOOK_PASS;
	if (packet_is_ipv6(&journey->packet))
		room = age_make_room(TABLE_CONNECTIONS6, journey->packet.hash, journey->service,
				     journey->now);
	else
		room = age_make_room(TABLE_CONNECTIONS4, journey->packet.hash, journey->service,
				     journey->now);
	connect_again(ctx, journey, room ? REASON_BUSY : REASON_OK, PROGRAM_CONNECT);
	stats_count_reason(REASON_TABLE_FULL, 1);
	connect_unbind(journey);
	return connect_send(ctx, journey);
}

/* After a scheduler: chosen, to be gone on with, or nobody. */
static __always_inline int schedule_exit(struct hook_context *ctx, struct journey *journey,
					 int reason, u32 scheduler)
{
	if (reason == REASON_OK && journey->persistent)
		programs.call(ctx, PROGRAM_BIND);
	else if (reason == REASON_OK)
		programs.call(ctx, PROGRAM_CONNECT);
	else if (reason == SCHEDULE_AGAIN)
		programs.call(ctx, PROGRAM_SCHEDULER + scheduler);
	else
		return exit_with(ctx, reason, &journey->packet, journey->mark);
	return exit_with(ctx, REASON_INTERNAL, &journey->packet, journey->mark);
}

/* The version of the service that the journey is on. */
static __always_inline struct service_config *schedule_config(struct journey *journey)
{
	return journey ? service_configs.lookup(&journey->config) : NULL;
}

int scheduler_rr(struct hook_context *ctx)
{
	u32 zero = 0;
	struct journey *journey = journeys.lookup(&zero);
	struct service_config *config = schedule_config(journey);

	if (!journey || !config)
		return HOOK_PASS;
	return schedule_exit(ctx, journey, schedule_rr(journey, config), SCHEDULER_RR);
}

int scheduler_wrr(struct hook_context *ctx)
{
	u32 zero = 0;
	struct journey *journey = journeys.lookup(&zero);
	struct service_config *config = schedule_config(journey);

	if (!journey || !config)
		return HOOK_PASS;
	return schedule_exit(ctx, journey, schedule_wrr(journey, config), SCHEDULER_WRR);
}

int scheduler_wlc(struct hook_context *ctx)
{
	u32 zero = 0;
	struct journey *journey = journeys.lookup(&zero);
	struct service_config *config = schedule_config(journey);

	if (!journey || !config)
		return HOOK_PASS;
	return schedule_exit(ctx, journey, schedule_wlc(journey, config), SCHEDULER_WLC);
}

int scheduler_sh(struct hook_context *ctx)
{
	u32 zero = 0;
	struct journey *journey = journeys.lookup(&zero);
	struct service_config *config = schedule_config(journey);

	if (!journey || !config)
		return HOOK_PASS;
	return schedule_exit(ctx, journey, schedule_sh(journey, config), SCHEDULER_SH);
}

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
#include "hook.h"
#include "packet.h"
#include "journey.h"
#include "maps.h"
#include "clock.h"
#include "stats.h"
#include "mark.h"
#include "service.h"
#include "state.h"
#include "backend.h"
#include "persist.h"
#include "connection.h"
#include "schedule.h"
#include "nexthop.h"
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
	struct interface *interface = interfaces.lookup(&packet->ifindex);
	struct mac_key key = {};
	u64 mac = packet_destination_mac(ctx);

	if (interface && interface->mac == mac)
		return true;
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

/* Leaves a connection that still serves in the hands of the caller, and removes one that does not. */
static __always_inline struct connection *entry_connection(struct packet *packet, u64 now,
							   int *reason)
{
	struct connection *connection = connection_find(packet);
	u64 word, backend, settings;

	if (!connection)
		return NULL;
	word = connection->word;
	if (state_of(word) == STATE_DEAD)
		return NULL;
	if (now < connection->expires) {
		backend = backend_word(connection->backend);
		if (backend && (packet->flags & TCP_SYN) == 0)
			return connection;
		settings = entry_settings();
		if (!backend && !(settings & SETTING_EXPIRE_NODEST_CONN)) {
			*reason = REASON_BACKEND_GONE;
			return NULL;
		}
		if (backend && !connection_is_reused(packet, connection, backend, settings))
			return connection;
	}
	connection_remove(packet, connection, word, now);
	return NULL;
}

/* The fast path: a packet of a connection that is known. */
static __always_inline int entry_known(struct hook_context *ctx, struct packet *packet, u64 now)
{
	int reason = REASON_OK;
	struct connection *connection = entry_connection(packet, now, &reason);
	struct forwarding forwarding = { .now = now, .probe_interval = 2 * NEXTHOP_LIFE };

	if (!connection)
		return reason;
	connection_refresh(packet, connection, now);
	forwarding.backend = (u32)connection->backend;
	forwarding.service = connection->service;
	forwarding.mark = connection->mark;
	return forward_send(ctx, packet, &forwarding);
}

/* Starts the journey of a packet that no connection knows. */
static __always_inline void entry_begin(struct packet *packet, u64 now)
{
	u32 zero = 0;
	struct journey *journey = journeys.lookup(&zero);

	if (!journey)
		return;
	__builtin_memset(journey, 0, sizeof(*journey));
	journey->packet = *packet;
	journey->now = now;
	journey->settings = entry_settings();
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
	if (!entry_is_for_host(ctx, &packet))
		return exit_with(ctx, REASON_OTHER_HOST, &packet, 0);
	now = clock_now();
	reason = entry_known(ctx, &packet, now);
	if (reason)
		return exit_with(ctx, reason, &packet, 0);
	entry_begin(&packet, now);
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

/* A persistent client's entry gives the backend, else the scheduler will. */
static __always_inline int new_choose(struct hook_context *ctx, struct journey *journey)
{
	struct service_config *config = service_configs.lookup(&journey->config);
	int reason;

	if (!config)
		return REASON_INTERNAL;
	if (config->flags & SERVICE_PERSISTENT) {
		reason = persist_choose(journey, config);
		if (reason)
			return reason;
	}
	if (journey->backend)
		programs.call(ctx, PROGRAM_CONNECT);
	else
		programs.call(ctx, PROGRAM_SCHEDULER + config->scheduler);
	return REASON_INTERNAL;
}

static __always_inline int new_decide(struct hook_context *ctx, struct journey *journey)
{
	struct packet *packet = &journey->packet;
	int reason = mark_classify(ctx, packet, &journey->mark);

	if (reason)
		return reason;
	reason = service_find(journey);
	if (reason)
		return reason;
	if (!packet_is_opening(packet))
		return REASON_NOT_OPENING;
	if (packet_client_port(packet) == FTP_DATA_PORT)
		return REASON_SOURCE_PORT_20;
	if (journey->settings & SETTING_REQUIRE_LOCAL && !nexthop_is_local(ctx, packet))
		return REASON_NOT_LOCAL;
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

/* The service is as it was when the decision began; if not, the decision starts over. */
static __always_inline void connect_recheck(struct hook_context *ctx, struct journey *journey)
{
	u64 *word = service_switches.lookup(&journey->service);

	if (journey->persistence || (word && *word == journey->service_switch))
		return;
	if (journey->attempts++ >= DECISION_ATTEMPTS)
		return;
	journey->scan = 0;
	journey->best = 0;
	journey->backend = 0;
	programs.call(ctx, PROGRAM_NEW);
}

/* Binds a persistent client that has no entry yet. */
static __always_inline int connect_bind(struct journey *journey)
{
	struct service_config *config = service_configs.lookup(&journey->config);

	if (!config)
		return REASON_INTERNAL;
	if (!(config->flags & SERVICE_PERSISTENT) || journey->persistence)
		return REASON_OK;
	return persist_bind(journey, config);
}

/* Takes back what the persistence entry was told of a connection that came to nothing. */
static __always_inline void connect_unbind(struct journey *journey)
{
	struct packet *packet = &journey->packet;
	struct persistence *entry;

	if (!journey->persistence)
		return;
	entry = persist_of(packet, journey->service, journey->persistence);
	if (entry)
		persist_release(entry, state_is_lasting(state_first(packet)));
}

static __always_inline int connect_create(struct journey *journey)
{
	int reason = connect_bind(journey);

	if (reason)
		return reason;
	reason = connection_create(journey);
	if (reason == REASON_OK)
		stats_count_connection(journey->service, (u32)journey->backend);
	else
		connect_unbind(journey);
	return reason == EEXIST_ERROR ? REASON_OK : reason;
}

/* The connect program: persistence entry, connection, first packet on its way. */
int connect_backend(struct hook_context *ctx)
{
	u32 zero = 0;
	struct journey *journey = journeys.lookup(&zero);
	struct forwarding forwarding = { .probe_interval = NEXTHOP_LIFE };
	int reason;

	if (!journey)
		return HOOK_PASS;
	connect_recheck(ctx, journey);
	reason = connect_create(journey);
	if (reason)
		return exit_with(ctx, reason, &journey->packet, journey->mark);
	forwarding.now = journey->now;
	forwarding.backend = (u32)journey->backend;
	forwarding.service = journey->service;
	forwarding.mark = journey->mark;
	reason = forward_send(ctx, &journey->packet, &forwarding);
	return exit_with(ctx, reason, &journey->packet, journey->mark);
}

/* After a scheduler: chosen, to be gone on with, or nobody. */
static __always_inline int schedule_exit(struct hook_context *ctx, struct journey *journey,
					 int reason, u32 scheduler)
{
	if (reason == REASON_OK)
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

/* Programs that the control plane runs by itself or has watch the kernel; they see no traffic. */
#include <uapi/linux/bpf.h>
#include <uapi/linux/if_ether.h>
#include <uapi/linux/in.h>
#include <uapi/linux/ip.h>
#include <uapi/linux/ipv6.h>
#include <uapi/linux/tcp.h>
#include <uapi/linux/udp.h>
#include <uapi/linux/pkt_cls.h>

#define DESCRIBE_FLAT
#include "config.h"
#include "types.h"
#include "word.h"
#include "hook.h"
#include "hash.h"
#include "sctp.h"
#include "packet.h"
#include "journey.h"
#include "maps.h"
#include "clock.h"
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
#include "age.h"
#include "sweep.h"
#include "pin.h"
#include "stats.h"
#include "watch.h"

/* Answers with both clocks, read together. */
int read_clock(struct xdp_md *ctx)
{
	struct clock_reading *reading = (void *)(long)ctx->data;

	if ((void *)(reading + 1) > (void *)(long)ctx->data_end)
		return XDP_ABORTED;
	reading->jiffies = clock_now();
	reading->nanoseconds = bpf_ktime_get_ns();
	return XDP_PASS;
}

static __always_inline void reap_slot(u32 table, struct reap_item *item, u64 now)
{
	struct slot *slot = table_slot(table, item->place);
	u64 word = READ_ONCE(slot->word);

	if (word >> WORD_GENERATION_SHIFT == item->generation)
		item->removed = age_slot(table, slot, word, item->force, now);
}

/* Removes the entry that the packet names, by the same steps as the data plane does. */
int reap(struct xdp_md *ctx)
{
	struct reap_item *item = (void *)(long)ctx->data;
	u64 now = clock_now();

	if ((void *)(item + 1) > (void *)(long)ctx->data_end)
		return XDP_ABORTED;
	if (item->table == TABLE_CONNECTIONS4)
		reap_slot(TABLE_CONNECTIONS4, item, now);
	else if (item->table == TABLE_CONNECTIONS6)
		reap_slot(TABLE_CONNECTIONS6, item, now);
	else if (item->table == TABLE_PERSISTENCE4)
		reap_slot(TABLE_PERSISTENCE4, item, now);
	else
		reap_slot(TABLE_PERSISTENCE6, item, now);
	return XDP_PASS;
}

/* Tells what an event makes of a state: by the tables that packets meet. */
int transition(struct xdp_md *ctx)
{
	struct transition_item *item = (void *)(long)ctx->data;
	u32 next;

	if ((void *)(item + 1) > (void *)(long)ctx->data_end)
		return XDP_ABORTED;
	next = state_next(item->view, item->protocol, item->state, item->event, item->secure);
	item->next = next;
	item->timeout = state_timeout(next);
	item->active = state_is_active(next);
	return XDP_PASS;
}

/* Gives a client the backend that the packet names. */
int pin_client(struct xdp_md *ctx)
{
	struct pin_item *item = (void *)(long)ctx->data;

	if ((void *)(item + 1) > (void *)(long)ctx->data_end)
		return XDP_ABORTED;
	pin_entry(maps_journey(), item);
	return XDP_PASS;
}

/* One step of a sweep over a table: the packet says where it stands. */
static __always_inline int sweep_step(u32 table, struct xdp_md *ctx)
{
	struct sweep_item *item = (void *)(long)ctx->data;

	if ((void *)(item + 1) > (void *)(long)ctx->data_end)
		return XDP_ABORTED;
	sweep_table(table, item, clock_now());
	return XDP_PASS;
}

int sweep_connections4(struct xdp_md *ctx)
{
	return sweep_step(TABLE_CONNECTIONS4, ctx);
}

int sweep_connections6(struct xdp_md *ctx)
{
	return sweep_step(TABLE_CONNECTIONS6, ctx);
}

int sweep_persistence4(struct xdp_md *ctx)
{
	return sweep_step(TABLE_PERSISTENCE4, ctx);
}

int sweep_persistence6(struct xdp_md *ctx)
{
	return sweep_step(TABLE_PERSISTENCE6, ctx);
}

/* The first word of the entry that a count is in, and how many there are. */
static __always_inline u64 *heal_entry(struct heal_item *item, u32 *words)
{
	u32 index = item->index;

	if (item->map == HEALED_LOADS) {
		*words = sizeof(struct load) / sizeof(u64);
		return (u64 *)ROW(loads, index);
	}
	if (item->map == HEALED_SHARES) {
		*words = sizeof(struct share) / sizeof(u64);
		return (u64 *)ROW(shares, index);
	}
	*words = sizeof(struct pool) / sizeof(u64);
	return (u64 *)ROW(pools, index);
}

/* Adds to the count that the packet names. */
int heal(struct xdp_md *ctx)
{
	struct heal_item *item = (void *)(long)ctx->data;
	u32 words = 0, word;
	u64 *entry, change;

	if ((void *)(item + 1) > (void *)(long)ctx->data_end)
		return XDP_ABORTED;
	change = item->change;
	word = item->word;
	entry = heal_entry(item, &words);
	if (word >= words)
		return XDP_ABORTED;
#pragma unroll
	for (u32 i = 0; i < sizeof(struct pool) / sizeof(u64); i++)
		if (i == word && i < words)
			__sync_fetch_and_add(entry + i, change);
	if (item->map == HEALED_LOADS)
		limit_follow(item->index, READ_ONCE(ROW(loads, item->index)->total));
	return XDP_PASS;
}

/* Gives the backend that the packet names other thresholds. */
int limit_backend(struct xdp_md *ctx)
{
	struct limit_item *item = (void *)(long)ctx->data;

	if ((void *)(item + 1) > (void *)(long)ctx->data_end)
		return XDP_ABORTED;
	item->busy = !limit_set(item->backend, item->thresholds);
	return XDP_PASS;
}

/* Programs that the control plane runs by itself; they see no traffic. */
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
#include "packet.h"
#include "journey.h"
#include "maps.h"
#include "clock.h"
#include "state.h"
#include "backend.h"
#include "expiry.h"
#include "table.h"
#include "share.h"
#include "persist.h"
#include "connection.h"
#include "age.h"

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

/* Counts an entry for its service. */
static __always_inline void sweep_share(u32 table, u32 service)
{
	(*share_count(ROW(share_recounts, service), table))++;
}

/* Lets the filter's next half pass what the connection is about. */
static __always_inline void sweep_concern(u32 table, struct slot *slot)
{
	u64 sum = table_is_ipv6(table) ? hash_virtual6(slot->key) + hash_target(slot->key[4]) :
					 hash_virtual4(slot->key[0]) + hash_target(slot->key[1]);

	*ROW(filter, FILTER_WORDS + (sum >> (64 - FILTER_BITS + 6))) |=
		1ULL << (sum >> (64 - FILTER_BITS) & 63);
}

/* Counts a connection for the backend that it goes to. */
static __always_inline void sweep_count(struct connection *connection, u64 word)
{
	u64 reference = connection->backend;
	struct load *load = ROW(recounts, reference);

	if (!backend_word(reference))
		return;
	load->total++;
	load->active += state_is_active(word_state(word));
}

static __always_inline void sweep_table(u32 table, struct sweep_item *item, u64 now)
{
	u32 first = item->place, evict = item->evict;
	struct slot *slot;
	u64 word;

#pragma clang loop unroll(disable)
	for (u32 i = 0; i < SWEEP_STEP; i++) {
		slot = table_slot(table, first + i);
		word = READ_ONCE(slot->word);
		if (!word_is_used(word))
			continue;
		if (evict && evict != table_service(table, slot) + 1)
			continue;
		if (age_slot(table, slot, word, evict, now)) {
			item->removed++;
			continue;
		}
		sweep_share(table, table_service(table, slot));
		if (table_holds_persistence(table))
			continue;
		sweep_count((struct connection *)slot, word);
		sweep_concern(table, slot);
	}
	/* at the end of a bucket */
	if (!((first + SWEEP_STEP) & (BUCKET_SLOTS - 1)))
		age_tidy(table, first & (table_slots(table) - 1), true);
	item->place = first + SWEEP_STEP;
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
	return XDP_PASS;
}

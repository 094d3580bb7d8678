/* Programs that the control plane runs by itself; they see no traffic. */
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
#include "state.h"
#include "backend.h"
#include "persist.h"
#include "connection.h"

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

static __always_inline void reap_connection(struct reap_item *item, struct packet *packet, u64 now)
{
	struct connection *connection = connection_find(packet);

	if (!connection || (!item->force && now < connection->expires))
		return;
	item->removed = connection_remove(packet, connection, connection->word, now);
}

static __always_inline void reap_persistence4(struct reap_item *item, u64 now)
{
	struct flow4 key = {};
	struct persistence *entry;
	u64 expires;

	__builtin_memcpy(&key, &item->key, sizeof(key));
	entry = persistence4.lookup(&key);
	if (!entry || !persist_is_reapable(entry, item->force, now))
		return;
	expires = entry->expires;
	if (!expires || __sync_val_compare_and_swap(&entry->expires, expires, 0) != expires)
		return;
	persistence4.delete(&key);
	item->removed = 1;
}

static __always_inline void reap_persistence6(struct reap_item *item, u64 now)
{
	struct flow6 key = {};
	struct persistence *entry;
	u64 expires;

	__builtin_memcpy(&key, &item->key, sizeof(key));
	entry = persistence6.lookup(&key);
	if (!entry || !persist_is_reapable(entry, item->force, now))
		return;
	expires = entry->expires;
	if (!expires || __sync_val_compare_and_swap(&entry->expires, expires, 0) != expires)
		return;
	persistence6.delete(&key);
	item->removed = 1;
}

static __always_inline void reap_one(struct reap_item *item, u64 now)
{
	struct packet packet = {};

	__builtin_memcpy(&packet.flow6, &item->key, sizeof(packet.flow6));
	if (item->table == TABLE_PERSISTENCE4) {
		reap_persistence4(item, now);
	} else if (item->table == TABLE_PERSISTENCE6) {
		reap_persistence6(item, now);
	} else {
		packet.type = item->table == TABLE_CONNECTIONS6 ? ETHERNET_IPV6 : ETHERNET_IPV4;
		reap_connection(item, &packet, now);
	}
}

/* Removes the entry that the packet names, by the same steps as the data plane does. */
int reap(struct xdp_md *ctx)
{
	struct reap_item *item = (void *)(long)ctx->data;

	if ((void *)(item + 1) > (void *)(long)ctx->data_end)
		return XDP_ABORTED;
	reap_one(item, clock_now());
	return XDP_PASS;
}

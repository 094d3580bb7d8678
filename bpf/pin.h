/* Pinning: a persistence entry that somebody asked for, not a packet. */

/* Fills a slot that is this CPU's.  No flood takes its place: somebody wants it there. */
static __always_inline void pin_fill(u32 table, struct journey *journey, struct pin_item *item,
				     struct service_config *config, struct slot *slot)
{
	struct persistence *entry = (struct persistence *)slot;
	u64 generation = counts_generation(entry->counts) + 1 & COUNTS_GENERATIONS - 1;
	u64 flags = SLOT_CONFIRMED | (config->flags & SERVICE_STRICT ? SLOT_STRICT : 0);

	table_write_key(table, slot, journey->client);
	entry->backend = journey->backend;
	entry->timeout = item->timeout;
	entry->service = journey->service;
	entry->active_until = 0;
	entry->inactive_until = 0;
	WRITE_ONCE(entry->counts, counts_make(generation, 0, 0));
	table_publish(slot, word_make(journey->now + item->timeout, STATE_BOUND, flags,
				      journey->seat.word + WORD_GENERATION));
}

/* Under the bucket's lock: in the place of the client's entry, or in one that is free. */
static __always_inline u32 pin_locked(u32 table, struct journey *journey, struct pin_item *item,
				      struct service_config *config)
{
	struct seat *seat = &journey->seat;
	struct slot *slot;
	u32 gone;

	if (table_seek(table, journey->client, journey->client_hash, journey->now, seat) ==
	    TABLE_FULL)
		return PIN_FULL;
	gone = table_service(table, table_slot(table, seat->place));
	slot = table_claim(table, seat);
	if (!slot)
		return PIN_BUSY;
	pin_fill(table, journey, item, config, slot);
	if (word_is_used(seat->word))
		share_return(table, gone);
	return PIN_DONE;
}

static __always_inline u32 pin_in(u32 table, struct journey *journey, struct pin_item *item,
				  struct service_config *config)
{
	u32 answer = PIN_BUSY;
	u64 *lock;

	if (!share_take(table, journey->service))
		return PIN_FULL;
	lock = table_lock(table, journey->client_hash);
	if (lock) {
		answer = pin_locked(table, journey, item, config);
		table_unlock(lock);
	}
	if (answer != PIN_DONE)
		share_return(table, journey->service);
	return answer;
}

/* Makes the entry that the control plane asks for, with the key that a packet of the flow has. */
static __always_inline void pin_entry(struct journey *journey, struct pin_item *item)
{
	struct service_config *config = service_config_of(item->service);

	__builtin_memcpy(journey->packet.key, &item->flow, sizeof(item->flow));
	journey->packet.type = item->family == FAMILY_IPV6 ? ETHERNET_IPV6 : ETHERNET_IPV4;
	journey->now = clock_now();
	journey->by_call = 0;
	journey->service = item->service;
	journey->backend = item->backend;
	persist_key(journey, config);
	if (packet_is_ipv6(&journey->packet))
		item->answer = pin_in(TABLE_PERSISTENCE6, journey, item, config);
	else
		item->answer = pin_in(TABLE_PERSISTENCE4, journey, item, config);
}

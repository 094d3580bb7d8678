/* Persistence entries: one client's backend for one service, keyed as IPVS keys its templates. */

static __always_inline struct service_config *service_config_of(u32 service)
{
	u64 *word = service_switches.lookup(&service);
	u32 row;

	if (!word)
		return NULL;
	row = (u32)*word;
	return service_configs.lookup(&row);
}

static __always_inline bool persist_any_port(struct service_config *config)
{
	return config->flags & (SERVICE_ANY_PORT | SERVICE_FTP);
}

static __always_inline void persist_key4(struct packet *packet, struct service_config *config,
					 struct flow4 *key)
{
	key->client = packet->flow4.client & config->netmask[0];
	if (config->flags & SERVICE_BY_MARK) {
		key->virtual = bpf_htonl(config->mark);
		return;
	}
	key->virtual = packet->flow4.virtual;
	key->protocol = packet->flow4.protocol;
	if (!persist_any_port(config))
		key->virtual_port = packet->flow4.virtual_port;
}

static __always_inline void persist_key6(struct packet *packet, struct service_config *config,
					 struct flow6 *key)
{
	for (int i = 0; i < 4; i++)
		key->client[i] = packet->flow6.client[i] & config->netmask[i];
	if (config->flags & SERVICE_BY_MARK) {
		key->virtual[0] = bpf_htonl(config->mark);
		return;
	}
	__builtin_memcpy(key->virtual, packet->flow6.virtual, 16);
	key->protocol = packet->flow6.protocol;
	if (!persist_any_port(config))
		key->virtual_port = packet->flow6.virtual_port;
}

static __always_inline struct persistence *persist_find(struct packet *packet,
							struct service_config *config)
{
	struct flow4 key4 = {};
	struct flow6 key6 = {};

	if (packet_is_ipv6(packet)) {
		persist_key6(packet, config, &key6);
		return persistence6.lookup(&key6);
	}
	persist_key4(packet, config, &key4);
	return persistence4.lookup(&key4);
}

static __always_inline int persist_insert(struct packet *packet, struct service_config *config,
					  struct persistence *entry)
{
	struct flow4 key4 = {};
	struct flow6 key6 = {};

	if (packet_is_ipv6(packet)) {
		persist_key6(packet, config, &key6);
		return persistence6.insert(&key6, entry);
	}
	persist_key4(packet, config, &key4);
	return persistence4.insert(&key4, entry);
}

/* The entry with this identity that controls the flow, if it is still there. */
static __always_inline struct persistence *persist_of(struct packet *packet, u32 service,
						      u32 identity)
{
	struct service_config *config = service_config_of(service);
	struct persistence *entry;

	if (!config)
		return NULL;
	entry = persist_find(packet, config);
	if (!entry || entry->identity != identity)
		return NULL;
	return entry;
}

/* Until when a connection of the entry lives, as far as they told; jiffies, 0: none lives. */
static __always_inline u64 persist_held_until(struct persistence *entry)
{
	u64 until = entry->inactive_until;

	if (entry->active && entry->active_until > until)
		until = entry->active_until;
	return until;
}

/* IPVS: a timer that ends while connections live is armed for 60 s, again and again. */
static __always_inline u64 persist_end(struct persistence *entry, struct service_config *config)
{
	u64 expires = entry->expires;
	u64 held = persist_held_until(entry);

	if (config->flags & SERVICE_STRICT || held <= expires)
		return expires;
	return expires + (held - expires + REARM_TIMEOUT - 1) / REARM_TIMEOUT * REARM_TIMEOUT;
}

static __always_inline bool persist_is_live(struct persistence *entry,
					    struct service_config *config, u64 now)
{
	return now < entry->expires || now < persist_end(entry, config);
}

/* The control plane may remove it: it is told to, or the entry's end has passed. */
static __always_inline bool persist_is_reapable(struct persistence *entry, bool force, u64 now)
{
	struct service_config *config = service_config_of(entry->service);

	return force || !config || !persist_is_live(entry, config, now);
}

/* A removed or drained backend gets nobody, a quiesced one nobody if the setting says so. */
static __always_inline bool persist_is_usable(struct persistence *entry, u64 settings)
{
	u64 word = backend_word(entry->backend);

	if (!word || word & BACKEND_DRAINING)
		return false;
	return !(word & BACKEND_QUIESCED && settings & SETTING_EXPIRE_QUIESCENT_TEMPLATE);
}

/* Keeps the later of two ends; a race between CPUs costs at most one interval of telling. */
static __always_inline void persist_extend(struct persistence *entry, bool lasting, u64 until)
{
	if (lasting && entry->active_until < until)
		entry->active_until = until;
	if (!lasting && entry->inactive_until < until)
		entry->inactive_until = until;
}

static __always_inline void persist_release(struct persistence *entry, bool lasting)
{
	__sync_fetch_and_add(&entry->connections, -1);
	if (lasting)
		__sync_fetch_and_add(&entry->active, -1);
}

/* A new connection uses the entry: its only renewal.  Leaves backend and identity in the journey. */
static __always_inline void persist_use(struct journey *journey, struct persistence *entry)
{
	u64 expires = entry->expires;
	u32 state = state_first(&journey->packet);

	if (journey->now >= expires)
		entry->timeout = REARM_TIMEOUT;
	__sync_val_compare_and_swap(&entry->expires, expires, journey->now + entry->timeout);
	__sync_fetch_and_add(&entry->connections, 1);
	if (state_is_lasting(state))
		__sync_fetch_and_add(&entry->active, 1);
	persist_extend(entry, state_is_lasting(state), journey->now + state_timeout(state));
	journey->backend = entry->backend;
	journey->persistence = entry->identity;
}

/* Waits for a CPU that fills or removes the entry: some hundred nanoseconds, and hardly ever. */
static __always_inline struct persistence *
persist_find_settled(struct packet *packet, struct service_config *config, bool *busy)
{
	struct persistence *entry = NULL;

	for (int i = 0; i < BUSY_ATTEMPTS; i++) {
		entry = persist_find(packet, config);
		if (!entry || entry->expires)
			return entry;
	}
	*busy = true;
	return NULL;
}

/* Fills an entry that only this CPU holds, for the journey's backend. */
static __always_inline void persist_fill(struct journey *journey, struct service_config *config,
					 struct persistence *entry)
{
	u32 state = state_first(&journey->packet);

	entry->backend = journey->backend;
	entry->timeout = config->persistence_timeout;
	entry->connections = 1;
	entry->active = state_is_lasting(state);
	entry->active_until = 0;
	entry->inactive_until = 0;
	persist_extend(entry, state_is_lasting(state), journey->now + state_timeout(state));
	entry->identity = bpf_get_prandom_u32() | 1;
	entry->service = journey->service;
	journey->persistence = entry->identity;
	barrier();
	entry->expires = journey->now + entry->timeout;
}

/* Uses the client's entry if it has one that serves; true if it had. */
static __always_inline int persist_choose(struct journey *journey, struct service_config *config)
{
	bool busy = false;
	struct persistence *entry = persist_find_settled(&journey->packet, config, &busy);

	if (busy)
		return REASON_BUSY;
	if (!entry || !persist_is_live(entry, config, journey->now) ||
	    !persist_is_usable(entry, journey->settings))
		return REASON_OK;
	persist_use(journey, entry);
	return REASON_OK;
}

/* Binds the client to the journey's backend; where another CPU was first, the journey to its. */
static __always_inline int persist_bind(struct journey *journey, struct service_config *config)
{
	struct persistence fresh = {}, *entry;
	bool busy = false;
	u64 expires;

	for (int i = 0; i < 2; i++) {
		entry = persist_find_settled(&journey->packet, config, &busy);
		if (busy)
			return REASON_BUSY;
		if (!entry) {
			persist_fill(journey, config, &fresh);
			if (!persist_insert(&journey->packet, config, &fresh))
				return REASON_OK;
			continue;
		}
		expires = entry->expires;
		if (persist_is_live(entry, config, journey->now) &&
		    persist_is_usable(entry, journey->settings)) {
			persist_use(journey, entry);
			return REASON_OK;
		}
		if (expires &&
		    __sync_val_compare_and_swap(&entry->expires, expires, 0) == expires) {
			persist_fill(journey, config, entry);
			return REASON_OK;
		}
	}
	return REASON_BUSY;
}

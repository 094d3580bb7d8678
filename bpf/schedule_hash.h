/* The schedulers that choose by a hash of an address alone: sh, dh, mh. */
#define HASH_BUCKETS 256
#define GOLDEN_RATIO 0x61C88647
#define MH_SLOTS 4093
/* Both words of the key of mh's hash, which IPVS gives. */
#define MH_KEY 2654435761ULL

/* An address as one number, as IPVS folds it: host order, IPv6's words exclusive-ored. */
static __always_inline u32 schedule_fold(struct packet *packet, const __be32 *address)
{
	if (packet_is_ipv6(packet))
		return bpf_ntohl(address[0] ^ address[1] ^ address[2] ^ address[3]);
	return bpf_ntohl(address[0]);
}

static __always_inline u32 schedule_fold_client(struct packet *packet)
{
	if (packet_is_ipv6(packet))
		return schedule_fold(packet, packet->flow6.client);
	return schedule_fold(packet, &packet->flow4.client);
}

static __always_inline u32 schedule_fold_virtual(struct packet *packet)
{
	if (packet_is_ipv6(packet))
		return schedule_fold(packet, packet->flow6.virtual);
	return schedule_fold(packet, &packet->flow4.virtual);
}

/* What of the client sh and mh go by: its address and, with their flag for it, its port. */
static __always_inline u32 schedule_client(struct packet *packet, struct service_config *config)
{
	u32 client = schedule_fold_client(packet);

	if (config->flags & SERVICE_HASH_PORT)
		client += bpf_ntohs(packet_client_port(packet));
	return client;
}

static __always_inline u32 schedule_bucket(u32 value)
{
	return (value * GOLDEN_RATIO) >> 24;
}

/* The place that a slot of the service's table names, + 1; 0 where its member takes nobody. */
static __always_inline u32 schedule_slot(struct service_config *config, u32 slot)
{
	u32 place = *ROW(slots, config->slots_offset + slot);
	struct member *member = schedule_member(config, place);

	return member && schedule_is_usable(member) ? place + 1 : 0;
}

/* dh: the destination's bucket; nobody where its member takes nobody. */
static __always_inline int schedule_dh(struct journey *journey, struct service_config *config)
{
	u32 bucket = schedule_bucket(schedule_fold_virtual(&journey->packet));
	u32 place = schedule_slot(config, bucket);

	return place ? schedule_take(journey, config, place - 1) : REASON_NO_BACKEND;
}

/* sh: the client's bucket; with sh-fallback other buckets where its member takes nobody. */
static __always_inline int schedule_sh(struct journey *journey, struct service_config *config)
{
	u32 first, place, offset;

	first = schedule_bucket(schedule_client(&journey->packet, config));
	place = schedule_slot(config, first);
	if (place)
		return schedule_take(journey, config, place - 1);
	if (!(config->flags & SERVICE_HASH_FALLBACK))
		return REASON_NO_BACKEND;
	for (u32 i = 0; i < SCAN_STEP; i++) {
		if (journey->scan + i >= HASH_BUCKETS)
			return REASON_NO_BACKEND;
		offset = (journey->scan + i + first) & (HASH_BUCKETS - 1);
		place = schedule_slot(config, (offset + first) & (HASH_BUCKETS - 1));
		if (place)
			return schedule_take(journey, config, place - 1);
	}
	journey->scan += SCAN_STEP;
	return SCHEDULE_AGAIN;
}

static __always_inline u64 schedule_rotate(u64 word, u32 bits)
{
	return word << bits | word >> (64 - bits);
}

/* One round of SipHash. */
static __always_inline void schedule_mix(u64 *v)
{
	v[0] += v[1];
	v[2] += v[3];
	v[1] = schedule_rotate(v[1], 13) ^ v[0];
	v[3] = schedule_rotate(v[3], 16) ^ v[2];
	v[0] = schedule_rotate(v[0], 32);
	v[2] += v[1];
	v[0] += v[3];
	v[1] = schedule_rotate(v[1], 17) ^ v[2];
	v[3] = schedule_rotate(v[3], 21) ^ v[0];
	v[2] = schedule_rotate(v[2], 32);
}

/* The slot of mh's table that a number hashes to: SipHash-1-3 of its four bytes. */
static __always_inline u32 schedule_mh_slot(u32 value)
{
	u64 block = 4ULL << 56 | value;
	u64 v[4] = {
		MH_KEY ^ 0x736f6d6570736575ULL,
		MH_KEY ^ 0x646f72616e646f6dULL,
		MH_KEY ^ 0x6c7967656e657261ULL,
		MH_KEY ^ 0x7465646279746573ULL ^ block,
	};

	schedule_mix(v);
	v[0] ^= block;
	v[2] ^= 0xff;
	schedule_mix(v);
	schedule_mix(v);
	schedule_mix(v);
	return (u32)(v[0] ^ v[1] ^ v[2] ^ v[3]) % MH_SLOTS;
}

/* mh-fallback: the slots that the client hashes to together with each slot from its own on. */
static __always_inline int schedule_mh_fallback(struct journey *journey,
						struct service_config *config, u32 client)
{
	u32 first = schedule_mh_slot(client), place, from;

	/* nobody has a weight: none of all these would do */
	if (!config->weight_max)
		return REASON_NO_BACKEND;
#pragma clang loop unroll(disable)
	for (u32 i = 0; i < MH_STEP; i++) {
		if (journey->scan + i >= MH_SLOTS)
			return REASON_NO_BACKEND;
		from = (first + journey->scan + i) % MH_SLOTS;
		place = schedule_slot(config, schedule_mh_slot(from + client));
		if (place)
			return schedule_take(journey, config, place - 1);
	}
	journey->scan += MH_STEP;
	return SCHEDULE_AGAIN;
}

/* mh: the client's slot; with mh-fallback other slots where its member takes nobody. */
static __always_inline int schedule_mh(struct journey *journey, struct service_config *config)
{
	u32 client = schedule_client(&journey->packet, config);
	u32 place = schedule_slot(config, schedule_mh_slot(client));

	if (place)
		return schedule_take(journey, config, place - 1);
	if (!(config->flags & SERVICE_HASH_FALLBACK))
		return REASON_NO_BACKEND;
	return schedule_mh_fallback(journey, config, client);
}

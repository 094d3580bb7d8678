/*
 * Mark rules: which mark a packet gets; the first rule that matches wins.
 *
 * Rules that are nothing but addresses with ports are found by hash.  All others have a bit each.
 * For every dimension that rules look at (destination, port, ...) the packet's value leads to the
 * set of rules that name it; with the rules that do not look at the dimension these are the rules
 * that fit it, and the lowest bit that all dimensions have is the rule.  A set keeps only the words
 * that are not 0, and a summary with a bit for each: where the summaries have nothing in common,
 * no word is read.
 *
 * Prefixes are found by a binary search over the lengths that occur, by hash; a set of a prefix
 * holds the rules of all prefixes around it.
 */
#define MARK_GENERATION(word) ((u32)(word))
#define MARK_HAS_EXACT(word) ((word) >> 32 & 1)
#define MARK_ORDERED(word) (FEATURE_RULES ? (word) >> 33 & 1 : 0)
/* No rule looks at anything but destination address, port and protocol. */
#define MARK_BY_TARGET(word) ((word) >> 34 & 1)
/* What each word of a set in use is counted from. */
#define MARK_BASE(word) ((MARK_GENERATION(word) & 1) * (u64)MARK_WORDS)
/* The struct at a place, which is a multiple of its size. */
#define MARK_AT(type, at)                 \
	((type *)FLAT_FIRST(mark_words) + \
	 ((at) / (sizeof(type) / 8) & (2 * (u64)MARK_WORDS / (sizeof(type) / 8) - 1)))
#define MARK_WORD(at) (*ROW(mark_words, at))
/* A verdict in one word. */
#define MARK_POSITION(verdict) ((u32)((verdict) >> 32))
/* A record of no rules at all stands behind the header. */
#define MARK_EMPTY MARK_HEADER_WORDS
/* Where a wide set, which keeps every word, has its first. */
#define MARK_WIDE_WORDS 8
/* And any other set. */
#define MARK_RECORD_WORDS 5

static __always_inline struct mark_header_words *mark_header(u64 base)
{
	return MARK_AT(struct mark_header_words, base);
}

static __always_inline u64 mark_hash(const u64 *key)
{
	u64 sum = HASH_KEY(5) + hash_halves(key[0], HASH_KEY(6), HASH_KEY(7));

	sum += hash_halves(key[1], HASH_KEY(8), HASH_KEY(9));
	return hash_scattered(sum + hash_halves(key[2], HASH_KEY(2), HASH_KEY(4)));
}

/* The value of a key, 0 without one. */
static __always_inline u64 mark_probe(u64 base, const u64 *key)
{
	struct mark_header_words *header = mark_header(base);
	u64 at = mark_hash(key) & header->word[MARK_HEADER_SLOT_MASK];
	struct mark_slot *slot;

	at = base + header->word[MARK_HEADER_TABLE] + at * (sizeof(*slot) / 8);
	for (u32 i = 0; i < MARK_PROBES; i++) {
		slot = MARK_AT(struct mark_slot, at);
		if (!((slot->key[0] ^ key[0]) | (slot->key[1] ^ key[1]) | (slot->key[2] ^ key[2])))
			return slot->value;
		if (!slot->value)
			break;
		at += sizeof(*slot) / 8;
	}
	return 0;
}

/* The verdict of the rule that is found by hash, 0 without one. */
static __always_inline u64 mark_find_exact(struct packet *packet, u64 base)
{
	u64 search = packet_is_ipv6(packet) ? MARK_SEARCH_EXACT6 : MARK_SEARCH_EXACT4;
	u64 key[3] = {};

	if (packet_is_ipv6(packet))
		__builtin_memcpy(key, packet->flow6.virtual, 16);
	else
		key[0] = packet->flow4.virtual;
	key[2] = search << 32 | packet_protocol(packet) << 16 | packet_virtual_port(packet);
	return mark_probe(base, key);
}

/* Where the set of a value is: the one of the longest prefix that it is in. */
static __always_inline u64 mark_search(u64 base, u64 root, u64 first, u64 second)
{
	u64 next = root, found = MARK_EMPTY, value;
	struct mark_node *node;

	for (u32 i = 0; i < MARK_STEPS && next; i++) {
		node = MARK_AT(struct mark_node, base + next);
		u64 key[3] = { first & node->mask[0], second & node->mask[1], node->search };

		value = mark_probe(base, key);
		next = value ? node->found : node->missed;
		found = value ? value : found;
	}
	return base + found;
}

static __always_inline u64 mark_search_address(u64 base, u64 root, struct packet *packet,
					       bool destination)
{
	u64 address[2] = {};

	if (packet_is_ipv6(packet))
		__builtin_memcpy(address,
				 destination ? packet->flow6.virtual : packet->flow6.client, 16);
	else
		address[0] = destination ? packet->flow4.virtual : packet->flow4.client;
	return mark_search(base, root, address[0], address[1]);
}

/* A place in a list of 32-bit places. */
static __always_inline u64 mark_place(u64 list, u32 index)
{
	return MARK_WORD(list + index / 2) >> (index % 2 * 32) & 0xffffffff;
}

/* The set of a port: of all ports with its upper half, or of itself alone. */
static __always_inline u64 mark_search_port(u64 base, u64 uppers, u32 port)
{
	u64 place = mark_place(base + uppers, port >> 8);

	/* records stand at multiples of 8 */
	if (place & 1)
		place = mark_place(base + (place & ~1ULL), port & 0xff);
	return base + place;
}

/* Where the set of the packet's value in a dimension is. */
static __always_inline u64 mark_search_dimension(struct hook_context *ctx, struct packet *packet,
						 u64 base, u32 dimension)
{
	u64 *root = mark_header(base)->word;
	bool six = packet_is_ipv6(packet);

	if (dimension == MARK_DIMENSION_DESTINATION)
		return mark_search_address(
			base, six ? root[MARK_HEADER_DESTINATION6] : root[MARK_HEADER_DESTINATION4],
			packet, true);
	if (dimension == MARK_DIMENSION_SOURCE)
		return mark_search_address(
			base, six ? root[MARK_HEADER_SOURCE6] : root[MARK_HEADER_SOURCE4], packet,
			false);
	if (dimension == MARK_DIMENSION_PORT)
		return mark_search_port(base, root[MARK_HEADER_PORTS],
					bpf_ntohs(packet_virtual_port(packet)));
	if (dimension == MARK_DIMENSION_INTERFACE)
		return mark_search(base, root[MARK_HEADER_INTERFACE], packet->ifindex, 0);
	if (dimension == MARK_DIMENSION_VLAN)
		return mark_search(base, root[MARK_HEADER_VLAN], packet->vlan, 0);
	return mark_search(base, root[MARK_HEADER_SOURCE_MAC], packet_source_mac(ctx), 0);
}

static __always_inline u64 mark_count_bits(u64 word)
{
	word -= word >> 1 & 0x5555555555555555ULL;
	word = (word & 0x3333333333333333ULL) + (word >> 2 & 0x3333333333333333ULL);
	word = (word + (word >> 4)) & 0x0f0f0f0f0f0f0f0fULL;
	return word * 0x0101010101010101ULL >> 56;
}

/* All bits if there is one in the word, none otherwise; without a branch. */
static __always_inline u64 mark_all_if(u64 word)
{
	word |= -word;
	asm volatile("%0 s>>= 63" : "+r"(word));
	return word;
}

/* A word of a set: the one whose bit in the summary's word `part` is this one. */
static __always_inline u64 mark_set_word(u64 set, u32 part, u64 bit)
{
	struct mark_record *record = MARK_AT(struct mark_record, set);
	u64 summary = record->summary[part & 3], rank, kept = mark_all_if(summary & bit);

	rank = (record->ranks >> (part & 3) * 16 & 0xffff) + mark_count_bits(summary & (bit - 1));
	return MARK_WORD(set + MARK_RECORD_WORDS + (rank & kept)) & kept;
}

static __always_inline u64 mark_summary(u64 set, u32 part)
{
	return MARK_AT(struct mark_record, set)->summary[part & 3];
}

/* There is a dimension of this number.  The verifier is not to note what follows for `count`. */
static __always_inline bool mark_is_below(u32 number, u64 count)
{
	asm volatile("%0 &= 7" : "+r"(count));
	return number < count;
}

/* Which words may have rules that fit in all dimensions. */
static __always_inline u64 mark_live(struct journey *journey, u32 part)
{
	u64 live = mark_summary(journey->fitting, part);

#pragma nounroll
	for (u32 d = 0; d < MARK_DIMENSION_MAX && mark_is_below(d, journey->fit_count); d++)
		live &= mark_summary(journey->fits[d].named, part) |
			mark_summary(journey->fits[d].wide, part);
	return live;
}

/* The rules of one word that fit in all dimensions. */
static __always_inline u64 mark_fitting(struct journey *journey, u32 part, u64 bit, u64 index)
{
	u64 word = MARK_WORD(journey->fitting + MARK_WIDE_WORDS + index);

#pragma nounroll
	for (u32 d = 0; d < MARK_DIMENSION_MAX && mark_is_below(d, journey->fit_count); d++)
		word &= mark_set_word(journey->fits[d].named, part, bit) |
			MARK_WORD(journey->fits[d].wide + MARK_WIDE_WORDS + index);
	return word;
}

/* Where the header names the rules that a protocol fits. */
static __always_inline u32 mark_protocol(u8 protocol)
{
	if (protocol == IPPROTO_TCP)
		return MARK_HEADER_TCP;
	return protocol == IPPROTO_UDP ? MARK_HEADER_UDP : MARK_HEADER_SCTP;
}

/* Leaves what of each dimension fits the packet, and which words that leaves to look at. */
static __always_inline void mark_ask(struct hook_context *ctx, struct journey *journey, u64 base)
{
	u64 *header = mark_header(base)->word;
	u32 protocol = mark_protocol(packet_protocol(&journey->packet));
	struct mark_fit *fit;

	WRITE_ONCE(journey->fit_count, 0);
#pragma unroll
	for (u32 d = 0; d < MARK_DIMENSION_MAX; d++) {
		if (!(READ_ONCE(header[MARK_HEADER_USED]) >> d & 1))
			continue;
		fit = &journey->fits[READ_ONCE(journey->fit_count) & 7];
		fit->named = mark_search_dimension(ctx, &journey->packet, base, d);
		fit->wide = base + header[MARK_HEADER_WIDE + d];
		WRITE_ONCE(journey->fit_count, READ_ONCE(journey->fit_count) + 1);
	}
	journey->fitting = base + header[protocol];
#pragma nounroll
	for (u32 part = 0; part < 4; part++)
		journey->live[part] =
			part < header[MARK_HEADER_SUMMARIES] ? mark_live(journey, part) : 0;
}

/* The first part that has a word to look at. */
static __always_inline u32 mark_part(const u64 *live)
{
	u64 part = 3, seen = live[0];

	part += mark_all_if(seen);
	part += mark_all_if(seen |= live[1]);
	part += mark_all_if(seen | live[2]);
	return part & 3;
}

/* The verdict of the first rule that fits in all dimensions, 0 without one or where more is to do. */
static __always_inline u64 mark_scan(struct journey *journey, u64 base)
{
	u64 live, bit, index, word;
	u32 part;

	for (u32 i = 0; i < MARK_SCAN; i++) {
		part = mark_part(journey->live);
		live = journey->live[part];
		if (!live)
			break;
		bit = live & -live;
		journey->live[part] = live ^ bit;
		index = part * 64 + mark_count_bits(bit - 1);
		word = mark_fitting(journey, part, bit, index);
		if (!word)
			continue;
		index = index * 64 + mark_count_bits((word & -word) - 1);
		return MARK_WORD(base + mark_header(base)->word[MARK_HEADER_RULES] + index);
	}
	return 0;
}

/* Notes what was found; a rule that gives mark 0 keeps the packet from balancing. */
static __always_inline void mark_settle(struct hook_context *ctx, struct journey *journey,
					u64 verdict)
{
	journey->mark = verdict ? (u32)verdict : hook_mark(ctx);
	journey->excluded = verdict && !(u32)verdict;
}

/* By a rule set that has exact rules alone. */
static __always_inline void mark_by_target(struct hook_context *ctx, struct journey *journey)
{
	u64 verdict = 0;

	if (MARK_HAS_EXACT(journey->marks))
		verdict = mark_find_exact(&journey->packet, MARK_BASE(journey->marks));
	mark_settle(ctx, journey, verdict);
}

/* By any rule set; false where the program is to call itself again. */
static __always_inline bool mark_by_rules(struct hook_context *ctx, struct journey *journey)
{
	u64 base = MARK_BASE(journey->marks), exact = 0, verdict;

	if (!FEATURE_RULES)
		return true;
	if (!journey->asked)
		mark_ask(ctx, journey, base);
	verdict = mark_scan(journey, base);
	journey->asked = !verdict && journey->live[mark_part(journey->live)];
	if (journey->asked)
		return false;
	if (MARK_HAS_EXACT(journey->marks))
		exact = mark_find_exact(&journey->packet, base);
	if (exact && (!verdict || MARK_POSITION(exact) < MARK_POSITION(verdict)))
		verdict = exact;
	mark_settle(ctx, journey, verdict);
	journey->ruled = 1;
	return true;
}

/* The rules that were looked at are in use still: only others are ever written over. */
static __always_inline bool mark_is_current(struct journey *journey)
{
	return READ_ONCE(*ROW(switches, SWITCH_MARKS)) == journey->marks;
}

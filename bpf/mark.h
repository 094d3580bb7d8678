/* Mark rules: which mark a packet gets; the first rule that matches wins. */
#define MARK_GENERATION(word) ((u32)(word)&0xffff)
#define MARK_OFFSET(word) ((u32)((word) >> 16) & 0xffff)
#define MARK_ORDERED(word) (FEATURE_RULES ? (u32)((word) >> 32) & 0xffff : 0)
#define MARK_HAS_EXACT(word) ((word) >> 48 & 1)
/* No rule looks at anything but destination address, port and protocol. */
#define MARK_BY_TARGET(word) ((word) >> 49 & 1)
#define MARK_NONE 0xffffffff

/* What an ordered rule is compared with. */
struct mark_facts {
	u64 destination[2];
	u64 source[2];
	u64 mac;
	u32 ifindex;
	u32 protocols;
	u32 other_family; /* than the packet's */
	u16 vlan;
	u16 port;
};

static __always_inline void mark_gather(struct hook_context *ctx, struct packet *packet,
					struct mark_facts *facts)
{
	if (packet_is_ipv6(packet)) {
		__builtin_memcpy(facts->destination, packet->flow6.virtual, 16);
		__builtin_memcpy(facts->source, packet->flow6.client, 16);
		facts->other_family = FAMILY_IPV4;
	} else {
		facts->destination[0] = packet->flow4.virtual;
		facts->source[0] = packet->flow4.client;
		facts->other_family = FAMILY_IPV6;
	}
	facts->mac = packet_source_mac(ctx);
	facts->ifindex = packet->ifindex;
	facts->protocols = packet_protocol(packet) == IPPROTO_TCP ? 1 : 2;
	facts->vlan = packet->vlan;
	facts->port = bpf_ntohs(packet_virtual_port(packet));
}

/* 1 or 0 without a branch, each of which the verifier would follow for each of 64 rules. */
static __always_inline u64 mark_is_negative(u64 difference)
{
	asm volatile("" : "+r"(difference));
	return difference >> 63;
}

static __always_inline bool mark_rule_matches(struct mark_rule *rule, struct mark_facts *facts)
{
	u64 differs = (facts->destination[0] & rule->destination_mask[0]) ^ rule->destination[0];

	differs |= (facts->destination[1] & rule->destination_mask[1]) ^ rule->destination[1];
	differs |= (facts->source[0] & rule->source_mask[0]) ^ rule->source[0];
	differs |= (facts->source[1] & rule->source_mask[1]) ^ rule->source[1];
	differs |= (facts->mac & rule->mac_mask) ^ rule->mac;
	differs |= (facts->ifindex & rule->ifindex_mask) ^ rule->ifindex;
	differs |= (u64)((facts->vlan & rule->vlan_mask) ^ rule->vlan);
	differs |= mark_is_negative((u64)(facts->protocols & rule->protocols) - 1);
	differs |= mark_is_negative((u64)(rule->family ^ facts->other_family) - 1);
	differs |= mark_is_negative((u64)facts->port - rule->first_port);
	differs |= mark_is_negative((u64)rule->last_port - facts->port);
	return !differs;
}

static __always_inline void mark_find_exact(struct packet *packet, u64 word,
					    struct mark_verdict *found)
{
	struct mark_key key = {};
	struct mark_verdict *verdict;

	if (packet_is_ipv6(packet))
		__builtin_memcpy(key.address, packet->flow6.virtual, 16);
	else
		key.address[0] = packet->flow4.virtual;
	key.family = packet_is_ipv6(packet) ? FAMILY_IPV6 : FAMILY_IPV4;
	key.port = packet_virtual_port(packet);
	key.protocol = packet_protocol(packet);
	key.generation = MARK_GENERATION(word);
	verdict = mark_exact.lookup(&key);
	if (verdict)
		*found = *verdict;
}

static __always_inline void mark_find_ordered(struct hook_context *ctx, struct packet *packet,
					      u64 word, struct mark_verdict *found)
{
	struct mark_facts facts = {};
	struct mark_rule *rule;

	mark_gather(ctx, packet, &facts);
	for (u32 i = 0; i < MARK_RULES; i++) {
		if (i >= MARK_ORDERED(word))
			break;
		rule = ROW(mark_rules, MARK_OFFSET(word) + i);
		if (rule->position > found->position)
			break;
		if (!mark_rule_matches(rule, &facts))
			continue;
		found->mark = rule->mark;
		found->position = rule->position;
		break;
	}
}

/* Notes what was found; a rule that gives mark 0 keeps the packet from balancing. */
static __always_inline void mark_settle(struct hook_context *ctx, struct journey *journey,
					struct mark_verdict *found)
{
	bool matched = found->position != MARK_NONE;

	journey->mark = matched ? found->mark : hook_mark(ctx);
	journey->excluded = matched && !found->mark;
}

/* By a rule set that has exact rules alone. */
static __always_inline void mark_by_target(struct hook_context *ctx, struct journey *journey)
{
	struct mark_verdict found = { .mark = 0, .position = MARK_NONE };

	if (MARK_HAS_EXACT(journey->marks))
		mark_find_exact(&journey->packet, journey->marks, &found);
	mark_settle(ctx, journey, &found);
}

/* By any rule set. */
static __always_inline void mark_by_rules(struct hook_context *ctx, struct journey *journey)
{
	struct mark_verdict found = { .mark = 0, .position = MARK_NONE };

	if (MARK_HAS_EXACT(journey->marks))
		mark_find_exact(&journey->packet, journey->marks, &found);
	mark_find_ordered(ctx, &journey->packet, journey->marks, &found);
	mark_settle(ctx, journey, &found);
	journey->ruled = 1;
}

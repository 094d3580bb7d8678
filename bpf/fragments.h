/* The program that sends an IPv4 packet in fragments, one a run. */
#define CUT_PARTS (CUT_MOST / CUT_PART)
#define CUT_UNIT 8

#if !HOOK_IS_XDP

/* Finds the road, which has room for so much of each fragment, and its Ethernet header. */
static __always_inline int cut_learn(struct hook_context *ctx, struct cut *cut, u32 id)
{
	struct backend *backend = ROW(backends, id);
	bool ipv6 = backend->family == FAMILY_IPV6;
	struct bpf_fib_lookup fib = {};
	u8 *head = (u8 *)cut->head;

	if (nexthop_ask(ctx, &fib, ipv6, backend->address) != FIB_SUCCESS)
		return REASON_NO_ROUTE;
	__builtin_memcpy(head, fib.dmac, ETH_ALEN);
	__builtin_memcpy(head + ETH_ALEN, fib.smac, ETH_ALEN);
	*(__be16 *)(head + 2 * ETH_ALEN) = ETHERNET_IPV4;
	cut->ifindex = fib.ifindex;
	cut->room = (fib.mtu_result - sizeof(struct iphdr)) & ~(CUT_UNIT - 1);
	return fib.mtu_result >= IPV4_LEAST_MTU ? REASON_OK : REASON_TOO_BIG;
}

/*
 * Copies one part between the frame and what was taken aside: as far as that has come is in the
 * journey, where the verifier forgets it, since it would follow the loops for every length.
 */
static __always_inline int cut_copy(struct hook_context *ctx, struct cut *cut, u8 *payload,
				    bool is_taken)
{
	u64 left = READ_ONCE(cut->left), part = left < CUT_PART ? left : CUT_PART;
	u32 offset = READ_ONCE(cut->offset), from = READ_ONCE(cut->from);
	int failed;

	asm volatile("" : "+r"(from));
	payload += from & CUT_MOST - 1;
	failed = is_taken ? hook_load(ctx, offset, payload, part, CUT_PART) :
			    hook_store(ctx, offset, payload, part, CUT_PART);
	WRITE_ONCE(cut->left, left - part);
	WRITE_ONCE(cut->offset, offset + part);
	WRITE_ONCE(cut->from, from + part);
	return failed;
}

/* Copies so many bytes from what stands after the IP header, or to there. */
static __always_inline int cut_copy_all(struct hook_context *ctx, struct cut *cut, u64 cpu,
					u32 bytes, u32 from, bool is_taken)
{
	u8 *payload = (u8 *)CPU_ROW(cut_payloads, cpu, 0)->words;

	WRITE_ONCE(cut->left, bytes);
	WRITE_ONCE(cut->offset, PLAIN_HEAD + sizeof(struct iphdr));
	WRITE_ONCE(cut->from, from);
#pragma clang loop unroll(disable)
	for (u32 i = 0; i < CUT_PARTS; i++) {
		if (!READ_ONCE(cut->left))
			break;
		if (cut_copy(ctx, cut, payload, is_taken))
			return REASON_INTERNAL;
	}
	return READ_ONCE(cut->left) ? REASON_INTERNAL : REASON_OK;
}

/* Reads the packet that is to be sent in parts. */
static __always_inline int cut_begin(struct hook_context *ctx, struct journey *journey)
{
	struct cut *cut = &journey->cut;
	struct iphdr *ip = (struct iphdr *)cut->header;
	u32 total;
	int reason;

	if (bpf_skb_load_bytes(ctx, PLAIN_HEAD, cut->header, sizeof(*ip)))
		return REASON_INTERNAL;
	total = bpf_ntohs(ip->tot_len) - sizeof(*ip);
	/* options would have to be chosen for each part */
	if (ip->ihl != 5 || total - 1 >= CUT_MOST)
		return REASON_TOO_BIG;
	cut->total = total;
	cut->done = 0;
	cut->base = bpf_ntohs(ip->frag_off & IPV4_OFFSET);
	cut->more = ip->frag_off & IPV4_MORE;
	reason = cut_learn(ctx, cut, journey->forwarding.backend);
	return reason ? reason : cut_copy_all(ctx, cut, journey->packet.cpu, total, 0, true);
}

/* Makes the frame the next fragment, of so many bytes after its IP header. */
static __always_inline int cut_shape(struct hook_context *ctx, struct cut *cut, u64 cpu, u32 bytes)
{
	if (hook_cut(ctx, PLAIN_HEAD + sizeof(struct iphdr) + bytes))
		return REASON_INTERNAL;
	/* the first has its part where it is */
	return cut->done ? cut_copy_all(ctx, cut, cpu, bytes, cut->done, false) : REASON_OK;
}

/* Writes both headers of the fragment. */
static __always_inline int cut_head(struct hook_context *ctx, struct cut *cut, u32 bytes)
{
	struct iphdr *ip = (struct iphdr *)cut->header;
	bool more = cut->more || cut->done + bytes < cut->total;

	ip->tot_len = bpf_htons(bytes + sizeof(*ip));
	ip->frag_off = bpf_htons(cut->base + cut->done / CUT_UNIT) | (more ? IPV4_MORE : 0);
	ip->check = 0;
	cut->header[2] &= 0xffffffff;
	ip->check = ~checksum_fold(checksum_words(cut->header, 3));
	if (bpf_skb_store_bytes(ctx, PLAIN_HEAD, ip, sizeof(*ip), 0) ||
	    bpf_skb_store_bytes(ctx, 0, cut->head, PLAIN_HEAD, 0))
		return REASON_INTERNAL;
	return REASON_OK;
}

/* Sends one fragment; the program calls itself until it comes to the last. */
static __always_inline int cut_send(struct hook_context *ctx, struct journey *journey)
{
	struct cut *cut = &journey->cut;
	u64 cpu = journey->packet.cpu;
	u32 left, bytes;
	int reason;

	if (!cut->total) {
		reason = cut_begin(ctx, journey);
		if (reason)
			return reason;
		/* the verifier would follow both loops together */
		programs.call(ctx, PROGRAM_CUT);
		return REASON_INTERNAL;
	}
	left = cut->total - cut->done;
	bytes = left < cut->room ? left : cut->room;
	if (cut_shape(ctx, cut, cpu, bytes) || cut_head(ctx, cut, bytes))
		return REASON_INTERNAL;
	if (bytes == left) {
		journey->packet.action = bpf_redirect(cut->ifindex, 0);
		return REASON_OK;
	}
	if (bpf_clone_redirect(ctx, cut->ifindex, 0))
		return REASON_NO_ROUTE;
	cut->done += bytes;
	programs.call(ctx, PROGRAM_CUT);
	/* more fragments than programs may call each other */
	return REASON_TOO_BIG;
}

/* The program's whole way. */
static __always_inline int cut_exit(struct hook_context *ctx, struct journey *journey)
{
	struct forwarding *forwarding = &journey->forwarding;
	struct packet *packet = &journey->packet;
	struct lane *lane = CPU_ROW(lanes, packet->cpu, forwarding->backend);
	int reason = cut_send(ctx, journey);

	if (reason)
		return exit_with(ctx, reason, packet, forwarding->mark);
	forward_count(ctx, packet, lane, forwarding, 1);
	return exit_with(ctx, forwarding->reason, packet, forwarding->mark);
}

#endif

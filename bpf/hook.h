/* All that differs between XDP and TC. */
#define HANDOVER_MAGIC 0x6c767378
/* As much of a packet as any parser here reads without extension headers. */
#define HEADER_BYTES 128

#ifndef AF_INET
#define AF_INET 2
#define AF_INET6 10
#endif

/* BCC's own header gives this helper three arguments; the kernel's has four. */
struct neighbour_parameters {
	u32 family;
	__be32 address[4];
};
static long (*redirect_neighbour)(u32 ifindex, struct neighbour_parameters *parameters, int length,
				  u64 flags) = (void *)BPF_FUNC_redirect_neigh;

/*
 * A field of the context.  The compiler may reckon a field's address in one place and read it in
 * another, which the verifier refuses ("dereference of modified ctx ptr"); of this it cannot.
 */
#define HOOK_LOAD(ctx, field)                                                                  \
	({                                                                                     \
		u64 loaded;                                                                    \
		asm volatile("%0 = *(u32 *)(%1 + %2)"                                          \
			     : "=r"(loaded)                                                    \
			     : "r"(ctx), "i"(__builtin_offsetof(struct hook_context, field))); \
		loaded;                                                                        \
	})

/* 1 to `most` bytes, in a way that the verifier follows. */
static __always_inline bool hook_has_bound(s64 *bytes, u64 most)
{
	/* verifier, where both comparisons become one of another number: "invalid zero-sized read" */
	asm volatile("" : "+r"(*bytes));
	if (*bytes <= 0)
		return false;
	asm volatile("" : "+r"(*bytes));
	return *bytes <= most;
}

#ifdef HOOK_XDP

#define hook_context xdp_md
#define HOOK_IS_XDP 1
#define HOOK_PASS XDP_PASS
#define HOOK_DROP XDP_DROP
#define HOOK_TX XDP_TX

static __always_inline u32 hook_ifindex(struct hook_context *ctx)
{
	return HOOK_LOAD(ctx, ingress_ifindex);
}

/* The whole frame, also where only its first buffer can be read. */
static __always_inline u32 hook_length(struct hook_context *ctx)
{
	return bpf_xdp_get_buff_len(ctx);
}

/* Native XDP sees every tag in the frame itself. */
static __always_inline u16 hook_vlan(struct hook_context *ctx)
{
	return 0;
}

static __always_inline u32 hook_mark(struct hook_context *ctx)
{
	return 0;
}

/* How many packets on the wire this one stands for. */
static __always_inline u32 hook_segments(struct hook_context *ctx)
{
	return 1;
}

/* A driver always gives XDP the headers in the first buffer. */
static __always_inline void hook_prepare(struct hook_context *ctx)
{
}

/*
 * Removes `bytes` from the head, or puts as many before it where they are below 0, so that every
 * pointer into the packet is stale after it.
 */
static __always_inline int hook_pull(struct hook_context *ctx, int bytes)
{
	return bpf_xdp_adjust_head(ctx, bytes);
}

/* Copies bytes of the packet, whichever buffer they are in: 1 to `most`. */
static __always_inline int hook_load(struct hook_context *ctx, u32 offset, void *to, s64 bytes,
				     u64 most)
{
	if (!hook_has_bound(&bytes, most))
		return -1;
	return bpf_xdp_load_bytes(ctx, offset, to, bytes);
}

static __always_inline int hook_store(struct hook_context *ctx, u32 offset, void *from, s64 bytes,
				      u64 most)
{
	if (!hook_has_bound(&bytes, most))
		return -1;
	return bpf_xdp_store_bytes(ctx, offset, from, bytes);
}

/* Leaves `bytes` of the frame, so that every pointer into the packet is stale after it. */
static __always_inline int hook_cut(struct hook_context *ctx, u32 bytes)
{
	return bpf_xdp_adjust_tail(ctx, (int)(bytes - hook_length(ctx)));
}

/* Makes room before the frame, so that every pointer into the packet is stale after it. */
static __always_inline int hook_push(struct hook_context *ctx, u32 bytes)
{
	return bpf_xdp_adjust_head(ctx, -(int)bytes);
}

/* Writes the handover before the packet, so that every pointer into the packet is stale after it. */
static __always_inline int hook_hand_over(struct hook_context *ctx, struct handover *handover)
{
	struct handover *place;

	if (bpf_xdp_adjust_meta(ctx, -(int)sizeof(*place)))
		return -1;
	place = (void *)HOOK_LOAD(ctx, data_meta);
	if ((void *)(place + 1) > (void *)HOOK_LOAD(ctx, data))
		return -1;
	*place = *handover;
	return 0;
}

#else

#define hook_context __sk_buff
#define HOOK_IS_XDP 0
/* Lets the filters after this one have the packet too. */
#define HOOK_PASS TC_ACT_UNSPEC
#define HOOK_DROP TC_ACT_SHOT

static __always_inline u32 hook_ifindex(struct hook_context *ctx)
{
	return HOOK_LOAD(ctx, ifindex);
}

static __always_inline u32 hook_length(struct hook_context *ctx)
{
	return HOOK_LOAD(ctx, len);
}

/* The outermost tag, which the kernel keeps beside the frame; tag + 1, 0 where there is none. */
static __always_inline u16 hook_vlan(struct hook_context *ctx)
{
	return HOOK_LOAD(ctx, vlan_present) ? (HOOK_LOAD(ctx, vlan_tci) & 0xfff) + 1 : 0;
}

static __always_inline u32 hook_mark(struct hook_context *ctx)
{
	return HOOK_LOAD(ctx, mark);
}

static __always_inline u32 hook_segments(struct hook_context *ctx)
{
	u32 segments = HOOK_LOAD(ctx, gso_segs);

	return segments ? segments : 1;
}

/*
 * Generic XDP can leave TC with a frame that starts at its IP header (Linux 6.18: the length of the
 * MAC header is lost when it copies the packet).  Puts the MAC header back in front, so that every
 * pointer into the packet is stale after it.
 */
static __always_inline int hook_repair(struct hook_context *ctx)
{
	u8 *frame = (void *)HOOK_LOAD(ctx, data);
	u64 mac[2] = {};

	if (bpf_skb_load_bytes_relative(ctx, 0, mac, ETH_HLEN, BPF_HDR_START_MAC))
		return -1;
	if (frame + ETH_HLEN > (u8 *)HOOK_LOAD(ctx, data_end))
		return -1;
	if (*(u64 *)frame == mac[0] && *(u32 *)(frame + 8) == (u32)mac[1])
		return 0;
	if (bpf_skb_change_head(ctx, ETH_HLEN, 0))
		return -1;
	return bpf_skb_store_bytes(ctx, 0, mac, ETH_HLEN, 0);
}

/* Copies bytes of the packet, wherever they are: 1 to `most`. */
static __always_inline int hook_load(struct hook_context *ctx, u32 offset, void *to, s64 bytes,
				     u64 most)
{
	if (!hook_has_bound(&bytes, most))
		return -1;
	return bpf_skb_load_bytes(ctx, offset, to, bytes);
}

static __always_inline int hook_store(struct hook_context *ctx, u32 offset, void *from, s64 bytes,
				      u64 most)
{
	if (!hook_has_bound(&bytes, most))
		return -1;
	return bpf_skb_store_bytes(ctx, offset, from, bytes, BPF_F_RECOMPUTE_CSUM);
}

/*
 * Leaves `bytes` of the frame, and a train of segments is none any more, so that every pointer into
 * the packet is stale after it.
 */
static __always_inline int hook_cut(struct hook_context *ctx, u32 bytes)
{
	return bpf_skb_change_tail(ctx, bytes, 0);
}

/* Makes room before the frame, so that every pointer into the packet is stale after it. */
static __always_inline int hook_push(struct hook_context *ctx, u32 bytes)
{
	return bpf_skb_change_head(ctx, bytes, 0);
}

/* The IP packet's size on the wire: of each segment, where the kernel will cut it. */
static __always_inline u32 hook_segment_bytes(struct hook_context *ctx, u32 bytes, u32 headers)
{
	u32 size = HOOK_LOAD(ctx, gso_size);

	return size ? size + headers : bytes;
}

/* Makes the headers readable, so that every pointer into the packet is stale after it. */
static __always_inline void hook_prepare(struct hook_context *ctx)
{
	u64 here = HOOK_LOAD(ctx, data_end) - HOOK_LOAD(ctx, data);
	u32 length = HOOK_LOAD(ctx, len);

	if (here < HEADER_BYTES && length > here)
		bpf_skb_pull_data(ctx, length < HEADER_BYTES ? length : HEADER_BYTES);
}

#endif

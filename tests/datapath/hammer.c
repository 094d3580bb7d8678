/* Sends packets of new clients in turn, and notes where each went and when. */
#include <uapi/linux/bpf.h>

#define FRAME_BYTES 80
#define KINDS 3
/* Where the client's last bytes are in a frame: only they differ. */
#define CLIENT 28
#define MAC_BYTES 6
/* So many decisions are kept: the last. */
#define DECISIONS (1 << 22)
/* What the last byte of a test run's own frame is, which no packet has. */
#define FRESH 0xee
/* Between two packets it asks the clock so often, so that there is room for them all. */
#define PAUSE 300
#define HANDED_OVER 0xffff

struct frame {
	u8 bytes[FRAME_BYTES];
};

struct decision {
	u64 began; /* ns, CLOCK_MONOTONIC */
	u32 took; /* ns */
	u16 kind;
	u16 backend; /* the end of its MAC; 0: it was not sent */
};

struct standing {
	u64 began; /* when the last packet was sent; 0: none */
	u64 count;
};

BPF_ARRAY(frames, struct frame, KINDS);
BPF_ARRAY(standings, struct standing, 1);
BPF_F_TABLE("array", u32, struct decision, decisions, DECISIONS, BPF_F_MMAPABLE);
/* The program under test at 0. */
BPF_PROG_ARRAY(subjects, 1);

/* Where the packet went that is still as the last run left it. */
static __always_inline u32 hammer_backend(struct xdp_md *ctx, struct frame *sent)
{
	u8 *frame = (void *)(long)ctx->data;
	u32 differs = 0;

	if (ctx->data != ctx->data_meta)
		return HANDED_OVER;
	if ((void *)(frame + MAC_BYTES) > (void *)(long)ctx->data_end)
		return 0;
#pragma unroll
	for (int i = 0; i < MAC_BYTES; i++)
		differs |= frame[i] ^ sent->bytes[i];
	return differs ? frame[4] << 8 | frame[5] : 0;
}

static __always_inline void hammer_note(struct xdp_md *ctx, struct standing *standing, u64 now)
{
	u32 row = (standing->count - 1) % DECISIONS, kind = (standing->count - 1) % KINDS;
	struct frame *left = (void *)(long)ctx->data;
	struct decision *decision = decisions.lookup(&row);
	struct frame *sent = frames.lookup(&kind);

	if (!decision || !sent || !standing->began)
		return;
	if ((void *)(left + 1) > (void *)(long)ctx->data_end ||
	    left->bytes[FRAME_BYTES - 1] == FRESH)
		return;
	decision->began = standing->began;
	decision->took = now - standing->began;
	decision->kind = kind;
	decision->backend = hammer_backend(ctx, sent);
}

int driver(struct xdp_md *ctx)
{
	u32 zero = 0, kind, drawn = bpf_get_prandom_u32();
	struct standing *standing = standings.lookup(&zero);
	u64 now = bpf_ktime_get_ns();
	struct frame *sent, *frame;
	int metadata;

	if (!standing)
		return XDP_ABORTED;
	hammer_note(ctx, standing, now);
	standing->began = 0;
	kind = standing->count % KINDS;
	standing->count++;
	metadata = (int)(ctx->data - ctx->data_meta);
	if (metadata && bpf_xdp_adjust_meta(ctx, metadata))
		return XDP_ABORTED;
	sent = frames.lookup(&kind);
	frame = (void *)(long)ctx->data;
	if (!sent || (void *)(frame + 1) > (void *)(long)ctx->data_end)
		return XDP_ABORTED;
	*frame = *sent;
	frame->bytes[CLIENT] = drawn;
	frame->bytes[CLIENT + 1] = drawn >> 8;
#pragma clang loop unroll(disable)
	for (int i = 0; i < PAUSE; i++)
		now = bpf_ktime_get_ns();
	standing->began = now;
	subjects.call(ctx, 0);
	return XDP_ABORTED;
}

/* Sends packets of any flow, with any flags, in any order: what happens next is nobody's plan. */
#include <uapi/linux/bpf.h>
#include <uapi/linux/if_ether.h>
#include <uapi/linux/ip.h>
#include <uapi/linux/tcp.h>

#define FRAME_BYTES 80
/* Of so many flows the first are real clients': each is its client's only one, and is never closed. */
#define FLOWS 4096
/* For 33 ms most packets are of so few flows; those before are left alone, so that their time ends. */
#define BUSY_FLOWS 128
#define BUSY_SHIFT 25
#define REAL_FLOWS 16
/* The others' clients have so many each. */
#define CLIENT_FLOWS 2
/* A quarter of the packets is for a second service, which has so few flows that it is never full. */
#define FEW_FLOWS 16
#define FEW_PORT 81
#define REAL_NET 0x0a000000
#define FLOOD_NET 0x14000000
#define FEW_NET 0x1e000000

#define SYN 2ULL
#define RST 4ULL
#define ACK 16ULL
#define FIN 17ULL
/* A byte for each of the eight that a packet's flags are drawn from. */
#define REAL_FLAGS \
	(SYN | SYN << 8 | SYN << 16 | SYN << 24 | ACK << 32 | ACK << 40 | ACK << 48 | ACK << 56)
#define FLOOD_FLAGS \
	(SYN | SYN << 8 | SYN << 16 | ACK << 24 | ACK << 32 | RST << 40 | RST << 48 | FIN << 56)

struct frame {
	u8 bytes[FRAME_BYTES];
};

/* An Ethernet frame with IPv4 and TCP, to the service. */
BPF_ARRAY(frames, struct frame, 1);
/* The program under test at 0. */
BPF_PROG_ARRAY(subjects, 1);

/* Undoes what the last run did to head and metadata. */
static __always_inline int driver_restore(struct xdp_md *ctx)
{
	int moved = (int)(ctx->data_end - ctx->data) - FRAME_BYTES;
	int metadata = (int)(ctx->data - ctx->data_meta);

	if (metadata && bpf_xdp_adjust_meta(ctx, metadata))
		return -1;
	return moved ? bpf_xdp_adjust_head(ctx, moved) : 0;
}

int driver(struct xdp_md *ctx)
{
	u32 zero = 0, drawn = bpf_get_prandom_u32(), flow = drawn & (FLOWS - 1);
	u32 eighth = (drawn >> 16 & 7) * 8, busy = bpf_ktime_get_ns() >> BUSY_SHIFT;
	struct frame *sent = frames.lookup(&zero), *frame;
	struct tcphdr *tcp;
	struct iphdr *ip;

	if (!sent || driver_restore(ctx))
		return XDP_ABORTED;
	frame = (void *)(long)ctx->data;
	if ((void *)(frame + 1) > (void *)(long)ctx->data_end)
		return XDP_ABORTED;
	if (drawn >> 20 & 7)
		flow = (flow & (BUSY_FLOWS - 1)) + busy % (FLOWS / BUSY_FLOWS) * BUSY_FLOWS;
	else if (drawn >> 23 & 1)
		flow &= REAL_FLOWS - 1;
	*frame = *sent;
	ip = (void *)frame + sizeof(struct ethhdr);
	tcp = (void *)(ip + 1);
	if (!(drawn >> 24 & 3)) {
		flow &= FEW_FLOWS - 1;
		ip->saddr = bpf_htonl(FEW_NET + flow / CLIENT_FLOWS);
		tcp->source = bpf_htons(1024 + flow % CLIENT_FLOWS);
		tcp->dest = bpf_htons(FEW_PORT);
		((u8 *)tcp)[13] = FLOOD_FLAGS >> eighth;
	} else if (flow < REAL_FLOWS) {
		ip->saddr = bpf_htonl(REAL_NET + flow);
		((u8 *)tcp)[13] = REAL_FLAGS >> eighth;
	} else {
		ip->saddr = bpf_htonl(FLOOD_NET + flow / CLIENT_FLOWS);
		tcp->source = bpf_htons(1024 + flow % CLIENT_FLOWS);
		((u8 *)tcp)[13] = FLOOD_FLAGS >> eighth;
	}
	subjects.call(ctx, 0);
	return XDP_ABORTED;
}

/* The bench's driver: restores the packet, varies its flow, and runs the program under test. */
#include <uapi/linux/bpf.h>
#include <uapi/linux/if_ether.h>
#include <uapi/linux/ip.h>
#include <uapi/linux/tcp.h>

#define FRAME_BYTES 80
#define SPREAD 2654435761U

/* What one case sends. */
struct bench_case {
	u64 counter;
	u32 flow_mask; /* number of flows - 1, a power of two - 1 */
	u32 ipv6; /* the flow is not varied */
	u32 spread; /* 1: flows in random order, 0: each flow once */
	u32 padding;
	u8 frame[FRAME_BYTES];
};

struct reference_value {
	u8 destination[6];
	u8 source[6];
	u32 padding;
};

struct reference_key {
	__be32 client;
	__be32 virtual;
	__be16 client_port;
	__be16 virtual_port;
	u32 protocol;
};

/* The case that runs now; written by the bench. */
BPF_ARRAY(cases, struct bench_case, 1);
/* The program under test at 0. */
BPF_PROG_ARRAY(subjects, 1);
/* The reference program's table. */
BPF_F_TABLE("lru_hash", struct reference_key, struct reference_value, reference_table, 65536, 0);

/* Undoes what the last run did to head and metadata. */
static __always_inline int driver_restore(struct xdp_md *ctx)
{
	int moved = (int)(ctx->data_end - ctx->data) - FRAME_BYTES;
	int metadata = (int)(ctx->data - ctx->data_meta);

	if (metadata && bpf_xdp_adjust_meta(ctx, metadata))
		return -1;
	if (moved && bpf_xdp_adjust_head(ctx, moved))
		return -1;
	return 0;
}

int driver(struct xdp_md *ctx)
{
	u32 zero = 0, flow;
	struct bench_case *bench = cases.lookup(&zero);
	struct iphdr *ip;
	struct tcphdr *tcp;
	void *frame;

	if (!bench || driver_restore(ctx))
		return XDP_ABORTED;
	frame = (void *)(long)ctx->data;
	if (frame + FRAME_BYTES > (void *)(long)ctx->data_end)
		return XDP_ABORTED;
	__builtin_memcpy(frame, bench->frame, FRAME_BYTES);
	flow = bench->counter++;
	if (!bench->ipv6) {
		flow = (bench->spread ? flow * SPREAD : flow) & bench->flow_mask;
		ip = frame + sizeof(struct ethhdr);
		tcp = (void *)(ip + 1);
		ip->saddr += bpf_htonl(flow >> 4);
		tcp->source += bpf_htons(flow & 15);
	}
	subjects.call(ctx, 0);
	return XDP_ABORTED;
}

/* The floor: all of the harness and nothing else. */
int floor_program(struct xdp_md *ctx)
{
	return XDP_PASS;
}

/* The reference: parse, one LRU hash look-up, MAC rewrite. */
int reference_program(struct xdp_md *ctx)
{
	void *end = (void *)(long)ctx->data_end;
	struct ethhdr *ethernet = (void *)(long)ctx->data;
	struct iphdr *ip = (void *)(ethernet + 1);
	struct tcphdr *tcp = (void *)(ip + 1);
	struct reference_key key = {};
	struct reference_value *value;

	if ((void *)(tcp + 1) > end)
		return XDP_PASS;
	if (ethernet->h_proto != bpf_htons(ETH_P_IP) || ip->ihl != 5)
		return XDP_PASS;
	key.client = ip->saddr;
	key.virtual = ip->daddr;
	key.client_port = tcp->source;
	key.virtual_port = tcp->dest;
	key.protocol = ip->protocol;
	value = reference_table.lookup(&key);
	if (!value)
		return XDP_PASS;
	__builtin_memcpy(ethernet->h_dest, value->destination, 6);
	__builtin_memcpy(ethernet->h_source, value->source, 6);
	return XDP_TX;
}

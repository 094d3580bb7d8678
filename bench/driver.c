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
	u32 clients; /* 1: a flow is a client, 0: 16 flows are */
	u32 target_mask; /* number of destinations - 1, a power of two - 1; those of IPv4 alone */
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

#define COPY(type, offset) (*(type *)(frame + (offset)) = *(type *)(bench->frame + (offset)))
#define ADDRESSES4 26
#define ADDRESSES6 22

/*
 * Writes the headers, each part with one store that is as wide as the load that reads it: what a
 * load has to gather from several stores waits until they have left the store buffer, and with
 * them for every miss before; a packet that a NIC has written has none of that.
 */
static __always_inline void driver_write(void *frame, struct bench_case *bench, u32 flow)
{
	u32 high = bpf_htonl(bench->clients ? flow : flow >> 4);
	u32 ports = bench->clients ? 0 : bpf_htons(flow & 15);
	u64 target = bpf_htonl(flow * SPREAD >> 12 & bench->target_mask);

	COPY(u64, 0);
	COPY(u32, 8);
	COPY(u16, 12);
	if (bench->ipv6) {
		COPY(u64, 14);
		COPY(u64, ADDRESSES6);
		COPY(u64, ADDRESSES6 + 8);
		COPY(u64, ADDRESSES6 + 16);
		COPY(u64, ADDRESSES6 + 24);
		COPY(u32, 54);
		return;
	}
	COPY(u8, 22);
	COPY(u16, 24);
	*(u64 *)(frame + ADDRESSES4) = *(u64 *)(bench->frame + ADDRESSES4) + high + (target << 32);
	*(u32 *)(frame + 34) = *(u32 *)(bench->frame + 34) + ports;
}

int driver(struct xdp_md *ctx)
{
	u32 zero = 0, flow;
	struct bench_case *bench = cases.lookup(&zero);
	void *frame;

	if (!bench || driver_restore(ctx))
		return XDP_ABORTED;
	frame = (void *)(long)ctx->data;
	if (frame + FRAME_BYTES > (void *)(long)ctx->data_end)
		return XDP_ABORTED;
	flow = bench->counter++;
	flow = (bench->spread ? flow * SPREAD : flow) & bench->flow_mask;
	driver_write(frame, bench, flow);
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

/* Room for an IPv4 header, which the driver takes away again: both are in what a tunnel costs here. */
int room_program(struct xdp_md *ctx)
{
	return bpf_xdp_adjust_head(ctx, -(int)sizeof(struct iphdr)) ? XDP_PASS : XDP_TX;
}

struct line {
	u64 words[8];
};

/* As much memory as a table of 1,048,576 connections takes. */
BPF_F_TABLE("array", u32, struct line, lines, 2097152, BPF_F_MMAPABLE);

/* One cache line a flow, in random order: what state in memory costs at least. */
int line_program(struct xdp_md *ctx)
{
	void *end = (void *)(long)ctx->data_end;
	struct iphdr *ip = (void *)(long)ctx->data + sizeof(struct ethhdr);
	struct tcphdr *tcp = (void *)(ip + 1);
	struct line *line;
	u32 place;

	if ((void *)(tcp + 1) > end)
		return XDP_PASS;
	place = (bpf_ntohl(ip->saddr) << 4) + (bpf_ntohs(tcp->source) & 15);
	place = (place * SPREAD) >> 11;
	line = lines.lookup(&place);
	if (!line || line->words[0])
		return XDP_PASS;
	return XDP_TX;
}

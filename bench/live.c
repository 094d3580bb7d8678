/* The ends of the live benches: a generator that writes each frame anew, and what counts them. */
#include <uapi/linux/bpf.h>
#include <uapi/linux/if_ether.h>
#include <uapi/linux/in.h>
#include <uapi/linux/ip.h>
#include <uapi/linux/tcp.h>

#define FRAME_BYTES 80
#define SPREAD 2654435761U
#define BACKENDS 2
#define WRONG BACKENDS

/* What the generator sends, and where. */
struct live_case {
	u64 counter;
	u32 flow_mask; /* number of flows - 1, a power of two - 1 */
	u32 spread; /* 1: flows in random order, 0: each flow once */
	u32 clients; /* 1: a flow is a client, 0: 16 flows are */
	u32 ifindex;
	u32 ip_sum; /* of all but the source address */
	u32 tcp_sum; /* of all but the source address and port */
	u8 frame[FRAME_BYTES];
};

/* What goes on beside a bench: established flows, and new ones that go on LAG flows later. */
#define KINDS 3
#define VIRTUALS 2
#define LAG 512
struct live_pace {
	u64 interval; /* nanoseconds from one frame to the next */
	u64 began; /* by the kernel's monotonic clock; set by the first frame */
	u64 sent;
};

enum kind {
	KIND_ESTABLISHED = 0,
	KIND_NEW = 1,
	KIND_SECOND = 2,
};

/* generate sends the first case; pace one for each kind and address. Written by the bench. */
BPF_ARRAY(cases, struct live_case, KINDS *VIRTUALS);
BPF_ARRAY(paces, struct live_pace, 1);
/* The destination address of what each backend gets; written by the bench. */
BPF_ARRAY(expected, u32, BACKENDS);
/* Frames for each backend, and those that are for none. */
BPF_PERCPU_ARRAY(arrived, u64, BACKENDS + 1);

static __always_inline u16 live_fold(u32 sum)
{
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	return ~sum;
}

/* A frame is written whole: what the last run did to its bytes is still there. */
static __always_inline int live_send(struct xdp_md *ctx, struct live_case *bench, u32 flow)
{
	u8 *frame = (void *)(long)ctx->data;
	struct iphdr *ip = (void *)(frame + ETH_HLEN);
	struct tcphdr *tcp = (void *)(ip + 1);
	u32 source;
	u16 port;

	if (frame + FRAME_BYTES > (u8 *)(long)ctx->data_end)
		return XDP_ABORTED;
	__builtin_memcpy(frame, bench->frame, FRAME_BYTES);
	source = ip->saddr + bpf_htonl(bench->clients ? flow : flow >> 4);
	port = tcp->source + (bench->clients ? 0 : bpf_htons(flow & 15));
	ip->saddr = source;
	tcp->source = port;
	source = (source & 0xffff) + (source >> 16);
	ip->check = live_fold(bench->ip_sum + source);
	tcp->check = live_fold(bench->tcp_sum + source + port);
	return bpf_redirect(bench->ifindex, 0);
}

/* Sends as fast as it can. */
int generate(struct xdp_md *ctx)
{
	u32 zero = 0, flow;
	struct live_case *bench = cases.lookup(&zero);

	if (!bench)
		return XDP_ABORTED;
	flow = bench->counter++;
	return live_send(ctx, bench, (bench->spread ? flow * SPREAD : flow) & bench->flow_mask);
}

/* Sends a frame when it is due, and none before: half of them of established flows. */
int pace(struct xdp_md *ctx)
{
	u32 zero = 0, flow, place, kind = KIND_ESTABLISHED;
	struct live_pace *pace = paces.lookup(&zero);
	u64 now = bpf_ktime_get_ns(), turn;
	struct live_case *bench;

	if (!pace)
		return XDP_ABORTED;
	if (!pace->began)
		pace->began = now;
	if (now < pace->began + pace->sent * pace->interval)
		return XDP_DROP;
	turn = pace->sent++;
	flow = turn >> 2;
	if (turn & 1)
		kind = turn & 2 ? KIND_SECOND : KIND_NEW;
	else
		flow = turn >> 1;
	place = kind * VIRTUALS + (flow & 1);
	bench = cases.lookup(&place);
	if (!bench)
		return XDP_ABORTED;
	if (kind == KIND_NEW)
		flow += LAG;
	return live_send(ctx, bench, flow & bench->flow_mask);
}

static __always_inline int live_count(u32 place)
{
	u64 *count = arrived.lookup(&place);

	if (count)
		*count += 1;
	return XDP_DROP;
}

/* At the backends' end: whose MAC a frame has, and whether its address is that backend's. */
int sink(struct xdp_md *ctx)
{
	u8 *frame = (void *)(long)ctx->data;
	struct iphdr *ip = (void *)(frame + ETH_HLEN);
	u32 backend, *address;

	if ((void *)(ip + 1) > (void *)(long)ctx->data_end)
		return XDP_DROP;
	if (frame[12] != 8 || frame[13] ||
	    (ip->protocol != IPPROTO_TCP && ip->protocol != IPPROTO_IPIP))
		return XDP_DROP;
	backend = frame[5] - 0x0b;
	address = expected.lookup(&backend);
	if (frame[0] != 2 || frame[4] != 1 || !address || *address != ip->daddr)
		return live_count(WRONG);
	return live_count(backend);
}

/* In the balancer's place: nothing is forwarded, so that what generating costs is seen. */
int drain(struct xdp_md *ctx)
{
	return live_count(0);
}

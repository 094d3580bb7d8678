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

/* The case that runs now; written by the bench. */
BPF_ARRAY(cases, struct live_case, 1);
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

/* Runs on live frames: what the last run did to a frame's bytes is still there. */
int generate(struct xdp_md *ctx)
{
	u32 zero = 0, flow, source;
	struct live_case *bench = cases.lookup(&zero);
	u8 *frame = (void *)(long)ctx->data;
	struct iphdr *ip = (void *)(frame + ETH_HLEN);
	struct tcphdr *tcp = (void *)(ip + 1);
	u16 port;

	if (!bench || frame + FRAME_BYTES > (u8 *)(long)ctx->data_end)
		return XDP_ABORTED;
	flow = bench->counter++;
	flow = (bench->spread ? flow * SPREAD : flow) & bench->flow_mask;
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
	if (frame[12] != 8 || frame[13] || ip->protocol != IPPROTO_TCP)
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

/* At the backends' end: counts frames, and those whose flow another backend has had before. */
#include <uapi/linux/bpf.h>
#include <uapi/linux/if_ether.h>
#include <uapi/linux/in.h>
#include <uapi/linux/ip.h>
#include <uapi/linux/tcp.h>

#define FLOWS (1 << 20)

enum count {
	COUNT_ARRIVED = 0,
	COUNT_MOVED = 1,
	COUNT_OTHER = 2,
	COUNT_MAX = 3,
};

/* Source address and port << 32 -> the backend that the flow's first frame had. */
BPF_HASH(seen, u64, u32, FLOWS);
BPF_PERCPU_ARRAY(counts, u64, COUNT_MAX);

static __always_inline int witness_count(u32 place)
{
	u64 *count = counts.lookup(&place);

	if (count)
		*count += 1;
	return XDP_DROP;
}

int witness(struct xdp_md *ctx)
{
	u8 *frame = (void *)(long)ctx->data;
	struct iphdr *ip = (void *)(frame + ETH_HLEN);
	struct tcphdr *tcp = (void *)(ip + 1);
	u32 backend, *before;
	u64 flow;

	if ((void *)(tcp + 1) > (void *)(long)ctx->data_end)
		return witness_count(COUNT_OTHER);
	if (frame[12] != 8 || frame[13] || ip->protocol != IPPROTO_TCP || frame[0] != 2)
		return witness_count(COUNT_OTHER);
	backend = frame[4] << 8 | frame[5];
	flow = (u64)tcp->source << 32 | ip->saddr;
	before = seen.lookup(&flow);
	if (!before)
		seen.update(&flow, &backend);
	else if (*before != backend)
		return witness_count(COUNT_MOVED);
	return witness_count(COUNT_ARRIVED);
}

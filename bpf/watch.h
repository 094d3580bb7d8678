/* Counts the packets that the kernel lost on their way out, after XDP had sent them. */

/*
 * Where the fields are in the structs of the kernel that runs, and which namespace this balancer is
 * in: the loader writes them into the code (watching.py).
 */
#define DEVICE_IFINDEX KERNEL_NUMBER(0)
#define DEVICE_NAMESPACE KERNEL_NUMBER(1)
#define NAMESPACE_COOKIE KERNEL_NUMBER(2)
#define PROGRAM_AUX KERNEL_NUMBER(3)
#define AUX_NAME KERNEL_NUMBER(4)
#define OUR_COOKIE KERNEL_NUMBER(5)
#define OUR_NAME KERNEL_NUMBER(6)

/* 64 bits inside an object of the kernel's; 0 where they cannot be read. */
static __always_inline u64 watch_read(u64 object, u64 offset)
{
	u64 value = 0;

	bpf_probe_read_kernel(&value, sizeof(value), (void *)(object + offset));
	return value;
}

static __always_inline u32 watch_ifindex(u64 device)
{
	return watch_read(device, DEVICE_IFINDEX);
}

static __always_inline bool watch_is_here(u64 device)
{
	return watch_read(watch_read(device, DEVICE_NAMESPACE), NAMESPACE_COOKIE) == OUR_COOKIE;
}

/* XDP of ours is attached to the device. */
static __always_inline bool watch_is_attached(u64 device)
{
	return maps_interface(watch_ifindex(device))->flags & INTERFACE_XDP &&
	       watch_is_here(device);
}

/* The program has the name that ours have, as far as a word holds it. */
static __always_inline bool watch_is_ours(u64 program)
{
	return watch_read(watch_read(program, PROGRAM_AUX), AUX_NAME) == OUR_NAME;
}

/* Counts packets that were lost on their way out of an interface. */
static __always_inline void watch_count(u32 ifindex, u64 packets)
{
	u64 row = ifindex < INTERFACE_CAPACITY ? ifindex : 0;

	stats_count_reason(bpf_get_smp_processor_id(), REASON_REDIRECT_FAILED, packets);
	__sync_fetch_and_add(ROW(redirect_failures, row), packets);
}

/* xdp_redirect_err: device in, program, target, error, map's type, map, interface out. */
int watch_redirect(struct bpf_raw_tracepoint_args *ctx)
{
	if (watch_is_attached(ctx->args[0]))
		watch_count(ctx->args[6], 1);
	return 0;
}

/* xdp_devmap_xmit: device in, device out, sent, lost, error; for up to 16 redirected packets. */
int watch_devmap(struct bpf_raw_tracepoint_args *ctx)
{
	u32 lost = ctx->args[3];

	if (lost && watch_is_attached(ctx->args[0]))
		watch_count(watch_ifindex(ctx->args[1]), lost);
	return 0;
}

/* xdp_bulk_tx: device, sent, lost, error; what a veth device sends back out. */
int watch_bulk(struct bpf_raw_tracepoint_args *ctx)
{
	u32 lost = ctx->args[2];

	if (lost && watch_is_attached(ctx->args[0]))
		watch_count(watch_ifindex(ctx->args[0]), lost);
	return 0;
}

/* xdp_exception: device out, program, action; in generic mode XDP_TX also of a redirect. */
int watch_exception(struct bpf_raw_tracepoint_args *ctx)
{
	if ((u32)ctx->args[2] != XDP_TX)
		return 0;
	if (watch_is_here(ctx->args[0]) && watch_is_ours(ctx->args[1]))
		watch_count(watch_ifindex(ctx->args[0]), 1);
	return 0;
}

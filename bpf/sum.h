/* Sums over what is in a packet, for Internet checksums. */

/* Bytes that are summed up at a time, and how often at most: more than the longest frame has. */
#define SUM_PART 512
#define SUM_PARTS 32

/* The sum of so many bytes of the frame from an offset on, added to one; below 0: they cannot be read. */
static __always_inline s64 sum_of(struct hook_context *ctx, struct packet *packet, u32 offset,
				  u64 bytes, s64 sum)
{
	u8 *scratch = (void *)CPU_ROW(refusals, packet->cpu, HOOK_IS_XDP)->message;
	u64 part;

#pragma clang loop unroll(disable)
	for (u32 i = 0; i < SUM_PARTS; i++) {
		if (!bytes)
			break;
		part = bytes < SUM_PART ? bytes : SUM_PART;
		/* what is missing of the last four bytes counts as 0 */
		*(u32 *)(scratch + (part & SUM_PART - 4)) = 0;
		if (hook_load(ctx, offset, scratch, part, SUM_PART))
			return -1;
		sum = bpf_csum_diff(NULL, 0, (void *)scratch, part + 3 & SUM_PART * 2 - 4, sum);
		offset += part;
		bytes -= part;
	}
	return bytes ? -1 : sum;
}

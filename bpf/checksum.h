/* The arithmetic of Internet checksums; no access to packets. */

/* The sum of 16-bit words, ready to be complemented; the words' byte order is the sum's. */
static __always_inline u16 checksum_fold(u64 sum)
{
	sum = (sum & 0xffffffff) + (sum >> 32);
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	return sum;
}

/* The sum of 64-bit words. */
static __always_inline u64 checksum_words(const u64 *words, u32 count)
{
	u64 sum = 0, word;

#pragma clang loop unroll(disable)
	for (u32 i = 0; i < count; i++) {
		word = words[i];
		sum += (word & 0xffffffff) + (word >> 32);
	}
	return sum;
}

/* The sum of IPv6's two addresses, without a loop: the compiler keeps the words apart. */
static __always_inline u64 checksum_addresses(const u64 *words)
{
	u64 sum = (words[0] & 0xffffffff) + (words[0] >> 32);

	sum += (words[1] & 0xffffffff) + (words[1] >> 32);
	sum += (words[2] & 0xffffffff) + (words[2] >> 32);
	return sum + (words[3] & 0xffffffff) + (words[3] >> 32);
}

/* What 32 bits that are replaced by others add to a sum. */
static __always_inline u64 checksum_change(u32 before, u32 after)
{
	return (u64)(u32)~before + after;
}

/* The checksum of what has changed by so much. */
static __always_inline u16 checksum_after(u16 checksum, u64 change)
{
	return ~checksum_fold((u16)~checksum + change);
}

/*
 * Multilinear hashing: a sum of 32-bit parts of the key, each times a random 64-bit number.  The
 * upper halves of two keys' sums collide with a probability of 2^-32 for whoever does not know the
 * numbers, which the loader draws.  The part of the sum that is the virtual end's serves the
 * filter, too; the control plane computes it alike.
 *
 * Sums of keys in a row are in a row themselves, and with one draw in thirty that row meets a few
 * buckets again and again.  The sum times its upper half is not linear, and scatters them.
 */

/* Beside the protocol, in what the filter has of backends' ends. */
#define HASH_OF_BACKEND (1 << 24)
/* What the filter has of every address that a service or rule names: fragments have no ports. */
#define HASH_OF_FRAGMENT (1 << 25)

/* Keys are read as words: a flow4 as two, a flow6 as five, the last of them ports and protocol. */
static __always_inline u64 hash_halves(u64 word, u64 low, u64 high)
{
	return low * (u32)word + high * (word >> 32);
}

/* The hash of a whole key's sum. */
static __always_inline u32 hash_scattered(u64 sum)
{
	return (sum >> 32) * sum >> 32;
}

/* The sum over one address alone. */
static __always_inline u64 hash_address4(u64 address)
{
	return HASH_KEY(0) + HASH_KEY(1) * address;
}

static __always_inline u64 hash_address6(u64 first, u64 second)
{
	u64 sum = HASH_KEY(5) + hash_halves(first, HASH_KEY(6), HASH_KEY(7));

	return sum + hash_halves(second, HASH_KEY(8), HASH_KEY(9));
}

/* That over a key's virtual address. */
static __always_inline u64 hash_virtual4(u64 addresses)
{
	return hash_address4(addresses >> 32);
}

static __always_inline u64 hash_virtual6(const u64 *key)
{
	return hash_address6(key[2], key[3]);
}

/* What virtual port and protocol add to it. */
static __always_inline u64 hash_target(u64 ports)
{
	return HASH_KEY(2) * (ports >> 16);
}

/* The same of a backend by nat: its own port and protocol, never taken for a virtual end. */
static __always_inline u64 hash_backend(__be16 port, u8 protocol)
{
	return HASH_KEY(2) * (port | (u64)protocol << 16 | HASH_OF_BACKEND);
}

/* What of a virtual address says that some port of it is named. */
static __always_inline u64 hash_of_fragment(void)
{
	return HASH_KEY(2) * HASH_OF_FRAGMENT;
}

static __always_inline u64 hash_client4(const u64 *key)
{
	return HASH_KEY(3) * (u32)key[0] + HASH_KEY(4) * (key[1] & 0xffff);
}

static __always_inline u64 hash_client6(const u64 *key)
{
	u64 sum = hash_halves(key[0], HASH_KEY(10), HASH_KEY(11));

	return sum + hash_halves(key[1], HASH_KEY(12), HASH_KEY(13)) +
	       HASH_KEY(4) * (key[4] & 0xffff);
}

/*
 * A connection's hash: over the client's end alone, as under IPVS, so that what a backend sends back,
 * which does not name the virtual end, is looked for in the same bucket.
 */
static __always_inline u32 hash_connection4(const u64 *key)
{
	return hash_scattered(HASH_KEY(0) + hash_client4(key));
}

static __always_inline u32 hash_connection6(const u64 *key)
{
	return hash_scattered(HASH_KEY(5) + hash_client6(key));
}

/* A persistence entry's: over the whole key. */
static __always_inline u32 hash_flow4(const u64 *key)
{
	return hash_scattered(hash_virtual4(key[0]) + hash_target(key[1]) + hash_client4(key));
}

static __always_inline u32 hash_flow6(const u64 *key)
{
	return hash_scattered(hash_virtual6(key) + hash_target(key[4]) + hash_client6(key));
}

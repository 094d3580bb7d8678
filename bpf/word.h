/*
 * The word of a table's slot: everything that changes while the slot keeps its key, so that every
 * change is one compare-and-exchange.  0 is a slot that nothing uses and that ends a search.
 *
 *   bits  0 to 43  a persistence entry's: expires, in jiffies; a connection's: its route
 *        44 to 47  state, and of a connection bit 50, which is set in SCTP's
 *        48 to 51  flags
 *        52 to 63  generation: one more for each entry that the slot has held
 */
#define WORD_EXPIRES_BITS 44
#define WORD_EXPIRES_MASK ((1ULL << WORD_EXPIRES_BITS) - 1)
#define WORD_ROUTE_MASK WORD_EXPIRES_MASK
#define WORD_FLAGS_SHIFT 48
#define WORD_GENERATION_SHIFT 52
#define WORD_GENERATION (1ULL << WORD_GENERATION_SHIFT)
#define WORD_GENERATION_MASK (~(WORD_GENERATION - 1))

/* Of a state: it is one of SCTP's. */
#define STATE_SCTP 64

#define READ_ONCE(place) (*(volatile typeof(place) *)&(place))
#define WRITE_ONCE(place, value) (*(volatile typeof(place) *)&(place) = (value))

static __always_inline u64 word_make(u64 expires, u32 state, u64 flags, u64 generation)
{
	return expires | (u64)state << WORD_EXPIRES_BITS | flags << WORD_FLAGS_SHIFT |
	       (generation & WORD_GENERATION_MASK);
}

static __always_inline u64 word_expires(u64 word)
{
	return word & WORD_EXPIRES_MASK;
}

/*
 * A connection's route, which stays as it is for as long as the connection lives:
 *
 *   bits  0 to 15  the port at the backend, as on the wire
 *        16 to 18  method
 *        19 to 43  fullnat: what its backend sees as the source, a row of source_ports
 *        19        nat: it is an FTP control connection,
 *        20        or data that one has announced: expect.h
 */
#define ROUTE_METHOD_SHIFT 16
#define ROUTE_METHODS 8
#define ROUTE_SOURCE_SHIFT 19
#define ROUTE_FTP_CONTROL (1ULL << 19)
#define ROUTE_FTP_DATA (1ULL << 20)

static __always_inline u64 route_make(u32 method, __be16 port)
{
	return port | (u64)method << ROUTE_METHOD_SHIFT;
}

static __always_inline __be16 route_port(u64 word)
{
	return word;
}

static __always_inline u32 route_method(u64 word)
{
	return word >> ROUTE_METHOD_SHIFT & (ROUTE_METHODS - 1);
}

static __always_inline u64 route_source(u64 word)
{
	return (word & WORD_ROUTE_MASK) >> ROUTE_SOURCE_SHIFT;
}

/* The same route with a source. */
static __always_inline u64 route_from(u64 route, u64 source)
{
	return (route & ((1ULL << ROUTE_SOURCE_SHIFT) - 1)) | source << ROUTE_SOURCE_SHIFT;
}

static __always_inline u32 word_state(u64 word)
{
	return word >> WORD_EXPIRES_BITS & (STATE_SCTP | 15);
}

static __always_inline u64 word_flags(u64 word)
{
	return word >> WORD_FLAGS_SHIFT & 15;
}

/* The same entry, perhaps changed since. */
static __always_inline bool word_is_same(u64 word, u64 other)
{
	return !((word ^ other) & WORD_GENERATION_MASK);
}

/* A slot with an entry in it. */
static __always_inline bool word_is_used(u64 word)
{
	return word && word_state(word) < STATE_BUSY;
}

/* Changes a word if nobody else has; tells whether it did. */
static __always_inline bool word_change(u64 *place, u64 before, u64 after)
{
	return __sync_val_compare_and_swap(place, before, after) == before;
}

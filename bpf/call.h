/*
 * Persistence engine sip: a client's entry is for one call, by the Call-ID in its UDP packet.  A
 * machine that takes a byte at a time finds what IPVS's search finds, CALL_STEP bytes a run.  It
 * stands in a map, so that the verifier need not follow it from byte to byte.
 */

/* Beside a state: the line may be folded, and its next one begins, perhaps after LF; it was. */
#define CALL_RETURNED 16
#define CALL_FOLDED 32
#define CALL_CONTINUED 64
/* The name in small letters, the first in the lowest byte, and its bytes. */
#define CALL_ID_NAME 0x64692d6c6c6163ULL
#define CALL_ID_BYTES 7
/* What a word of SIP is made of (RFC 3261, 25.1), a bit a byte: below 64, and from there to 127. */
#define CALL_WORD_LOW 0xd7ffefa600000000ULL
#define CALL_WORD_HIGH 0x6fffffffbffffffeULL
#define CALL_MOST_BYTES 255
/* So far it is looked for in a datagram: a packet has only so many tail calls. */
#define CALL_REACH (10 * CALL_STEP)
/* Where the hash of a Call-ID is in a key's last word: in place of the client's port and in padding. */
#define CALL_TAG_LOW 0xffffULL
#define CALL_TAG_SHIFT 40

enum call_state {
	CALL_LINE = 0, /* in a line that is not looked at */
	CALL_RETURN = 1, /* after CR, with which one ends */
	CALL_BEGIN = 2, /* where one begins */
	CALL_NAME = 3, /* in what may be the name Call-ID */
	CALL_SHORT = 4, /* after what may be its short form, i */
	CALL_COLON = 5, /* before the colon */
	CALL_VALUE = 6, /* before the value */
	CALL_WORD = 7, /* in it */
	CALL_FOUND = 8,
	CALL_NONE = 9, /* there is none that IPVS would find */
};

/* A letter as the kernel sees it, in Latin-1. */
static __always_inline bool call_is_letter(u32 byte)
{
	u32 small = byte | 32;

	return (small >= 'a' && small <= 'z') || (byte >= 0xc0 && byte != 0xd7 && byte != 0xf7);
}

static __always_inline bool call_is_word(u32 byte)
{
	if (byte >= 128)
		return call_is_letter(byte);
	return (byte < 64 ? CALL_WORD_LOW : CALL_WORD_HIGH) >> (byte & 63) & 1;
}

static __always_inline bool call_is_space(u32 byte)
{
	return byte == ' ' || byte == '\t';
}

/* After a byte of a line that is not looked at. */
static __always_inline u32 call_in_line(u32 byte)
{
	if (byte == '\r')
		return CALL_RETURN;
	return byte == '\n' ? CALL_BEGIN : CALL_LINE;
}

/* After the first byte of a line; what continues the line before is not looked at. */
static __always_inline u32 call_at_begin(struct call_search *search, u32 byte)
{
	search->matched = 1;
	if ((byte | 32) == 'c')
		return CALL_NAME;
	return (byte | 32) == 'i' ? CALL_SHORT : CALL_LINE;
}

static __always_inline u32 call_in_name(struct call_search *search, u32 byte)
{
	u32 matched = search->matched & 7;
	u32 wanted = CALL_ID_NAME >> (matched * 8) & 0xff;

	if ((wanted == '-' ? byte : byte | 32) != wanted)
		return call_in_line(byte);
	search->matched = matched + 1;
	return matched + 1 == CALL_ID_BYTES ? CALL_COLON : CALL_NAME;
}

/* Before colon or value: spaces, and one fold; CALL_FOUND where something else begins. */
static __always_inline u32 call_in_space(u32 state, u32 byte)
{
	u32 before = state & 15;

	if (state & CALL_RETURNED && byte == '\n')
		return before | CALL_FOLDED;
	if (state & (CALL_RETURNED | CALL_FOLDED))
		return call_is_space(byte) ? before | CALL_CONTINUED : CALL_NONE;
	if (call_is_space(byte))
		return state;
	if (byte == '\r' && !(state & CALL_CONTINUED))
		return before | CALL_RETURNED;
	return byte == '\n' && !(state & CALL_CONTINUED) ? before | CALL_FOLDED : CALL_FOUND;
}

/* One more byte of the Call-ID, kept as far as there is room. */
static __always_inline u32 call_append(struct call_search *search, u32 byte)
{
	u8 *text = (u8 *)search->call.words;
	u32 length = search->length + 1;

	if (length <= CALL_MOST_BYTES)
		text[length & CALL_MOST_BYTES] = byte;
	search->length = length;
	search->word++;
	return CALL_WORD;
}

/*
 * An empty word is no Call-ID, and the search begins again: IPVS adds where the value is, from the
 * datagram's beginning, to where the search began, so that after a second one it leaves bytes out.
 */
static __always_inline u32 call_resume(struct call_search *search, u32 byte)
{
	search->from += search->value;
	return search->place < search->from ? CALL_LINE : call_in_line(byte);
}

/* What a line's end or any other byte makes of the Call-ID before it. */
static __always_inline u32 call_at_end(struct call_search *search, u32 byte)
{
	if (search->length > CALL_MOST_BYTES)
		return CALL_NONE;
	return byte == '\r' || byte == '\n' ? CALL_FOUND : CALL_NONE;
}

/* A word, and perhaps another after @. */
static __always_inline u32 call_in_word(struct call_search *search, u32 byte)
{
	if (call_is_word(byte))
		return call_append(search, byte);
	if (byte == '@' && search->word && !search->second) {
		search->second = 1;
		call_append(search, byte);
		search->word = 0;
		return CALL_WORD;
	}
	return search->word ? call_at_end(search, byte) : call_resume(search, byte);
}

/* Begins a value with its first byte. */
static __always_inline u32 call_at_value(struct call_search *search, u32 byte)
{
	search->value = search->place;
	search->length = 0;
	search->word = 0;
	search->second = 0;
	return call_in_word(search, byte);
}

static __always_inline u32 call_at_colon(u32 byte)
{
	return byte == ':' ? CALL_VALUE : CALL_NONE;
}

/* The state after one more byte. */
static __always_inline u32 call_follow(struct call_search *search, u32 state, u32 byte)
{
	u32 next;

	switch (state & 15) {
	case CALL_LINE:
		return call_in_line(byte);
	case CALL_RETURN:
		return byte == '\n' ? CALL_BEGIN : call_at_begin(search, byte);
	case CALL_BEGIN:
		return call_at_begin(search, byte);
	case CALL_NAME:
		return call_in_name(search, byte);
	case CALL_SHORT:
		if (call_is_letter(byte))
			return CALL_LINE;
		state = CALL_COLON;
		/* fallthrough */
	case CALL_COLON:
		next = call_in_space(state, byte);
		return next == CALL_FOUND ? call_at_colon(byte) : next;
	case CALL_VALUE:
		next = call_in_space(state, byte);
		return next == CALL_FOUND ? call_at_value(search, byte) : next;
	default:
		return call_in_word(search, byte);
	}
}

static __always_inline struct call_search *call_search_of(struct packet *packet)
{
	return CPU_ROW(call_searches, packet->cpu, HOOK_IS_XDP);
}

static __always_inline void call_begin(struct packet *packet)
{
	struct call_search *search = call_search_of(packet);

	search->state = CALL_LINE;
	search->offset = 0;
	search->from = 0;
}

/* Looks at some bytes more; true where that settled it. */
static __always_inline bool call_look(struct hook_context *ctx, struct packet *packet)
{
	struct call_search *search = call_search_of(packet);
	u32 first = packet->transport + sizeof(struct udphdr) + search->offset;
	u64 left = packet->bytes > first ? packet->bytes - first : 0;
	u64 part = left < CALL_STEP ? left : CALL_STEP;
	u8 *window = (u8 *)search->window;
	u32 state;

	if (hook_load(ctx, packet->ip_offset + first, window, part, CALL_STEP)) {
		search->state = CALL_NONE;
		return true;
	}
#pragma clang loop unroll(disable)
	for (u32 i = 0; i < CALL_STEP; i++) {
		state = READ_ONCE(search->state);
		if (i >= part || state == CALL_FOUND || state == CALL_NONE)
			break;
		WRITE_ONCE(search->place, search->offset + i);
		if (search->offset + i >= READ_ONCE(search->from))
			WRITE_ONCE(search->state, call_follow(search, state, window[i]));
	}
	search->offset += CALL_STEP;
	state = READ_ONCE(search->state);
	if (state == CALL_FOUND || state == CALL_NONE)
		return true;
	if (left > CALL_STEP && search->offset < CALL_REACH)
		return false;
	search->state = CALL_NONE;
	return true;
}

/* Writes the Call-ID's length before it, and 0 after it, where a longer one may have been. */
static __always_inline void call_trim(struct call_search *search)
{
	u8 *text = (u8 *)search->call.words;
	u32 length = search->length;

	text[0] = length;
#pragma clang loop unroll(disable)
	for (u32 i = 1; i <= CALL_MOST_BYTES; i++)
		if (i > length)
			WRITE_ONCE(text[i], 0);
}

/*
 * 40 bits of a hash of the Call-ID that was found; never 0, as other keys have there.  Multiplied
 * twice: once leaves a word's highest bit where it is, whatever the number, and whoever chooses
 * Call-IDs could have the next word undo it.
 */
static __always_inline u64 call_tag(struct packet *packet)
{
	struct call_search *search = call_search_of(packet);
	u64 hash = HASH_KEY(0);

	call_trim(search);
#pragma clang loop unroll(disable)
	for (u32 i = 0; i < CALL_WORDS; i++) {
		hash = (hash ^ READ_ONCE(search->call.words[i])) * (HASH_KEY(6) | 1);
		hash = (hash ^ hash >> 32) * (HASH_KEY(7) | 1);
		hash ^= hash >> 29;
	}
	return hash >> 24 | 1;
}

/* The last word of a client's key, with the tag in bits that no other engine uses. */
static __always_inline u64 call_key(u64 ports, u64 tag)
{
	return ports | (tag & CALL_TAG_LOW) | tag >> 16 << CALL_TAG_SHIFT;
}

/* The row of a persistence entry's Call-ID. */
static __always_inline struct call *call_at(u32 table, u64 place)
{
	/* verifier of 6.1, where the compiler knows a bound: "register with unbounded min value" */
	asm volatile("" : "+r"(place));
	return table == TABLE_PERSISTENCE6 ? ROW(calls6, place) : ROW(calls4, place);
}

/* The entry is for the call that was found: all of the Call-ID is compared. */
static __always_inline bool call_is_same(u32 table, u64 place, struct packet *packet)
{
	struct call *mine = &call_search_of(packet)->call, *other = call_at(table, place);
	u64 differs = 0;

#pragma clang loop unroll(disable)
	for (u32 i = 0; i < CALL_WORDS; i++)
		differs |= READ_ONCE(mine->words[i]) ^ READ_ONCE(other->words[i]);
	return !differs;
}

/* In a slot that is this CPU's: notes the call that the entry is for. */
static __always_inline void call_note(u32 table, u64 place, struct packet *packet)
{
	struct call *mine = &call_search_of(packet)->call, *other = call_at(table, place);

#pragma clang loop unroll(disable)
	for (u32 i = 0; i < CALL_WORDS; i++)
		WRITE_ONCE(other->words[i], READ_ONCE(mine->words[i]));
}

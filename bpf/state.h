/* TCP states as IPVS's half-open view has them, and how long each lasts. */

/* IPVS's input-only table: a row an event, four bits a present state, from NONE to SYNACK. */
#define STATE_ROW(no, es, ss, sr, fw, tw, cl, cw, la, li, sa)                                      \
	((u64)(no) | (u64)(es) << 4 | (u64)(ss) << 8 | (u64)(sr) << 12 | (u64)(fw) << 16 |         \
	 (u64)(tw) << 20 | (u64)(cl) << 24 | (u64)(cw) << 28 | (u64)(la) << 32 | (u64)(li) << 36 | \
	 (u64)(sa) << 40)
#define STATES_SYN STATE_ROW(3, 1, 1, 3, 3, 3, 3, 3, 3, 3, 3)
#define STATES_FIN STATE_ROW(6, 4, 2, 5, 4, 5, 6, 7, 8, 9, 5)
#define STATES_ACK STATE_ROW(1, 1, 2, 1, 4, 5, 6, 7, 6, 9, 1)
#define STATES_RST STATE_ROW(6, 6, 6, 3, 6, 6, 6, 6, 8, 9, 6)

/* States that count as active, and those that hold a persistence entry for long. */
#define STATES_ACTIVE \
	(1 << STATE_ESTABLISHED | 1 << STATE_SYN_SENT | 1 << STATE_SYN_RECV | 1 << STATE_SYNACK)
#define STATES_LASTING (STATES_ACTIVE | 1 << STATE_UDP)

static __always_inline bool state_is_active(u32 state)
{
	return STATES_ACTIVE >> (state & 15) & 1;
}

static __always_inline bool state_is_lasting(u32 state)
{
	return STATES_LASTING >> (state & 15) & 1;
}

/* Jiffies that the state lasts without a packet. */
static __always_inline u32 state_timeout(u32 state)
{
	return *ROW(timeouts, state);
}

/* RST counts before SYN, SYN before FIN, FIN before ACK; none of them closes. */
static __always_inline u32 state_next(u32 state, struct packet *packet)
{
	u64 row;

	if (packet_protocol(packet) == IPPROTO_UDP)
		return STATE_UDP;
	if (packet->flags & TCP_RST)
		row = STATES_RST;
	else if (packet->flags & TCP_SYN)
		row = STATES_SYN;
	else if (packet->flags & TCP_FIN)
		row = STATES_FIN;
	else if (packet->flags & TCP_ACK)
		row = STATES_ACK;
	else
		return STATE_CLOSE;
	return row >> (state & 15) * 4 & 15;
}

static __always_inline u32 state_first(struct packet *packet)
{
	return state_next(STATE_NONE, packet);
}

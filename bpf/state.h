/* A connection's state: what a packet makes of it, how long it lasts, what it counts as. */

/* A state's bit in the sets below: SCTP's after all others. */
#define STATE_BIT(state) (1U << (((state)&15) + ((state) >> 2 & 16)))
/* States that count as active, those that hold a persistence entry for long, */
#define STATES_ACTIVE                                                                           \
	(STATE_BIT(STATE_ESTABLISHED) | STATE_BIT(STATE_SYN_SENT) | STATE_BIT(STATE_SYN_RECV) | \
	 STATE_BIT(STATE_SYNACK) | STATE_BIT(STATE_SCTP_ESTABLISHED))
#define STATES_LASTING (STATES_ACTIVE | STATE_BIT(STATE_UDP))
/* those that a client reaches only by its answer, and those in which it has said that it is over. */
#define STATES_ANSWERED \
	(STATE_BIT(STATE_ESTABLISHED) | STATE_BIT(STATE_UDP) | STATE_BIT(STATE_SCTP_ESTABLISHED))
#define STATES_OVER                                                                             \
	(STATE_BIT(STATE_CLOSE) | STATE_BIT(STATE_TIME_WAIT) | STATE_BIT(STATE_SCTP_REJECTED) | \
	 STATE_BIT(STATE_SCTP_CLOSED))

static __always_inline bool state_is_active(u32 state)
{
	return STATES_ACTIVE & STATE_BIT(state);
}

static __always_inline bool state_is_lasting(u32 state)
{
	return STATES_LASTING & STATE_BIT(state);
}

static __always_inline bool state_is_answered(u32 state)
{
	return STATES_ANSWERED & STATE_BIT(state);
}

static __always_inline bool state_is_over(u32 state)
{
	return STATES_OVER & STATE_BIT(state);
}

/* Jiffies that the state lasts without a packet. */
static __always_inline u32 state_timeout(u32 state)
{
	return *ROW(timeouts, state);
}

/* RST counts before SYN, SYN before FIN, FIN before ACK. */
static __always_inline u32 state_event(struct packet *packet)
{
	if (FEATURE_SCTP && packet_protocol(packet) == IPPROTO_SCTP)
		return packet->flags >> PACKET_EVENT_SHIFT;
	if (packet->flags & TCP_RST)
		return EVENT_RST;
	if (packet->flags & TCP_SYN)
		return EVENT_SYN;
	if (packet->flags & TCP_FIN)
		return EVENT_FIN;
	return packet->flags & TCP_ACK ? EVENT_ACK : EVENT_NO_FLAGS;
}

/* What an event makes of every state: a row of transitions.h. */
static __always_inline u64 state_row(u32 view, u8 protocol, u32 event, bool secure)
{
	if (protocol == IPPROTO_UDP)
		return SAME_ROW(STATE_UDP);
	if (FEATURE_SCTP && protocol == IPPROTO_SCTP)
		return transition_sctp(view, event);
	return transition_tcp(view, event, secure);
}

/* What a row makes of one state. */
static __always_inline u32 state_follow(u64 row, u32 state)
{
	u32 next = (row >> (state & 15) * 4 & 15) | (state & STATE_SCTP);

	/* verifier of 6.1, which knows no bound of it: "register with unbounded min value" */
	asm volatile("" : "+r"(next));
	return next;
}

static __always_inline u32 state_next(u32 view, u8 protocol, u32 state, u32 event, bool secure)
{
	return state_follow(state_row(view, protocol, event, secure), state);
}

/* What is seen of a client's connection: answers, too, where the method has them come by here. */
static __always_inline u32 state_view(u32 method)
{
	return FEATURE_NAT && method & METHOD_NAT ? VIEW_INPUT : VIEW_INPUT_ONLY;
}

/* What a packet makes of every state. */
static __always_inline u64 state_row_of(struct packet *packet, u32 view)
{
	bool secure = *ROW(switches, SWITCH_SETTINGS) & SETTING_SECURE_TCP;

	return state_row(view, packet_protocol(packet), state_event(packet), secure);
}

/* The state of a connection by this method that begins with the packet. */
static __always_inline u32 state_first(struct packet *packet, u32 method)
{
	bool sctp = FEATURE_SCTP && packet_protocol(packet) == IPPROTO_SCTP;

	return state_follow(state_row_of(packet, state_view(method)),
			    sctp ? STATE_SCTP_NONE : STATE_NONE);
}

/*
 * IPVS's tables of states, each for what is seen of a connection: what the client sends (input), what
 * the backend answers (output), and what the client sends where answers take another road
 * (input-only).  A row an event, four bits a present state: the next one.  A protocol's states have
 * IPVS's numbers here, SCTP's from 0 as well.
 */
#define TCP_ROW(no, es, ss, sr, fw, tw, cl, cw, la, li, sa)                                        \
	((u64)(no) | (u64)(es) << 4 | (u64)(ss) << 8 | (u64)(sr) << 12 | (u64)(fw) << 16 |         \
	 (u64)(tw) << 20 | (u64)(cl) << 24 | (u64)(cw) << 28 | (u64)(la) << 32 | (u64)(li) << 36 | \
	 (u64)(sa) << 40)
#define SCTP_ROW(no, i1, in, cs, cr, cw, co, ce, es, ss, sr, sa, rj, cl)                           \
	(TCP_ROW(no, i1, in, cs, cr, cw, co, ce, es, ss, sr) | (u64)(sa) << 44 | (u64)(rj) << 48 | \
	 (u64)(cl) << 52)
/* Whatever was before, this. */
#define SAME_ROW(state) ((u64)(state)*0x1111111111111111ULL)

/* What the client sends, where the backend answers by the same road. */
static __always_inline u64 transition_tcp_input(u32 event, bool secure)
{
	switch (event) {
	case EVENT_SYN:
		return secure ? TCP_ROW(3, 1, 1, 3, 3, 3, 3, 3, 3, 3, 10) :
				TCP_ROW(3, 1, 1, 3, 3, 3, 3, 3, 3, 3, 3);
	case EVENT_FIN:
		return secure ? TCP_ROW(6, 7, 2, 5, 5, 5, 6, 7, 8, 9, 10) :
				TCP_ROW(6, 7, 2, 5, 5, 5, 6, 7, 8, 9, 5);
	case EVENT_ACK:
		return secure ? TCP_ROW(1, 1, 2, 3, 4, 5, 6, 7, 6, 9, 10) :
				TCP_ROW(1, 1, 2, 1, 4, 5, 6, 7, 6, 9, 1);
	case EVENT_RST:
		return secure ? TCP_ROW(6, 6, 6, 3, 6, 6, 6, 6, 8, 9, 6) :
				TCP_ROW(6, 6, 6, 3, 6, 6, 6, 6, 8, 9, 3);
	default:
		return SAME_ROW(STATE_CLOSE);
	}
}

/* What the backend answers. */
static __always_inline u64 transition_tcp_output(u32 event, bool secure)
{
	switch (event) {
	case EVENT_SYN:
		return secure ? TCP_ROW(2, 1, 2, 10, 2, 2, 2, 2, 2, 9, 10) :
				TCP_ROW(2, 1, 2, 3, 2, 2, 2, 2, 2, 9, 3);
	case EVENT_FIN:
		return TCP_ROW(5, 4, 2, 5, 4, 5, 6, 5, 8, 9, 5);
	case EVENT_ACK:
		return TCP_ROW(1, 1, 2, 1, 4, 5, 6, 7, 8, 1, 1);
	case EVENT_RST:
		return TCP_ROW(6, 6, 2, 6, 6, 5, 6, 6, 6, 6, 6);
	default:
		return SAME_ROW(STATE_CLOSE);
	}
}

/* What the client sends, where answers take another road. */
static __always_inline u64 transition_tcp_input_only(u32 event, bool secure)
{
	switch (event) {
	case EVENT_SYN:
		return secure ? TCP_ROW(10, 1, 1, 3, 10, 10, 10, 10, 10, 10, 10) :
				TCP_ROW(3, 1, 1, 3, 3, 3, 3, 3, 3, 3, 3);
	case EVENT_FIN:
		return TCP_ROW(6, 4, 2, 5, 4, 5, 6, 7, 8, 9, 5);
	case EVENT_ACK:
		return TCP_ROW(1, 1, 2, 1, 4, 5, 6, 7, 6, 9, 1);
	case EVENT_RST:
		return TCP_ROW(6, 6, 6, 3, 6, 6, 6, 6, 8, 9, 6);
	default:
		return SAME_ROW(STATE_CLOSE);
	}
}

static __always_inline u64 transition_sctp_input(u32 event)
{
	switch (event) {
	case EVENT_INIT:
		return SCTP_ROW(1, 2, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 2, 2);
	case EVENT_INIT_ACK:
		return SCTP_ROW(5, 5, 5, 3, 4, 6, 6, 7, 8, 9, 10, 11, 12, 13);
	case EVENT_COOKIE_ECHO:
		return SCTP_ROW(4, 2, 2, 4, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13);
	case EVENT_COOKIE_ACK:
		return SCTP_ROW(8, 1, 2, 3, 4, 5, 6, 8, 8, 9, 10, 11, 12, 13);
	case EVENT_SHUTDOWN:
		return SCTP_ROW(10, 1, 2, 3, 4, 5, 6, 7, 10, 9, 10, 11, 12, 13);
	case EVENT_SHUTDOWN_ACK:
		return SCTP_ROW(13, 2, 2, 3, 4, 5, 6, 7, 8, 13, 10, 13, 12, 13);
	case EVENT_SHUTDOWN_COMPLETE:
		return SCTP_ROW(13, 13, 13, 3, 4, 5, 6, 7, 8, 9, 10, 13, 12, 13);
	case EVENT_ERROR:
		return SCTP_ROW(13, 1, 2, 3, 4, 5, 6, 13, 8, 9, 10, 11, 12, 13);
	case EVENT_ABORT:
		return SCTP_ROW(13, 13, 13, 13, 13, 12, 13, 13, 13, 13, 13, 13, 13, 13);
	default:
		return SCTP_ROW(8, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13);
	}
}

static __always_inline u64 transition_sctp_output(u32 event)
{
	switch (event) {
	case EVENT_INIT:
		return SCTP_ROW(5, 5, 5, 5, 5, 5, 5, 5, 8, 5, 5, 5, 5, 5);
	case EVENT_INIT_ACK:
		return SCTP_ROW(3, 3, 3, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13);
	case EVENT_COOKIE_ECHO:
		return SCTP_ROW(7, 7, 7, 7, 7, 7, 7, 7, 8, 9, 10, 11, 12, 13);
	case EVENT_COOKIE_ACK:
		return SCTP_ROW(8, 8, 8, 8, 8, 8, 8, 8, 8, 9, 10, 11, 12, 13);
	case EVENT_SHUTDOWN:
		return SCTP_ROW(9, 9, 9, 9, 9, 9, 9, 9, 9, 9, 10, 11, 12, 13);
	case EVENT_SHUTDOWN_ACK:
		return SCTP_ROW(11, 11, 11, 11, 11, 5, 6, 7, 8, 11, 11, 11, 12, 13);
	case EVENT_SHUTDOWN_COMPLETE:
		return SCTP_ROW(13, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13);
	case EVENT_ERROR:
		return SCTP_ROW(13, 13, 13, 13, 13, 5, 6, 7, 8, 9, 10, 11, 12, 13);
	case EVENT_ABORT:
		return SCTP_ROW(13, 12, 13, 13, 13, 13, 13, 13, 13, 13, 13, 13, 13, 13);
	default:
		return SCTP_ROW(8, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13);
	}
}

static __always_inline u64 transition_sctp_input_only(u32 event)
{
	switch (event) {
	case EVENT_INIT:
		return SCTP_ROW(1, 2, 2, 2, 2, 2, 6, 7, 8, 9, 10, 11, 2, 2);
	case EVENT_INIT_ACK:
		return SCTP_ROW(7, 7, 7, 7, 7, 7, 6, 7, 8, 9, 10, 11, 12, 13);
	case EVENT_COOKIE_ECHO:
		return SCTP_ROW(8, 8, 8, 8, 8, 8, 6, 7, 8, 9, 10, 11, 12, 13);
	case EVENT_COOKIE_ACK:
		return SCTP_ROW(8, 1, 2, 8, 8, 5, 8, 8, 8, 9, 10, 11, 12, 13);
	case EVENT_SHUTDOWN:
		return SCTP_ROW(10, 1, 2, 3, 4, 5, 6, 7, 10, 9, 10, 11, 12, 13);
	case EVENT_SHUTDOWN_ACK:
		return SCTP_ROW(13, 2, 2, 3, 4, 5, 6, 7, 13, 13, 10, 13, 12, 13);
	case EVENT_SHUTDOWN_COMPLETE:
		return SCTP_ROW(13, 13, 13, 13, 13, 5, 6, 7, 8, 9, 13, 13, 12, 13);
	case EVENT_ERROR:
		return SCTP_ROW(13, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13);
	case EVENT_ABORT:
		return SCTP_ROW(13, 13, 13, 13, 13, 12, 13, 13, 13, 13, 13, 13, 13, 13);
	default:
		return SCTP_ROW(8, 1, 2, 3, 4, 8, 6, 7, 8, 9, 10, 11, 12, 13);
	}
}

static __always_inline u64 transition_tcp(u32 view, u32 event, bool secure)
{
	if (view == VIEW_INPUT)
		return transition_tcp_input(event, secure);
	if (view == VIEW_OUTPUT)
		return transition_tcp_output(event, secure);
	return transition_tcp_input_only(event, secure);
}

static __always_inline u64 transition_sctp(u32 view, u32 event)
{
	if (view == VIEW_INPUT)
		return transition_sctp_input(event);
	if (view == VIEW_OUTPUT)
		return transition_sctp_output(event);
	return transition_sctp_input_only(event);
}

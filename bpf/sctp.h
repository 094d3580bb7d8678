/* SCTP: what a packet is about, by its first chunk. */

/* Types of chunks, */
#define SCTP_INIT 1
#define SCTP_INIT_ACK 2
#define SCTP_ABORT 6
#define SCTP_SHUTDOWN 7
#define SCTP_SHUTDOWN_ACK 8
#define SCTP_ERROR 9
#define SCTP_COOKIE_ECHO 10
#define SCTP_COOKIE_ACK 11
#define SCTP_SHUTDOWN_COMPLETE 14
/* bytes of the header before the first, */
#define SCTP_HEADER 12
#define SCTP_CHECKSUM 8
/* and of the longest after which another is looked for. */
#define SCTP_MOST_BYTES 16380
/* Chunks stand at multiples of four bytes. */
#define SCTP_CHUNK_MASK 0x3ffcULL

/*
 * A packet's flags: the event, and what TCP_SYN and TCP_RST are there for with TCP, that it opens a
 * connection and that it cannot.
 */
#define PACKET_EVENT_SHIFT 8
#define PACKET_SCTP_DATA (EVENT_DATA << PACKET_EVENT_SHIFT)

/* The head of a chunk. */
struct sctp_chunk {
	u8 type;
	u8 flags;
	__be16 length;
};

/* The event that the type of a packet's first chunk stands for. */
static __always_inline u32 sctp_event(u8 type)
{
	switch (type) {
	case SCTP_INIT:
		return EVENT_INIT;
	case SCTP_INIT_ACK:
		return EVENT_INIT_ACK;
	case SCTP_ABORT:
		return EVENT_ABORT;
	case SCTP_SHUTDOWN:
		return EVENT_SHUTDOWN;
	case SCTP_SHUTDOWN_ACK:
		return EVENT_SHUTDOWN_ACK;
	case SCTP_ERROR:
		return EVENT_ERROR;
	case SCTP_COOKIE_ECHO:
		return EVENT_COOKIE_ECHO;
	case SCTP_COOKIE_ACK:
		return EVENT_COOKIE_ACK;
	case SCTP_SHUTDOWN_COMPLETE:
		return EVENT_SHUTDOWN_COMPLETE;
	default:
		return EVENT_DATA;
	}
}

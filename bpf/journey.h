#define DUE_CONNECTIONS 1
#define DUE_PERSISTENCE 2

/* What is known of the packet's Call-ID. */
enum call_search_end {
	CALL_UNKNOWN = 0,
	CALL_KNOWN = 1,
	CALL_MISSING = 2,
};

/* What of a dimension of the mark rules fits the packet: those that name its value, or none. */
struct mark_fit {
	u64 named;
	u64 wide;
};

/* A step of twos' pass that is drawn, by where it begins, and how far into its weights. */
struct draw {
	u64 left;
	u64 scan;
};

/* What lblc and lblcr found of a destination's set. */
struct locality {
	u64 kept_load;
	u64 kept_order;
	u64 most_load;
	u64 most_order;
	u32 kept; /* the least loaded: its place in the list + 1 */
	u32 kept_weight;
	u32 most; /* the most loaded: its seat's number + 1 */
	u32 most_weight;
	u32 live; /* backends in it */
	u32 free; /* a free seat's number + 1 */
	u32 parts; /* 0: there is none */
	u32 room; /* a member of the list has half of its weight free */
};

/* What forwarding needs to know of a packet's connection. */
struct forwarding {
	u64 now;
	u64 route; /* word.h */
	u32 backend;
	u32 service;
	u32 mark;
	u32 probe_interval; /* jiffies */
	u32 reason; /* under which it is counted: REASON_FORWARDED or REASON_TABLE_FULL */
	u32 padding;
};

/* A packet that is sent in fragments, as far as that has come. */
struct cut {
	u32 total; /* bytes after the IP header; 0: it has not begun */
	u32 done;
	u32 room; /* for these in a fragment */
	u32 ifindex;
	u32 base; /* the packet's own place, where it is a fragment itself; in units of 8 bytes */
	u32 more; /* and others of its packet follow it */
	u32 left; /* of what is copied, */
	u32 offset; /* in the frame, */
	u32 from; /* and in what was taken aside */
	u32 padding;
	u64 header[3]; /* IPv4's, 20 bytes */
	u64 head[2]; /* Ethernet's, 14 bytes */
};

/* A tunnel's own packet, as an ICMP error quotes it. */
struct learning {
	u64 from[2];
	u64 to[2];
	u32 protocol;
	u32 offset; /* in the frame: of what follows the quoted IP header */
	u32 mtu;
	u32 padding;
};

/* An error and what it quotes: where that is in the frame, and what it says. */
struct quote {
	u64 outer[4]; /* the error's own source and destination, */
	u64 inner[4]; /* and those that are quoted */
	u32 message;
	u32 header; /* the quoted packet's */
	u32 transport; /* and that one's transport header */
	u16 sum;
	u16 inner_sum; /* of IPv4's quoted header */
	u16 outer_sum;
	__be16 source_port;
	__be16 destination_port;
	u16 protocol;
};

/* What an FTP command or reply says, and the text that takes its place: ftp.h. */
#define FTP_LINE 128
struct ftp {
	u8 line[FTP_LINE];
	u8 text[FTP_LINE];
	u8 digits[16]; /* the service's address as PASV's reply has it */
	u64 word; /* the command or the reply's code: enum ftp_word */
	u64 bytes; /* of the line that were read */
	u64 count; /* of numbers, or of delimiters, so far */
	u64 value; /* of the number that is read */
	u64 in_number;
	u64 numbers; /* the last six bytes that were */
	u64 port;
	u64 start; /* of the address */
	u64 end;
	u64 delimiter;
	u64 length; /* of the digits */
};

/* What one packet's programs hand over to each other: one struct a CPU. */
struct journey {
	struct packet packet;
	u32 attempts;
	u64 now;
	u64 settings;
	u64 epoch; /* when the rules were read */
	u64 marks; /* the rule set */
	u64 service_switch; /* as it was when the decision began */
	u64 backend; /* chosen: generation << 32 | id; 0: none yet */
	u64 route; /* of the connection that it gets: word.h */
	u64 cursor;
	u64 best_load;
	u32 mark;
	u32 service;
	u32 config; /* row of service_configs */
	u32 scan; /* members looked at */
	u32 best; /* place in the list + 1, 0: none */
	u32 next; /* wrr: the best of the next round, + 1 */
	u32 best_weight;
	u32 turn; /* rr: the place that it looks at */
	u64 weights; /* twos: of those looked at, */
	u64 added; /* and of those in this step */
	struct draw draws[2];
	struct locality locality;
	u32 controlled; /* by the persistence entry that was found or made */
	u64 persistence; /* generation << 32 | place of it */
	union { /* its key */
		struct flow4 client4;
		struct flow6 client6;
		u64 client[5];
	};
	u64 client_hash;
	struct seat seat; /* what an insert of these programs found */
	u32 bound; /* a persistence entry was made */
	u32 persistent; /* the service is */
	u32 by_call; /* by its clients' calls: entries have the Call-ID that was found */
	u32 call; /* enum call_search_end */
	u32 scheduler;
	u32 due; /* DUE_*: tables of which a bucket is to be aged */
	u32 over; /* entries of that bucket that are to go, */
	u32 places[AGE_STEP]; /* and where they are */
	u32 dead; /* the bucket has removed slots */
	u32 catch_ups; /* buckets that a choice by load still wants aged */
	u32 full; /* a table had no room for an entry */
	u32 without; /* goes without a connection */
	u32 wanting; /* the program that asked for room */
	u32 unknown; /* the packet has no connection */
	u32 counted; /* the setting drop_packet has had its turn */
	u32 concerned; /* some service or rule may name where the packet goes */
	struct forwarding forwarding; /* where the packet goes, once it has a checksum, */
	struct end end; /* or whence it comes, */
	struct end other; /* and by fullnat whither; */
	u32 is_answer; /* it is an answer */
	u32 seen; /* XDP has had the connection's state follow the packet */
	u32 reason; /* why it may open none, or goes nowhere */
	u32 ruled; /* the ordered rules have been asked */
	u32 excluded; /* a rule gives mark 0 */
	/* while they are asked: dimensions that rules look at; here the verifier does not note values */
	struct mark_fit fits[8];
	u64 fit_count;
	u64 fitting; /* the rules that the protocol fits */
	u64 live[4]; /* words that may have a rule that fits in all dimensions, by the summaries */
	u32 asked; /* these are known */
	u32 verdict; /* the one that knows of this packet's target, + 1; 0: none */
	u32 summed; /* by a tunnel with a checksum: the packet's sum is known */
	u64 sum;
	struct cut cut;
	struct learning learning;
	struct neighbour_parameters neighbour; /* where TC sends a tunnel's packet */
	u32 padding;
	struct quote quote;
	u32 listening; /* the connection to be made is one that FTP expects, */
	u32 expected; /* or one that it expected: without its client's port */
	struct ftp ftp;
	u32 one_packet; /* scheduled for itself alone: no connection comes of it */
};

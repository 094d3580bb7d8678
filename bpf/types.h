/* Structs and enums that Python also sees; enum values are written out and never reused. */

/* Why a packet was forwarded, handed up or dropped.  Python reads the names from here. */
enum reason {
	REASON_OK = 0, /* go on: never counted */
	REASON_FORWARDED = 1,
	REASON_NOT_IP = 2,
	REASON_OTHER_PROTOCOL = 3,
	REASON_MALFORMED = 4,
	REASON_FRAGMENT = 5,
	REASON_OTHER_HOST = 6,
	REASON_NO_SERVICE = 7,
	REASON_NOT_OPENING = 8,
	REASON_NOT_LOCAL = 9,
	REASON_MARK_EXCLUDED = 10,
	REASON_SOURCE_PORT_20 = 11,
	REASON_FTP_NOT_PERSISTENT = 12,
	REASON_LOCAL_BACKEND = 13,
	REASON_NO_BACKEND = 14,
	REASON_TTL_EXCEEDED = 15,
	REASON_NO_ROUTE = 16,
	REASON_BUSY = 17,
	REASON_TABLE_FULL = 18, /* forwarded, without an entry that it should have */
	REASON_INTERNAL = 19,
	REASON_HANDED_OVER = 20, /* TC goes on with it and counts it */
	REASON_BACKEND_GONE = 21,
	REASON_NO_METADATA = 22, /* TC classifies it again and counts it */
	REASON_TOO_BIG = 23,
	REASON_REDIRECT_FAILED = 24, /* counted as forwarded before: watch.h */
	REASON_DROP_PACKET = 25, /* by the setting of that name */
	REASON_ANSWERED = 26, /* what a backend by nat sent back went to its client */
	REASON_ANSWER_LEFT = 27, /* the host is to tell the backend why it does not */
	REASON_FTP_NO_BACKEND = 28, /* handed up */
	REASON_BYPASSED = 29, /* handed up, for the host to forward */
	REASON_NO_CALL_ID = 30, /* to a service with the persistence engine sip */
	REASON_FRAGMENT_EARLY = 31, /* handed up: its first has not been seen, or long ago */
	REASON_MAX = 32,
};

enum scheduler {
	SCHEDULER_RR = 0,
	SCHEDULER_WRR = 1,
	SCHEDULER_WLC = 2,
	SCHEDULER_SH = 3,
	SCHEDULER_LC = 4,
	SCHEDULER_SED = 5,
	SCHEDULER_NQ = 6,
	SCHEDULER_FO = 7,
	SCHEDULER_OVF = 8,
	SCHEDULER_DH = 9,
	SCHEDULER_TWOS = 10,
	SCHEDULER_MH = 11,
	SCHEDULER_LBLC = 12,
	SCHEDULER_LBLCR = 13,
};

/* Places in a hook's program array.  A scheduler stands at PROGRAM_SCHEDULER + its number. */
enum program {
	PROGRAM_NEW = 0,
	PROGRAM_CONNECT = 1,
	PROGRAM_BIND = 2,
	PROGRAM_AGE = 3,
	PROGRAM_ROOM = 4,
	PROGRAM_KNOWN = 5,
	PROGRAM_RULES = 6,
	PROGRAM_REFUSE = 7,
	PROGRAM_SCHEDULER = 8,
	PROGRAM_ANSWER = 24,
	PROGRAM_MEND = 25,
	PROGRAM_EGRESS = 26, /* of TC alone */
	PROGRAM_CALL = 27,
	PROGRAM_QUOTE4 = 28,
	PROGRAM_QUOTE6 = 29,
	PROGRAM_TUNNEL4 = 30,
	PROGRAM_TUNNEL6 = 31,
	PROGRAM_SUM = 32,
	PROGRAM_FRAGMENT4 = 33,
	PROGRAM_FRAGMENT6 = 34,
	PROGRAM_CUT = 35, /* of TC alone */
	PROGRAM_LEARN = 36,
	PROGRAM_FULLNAT4 = 37,
	PROGRAM_FULLNAT6 = 38,
	PROGRAM_RETURN4 = 39,
	PROGRAM_RETURN6 = 40,
	PROGRAM_QUOTE_FULLNAT4 = 41,
	PROGRAM_QUOTE_FULLNAT6 = 42,
	PROGRAM_FTP4 = 43, /* of TC alone */
	PROGRAM_FTP6 = 44,
	PROGRAM_FTP_SEND = 45,
	PROGRAM_FTP_WRITE = 46,
	PROGRAM_MAX = 64,
};

/*
 * A connection's states: TCP's with IPVS's numbers, UDP's, SCTP's with STATE_SCTP and IPVS's numbers;
 * then what else a slot of a table can be.  Four bits and the one of STATE_SCTP: word.h.
 */
enum state {
	STATE_NONE = 0,
	STATE_ESTABLISHED = 1,
	STATE_SYN_SENT = 2,
	STATE_SYN_RECV = 3,
	STATE_FIN_WAIT = 4,
	STATE_TIME_WAIT = 5,
	STATE_CLOSE = 6,
	STATE_CLOSE_WAIT = 7,
	STATE_LAST_ACK = 8,
	STATE_LISTEN = 9,
	STATE_SYNACK = 10,
	STATE_UDP = 11,
	STATE_BOUND = 12, /* a persistence entry */
	STATE_SCTP_NONE = 64,
	STATE_SCTP_INIT1 = 65,
	STATE_SCTP_INIT = 66,
	STATE_SCTP_C_SENT = 67,
	STATE_SCTP_C_REPLIED = 68,
	STATE_SCTP_C_WAIT = 69,
	STATE_SCTP_COOKIE = 70,
	STATE_SCTP_C_ECHOED = 71,
	STATE_SCTP_ESTABLISHED = 72,
	STATE_SCTP_S_SENT = 73,
	STATE_SCTP_S_RECEIVED = 74,
	STATE_SCTP_S_ACK_SENT = 75,
	STATE_SCTP_REJECTED = 76,
	STATE_SCTP_CLOSED = 77,
	STATE_BUSY = 78, /* a CPU fills it */
	STATE_DEAD = 79, /* its entry was removed; later slots of the bucket may be in use */
	STATE_MAX = 128,
};

/* What a packet says of its connection's state. */
enum event {
	EVENT_SYN = 0,
	EVENT_FIN = 1,
	EVENT_ACK = 2,
	EVENT_RST = 3,
	EVENT_NO_FLAGS = 4, /* TCP without any of these */
	EVENT_DATA = 5, /* of SCTP, by the first chunk: DATA, SACK, HEARTBEAT and whatever else */
	EVENT_INIT = 6,
	EVENT_INIT_ACK = 7,
	EVENT_COOKIE_ECHO = 8,
	EVENT_COOKIE_ACK = 9,
	EVENT_SHUTDOWN = 10,
	EVENT_SHUTDOWN_ACK = 11,
	EVENT_SHUTDOWN_COMPLETE = 12,
	EVENT_ERROR = 13,
	EVENT_ABORT = 14,
};

/* Whose packet it is, and whether the other side's are seen, too: transitions.h. */
enum view {
	VIEW_INPUT = 0,
	VIEW_OUTPUT = 1,
	VIEW_INPUT_ONLY = 2,
};

/* In the word of a slot. */
enum slot_flag {
	SLOT_CONFIRMED = 1, /* the client has answered: no flood takes its place */
	SLOT_CONTROLLED = 2, /* a connection of a persistent service */
	SLOT_STRICT = 4, /* a persistence entry that ends at its time; else the state is SCTP's */
	SLOT_REARMED = 8, /* a persistence entry whose timer was armed for 60 s again */
};

/* Indices of `switches`: words that the control plane stores with one write each. */
enum switch_word {
	SWITCH_MARKS = 0,
	SWITCH_SETTINGS = 1,
	SWITCH_CLOCK = 2, /* jiffies added to the clock, test builds only */
	SWITCH_EPOCH = 3, /* one more after each change: what was remembered before it is void */
	SWITCH_UNPRIVILEGED = 7, /* the first port that FTP's data may be on: service.h */
	SWITCH_LBLC_EXPIRATION = 10, /* jiffies that a destination is kept unused */
	SWITCH_LBLCR_EXPIRATION = 11,
	SWITCH_DROP_RATE = 12, /* of so many opening packets one is dropped; 0: none */
	SWITCH_MAX = 16,
};

enum setting {
	SETTING_EXPIRE_NODEST_CONN = 1,
	SETTING_EXPIRE_QUIESCENT_TEMPLATE = 2,
	SETTING_REQUIRE_LOCAL = 4,
	SETTING_FTP_SERVICE = 8, /* some service is on port 21 */
	SETTING_ANY_PORT_SERVICE = 16, /* some service takes any port */
	SETTING_REUSE_CLOSED = 32, /* bits 1 and 2 of conn_reuse_mode */
	SETTING_REUSE_FIN_WAIT = 64,
	SETTING_SLOPPY_TCP = 128,
	SETTING_SLOPPY_SCTP = 256,
	SETTING_SECURE_TCP = 512,
	SETTING_CACHE_BYPASS = 65536,
	SETTING_IPV4_SERVICE = 131072, /* some service is of this family */
	SETTING_IPV6_SERVICE = 262144,
};

enum service_flag {
	SERVICE_PERSISTENT = 1,
	SERVICE_BY_MARK = 2,
	SERVICE_ANY_PORT = 4,
	SERVICE_STRICT = 8, /* expiry: strict */
	SERVICE_FTP = 16, /* on port 21: its persistence entries are for any port */
	SERVICE_HASH_PORT = 32, /* sh-port, mh-port */
	SERVICE_HASH_FALLBACK = 64, /* sh-fallback, mh-fallback */
	SERVICE_BY_COUNTS = 4096, /* the choice goes by what backends carry */
	SERVICE_SLOPPY_TCP = 65536, /* as SETTING_SLOPPY_TCP, for this one */
	SERVICE_ONE_PACKET = 131072, /* UDP packets are scheduled one by one */
	SERVICE_SIP = 262144, /* persistence entries are for one call each */
};

enum backend_flag {
	BACKEND_PRESENT = 1,
	BACKEND_QUIESCED = 2, /* weight 0 */
	BACKEND_DRAINING = 4,
};

/* How a packet reaches a backend; a connection keeps the one that it began with. */
enum method {
	METHOD_DR = 0,
	METHOD_NAT = 1,
	METHOD_TUNNEL = 2,
	METHOD_FULLNAT = 3, /* nat's bit is set: an answer looks for no other */
};

enum tunnel_type {
	TUNNEL_TYPE_IPIP = 0,
	TUNNEL_TYPE_GUE = 1,
	TUNNEL_TYPE_GRE = 2,
};

enum tunnel_flag {
	TUNNEL_CHECKSUM = 1, /* gue and gre: the outer header has a checksum */
	TUNNEL_CUT = 2, /* it never has DF: pmtu_disc is off */
};

enum interface_flag {
	INTERFACE_XDP = 1, /* XDP is attached here: TC only finishes what XDP hands over */
	INTERFACE_TRANSMIT = 2, /* XDP may send out of it */
	INTERFACE_NO_METADATA = 4, /* its driver cannot carry a handover */
	INTERFACE_GENERIC = 8, /* XDP is attached in generic mode */
	INTERFACE_NO_TX = 16, /* XDP_TX is not sure to send by it: redirects are */
};

enum road {
	ROAD_NONE = 0,
	ROAD_TC = 3,
	ROAD_XDP = 4, /* tx for what came by the lane's `turning`, redirect for the rest */
	ROAD_TAGGED = 5, /* the same with the lane's tag */
};

enum family {
	FAMILY_IPV4 = 4,
	FAMILY_IPV6 = 6,
};

/* A connection's key, and with client port 0 and a masked client a persistence entry's. */
struct flow4 {
	__be32 client;
	__be32 virtual;
	__be16 client_port;
	__be16 virtual_port;
	u8 protocol;
	u8 padding[3];
};

struct flow6 {
	__be32 client[4];
	__be32 virtual[4];
	__be16 client_port;
	__be16 virtual_port;
	u8 protocol;
	u8 padding[3];
};

/* The first part of every slot; its word is described in word.h, its key follows. */
struct slot {
	u64 word;
	u64 body[5];
	u64 key[5]; /* of an IPv4 table: two */
};

/* A slot that an insert has found or taken. */
struct seat {
	u64 place;
	u64 word; /* as it was */
	u64 rank; /* how soon its entry may go */
};

/* As an entry's generation: none, as a generation has 15 bits. */
#define PERSISTENCE_GONE 0xffffffff

/* One flow's backend and state: the body of a slot. */
struct connection {
	u64 word; /* in the place of a time its route: word.h */
	u64 seen; /* jiffies: its last packet */
	u64 backend; /* generation << 32 | id */
	u64 persistence; /* generation << 32 | place of the entry that controls it */
	u32 told; /* jiffies, their low half: when that entry last heard of it */
	u32 service;
	u32 mark;
	u32 fetched; /* written to have the line fetched */
};

/* One client's backend for one service: the body of a slot. */
struct persistence {
	u64 word;
	u64 backend; /* generation << 32 | id */
	u64 counts; /* expiry.h: how many connections the client has */
	u64 active_until; /* jiffies: the latest end that those in a lasting state told of */
	u64 inactive_until; /* the same of the others */
	u32 timeout; /* jiffies */
	u32 service;
};

/* Slots of the four tables: 64 bytes, a cache line, for IPv4, and 128 for IPv6. */
struct connection4 {
	struct connection body;
	struct flow4 key;
};

struct connection6 {
	struct connection body;
	struct flow6 key;
	u64 unused[5];
};

struct persistence4 {
	struct persistence body;
	struct flow4 key;
};

struct persistence6 {
	struct persistence body;
	struct flow6 key;
	u64 unused[5];
};

/* What names a service; mark services leave all but mark and family 0. */
struct service_key {
	__be32 address[4];
	__be16 port;
	u8 protocol;
	u8 family;
	u32 mark;
};

/* A version of a service.  Never changed while `service_switches` names it. */
struct service_config {
	u64 persistence_timeout; /* jiffies */
	__be32 netmask[4];
	u32 flags;
	u32 scheduler;
	u32 generation; /* 16 bits; the cursor carries it too */
	u32 mark;
	u32 list_offset;
	u32 list_length;
	u32 slots_offset;
	u32 weight_step; /* wrr: greatest common divisor of the weights */
	u32 weight_max; /* wrr: where a round starts; 0: nobody has a weight */
	u32 cursor_position; /* where rr and wrr go on in this version */
	u32 cursor_weight;
	u32 since; /* the generation in which the service got its scheduler */
};

struct member {
	u32 backend;
	u32 weight;
};

/* A destination of a service with lblc or lblcr; a set of many backends has several parts. */
struct destination_key {
	__be32 address[4];
	u32 service;
	u32 since; /* another choice of scheduler knows nothing of it */
	u32 part;
	u32 padding;
};

/* A backend of a set. */
struct destination_seat {
	u64 backend; /* generation << 32 | id */
	u64 order; /* the later it came, the higher */
};

/* A part of a destination's set of backends: of one, under lblc. */
struct destination_set {
	u64 used; /* jiffies: when it was last asked for */
	u64 changed; /* jiffies: when a backend last came or went; here and below: the first part's */
	u64 order; /* of the backend that came last */
	u64 parts;
	struct destination_seat seats[8];
};

struct backend {
	u64 word; /* generation << 32 | flags */
	__be32 address[4];
	u32 family;
	u32 service;
	/* What the control plane found the route to be: used where the kernel's FIB will not say. */
	u32 route_ifindex;
	u32 route_family;
	__be32 route_gateway[4];
	/* How it gets new connections; one word, so that they meet it whole. */
	__be16 port; /* 0: the packet's */
	u8 method;
	u8 padding[5];
};

/* What packets to a backend by tunnel are put into; one word, so that they meet it whole. */
struct tunnel_options {
	__be16 port; /* gue: where it listens */
	u8 type;
	u8 flags;
	u16 first_port; /* gue: the outer source ports are these, */
	u16 ports; /* and so many */
};

/* The same with the source of the outer header.  Connections follow its changes. */
struct tunnel {
	__be32 source[4]; /* 0: nothing is known to lead to the backend */
	u64 options;
	u64 path; /* MTU of a router on the way, which the data plane learns: jiffies << 16 | bytes */
};

/* An address of which backends by fullnat get packets. */
struct source {
	__be32 address[4];
};

/* A family's addresses of these: the first `count` of `index` are their rows. */
#define SOURCES 512
struct source_pool {
	u32 count;
	u32 first_port;
	u32 ports; /* how many each address has, from that one on */
	u32 padding;
	u16 index[512]; /* SOURCES */
};

/* What the fragments of a packet have in common. */
struct fragment_key {
	u64 ends[4]; /* source and destination, IPv4's in the first */
	u32 identification;
	u32 family;
};

/* Where a packet's first fragment went, and so where the others do. */
struct fragment {
	u64 until; /* jiffies */
	u64 backend; /* generation << 32 | id */
	u64 route;
	__be32 address[4]; /* of an answer: the virtual one */
	u32 service;
	u32 mark;
	u32 is_answer;
	u32 padding;
};

/* How much a backend carries now; lc, wlc, sed, nq and ovf go by these, and thresholds by the total. */
struct load {
	u64 active;
	u64 total;
};

/* One CPU's clock hand in one table. */
struct hand {
	u32 place; /* the first slot of the bucket that it ages next */
	u32 inserts; /* since it aged the last one */
	u64 began; /* jiffies: when its round began */
};

/* How many entries of a service are in each table, in the order of enum table. */
struct share {
	u64 connections4;
	u64 connections6;
	u64 persistence4;
	u64 persistence6;
};

/* How a table is divided: so much is each service's own, and what is left is for all. */
struct pool {
	u64 own;
	u64 limit; /* of what services together may have beyond their own */
	u64 borrowed; /* what they have of that */
	u64 padding[5]; /* a cache line each */
};

struct counters {
	u64 connections;
	u64 packets;
	u64 bytes;
	u64 padding;
};

/* Where the counters stood when they were last set to zero: what is shown is what came since. */
struct zero {
	u64 connections;
	u64 packets;
	u64 bytes;
	u64 out_packets;
	u64 out_bytes;
	u64 turn; /* how often that was done */
};

struct interface {
	u64 mac; /* as the first six bytes of the word */
	u32 lower; /* of a VLAN device: where XDP sends its frames, 0: nowhere */
	u16 vlan; /* and the id in their tag */
	u16 flags;
};

struct mac_key {
	u64 mac;
	u32 ifindex;
	u32 padding;
};

struct address_key {
	__be32 address[4];
};

/*
 * A rule set in `mark_words`: mark.h says how a packet's rule is found in it.  Places are in words
 * from the start of the set's half.
 */
enum mark_header {
	MARK_HEADER_TABLE = 0, /* where the slots are */
	MARK_HEADER_SLOT_MASK = 1, /* their number, a power of two, less 1 */
	MARK_HEADER_SUMMARIES = 2, /* words of a summary that are in use */
	MARK_HEADER_RULES = 3, /* where each rule's verdict is */
	MARK_HEADER_USED = 4, /* a bit a dimension: some rule looks at it */
	MARK_HEADER_PORTS = 5, /* where the ports' upper halves are looked up */
	MARK_HEADER_DESTINATION4 = 6, /* where the searches begin, 0: no rule has such a value */
	MARK_HEADER_DESTINATION6 = 7,
	MARK_HEADER_SOURCE4 = 8,
	MARK_HEADER_SOURCE6 = 9,
	MARK_HEADER_INTERFACE = 10,
	MARK_HEADER_VLAN = 11,
	MARK_HEADER_SOURCE_MAC = 12,
	MARK_HEADER_TCP = 16, /* wide sets: the rules that this protocol fits */
	MARK_HEADER_UDP = 17,
	MARK_HEADER_WIDE = 18, /* and those that do not look at a dimension: one place for each */
	MARK_HEADER_SCTP = 24, /* as of TCP and UDP */
	MARK_HEADER_WORDS = 32,
};

/* What a rule may look at beside the protocol. */
enum mark_dimension {
	MARK_DIMENSION_DESTINATION = 0,
	MARK_DIMENSION_SOURCE = 1,
	MARK_DIMENSION_PORT = 2,
	MARK_DIMENSION_INTERFACE = 3,
	MARK_DIMENSION_VLAN = 4,
	MARK_DIMENSION_SOURCE_MAC = 5,
	MARK_DIMENSION_MAX = 6,
};

/* The first searches of the table: an address with port and protocol is found by one of these. */
enum mark_search {
	MARK_SEARCH_EXACT4 = 1,
	MARK_SEARCH_EXACT6 = 2,
	MARK_SEARCH_MAX = 3,
};

struct mark_header_words {
	u64 word[MARK_HEADER_WORDS];
};

/* The value of a key: a verdict, or where a record is. */
struct mark_slot {
	u64 key[3]; /* the third names the search, in its upper half */
	u64 value; /* 0: no slot after this one has the key */
};

/* One step of a search: under a mask, and where to go from there; 0 ends it. */
struct mark_node {
	u64 mask[2];
	u32 found;
	u32 missed;
	u64 search;
};

/* A set of rules, a bit each: which of its words are not 0, and those words. */
struct mark_record {
	u64 summary[4];
	u64 ranks; /* 16 bits for each summary word: how many words come before it */
	u64 words[3]; /* and more */
};

/* What one CPU remembers of packets to one address, port and protocol. */
struct verdict {
	u64 virtual[2];
	u64 epoch;
	u64 local_at; /* jiffies: when the address was found to be this host's */
	u32 target; /* port, protocol, family */
	u32 mark;
	u32 service;
	u32 reason;
};

/* Where somebody is on the wire, as one CPU last found it. */
struct hop {
	u64 until; /* jiffies: when the kernel is asked again */
	u8 destination[6];
	u8 source[6];
	u32 ifindex;
	u32 mtu;
	u32 road;
	u32 turning; /* the interface whose packets are sent back by XDP_TX, 0: none */
	__be16 tci; /* of the tag, as on the wire */
	u16 padding;
};

/* What one CPU keeps of a backend, within a cache line: where it is, and what it got. */
struct lane {
	struct hop hop;
	u64 connections;
	u64 packets;
	u64 bytes;
};

/* Where a client is to whom answers go. */
struct way {
	struct hop hop;
	u64 address[2];
	u64 padding; /* a cache line each */
};

/* What came back of a service, or from a backend. */
struct answers {
	u64 out_packets;
	u64 out_bytes;
};

/* A Call-ID: in the first byte how many follow, and 0 after these. */
#define CALL_WORDS 32
struct call {
	u64 words[32];
};

/* One CPU's search for a packet's Call-ID, as far as it has come: call.h. */
#define CALL_STEP 256
struct call_search {
	struct call call;
	u64 window[32];
	u32 state;
	u32 offset; /* in UDP's data: what is looked at next */
	u32 matched; /* bytes of the name */
	u32 length; /* of the Call-ID */
	u32 word; /* of its word, so far */
	u32 second; /* the word is the one after @ */
	u32 place; /* in UDP's data: the byte that is looked at, */
	u32 value; /* where the value begins, */
	u32 from; /* and where the search does */
	u32 padding;
};

/* Words of an ICMP error: its header and what it quotes at most, of IPv6. */
#define REFUSAL_WORDS 155

/* One CPU's answers to packets that go nowhere: how many it may send, and the one that it makes. */
struct refusal {
	u64 credit; /* in parts: HZ for an answer */
	u64 credited_at; /* jiffies */
	u64 head[3]; /* Ethernet header and tags */
	u64 ip[5];
	u64 message[REFUSAL_WORDS];
};

/* What a CPU cuts into fragments: all after the IP header, and room to read a part too many. */
#define CUT_MOST 16384
#define CUT_PART 512
struct cut_payload {
	u64 words[2112];
};

/* What XDP writes into a packet's metadata for TC. */
struct handover {
	u32 magic;
	u32 reason; /* to count; one that is sent goes to `backend` */
	u32 mark;
	u32 backend;
	u32 service;
	u32 route; /* port and method of it; what follows them TC finds for itself */
};

/* What the control plane asks the clock program. */
struct clock_reading {
	u64 jiffies;
	u64 nanoseconds; /* CLOCK_MONOTONIC */
};

enum table {
	TABLE_CONNECTIONS4 = 0,
	TABLE_CONNECTIONS6 = 1,
	TABLE_PERSISTENCE4 = 2,
	TABLE_PERSISTENCE6 = 3,
};

/* An entry that the control plane wants removed: it is, if its word is still of `generation`. */
struct reap_item {
	u32 table;
	u32 place;
	u32 generation;
	u32 force; /* 0: only where it has expired */
	u32 removed; /* the answer */
	u32 padding;
};

/* What becomes of a state, as the control plane asks the programs. */
struct transition_item {
	u32 protocol; /* as in the IP header */
	u32 view;
	u32 secure; /* secure_tcp is on */
	u32 state;
	u32 event;
	u32 next; /* the answer: the state, */
	u32 timeout; /* how many jiffies it lasts without a packet, */
	u32 active; /* and whether it counts as active */
};

enum pin {
	PIN_DONE = 0,
	PIN_BUSY = 1, /* another CPU was at the entry: ask again */
	PIN_FULL = 2, /* there is no room */
};

/* A persistence entry by hand: the client's backend from now on, whatever it was. */
struct pin_item {
	u64 backend; /* generation << 32 | id */
	u64 timeout; /* jiffies */
	struct flow6 flow; /* of the client to the service; IPv4: a flow4 in its place */
	u32 service;
	u32 family;
	u32 answer; /* enum pin */
	u32 padding;
};

/* A sweep over a table: each run does SWEEP_STEP slots from `place` and moves `place` on. */
struct sweep_item {
	u32 place;
	u32 removed;
	u32 evict; /* a service's id + 1: remove its entries; 0: remove what has expired, and count */
	u32 heal; /* put counts of persistence entries right that the sweep before found wrong */
	u32 suspect; /* buckets of persistence entries in which counts are not what was counted */
	u32 healed; /* entries in them that were put right */
};

enum healed {
	HEALED_LOADS = 0,
	HEALED_SHARES = 1,
	HEALED_POOLS = 2,
};

/* A count that is to be put right: by adding, so that what packets add meanwhile is not lost. */
struct heal_item {
	u32 map; /* enum healed */
	u32 index;
	u32 word; /* of the entry */
	u32 padding;
	u64 change;
};

/* A backend's thresholds from now on: limit.h. */
struct limit_item {
	u64 thresholds;
	u32 backend;
	u32 busy; /* the answer: other CPUs were at it all the time, ask again */
};

/* Numbers of the flat tables. */
enum flat {
	FLAT_SWITCHES = 1,
	FLAT_TIMEOUTS = 2,
	FLAT_FILTER = 3,
	FLAT_SERVICE_SWITCHES = 4,
	FLAT_SERVICE_CONFIGS = 5,
	FLAT_BACKENDS = 6,
	FLAT_INTERFACES = 7,
	FLAT_CONNECTIONS4 = 8,
	FLAT_CONNECTIONS6 = 9,
	FLAT_PERSISTENCE4 = 10,
	FLAT_PERSISTENCE6 = 11,
	FLAT_LOCKS = 12,
	FLAT_HANDS = 13,
	FLAT_SHARES = 14,
	FLAT_POOLS = 15,
	FLAT_SHARE_RECOUNTS = 16,
	FLAT_ROUNDS = 17,
	FLAT_RECOUNTS = 18,
	FLAT_VERDICTS = 19,
	FLAT_SERVICE_CURSORS = 20,
	FLAT_LOADS = 21,
	FLAT_LANES = 22,
	FLAT_NEXTHOP_PROBES = 23,
	FLAT_REASONS = 24,
	FLAT_SERVICE_COUNTERS = 25,
	FLAT_JOURNEYS = 26,
	FLAT_MARK_WORDS = 27,
	FLAT_ENTRY_RECOUNTS4 = 28,
	FLAT_ENTRY_RECOUNTS6 = 29,
	FLAT_BUCKET_SUMS4 = 30,
	FLAT_BUCKET_SUMS6 = 31,
	FLAT_REDIRECT_FAILURES = 32,
	FLAT_SERVICE_ZEROS = 33,
	FLAT_BACKEND_ZEROS = 34,
	FLAT_TOTAL_ZERO = 35,
	FLAT_MEMBERS = 40,
	FLAT_LIMITS = 41,
	FLAT_SLOTS = 42,
	FLAT_MEMBER_PLACES = 43,
	FLAT_REFUSALS = 50,
	FLAT_WAYS = 51,
	FLAT_WAY_PROBES = 52,
	FLAT_BACKEND_ANSWERS = 53,
	FLAT_SERVICE_ANSWERS = 54,
	FLAT_DROP_COUNT = 55,
	FLAT_TUNNELS = 56,
	FLAT_CUT_PAYLOADS = 57,
	FLAT_SOURCES = 58,
	FLAT_SOURCE_POOLS = 59,
	FLAT_CALLS4 = 60,
	FLAT_CALLS6 = 61,
	FLAT_CALL_SEARCHES = 62,
	FLAT_SOURCE_PORTS = 63,
	FLAT_SOURCE_CURSORS = 64,
};

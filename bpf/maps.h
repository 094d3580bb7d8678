/*
 * Every map.  TABLE is the loader's: a new map, or one that is pinned already.
 *
 * A flat table is an array of one entry that holds all rows, so that programs compute where a row
 * is instead of asking a helper.  The loader makes it and writes its descriptor where a program
 * names its number; control.c alone declares it to the compiler, for what the rows look like.
 * The number of rows is a power of two.
 */
#ifdef DESCRIBE_FLAT
#define FLAT_DESCRIPTION(type, row, name, rows) \
	BPF_F_TABLE(type, u32, row, name, rows, BPF_F_NO_PREALLOC);
#else
#define FLAT_DESCRIPTION(type, row, name, rows)
#endif
#define FLAT_NAMES(row, name, rows, number) \
	typedef row name##_row;             \
	enum {                              \
		name##_rows = rows,         \
		name##_number = number      \
	};
#define FLAT_TABLE(type, key, row, name, rows, number) \
	FLAT_DESCRIPTION("hash", row, name, rows)      \
	FLAT_NAMES(row, name, rows, number)
#define FLAT_CPU_TABLE(type, key, row, name, rows, number) \
	FLAT_DESCRIPTION("percpu_hash", row, name, rows)   \
	FLAT_NAMES(row, name, rows, number)

/* BPF_PSEUDO_MAP_VALUE: where the first row is. */
#define FLAT_FIRST(name) ((name##_row *)bpf_pseudo_fd(2, name##_number))
/* The row at an index, whose bits beyond the number of rows do not count. */
#define ROW(name, index) (FLAT_FIRST(name) + ((index) & (name##_rows - 1)))
/* The same in a CPU's part. */
#define CPU_ROW(name, cpu, index) \
	(FLAT_FIRST(name) + ((cpu) & (CPUS - 1)) * name##_rows + ((index) & (name##_rows - 1)))

/* Written by the control plane. */

/* Words switched with one store; fixed size. */
FLAT_TABLE("array", u32, u64, switches, SWITCH_MAX, FLAT_SWITCHES)
/* State -> jiffies that a connection lives in it without a packet. */
FLAT_TABLE("array", u32, u32, timeouts, STATE_MAX, FLAT_TIMEOUTS)
/* What names a service -> its id; one to three keys a service. */
TABLE("hash", struct service_key, u32, services, SERVICE_CAPACITY, 0)
/*
 * A bit for each address, port and protocol that a service or mark rule names, and for each address
 * that one names with many ports; set before it is needed, taken away by sweeps alone, which build
 * the second half anew.
 */
FLAT_TABLE("array", u32, u64, filter, 2 * FILTER_WORDS, FLAT_FILTER)
/* Service id -> generation << 32 | row of service_configs; one store changes a service. */
FLAT_TABLE("array", u32, u64, service_switches, SERVICE_CAPACITY, FLAT_SERVICE_SWITCHES)
/* Versions of services; two for each service. */
FLAT_TABLE("array", u32, struct service_config, service_configs, SERVICE_CONFIG_CAPACITY,
	   FLAT_SERVICE_CONFIGS)
/* Backend lists, in scheduling order, each a range that one service_config names. */
FLAT_TABLE("array", u32, struct member, members, MEMBER_CAPACITY, FLAT_MEMBERS)
/* Tables of sh, dh and mh, as places in a list, each a range that one service_config names. */
FLAT_TABLE("array", u32, u16, slots, SLOT_CAPACITY, FLAT_SLOTS)
/*
 * Backend id -> its place in the list of a service with lblc or lblcr, in that version: versions of
 * even generations have one half, those of odd ones the other.
 */
FLAT_TABLE("array", u32, u32, member_places, 2 * BACKEND_CAPACITY, FLAT_MEMBER_PLACES)
/* Backend id -> backend. */
FLAT_TABLE("array", u32, struct backend, backends, BACKEND_CAPACITY, FLAT_BACKENDS)
/* Backend id -> how its packets are wrapped, of backends by tunnel. */
FLAT_TABLE("array", u32, struct tunnel, tunnels, BACKEND_CAPACITY, FLAT_TUNNELS)
/* Fullnat: number -> address, address -> number, and family -> what is chosen from. */
FLAT_TABLE("array", u32, struct source, sources, SOURCES, FLAT_SOURCES)
TABLE("hash", struct address_key, u32, source_numbers, 2 * SOURCES, 0)
FLAT_TABLE("array", u32, struct source_pool, source_pools, 2, FLAT_SOURCE_POOLS)
/* Backend id -> its thresholds, and whether it is overloaded, which the data plane notes: limit.h. */
FLAT_TABLE("array", u32, u64, limits, BACKEND_CAPACITY, FLAT_LIMITS)
/* Mark rules: the set in use in one half, the next one written to the other. */
FLAT_TABLE("array", u32, u64, mark_words, 2 * MARK_WORDS, FLAT_MARK_WORDS)
/* Interface index -> MAC and how XDP sends there; the data plane sets INTERFACE_NO_METADATA. */
FLAT_TABLE("array", u32, struct interface, interfaces, INTERFACE_CAPACITY, FLAT_INTERFACES)
/* More MACs of this host: upper devices'. */
TABLE("hash", struct mac_key, u32, local_macs, 1024, 0)
/* Service id, backend id, and 0 of all services together -> where counters were set to zero. */
FLAT_TABLE("array", u32, struct zero, service_zeros, SERVICE_CAPACITY, FLAT_SERVICE_ZEROS)
FLAT_TABLE("array", u32, struct zero, backend_zeros, BACKEND_CAPACITY, FLAT_BACKEND_ZEROS)
FLAT_TABLE("array", u32, struct zero, total_zero, 1, FLAT_TOTAL_ZERO)
/* This host's addresses, for where the kernel's FIB will not say. */
TABLE("hash", struct address_key, u32, local_addresses, 4096, 0)

/* Written by the data plane. */

/* Connections and persistence entries: buckets of BUCKET_SLOTS slots. */
FLAT_TABLE("array", u32, struct connection4, connections4, CONNECTION_SLOTS, FLAT_CONNECTIONS4)
FLAT_TABLE("array", u32, struct connection6, connections6, CONNECTION_SLOTS, FLAT_CONNECTIONS6)
FLAT_TABLE("array", u32, struct persistence4, persistence4, PERSISTENCE_SLOTS, FLAT_PERSISTENCE4)
FLAT_TABLE("array", u32, struct persistence6, persistence6, PERSISTENCE_SLOTS, FLAT_PERSISTENCE6)
/* Locks of buckets; only inserts and the clock hand take them. */
FLAT_TABLE("array", u32, u64, locks, LOCKS, FLAT_LOCKS)
/* Table -> this CPU's clock hand. */
FLAT_CPU_TABLE("percpu_array", u32, struct hand, hands, 4, FLAT_HANDS)
/* Service id -> its entries. */
FLAT_TABLE("array", u32, struct share, shares, SERVICE_CAPACITY, FLAT_SHARES)
/* Table -> how it is divided among services. */
FLAT_TABLE("array", u32, struct pool, pools, 4, FLAT_POOLS)
/* Service id -> its entries as a sweep counts them; zeroed before each sweep. */
FLAT_TABLE("array", u32, struct share, share_recounts, SERVICE_CAPACITY, FLAT_SHARE_RECOUNTS)
/* Table -> jiffies when the last round of a clock hand that is complete began. */
FLAT_TABLE("array", u32, u64, rounds, 4, FLAT_ROUNDS)
/* Backend id -> connections as a sweep counts them; zeroed before each sweep. */
FLAT_TABLE("array", u32, struct load, recounts, BACKEND_CAPACITY, FLAT_RECOUNTS)
/* Destination of a service -> its backends, of lblc and lblcr; what was not used longest goes. */
TABLE("lru_hash", struct destination_key, struct destination_set, destinations,
      DESTINATION_CAPACITY, 0)
/* Bucket of persistence entries -> what its connections weigh as a sweep finds them: sweep.h. */
FLAT_TABLE("array", u32, u64, bucket_sums4, PERSISTENCE_SLOTS / BUCKET_SLOTS, FLAT_BUCKET_SUMS4)
FLAT_TABLE("array", u32, u64, bucket_sums6, PERSISTENCE_SLOTS / BUCKET_SLOTS, FLAT_BUCKET_SUMS6)
/* Slot of a persistence entry -> its counts as a sweep finds them; only in buckets that are suspect. */
FLAT_TABLE("array", u32, u64, entry_recounts4, PERSISTENCE_SLOTS, FLAT_ENTRY_RECOUNTS4)
FLAT_TABLE("array", u32, u64, entry_recounts6, PERSISTENCE_SLOTS, FLAT_ENTRY_RECOUNTS6)
/* Hash of address, port and protocol -> what this CPU found of them. */
FLAT_CPU_TABLE("percpu_array", u32, struct verdict, verdicts, VERDICTS, FLAT_VERDICTS)
/* Service id -> generation << 48 | position << 32 | weight: where rr and wrr stand. */
FLAT_TABLE("array", u32, u64, service_cursors, SERVICE_CAPACITY, FLAT_SERVICE_CURSORS)
/* Backend id -> active and all connections. */
FLAT_TABLE("array", u32, struct load, loads, BACKEND_CAPACITY, FLAT_LOADS)
/* Backend id -> next hop, as this CPU last found it, and what this CPU sent there. */
FLAT_CPU_TABLE("percpu_array", u32, struct lane, lanes, BACKEND_CAPACITY, FLAT_LANES)
/* Backend id -> jiffies when a packet last took the kernel's road to it. */
FLAT_TABLE("array", u32, u64, nexthop_probes, BACKEND_CAPACITY, FLAT_NEXTHOP_PROBES)
/* Hash of a client's address -> where that is, as this CPU last found it: answer.h. */
FLAT_CPU_TABLE("percpu_array", u32, struct way, ways, WAYS, FLAT_WAYS)
/* Hash of such a next hop -> jiffies when a packet last took the kernel's road to it. */
FLAT_TABLE("array", u32, u64, way_probes, WAY_PROBES, FLAT_WAY_PROBES)
/* Backend id, and service id -> what came back. */
FLAT_CPU_TABLE("percpu_array", u32, struct answers, backend_answers, BACKEND_CAPACITY,
	       FLAT_BACKEND_ANSWERS)
FLAT_CPU_TABLE("percpu_array", u32, struct answers, service_answers, SERVICE_CAPACITY,
	       FLAT_SERVICE_ANSWERS)
/* Slot of a persistence entry -> the call that it is for, of services with engine sip; else one row. */
FLAT_TABLE("array", u32, struct call, calls4, CALL_SLOTS, FLAT_CALLS4)
FLAT_TABLE("array", u32, struct call, calls6, CALL_SLOTS, FLAT_CALLS6)
/* A search for a Call-ID on its way; each hook has its row. */
FLAT_CPU_TABLE("percpu_array", u32, struct call_search, call_searches, 2, FLAT_CALL_SEARCHES)
/* Packets that were to open something since the setting drop_packet got its rate. */
FLAT_TABLE("array", u32, u64, drop_count, 1, FLAT_DROP_COUNT)
/* Number of an address << 16 | port -> whose it is: source.h; one row where nobody needs it. */
FLAT_TABLE("array", u32, u64, source_ports, SOURCE_PORTS, FLAT_SOURCE_PORTS)
/* Family -> where this CPU looks for a free one next. */
FLAT_CPU_TABLE("percpu_array", u32, u64, source_cursors, 2, FLAT_SOURCE_CURSORS)
/* What fragments have in common -> where they go. */
TABLE("lru_hash", struct fragment_key, struct fragment, fragments, FRAGMENT_CAPACITY, 0)
/* Packets by reason. */
FLAT_CPU_TABLE("percpu_array", u32, u64, reasons, REASON_MAX, FLAT_REASONS)
/* Interface index -> packets that XDP had sent out of it and the kernel lost; 0: beyond the table. */
FLAT_TABLE("array", u32, u64, redirect_failures, INTERFACE_CAPACITY, FLAT_REDIRECT_FAILURES)
/* Counters by service id. */
FLAT_CPU_TABLE("percpu_array", u32, struct counters, service_counters, SERVICE_CAPACITY,
	       FLAT_SERVICE_COUNTERS)

/* What this CPU tells the senders of packets that go nowhere; each hook has its row. */
FLAT_CPU_TABLE("percpu_array", u32, struct refusal, refusals, 2, FLAT_REFUSALS)

/* What this CPU is about to send in fragments. */
FLAT_CPU_TABLE("percpu_array", u32, struct cut_payload, cut_payloads, 1, FLAT_CUT_PAYLOADS)

/* What a packet's programs hand over to each other; each hook has its row. */
FLAT_CPU_TABLE("percpu_array", u32, struct journey, journeys, 2, FLAT_JOURNEYS)

/* Of one hook's set of programs alone, never pinned. */

/* By enum program. */
BPF_PROG_ARRAY(programs, PROGRAM_MAX);

/* The row of an interface; row 0, which says nothing, where its index is beyond the table. */
static __always_inline struct interface *maps_interface(u64 ifindex)
{
	return ROW(interfaces, ifindex < INTERFACE_CAPACITY ? ifindex : 0);
}

/* What this packet's programs hand over to each other. */
static __always_inline struct journey *maps_journey(void)
{
	return CPU_ROW(journeys, bpf_get_smp_processor_id(), HOOK_IS_XDP);
}

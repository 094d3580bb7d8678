/* Every map.  TABLE is the loader's: a new map, or one that is pinned already. */

/* Written by the control plane. */

/* Words switched with one store; fixed size. */
TABLE("array", u32, u64, switches, SWITCH_MAX, BPF_F_MMAPABLE)
/* State -> jiffies that a connection lives in it without a packet. */
TABLE("array", u32, u32, timeouts, STATE_MAX, 0)
/* What names a service -> its id; one to three keys a service. */
TABLE("hash", struct service_key, u32, services, SERVICE_CAPACITY, 0)
/*
 * A bit for each address, port and protocol that a service or mark rule names, and for each address
 * that one names with many ports; set before it is needed, taken away by sweeps alone, which build
 * the second half anew.
 */
TABLE("array", u32, u64, filter, 2 * FILTER_WORDS, BPF_F_MMAPABLE)
/* Service id -> generation << 32 | row of service_configs; one store changes a service. */
TABLE("array", u32, u64, service_switches, SERVICE_CAPACITY, BPF_F_MMAPABLE)
/* Versions of services; two for each service. */
TABLE("array", u32, struct service_config, service_configs, SERVICE_CONFIG_CAPACITY, 0)
/* Backend lists, in scheduling order, each a range that one service_config names. */
TABLE("array", u32, struct member, members, MEMBER_CAPACITY, 0)
/* Hash tables of sh, as places in a list, each a range that one service_config names. */
TABLE("array", u32, u32, slots, SLOT_CAPACITY, 0)
/* Backend id -> backend. */
TABLE("array", u32, struct backend, backends, BACKEND_CAPACITY, BPF_F_MMAPABLE)
/* Exact mark rules, keyed with the generation of the rule set. */
TABLE("hash", struct mark_key, struct mark_verdict, mark_exact, MARK_EXACT_CAPACITY,
      BPF_F_NO_PREALLOC)
/* Ordered mark rules: one half in use, the other being written. */
TABLE("array", u32, struct mark_rule, mark_rules, MARK_RULE_CAPACITY, 0)
/* Interface index -> MAC and what XDP may do there; the data plane sets INTERFACE_NO_METADATA. */
TABLE("array", u32, struct interface, interfaces, INTERFACE_CAPACITY, 0)
/* More MACs of this host: upper devices'. */
TABLE("hash", struct mac_key, u32, local_macs, 1024, 0)
/* This host's addresses, for where the kernel's FIB will not say. */
TABLE("hash", struct address_key, u32, local_addresses, 4096, 0)

/* Written by the data plane. */

/* Connections and persistence entries: buckets of BUCKET_SLOTS slots. */
TABLE("array", u32, struct connection4, connections4, CONNECTION_SLOTS, BPF_F_MMAPABLE)
TABLE("array", u32, struct connection6, connections6, CONNECTION_SLOTS, BPF_F_MMAPABLE)
TABLE("array", u32, struct persistence4, persistence4, PERSISTENCE_SLOTS, BPF_F_MMAPABLE)
TABLE("array", u32, struct persistence6, persistence6, PERSISTENCE_SLOTS, BPF_F_MMAPABLE)
/* Locks of buckets; only inserts and the clock hand take them. */
TABLE("array", u32, u64, locks, LOCKS, 0)
/* Table -> this CPU's clock hand. */
TABLE("percpu_array", u32, struct hand, hands, 4, 0)
/* Service id -> its entries. */
TABLE("array", u32, struct share, shares, SERVICE_CAPACITY, BPF_F_MMAPABLE)
/* Table -> how it is divided among services. */
TABLE("array", u32, struct pool, pools, 4, BPF_F_MMAPABLE)
/* Service id -> its entries as a sweep counts them; zeroed before each sweep. */
TABLE("array", u32, struct share, share_recounts, SERVICE_CAPACITY, BPF_F_MMAPABLE)
/* Table -> jiffies when the last round of a clock hand that is complete began. */
TABLE("array", u32, u64, rounds, 4, BPF_F_MMAPABLE)
/* Backend id -> connections as a sweep counts them; zeroed before each sweep. */
TABLE("array", u32, struct load, recounts, BACKEND_CAPACITY, BPF_F_MMAPABLE)
/* Hash of address, port and protocol -> what this CPU found of them. */
TABLE("percpu_array", u32, struct verdict, verdicts, VERDICTS, 0)
/* Service id -> generation << 48 | position << 32 | weight: where rr and wrr stand. */
TABLE("array", u32, u64, service_cursors, SERVICE_CAPACITY, BPF_F_MMAPABLE)
/* Backend id -> active and all connections. */
TABLE("array", u32, struct load, loads, BACKEND_CAPACITY, BPF_F_MMAPABLE)
/* Backend id -> next hop, as this CPU last found it, and what this CPU sent there. */
TABLE("percpu_array", u32, struct lane, lanes, BACKEND_CAPACITY, 0)
/* Backend id -> jiffies when a packet last took the kernel's road to it. */
TABLE("array", u32, u64, nexthop_probes, BACKEND_CAPACITY, 0)
/* Packets by reason. */
TABLE("percpu_array", u32, u64, reasons, REASON_MAX, 0)
/* Counters by service id. */
TABLE("percpu_array", u32, struct counters, service_counters, SERVICE_CAPACITY, 0)

/* Of one hook's set of programs alone, never pinned. */

/* What a packet's programs hand over to each other. */
BPF_PERCPU_ARRAY(journeys, struct journey, 1);
/* New, connect and the schedulers. */
BPF_PROG_ARRAY(programs, PROGRAM_MAX);

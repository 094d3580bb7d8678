/* Every map.  TABLE is the loader's: a new map, or one that is pinned already. */

/* Written by the control plane. */

/* Words switched with one store; fixed size. */
TABLE("array", u32, u64, switches, SWITCH_MAX, BPF_F_MMAPABLE)
/* What names a service -> its id; one to three keys a service. */
TABLE("hash", struct service_key, u32, services, SERVICE_CAPACITY, 0)
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

/* Connections; the least recently used one goes when the table is full. */
TABLE("lru_hash", struct flow4, struct connection, connections4, CONNECTION_CAPACITY, 0)
TABLE("lru_hash", struct flow6, struct connection, connections6, CONNECTION_CAPACITY, 0)
/* Persistence entries; the least recently used one goes when the table is full. */
TABLE("lru_hash", struct flow4, struct persistence, persistence4, PERSISTENCE_CAPACITY, 0)
TABLE("lru_hash", struct flow6, struct persistence, persistence6, PERSISTENCE_CAPACITY, 0)
/* Service id -> generation << 48 | position << 32 | weight: where rr and wrr stand. */
TABLE("array", u32, u64, service_cursors, SERVICE_CAPACITY, BPF_F_MMAPABLE)
/* Backend id -> active and all connections. */
TABLE("array", u32, struct load, loads, BACKEND_CAPACITY, BPF_F_MMAPABLE)
/* Backend id -> next hop, as this CPU last found it. */
TABLE("percpu_array", u32, struct nexthop, nexthops, BACKEND_CAPACITY, 0)
/* Backend id -> jiffies when a packet last took the kernel's road to it. */
TABLE("array", u32, u64, nexthop_probes, BACKEND_CAPACITY, 0)
/* Packets by reason. */
TABLE("percpu_array", u32, u64, reasons, REASON_MAX, 0)
/* Counters by service id and by backend id. */
TABLE("percpu_array", u32, struct counters, service_counters, SERVICE_CAPACITY, 0)
TABLE("percpu_array", u32, struct counters, backend_counters, BACKEND_CAPACITY, 0)

/* Of one hook's set of programs alone, never pinned. */

/* What a packet's programs hand over to each other. */
BPF_PERCPU_ARRAY(journeys, struct journey, 1);
/* New, connect and the schedulers. */
BPF_PROG_ARRAY(programs, PROGRAM_MAX);

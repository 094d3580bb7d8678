/* Capacities and constants that the loader may set with -D. */
#ifndef HZ
#error "HZ must be given: jiffies a second on the machine that will run the programs"
#endif

#ifndef CONNECTION_CAPACITY
#define CONNECTION_CAPACITY 262144
#endif
#ifndef PERSISTENCE_CAPACITY
#define PERSISTENCE_CAPACITY 262144
#endif
#ifndef SERVICE_CAPACITY
#define SERVICE_CAPACITY 1024
#endif
#ifndef BACKEND_CAPACITY
#define BACKEND_CAPACITY 4096
#endif
#ifndef INTERFACE_CAPACITY
#define INTERFACE_CAPACITY 4096
#endif

/* A change writes beside what it replaces, so these hold everything twice and leave room to move. */
#define MEMBER_CAPACITY (4 * BACKEND_CAPACITY)
#define SLOT_CAPACITY (512 * SERVICE_CAPACITY)
#define SERVICE_CONFIG_CAPACITY (2 * SERVICE_CAPACITY)
#define MARK_EXACT_CAPACITY 65536
#define MARK_RULES 64
#define MARK_RULE_CAPACITY (2 * MARK_RULES)

/* Members that a scheduler looks at before it calls itself again. */
#define SCAN_STEP 64
/* How often a decision starts over because the service changed under it. */
#define DECISION_ATTEMPTS 4
/* How often a look-up waits for another CPU that is about to finish with an entry. */
#define BUSY_ATTEMPTS 32

/* How long a next hop is remembered, and how often one packet confirms it by the kernel's road. */
#define NEXTHOP_LIFE ((u64)HZ)
/* How often a connection tells its persistence entry until when it lives. */
#define TELL_INTERVAL ((u64)HZ)
/* IPVS re-arms a persistence entry for this long while connections of its client live. */
#define REARM_TIMEOUT ((u64)60 * HZ)

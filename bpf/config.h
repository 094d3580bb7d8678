/* Capacities and constants that the loader may set with -D. */
#ifndef HZ
#error "HZ must be given: jiffies a second on the machine that will run the programs"
#endif

/* All capacities are powers of two; the tables have at least twice the slots that they are to hold. */
#ifndef CONNECTION_SLOTS
#define CONNECTION_SLOTS 524288
#endif
#ifndef PERSISTENCE_SLOTS
#define PERSISTENCE_SLOTS 524288
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
/* Words of one set of mark rules. */
#ifndef MARK_WORDS
#define MARK_WORDS (1 << 18)
#endif
/* Destinations that lblc and lblcr remember; 1 where no service has one of these. */
#ifndef DESTINATION_CAPACITY
#define DESTINATION_CAPACITY 32768
#endif
/* As many as persistence entries have where some service has the engine sip, else 1. */
#ifndef CALL_SLOTS
#define CALL_SLOTS PERSISTENCE_SLOTS
#endif
/* As many as there are addresses for fullnat, times 65536; 1 where no backend is by fullnat. */
#ifndef SOURCE_PORTS
#define SOURCE_PORTS (16 << 16)
#endif
/* Packets of whose fragments it is remembered where they go; those not met for longest are forgotten. */
#ifndef FRAGMENT_CAPACITY
#define FRAGMENT_CAPACITY 16384
#endif
/* At least as many as the machine may have. */
#ifndef CPUS
#define CPUS 64
#endif

/* Features: 0 leaves out what the configuration does not use; control.c always has all of them. */
#ifndef FEATURE_IPV4
#define FEATURE_IPV4 1
#endif
#ifndef FEATURE_IPV6
#define FEATURE_IPV6 1
#endif
#ifndef FEATURE_SCTP
#define FEATURE_SCTP 1
#endif
/* ESP and AH behind UDP's key exchange. */
#ifndef FEATURE_IPSEC
#define FEATURE_IPSEC 1
#endif
/* Mark rules that are compared in order. */
#ifndef FEATURE_RULES
#define FEATURE_RULES 1
#endif
/* Backends by nat, whose answers come back by this host. */
#ifndef FEATURE_NAT
#define FEATURE_NAT 1
#endif
/* Backends by fullnat, which brings nat with it. */
#ifndef FEATURE_FULLNAT
#define FEATURE_FULLNAT 1
#endif
/* FTP by nat. */
#ifndef FEATURE_FTP
#define FEATURE_FTP 1
#endif
/* Backends by tunnel. */
#ifndef FEATURE_TUNNEL
#define FEATURE_TUNNEL 1
#endif
/* The persistence engine sip. */
#ifndef FEATURE_SIP
#define FEATURE_SIP 1
#endif
/* lblc and lblcr. */
#ifndef FEATURE_LOCALITY
#define FEATURE_LOCALITY 1
#endif

/* A change writes beside what it replaces, so these hold everything twice and leave room to move. */
#define MEMBER_CAPACITY (4 * BACKEND_CAPACITY)
/* sh and dh take 256 slots of these and mh 4093, so that mh serves some 500 services of 1024. */
#define SLOT_CAPACITY (SERVICE_CAPACITY > 128 ? 2048 * SERVICE_CAPACITY : 1 << 18)
#define SERVICE_CONFIG_CAPACITY (2 * SERVICE_CAPACITY)

/* Bits of the filter that tells at a glance what is nobody's business. */
#ifndef FILTER_BITS
#define FILTER_BITS 16
#endif
#define FILTER_WORDS (1 << (FILTER_BITS - 6))
/* Verdicts that each CPU remembers. */
#define VERDICTS 1024

/* Clients of whom a CPU remembers where they are, and next hops to them that are confirmed. */
#define WAYS 4096
#define WAY_PROBES 1024

/* The bench lets packets go no further than one stage, to tell what each costs; 0: all the way. */
#ifndef STOP_AFTER
#define STOP_AFTER 0
#endif
#define STAGE_PARSED 1
#define STAGE_CONCERNED 2
#define STAGE_FOUND 3
#define STAGE_REFRESHED 4
#define STAGE_BEGUN 5
#define STAGE_CLASSIFIED 6
#define STAGE_LOCAL 7
#define STAGE_PERSISTENT 8
#define STAGE_SCHEDULED 9
#define STAGE_BOUND 10
#define STAGE_CREATED 11
#define STAGE_AGED 12

/* Slots in which a key of the mark rules can be, and steps of a search. */
#define MARK_PROBES 8
#define MARK_STEPS 8
/* Words of rules' bits that are looked at before the program calls itself again. */
#define MARK_SCAN 32
/* Members that a scheduler looks at before it calls itself again. */
#define SCAN_STEP 64
/* Slots that mh-fallback tries before mh calls itself again. */
#define MH_STEP 256
/* How often a decision starts over because the service changed under it. */
#define DECISION_ATTEMPTS 4
/* Slots where a key can be: those of one bucket, from the one that its hash names. */
#define BUCKET_SLOTS 64 /* as a word has bits: age.h */
/* Locks that inserts take, each for some buckets, and how often one asks for a lock. */
#define LOCKS 4096
#define LOCK_ATTEMPTS 64
/*
 * How long after its end another flow may take an entry's slot: a packet that came just before the
 * end may have noted itself without a locked instruction, which takes a moment to be seen.
 */
#define CLAIM_DELAY 2
/* How often an update of a word that another CPU has changed meanwhile is tried again. */
#define WORD_ATTEMPTS 4
/* The same of a persistence entry's counts, which all of its client's connections change. */
#define COUNT_ATTEMPTS 8
/* After so many inserts of a CPU it ages the bucket at its clock hand: two slots an insert. */
#define HAND_INSERTS (BUCKET_SLOTS / 2)
/* Entries that one packet takes out of a table at most. */
#define AGE_STEP 8
/* Slots of one run of a sweep: part of a bucket. */
#define SWEEP_STEP 16
/* A choice by load first makes the hand catch up, if its last round ended so long ago, */
#define ROUND_LIMIT ((u64)10 * HZ)
/* by so many buckets at most. */
#define CATCH_UP_BUCKETS 8

/* ICMP errors that a CPU sends at most: a second, as Linux by default, and at once. */
#define REFUSALS_A_SECOND 1000
#define REFUSALS_AT_ONCE 50

/* How long fragments follow their first: as long as Linux waits for them. */
#define FRAGMENT_LIFE ((u64)30 * HZ)
/* How long the MTU of a tunnel's way is remembered, as Linux does; and the least that is believed. */
#define PATH_LIFE ((u64)600 * HZ)
#define PATH_LEAST_MTU4 552
#define PATH_LEAST_MTU6 1280
/* How long a next hop is remembered, and how often one packet confirms it by the kernel's road. */
#define NEXTHOP_LIFE ((u64)HZ)
/* How often a connection tells its persistence entry until when it lives. */
#define TELL_INTERVAL ((u64)HZ)
/* IPVS re-arms a persistence entry for this long while connections of its client live. */
#define REARM_TIMEOUT ((u64)60 * HZ)

/*
 * Random 64-bit numbers that the loader draws; it writes each into the instruction that loads it, so
 * that what was compiled serves any draw.
 */
#define HASH_KEY(number) bpf_pseudo_fd(15, number)
/* Numbers that the loader finds in the running kernel, written in the same way after those. */
#define KERNEL_NUMBER(number) bpf_pseudo_fd(15, HASH_KEYS + (number))
#define HASH_KEYS 14

/* Counters per reason, service and backend, each in this CPU's own memory. */
static __always_inline void stats_count_reason(u64 cpu, u32 reason, u64 packets)
{
	/* verifier, where the compiler knows a bound that it does not: "unbounded memory access" */
	if (!__builtin_constant_p(reason))
		asm volatile("" : "+r"(reason));
	*CPU_ROW(reasons, cpu, reason) += packets;
}

/* `lane` is the backend's, of this CPU. */
static __always_inline void stats_count_packet(u64 cpu, u32 service, struct lane *lane, u64 packets,
					       u64 bytes)
{
	struct counters *counters = CPU_ROW(service_counters, cpu, service);

	lane->packets += packets;
	lane->bytes += bytes;
	counters->packets += packets;
	counters->bytes += bytes;
}

static __always_inline void stats_count_connection(u64 cpu, u32 service, u32 backend)
{
	CPU_ROW(service_counters, cpu, service)->connections++;
	CPU_ROW(lanes, cpu, backend)->connections++;
}

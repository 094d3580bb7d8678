/* Counters per reason, service and backend, each in this CPU's own memory. */
static __always_inline void stats_count_reason(u32 reason, u64 packets)
{
	u64 *count = reasons.lookup(&reason);

	if (count)
		*count += packets;
}

static __always_inline void stats_add(struct counters *counters, u64 packets, u64 bytes)
{
	if (!counters)
		return;
	counters->packets += packets;
	counters->bytes += bytes;
}

static __always_inline void stats_count_packet(u32 service, u32 backend, u64 packets, u64 bytes)
{
	stats_add(service_counters.lookup(&service), packets, bytes);
	stats_add(backend_counters.lookup(&backend), packets, bytes);
}

static __always_inline void stats_count_connection(u32 service, u32 backend)
{
	struct counters *counters = service_counters.lookup(&service);

	if (counters)
		counters->connections++;
	counters = backend_counters.lookup(&backend);
	if (counters)
		counters->connections++;
}

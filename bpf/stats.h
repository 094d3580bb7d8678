/* Counters per reason, service and backend, each in this CPU's own memory. */
static __always_inline void stats_count_reason(u32 reason, u64 packets)
{
	u64 *count = reasons.lookup(&reason);

	if (count)
		*count += packets;
}

/* `lane` is the backend's, of this CPU. */
static __always_inline void stats_count_packet(u32 service, struct lane *lane, u64 packets,
					       u64 bytes)
{
	struct counters *counters = service_counters.lookup(&service);

	lane->packets += packets;
	lane->bytes += bytes;
	if (!counters)
		return;
	counters->packets += packets;
	counters->bytes += bytes;
}

static __always_inline void stats_count_connection(u32 service, u32 backend)
{
	struct counters *counters = service_counters.lookup(&service);
	struct lane *lane = lanes.lookup(&backend);

	if (counters)
		counters->connections++;
	if (lane)
		lane->connections++;
}

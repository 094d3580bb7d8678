/* Backends by id and generation: how each gets packets, and how much it carries. */

/* The backend's word where it is still the one that `reference` names, else 0. */
static __always_inline u64 backend_word(u64 reference)
{
	u64 word = READ_ONCE(ROW(backends, reference)->word);

	if (word >> 32 != reference >> 32 || !(word & BACKEND_PRESENT))
		return 0;
	return word;
}

/* The backend's id is its own still: it may have been removed, and come back. */
static __always_inline bool backend_is_same(u64 reference)
{
	return READ_ONCE(ROW(backends, reference)->word) >> 32 == reference >> 32;
}

/* The port at the backend that a connection of the journey's packet gets, as IPVS has it. */
static __always_inline __be16 backend_port(struct journey *journey, struct backend *backend)
{
	struct service_config *config = ROW(service_configs, journey->config);
	__be16 port = packet_virtual_port(&journey->packet);

	if (!backend->port)
		return port;
	/* of these, one entry is for connections to many ports */
	if (journey->persistent && config->flags & (SERVICE_BY_MARK | SERVICE_ANY_PORT))
		return port;
	if (journey->persistent && config->flags & SERVICE_FTP && port != FTP_PORT)
		return port;
	return backend->port;
}

/* The route of a connection of the journey's packet to the journey's backend. */
static __always_inline u64 backend_route(struct journey *journey)
{
	struct backend *backend = ROW(backends, journey->backend);
	u64 route = route_make(backend->method, backend_port(journey, backend));

	if (FEATURE_FTP && backend->method == METHOD_NAT &&
	    packet_virtual_port(&journey->packet) == FTP_PORT &&
	    packet_protocol(&journey->packet) == IPPROTO_TCP)
		route |= ROUTE_FTP_CONTROL;
	return route;
}

/* The state of a connection to the journey's backend that begins with the journey's packet. */
static __always_inline u32 backend_first_state(struct journey *journey)
{
	struct backend *backend = ROW(backends, journey->backend);

	return state_first(&journey->packet, FEATURE_NAT ? backend->method : METHOD_DR);
}

/* Adds to what the backend carries; nothing where its id belongs to another by now. */
static __always_inline void backend_load(u64 reference, s64 active, s64 total)
{
	struct load *load = ROW(loads, reference);

	if (!backend_is_same(reference))
		return;
	if (active)
		__sync_fetch_and_add(&load->active, active);
	if (total)
		limit_follow(reference, __sync_fetch_and_add(&load->total, total) + total);
}

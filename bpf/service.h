/* From mark, address and port to the service, in IPVS's order. */

/* Leaves the version of the journey's service that is in use. */
static __always_inline void service_enter(struct journey *journey)
{
	/* read once: one version of the service, whole */
	journey->service_switch = READ_ONCE(*ROW(service_switches, journey->service));
	journey->config = (u32)journey->service_switch;
}

static __always_inline bool service_look_up(struct journey *journey, struct service_key *key)
{
	u32 *id = services.lookup(key);

	if (!id)
		return false;
	journey->service = *id;
	service_enter(journey);
	return true;
}

static __always_inline bool service_by_mark(struct journey *journey)
{
	struct service_key key = {};

	if (!journey->mark)
		return false;
	key.mark = journey->mark;
	key.family = packet_is_ipv6(&journey->packet) ? FAMILY_IPV6 : FAMILY_IPV4;
	return service_look_up(journey, &key);
}

static __always_inline bool service_by_address(struct journey *journey, __be16 port)
{
	struct packet *packet = &journey->packet;
	struct service_key key = {};

	if (packet_is_ipv6(packet))
		__builtin_memcpy(key.address, packet->flow6.virtual, 16);
	else
		key.address[0] = packet->flow4.virtual;
	key.family = packet_is_ipv6(packet) ? FAMILY_IPV6 : FAMILY_IPV4;
	key.protocol = packet_protocol(packet);
	key.port = port;
	return service_look_up(journey, &key);
}

/* FTP's data connections belong to the service on port 21. */
static __always_inline bool service_may_be_ftp_data(struct journey *journey)
{
	__be16 port = packet_virtual_port(&journey->packet);

	if (!(journey->settings & SETTING_FTP_SERVICE))
		return false;
	if (packet_protocol(&journey->packet) != IPPROTO_TCP)
		return false;
	return port == FTP_DATA_PORT || bpf_ntohs(port) >= *ROW(switches, SWITCH_UNPRIVILEGED);
}

static __always_inline int service_find(struct journey *journey)
{
	struct service_config *config;

	if (service_by_mark(journey))
		return REASON_OK;
	if (service_by_address(journey, packet_virtual_port(&journey->packet)))
		return REASON_OK;
	if (service_may_be_ftp_data(journey) && service_by_address(journey, FTP_PORT)) {
		config = ROW(service_configs, journey->config);
		if (config->flags & SERVICE_PERSISTENT)
			return REASON_OK;
		return REASON_FTP_NOT_PERSISTENT;
	}
	if (journey->settings & SETTING_ANY_PORT_SERVICE && service_by_address(journey, 0))
		return REASON_OK;
	return REASON_NO_SERVICE;
}

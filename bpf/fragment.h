/* Fragments follow the first one of their packet, which alone has ports: where that went. */

static __always_inline void fragment_key_of(struct packet *packet, struct fragment_key *key)
{
	key->ends[0] = packet->key[0];
	if (packet_is_ipv6(packet)) {
		key->ends[1] = packet->key[1];
		key->ends[2] = packet->key[2];
		key->ends[3] = packet->key[3];
	}
	key->identification = packet->identification;
	key->family = packet_is_ipv6(packet) ? FAMILY_IPV6 : FAMILY_IPV4;
}

/* Remembers where the packet goes, or of an answer whence it is to come, where more fragments follow. */
static __always_inline void fragment_note(struct packet *packet, struct forwarding *forwarding,
					  const __be32 *from)
{
	struct fragment_key key = {};
	struct fragment first = {
		.until = forwarding->now + FRAGMENT_LIFE,
		.route = forwarding->route,
		.service = forwarding->service,
		.mark = forwarding->mark,
		.is_answer = from != NULL,
	};

	if (packet->fragment != (FRAGMENT_FIRST | FRAGMENT_MORE))
		return;
	first.backend = READ_ONCE(ROW(backends, forwarding->backend)->word) >> 32 << 32 |
			forwarding->backend;
	if (from)
		__builtin_memcpy(first.address, from, sizeof(first.address));
	fragment_key_of(packet, &key);
	fragments.update(&key, &first);
}

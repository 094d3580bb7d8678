/* What a packet is: every line that compares with data_end stands here. */
#define ETHERNET_IPV4 bpf_htons(ETH_P_IP)
#define ETHERNET_IPV6 bpf_htons(ETH_P_IPV6)
#define IPV4_FRAGMENT bpf_htons(0x3fff)
#define IPV4_DO_NOT_FRAGMENT bpf_htons(0x4000)
#define IPV6_EXTENSIONS 6
#define IPV6_FRAGMENT 8

#define TCP_FIN 1
#define TCP_SYN 2
#define TCP_RST 4
#define TCP_ACK 16

/* What is before the IP packet on its road out, without a tag and with one. */
#define PLAIN_HEAD sizeof(struct ethhdr)
#define TAGGED_HEAD (sizeof(struct ethhdr) + sizeof(struct vlan_tag))
/* How far into a frame headers are looked at. */
#define PACKET_REACH 0xfff
/* Where the checksums are in their headers. */
#define IPV4_FRAGMENT_FIELD 6
#define IPV4_CHECKSUM 10
#define TCP_CHECKSUM 16
#define UDP_CHECKSUM 6
#define FTP_PORT bpf_htons(21)
#define FTP_DATA_PORT bpf_htons(20)

/* Of a fragment. */
#define FRAGMENT_FIRST 1
#define FRAGMENT_LATER 2
#define FRAGMENT_MORE 4 /* are to come */
#define IPV4_OFFSET bpf_htons(0x1fff)
#define IPV4_MORE bpf_htons(0x2000)
#define IPV6_OFFSET bpf_htons(0xfff8)
#define IPV6_MORE bpf_htons(1)

/* ESP or AH, which goes where the key exchange of the same ends does, and opens nothing. */
#define PACKET_FOLLOWS (1 << 16)
#define KEY_EXCHANGE_PORT (u64) bpf_htons(500)

struct vlan_tag {
	__be16 tci;
	__be16 type;
};

/* One end of a packet. */
struct end {
	__be32 address[4]; /* IPv4: the first */
	__be16 port;
	u16 padding[3];
};

/* Where the headers are and what they say; filled by packet_parse. */
struct packet {
	union {
		struct flow4 flow4;
		struct flow6 flow6;
		u64 key[5]; /* the same as the words that a search compares */
	};
	u64 target_sum; /* of the hash: over virtual address, port and protocol */
	u64 hash;
	u64 cpu; /* that this is */
	u64 bytes; /* of the IP packet */
	u32 ifindex;
	u32 ip_offset;
	u32 headers; /* bytes of IP and transport headers */
	u32 transport; /* where the latter begins, from the IP header on */
	u32 vlan; /* the outermost tag + 1, 0: none */
	u32 type; /* ETH_P_IP or ETH_P_IPV6, network byte order */
	u32 interface; /* flags of the interface that it came by */
	u32 flags; /* TCP's; of other protocols what stands for them: sctp.h */
	u32 ttl;
	u32 action; /* what forwarding decided on */
	u32 mtu; /* of the road, where the packet is too big for it */
	u32 fragment; /* FRAGMENT_*; 0: it is whole */
	u32 identification; /* of a fragment; of IPv4 with the protocol in the upper half */
};

static __always_inline bool packet_is_ipv6(struct packet *packet)
{
	return FEATURE_IPV6 && (!FEATURE_IPV4 || packet->type == ETHERNET_IPV6);
}

/* An IP packet of a family that the programs were compiled for. */
static __always_inline bool packet_has_feature(struct packet *packet)
{
	return (FEATURE_IPV4 || packet->type != ETHERNET_IPV4) &&
	       (FEATURE_IPV6 || packet->type != ETHERNET_IPV6);
}

/* The key's last word: client port, virtual port, protocol. */
static __always_inline u64 packet_ports(struct packet *packet)
{
	return packet_is_ipv6(packet) ? packet->key[4] : packet->key[1];
}

static __always_inline u8 packet_protocol(struct packet *packet)
{
	return packet_ports(packet) >> 32;
}

static __always_inline __be16 packet_virtual_port(struct packet *packet)
{
	return packet_ports(packet) >> 16;
}

static __always_inline __be16 packet_client_port(struct packet *packet)
{
	return packet_ports(packet);
}

/* The part of the hash's sum that is the virtual address's. */
static __always_inline u64 packet_address_sum(struct packet *packet)
{
	return packet_is_ipv6(packet) ? hash_virtual6(packet->key) : hash_virtual4(packet->key[0]);
}

static __always_inline void packet_hash(struct packet *packet)
{
	packet->target_sum = packet_address_sum(packet) + hash_target(packet_ports(packet));
	packet->hash = packet_is_ipv6(packet) ? hash_connection6(packet->key) :
						hash_connection4(packet->key);
}

/* A TCP packet opens a connection with SYN and without RST; SYN+ACK is FTP's active data. */
static __always_inline bool packet_is_opening(struct packet *packet)
{
	if (packet_protocol(packet) == IPPROTO_UDP)
		return true;
	return (packet->flags & (TCP_SYN | TCP_RST)) == TCP_SYN;
}

/* Reads Ethernet and up to two tags. */
static __always_inline int packet_parse_ethernet(struct hook_context *ctx, struct packet *packet)
{
	void *end = (void *)HOOK_LOAD(ctx, data_end);
	void *frame = (void *)HOOK_LOAD(ctx, data);
	struct vlan_tag *tag = frame + sizeof(struct ethhdr);

	if ((void *)tag > end)
		return REASON_MALFORMED;
	/* by bytes, as the packed struct would have it read, it costs three instructions more */
	packet->type = *(__be16 *)(frame + 2 * ETH_ALEN);
	packet->ip_offset = sizeof(struct ethhdr);
	packet->vlan = hook_vlan(ctx);
#pragma unroll
	for (int i = 0; i < 2; i++) {
		if (packet->type != bpf_htons(ETH_P_8021Q) &&
		    packet->type != bpf_htons(ETH_P_8021AD))
			break;
		if ((void *)(tag + 1) > end)
			return REASON_MALFORMED;
		if (!packet->vlan)
			packet->vlan = (bpf_ntohs(tag->tci) & 0xfff) + 1;
		packet->type = tag->type;
		packet->ip_offset += sizeof(*tag);
		tag++;
	}
	if (packet->type != ETHERNET_IPV4 && packet->type != ETHERNET_IPV6)
		return REASON_NOT_IP;
	return REASON_OK;
}

/* An ABORT follows the chunk, in the same packet. */
static __always_inline bool packet_sctp_aborts(struct sctp_chunk *chunk, void *end)
{
	u64 length = bpf_ntohs(chunk->length);

	if (length < sizeof(*chunk) || length > SCTP_MOST_BYTES)
		return false;
	/* verifier, where the compiler knows the bound and does not mask: "outside of the packet" */
	asm volatile("" : "+r"(length));
	chunk = (void *)chunk + (length + 3 & SCTP_CHUNK_MASK);
	return (void *)(chunk + 1) <= end && chunk->type == SCTP_ABORT;
}

/* Reads an SCTP header and its first chunk: what an association's state goes by. */
static __always_inline int packet_parse_sctp(struct packet *packet, void *transport, void *end,
					     u64 *ports)
{
	struct sctp_chunk *chunk = transport + SCTP_HEADER;
	u64 event, flags = 0;

	if ((void *)(chunk + 1) > end)
		return REASON_MALFORMED;
	*ports = *(u32 *)transport | (u64)IPPROTO_SCTP << 32;
	event = sctp_event(chunk->type);
	if (event == EVENT_INIT)
		flags = TCP_SYN;
	else if (event == EVENT_ABORT)
		flags = TCP_RST;
	else if ((event == EVENT_COOKIE_ECHO || event == EVENT_COOKIE_ACK) &&
		 packet_sctp_aborts(chunk, end))
		event = EVENT_ABORT;
	flags |= event << PACKET_EVENT_SHIFT;
	/* verifier, where it knows them: "BPF program is too large", a search for each event */
	asm volatile("%0 += %1\n%0 -= %1" : "+r"(flags) : "r"(*ports));
	packet->flags = flags;
	packet->headers += SCTP_HEADER;
	return REASON_OK;
}

/* Reads what is neither TCP nor UDP, where its header begins at `transport`. */
static __always_inline int packet_parse_other(struct packet *packet, void *transport, void *end,
					      u8 protocol, u64 *ports)
{
	if (FEATURE_SCTP && protocol == IPPROTO_SCTP)
		return packet_parse_sctp(packet, transport, end, ports);
	packet->flags = PACKET_FOLLOWS;
	*ports = KEY_EXCHANGE_PORT | KEY_EXCHANGE_PORT << 16 | (u64)IPPROTO_UDP << 32;
	return REASON_OK;
}

/* Of what is no TCP: it is no UDP either. */
static __always_inline bool packet_is_other(u8 protocol)
{
	if (!FEATURE_SCTP && !FEATURE_IPSEC)
		return false;
	/* else the compiler asks for all others before it asks for TCP */
	asm volatile("" : "+r"(protocol));
	return protocol != IPPROTO_UDP;
}

/* Reads TCP's flags and how long the header at `transport` is, and leaves the ports in `ports`. */
static __always_inline int packet_parse_transport(struct packet *packet, void *transport, void *end,
						  u8 protocol, u64 *ports)
{
	struct tcphdr *tcp;

	/* verifier, where it is computed anew after the check: "offset is outside of the packet" */
	asm volatile("" : "+r"(transport));
	tcp = transport;
	if (protocol == IPPROTO_TCP) {
		if ((void *)(tcp + 1) > end)
			return REASON_MALFORMED;
		packet->flags = ((u8 *)tcp)[13];
		packet->headers += tcp->doff * 4;
		*ports = *(u32 *)transport | (u64)IPPROTO_TCP << 32;
		return REASON_OK;
	}
	if (packet_is_other(protocol))
		return packet_parse_other(packet, transport, end, protocol, ports);
	if (transport + sizeof(struct udphdr) > end)
		return REASON_MALFORMED;
	packet->headers += sizeof(struct udphdr);
	*ports = *(u32 *)transport | (u64)IPPROTO_UDP << 32;
	return REASON_OK;
}

/* A protocol that is balanced. */
static __always_inline bool packet_is_known(u8 protocol)
{
	if (protocol == IPPROTO_TCP || protocol == IPPROTO_UDP)
		return true;
	if (!FEATURE_SCTP && !FEATURE_IPSEC)
		return false;
	/* else the compiler tells all five apart at once, and TCP waits for it */
	asm volatile("" : "+r"(protocol));
	return (FEATURE_SCTP && protocol == IPPROTO_SCTP) ||
	       (FEATURE_IPSEC && (protocol == IPPROTO_ESP || protocol == IPPROTO_AH));
}

/* Tells whether the frame holds the `bytes` that its IP header promises. */
static __always_inline bool packet_is_complete(struct hook_context *ctx, struct packet *packet)
{
	u64 needed = packet->ip_offset + packet->bytes;
	u64 here = HOOK_LOAD(ctx, data_end) - HOOK_LOAD(ctx, data);

	return needed <= here || needed <= hook_length(ctx);
}

/* Notes that the packet is a fragment: of which packet, and which part. */
static __always_inline void packet_note_fragment(struct packet *packet, u32 identification,
						 bool later, bool more)
{
	packet->identification = identification;
	packet->fragment = (later ? FRAGMENT_LATER : FRAGMENT_FIRST) | (more ? FRAGMENT_MORE : 0);
}

/* `whole`: fragments are left to a program of their own. */
static __always_inline int packet_parse_ipv4(struct hook_context *ctx, struct packet *packet,
					     bool whole)
{
	void *end = (void *)HOOK_LOAD(ctx, data_end);
	struct iphdr *ip = (void *)HOOK_LOAD(ctx, data) + packet->ip_offset;
	u64 header;

	if ((void *)(ip + 1) > end)
		return REASON_MALFORMED;
	header = ip->ihl * 4;
	packet->bytes = bpf_ntohs(ip->tot_len);
	if (ip->version != 4 || header < sizeof(*ip) || packet->bytes < header)
		return REASON_MALFORMED;
	if (!packet_is_complete(ctx, packet))
		return REASON_MALFORMED;
	if (!packet_is_known(ip->protocol))
		return REASON_OTHER_PROTOCOL;
	if (whole && ip->frag_off & IPV4_FRAGMENT)
		return REASON_FRAGMENT;
	packet->headers = header;
	packet->transport = header;
	packet->ttl = ip->ttl;
	/* both addresses; two halves written apart would be slow to read as one word */
	packet->key[0] = *(u64 *)((void *)ip + __builtin_offsetof(struct iphdr, saddr));
	if (!whole) {
		packet_note_fragment(packet, ip->id | (u32)ip->protocol << 16,
				     ip->frag_off & IPV4_OFFSET, ip->frag_off & IPV4_MORE);
		packet->key[1] = (u64)ip->protocol << 32;
		if (packet->fragment & FRAGMENT_LATER)
			return REASON_OK;
	}
	return packet_parse_transport(packet, (void *)ip + header, end, ip->protocol,
				      &packet->key[1]);
}

/* Walks IPv6's extension headers; leaves the transport protocol and its offset from the header. */
static __always_inline int packet_walk_extensions(void *ip, void *end, u8 *protocol, u32 *offset)
{
	u8 *next;

#pragma unroll
	for (int i = 0; i < IPV6_EXTENSIONS; i++) {
		if (*protocol == IPPROTO_FRAGMENT)
			return REASON_FRAGMENT;
		if (*protocol != IPPROTO_HOPOPTS && *protocol != IPPROTO_ROUTING &&
		    *protocol != IPPROTO_DSTOPTS)
			return REASON_OK;
		next = ip + *offset;
		if ((void *)(next + 2) > end)
			return REASON_MALFORMED;
		*protocol = next[0];
		*offset += ((u32)next[1] + 1) * 8;
	}
	return REASON_OTHER_PROTOCOL;
}

/* Reads the fragment header at an offset from the IP header, and goes past it. */
static __always_inline int packet_read_fragment(struct packet *packet, void *ip, void *end,
						u8 *protocol, u32 *offset)
{
	u8 *header = ip + *offset;

	if ((void *)(header + IPV6_FRAGMENT) > end)
		return REASON_MALFORMED;
	*protocol = header[0];
	*offset += IPV6_FRAGMENT;
	packet_note_fragment(packet, *(u32 *)(header + 4), *(__be16 *)(header + 2) & IPV6_OFFSET,
			     *(__be16 *)(header + 2) & IPV6_MORE);
	return REASON_OK;
}

static __always_inline int packet_parse_ipv6(struct hook_context *ctx, struct packet *packet,
					     bool whole)
{
	void *end = (void *)HOOK_LOAD(ctx, data_end);
	struct ipv6hdr *ip = (void *)HOOK_LOAD(ctx, data) + packet->ip_offset;
	u32 offset = sizeof(*ip);
	u64 *addresses;
	u8 protocol;
	int reason;

	if ((void *)(ip + 1) > end)
		return REASON_MALFORMED;
	packet->bytes = bpf_ntohs(ip->payload_len) + sizeof(*ip);
	if (ip->version != 6 || !packet_is_complete(ctx, packet))
		return REASON_MALFORMED;
	protocol = ip->nexthdr;
	reason = packet_walk_extensions(ip, end, &protocol, &offset);
	if (!whole && reason == REASON_FRAGMENT)
		reason = packet_read_fragment(packet, ip, end, &protocol, &offset);
	if (reason)
		return reason;
	if (!packet_is_known(protocol))
		return REASON_OTHER_PROTOCOL;
	packet->headers = offset;
	packet->transport = offset;
	packet->ttl = ip->hop_limit;
	addresses = (void *)ip + __builtin_offsetof(struct ipv6hdr, saddr);
	packet->key[0] = addresses[0];
	packet->key[1] = addresses[1];
	packet->key[2] = addresses[2];
	packet->key[3] = addresses[3];
	packet->key[4] = (u64)protocol << 32;
	if (!whole && packet->fragment & FRAGMENT_LATER)
		return REASON_OK;
	return packet_parse_transport(packet, (void *)ip + offset, end, protocol, &packet->key[4]);
}

/* Reads the rest of a packet whose type and offset are known; leaves all but the hash. */
static __always_inline int packet_parse(struct hook_context *ctx, struct packet *packet)
{
	packet->ifindex = hook_ifindex(ctx);
	if (packet_is_ipv6(packet))
		return packet_parse_ipv6(ctx, packet, true);
	return packet_parse_ipv4(ctx, packet, true);
}

/* The same of a fragment, which has ports where it is the first. */
static __always_inline int packet_parse_fragment(struct hook_context *ctx, struct packet *packet)
{
	packet->ifindex = hook_ifindex(ctx);
	if (packet_is_ipv6(packet))
		return packet_parse_ipv6(ctx, packet, false);
	return packet_parse_ipv4(ctx, packet, false);
}

/* The frame's destination MAC as the first six bytes of a word; 0 where there is none. */
static __always_inline u64 packet_destination_mac(struct hook_context *ctx)
{
	u8 *frame = (void *)HOOK_LOAD(ctx, data);

	if (frame + 14 > (u8 *)HOOK_LOAD(ctx, data_end))
		return 0;
	return *(u64 *)frame & 0xffffffffffffULL;
}

static __always_inline u64 packet_source_mac(struct hook_context *ctx)
{
	u8 *frame = (void *)HOOK_LOAD(ctx, data);

	if (frame + 14 > (u8 *)HOOK_LOAD(ctx, data_end))
		return 0;
	return *(u32 *)(frame + 6) | (u64) * (u16 *)(frame + 10) << 32;
}

static __always_inline int packet_age4(void *header, void *end)
{
	struct iphdr *ip = header;
	u64 sum;

	if ((void *)(ip + 1) > end)
		return REASON_INTERNAL;
	ip->ttl--;
	sum = (u64)ip->check + bpf_htons(0x0100);
	ip->check = (u16)(sum + (sum >= 0xffff));
	return REASON_OK;
}

static __always_inline int packet_age6(void *header, void *end)
{
	struct ipv6hdr *ip = header;

	if ((void *)(ip + 1) > end)
		return REASON_INTERNAL;
	ip->hop_limit--;
	return REASON_OK;
}

/* Takes one from the TTL or hop limit of the IP packet at an offset, and mends the checksum. */
static __always_inline int packet_age(struct hook_context *ctx, struct packet *packet, u32 offset)
{
	void *header = (void *)HOOK_LOAD(ctx, data) + offset;
	void *end = (void *)HOOK_LOAD(ctx, data_end);

	return packet_is_ipv6(packet) ? packet_age6(header, end) : packet_age4(header, end);
}

/* Writes an Ethernet header at the packet's head; a byte at a time would cost three times that. */
static __always_inline int packet_write_ethernet(struct hook_context *ctx, struct hop *hop,
						 __be16 type)
{
	void *frame = (void *)HOOK_LOAD(ctx, data);

	if (frame + sizeof(struct ethhdr) > (void *)HOOK_LOAD(ctx, data_end))
		return REASON_INTERNAL;
	*(u64 *)frame = *(u64 *)hop->destination;
	*(u32 *)(frame + 8) = *(u32 *)(hop->source + 2);
	*(__be16 *)(frame + 12) = type;
	return REASON_OK;
}

/* The same, then the hop's tag. */
static __always_inline int packet_write_tagged(struct hook_context *ctx, struct hop *hop,
					       __be16 type)
{
	struct vlan_tag *tag = (void *)HOOK_LOAD(ctx, data) + sizeof(struct ethhdr);

	if ((void *)(tag + 1) > (void *)HOOK_LOAD(ctx, data_end))
		return REASON_INTERNAL;
	tag->tci = hop->tci;
	tag->type = type;
	return packet_write_ethernet(ctx, hop, bpf_htons(ETH_P_8021Q));
}

/* An offset in the frame, with the bound that the verifier wants: "outside of the packet". */
static __always_inline u64 packet_within(u64 offset)
{
	asm volatile("" : "+r"(offset));
	return offset & PACKET_REACH;
}

/* Where the IP header begins in the frame, */
static __always_inline u64 packet_network(struct packet *packet)
{
	return packet_within(packet->ip_offset);
}

/* and where the transport header does. */
static __always_inline u64 packet_transport(struct packet *packet)
{
	return packet_within(packet->ip_offset + packet->transport);
}

/* ESP or AH, whose ports are not its own. */
static __always_inline bool packet_follows(struct packet *packet)
{
	return FEATURE_IPSEC && packet->flags & PACKET_FOLLOWS;
}

/* The packet is no UDP without a checksum. */
static __always_inline bool packet_has_sum(struct hook_context *ctx, struct packet *packet)
{
	struct udphdr *udp = (void *)HOOK_LOAD(ctx, data) + packet_transport(packet);

	if (packet_protocol(packet) != IPPROTO_UDP || packet_follows(packet))
		return true;
	return (void *)(udp + 1) <= (void *)HOOK_LOAD(ctx, data_end) && udp->check;
}

/* Notes that the packet's destination is another by now. */
static __always_inline void packet_direct(struct packet *packet, const __be32 *address)
{
	const u64 *words = (const u64 *)address;

	if (packet_is_ipv6(packet)) {
		packet->key[2] = words[0];
		packet->key[3] = words[1];
	} else {
		packet->key[0] = (u32)packet->key[0] | words[0] << 32;
	}
}

/* Notes that a port of the packet is another by now. */
static __always_inline void packet_change_port(struct packet *packet, bool is_source, __be16 port)
{
	u64 *ports = packet_is_ipv6(packet) ? &packet->key[4] : &packet->key[1];
	u32 shift = is_source ? 0 : 16;

	*ports = (*ports & ~(0xffffULL << shift)) | (u64)port << shift;
}

/* Changes so many bits of the 32 at an offset in the frame. */
static __always_inline int packet_change_word(struct hook_context *ctx, u32 offset, u32 bits)
{
	u32 *word = (void *)HOOK_LOAD(ctx, data) + offset;

	if ((void *)(word + 1) > (void *)HOOK_LOAD(ctx, data_end))
		return REASON_INTERNAL;
	*word ^= bits;
	return REASON_OK;
}

/* Replaces an IPv4 address; leaves what that adds to sums over it. */
static __always_inline int packet_replace_address4(void *header, void *end, bool is_source,
						   const __be32 *address, u64 *change)
{
	struct iphdr *ip = header;
	__be32 *place = is_source ? &ip->saddr : &ip->daddr;

	if ((void *)(ip + 1) > end)
		return REASON_INTERNAL;
	*change = checksum_change(*place, address[0]);
	ip->check = checksum_after(ip->check, *change);
	*place = address[0];
	return REASON_OK;
}

static __always_inline int packet_replace_address6(void *header, void *end, bool is_source,
						   const __be32 *address, u64 *change)
{
	struct ipv6hdr *ip = header;
	__be32 *place = is_source ? ip->saddr.s6_addr32 : ip->daddr.s6_addr32;

	if ((void *)(ip + 1) > end)
		return REASON_INTERNAL;
#pragma unroll
	for (int i = 0; i < 4; i++) {
		*change += checksum_change(place[i], address[i]);
		place[i] = address[i];
	}
	return REASON_OK;
}

/* Replaces the port of TCP or UDP at `transport`, and mends the checksum after this and the address. */
static __always_inline int packet_replace_port(void *transport, void *end, u8 protocol,
					       bool is_source, __be16 port, u64 change)
{
	u64 least = protocol == IPPROTO_TCP ? sizeof(struct tcphdr) : sizeof(struct udphdr);
	__be16 *place = transport + (is_source ? 0 : 2);
	u16 *check = transport + (protocol == IPPROTO_TCP ? TCP_CHECKSUM : UDP_CHECKSUM);

	if (transport + least > end)
		return REASON_INTERNAL;
	change += checksum_change(*place, port);
	*place = port;
	*check = checksum_after(*check, change);
	/* of UDP 0 says that there is none */
	if (protocol == IPPROTO_UDP && !*check)
		*check = 0xffff;
	return REASON_OK;
}

/* Replaces the source or the destination of a packet of TCP or UDP; UDP's has a checksum. */
static __always_inline int packet_replace(struct hook_context *ctx, struct packet *packet,
					  bool is_source, struct end *to)
{
	void *frame = (void *)HOOK_LOAD(ctx, data), *end = (void *)HOOK_LOAD(ctx, data_end);
	void *header = frame + packet_network(packet),
	     *transport = frame + packet_transport(packet);
	u8 protocol = packet_protocol(packet);
	u64 change = 0;
	int reason;

	reason = packet_is_ipv6(packet) ?
			 packet_replace_address6(header, end, is_source, to->address, &change) :
			 packet_replace_address4(header, end, is_source, to->address, &change);
	if (reason)
		return reason;
	return protocol == IPPROTO_TCP ? packet_replace_port(transport, end, IPPROTO_TCP, is_source,
							     to->port, change) :
					 packet_replace_port(transport, end, IPPROTO_UDP, is_source,
							     to->port, change);
}

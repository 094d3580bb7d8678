/* Where a backend is on the wire: asked of the kernel's FIB, remembered for a second. */
#define LOOPBACK_IFINDEX 1
/* What bpf_fib_lookup answers. */
#define FIB_SUCCESS 0
#define FIB_NOT_FORWARDED 4
#define FIB_FORWARDING_DISABLED 5
#define FIB_UNSUPPORTED_TUNNEL 6
#define FIB_NO_NEIGHBOUR 7

/* Asks for the route that this host itself would take: from lo, as output routes are found. */
static __always_inline int nexthop_ask(struct hook_context *ctx, struct bpf_fib_lookup *fib,
				       bool ipv6, const __be32 *address)
{
	fib->family = ipv6 ? AF_INET6 : AF_INET;
	fib->tot_len = 1; /* asks for the route's MTU as well */
	fib->ifindex = LOOPBACK_IFINDEX;
	if (ipv6)
		__builtin_memcpy(fib->ipv6_dst, address, 16);
	else
		fib->ipv4_dst = address[0];
	return bpf_fib_lookup(ctx, fib, sizeof(*fib), 0);
}

/* Why the FIB does not forward to the backend: it is this host, or nothing leads there. */
static __always_inline int nexthop_unforwarded(struct backend *backend)
{
	struct address_key key = {};

	__builtin_memcpy(key.address, backend->address, 16);
	return local_addresses.lookup(&key) ? REASON_LOCAL_BACKEND : REASON_NO_ROUTE;
}

/* The address is one of this host's; without lo.forwarding the control plane's table says so. */
static __always_inline bool nexthop_is_local(struct hook_context *ctx, struct packet *packet)
{
	struct bpf_fib_lookup fib = {};
	struct address_key key = {};
	int answer;

	if (packet_is_ipv6(packet))
		__builtin_memcpy(key.address, packet->flow6.virtual, 16);
	else
		key.address[0] = packet->flow4.virtual;
	answer = nexthop_ask(ctx, &fib, packet_is_ipv6(packet), key.address);
	/* also the answer where there is no route at all: attach warns of that */
	if (answer != FIB_FORWARDING_DISABLED)
		return answer == FIB_NOT_FORWARDED;
	return local_addresses.lookup(&key);
}

#if HOOK_IS_XDP

/* One packet an interval takes the kernel's road, so that the kernel confirms the neighbour. */
static __always_inline bool nexthop_is_probe_due(u64 *probed, u64 now, u64 interval)
{
	u64 before = *probed;

	if (before && now - before < interval)
		return false;
	return __sync_val_compare_and_swap(probed, before, now) == before;
}

static __always_inline u64 nexthop_source_mac(struct hop *hop)
{
	return *(u16 *)hop->source | (u64) * (u32 *)(hop->source + 2) << 16;
}

/* Notes where XDP sends. */
static __always_inline void nexthop_leave_by(struct hop *hop, u32 ifindex)
{
	hop->ifindex = ifindex;
	hop->turning = maps_interface(ifindex)->flags & INTERFACE_NO_TX ? 0 : ifindex;
}

/* The road by an interface, whose MAC is the hop's; notes where XDP sends, and with which tag. */
static __always_inline u32 nexthop_road(struct hop *hop, u32 ifindex)
{
	struct interface *interface = maps_interface(ifindex);

	nexthop_leave_by(hop, ifindex);
	if (interface->flags & INTERFACE_TRANSMIT)
		return ROAD_XDP;
	/* another MAC: the control plane has not seen the device that has the index now */
	if (!interface->lower || interface->mac != nexthop_source_mac(hop))
		return ROAD_TC;
	nexthop_leave_by(hop, interface->lower);
	hop->tci = bpf_htons(interface->vlan);
	return ROAD_TAGGED;
}

/* Asks the FIB for an address and remembers what it says; leaves its answer. */
static __always_inline int nexthop_learn(struct hook_context *ctx, struct hop *hop, bool ipv6,
					 const __be32 *address, u64 now)
{
	struct bpf_fib_lookup fib = {};
	int answer = nexthop_ask(ctx, &fib, ipv6, address);

	hop->road = ROAD_TC;
	if (answer == FIB_SUCCESS) {
		__builtin_memcpy(hop->destination, fib.dmac, 6);
		__builtin_memcpy(hop->source, fib.smac, 6);
		hop->road = nexthop_road(hop, fib.ifindex);
		hop->mtu = fib.mtu_result;
	}
	if (answer == FIB_SUCCESS || answer == FIB_FORWARDING_DISABLED)
		hop->until = now + NEXTHOP_LIFE;
	return answer;
}

/* Finds where a backend is; what is not settled takes the kernel's road. */
static __always_inline int nexthop_resolve(struct hook_context *ctx, struct hop *hop, u32 id,
					   u64 now)
{
	struct backend *backend = ROW(backends, id);
	int answer;

	answer = nexthop_learn(ctx, hop, backend->family == FAMILY_IPV6, backend->address, now);
	if (answer == FIB_NO_NEIGHBOUR || answer == FIB_UNSUPPORTED_TUNNEL || answer < 0)
		return REASON_OK;
	if (answer == FIB_NOT_FORWARDED)
		return nexthop_unforwarded(backend);
	return answer == FIB_SUCCESS || answer == FIB_FORWARDING_DISABLED ? REASON_OK :
									    REASON_NO_ROUTE;
}

#else

/* The kernel's road to an address: interface, MTU (0: not known) and neighbour; what the FIB answers. */
static __always_inline int nexthop_way(struct hook_context *ctx, bool ipv6, const __be32 *address,
				       u32 *ifindex, u32 *mtu,
				       struct neighbour_parameters *neighbour)
{
	struct bpf_fib_lookup fib = {};
	int answer = nexthop_ask(ctx, &fib, ipv6, address);

	if (answer != FIB_SUCCESS && answer != FIB_NO_NEIGHBOUR)
		return answer;
	*ifindex = fib.ifindex;
	/* without a neighbour the answer has no MTU */
	*mtu = answer == FIB_SUCCESS ? fib.mtu_result : 0;
	neighbour->family = fib.family;
	/* the kernel has put the gateway here where there is one */
	__builtin_memcpy(neighbour->address, fib.ipv6_dst, 16);
	return FIB_SUCCESS;
}

/* The kernel's road to a backend. */
static __always_inline int nexthop_route(struct hook_context *ctx, u32 id, u32 *ifindex, u32 *mtu,
					 struct neighbour_parameters *neighbour)
{
	struct backend *backend = ROW(backends, id);
	int answer;

	answer = nexthop_way(ctx, backend->family == FAMILY_IPV6, backend->address, ifindex, mtu,
			     neighbour);
	if (answer == FIB_SUCCESS)
		return REASON_OK;
	if (answer == FIB_NOT_FORWARDED)
		return nexthop_unforwarded(backend);
	if (answer != FIB_FORWARDING_DISABLED || !backend->route_ifindex)
		return REASON_NO_ROUTE;
	*ifindex = backend->route_ifindex;
	neighbour->family = backend->route_family == FAMILY_IPV6 ? AF_INET6 : AF_INET;
	__builtin_memcpy(neighbour->address, backend->route_gateway, 16);
	return REASON_OK;
}

#endif

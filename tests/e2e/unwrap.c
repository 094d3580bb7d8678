/* At a backend by tunnel: takes packets out of ipip, gue and gre, and counts what they came in. */
#include <uapi/linux/bpf.h>
#include <uapi/linux/if_ether.h>
#include <uapi/linux/in.h>
#include <uapi/linux/ip.h>
#include <uapi/linux/ipv6.h>
#include <uapi/linux/udp.h>
#include <uapi/linux/pkt_cls.h>

/* Linux 6.3; the compiler's own headers may be older. */
#define DECAP_L3_IPV4 (1ULL << 7)
#define DECAP_L3_IPV6 (1ULL << 8)
#define GUE_PORT 6080
#define PART 256
#define PARTS 8

enum count {
	COUNT_IPIP = 0,
	COUNT_GUE = 1,
	COUNT_GRE = 2,
	COUNT_SUMMED = 3, /* with an outer checksum, */
	COUNT_WRONG = 4, /* and with one that is wrong */
	COUNT_MAX = 5,
};

struct outer {
	u32 head; /* bytes of the IP header */
	u32 bytes; /* and of what is after it */
	u32 protocol;
	u32 is6;
	u64 addresses; /* their sum */
};

BPF_PERCPU_ARRAY(counts, u64, COUNT_MAX);
struct part {
	u64 words[PART / 8];
};
BPF_PERCPU_ARRAY(scratch, struct part, 1);

static __always_inline void unwrap_count(u32 place)
{
	u64 *count = counts.lookup(&place);

	if (count)
		*count += 1;
}

static __always_inline int unwrap_read(struct __sk_buff *skb, struct outer *outer)
{
	struct iphdr ip;
	struct ipv6hdr ip6;
	u32 *words;

	if (skb->protocol == bpf_htons(ETH_P_IP)) {
		if (bpf_skb_load_bytes(skb, ETH_HLEN, &ip, sizeof(ip)))
			return -1;
		outer->head = sizeof(ip);
		outer->bytes = bpf_ntohs(ip.tot_len) - sizeof(ip);
		outer->protocol = ip.protocol;
		outer->addresses = (u64)ip.saddr + ip.daddr;
		return 0;
	}
	if (skb->protocol != bpf_htons(ETH_P_IPV6) ||
	    bpf_skb_load_bytes(skb, ETH_HLEN, &ip6, sizeof(ip6)))
		return -1;
	outer->head = sizeof(ip6);
	outer->bytes = bpf_ntohs(ip6.payload_len);
	outer->protocol = ip6.nexthdr;
	outer->is6 = 1;
	words = ip6.saddr.s6_addr32;
	for (int i = 0; i < 8; i++)
		outer->addresses += words[i];
	return 0;
}

/* Whether all after the outer IP header sums up to what it should. */
static __always_inline void unwrap_check(struct __sk_buff *skb, struct outer *outer, u64 sum)
{
	u32 zero = 0, offset = ETH_HLEN + outer->head, bytes = outer->bytes;
	u64 part;
	struct part *taken = scratch.lookup(&zero);

	/* what the kernel has put together from several has the first one's */
	if (skb->gso_size)
		return;
	unwrap_count(COUNT_SUMMED);
	if (!taken)
		return;
#pragma clang loop unroll(disable)
	for (u32 i = 0; i < PARTS; i++) {
		if (!bytes)
			break;
		part = bytes < PART ? bytes : PART;
#pragma clang loop unroll(disable)
		for (u32 j = 0; j < PART / 8; j++)
			*(volatile u64 *)&taken->words[j] = 0;
		/* verifier: "R4 min value is negative" */
		asm volatile("" : "+r"(part));
		part = (part - 1 & PART - 1) + 1;
		if (bpf_skb_load_bytes(skb, offset, taken, part))
			return;
		sum = bpf_csum_diff(0, 0, (void *)taken, PART, (u32)sum);
		offset += part;
		bytes -= part;
	}
	sum = (sum & 0xffff) + ((u32)sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	if (sum != 0xffff)
		unwrap_count(COUNT_WRONG);
}

/* The sum in 32 bits, as the helper takes it. */
static __always_inline u64 unwrap_fold(u64 sum)
{
	sum = (sum & 0xffffffff) + (sum >> 32);
	return (sum & 0xffffffff) + (sum >> 32);
}

int unwrap(struct __sk_buff *skb)
{
	struct outer outer = {};
	u64 flags = BPF_F_ADJ_ROOM_FIXED_GSO;
	struct udphdr udp;
	u32 more = 0;
	u16 head[2];
	u8 inner;

	if (unwrap_read(skb, &outer))
		return TC_ACT_OK;
	if (outer.protocol == IPPROTO_IPIP || outer.protocol == IPPROTO_IPV6) {
		unwrap_count(COUNT_IPIP);
	} else if (outer.protocol == IPPROTO_UDP) {
		if (bpf_skb_load_bytes(skb, ETH_HLEN + outer.head, &udp, sizeof(udp)) ||
		    udp.dest != bpf_htons(GUE_PORT))
			return TC_ACT_OK;
		unwrap_count(COUNT_GUE);
		more = sizeof(udp) + 4;
		if (udp.check)
			unwrap_check(skb, &outer,
				     unwrap_fold(outer.addresses + bpf_htons(IPPROTO_UDP) +
						 bpf_htons(outer.bytes)));
	} else if (outer.protocol == IPPROTO_GRE) {
		if (bpf_skb_load_bytes(skb, ETH_HLEN + outer.head, head, sizeof(head)))
			return TC_ACT_OK;
		unwrap_count(COUNT_GRE);
		more = head[0] == bpf_htons(0x8000) ? 8 : 4;
		if (more == 8)
			unwrap_check(skb, &outer, 0);
	} else {
		return TC_ACT_OK;
	}
	if (bpf_skb_load_bytes(skb, ETH_HLEN + outer.head + more, &inner, sizeof(inner)))
		return TC_ACT_SHOT;
	if (inner >> 4 == 4)
		flags |= DECAP_L3_IPV4;
	else
		flags |= DECAP_L3_IPV6;
	if (bpf_skb_adjust_room(skb, -(int)(outer.head + more), BPF_ADJ_ROOM_MAC, flags))
		return TC_ACT_SHOT;
	return TC_ACT_OK;
}

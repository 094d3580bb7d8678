"""mh's table: Maglev hashing as IPVS fills it, and the hash that it goes by."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

from lvsxdp.model import Address, AddressKey, Service

SLOTS = 4093
# Both words of the keys by which a server's first slot and its step are hashed.
START_KEY = 2654435761
STEP_KEY = 2654446892
# A server takes at most so many slots in a row, as a number of bits.
TURN_BITS = 6
WORD = 2**64 - 1


@dataclasses.dataclass(frozen=True, slots=True)
class Server:
    """One backend as mh sees it: the sum of its folded address and its port, its last weight."""

    value: int
    last_weight: int


def fold(address: Address) -> int:
    """An address as one 32-bit number; an IPv6 address's words are exclusive-ored."""
    number = int(address)
    return (number ^ number >> 32 ^ number >> 64 ^ number >> 96) & 0xFFFFFFFF


def servers_of(service: Service) -> list[Server]:
    """The service's servers in scheduling order; drained ones are not among them."""
    own = service.key.port if isinstance(service.key, AddressKey) else 0
    return [
        Server(fold(b.address) + (b.port or own) & 0xFFFFFFFF, b.last_weight)
        for b in reversed(service.backends)
        if not b.draining
    ]


def siphash(value: int, key: int) -> int:
    """SipHash-1-3 of a number's four bytes, cut to 32 bits; both words of the key are alike."""
    block = 4 << 56 | value
    v = (
        key ^ 0x736F6D6570736575,
        key ^ 0x646F72616E646F6D,
        key ^ 0x6C7967656E657261,
        key ^ 0x7465646279746573 ^ block,
    )
    a, b, c, d = _mixed(*v)
    a, b, c, d = _mixed(*_mixed(*_mixed(a ^ block, b, c ^ 0xFF, d)))
    return (a ^ b ^ c ^ d) & 0xFFFFFFFF


def _mixed(a: int, b: int, c: int, d: int) -> tuple[int, int, int, int]:
    """One round of SipHash."""
    a = a + b & WORD
    c = c + d & WORD
    b = (b << 13 & WORD | b >> 51) ^ a
    d = (d << 16 & WORD | d >> 48) ^ c
    a = (a << 32 & WORD | a >> 32) + d & WORD
    c = c + b & WORD
    b = (b << 17 & WORD | b >> 47) ^ c
    d = (d << 21 & WORD | d >> 43) ^ a
    return a, b, c << 32 & WORD | c >> 32, d


def walk(value: int) -> tuple[int, int]:
    """The slot from which a server walks through the table, and its step."""
    return siphash(value, START_KEY) % SLOTS, siphash(value, STEP_KEY) % (SLOTS - 1) + 1


def turns(last_weights: Sequence[int]) -> list[int]:
    """How many slots each server takes in a row; those that never had a weight take none."""
    divisor = math.gcd(*last_weights) or 1
    shift = max((max(last_weights, default=0) // divisor).bit_length() - TURN_BITS, 0)
    return [max(weight // divisor >> shift, 1) if weight else 0 for weight in last_weights]


def table(servers: Sequence[Server]) -> list[int]:
    """For each slot the place of its server; empty where none ever had a weight.

    In list order each takes its turns of free slots along its own walk, round after round.
    Source: ipvs-behaviour, section 5.4.
    """
    taken = turns([server.last_weight for server in servers])
    walks = [walk(server.value) for server in servers]
    found = [-1] * SLOTS
    # servers that walk alike go on where the other has come to: all before that is taken
    at = {one: one[0] for one in walks}
    row = [item for item in zip(range(len(servers)), walks, taken, strict=True) if item[2]]
    left = SLOTS if row else 0
    while left:
        for place, one, count in row:
            slot, step = at[one], one[1]
            for _ in range(min(count, left)):
                while found[slot] >= 0:
                    slot = (slot + step) % SLOTS
                found[slot] = place
            left -= min(count, left)
            at[one] = slot
    return found if row else []

"""One sweep: removes what has expired, and counts anew what the data plane keeps count of."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

from lvsxdp import filtering
from lvsxdp.controller import TABLES, Balancer

HEALED = ("loads", "shares", "pools")
# A count: map, index and field.
Count = tuple[str, int, str]


@dataclasses.dataclass(frozen=True, slots=True)
class Sweep:
    """What a sweep did; `drift` is how far counts were from what they count.

    `suspect` is in how many buckets persistence entries had other counts of connections than were
    found; the next sweep looks which, and the one after that mends them.
    """

    removed: int
    healed: int
    drift: dict[Count, int]
    suspect: int


def sweep(balancer: Balancer, before: Sweep | None = None, *, whole: bool = True) -> Sweep:
    """Removes expired entries; heals counts that the sweep `before` saw as wrong, too.

    Packets go on meanwhile: a difference may be a connection on its way.  Only one that two sweeps
    see alike, in a count that did not move while they went over the tables, is a mistake; of a
    persistence entry, in one that did not move from one sweep to the next.  A sweep
    that is not `whole` leaves out tables in which no service has an entry by the count of shares.
    """
    for name in ("recounts", "share_recounts"):
        balancer.map(name).clear()
    _prepare_filter(balancer)
    seen = {name: bytes(balancer.map(name).memory()) for name in HEALED}
    tables = TABLES if whole else _in_use(balancer)
    swept = [balancer.sweep(table, heal=before is not None) for table in tables]
    _finish_filter(balancer)
    drift = dict(_drift(balancer, seen))
    seen_before = before.drift if before else {}
    healed = {count: change for count, change in drift.items() if seen_before.get(count) == change}
    for (name, index, field), change in healed.items():
        word = balancer.schema.values[name].fields[field].offset // 8
        balancer.heal(name, index, word, change)
    return Sweep(
        removed=sum(table.removed for table in swept),
        healed=len(healed) + sum(table.healed for table in swept),
        drift=drift,
        suspect=sum(table.suspect for table in swept),
    )


def _in_use(balancer: Balancer) -> list[str]:
    shares, fields = balancer.map("shares"), balancer.schema.values["shares"].fields
    ids = balancer.state.book.service_generations
    return [name for name in TABLES if any(shares.read_word(i, fields[name].offset) for i in ids)]


def _prepare_filter(balancer: Balancer) -> None:
    """The filter's second half: what the configuration concerns; the sweep adds connections."""
    memory = balancer.map("filter").memory()
    half = 2**balancer.schema.hashing.filter_bits // 8
    memory[half : 2 * half] = bytes(half)
    words = filtering.words(balancer.schema.hashing, balancer.state.config)
    if words is None:
        memory[half : 2 * half] = b"\xff" * half
        return
    for index, bits in words.items():
        balancer.map("filter").store_word(half // 8 + index, bits)


def _finish_filter(balancer: Balancer) -> None:
    """The first half is the second now; a bit that is needed is set in both."""
    memory = balancer.map("filter").memory()
    half = 2**balancer.schema.hashing.filter_bits // 8
    memory[:half] = memory[half : 2 * half]


def _drift(balancer: Balancer, seen: dict[str, bytes]) -> Iterator[tuple[Count, int]]:
    """Counts that stood still since `seen` and differ from what they count, and by how much."""
    for place in balancer.state.book.services.values():
        for backend in place.backends.values():
            yield from _differences(balancer, "loads", "recounts", backend.id, seen)
    for _, _, gone in balancer.state.book.parted():
        yield from _differences(balancer, "loads", "recounts", gone.id, seen)
    for identity in balancer.state.book.service_generations:
        yield from _differences(balancer, "shares", "share_recounts", identity, seen)
    layout = balancer.schema.values["pools"]
    offset = layout.fields["borrowed"].offset
    for table in range(len(TABLES)):
        now = balancer.map("pools").read_word(table, offset)
        change = balancer.borrowed(table) - now
        if change and _word(seen["pools"], table * layout.size + offset) == now:
            yield ("pools", table, "borrowed"), change


def _differences(
    balancer: Balancer, name: str, recount: str, index: int, seen: dict[str, bytes]
) -> Iterator[tuple[Count, int]]:
    layout = balancer.schema.values[name]
    for field, place in layout.fields.items():
        counted = balancer.map(recount).read_word(index, place.offset)
        now = balancer.map(name).read_word(index, place.offset)
        if counted != now and _word(seen[name], index * layout.size + place.offset) == now:
            yield (name, index, field), counted - now


def _word(memory: bytes, offset: int) -> int:
    return int.from_bytes(memory[offset : offset + 8], "little")

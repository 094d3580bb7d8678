"""One sweep: removes what has expired and recounts active and inactive connections."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterator

from lvsxdp import records
from lvsxdp.controller import Balancer
from lvsxdp.views import CONNECTIONS, PERSISTENCE

Load = tuple[int, int]
ACTIVE = ("established", "syn_sent", "syn_recv", "synack")


@dataclasses.dataclass(frozen=True, slots=True)
class Sweep:
    """What a sweep did; `drift` is how each backend's counts differ from its connections."""

    removed: int
    healed: int
    drift: dict[int, Load]


def sweep(balancer: Balancer, before: dict[int, Load]) -> Sweep:
    """Removes expired entries; heals counts whose drift is what the sweep `before` saw, too.

    Packets go on meanwhile, so a difference seen once may be a connection on its way: only one
    that two sweeps see alike is a mistake.
    """
    now = balancer.clock()
    removed = balancer.reap(_expired(balancer, CONNECTIONS, now), force=False)
    removed += balancer.reap(_expired(balancer, PERSISTENCE, now), force=False)
    drift = _drift(balancer)
    healed = 0
    for identity, load in drift.items():
        if before.get(identity) == load:
            _heal(balancer, identity, load)
            healed += 1
    return Sweep(removed, healed, drift)


def _expired(balancer: Balancer, tables: tuple[str, ...], now: int) -> Iterator[tuple[str, bytes]]:
    """Entries whose time is up as it was read; the reaper looks again before it removes one."""
    for table in tables:
        layout = balancer.schema.values[table]
        for key, value in balancer.map(table).items():
            if layout.number(value, "expires") <= now:
                yield table, key


def _drift(balancer: Balancer) -> dict[int, Load]:
    """For each backend whose counts differ from its connections: the difference."""
    active: Counter[int] = Counter()
    total: Counter[int] = Counter()
    states = {balancer.schema.enums["state"][name] for name in ACTIVE}
    for table in CONNECTIONS:
        layout = balancer.schema.values[table]
        for _, value in balancer.map(table).items():
            reference = layout.number(value, "backend")
            total[reference] += 1
            active[reference] += layout.number(value, "word") & 0xFF in states
    found = {}
    for place in balancer.state.book.services.values():
        for backend in place.backends.values():
            reference = backend.generation << 32 | backend.id
            load = balancer.total("loads", backend.id)
            difference = (active[reference] - load["active"], total[reference] - load["total"])
            if difference != (0, 0):
                found[backend.id] = difference
    return found


def _heal(balancer: Balancer, identity: int, difference: Load) -> None:
    """Adds the difference to the counts."""
    layout = balancer.schema.values["loads"]
    table = balancer.map("loads")
    raw = table.look_up(records.number(identity)) or bytes(layout.size)
    for field, change in zip(("active", "total"), difference, strict=True):
        value = (layout.number(raw, field) + change) % 2**64
        table.store_word(identity, value, layout.fields[field].offset)

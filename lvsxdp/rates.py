"""Rates as IPVS estimates them: every 2 s a quarter of the way to what was counted since.

Rates are whole numbers with bits after the point, so that ours are IPVS's to the last digit
(net/netfilter/ipvs/ip_vs_est.c).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Set

INTERVAL = 2.0  # seconds
# Bits after the point: of connections, packets and bytes a second, and of what came back.
SCALES = (10, 10, 5, 10, 5)
# After so many intervals nothing is left of what was before: 2**64 * (3 / 4)**LONGEST < 1.
LONGEST = 160
# Connections, packets and bytes; packets and bytes that came back.
Counts = tuple[int, int, int, int, int]
NOTHING: Counts = (0, 0, 0, 0, 0)
TOTAL = "total"
# What lists show, in ipvsadm's order.
COUNTERS = ("connections", "packets", "out_packets", "bytes", "out_bytes")
RATES = ("cps", "in_pps", "out_pps", "in_bps", "out_bps")


@dataclasses.dataclass(frozen=True, slots=True)
class Seen:
    """What has been counted since zero; `identity` is another one each time that this began."""

    identity: int
    counts: Counts


@dataclasses.dataclass(slots=True)
class Estimate:
    """One rate in progress: what was counted up to the last tick, and the rate times its scale."""

    identity: int
    last: Counts
    scaled: Counts = NOTHING


def of_service(identity: int) -> str:
    """What the rate of a service id goes by."""
    return f"service {identity}"


def of_backend(identity: int) -> str:
    """What the rate of a backend id goes by."""
    return f"backend {identity}"


def stepped(scaled: int, counted: int, scale: int) -> int:
    """A rate after an interval in which so much was counted."""
    return scaled + (((counted << (scale - 1)) - scaled) >> 2)


def shown(scaled: Counts) -> Counts:
    """Rates a second, rounded as IPVS does."""
    return counts(
        (rate + (1 << scale - 1) - 1) >> scale for rate, scale in zip(scaled, SCALES, strict=True)
    )


def counts(values: Iterable[int]) -> Counts:
    """The five of them."""
    connections, packets, data, out_packets, out_data = values
    return connections, packets, data, out_packets, out_data


class Estimator:
    """The rates of everything that counts, from tick to tick."""

    def __init__(self, start: Mapping[str, Seen]) -> None:
        """What had been counted at the start is of no rate."""
        self._known = {key: Estimate(seen.identity, seen.counts) for key, seen in start.items()}
        self._moving: set[str] = set()

    def keep(self, keys: Set[str]) -> None:
        """Forgets all others."""
        self._known = {key: known for key, known in self._known.items() if key in keys}
        self._moving &= keys

    def tick(self, changed: Mapping[str, Seen], intervals: int = 1) -> None:
        """Goes on by so many intervals, of which each had the same part of what was counted.

        What is not in `changed` has counted nothing.
        """
        still = {key: self._known[key] for key in self._moving - changed.keys()}
        seen = {key: Seen(known.identity, known.last) for key, known in still.items()} | {**changed}
        stepped = {key: self._next(key, each, intervals) for key, each in seen.items()}
        self._known |= stepped
        self._moving = {key for key, known in stepped.items() if known.scaled != NOTHING}

    def _next(self, key: str, seen: Seen, intervals: int) -> Estimate:
        known = self._known.get(key)
        if known is None or known.identity != seen.identity or _has_fallen(known.last, seen.counts):
            known = Estimate(seen.identity, NOTHING)
        counted = (now - before for now, before in zip(seen.counts, known.last, strict=True))
        scaled = counts(
            _after(rate, each, scale, intervals)
            for rate, each, scale in zip(known.scaled, counted, SCALES, strict=True)
        )
        return Estimate(seen.identity, seen.counts, scaled)

    def rates(self) -> dict[str, tuple[int, Counts]]:
        """Identity and scaled rates of all that has any."""
        return {
            key: (known.identity, known.scaled)
            for key, known in self._known.items()
            if key in self._moving
        }


def _has_fallen(before: Counts, now: Counts) -> bool:
    """Whether this is just being set to zero."""
    return any(new < old for new, old in zip(now, before, strict=True))


def _after(scaled: int, counted: int, scale: int, intervals: int) -> int:
    """A rate after some intervals that share what was counted."""
    steps = min(intervals, LONGEST)
    counted = counted * steps // intervals
    for left in range(steps, 0, -1):
        part = counted // left
        scaled, counted = stepped(scaled, part, scale), counted - part
    return scaled


@dataclasses.dataclass(frozen=True, slots=True)
class Rates:
    """What an estimator found last, by what it goes by; nobody estimates where `known` is None."""

    known: Mapping[str, tuple[int, Counts]] | None = None

    def of(self, key: str, identity: int) -> Counts | None:
        """What is counted, a second; None where nobody estimates."""
        if self.known is None:
            return None
        found, scaled = self.known.get(key, (identity, NOTHING))
        return shown(scaled) if found == identity else NOTHING


def row(counts: Counts, rate: Counts | None) -> dict[str, int | None]:
    """Counts and rates as lists show them; by dr and tunnels nothing comes back by here."""
    cps, in_pps, in_bps, out_pps, out_bps = rate or (None, None, None, None, None)
    return {
        "connections": counts[0],
        "packets": counts[1],
        "bytes": counts[2],
        "out_packets": counts[3],
        "out_bytes": counts[4],
        "cps": cps,
        "in_pps": in_pps,
        "out_pps": out_pps,
        "in_bps": in_bps,
        "out_bps": out_bps,
    }

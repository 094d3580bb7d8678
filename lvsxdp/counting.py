"""What a balancer has counted of services, backends and all together since it was set to zero.

Packets only ever add to the counters.  To set them to zero is to note where they stand.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from lvsxdp import rates
from lvsxdp.book import BackendPlace
from lvsxdp.controller import Balancer
from lvsxdp.model import Service
from lvsxdp.rates import Counts, Seen

NAMES = ("connections", "packets", "bytes")
OUT_NAMES = ("out_packets", "out_bytes")
ALL_NAMES = (*NAMES, *OUT_NAMES)
# Where it is noted that counters stood -> the counters, and those of what came back.
COUNTERS = {
    "service_zeros": ("service_counters", "service_answers"),
    "backend_zeros": ("lanes", "backend_answers"),
}


def of_service(balancer: Balancer, identity: int) -> Seen:
    """What a service id has counted."""
    zero = balancer.total("service_zeros", identity)
    return Seen(zero["turn"], _since(zero, _counted(balancer, "service_zeros", identity)))


def of_backend(balancer: Balancer, place: BackendPlace) -> Seen:
    """What a backend has counted."""
    zero = balancer.total("backend_zeros", place.id)
    counts = _since(zero, _counted(balancer, "backend_zeros", place.id))
    return Seen(_identity(place, zero["turn"]), counts)


def of_all(balancer: Balancer) -> Seen:
    """What all services have counted, those that are gone among them."""
    zero = balancer.total("total_zero", 0)
    return Seen(zero["turn"], _since(zero, _total(balancer)))


def _counted(balancer: Balancer, zeros: str, index: int) -> dict[str, int]:
    """Where the counters stand that belong to a row of this table."""
    counters, answers = COUNTERS[zeros]
    return {
        **balancer.total(counters, index, NAMES),
        **balancer.total(answers, index, OUT_NAMES),
    }


def _total(balancer: Balancer) -> dict[str, int]:
    ids = balancer.state.book.service_generations
    counted = [_counted(balancer, "service_zeros", identity) for identity in ids]
    return {name: sum(each[name] for each in counted) for name in ALL_NAMES}


def _since(zero: dict[str, int], now: dict[str, int]) -> Counts:
    return rates.counts(now[name] - zero[name] for name in ALL_NAMES)


def _identity(place: BackendPlace, turn: int) -> int:
    return place.generation << 32 | turn


class Reader:
    """Reads what everything has counted, again and again, while the record stays as it is."""

    def __init__(self, balancer: Balancer) -> None:
        """Reads nothing yet."""
        self._balancer = balancer
        places = balancer.state.book.services.values()
        self._services = {place.id: 0 for place in places}
        self._backends = {b.id: b.generation for place in places for b in place.backends.values()}
        self._before: dict[str, Any] = {}

    @property
    def keys(self) -> set[str]:
        """What the rates of everything that is read go by."""
        services = map(rates.of_service, self._services)
        return {*services, *map(rates.of_backend, self._backends), rates.TOTAL}

    def changed(self) -> dict[str, Seen]:
        """What has counted anything since the last time, or at all, by what its rate goes by."""
        return {
            **self._of(rates.of_service, self._services, "service_zeros"),
            **self._of(rates.of_backend, self._backends, "backend_zeros"),
            rates.TOTAL: self._total(),
        }

    def _total(self) -> Seen:
        zero = self._sums("total_zero", (*ALL_NAMES, "turn"))[0]
        counted = self._counted("service_zeros").sum(axis=0) - zero[: len(ALL_NAMES)]
        return Seen(int(zero[-1]), rates.counts(counted.tolist()))

    def _of(
        self, key: Callable[[int], str], generations: Mapping[int, int], zeros: str
    ) -> dict[str, Seen]:
        from lvsxdp import entries

        # where they stood is read first, since the counters only grow
        now = self._sums(zeros, (*ALL_NAMES, "turn"))
        now[:, : len(ALL_NAMES)] = self._counted(zeros) - now[:, : len(ALL_NAMES)]
        rows = entries.changed(self._before.get(zeros), now)
        self._before[zeros] = now
        return {
            key(index): Seen(generations[index] << 32 | turn, rates.counts(counted))
            for index, (*counted, turn) in rows.items()
            if index in generations
        }

    def _counted(self, zeros: str) -> Any:
        """What every row's counters and answers have come to."""
        from lvsxdp import entries

        counters, answers = COUNTERS[zeros]
        return entries.beside(self._sums(counters, NAMES), self._sums(answers, OUT_NAMES))

    def _sums(self, table: str, names: tuple[str, ...]) -> Any:
        from lvsxdp import entries

        memory = self._balancer.map(table).memory()
        return entries.sums(self._balancer.schema, table, memory, names)


# ------------------------------------------------------------------------------ setting to zero


def zero(balancer: Balancer, only: Service | None) -> None:
    """Notes where the counters of a service and its backends stand, or all, with the total."""
    for service in [only] if only else balancer.state.config.services:
        place = balancer.state.book.services[str(service.key)]
        note(balancer, "service_zeros", place.id)
        for backend in place.backends.values():
            note(balancer, "backend_zeros", backend.id)
    if only is None:
        _note(balancer, "total_zero", 0, _total(balancer))


def note(balancer: Balancer, table: str, index: int) -> None:
    """Notes in a row of this table where the counters that belong to it stand."""
    _note(balancer, table, index, _counted(balancer, table, index))


def _note(balancer: Balancer, table: str, index: int, counted: dict[str, int]) -> None:
    fields, noted = balancer.schema.values[table].fields, balancer.map(table)
    for name in ALL_NAMES:
        noted.store_word(index, counted[name], fields[name].offset)
    # last: who reads meanwhile begins anew with it
    turn = fields["turn"].offset
    noted.store_word(index, (noted.read_word(index, turn) + 1) % 2**32, turn)

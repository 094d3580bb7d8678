"""Services as lines of a file: most commands look at a few of them, and decode no others."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, overload

from lvsxdp import snapshot
from lvsxdp.book import BackendPlace, ServicePlace
from lvsxdp.model import Backend, Forward, Service

SEPARATOR = b"\t"
# What a line says of where a service stands, in this order.
PLACE = tuple(f.name for f in dataclasses.fields(ServicePlace) if f.name != "backends")


class _Part:
    """What a line says of the backends: they and their places, when somebody first looks."""

    __slots__ = ("_decoded", "raw")

    def __init__(self, raw: bytes) -> None:
        self.raw = raw
        self._decoded: tuple[tuple[Backend, ...], dict[str, BackendPlace]] | None = None

    def decoded(self) -> tuple[tuple[Backend, ...], dict[str, BackendPlace]]:
        if self._decoded is None:
            backends, places = json.loads(self.raw)
            made = tuple(map(snapshot.backend_from, backends))
            named = {str(b): BackendPlace(*p) for b, p in zip(made, places, strict=True)}
            self._decoded = made, named
        return self._decoded


class Backends(Sequence[Backend]):
    """The backends of a line: a tuple that is made when it is first looked into."""

    __slots__ = ("_count", "forwards", "part")

    def __init__(self, part: _Part, count: int, forwards: frozenset[Forward]) -> None:
        """`count` is how many there are, `forwards` the methods that they have."""
        self.part, self._count, self.forwards = part, count, forwards

    def __len__(self) -> int:
        return self._count

    @overload
    def __getitem__(self, index: int) -> Backend: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Backend, ...]: ...
    def __getitem__(self, index: int | slice) -> Backend | tuple[Backend, ...]:
        return self.part.decoded()[0][index]

    def __iter__(self) -> Iterator[Backend]:
        return iter(self.part.decoded()[0])

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Backends) and other.part.raw == self.part.raw:
            return True
        return isinstance(other, Backends | tuple) and self.part.decoded()[0] == tuple(other)

    def __hash__(self) -> int:
        return hash(self.part.decoded()[0])

    def __repr__(self) -> str:
        return repr(self.part.decoded()[0])


class BackendPlaces(Mapping[str, BackendPlace]):
    """Where the backends of a line stand: a dict that is made when it is first looked into."""

    __slots__ = ("_count", "part")

    def __init__(self, part: _Part, count: int) -> None:
        """`count` is how many there are."""
        self.part, self._count = part, count

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, name: str) -> BackendPlace:
        return self.part.decoded()[1][name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.part.decoded()[1])

    def __repr__(self) -> str:
        return repr(self.part.decoded()[1])


def encode(service: Service, place: ServicePlace, source: str | None) -> bytes:
    """The line of a service, its place and what its text in the file is known by."""
    at = [getattr(place, name) for name in PLACE]
    forwards = sorted(service.forwards)
    small = [snapshot.properties_to(service), len(service.backends), forwards, at, source]
    return _json(small) + SEPARATOR + _backends(service, place)


def _backends(service: Service, place: ServicePlace) -> bytes:
    backends, places = service.backends, place.backends
    if (
        isinstance(backends, Backends)
        and isinstance(places, BackendPlaces)
        and backends.part is places.part
    ):
        return backends.part.raw
    at = [places[str(backend)] for backend in backends]
    return _json([[*map(snapshot.backend_to, backends)], [[p.id, p.generation] for p in at]])


def _json(plain: Any) -> bytes:
    return json.dumps(plain, separators=(",", ":")).encode()


def decode(line: bytes) -> tuple[Service, ServicePlace, str | None]:
    """What encode() was given."""
    small, _, raw = line.partition(SEPARATOR)
    properties, count, forwards, at, source = json.loads(small)
    part = _Part(raw)
    backends = Backends(part, count, frozenset(map(Forward, forwards)))
    service = snapshot.with_backends(properties, backends)
    places = BackendPlaces(part, count)
    place = ServicePlace(backends=places, **dict(zip(PLACE, at, strict=True)))
    return service, place, source

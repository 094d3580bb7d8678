"""The book: which ids, rows and ranges of the maps are in use, by what, and which are free."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import json
from collections.abc import Iterable, Mapping, Sequence, Set

from lvsxdp.errors import ConflictError

# The kernel's default of net.ipv4.ip_unprivileged_port_start.
UNPRIVILEGED_PORT = 1024
# Seconds after which a removed backend is forgotten to which nothing refers: as under IPVS.
FORGOTTEN = 120


@dataclasses.dataclass(slots=True)
class BackendPlace:
    """The id that a backend has, with its generation."""

    id: int
    generation: int


@dataclasses.dataclass(slots=True)
class ServicePlace:
    """Where a service stands in the maps."""

    id: int
    generation: int
    row: int
    list_offset: int
    list_length: int
    slots: int | None
    backends: Mapping[str, BackendPlace]
    slots_length: int = 0
    since: int = 0  # the generation in which the service got its scheduler


@dataclasses.dataclass(frozen=True, slots=True)
class Parted:
    """A backend that was removed and may come back; `idle` is since when nothing refers to it.

    In seconds of the kernel's clock; 0 where something did at the last look.
    """

    id: int
    generation: int
    idle: int = 0

    @property
    def reference(self) -> int:
        """How entries name it."""
        return self.generation << 32 | self.id


@dataclasses.dataclass(slots=True)
class Removed:
    """What is kept of a service's removed backends, also where the service itself was removed."""

    service: int  # its id
    backends: dict[str, Parted]


class Generations:
    """How often each of very many ids was given away; read from a line when it is first asked for.

    Most changes ask for none, and have the line as it was.
    """

    __slots__ = ("_by_id", "_line")

    def __init__(self, line: bytes = b"[]") -> None:
        """`line` is what `line()` gave."""
        self._line: bytes | None = line
        self._by_id: dict[int, int] | None = None

    def line(self) -> bytes:
        """The generations by id as a JSON list, 0 where an id was never used."""
        if self._line is None:
            self._line = json.dumps(listed(self._by_id or {}), separators=(",", ":")).encode()
        return self._line

    def change(self) -> dict[int, int]:
        """The generations by id, to be changed."""
        if self._by_id is None:
            self._by_id = by_id(json.loads(self._line or b"[]"))
        self._line = None
        return self._by_id

    def copy(self) -> Generations:
        """The same, to be changed apart from these."""
        return Generations(self.line())

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Generations) and self.line() == other.line()

    def __hash__(self) -> int:
        return hash(self.line())


def listed(generations: Mapping[int, int]) -> list[int]:
    """Generations by id as a list, 0 where an id was never used."""
    return list(map(generations.get, range(max(generations, default=-1) + 1), itertools.repeat(0)))


def by_id(generations: list[int]) -> dict[int, int]:
    """What `listed` was given."""
    found = dict(enumerate(generations))
    return {i: each for i, each in found.items() if each} if 0 in generations else found


@dataclasses.dataclass(slots=True)
class Book:
    """Which ids, rows and ranges are in use, and by what; stored beside the configuration."""

    services: dict[str, ServicePlace] = dataclasses.field(default_factory=dict)
    service_generations: dict[int, int] = dataclasses.field(default_factory=dict)
    backend_generations: Generations = dataclasses.field(default_factory=Generations)
    mark_generation: int = 0
    epoch: int = 0
    unprivileged_port: int = UNPRIVILEGED_PORT
    removed: dict[str, Removed] = dataclasses.field(default_factory=dict)
    sources: dict[str, int] = dataclasses.field(default_factory=dict)  # address -> its number

    def copy(self) -> Book:
        """A book to be brought up to date in its stead: places are exchanged, not changed."""
        return Book(
            dict(self.services),
            dict(self.service_generations),
            self.backend_generations.copy(),
            self.mark_generation,
            self.epoch,
            self.unprivileged_port,
            {key: Removed(r.service, dict(r.backends)) for key, r in self.removed.items()},
            dict(self.sources),
        )

    def remember(self, key: str, identity: int, gone: Mapping[str, BackendPlace]) -> None:
        """Keeps removed backends of a service, so that they may come back."""
        kept = self.removed.setdefault(key, Removed(identity, {}))
        kept.backends |= {name: Parted(b.id, b.generation) for name, b in gone.items()}

    def forget(self, key: str, name: str) -> Parted:
        """The removed backend, which is no longer kept."""
        kept = self.removed[key]
        gone = kept.backends.pop(name)
        if not kept.backends:
            del self.removed[key]
        return gone

    def forget_idle(self, referred: Set[int], now: int) -> bool:
        """Forgets removed backends to which nothing refers, once that was so FORGOTTEN seconds ago.

        `referred` are the references that entries have, `now` is in seconds.  Whether the book is
        another than before.
        """
        before = self.parted()
        for key, name, gone in before:
            idle = 0 if gone.reference in referred else gone.idle or max(now, 1)
            if idle and now - idle >= FORGOTTEN:
                self.forget(key, name)
            else:
                self.removed[key].backends[name] = dataclasses.replace(gone, idle=idle)
        return self.parted() != before

    def parted(self) -> list[tuple[str, str, Parted]]:
        """Every removed backend after its service's key and its name, by service."""
        return [(key, n, b) for key, kept in self.removed.items() for n, b in kept.backends.items()]


class Numbers:
    """Numbers from 0 on, of which some are taken."""

    def __init__(self, taken: Iterable[int], what: str) -> None:
        """`what` they count, by its key in the configuration's capacity."""
        self.taken, self.what = set(taken), what
        self._least = 0  # none below is free

    def take(self, capacity: int) -> int:
        """The lowest number that is not taken, which it takes."""
        while self._least in self.taken:
            self._least += 1
        if self._least >= capacity:
            raise ConflictError(
                f"all {capacity} {self.what} are taken: raise capacity.{self.what} and attach anew"
            )
        self.taken.add(self._least)
        return self._least

    def free(self, number: int) -> None:
        """Gives a number back."""
        self.taken.discard(number)
        self._least = min(self._least, number)


class Ranges:
    """Ranges of an array's entries, of which some are taken."""

    def __init__(self, taken: Iterable[tuple[int, int]], what: str, remedy: str) -> None:
        """The start and length of each that is taken; what one is for, and what makes room."""
        self.what, self.remedy = what, remedy
        self._gaps: list[tuple[int, int]] = []  # start and length of each, in order
        self._end = 0
        for start, length in sorted(taken):
            if start > self._end:
                self._gaps.append((self._end, start - self._end))
            self._end = max(self._end, start + length)

    def take(self, length: int, capacity: int) -> int:
        """The start of the first free range of this length, which it takes."""
        for place, (start, room) in enumerate(self._gaps):
            if room < length:
                continue
            self._gaps[place : place + 1] = (
                [(start + length, room - length)] if room > length else []
            )
            return start
        start = self._end
        if start + length > capacity:
            what = self.what.format(length=length)
            raise ConflictError(f"no room for {what}: {self.remedy}")
        self._end += length
        return start


class Places:
    """Everything that is taken while a change is planned: by the old state and by the new.

    Each kind is counted when one is first taken.
    """

    def __init__(self, book: Book) -> None:
        """What the book says now is taken."""
        self._known: Sequence[ServicePlace] = tuple(book.services.values())
        removed = book.removed.values()
        self._removed = frozenset(kept.service for kept in removed)
        # what was removed before the change: while it is planned, the book learns of more
        self.former = tuple(key for key in book.removed if key not in book.services)
        self.parted = frozenset(b.id for kept in removed for b in kept.backends.values())

    @functools.cached_property
    def services(self) -> Numbers:
        """Ids of services, also of removed ones that may come back."""
        ids = (place.id for place in self._known)
        return Numbers((*ids, *self._removed), "services")

    @functools.cached_property
    def rows(self) -> Numbers:
        """Rows of their versions."""
        return Numbers((place.row for place in self._known), "services")

    @functools.cached_property
    def slots(self) -> Ranges:
        """Tables of sh, dh and mh."""
        taken = ((p.slots, p.slots_length) for p in self._known if p.slots is not None)
        what = "a scheduler's table of {length} slots"
        return Ranges(taken, what, "raise capacity.services and attach anew")

    @functools.cached_property
    def backends(self) -> Numbers:
        """Ids of backends, also of removed ones that may come back."""
        ids = (b.id for place in self._known for b in place.backends.values())
        return Numbers((*ids, *self.parted), "backends")

    @functools.cached_property
    def members(self) -> Ranges:
        """Lists of backends."""
        taken = ((place.list_offset, place.list_length) for place in self._known)
        return Ranges(taken, "a list of {length} backends", "raise capacity.backends")

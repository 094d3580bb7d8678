"""The book: which ids, rows and ranges of the maps are in use, by what, and which are free."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable, Mapping, Sequence

from lvsxdp.errors import ConflictError


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


@dataclasses.dataclass(slots=True)
class Book:
    """Which ids, rows and ranges are in use, and by what; stored beside the configuration."""

    services: dict[str, ServicePlace] = dataclasses.field(default_factory=dict)
    service_generations: dict[int, int] = dataclasses.field(default_factory=dict)
    backend_generations: dict[int, int] = dataclasses.field(default_factory=dict)
    mark_generation: int = 0
    epoch: int = 0

    def copy(self) -> Book:
        """A book to be brought up to date in its stead: places are exchanged, not changed."""
        return Book(
            dict(self.services),
            dict(self.service_generations),
            dict(self.backend_generations),
            self.mark_generation,
            self.epoch,
        )


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


class Ranges:
    """Ranges of members, of which some are taken."""

    def __init__(self, taken: Iterable[tuple[int, int]]) -> None:
        """The start and length of each that is taken."""
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
            raise ConflictError(f"no room for a list of {length} backends: raise capacity.backends")
        self._end += length
        return start


class Places:
    """Everything that is taken while a change is planned: by the old state and by the new.

    Each kind is counted when one is first taken.
    """

    def __init__(self, book: Book) -> None:
        """What the book says now is taken."""
        self._known: Sequence[ServicePlace] = tuple(book.services.values())

    @functools.cached_property
    def services(self) -> Numbers:
        """Ids of services."""
        return Numbers((place.id for place in self._known), "services")

    @functools.cached_property
    def rows(self) -> Numbers:
        """Rows of their versions."""
        return Numbers((place.row for place in self._known), "services")

    @functools.cached_property
    def slots(self) -> Numbers:
        """Tables of sh."""
        return Numbers((p.slots for p in self._known if p.slots is not None), "services")

    @functools.cached_property
    def backends(self) -> Numbers:
        """Ids of backends."""
        return Numbers((b.id for p in self._known for b in p.backends.values()), "backends")

    @functools.cached_property
    def members(self) -> Ranges:
        """Lists of backends."""
        return Ranges((place.list_offset, place.list_length) for place in self._known)

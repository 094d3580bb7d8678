"""The book: which ids, rows and ranges of the maps are in use, by what, and which are free."""

from __future__ import annotations

import dataclasses

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
    backends: dict[str, BackendPlace]


@dataclasses.dataclass(slots=True)
class Book:
    """Which ids, rows and ranges are in use, and by what; stored beside the configuration."""

    services: dict[str, ServicePlace] = dataclasses.field(default_factory=dict)
    service_generations: dict[int, int] = dataclasses.field(default_factory=dict)
    backend_generations: dict[int, int] = dataclasses.field(default_factory=dict)
    mark_generation: int = 0
    epoch: int = 0


def free_number(taken: set[int], capacity: int, what: str) -> int:
    """The lowest number that is not taken, which it takes."""
    for number in range(capacity):
        if number not in taken:
            taken.add(number)
            return number
    raise ConflictError(f"all {capacity} {what} are taken: raise capacity.{what} and attach anew")


def free_range(taken: list[tuple[int, int]], length: int, capacity: int) -> int:
    """The start of a free range of members, which it takes; both old and new count as taken."""
    start = 0
    for begin, size in sorted(taken):
        if begin - start >= length:
            break
        start = max(start, begin + size)
    if start + length > capacity:
        raise ConflictError(f"no room for a list of {length} backends: raise capacity.backends")
    taken.append((start, length))
    return start


@dataclasses.dataclass(slots=True)
class Places:
    """Everything that is taken while a change is planned: by the old state and by the new."""

    services: set[int]
    rows: set[int]
    slots: set[int]
    backends: set[int]
    members: list[tuple[int, int]]

    @classmethod
    def of(cls, book: Book) -> Places:
        """What the book says is taken."""
        places = book.services.values()
        return cls(
            services={place.id for place in places},
            rows={place.row for place in places},
            slots={place.slots for place in places if place.slots is not None},
            backends={b.id for place in places for b in place.backends.values()},
            members=[(place.list_offset, place.list_length) for place in places],
        )

"""What a change of the maps is made of: the kinds of writes, each performed in one step."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping

# The word that Fill stores.
FULL = 2**64 - 1


@dataclasses.dataclass(frozen=True, slots=True)
class Update:
    """Write one entry."""

    table: str
    key: bytes
    value: bytes


@dataclasses.dataclass(frozen=True, slots=True)
class Rows:
    """Write entries of an array, whose values follow each other, from an index on."""

    table: str
    index: int
    value: bytes


@dataclasses.dataclass(frozen=True, slots=True)
class Delete:
    """Delete one entry."""

    table: str
    key: bytes


@dataclasses.dataclass(frozen=True, slots=True)
class Store:
    """Store one 64-bit word of a mapped array: the moment at which a change takes effect."""

    table: str
    index: int
    word: int


@dataclasses.dataclass(frozen=True, slots=True)
class Raise:
    """Set bits of one 64-bit word of a mapped array."""

    table: str
    index: int
    bits: int


@dataclasses.dataclass(frozen=True, slots=True)
class Fill:
    """Set all bits of the first words of a mapped array."""

    table: str
    words: int


@dataclasses.dataclass(frozen=True, slots=True)
class Block:
    """Write so many bytes of a mapped array, from a byte on."""

    table: str
    start: int
    value: bytes


@dataclasses.dataclass(frozen=True, slots=True)
class Limit:
    """Give a backend other thresholds, by which it is judged at once."""

    backend: int
    thresholds: int


@dataclasses.dataclass(frozen=True, slots=True)
class Evict:
    """Remove every entry that a service id had in the tables before."""

    service: int


@dataclasses.dataclass(frozen=True, slots=True)
class Divide:
    """Say what of a table is each service's own, and how much they may share beyond that."""

    table: int
    own: int
    limit: int


@dataclasses.dataclass(frozen=True, slots=True)
class Reset:
    """Set all CPUs' values of entries in a row to 0, from an index on."""

    table: str
    index: int
    count: int


@dataclasses.dataclass(frozen=True, slots=True)
class Zero:
    """Have what a service's or backend's id has counted shown from 0 on; the counters go on.

    `table` is the one that holds where they stand then.
    """

    table: str
    index: int


@dataclasses.dataclass(frozen=True, slots=True)
class Grace:
    """Wait until no program runs that may have read what the switch replaced."""


Write = (
    Update
    | Rows
    | Delete
    | Store
    | Raise
    | Fill
    | Block
    | Limit
    | Evict
    | Divide
    | Reset
    | Zero
    | Grace
)
KINDS = (Update, Rows, Delete, Store, Raise, Fill, Block, Limit, Evict, Divide, Reset, Zero, Grace)


@dataclasses.dataclass(frozen=True, slots=True)
class Plan:
    """The writes of a change: first what nothing uses yet, then what makes it take effect.

    Those of `effect` may be done twice; those of `prepare` are undone where none of them is done.
    """

    prepare: tuple[Write, ...]
    effect: tuple[Write, ...]

    @property
    def writes(self) -> tuple[Write, ...]:
        """All of them in their order."""
        return (*self.prepare, *self.effect)


def runs(rows: Mapping[int, bytes]) -> Iterator[tuple[int, list[bytes]]]:
    """The rows by their first index, those that follow each other together."""
    first, values = 0, list[bytes]()
    for index in sorted(rows):
        if values and index != first + len(values):
            yield first, values
            values = []
        first = first if values else index
        values.append(rows[index])
    if values:
        yield first, values

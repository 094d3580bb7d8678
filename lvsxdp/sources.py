"""The pool of addresses that backends by fullnat get packets from, and its tables."""

from __future__ import annotations

import functools
import ipaddress
import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING

from lvsxdp import records, scalars
from lvsxdp.book import Book
from lvsxdp.errors import ConfigError, ConflictError
from lvsxdp.model import MAX_SOURCES, Address, Config, Family, Forward, Ports, Settings
from lvsxdp.schema import Schema
from lvsxdp.writes import Block, Delete, Rows, Update, Write

if TYPE_CHECKING:
    from lvsxdp.controller import Balancer

# How many ports each address has in the table.
PORTS = 1 << 16
# Bits of its rows, and of a connection's word: bpf/source.h, bpf/word.h.
MAKING = 1 << 50
IPV6 = 1 << 51
METHOD_SHIFT = 16
SOURCE_SHIFT = 35
GENERATION_SHIFT = 52

# Whether connections have an address, by its number.
InUse = Callable[[int], bool]


def parse_pool(text: str) -> str:
    """The pool that a text names, in the one way in which it is kept."""
    parts = [part.strip() for part in text.split(",")] if text.strip() else []
    found = [_parse_part(part) for part in parts]
    addresses = list(itertools.chain.from_iterable(found))
    if len(addresses) > MAX_SOURCES:
        raise ConfigError(
            f"{len(addresses)} addresses are more than the {MAX_SOURCES} there may be"
        )
    twice = {str(a) for a in addresses if addresses.count(a) > 1}
    if twice:
        raise ConfigError(f"{min(twice)} is in it twice; leave one out")
    return ", ".join(parts)


def _parse_part(part: str) -> list[Address]:
    """The addresses of an address, a range or a prefix."""
    first, dash, last = (end.strip() for end in part.partition("-"))
    if dash:
        return _range(part, scalars.parse_host(first), scalars.parse_host(last))
    network = scalars.parse_network(part)
    if network.num_addresses > MAX_SOURCES:
        raise ConfigError(f"{scalars.quote(part)} has more than {MAX_SOURCES} addresses")
    found: list[Address] = [network[step] for step in range(network.num_addresses)]
    for address in (found[0], found[-1]):
        scalars.parse_host(str(address))
    return found


def _range(part: str, first: Address, last: Address) -> list[Address]:
    if first.version != last.version:
        raise ConfigError(f"{scalars.quote(part)} begins and ends in different families")
    count = int(last) - int(first) + 1
    if count < 1:
        raise ConfigError(f"{scalars.quote(part)} runs backwards; write {last}-{first}")
    if count > MAX_SOURCES:
        raise ConfigError(f"{scalars.quote(part)} has more than {MAX_SOURCES} addresses")
    kind = type(first)
    return [kind(int(first) + step) for step in range(count)]


def parse_ports(text: str) -> str:
    """The ports that a text names, in the one way in which they are kept."""
    ports = scalars.parse_ports(text)
    if ports.first < 1:
        raise ConfigError(f"{scalars.quote(text)}: a port is 1 to 65535")
    return f"{ports.first}-{ports.last}"


@functools.lru_cache(maxsize=8)
def addresses(pool: str) -> tuple[Address, ...]:
    """The addresses of a pool, as `parse_pool` gave it."""
    parts = pool.split(", ") if pool else []
    return tuple(itertools.chain.from_iterable(map(_parse_part, parts)))


def ports_of(settings: Settings) -> Ports:
    """The ports that connections get of each address."""
    return scalars.parse_ports(settings.source_ports)


def pool_writes(
    schema: Schema, book: Book, old: Config, new: Config, in_use: InUse, *, first: bool
) -> Iterator[tuple[str, Write]]:
    """What leads from one pool to another, each with its stage; `book` is brought up to date.

    An address that leaves the pool keeps its number, for the connections that have it, until
    another address wants a number and none is left.
    """
    before, after = old.settings, new.settings
    if not first and (before.source_pool, before.source_ports) == (
        after.source_pool,
        after.source_ports,
    ):
        return
    wanted = addresses(after.source_pool)
    for address in wanted:
        if str(address) not in book.sources:
            yield from _number(schema, book, address, wanted, new.capacity.sources, in_use)
    ports = ports_of(after)
    for row, family in enumerate(Family):
        numbers = [book.sources[str(a)] for a in wanted if Family.of(a) is family]
        yield "switch", _pool_row(schema, row, numbers, ports)


def _number(
    schema: Schema,
    book: Book,
    address: Address,
    wanted: Iterable[Address],
    capacity: int,
    in_use: InUse,
) -> Iterator[tuple[str, Write]]:
    """Gives an address a number: one that nobody has, or had."""
    taken = set(book.sources.values())
    number = next((n for n in range(capacity) if n not in taken), None)
    if number is None:
        kept = set(map(str, wanted))
        former = ((name, n) for name, n in book.sources.items() if name not in kept)
        name, number = next(((name, n) for name, n in former if not in_use(n)), (None, None))
        if name is None or number is None:
            raise ConflictError(
                f"settings.source_pool: there is room for {capacity} addresses, with those that "
                "left it and still have connections: raise capacity.sources and attach anew, or "
                "wait until these are over"
            )
        del book.sources[name]
        yield "prepare", Delete("source_numbers", _key(schema, ipaddress.ip_address(name)))
    book.sources[str(address)] = number
    row = schema.values["sources"].encode(address=records.wire_address(address))
    yield "prepare", Rows("sources", number, row)
    yield "prepare", Update("source_numbers", _key(schema, address), records.number(number))


def _key(schema: Schema, address: Address) -> bytes:
    return schema.keys["source_numbers"].encode(address=records.wire_address(address))


def _pool_row(schema: Schema, row: int, numbers: list[int], ports: Ports) -> Write:
    """A family's row; without any address it is empty."""
    layout = schema.values["source_pools"]
    count = ports.last - ports.first + 1
    wanted = layout.encode(count=len(numbers), first_port=ports.first, ports=count, index=numbers)
    return Block("source_pools", row * layout.size, wanted)


def in_use(balancer: Balancer, number: int) -> bool:
    """Whether a connection has the address of this number, or one is about to."""
    enums, ports = balancer.schema.enums, balancer.map("source_ports")
    # without the feature there is but one row
    rows = memoryview(ports.memory()).cast("Q")[number * PORTS : (number + 1) * PORTS]
    with rows:
        holders = [holder for holder in rows if holder]
    for holder in holders:
        if holder & MAKING:
            return True
        table = "connections6" if holder & IPV6 else "connections4"
        word = balancer.map(table).read_word((holder & (MAKING - 1)) - 1)
        method = word >> METHOD_SHIFT & 7
        if (
            (word ^ holder) >> GENERATION_SHIFT == 0
            and method == enums["method"][Forward.FULLNAT]
            and word >> SOURCE_SHIFT & MAX_SOURCES - 1 == number
        ):
            return True
    return False

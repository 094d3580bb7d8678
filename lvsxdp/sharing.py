"""Shares: what of each table is one service's own, and what is for all."""

from __future__ import annotations

from lvsxdp.model import Config, Family
from lvsxdp.schema import Schema
from lvsxdp.writes import Divide, Write


def divide_writes(schema: Schema, old: Config, new: Config, first: bool) -> list[Write]:
    """Half of each table belongs to its services in equal parts, the rest to whoever comes first.

    The parts change only as the number of services passes a power of two.
    """
    found: list[Write] = []
    for name, number in schema.enums["table"].items():
        before, after = (_division(name, config) for config in (old, new))
        if first or before != after:
            found.append(Divide(number, *after))
    return found


def _division(table: str, config: Config) -> tuple[int, int]:
    """What is each service's own in a table of TABLES, and what all may have beyond it."""
    family = Family.IPV6 if table.endswith("6") else Family.IPV4
    count = sum(service.family is family for service in config.services)
    of = config.capacity
    entries = of.connections if table.startswith("connections") else of.persistence
    own = entries // (2 << (count - 1).bit_length()) if count else 0
    return own, entries - own * count

"""Rows of the read commands: from the maps' bytes to values, and those to text or JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from lvsxdp import records
from lvsxdp.model import Service
from lvsxdp.state import State

Row = dict[str, Any]


def as_json(value: object) -> str:
    """A value as indented JSON."""
    return json.dumps(value, indent=2)


def as_table(rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> str:
    """Rows under their column names; numbers to the right, `-` for nothing."""
    cells = [[cell(row.get(column)) for column in columns] for row in rows]
    widths = [
        max(len(name), *(len(line[i]) for line in cells)) if cells else len(name)
        for i, name in enumerate(columns)
    ]
    numeric = [bool(rows) and isinstance(rows[0].get(name), int | float) for name in columns]
    lines = [_line(columns, widths, numeric), *(_line(line, widths, numeric) for line in cells)]
    return "\n".join(lines)


def cell(value: object) -> str:
    """A value in a table: `-` for nothing, a switch in the words of the file."""
    if value is None or value == "":
        return "-"
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:.0f}" if isinstance(value, float) else str(value)


def _line(cells: Sequence[str], widths: Sequence[int], numeric: Sequence[bool]) -> str:
    parts = [
        cell.rjust(width) if right else cell.ljust(width)
        for cell, width, right in zip(cells, widths, numeric, strict=True)
    ]
    return "  ".join(parts).rstrip()


class Names:
    """From ids in the maps to the names of the configuration."""

    def __init__(self, state: State) -> None:
        """Indexes the state's services and backends by id."""
        self.settings = state.config.settings
        self.services: dict[int, Service] = {}
        self._backends: dict[tuple[int, int], str] = {}
        for service in state.config.services:
            place = state.book.services[str(service.key)]
            self.services[place.id] = service
            for name, backend in place.backends.items():
                self._backends[backend.id, backend.generation] = name
        for _, name, gone in state.book.parted():
            self._backends[gone.id, gone.generation] = name

    def service(self, identity: int) -> str | None:
        """The service's name, None where it has been removed."""
        found = self.services.get(identity)
        return str(found) if found else None

    def backend(self, reference: int) -> str | None:
        """The backend's name, None where it has been removed and cannot come back."""
        return self._backends.get((reference & 0xFFFFFFFF, reference >> 32))


def mark_rows(state: State) -> list[Row]:
    """One row a mark rule, numbered from 1."""
    return [
        {
            "number": number,
            "mark": rule.mark,
            "protocols": " ".join(rule.protocols),
            "addresses": " ".join(map(str, rule.addresses)) or "any",
            "ports": " ".join(_range(p.first, p.last) for p in rule.ports) or "any",
            "sources": " ".join(map(str, rule.sources)),
            "interfaces": " ".join(rule.interfaces),
            "vlans": " ".join(map(str, rule.vlans)),
            "source_macs": " ".join(rule.source_macs),
        }
        for number, rule in enumerate(state.config.marks, 1)
    ]


def _range(first: int, last: int) -> str:
    return str(first) if first == last else f"{first}-{last}"


def service_row(service: Service, counters: Mapping[str, int | None]) -> Row:
    """One service with what it counted, and its rates."""
    kept = service.persistence
    return {
        "service": str(service.key),
        "name": service.name,
        "scheduler": " ".join([service.scheduler, *service.flags]),
        "persistence": kept.timeout if kept else None,
        "netmask": str(kept.netmask) if kept else None,
        "expiry": str(kept.expiry) if kept else None,
        "engine": str(kept.engine) if kept and kept.engine else None,
        "one_packet": service.one_packet,
        "sloppy_tcp": service.sloppy_tcp,
        "backends": len(service.backends),
        **counters,
    }


def number_of(raw: bytes | None, layout: records.Layout, field: str) -> int:
    """A field of an entry, 0 where there is no entry."""
    return layout.number(raw, field) if raw else 0

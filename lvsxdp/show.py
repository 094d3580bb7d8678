"""Rows of the read commands: from the maps' bytes to values, and those to text or JSON."""

from __future__ import annotations

import ipaddress
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from lvsxdp import records
from lvsxdp.model import Address, Expiry, Service
from lvsxdp.state import State
from lvsxdp.tables import Schema

Row = dict[str, Any]
REARM = 60
PROTOCOLS = {6: "tcp", 17: "udp", 132: "sctp", 0: "ip"}


def as_json(value: object) -> str:
    """A value as indented JSON."""
    return json.dumps(value, indent=2)


def as_table(rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> str:
    """Rows under their column names; numbers to the right, `-` for nothing."""
    cells = [[_cell(row.get(column)) for column in columns] for row in rows]
    widths = [
        max(len(name), *(len(line[i]) for line in cells)) if cells else len(name)
        for i, name in enumerate(columns)
    ]
    numeric = [bool(rows) and isinstance(rows[0].get(name), int | float) for name in columns]
    lines = [_line(columns, widths, numeric), *(_line(line, widths, numeric) for line in cells)]
    return "\n".join(lines)


def _cell(value: object) -> str:
    if value is None or value == "":
        return "-"
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
        self.services: dict[int, Service] = {}
        self._backends: dict[tuple[int, int], str] = {}
        for service in state.config.services:
            place = state.book.services[str(service.key)]
            self.services[place.id] = service
            for name, backend in place.backends.items():
                self._backends[backend.id, backend.generation] = name

    def backend(self, reference: int) -> str | None:
        """The backend's name, None where it has been removed."""
        return self._backends.get((reference & 0xFFFFFFFF, reference >> 32))


def _address(octets: bytes) -> Address:
    return ipaddress.ip_address(octets)


def _endpoint(address: Address, port: int) -> str:
    return f"[{address}]:{port}" if address.version == 6 else f"{address}:{port}"


def _port(octets: bytes) -> int:
    return int.from_bytes(octets, "big")


def connection_rows(
    schema: Schema, names: Names, table: str, entries: Iterator[tuple[bytes, bytes]], now: int
) -> Iterator[Row]:
    """One row a live connection: who, what, where, state, and seconds until it ends."""
    key, value = schema.keys[table], schema.values[table]
    states = {number: name for name, number in schema.enums["state"].items()}
    for raw_key, raw in entries:
        left = value.number(raw, "expires") - now
        state = value.number(raw, "word") & 0xFF
        if left <= 0 or states.get(state) == "dead":
            continue
        service = names.services.get(value.number(raw, "service"))
        client = _address(key.octets(raw_key, "client"))
        virtual = _address(key.octets(raw_key, "virtual"))
        yield {
            "service": str(service) if service else None,
            "protocol": PROTOCOLS.get(key.number(raw_key, "protocol"), "?"),
            "client": _endpoint(client, _port(key.octets(raw_key, "client_port"))),
            "virtual": _endpoint(virtual, _port(key.octets(raw_key, "virtual_port"))),
            "backend": names.backend(value.number(raw, "backend")),
            "state": states.get(state, "?").upper(),
            "expires_in": round(left / schema.hz, 1),
            "mark": value.number(raw, "mark"),
        }


def persistence_rows(
    schema: Schema, names: Names, table: str, entries: Iterator[tuple[bytes, bytes]], now: int
) -> Iterator[Row]:
    """One row a live persistence entry."""
    key, value = schema.keys[table], schema.values[table]
    for raw_key, raw in entries:
        service = names.services.get(value.number(raw, "service"))
        left = _left(schema, service, raw, table, now)
        if left <= 0:
            continue
        yield {
            "service": str(service) if service else None,
            "client": _network(_address(key.octets(raw_key, "client")), service),
            "backend": names.backend(value.number(raw, "backend")),
            "expires_in": round(left / schema.hz, 1),
            "connections": value.number(raw, "connections"),
        }


def _left(schema: Schema, service: Service | None, raw: bytes, table: str, now: int) -> int:
    """Jiffies until the entry's timer ends: IPVS re-arms it for 60 s while connections live."""
    layout = schema.values[table]
    expires = layout.number(raw, "expires")
    if not expires or now < expires:
        return expires - now if expires else 0
    strict = service and service.persistence and service.persistence.expiry is Expiry.STRICT
    held = layout.number(raw, "inactive_until")
    if layout.number(raw, "active"):
        held = max(held, layout.number(raw, "active_until"))
    rearm = REARM * schema.hz
    end = expires + -(-(held - expires) // rearm) * rearm if held > expires else expires
    if strict or now >= end:
        return 0
    return rearm - (now - expires) % rearm


def _network(client: Address, service: Service | None) -> str:
    """The client, with its prefix or mask where it stands for a network."""
    mask = service.persistence.netmask if service and service.persistence else None
    if mask is None or int(mask) == 2**mask.max_prefixlen - 1:
        return str(client)
    bits = bin(int(mask))[2:].rjust(mask.max_prefixlen, "0")
    if "01" in bits:
        return f"{client}/{mask}"
    return f"{client}/{bits.count('1')}"


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


def service_row(service: Service, counters: Mapping[str, int]) -> Row:
    """One service with what it counted."""
    kept = service.persistence
    return {
        "service": str(service.key),
        "name": service.name,
        "scheduler": " ".join([service.scheduler, *service.flags]),
        "persistence": kept.timeout if kept else None,
        "netmask": str(kept.netmask) if kept else None,
        "expiry": str(kept.expiry) if kept else None,
        "backends": len(service.backends),
        **counters,
    }


def number_of(raw: bytes | None, layout: records.Layout, field: str) -> int:
    """A field of an entry, 0 where there is no entry."""
    return layout.number(raw, field) if raw else 0

"""Structs of the C sources as bytes: the one place that knows byte order and field offsets."""

from __future__ import annotations

import dataclasses
import re
import struct
from collections.abc import Mapping, Sequence

from lvsxdp.errors import DatapathError
from lvsxdp.model import Address, Family

NUMBERS = {1: "B", 2: "H", 4: "I", 8: "Q"}
SIZES = {"char": 1, "short": 2, "int": 4, "long": 8, "long long": 8}
ENUM = re.compile(r"enum (\w+) \{(.*?)\};", re.DOTALL)
ENUM_VALUE = re.compile(r"^\s*([A-Z0-9_]+) = (\d+),", re.MULTILINE)


@dataclasses.dataclass(frozen=True, slots=True)
class Field:
    """Where a field stands: byte offset, bytes of one element, number of elements."""

    offset: int
    size: int
    count: int


@dataclasses.dataclass(frozen=True, slots=True)
class Layout:
    """A struct's size in bytes and its fields by name; a plain number is the field `value`."""

    size: int
    fields: Mapping[str, Field]

    def encode(self, **values: int | Sequence[int] | bytes) -> bytes:
        """The struct's bytes; fields that are not given are 0."""
        out = bytearray(self.size)
        for name, value in values.items():
            field = self.fields[name]
            raw = value if isinstance(value, bytes) else _numbers(value, field)
            if len(raw) > field.size * field.count:
                raise DatapathError(f"{len(raw)} bytes do not fit field {name}")
            out[field.offset : field.offset + len(raw)] = raw
        return bytes(out)

    def packer(self, *names: str) -> struct.Struct:
        """Packs values of these fields, which stand in this order; those not named are 0."""
        parts, end = ["<"], 0
        for field in (self.fields[name] for name in names):
            code = NUMBERS[field.size] if field.count == 1 else f"{field.size * field.count}s"
            parts.append(f"{field.offset - end}x{code}")
            end = field.offset + field.size * field.count
        return struct.Struct("".join((*parts, f"{self.size - end}x")))

    def number(self, raw: bytes, name: str) -> int:
        """A field as a number of this machine's byte order."""
        field = self.fields[name]
        return int.from_bytes(raw[field.offset : field.offset + field.size], "little")

    def octets(self, raw: bytes, name: str) -> bytes:
        """A field's bytes as they stand."""
        field = self.fields[name]
        return raw[field.offset : field.offset + field.size * field.count]


def _numbers(value: int | Sequence[int], field: Field) -> bytes:
    parts = [value] if isinstance(value, int) else value
    return b"".join(part.to_bytes(field.size, "little") for part in parts)


@dataclasses.dataclass(frozen=True, slots=True)
class Shape:
    """What a flat table holds in its only entry: for each CPU so many rows of so many bytes."""

    row: int
    rows: int
    cpus: int = 1


def layout_of(description: object) -> Layout:
    """The layout that a BCC description stands for; DatapathError where padding is implicit.

    The fields of a struct inside the struct stand among its own.
    """
    if isinstance(description, str):
        size = _size(description)
        return Layout(size, {"value": Field(0, size, 1)})
    if not isinstance(description, list):
        raise DatapathError(f"not a description of a struct: {description!r}")
    fields: dict[str, Field] = {}
    offset = 0
    for part in description[1]:
        name, kind = str(part[0]), part[1]
        if name.startswith("__pad"):
            raise DatapathError(f"struct {description[0]} has implicit padding before {name}")
        count = int(part[2][0]) if len(part) > 2 else 1
        size = layout_of(kind).size if isinstance(kind, list) else _size(kind)
        if isinstance(kind, list) and count == 1:
            inner = layout_of(kind).fields
            fields |= {n: Field(offset + f.offset, f.size, f.count) for n, f in inner.items()}
        else:
            fields[name] = Field(offset, size, count)
        offset += size * count
    return Layout(offset, fields)


def _size(kind: str) -> int:
    plain = kind.removeprefix("unsigned ").removeprefix("signed ")
    if plain not in SIZES:
        raise DatapathError(f"no size is known for the type {kind}")
    return SIZES[plain]


def enums_of(text: str) -> dict[str, dict[str, int]]:
    """The enums of a C header by name, each a map of lower-case short names to numbers."""
    found: dict[str, dict[str, int]] = {}
    for name, body in ENUM.findall(text):
        values = {key: int(number) for key, number in ENUM_VALUE.findall(body)}
        prefix = f"{name.removesuffix('_word').removesuffix('_flag').upper()}_"
        found[name] = {key.removeprefix(prefix).lower(): value for key, value in values.items()}
    return found


# ------------------------------------------------------------------- addresses, ports and MACs


def wire_port(port: int) -> bytes:
    """A port as it stands in a packet."""
    return port.to_bytes(2, "big")


def wire_address(address: Address) -> bytes:
    """An address as the maps hold it: 16 bytes, IPv4 in the first four."""
    return address.packed.ljust(16, b"\0")


def family_number(family: Family) -> int:
    """4 or 6."""
    return 4 if family is Family.IPV4 else 6


def mac_word(mac: str) -> int:
    """A MAC as the first six bytes of a 64-bit word."""
    return int.from_bytes(bytes.fromhex(mac.replace(":", "")), "little")


def number(value: int) -> bytes:
    """A 32-bit number of this machine's byte order: an array's index."""
    return value.to_bytes(4, "little")


def word(value: int) -> bytes:
    """A 64-bit number of this machine's byte order."""
    return value.to_bytes(8, "little")


def per_cpu(raw: bytes, size: int) -> list[bytes]:
    """The values of one per-CPU entry, each `size` bytes."""
    stride = -(-size // 8) * 8
    return [raw[start : start + size] for start in range(0, len(raw), stride)]

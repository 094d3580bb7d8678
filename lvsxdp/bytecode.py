"""Compiled programs as data: code that names its maps and hash keys by number, and the tables."""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import hashlib
import json
import os
import struct
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from lvsxdp import maps
from lvsxdp.errors import DatapathError

# An instruction that loads 64 bits, and what its source register says that it loads: a map, a place
# in a map's only value, or (ours) a hash key.
LOAD_64, MAP, VALUE_OF_MAP, HASH_KEY = 0x18, 1, 2, 15
# Files kept at most, and what they look like: one more whenever that changes.
KEPT, FORMAT = 64, 1


@dataclasses.dataclass(frozen=True, slots=True)
class Table:
    """A map as the source declares it; `key` and `value` are layouts as BCC describes them."""

    type: int
    key_size: int
    value_size: int
    capacity: int
    flags: int
    key: Any
    value: Any

    def create(self, name: str) -> int:
        """A descriptor of a new map of this kind."""
        return maps.create(
            name, self.type, self.key_size, self.value_size, self.capacity, self.flags
        )


@dataclasses.dataclass(frozen=True, slots=True)
class Links:
    """What a program is linked with: maps by name, flat tables by number, hash keys in order."""

    maps: Mapping[str, int] = dataclasses.field(default_factory=dict)
    flat: Mapping[int, int] = dataclasses.field(default_factory=dict)
    keys: Sequence[int] = ()


@dataclasses.dataclass(frozen=True, slots=True)
class Compiled:
    """A compiled source: its tables, and each function's code, which names them by place."""

    tables: Mapping[str, Table]
    programs: Mapping[str, bytes]

    def linked(self, function: str, links: Links) -> bytes:
        """A function's code with its maps and hash keys in it, as the kernel takes it."""
        if function not in self.programs:
            raise DatapathError(f"there is no program {function} in what was compiled")
        names, code = list(self.tables), bytearray(self.programs[function])
        for place, source, number in _loads(code):
            if source == MAP:
                struct.pack_into("<I", code, place + 4, links.maps[names[number]])
            elif source == VALUE_OF_MAP:
                struct.pack_into("<I", code, place + 4, links.flat[number])
            elif source == HASH_KEY:
                code[place + 1] &= 15
                struct.pack_into("<I", code, place + 4, links.keys[number] % 2**32)
                struct.pack_into("<I", code, place + 12, links.keys[number] >> 32)
        return bytes(code)

    def load_all(
        self, functions: Sequence[str], kind: maps.ProgramType, links: Links
    ) -> dict[str, int]:
        """Loads functions; gives a descriptor for each name, or raises and keeps none."""
        loaded: dict[str, int] = {}
        try:
            for function in functions:
                code = self.linked(function, links)
                loaded[function] = maps.load_program(function, code, kind)
        except DatapathError:
            for descriptor in loaded.values():
                os.close(descriptor)
            raise
        return loaded


def load_alone(
    compiled: Compiled, functions: Sequence[str]
) -> tuple[dict[str, int], dict[str, maps.Map]]:
    """XDP programs that share nothing with others: descriptors by function, new maps by name."""
    made = {name: table.create(name) for name, table in compiled.tables.items()}
    loaded = compiled.load_all(functions, maps.ProgramType.XDP, Links(maps=made))
    return loaded, {name: maps.Map(descriptor) for name, descriptor in made.items()}


def numbered(code: bytes, places: Mapping[int, int]) -> bytes:
    """Code of this process with the place of each map's table where its descriptor stands."""
    out = bytearray(code)
    for place, source, number in _loads(code):
        if source == MAP:
            struct.pack_into("<I", out, place + 4, places[number])
    return bytes(out)


def _loads(code: bytes | bytearray) -> Iterator[tuple[int, int, int]]:
    """Where each instruction that loads 64 bits is, its source register, its lower 32 bits."""
    place = 0
    while place < len(code):
        operation, registers, number = struct.unpack_from("<BBxxI", code, place)
        if operation == LOAD_64:
            yield place, registers >> 4, number
        place += 16 if operation == LOAD_64 else 8


# ------------------------------------------------------------------------------------- on disk


def kept(path: Path) -> Compiled | None:
    """What was kept there; None where nothing is, or not what was written."""
    try:
        digest, _, body = path.read_bytes().partition(b"\n")
    except OSError:
        return None
    if hashlib.sha256(body).hexdigest().encode() != digest:
        return None
    plain = json.loads(body)
    with contextlib.suppress(OSError):
        os.utime(path)
    return Compiled(
        {name: Table(**table) for name, table in plain["tables"].items()},
        {name: base64.b64decode(code) for name, code in plain["programs"].items()},
    )


def keep(path: Path, compiled: Compiled) -> None:
    """Writes it there for the next time, if that is possible, and removes what is oldest."""
    tables = {name: dataclasses.asdict(table) for name, table in compiled.tables.items()}
    programs = {n: base64.b64encode(code).decode() for n, code in compiled.programs.items()}
    body = json.dumps({"tables": tables, "programs": programs}).encode()
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
            try:
                file.write(hashlib.sha256(body).hexdigest().encode() + b"\n" + body)
                file.flush()
                os.replace(file.name, path)
            except OSError:
                os.unlink(file.name)
        by_age = sorted(path.parent.iterdir(), key=lambda old: old.stat().st_mtime, reverse=True)
        for old in by_age[KEPT:]:
            old.unlink(missing_ok=True)

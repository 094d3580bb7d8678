"""The Schema of bpf/types.h and bpf/maps.h without a compiler, in BCC's own descriptions."""

from __future__ import annotations

import pathlib
import re

from lvsxdp import mark_words, records
from lvsxdp.filtering import Hashing
from lvsxdp.model import Capacity
from lvsxdp.schema import Schema

ROOT = pathlib.Path(__file__).parents[2]
TYPES = (ROOT / "bpf/types.h").read_text()
STRUCT = re.compile(r"struct (\w+) \{(.*?)\n\};", re.DOTALL)
FIELD = re.compile(r"^\t(struct \w+|\w+) (\w+)(?:\[(\d+)\])?;", re.MULTILINE)
TABLE = re.compile(r'TABLE\("\w+", (struct \w+|\w+), (struct \w+|\w+), (\w+),')
C_TYPES = {
    "u8": "unsigned char",
    "u16": "unsigned short",
    "__be16": "unsigned short",
    "u32": "unsigned int",
    "__be32": "unsigned int",
    "u64": "unsigned long long",
}


# any odd numbers will do
HASHING = Hashing(tuple(0x9E3779B97F4A7C15 * (2 * n + 1) % 2**64 for n in range(14)), 16)


def described(kind: str) -> object:
    """A type as BCC describes it in JSON."""
    if kind in C_TYPES:
        return C_TYPES[kind]
    name = kind.removeprefix("struct ")
    body = dict(STRUCT.findall(TYPES))[name]
    fields = [
        [field, described(of), *([[int(count)]] if count else [])]
        for of, field, count in FIELD.findall(body)
    ]
    return [name, fields, "struct"]


def schema(hz: int = 250) -> Schema:
    """Layouts of all maps, and all enums."""
    found = TABLE.findall((ROOT / "bpf/maps.h").read_text())
    # what only programs look at
    tables = [table for table in found if table[2] != "journeys"]
    return Schema(
        keys={name: records.layout_of(described(key)) for key, _, name in tables},
        values={name: records.layout_of(described(value)) for _, value, name in tables},
        enums=records.enums_of(TYPES),
        hz=hz,
        hashing=HASHING,
        flat={
            "mark_words": records.Shape(8, 2 * mark_words.words_for(Capacity().marks)),
            "slots": records.Shape(2, 2048 * Capacity().services),
            "member_places": records.Shape(4, 2 * Capacity().backends),
        },
    )

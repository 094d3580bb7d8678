"""Mark rules in the maps: the writes that put one rule set in the place of another."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from lvsxdp import mark_words, marks
from lvsxdp.book import Book
from lvsxdp.errors import ConfigError
from lvsxdp.model import Config
from lvsxdp.scalars import quote
from lvsxdp.schema import Schema
from lvsxdp.writes import Block, Store, Write


def mark_writes(
    schema: Schema, book: Book, new: Config, ifindexes: Mapping[str, int]
) -> Iterator[tuple[str, Write]]:
    """The new rule set in the half that is not in use, then the switch to it."""
    table = marks.expand(new.marks)
    missing = {name for _, rule in table.ordered for name in rule.interfaces} - ifindexes.keys()
    for place, rule in enumerate(new.marks if missing else ()):
        for name in missing.intersection(rule.interfaces):
            where = f"marks[{place}].interfaces"
            raise ConfigError(f"{where}: there is no interface {quote(name)} here (ip link)")
    book.mark_generation = generation = (book.mark_generation + 1) % 2**32
    room = schema.flat["mark_words"].rows // 2
    if table.exact or table.ordered:
        words = mark_words.build(table, schema.enums, schema.hashing, ifindexes, room)
        start = generation % 2 * room * 8
        yield "prepare", Block("mark_words", start, words)
    word = generation | bool(table.exact) << 32 | bool(table.ordered) << 33
    word |= all(marks.is_by_target(rule) for _, rule in table.ordered) << 34
    yield "switch", Store("switches", schema.enums["switch_word"]["marks"], word)

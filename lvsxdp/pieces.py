"""A configuration file's services as pieces of text: those that are known need no reading.

To read a large file takes longer than all else that `apply` does, and mostly little of it has
changed.  A piece is only ever taken for what was read of the very same text; whatever is not
plainly a block of services, as nearly every file has it, is not taken apart.  Of a piece that has
to be read, rows of backends that say no more than an IPv4 address and a weight, in one form, are
what their text says: YAML is asked for the first of them.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import re
from collections.abc import Collection, Mapping

HEAD = re.compile(r"^services:[ ]*(?:#.*)?\n", re.MULTILINE)
FIRST = re.compile(r"(?:[ ]*(?:#.*)?\n)*( *)- ")
NEXT_KEY = re.compile(r"\n[^\s#-]")
# Anchors, aliases, tags, tabs, line breaks of other kinds, further documents, directives: what one
# piece may mean to another.
ELSEWHERE = (
    *("&", "*", "!", "\t", "\r", "\x85", "\u2028", "\u2029"),
    *("\n---", "\n...", "\n%"),
)
# Scalars of several lines.
LONG = re.compile(r"[|>][-+0-9]*[ ]*(?:#.*)?$", re.MULTILINE)
DIGEST_BYTES = 12
# A backend of which YAML makes what stands there, and the rows of a list of such.
ROW = r"- \{address: ([0-9.]+)(?:, weight: (0|[1-9][0-9]{0,8}))?\}\n"
ROWS = re.compile(rf"( +){ROW}(?:\1{ROW})+")
EACH_ROW = re.compile(ROW)


@dataclasses.dataclass(frozen=True, slots=True)
class Rows:
    """A piece's plain backends: address and weight (or none) of each; the text with the first."""

    backends: tuple[tuple[str, str], ...]
    text: str


@dataclasses.dataclass(frozen=True, slots=True)
class Pieces:
    """The text up to the services, each of them, and what comes after."""

    before: str
    services: tuple[str, ...]
    after: str
    indent: str

    def digests(self) -> list[str]:
        """What each service's text is known by."""
        return [
            hashlib.blake2b(piece.encode(), digest_size=DIGEST_BYTES).hexdigest()
            for piece in self.services
        ]

    def rows(self, known: Collection[int]) -> dict[int, Rows]:
        """The plain backends of the services that are not known, by place."""
        others = ((i, piece) for i, piece in enumerate(self.services) if i not in known)
        found = ((place, _rows_of(piece, self.indent)) for place, piece in others)
        return {place: rows for place, rows in found if rows is not None}

    def without(self, known: Collection[int], rows: Mapping[int, Rows]) -> str | None:
        """The text, every line where it was, with nothing in the place of the services known, and
        of `rows` only the first.

        None where one of the others may be more than it seems.
        """
        parts = [self.before]
        for place, piece in enumerate(self.services):
            if place in known:
                parts.append(f"{self.indent}- 0" + "\n" * piece.count("\n"))
                continue
            piece = rows[place].text if place in rows else piece
            if LONG.search(piece) or not all(map(_is_closed, piece.splitlines())):
                return None
            parts.append(piece)
        return "".join((*parts, self.after))


def _rows_of(piece: str, indent: str) -> Rows | None:
    """The plain backends of a service, None where it has others, or fewer than two."""
    head = f"\n{indent}  backends:\n"
    at = piece.find(head)
    block = ROWS.match(piece, at + len(head)) if at >= 0 else None
    if block is None or len(block[1]) < len(indent) + 2:
        return None
    # then the end, or another key of the service
    if not re.compile(rf"(?:[ ]*(?:#.*)?\n)*(?:{indent}  [a-z]|\Z)").match(piece, block.end()):
        return None
    backends = tuple(EACH_ROW.findall(block[0]))
    first = piece.index("\n", block.start()) + 1
    text = piece[:first] + "\n" * (len(backends) - 1) + piece[block.end() :]
    return Rows(backends, text)


def _is_closed(line: str) -> bool:
    """No quoted text goes on in the next line."""
    return line.count('"') % 2 == 0 and line.count("'") % 2 == 0


def split(text: str) -> Pieces | None:
    """The pieces of a file, None for one that is to be read as a whole."""
    if not text.endswith("\n") or any(map(f"\n{text}".__contains__, ELSEWHERE)):
        return None
    heads = list(HEAD.finditer(text))
    if len(heads) != 1:
        return None
    start = heads[0].end()
    first = FIRST.match(text, start)
    if first is None:
        return None
    indent = first.group(1)
    following = NEXT_KEY.search(text, start)
    end = following.start() + 1 if following else len(text)
    # with the newline before it, which is found faster than the start of a line
    starts = [m.start() + 1 for m in re.finditer(f"\n{indent}- ", text[start - 1 : end])]
    bounds = [*(start - 1 + at for at in starts), end]
    services = tuple(text[a:b] for a, b in itertools.pairwise(bounds))
    return Pieces(text[: bounds[0]], services, text[end:], indent)

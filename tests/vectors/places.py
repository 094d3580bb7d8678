"""A vectors file as values that know where they stand, so that every complaint names its place."""

from __future__ import annotations

import dataclasses
import difflib
import ipaddress
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import yaml

# what any case may have beside what it says: remarks for its readers
REMARKS = frozenset({"verified", "derived", "note", "comment", "why", "text"})
T = TypeVar("T")


class VectorsError(Exception):
    """A file that cannot be read: what is wrong, and where."""


@dataclasses.dataclass(frozen=True)
class Node:
    """A value of the file, with its path and line."""

    value: Any
    path: str
    line: int

    def error(self, message: str) -> VectorsError:
        """A complaint about this value."""
        return VectorsError(f"line {self.line}: {self.path}: {message}")

    def read(self, parse: Callable[[str], T], text: str | None = None) -> T:
        """What `parse` makes of this text, or of another one that belongs here.

        What it does not understand is told with the place.
        """
        try:
            return parse(self.text() if text is None else text)
        except ValueError as err:
            raise self.error(str(err)) from None

    # ----------------------------------------------------------------------------- scalars

    def text(self) -> str:
        """A text, or a number as one."""
        if isinstance(self.value, bool) or not isinstance(self.value, str | int | float):
            raise self.error(f"{self.value!r} is no text")
        return str(self.value)

    def whole(self) -> int:
        """A whole number that is not negative."""
        if isinstance(self.value, bool) or not isinstance(self.value, int) or self.value < 0:
            raise self.error(f"{self.value!r} is no whole number")
        return self.value

    def number(self) -> float:
        """A number, of seconds for example."""
        if isinstance(self.value, bool) or not isinstance(self.value, int | float):
            raise self.error(f"{self.value!r} is no number")
        return self.value

    def switch(self) -> bool:
        """A truth, also written 0 or 1."""
        if self.value not in (True, False):
            raise self.error(f"{self.value!r} is neither true nor false")
        return bool(self.value)

    def address(self) -> str:
        """An address, in its usual form."""
        try:
            return str(ipaddress.ip_address(self.text()))
        except ValueError:
            raise self.error(f"{self.value!r} is no address") from None

    # -------------------------------------------------------------------------- collections

    def entries(self) -> list[Node]:
        """The members of a list."""
        if not isinstance(self.value, list):
            raise self.error(f"{self.value!r} is no list")
        return self.value

    def words(self) -> tuple[str, ...]:
        """A list of texts; a single text stands for a list of one."""
        if isinstance(self.value, list):
            return tuple(entry.text() for entry in self.value)
        return (self.text(),)

    def fields(self, known: Iterable[str] | None = None) -> dict[str, Node]:
        """The fields of a mapping without remarks; any that is not among `known` is refused."""
        if not isinstance(self.value, dict):
            raise self.error(f"{self.value!r} is no mapping")
        wanted = None if known is None else {*known}
        for name, node in self.value.items():
            if wanted is not None and name not in wanted | REMARKS:
                raise node.error(f"{name!r} is not known here ({_known(name, wanted)})")
        kept = REMARKS - (wanted or set())
        return {name: node for name, node in self.value.items() if name not in kept}

    def remark(self, name: str) -> str:
        """A remark of the mapping, empty where there is none."""
        node = self.value.get(name) if isinstance(self.value, dict) else None
        return str(node.value) if node else ""


def _known(name: str, wanted: set[str]) -> str:
    close = difflib.get_close_matches(name, wanted, 1)
    return f"did you mean {close[0]!r}?" if close else ", ".join(sorted(wanted))


def load(path: Path) -> Node:
    """The whole file; VectorsError where it cannot be opened or is no YAML."""
    try:
        tree = yaml.compose(path.read_text(encoding="utf-8"), Loader=yaml.CSafeLoader)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as err:
        raise VectorsError(" ".join(str(err).split())) from None
    if tree is None:
        raise VectorsError("there is nothing in it")
    return _node(tree, "", yaml.CSafeLoader(""))


def parse(text: str) -> Node:
    """A text of YAML by itself."""
    return _node(yaml.compose(text, Loader=yaml.CSafeLoader), "", yaml.CSafeLoader(""))


def _node(tree: Any, path: str, loader: Any) -> Node:
    line = tree.start_mark.line + 1
    if isinstance(tree, yaml.SequenceNode):
        value: Any = [_node(n, f"{path}[{i}]", loader) for i, n in enumerate(tree.value)]
    elif isinstance(tree, yaml.MappingNode):
        value = dict(_pairs(tree, path, loader))
        if len(value) < len(tree.value):
            raise VectorsError(f"line {line}: {path or 'the file'}: a key stands there twice")
    else:
        value = loader.construct_object(tree)
    return Node(value, path or "the file", line)


def _pairs(tree: yaml.MappingNode, path: str, loader: Any) -> Iterator[tuple[str, Node]]:
    for key, value in tree.value:
        name = str(loader.construct_object(key))
        yield name, _node(value, f"{path}.{name}" if path else name, loader)

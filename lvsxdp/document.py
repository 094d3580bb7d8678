"""YAML piece by piece, each piece with its place and its faults; the only module with yaml."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import re
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import yaml

from lvsxdp.checks import Finding
from lvsxdp.errors import ConfigError
from lvsxdp.scalars import did_you_mean, quote

T = TypeVar("T")

# What YAML may make of a scalar in a place; text in quotes is welcome everywhere.
TEXT = frozenset({"str"})
NUMBER = frozenset({"str", "int"})
SWITCH = frozenset({"str", "int", "bool"})

MAX_DEPTH = 32
# What is longer than the keys of a configuration is most often there once.
REPEATED = 9
RESOLVE: Any = yaml.resolver.Resolver.resolve
YAML_TAG = "tag:yaml.org,2002:"
# What YAML makes of a file in which nobody wrote a tag.
PLAIN_TAGS = frozenset(
    YAML_TAG + name
    for name in (
        *("map", "seq", "str", "int", "float"),
        *("bool", "null", "timestamp", "value", "merge"),
    )
)


# ---- from YAML ----


@dataclasses.dataclass(slots=True)
class Report:
    """The faults found so far, and the line of every place that was visited."""

    origin: str
    faults: list[Finding] = dataclasses.field(default_factory=list)
    places: dict[str, int] = dataclasses.field(default_factory=dict)

    def lines(self, findings: list[Finding]) -> list[str]:
        """Findings in words, in the order of their lines."""
        numbered = sorted(
            ((self._line(place), place, message) for place, message in findings),
            key=lambda finding: finding[0],
        )
        return [
            f"{self.origin}:{line}: {place + ': ' if place else ''}{message}"
            for line, place, message in numbered
        ]

    def _line(self, place: str) -> int:
        """The line of the place, or of the nearest place around it that stands in the file."""
        while place and place not in self.places:
            place = place[: max(place.rfind("."), place.rfind("["), 0)]
        return self.places.get(place, 1)


@dataclasses.dataclass(frozen=True, slots=True)
class Item:
    """A piece of the file and its place."""

    node: yaml.Node
    place: str
    report: Report

    def __post_init__(self) -> None:
        self.report.places[self.place] = self.node.start_mark.line + 1

    def fault(self, message: str) -> None:
        """Notes what is wrong here."""
        self.report.faults.append((self.place, message))

    def child(self, node: yaml.Node, suffix: str) -> Item:
        """A piece of this piece."""
        return Item(node, f"{self.place}{suffix}", self.report)


def compose(text: str, origin: str) -> yaml.Node:
    """The one document of the text, as nodes that keep their line and their writing."""
    try:
        documents = _documents(text)
    except yaml.MarkedYAMLError as err:
        raise ConfigError(_syntax_fault(err, text, origin)) from err
    except yaml.reader.ReaderError as err:
        line = text.count("\n", 0, err.position) + 1
        what = f"the character U+{err.character:04X} has no place in YAML; leave it out"
        raise ConfigError(f"{origin}:{line}: {what}") from err
    except _TooDeepError as err:
        what = f"lists and mappings are nested more than {MAX_DEPTH} deep; a configuration needs 6"
        raise ConfigError(f"{origin}:{err}: {what}") from err
    if not documents or _tag(documents[0]) == "null":
        raise ConfigError(f"{origin}:1: the file is empty; {{}} is a configuration of nothing")
    if len(documents) > 1:
        line = documents[1].start_mark.line + 1
        raise ConfigError(f"{origin}:{line}: a second document starts here; leave out the ---")
    node: yaml.Node = documents[0]
    return node


class _TooDeepError(Exception):
    """A file is nested deeper than a configuration can be; carries the line."""


class _Shallow:
    """What both loaders do at each node: libyaml's would go on until the stack is full."""

    _depth = 0
    _tags: dict[tuple[str, object], str] | None = None

    def resolve(self, kind: type[yaml.Node], value: str, implicit: tuple[bool, bool]) -> str:
        """The tag of a node; what is short comes again and again, and is remembered."""
        if kind is not yaml.ScalarNode or len(value) > REPEATED:
            return str(RESOLVE(self, kind, value, implicit))
        if self._tags is None:
            self._tags = {}
        tag = self._tags.get((value, implicit))
        if tag is None:
            tag = self._tags[value, implicit] = str(RESOLVE(self, kind, value, implicit))
        return tag

    def descend_resolver(self, node: yaml.Node | None, _: object) -> None:
        self._depth += 1
        if node is not None and self._depth > MAX_DEPTH:
            raise _TooDeepError(node.start_mark.line + 1)

    def ascend_resolver(self) -> None:
        self._depth -= 1


class _Loader(_Shallow, yaml.SafeLoader):
    """PyYAML's own."""


@functools.cache
def _fast_loader() -> type[yaml.CSafeLoader]:
    """Libyaml's, which not every PyYAML has."""
    return type("_FastLoader", (_Shallow, yaml.CSafeLoader), {})


def _documents(text: str) -> list[yaml.Node]:
    """What libyaml makes of the text; where it objects or is not there, PyYAML's own parser has it.

    The one is several times as fast, the other has the better messages.
    """
    if yaml.__with_libyaml__:
        # the other objects to what is no text at all, too, and in words
        with contextlib.suppress(yaml.YAMLError, UnicodeError):
            return list(yaml.compose_all(text, _fast_loader()))
    return list(yaml.compose_all(text, _Loader))


def _syntax_fault(err: yaml.MarkedYAMLError, text: str, origin: str) -> str:
    mark = err.problem_mark or err.context_mark
    if mark is None:
        return f"{origin}:1: this is not YAML: {err.problem}"
    place = f"{origin}:{mark.line + 1}"
    rows = text.splitlines()
    if mark.line < len(rows) and rows[mark.line][mark.column : mark.column + 1] == "\t":
        return f"{place}: there is a tab; YAML is indented with spaces"
    return f"{place}: this is not YAML, column {mark.column + 1}: {err.problem}"


def _tag(node: yaml.Node) -> str:
    return str(node.tag).rpartition(":")[2]


def _has_foreign_tag(item: Item) -> bool:
    """Whether somebody wrote a tag that plain YAML does not have, which is a fault."""
    if item.node.tag in PLAIN_TAGS:
        return False
    tag = str(item.node.tag)
    shown = f"!!{tag.removeprefix(YAML_TAG)}" if tag.startswith(YAML_TAG) else tag
    item.fault(f"the tag {quote(shown)} means nothing here; leave it out")
    return True


def fields_of(item: Item, known: tuple[str, ...]) -> dict[str, Item] | None:
    """The values of a mapping by their keys; None, with a fault, for anything else."""
    if _has_foreign_tag(item):
        return None
    if not isinstance(item.node, yaml.MappingNode):
        keys = ", ".join(known)
        item.fault(f"{_shape(item.node)} stands where a mapping belongs, with keys of: {keys}")
        return None
    fields: dict[str, Item] = {}
    for key_node, value_node in item.node.value:
        key = key_node.value if isinstance(key_node, yaml.ScalarNode) else _shape(key_node)
        if key in known and key not in fields:
            fields[key] = item.child(value_node, f".{key}" if item.place else key)
            continue
        shown = key if re.fullmatch(r"[\w-]{1,60}|a list|a mapping", key, re.ASCII) else quote(key)
        suffix = f".{shown}" if item.place else shown
        if key not in known:
            item.child(key_node, suffix).fault(f"is no key here; {_remedy(key, known)}")
        else:
            again = f"is given again in line {key_node.start_mark.line + 1}"
            fields[key].fault(f"{again}; YAML would keep only the last, leave one out")
    return fields


def _remedy(key: str, known: tuple[str, ...]) -> str:
    """What to do about a key that is none."""
    if key == "<<":
        return "merge keys do not work, write out what is meant"
    if key.isdecimal():
        return f"a number has no comma; {did_you_mean(key, known)}"
    return did_you_mean(key.lower(), known)


def _shape(node: yaml.Node) -> str:
    if isinstance(node, yaml.SequenceNode):
        return "a list"
    if isinstance(node, yaml.MappingNode):
        return "a mapping"
    return "nothing" if _tag(node) == "null" else quote(node.value)


def items_of(item: Item | None) -> list[Item]:
    """The items of a list; an empty list, with a fault, for anything else."""
    if item is None or _has_foreign_tag(item):
        return []
    if not isinstance(item.node, yaml.SequenceNode):
        item.fault(f"{_shape(item.node)} stands where a list belongs; an empty list is []")
        return []
    return [item.child(node, f"[{index}]") for index, node in enumerate(item.node.value)]


def one_or_more(item: Item) -> list[Item]:
    """The items of a list; a scalar stands for a list of one."""
    return [item] if isinstance(item.node, yaml.ScalarNode) else items_of(item)


def value_of(
    fields: Mapping[str, Item],
    key: str,
    parse: Callable[[str], T],
    default: T,
    accepts: frozenset[str] = TEXT,
) -> T:
    """The value of the key; the default where it is absent, or faulty and told so."""
    if key not in fields:
        return default
    value = scalar(fields[key], parse, accepts)
    return default if value is None else value


def scalar(item: Item, parse: Callable[[str], T], accepts: frozenset[str]) -> T | None:
    """The value of a scalar; None, with a fault, where its text or YAML's reading is wrong."""
    if not isinstance(item.node, yaml.ScalarNode):
        item.fault(f"{_shape(item.node)} stands where one value belongs")
        return None
    if _has_foreign_tag(item):
        return None
    node = item.node
    trap = _trap(node.tag, node.value, accepts)
    try:
        value = parse(item.node.value)
    except ConfigError as err:
        item.fault(f"{err}; YAML reads it as {trap}" if trap else str(err))
        return None
    if trap:
        raw = item.node.value
        item.fault(f"YAML reads {raw} as {trap}; write {quote(raw)}, in quotes")
        return None
    return value


# of very many backends most have the same few weights
@functools.lru_cache(maxsize=1024)
def _trap(tag: str, text: str, accepts: frozenset[str]) -> str:
    """What YAML makes of a scalar where that is not what it says, else nothing."""
    node = yaml.ScalarNode(tag, text)
    tag = _tag(node)
    if tag == "str":
        return ""
    try:
        value = _constructor().construct_object(node)
        written = str(value)
    except (ValueError, LookupError, AttributeError, yaml.YAMLError):
        return f"a malformed {tag}"
    finally:
        # it would keep every node
        _constructor().constructed_objects.clear()
        _constructor().recursive_objects.clear()
    if tag in accepts and (isinstance(value, bool) or written == node.value):
        return ""
    if value is None:
        return "nothing"
    if isinstance(value, bool | int):
        return "a number" if written == node.value else written.lower()
    return f"a {tag}, {written}"


@functools.cache
def _constructor() -> yaml.SafeLoader:
    return yaml.SafeLoader("")


def values_of(
    items: list[Item], parse: Callable[[str], T], accepts: frozenset[str] = TEXT
) -> tuple[T, ...]:
    """The values of all items, each of which may stand there once."""
    values: list[T] = []
    for item in items:
        value = scalar(item, parse, accepts)
        if value is not None and value in values:
            item.fault(f"{quote(item.node.value)} is listed twice")
        elif value is not None:
            values.append(value)
    return tuple(values)


def is_scalar(item: Item) -> bool:
    """Whether one value stands there."""
    return isinstance(item.node, yaml.ScalarNode)


def is_switch(item: Item) -> bool:
    """Whether YAML takes what stands there for true or false."""
    return is_scalar(item) and _tag(item.node) == "bool"


def is_empty_list(item: Item) -> bool:
    """Whether a list of nothing stands there."""
    return isinstance(item.node, yaml.SequenceNode) and not item.node.value


# ---- to YAML ----


class FlowMapping(dict[str, object]):
    """A mapping that is written on one line."""


class FlowList(list[object]):
    """A list that is written on one line."""


class _Dumper(yaml.SafeDumper):
    pass


def _represent_row(dumper: yaml.SafeDumper, row: FlowMapping) -> yaml.Node:
    return dumper.represent_mapping("tag:yaml.org,2002:map", row.items(), flow_style=True)


def _represent_list(dumper: yaml.SafeDumper, values: FlowList) -> yaml.Node:
    return dumper.represent_sequence("tag:yaml.org,2002:seq", values, flow_style=True)


_Dumper.add_representer(FlowMapping, _represent_row)
_Dumper.add_representer(FlowList, _represent_list)


def to_yaml(tree: Mapping[str, object]) -> str:
    """The tree as YAML in the order of its keys."""
    return str(
        yaml.dump(dict(tree), Dumper=_Dumper, sort_keys=False, width=100, allow_unicode=True)
    )

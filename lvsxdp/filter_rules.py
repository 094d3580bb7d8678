"""Rules of nftables and iptables that balanced packets do not pass, against what one may expect."""

from __future__ import annotations

import bisect
import contextlib
import dataclasses
import ipaddress
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from lvsxdp.model import Address, AddressKey, Config, MarkKey, Network

MOST_WARNINGS = 16

Range = tuple[Address, Address]


@dataclasses.dataclass(frozen=True, slots=True)
class FilterRule:
    """A rule by its place, the ranges of addresses that it names, and the marks that it sets."""

    place: str
    ranges: tuple[Range, ...] = ()
    marks: frozenset[int] = frozenset()


# ------------------------------------------------------------------------------------- deciding


def warnings(rules: Iterable[FilterRule], config: Config) -> list[str]:
    """A line for each rule that names an address which is balanced, or sets a service's mark."""
    addresses, marks = _Balanced(config), _service_marks(config)
    found = [line for rule in rules for line in _warnings_of(rule, addresses, marks)]
    if len(found) > MOST_WARNINGS:
        more = len(found) - MOST_WARNINGS
        found[MOST_WARNINGS:] = [f"{more} more rules of nft or iptables name what is balanced"]
    return found


def _warnings_of(rule: FilterRule, addresses: _Balanced, marks: frozenset[int]) -> Iterator[str]:
    named = next((one for one in rule.ranges if addresses.has_any_of(one)), None)
    if named is not None:
        yield f"{rule.place} names {_range(named)}: packets that are balanced do not pass it"
    for mark in sorted(rule.marks & marks):
        yield (
            f"{rule.place} sets mark {mark} too late: packets are balanced before it, by the "
            "marks of lvsxdp's own rules (lvsxdp mark list)"
        )


def _range(named: Range) -> str:
    return str(named[0]) if named[0] == named[1] else f"{named[0]}-{named[1]}"


def _service_marks(config: Config) -> frozenset[int]:
    return frozenset(s.key.mark for s in config.services if isinstance(s.key, MarkKey))


class _Balanced:
    """The addresses of services, and of the rules that give a service's mark."""

    def __init__(self, config: Config) -> None:
        found: dict[int, list[tuple[int, int]]] = {4: [], 6: []}
        for first, last in _balanced(config):
            found[first.version].append((int(first), int(last)))
        self._ranges = {version: _disjoint(ranges) for version, ranges in found.items()}

    def has_any_of(self, named: Range) -> bool:
        ranges = self._ranges[named[0].version]
        after = bisect.bisect_right(ranges, (int(named[1]), 2**128))
        return after > 0 and ranges[after - 1][1] >= int(named[0])


def _balanced(config: Config) -> Iterator[Range]:
    marks = _service_marks(config)
    for service in config.services:
        if isinstance(service.key, AddressKey):
            yield service.key.address, service.key.address
    for rule in config.marks:
        for network in rule.addresses if rule.mark in marks else ():
            if network.prefixlen:
                yield _range_of(network)


def _disjoint(ranges: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """The same numbers in ranges that do not overlap, in order."""
    found: list[tuple[int, int]] = []
    for first, last in sorted(ranges):
        if found and first <= found[-1][1]:
            found[-1] = found[-1][0], max(found[-1][1], last)
        else:
            found.append((first, last))
    return found


def _range_of(network: Network) -> Range:
    return network.network_address, network.broadcast_address


# ------------------------------------------------------------------------- what nft prints as JSON


Sets = Mapping[str, list[Any]]


def nft_rules(listed: str) -> list[FilterRule]:
    """The rules that `nft -j list ruleset` printed; sets and maps count where a rule uses them."""
    entries = json.loads(listed)["nftables"]
    sets: dict[tuple[str, str], dict[str, list[Any]]] = {}
    for entry in entries:
        for body in (entry[kind] for kind in ("set", "map") if kind in entry):
            of_table = sets.setdefault((body["family"], body["table"]), {})
            of_table[f"@{body['name']}"] = body.get("elem", [])
    rules = (entry["rule"] for entry in entries if "rule" in entry)
    return [_nft_rule(rule, sets.get((rule["family"], rule["table"]), {})) for rule in rules]


def _nft_rule(rule: dict[str, Any], sets: Sets) -> FilterRule:
    words = (rule[key] for key in ("family", "table", "chain"))
    expressions = rule.get("expr", [])
    marks = (mark for one in expressions for mark in _nft_marks(one, sets))
    return FilterRule(
        f"nft rule {' '.join(words)} handle {rule['handle']}",
        tuple(_nft_ranges(expressions, sets)),
        frozenset(marks),
    )


def _nft_ranges(node: Any, sets: Sets) -> Iterator[Range]:
    """The addresses, prefixes and ranges anywhere in a JSON value and the sets that it uses."""
    if isinstance(node, str):
        known = sets.get(node)
        yield from _prefix(node) if known is None else _nft_ranges(known, sets)
    elif isinstance(node, list):
        for one in node:
            yield from _nft_ranges(one, sets)
    elif isinstance(node, dict) and "prefix" in node:
        yield from _prefix(f"{node['prefix'].get('addr')}/{node['prefix'].get('len')}")
    elif isinstance(node, dict) and "range" in node:
        ends = [one for end in node["range"] for one in _prefix(str(end))]
        if len(ends) == 2:
            yield ends[0][0], ends[1][1]
    elif isinstance(node, dict):
        found = (one for value in node.values() for one in _nft_ranges(value, sets))
        # a network of clients is no service's address because that is in it
        yield from (one for one in found if one[0] == one[1] or not _is_of_sources(node))


def _is_of_sources(node: dict[str, Any]) -> bool:
    """Whether it compares the source address and nothing else."""
    left = node.get("left")
    return isinstance(left, dict) and left.get("payload", {}).get("field") == "saddr"


def _prefix(text: str) -> Iterator[Range]:
    """The addresses of `192.0.2.10` or `192.0.2.0/24`; nothing of all else, and of /0."""
    with contextlib.suppress(ValueError):
        network = ipaddress.ip_network(text, strict=False)
        if network.prefixlen:
            yield _range_of(network)


def _nft_marks(expression: Any, sets: Sets) -> Iterator[int]:
    """The marks that a statement gives packets."""
    mangle = expression.get("mangle") if isinstance(expression, dict) else None
    if mangle and mangle["key"] == {"meta": {"key": "mark"}}:
        yield from _nft_numbers(mangle["value"], sets)


def _nft_numbers(value: Any, sets: Sets) -> Iterator[int]:
    """A number, one that is added by `or`, or those of a map."""
    if isinstance(value, int):
        yield value
    elif isinstance(value, dict) and "|" in value:
        yield from (number for one in value["|"] for number in _nft_numbers(one, sets))
    elif isinstance(value, dict) and "map" in value:
        data = value["map"]["data"]
        pairs = sets.get(data, []) if isinstance(data, str) else data["set"]
        yield from (number for _, one in pairs for number in _nft_numbers(one, sets))


# --------------------------------------------------------------------- what iptables-save prints

_CHAIN = re.compile(r"-A (\S+) ")
_ADDRESSES = re.compile(r"(-s|-d|--to-destination|--to-source) \[?([0-9a-fA-F.:/]+)")
_SET_MARK = re.compile(r"--set-x?mark (0x[0-9a-fA-F]+|\d+)")


def iptables_rules(program: str, listed: str) -> list[FilterRule]:
    """The rules that `iptables-save` or its like printed."""
    table, found, count = "", [], dict[str, int]()
    for line in listed.splitlines():
        if line.startswith("*"):
            table, count = line[1:], {}
        chain = _CHAIN.match(line)
        if chain:
            number = count[chain[1]] = count.get(chain[1], 0) + 1
            place = f"{program} -t {table} rule {chain[1]} {number}"
            found.append(_iptables_rule(place, line))
    return found


def _iptables_rule(place: str, line: str) -> FilterRule:
    ranges = []
    for option, text in _ADDRESSES.findall(line):
        for one in (*_prefix(text), *_prefix(text.rpartition(":")[0])):
            if option != "-s" or one[0] == one[1]:
                ranges.append(one)
    marks = frozenset(int(mark, 0) for mark in _SET_MARK.findall(line))
    return FilterRule(place, tuple(ranges), marks)

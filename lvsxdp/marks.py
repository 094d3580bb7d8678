"""Mark rules as rows: what the data plane looks up, and a plain reference of what they mean."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Mapping

from lvsxdp.errors import ConflictError
from lvsxdp.model import Address, MarkRule, Network, Ports, Protocol

MAX_ORDERED = 64
EVERY_PORT = Ports(0, 65535)


@dataclasses.dataclass(frozen=True, slots=True)
class Packet:
    """What classification sees of a packet; `vlan` None is untagged."""

    protocol: Protocol
    source: Address
    destination: Address
    port: int
    interface: str
    vlan: int | None
    source_mac: str


@dataclasses.dataclass(frozen=True, slots=True)
class ExactKey:
    """What a row of one address and one port is found by."""

    protocol: Protocol
    address: Address
    port: int


@dataclasses.dataclass(frozen=True, slots=True)
class Verdict:
    """The mark of a row, and the index of its rule among all rules."""

    mark: int
    position: int


@dataclasses.dataclass(frozen=True, slots=True)
class OrderedRule:
    """A row that is compared in order; None, and EVERY_PORT, do not restrict."""

    position: int
    mark: int
    protocols: tuple[Protocol, ...]
    destination: Network | None
    source: Network | None
    ports: Ports
    source_mac: str | None
    interface: str | None
    vlan: int | None


@dataclasses.dataclass(frozen=True, slots=True)
class RuleTable:
    """The rows of all rules: those found by hash, and those compared in order."""

    exact: Mapping[ExactKey, Verdict]
    ordered: tuple[OrderedRule, ...]


def expand(rules: tuple[MarkRule, ...]) -> RuleTable:
    """The rows of the rules; ConflictError when more than MAX_ORDERED must be compared."""
    exact: dict[ExactKey, Verdict] = {}
    ordered: list[OrderedRule] = []
    for position, rule in enumerate(rules):
        for row in _rows(position, rule):
            keys = _exact_keys(row)
            for key in keys:
                exact.setdefault(key, Verdict(row.mark, row.position))
            if not keys:
                ordered.append(row)
    if len(ordered) > MAX_ORDERED:
        raise ConflictError(_too_many(len(ordered)))
    return RuleTable(exact, tuple(ordered))


def first_match(rules: tuple[MarkRule, ...], packet: Packet) -> int | None:
    """The mark of the first rule that the packet matches, None without one: what rules mean."""
    return next((rule.mark for rule in rules if _matches(rule, packet)), None)


def look_up(table: RuleTable, packet: Packet) -> int | None:
    """The mark that the data plane finds: by hash and in order, the lower position wins."""
    key = ExactKey(packet.protocol, packet.destination, packet.port)
    found = table.exact.get(key)
    row = next((row for row in table.ordered if _fits(row, packet)), None)
    if found is None or (row is not None and row.position < found.position):
        return row.mark if row else None
    return found.mark


def warnings(rules: tuple[MarkRule, ...]) -> list[str]:
    """One line for each rule that no packet can reach, because earlier rules take all of it.

    A range that only several earlier ranges cover together is not noticed.
    """
    exact: dict[ExactKey, int] = {}
    ordered: list[OrderedRule] = []
    lines = []
    for position, rule in enumerate(rules):
        rows = list(_rows(position, rule))
        takers = [_taker(row, p, exact, ordered) for row in rows for p in row.protocols]
        earlier = sorted({taker for taker in takers if taker is not None})
        if None not in takers and earlier:
            lines.append(f"marks[{position}]: {_unreached(rule, rules, earlier)}")
        for row in rows:
            keys = _exact_keys(row)
            for key in keys:
                exact.setdefault(key, position)
            if not keys:
                ordered.append(row)
    return lines


def _rows(position: int, rule: MarkRule) -> Iterator[OrderedRule]:
    """One row for each combination of the rule's conditions; protocols stay together."""
    combinations = itertools.product(
        rule.addresses or (None,),
        rule.sources or (None,),
        rule.ports or (EVERY_PORT,),
        rule.source_macs or (None,),
        rule.interfaces or (None,),
        rule.vlans or (None,),
    )
    for destination, source, ports, mac, interface, vlan in combinations:
        if destination and source and destination.version != source.version:
            continue
        yield OrderedRule(
            position, rule.mark, rule.protocols, destination, source, ports, mac, interface, vlan
        )


def _exact_keys(row: OrderedRule) -> list[ExactKey]:
    """The keys of a row of one address and one port that nothing else restricts, else none."""
    restricts = (row.source, row.source_mac, row.interface, row.vlan)
    if any(value is not None for value in restricts):
        return []
    return [key for p in row.protocols if (key := _point(row, p))]


def _point(row: OrderedRule, protocol: Protocol) -> ExactKey | None:
    """The one address and port that a row is about, None for more than one."""
    to = row.destination
    if to is None or to.prefixlen != to.max_prefixlen or row.ports.first != row.ports.last:
        return None
    return ExactKey(protocol, to.network_address, row.ports.first)


def _matches(rule: MarkRule, packet: Packet) -> bool:
    return (
        packet.protocol in rule.protocols
        and (not rule.addresses or any(packet.destination in n for n in rule.addresses))
        and (not rule.sources or any(packet.source in n for n in rule.sources))
        and (not rule.ports or any(p.first <= packet.port <= p.last for p in rule.ports))
        and (not rule.source_macs or packet.source_mac in rule.source_macs)
        and (not rule.interfaces or packet.interface in rule.interfaces)
        and (not rule.vlans or packet.vlan in rule.vlans)
    )


def _fits(row: OrderedRule, packet: Packet) -> bool:
    return (
        packet.protocol in row.protocols
        and (row.destination is None or packet.destination in row.destination)
        and (row.source is None or packet.source in row.source)
        and row.ports.first <= packet.port <= row.ports.last
        and row.source_mac in (None, packet.source_mac)
        and row.interface in (None, packet.interface)
        and row.vlan in (None, packet.vlan)
    )


def _taker(
    row: OrderedRule,
    protocol: Protocol,
    exact: Mapping[ExactKey, int],
    ordered: list[OrderedRule],
) -> int | None:
    """The position of an earlier rule that takes all packets of this protocol from the row."""
    point = _point(row, protocol)
    if point is not None and point in exact:
        return exact[point]
    return next((wide.position for wide in ordered if _covers(wide, row, protocol)), None)


def _covers(wide: OrderedRule, row: OrderedRule, protocol: Protocol) -> bool:
    return (
        protocol in wide.protocols
        and _is_within(row.destination, wide.destination)
        and _is_within(row.source, wide.source)
        and wide.ports.first <= row.ports.first
        and row.ports.last <= wide.ports.last
        and wide.source_mac in (None, row.source_mac)
        and wide.interface in (None, row.interface)
        and wide.vlan in (None, row.vlan)
    )


def _is_within(inner: Network | None, outer: Network | None) -> bool:
    if outer is None or inner is None:
        return outer is None
    return inner.prefixlen >= outer.prefixlen and inner.network_address in outer


def _unreached(rule: MarkRule, rules: tuple[MarkRule, ...], earlier: list[int]) -> str:
    same = next((index for index in earlier if rules[index] == rule), None)
    if same is not None:
        return f"repeats marks[{same}]; leave one of them out"
    names = " and ".join(f"marks[{index}]" for index in earlier)
    return f"is never reached, after {names}; move it up or leave it out"


def _too_many(count: int) -> str:
    return (
        f"the rules need {count} rows that are compared in order, and {MAX_ORDERED} is the most; "
        "one address with one port and no other condition needs none"
    )

"""Mark rules as rows: what the data plane looks up, and a plain reference of what they mean."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Mapping

from lvsxdp.model import Address, MarkRule, Network, Ports, Protocol
from lvsxdp.rule_index import RuleIndex

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
class RuleTable:
    """All rules: the rows found by hash, and with their indices those that take more than that."""

    exact: Mapping[ExactKey, Verdict]
    ordered: tuple[tuple[int, MarkRule], ...]


def expand(rules: tuple[MarkRule, ...]) -> RuleTable:
    """The rules by how the data plane finds them."""
    exact: dict[ExactKey, Verdict] = {}
    ordered = []
    for position, rule in enumerate(rules):
        if not is_exact(rule):
            ordered.append((position, rule))
            continue
        for address, ports, protocol in itertools.product(
            rule.addresses, rule.ports, rule.protocols
        ):
            key = ExactKey(protocol, address.network_address, ports.first)
            exact.setdefault(key, Verdict(rule.mark, position))
    return RuleTable(exact, tuple(ordered))


def is_exact(rule: MarkRule) -> bool:
    """It is nothing but single addresses with single ports."""
    return (
        bool(rule.addresses and rule.ports)
        and not (rule.sources or rule.source_macs or rule.interfaces or rule.vlans)
        and all(n.prefixlen == n.max_prefixlen for n in rule.addresses)
        and all(p.first == p.last for p in rule.ports)
    )


def is_by_target(rule: MarkRule) -> bool:
    """It looks at nothing but destination address, port and protocol."""
    return not (rule.sources or rule.source_macs or rule.interfaces or rule.vlans)


def targets(rule: MarkRule) -> Iterator[tuple[Network | None, Ports, tuple[Protocol, ...]]]:
    """Where packets go that the rule may match: networks, None for any, with ports."""
    versions = {network.version for network in rule.sources}
    for network, ports in itertools.product(rule.addresses or (None,), rule.ports or (EVERY_PORT,)):
        if network is None or not versions or network.version in versions:
            yield network, ports, rule.protocols


def first_match(rules: tuple[MarkRule, ...], packet: Packet) -> int | None:
    """The mark of the first rule that the packet matches, None without one: what rules mean."""
    return next((rule.mark for rule in rules if _matches(rule, packet)), None)


def warnings(rules: tuple[MarkRule, ...]) -> list[str]:
    """One line for each rule that no packet can reach, because earlier rules take all of it.

    A range that only several earlier ranges cover together is not noticed.
    """
    index = RuleIndex(rules)
    lines = []
    for position, rule in enumerate(rules):
        takers = {_taker(row, rules, position, index) for row in _rows(rule)}
        earlier = sorted(taker for taker in takers if taker is not None)
        if None not in takers and earlier:
            lines.append(f"marks[{position}]: {_unreached(rule, rules, earlier)}")
    return lines


@dataclasses.dataclass(frozen=True, slots=True)
class _Row:
    """One combination of a rule's conditions; None, and EVERY_PORT, do not restrict."""

    protocol: Protocol
    destination: Network | None
    source: Network | None
    ports: Ports
    source_mac: str | None
    interface: str | None
    vlan: int | None


def _rows(rule: MarkRule) -> Iterator[_Row]:
    """One row for each combination of the rule's conditions that a packet can meet."""
    combinations = itertools.product(
        rule.protocols,
        rule.addresses or (None,),
        rule.sources or (None,),
        rule.ports or (EVERY_PORT,),
        rule.source_macs or (None,),
        rule.interfaces or (None,),
        rule.vlans or (None,),
    )
    for combination in combinations:
        row = _Row(*combination)
        if not (row.destination and row.source and row.destination.version != row.source.version):
            yield row


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


def _taker(row: _Row, rules: tuple[MarkRule, ...], position: int, index: RuleIndex) -> int | None:
    """The first rule before this position that takes every packet of the row."""
    rows = (1 << position) - 1
    rows &= index.protocols.around(row.protocol)
    rows &= index.destinations.around(row.destination)
    rows &= index.sources.around(row.source)
    rows &= index.interfaces.around(row.interface)
    rows &= index.vlans.around(row.vlan)
    rows &= index.source_macs.around(row.source_mac)
    rows &= index.ports.wide | (index.ports.at(row.ports.first) & index.ports.at(row.ports.last))
    while rows:
        taker = (rows & -rows).bit_length() - 1
        # both ends may be in ranges with a gap between them
        if not rules[taker].ports or any(_is_within(row.ports, p) for p in rules[taker].ports):
            return taker
        rows &= rows - 1
    return None


def _is_within(inner: Ports, outer: Ports) -> bool:
    return outer.first <= inner.first and inner.last <= outer.last


def _unreached(rule: MarkRule, rules: tuple[MarkRule, ...], earlier: list[int]) -> str:
    same = next((index for index in earlier if rules[index] == rule), None)
    if same is not None:
        return f"repeats marks[{same}]; leave one of them out"
    names = " and ".join(f"marks[{index}]" for index in earlier)
    return f"is never reached, after {names}; move it up or leave it out"

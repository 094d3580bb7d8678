"""Which mark rules name a value or all that is around it: sets of rules as bits of a number."""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Hashable, Iterable, Iterator, Sequence

from lvsxdp.model import MarkRule, Network, Ports


class Values:
    """For single values, such as interfaces: the rules that name each, and those that name none."""

    def __init__(self, named: Iterable[tuple[Hashable, ...]]) -> None:
        """What each rule names, in order; nothing stands for everything."""
        self.wide = 0
        self.of: dict[Hashable, int] = {}
        for place, values in enumerate(named):
            for value in values:
                self.of[value] = self.of.get(value, 0) | 1 << place
            if not values:
                self.wide |= 1 << place

    def around(self, value: Hashable | None) -> int:
        """The rules that fit the value; without one, those that fit every value."""
        return self.wide | (0 if value is None else self.of.get(value, 0))


class Prefixes:
    """For networks of both families: the rules by prefix length and address."""

    def __init__(self, named: Iterable[tuple[Network, ...]]) -> None:
        """What each rule names, in order; nothing stands for everything."""
        self.wide = 0
        self.own: dict[int, dict[int, dict[int, int]]] = {4: {}, 6: {}}
        self._known: dict[tuple[int, int, int], int] = {}
        for place, networks in enumerate(named):
            for network in networks:
                of_length = self.own[network.version].setdefault(network.prefixlen, {})
                address = int(network.network_address)
                of_length[address] = of_length.get(address, 0) | 1 << place
            if not networks:
                self.wide |= 1 << place

    def naming(self, version: int, address: int, length: int) -> int:
        """The rules that name a prefix or one that it is in."""
        key = version, address, length
        if key not in self._known:
            bits = 32 if version == 4 else 128
            found = 0
            for other, of_length in self.own[version].items():
                if other <= length:
                    found |= of_length.get(address >> (bits - other) << (bits - other), 0)
            self._known[key] = found
        return self._known[key]

    def around(self, network: Network | None) -> int:
        """The rules that fit all of the network; without one, those that fit every address."""
        if network is None:
            return self.wide
        address = int(network.network_address)
        return self.wide | self.naming(network.version, address, network.prefixlen)


class PortRanges:
    """For ports: the rules that fit each stretch of ports between two that differ."""

    def __init__(self, named: Iterable[tuple[Ports, ...]]) -> None:
        """What each rule names, in order; nothing stands for everything."""
        self.wide = 0
        changes: dict[int, int] = {}
        for place, ranges in enumerate(named):
            for first, last in _merged(ranges):
                changes[first] = changes.get(first, 0) ^ 1 << place
                changes[last + 1] = changes.get(last + 1, 0) ^ 1 << place
            if not ranges:
                self.wide |= 1 << place
        changes.setdefault(0, 0)
        self.starts = sorted(changes)
        self.rules = list(itertools.accumulate((changes[s] for s in self.starts), int.__xor__))

    def at(self, port: int) -> int:
        """The rules that name a port."""
        return self.rules[bisect.bisect_right(self.starts, port) - 1]


def _merged(ranges: Iterable[Ports]) -> Iterator[tuple[int, int]]:
    """The same ports in ranges that neither touch nor overlap."""
    begun: tuple[int, int] | None = None
    for ports in sorted(ranges, key=lambda ports: ports.first):
        if begun and ports.first <= begun[1] + 1:
            begun = begun[0], max(begun[1], ports.last)
            continue
        if begun:
            yield begun
        begun = ports.first, ports.last
    if begun:
        yield begun


class RuleIndex:
    """A list of rules, each dimension by itself."""

    def __init__(self, rules: Sequence[MarkRule]) -> None:
        """The bit of a rule is its place in the list."""
        self.count = len(rules)
        self.destinations = Prefixes(rule.addresses for rule in rules)
        self.sources = Prefixes(rule.sources for rule in rules)
        self.ports = PortRanges(rule.ports for rule in rules)
        self.interfaces = Values(rule.interfaces for rule in rules)
        self.vlans = Values(rule.vlans for rule in rules)
        self.source_macs = Values(rule.source_macs for rule in rules)
        self.protocols = Values(rule.protocols for rule in rules)

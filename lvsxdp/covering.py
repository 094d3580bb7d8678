"""Which listeners of this host a configuration takes the packets of: decided from values alone."""

from __future__ import annotations

import dataclasses
import functools
import ipaddress
from collections.abc import Iterable, Iterator, Sequence

from lvsxdp import marks
from lvsxdp.model import (
    ANY_PORT,
    FTP_PORT,
    Address,
    AddressKey,
    Config,
    Family,
    MarkKey,
    MarkRule,
    Protocol,
    Service,
)
from lvsxdp.rule_index import RuleIndex

FTP_DATA_PORT, FIRST_UNPRIVILEGED_PORT = 20, 1024


@dataclasses.dataclass(frozen=True, slots=True)
class Listener:
    """A socket that waits for clients at an address; 0.0.0.0 is every one of IPv4, :: every one."""

    protocol: Protocol
    address: Address
    port: int
    inode: int

    def reached_by(self, local: Iterable[Address]) -> Iterator[Address]:
        """Those of this host's addresses by which packets from outside reach it."""
        for address in local:
            is_its_own = address == self.address or (
                self.address.is_unspecified and address.version <= self.address.version
            )
            if is_its_own and not address.is_loopback:
                yield address


@dataclasses.dataclass(frozen=True, slots=True)
class Covered:
    """A listener, the address at which packets no longer reach it, and the place that takes them.

    The place is of the file: `marks[0]`, or `service web`.
    """

    listener: Listener
    address: Address
    place: str


def newly_covered(
    old: Config, new: Config, listeners: Iterable[Listener], local: Iterable[Address]
) -> list[Covered]:
    """For each listener that `new` takes packets of, and `old` does not, the first such address."""
    before, after = _Takers(old), _Takers(new)
    in_order = sorted(local, key=lambda address: (address.version, address))
    found = (_first_covered(before, after, one, in_order) for one in listeners)
    return [covered for covered in found if covered is not None]


def _first_covered(
    before: _Takers, after: _Takers, listener: Listener, local: Sequence[Address]
) -> Covered | None:
    if not after.may_take(listener.protocol, listener.port):
        return None
    for address in listener.reached_by(local):
        asked = listener.protocol, address, listener.port
        place = after.taker(*asked)
        if place is not None and before.taker(*asked) is None:
            return Covered(listener, address, place)
    return None


class _Takers:
    """What a configuration takes packets by, as bpf/mark.h and bpf/service.h find it."""

    def __init__(self, config: Config) -> None:
        self._rules = config.marks
        self._services = {
            (service.key.protocol, service.key.address, service.key.port): service
            for service in config.services
            if isinstance(service.key, AddressKey)
        }
        self._marks = {s.key for s in config.services if isinstance(s.key, MarkKey)}

    # not needed where nobody listens
    @functools.cached_property
    def _index(self) -> RuleIndex:
        return RuleIndex(self._rules)

    @functools.cached_property
    def _ports(self) -> set[tuple[Protocol, int]]:
        return {(protocol, port) for protocol, _, port in self._services}

    def _rules_of(self, protocol: Protocol, port: int) -> int:
        ports = self._index.ports
        return self._index.protocols.around(protocol) & (ports.wide | ports.at(port))

    def may_take(self, protocol: Protocol, port: int) -> bool:
        """Whether it takes such packets at some address or other."""
        named = {(protocol, port), (protocol, ANY_PORT), (Protocol.TCP, FTP_PORT)}
        return bool(self._ports & named or self._rules_of(protocol, port))

    def taker(self, protocol: Protocol, address: Address, port: int) -> str | None:
        """The place of what takes packets to there, all or some of them; None: nothing does."""
        to_there = self._index.destinations.around(ipaddress.ip_network(address))
        rules = self._rules_of(protocol, port) & to_there
        while rules:
            place = (rules & -rules).bit_length() - 1
            rules &= rules - 1
            rule = self._rules[place]
            if not _has_sources_of(rule, address):
                continue
            if MarkKey(rule.mark, Family.of(address)) in self._marks:
                return f"marks[{place}]"
            # a rule that looks at more may leave packets to those after it
            if marks.is_by_target(rule):
                if rule.mark == 0:
                    return None
                break
        service = self._service_at(protocol, address, port)
        return f"service {service}" if service else None

    def _service_at(self, protocol: Protocol, address: Address, port: int) -> Service | None:
        found = self._services.get((protocol, address, port))
        if found is None and protocol is Protocol.TCP and _may_be_ftp_data(port):
            found = self._services.get((protocol, address, FTP_PORT))
            if found and not found.persistence:
                return None
        return found or self._services.get((protocol, address, ANY_PORT))


def _has_sources_of(rule: MarkRule, address: Address) -> bool:
    """Whether packets to the address can come from where the rule wants them to."""
    return not rule.sources or any(source.version == address.version for source in rule.sources)


def _may_be_ftp_data(port: int) -> bool:
    return port == FTP_DATA_PORT or port >= FIRST_UNPRIVILEGED_PORT

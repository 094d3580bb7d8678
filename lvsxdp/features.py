"""Which features of the data plane a configuration uses, and so which are compiled in."""

from __future__ import annotations

import enum
from collections.abc import Iterable, Iterator, Mapping

from lvsxdp import locality, marks
from lvsxdp.model import (
    ANY_PORT,
    FTP_PORT,
    AddressKey,
    Config,
    Family,
    Features,
    Forward,
    MarkRule,
    Ports,
    Protocol,
    Service,
)

KEY_EXCHANGE_PORT = 500
EVERY_PORT = Ports(0, 65535)


class Feature(enum.StrEnum):
    """What the programs can be compiled without: FEATURE_* in bpf/config.h."""

    IPV4 = "ipv4"
    IPV6 = "ipv6"
    RULES = "rules"
    SCTP = "sctp"
    IPSEC = "ipsec"
    LOCALITY = "locality"
    NAT = "nat"
    SIP = "sip"
    TUNNEL = "tunnel"
    FULLNAT = "fullnat"
    FTP = "ftp"

    @property
    def define(self) -> str:
        """Its name in C."""
        return f"FEATURE_{self.name}"


EVERY = frozenset(Feature)
METHODS = {
    Forward.NAT: (Feature.NAT,),
    Forward.TUNNEL: (Feature.TUNNEL,),
    Forward.FULLNAT: (Feature.FULLNAT, Feature.NAT),
}


def features_of(config: Config) -> frozenset[Feature]:
    """The features without which packets would not meet this configuration."""
    if config.features is Features.ALL:
        return EVERY
    found = {Feature(family) for family in _families(config)} or {Feature.IPV4}
    if not all(map(marks.is_exact, config.marks)):
        found.add(Feature.RULES)
    balanced = set(_balanced(config))
    if any(protocol is Protocol.SCTP for protocol, _ in balanced):
        found.add(Feature.SCTP)
    if any(protocol is Protocol.UDP and _has_exchange(ports) for protocol, ports in balanced):
        found.add(Feature.IPSEC)
    if any(service.scheduler in locality.SCHEDULERS for service in config.services):
        found.add(Feature.LOCALITY)
    if any(service.persistence and service.persistence.engine for service in config.services):
        found.add(Feature.SIP)
    for method, brought in METHODS.items():
        if any(method in service.forwards for service in config.services):
            found.update(brought)
    if Feature.NAT in found and any(_has_ftp(config, service) for service in config.services):
        found.add(Feature.FTP)
    return frozenset(found)


def _has_ftp(config: Config, service: Service) -> bool:
    """Whether FTP's control connections may go to a backend by nat."""
    if Forward.NAT not in service.forwards:
        return False
    if isinstance(service.key, AddressKey):
        return service.key.protocol is Protocol.TCP and service.key.port in (FTP_PORT, ANY_PORT)
    mark = service.key.mark
    return any(
        rule.mark == mark
        and Protocol.TCP in rule.protocols
        and any(ports.first <= FTP_PORT <= ports.last for ports in rule.ports or (EVERY_PORT,))
        for rule in config.marks
    )


def _balanced(config: Config) -> Iterator[tuple[Protocol, Ports]]:
    """Protocols that rules and services name, with the ports that each names of them."""
    for service in config.services:
        if isinstance(service.key, AddressKey):
            port = service.key.port
            yield service.key.protocol, EVERY_PORT if port == ANY_PORT else Ports(port, port)
    for rule in config.marks:
        for ports in rule.ports or (EVERY_PORT,):
            for protocol in rule.protocols:
                yield protocol, ports


def _has_exchange(ports: Ports) -> bool:
    """Whether ESP and AH may follow connections to one of the ports."""
    return ports.first <= KEY_EXCHANGE_PORT <= ports.last


def _families(config: Config) -> Iterator[Family]:
    for service in config.services:
        yield service.family
    for rule in config.marks:
        yield from _families_of(rule)


def _families_of(rule: MarkRule) -> Iterable[Family]:
    """A rule without addresses marks packets of both families, also where none is balanced."""
    return {Family.of(network) for network in (*rule.addresses, *rule.sources)} or Family


def defines(features: Iterable[Feature]) -> dict[str, object]:
    """What the compiler is told of every feature."""
    chosen = frozenset(features)
    return {feature.define: int(feature in chosen) for feature in Feature}


def compiled(defined: Mapping[str, object]) -> frozenset[Feature]:
    """The features that programs have which were compiled with these defines."""
    # of programs of an older version, what it did not know of is not in them
    return frozenset(f for f in Feature if int(str(defined.get(f.define, 0))))


def names(features: Iterable[Feature]) -> str:
    """The features by name, in their usual order."""
    return " ".join(sorted(features))

"""A Config as plain JSON values and back: what a later command reads instead of the YAML."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from typing import Any

from lvsxdp.model import (
    Address,
    AddressKey,
    Backend,
    Capacity,
    Config,
    Engine,
    Expiry,
    Family,
    Features,
    Forward,
    MarkKey,
    MarkRule,
    Network,
    Persistence,
    Ports,
    Protocol,
    Scheduler,
    SchedulerFlag,
    Service,
    ServiceKey,
    Settings,
    Tunnel,
    TunnelChecksum,
    TunnelType,
)

Plain = dict[str, Any]


def to_plain(config: Config) -> Plain:
    """The configuration in dicts, lists, strings and numbers."""
    return {**frame_to(config), "services": [service_to(service) for service in config.services]}


def from_plain(plain: Plain) -> Config:
    """The configuration that to_plain was given."""
    return frame_from(plain, tuple(service_from(service) for service in plain["services"]))


def frame_to(config: Config) -> Plain:
    """The same without the services."""
    return {
        "interfaces": list(config.interfaces),
        "marks": [_rule_to(rule) for rule in config.marks],
        "settings": {name: getattr(config.settings, name) for name in Settings.__slots__},
        "capacity": {name: getattr(config.capacity, name) for name in Capacity.__slots__},
        "features": str(config.features),
    }


def frame_from(plain: Plain, services: tuple[Service, ...]) -> Config:
    """The configuration that frame_to was given, with these services."""
    return Config(
        interfaces=tuple(plain["interfaces"]),
        marks=tuple(_rule_from(rule) for rule in plain["marks"]),
        services=services,
        settings=Settings(**plain["settings"]),
        capacity=Capacity(**plain["capacity"]),
        features=Features(plain["features"]),
    )


def _rule_to(rule: MarkRule) -> Plain:
    return {
        "mark": rule.mark,
        "protocols": [str(value) for value in rule.protocols],
        "addresses": [str(value) for value in rule.addresses],
        "ports": [[ports.first, ports.last] for ports in rule.ports],
        "sources": [str(value) for value in rule.sources],
        "source_macs": list(rule.source_macs),
        "interfaces": list(rule.interfaces),
        "vlans": list(rule.vlans),
    }


def _rule_from(plain: Plain) -> MarkRule:
    return MarkRule(
        mark=plain["mark"],
        protocols=tuple(Protocol(value) for value in plain["protocols"]),
        addresses=_networks(plain["addresses"]),
        ports=tuple(Ports(*pair) for pair in plain["ports"]),
        sources=_networks(plain["sources"]),
        source_macs=tuple(plain["source_macs"]),
        interfaces=tuple(plain["interfaces"]),
        vlans=tuple(plain["vlans"]),
    )


def _networks(values: list[str]) -> tuple[Network, ...]:
    return tuple(ipaddress.ip_network(value) for value in values)


def _address(text: str) -> Address:
    return ipaddress.ip_address(text)


def key_to_plain(key: ServiceKey) -> list[Any]:
    """A service's key as a list."""
    if isinstance(key, MarkKey):
        return ["mark", key.mark, str(key.family)]
    return ["address", str(key.protocol), str(key.address), key.port]


def key_from_plain(plain: list[Any]) -> ServiceKey:
    """The key that key_to_plain was given."""
    if plain[0] == "mark":
        return MarkKey(plain[1], Family(plain[2]))
    return AddressKey(Protocol(plain[1]), _address(plain[2]), plain[3])


def properties_to(service: Service) -> list[Any]:
    """All of a service but its backends, as a list."""
    kept = service.persistence
    return [
        key_to_plain(service.key),
        service.name,
        str(service.scheduler),
        [str(flag) for flag in service.flags],
        kept and [kept.timeout, str(kept.netmask), str(kept.expiry), kept.engine],
        service.one_packet,
        service.sloppy_tcp,
    ]


def _persistence_from(timeout: int, netmask: str, expiry: str, engine: str | None) -> Persistence:
    return Persistence(
        timeout, _address(netmask), Expiry(expiry), Engine(engine) if engine else None
    )


def with_backends(properties: list[Any], backends: Sequence[Backend]) -> Service:
    """The service of which properties_to made the list, with these backends."""
    key, name, scheduler, flags, kept, one_packet, sloppy_tcp = properties
    return Service(
        key=key_from_plain(key),
        name=name,
        scheduler=Scheduler(scheduler),
        flags=tuple(SchedulerFlag(flag) for flag in flags),
        persistence=kept and _persistence_from(*kept),
        backends=backends,
        one_packet=one_packet,
        sloppy_tcp=sloppy_tcp,
    )


def backend_to(backend: Backend) -> list[Any]:
    """A backend as a list; most have no thresholds, and so a shorter one."""
    b = backend
    plain = [str(b.address), b.port, b.weight, str(b.forward), b.draining]
    more = [b.upper_threshold, b.lower_threshold, 0 if b.weight else b.last_weight]
    t = b.tunnel
    if t != Tunnel():
        return [*plain, *more, str(t.type), t.port, str(t.checksum), t.source and str(t.source)]
    return plain + more if any(more) else plain


def backend_from(plain: list[Any]) -> Backend:
    """The backend that backend_to was given."""
    address, port, weight, forward, *rest = plain
    rest[4:] = [_tunnel_from(*rest[4:])] if rest[4:] else []
    return Backend(_address(address), port, weight, Forward(forward), *rest)


def _tunnel_from(kind: str, port: int | None, checksum: str, source: str | None) -> Tunnel:
    return Tunnel(
        TunnelType(kind), port, TunnelChecksum(checksum), _address(source) if source else None
    )


def service_to(service: Service) -> list[Any]:
    """A service as a list."""
    return [properties_to(service), [*map(backend_to, service.backends)]]


def service_from(plain: list[Any]) -> Service:
    """The service that service_to was given."""
    return with_backends(plain[0], tuple(map(backend_from, plain[1])))

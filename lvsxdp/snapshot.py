"""A Config as plain JSON values and back: what a later command reads instead of the YAML."""

from __future__ import annotations

import ipaddress
from typing import Any

from lvsxdp.model import (
    Address,
    AddressKey,
    Backend,
    Capacity,
    Config,
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
)

Plain = dict[str, Any]


def to_plain(config: Config) -> Plain:
    """The configuration in dicts, lists, strings and numbers."""
    return {
        "interfaces": list(config.interfaces),
        "marks": [_rule_to(rule) for rule in config.marks],
        "services": [_service_to(service) for service in config.services],
        "settings": {name: getattr(config.settings, name) for name in Settings.__slots__},
        "capacity": {name: getattr(config.capacity, name) for name in Capacity.__slots__},
        "features": str(config.features),
    }


def from_plain(plain: Plain) -> Config:
    """The configuration that to_plain was given."""
    return Config(
        interfaces=tuple(plain["interfaces"]),
        marks=tuple(_rule_from(rule) for rule in plain["marks"]),
        services=tuple(_service_from(service) for service in plain["services"]),
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


def _service_to(service: Service) -> Plain:
    kept = service.persistence
    return {
        "key": key_to_plain(service.key),
        "name": service.name,
        "scheduler": str(service.scheduler),
        "flags": [str(flag) for flag in service.flags],
        "persistence": kept and [kept.timeout, str(kept.netmask), str(kept.expiry)],
        "backends": [
            [str(b.address), b.port, b.weight, str(b.forward), b.draining] for b in service.backends
        ],
    }


def _service_from(plain: Plain) -> Service:
    kept = plain["persistence"]
    return Service(
        key=key_from_plain(plain["key"]),
        name=plain["name"],
        scheduler=Scheduler(plain["scheduler"]),
        flags=tuple(SchedulerFlag(flag) for flag in plain["flags"]),
        persistence=kept and Persistence(kept[0], _address(kept[1]), Expiry(kept[2])),
        backends=tuple(
            Backend(_address(b[0]), b[1], b[2], Forward(b[3]), b[4]) for b in plain["backends"]
        ),
    )

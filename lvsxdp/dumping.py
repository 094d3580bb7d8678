"""A Config as YAML text."""

from __future__ import annotations

import dataclasses

from lvsxdp.config import CONDITIONS
from lvsxdp.document import FlowList, FlowMapping, to_yaml
from lvsxdp.model import (
    ANY_PORT,
    AddressKey,
    Backend,
    Capacity,
    Config,
    Expiry,
    Family,
    Features,
    Forward,
    MarkRule,
    Network,
    Persistence,
    Ports,
    Scheduler,
    Service,
    Settings,
    Tunnel,
    TunnelChecksum,
)
from lvsxdp.scalars import full_netmask


def dump(config: Config) -> str:
    """The configuration as YAML without what is default; `config.load` gives it back unchanged."""
    tree = {
        "interfaces": FlowList(config.interfaces),
        "marks": [_rule_row(rule) for rule in config.marks],
        "services": [_service_tree(service) for service in config.services],
        "settings": _changed(config.settings, Settings()),
        "capacity": _changed(config.capacity, Capacity()),
        "features": "all" if config.features is Features.ALL else None,
    }
    return to_yaml({key: value for key, value in tree.items() if value})


def _changed(values: Settings | Capacity, default: Settings | Capacity) -> dict[str, object]:
    names = [field.name for field in dataclasses.fields(values)]
    return {n: getattr(values, n) for n in names if getattr(values, n) != getattr(default, n)}


def _rule_row(rule: MarkRule) -> FlowMapping:
    row = FlowMapping(mark=rule.mark)
    for one, several, _, _ in CONDITIONS:
        values = getattr(rule, several)
        if several == "addresses" and not values:
            row[one] = "any"
        elif values != getattr(MarkRule(0), several):
            plain = FlowList(_plain(value) for value in values)
            row.update({one: plain[0]} if len(plain) == 1 else {several: plain})
    return row


def _plain(value: object) -> str | int:
    if isinstance(value, Ports):
        return value.first if value.first == value.last else f"{value.first}-{value.last}"
    if isinstance(value, Network):
        return str(value.network_address if value.prefixlen == value.max_prefixlen else value)
    return value if isinstance(value, int) else str(value)


def _service_tree(service: Service) -> dict[str, object]:
    tree: dict[str, object] = {"name": service.name} if service.name is not None else {}
    tree |= _key_tree(service)
    if service.scheduler is not Scheduler.WLC:
        tree["scheduler"] = str(service.scheduler)
    if service.flags:
        tree["flags"] = FlowList(str(flag) for flag in service.flags)
    if service.persistence is not None:
        tree["persistence"] = _persistence_row(service.persistence)
    tree |= {name: True for name in ("one_packet", "sloppy_tcp") if getattr(service, name)}
    if service.backends:
        tree["backends"] = [_backend_row(backend) for backend in service.backends]
    return tree


def _key_tree(service: Service) -> dict[str, object]:
    key = service.key
    if isinstance(key, AddressKey):
        port = "any" if key.port == ANY_PORT else key.port
        return {"protocol": str(key.protocol), "address": str(key.address), "port": port}
    families = {Family.of(backend.address) for backend in service.backends}
    if key.family is Family.IPV4 and families == {Family.IPV4}:
        return {"mark": key.mark}
    return {"mark": key.mark, "family": str(key.family)}


def _persistence_row(persistence: Persistence) -> FlowMapping:
    row = FlowMapping(timeout=persistence.timeout)
    mask = persistence.netmask
    if mask != full_netmask(Family.of(mask)):
        row["netmask"] = str(mask) if mask.version == 4 else int(mask).bit_count()
    if persistence.expiry is not Expiry.IPVS:
        row["expiry"] = str(persistence.expiry)
    if persistence.engine is not None:
        row["engine"] = str(persistence.engine)
    return row


def _backend_row(backend: Backend) -> FlowMapping:
    row = FlowMapping(address=str(backend.address))
    if backend.port is not None:
        row["port"] = backend.port
    if backend.weight != 1:
        row["weight"] = backend.weight
    if backend.upper_threshold:
        row["upper_threshold"] = backend.upper_threshold
    if backend.lower_threshold:
        row["lower_threshold"] = backend.lower_threshold
    if backend.forward is not Forward.DR:
        row["forward"] = str(backend.forward)
    if backend.tunnel != Tunnel():
        row["tunnel"] = _tunnel_row(backend.tunnel)
    if backend.draining:
        row["draining"] = True
    return row


def _tunnel_row(tunnel: Tunnel) -> FlowMapping:
    row = FlowMapping(type=str(tunnel.type))
    if tunnel.port is not None:
        row["port"] = tunnel.port
    if tunnel.checksum is not TunnelChecksum.NOCSUM:
        row["checksum"] = str(tunnel.checksum)
    if tunnel.source is not None:
        row["source"] = str(tunnel.source)
    return row

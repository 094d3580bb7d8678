"""YAML text to a Config, with every fault of a file told at once."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from lvsxdp import checks, pieces, scalars
from lvsxdp.checks import Draft, Placed
from lvsxdp.document import (
    NUMBER,
    SWITCH,
    TEXT,
    Item,
    Report,
    compose,
    fields_of,
    is_empty_list,
    is_scalar,
    is_switch,
    items_of,
    one_or_more,
    scalar,
    value_of,
    values_of,
)
from lvsxdp.errors import ConfigError
from lvsxdp.model import (
    AUTO,
    DEFAULT_PERSISTENCE,
    MAX_CAPACITY,
    Address,
    AddressKey,
    Backend,
    Capacity,
    Config,
    Family,
    Features,
    Forward,
    MarkKey,
    MarkRule,
    Persistence,
    Service,
    ServiceKey,
    Settings,
    Tunnel,
    TunnelChecksum,
)
from lvsxdp.names import find_backend, find_service, parse_backend_name, parse_service_key
from lvsxdp.scalars import full_netmask, parse_netmask, parse_weight
from lvsxdp.setting import BY_NAME, SETTINGS, Setting

__all__ = [
    "MAX_CAPACITY",
    "find_backend",
    "find_service",
    "load",
    "parse_backend_name",
    "parse_netmask",
    "parse_service_key",
    "parse_weight",
]

_TOP_KEYS = ("interfaces", "marks", "services", "settings", "capacity", "features")
_SERVICE_KEYS = (
    "name", "mark", "family", "protocol", "address", "port",
    "scheduler", "flags", "persistence", "forward", "tunnel", "one_packet", "sloppy_tcp",
    "backends",
)  # fmt: skip
_BACKEND_KEYS = (
    "address", "port", "weight", "upper_threshold", "lower_threshold", "forward", "tunnel",
    "draining",
)  # fmt: skip
_TUNNEL_KEYS = ("type", "port", "checksum", "source")
_PERSISTENCE_KEYS = ("timeout", "netmask", "expiry", "engine")


def load(text: str, origin: str = "<config>") -> tuple[Config, list[str]]:
    """The configuration that the text describes, and its warnings.

    ConfigError names all the faults, each as `origin:line: place: what is wrong and what is right`.
    """
    draft, warnings, report = _read(text, origin, {})
    return draft.config(), report.lines(warnings)


def load_beside(
    text: str, origin: str, known: Mapping[str, Service]
) -> tuple[Config, list[str], dict[str, str]]:
    """As `load` does, and what each service's text is known by; that of `known` is not read again.

    A file that cannot be taken apart (lvsxdp/pieces.py) has no such texts.
    """
    found = pieces.split(text)
    if found is None:
        return *load(text, origin), {}
    digests = found.digests()
    reused = {place: known[d] for place, d in enumerate(digests) if d in known}
    rows = found.rows(reused)
    shorter = found.without(reused, rows) if reused or rows else None
    try:
        if shorter is None:
            raise ConfigError
        draft, warnings, report = _read(shorter, origin, reused, rows)
    except ConfigError:
        # what is wrong is told of the whole file
        draft, warnings, report = _read(text, origin, {})
    sources = {}
    if len(draft.services) == len(digests):
        warned = {place.partition(".")[0] for place, _ in warnings}
        for placed, digest in zip(draft.services, digests, strict=True):
            if placed.place not in warned:
                sources[str(placed.service.key)] = digest
    return draft.config(), report.lines(warnings), sources


def _read(
    text: str,
    origin: str,
    reused: Mapping[int, Service],
    rows: Mapping[int, pieces.Rows] | None = None,
) -> tuple[Draft, list[checks.Finding], Report]:
    """The draft of a text without faults, and its warnings."""
    report = Report(origin)
    draft = _read_draft(Item(compose(text, origin), "", report), reused, rows or {})
    report.faults.extend(checks.faults(draft))
    if report.faults:
        raise ConfigError(*report.lines(report.faults))
    return draft, list(checks.warnings(draft)), report


def _read_draft(
    item: Item, reused: Mapping[int, Service], rows: Mapping[int, pieces.Rows]
) -> Draft:
    fields = fields_of(item, _TOP_KEYS) or {}
    interfaces = one_or_more(fields["interfaces"]) if "interfaces" in fields else []
    rules = [(entry.place, _read_rule(entry)) for entry in items_of(fields.get("marks"))]
    services = [
        Placed(entry.place, reused[place], None)
        if place in reused
        else _with_rows(_read_service(entry), rows.get(place))
        for place, entry in enumerate(items_of(fields.get("services")))
    ]
    return Draft(
        interfaces=values_of(interfaces, scalars.parse_interface),
        rules=tuple((place, rule) for place, rule in rules if rule is not None),
        services=tuple(placed for placed in services if placed is not None),
        settings=_read_settings(fields.get("settings")),
        capacity=_read_capacity(fields.get("capacity")),
        features=value_of(fields, "features", scalars.parse_features, Features.USED),
    )


def _read_settings(item: Item | None) -> Settings:
    fields = item and fields_of(item, tuple(BY_NAME))
    if not fields:
        return Settings()
    values: dict[str, Any] = {
        setting.name: value_of(
            fields,
            setting.name,
            setting.parse,
            setting.default,
            _accepted(setting),
        )
        for setting in SETTINGS
    }
    return Settings(**values)


def _accepted(setting: Setting) -> frozenset[str]:
    """What YAML may have as the setting's value."""
    if setting.read is not None:
        return NUMBER
    return SWITCH if setting.numbers is None else NUMBER


def _read_capacity(item: Item | None) -> Capacity:
    default = Capacity()
    fields = item and fields_of(item, tuple(MAX_CAPACITY))
    if not fields:
        return default

    def read(key: str, limit: int) -> int:
        def parse(text: str) -> int:
            return scalars.parse_whole(text, "a number of entries", 1, limit)

        otherwise: int = getattr(default, key)
        return value_of(fields, key, parse, otherwise, NUMBER)

    return Capacity(**{key: read(key, limit) for key, limit in MAX_CAPACITY.items()})


# One condition of a mark rule: its key in the file for one value and for several, its field.
CONDITIONS: tuple[tuple[str, str, Callable[[str], object], frozenset[str]], ...] = (
    ("protocol", "protocols", scalars.parse_protocol, TEXT),
    ("address", "addresses", scalars.parse_network, TEXT),
    ("port", "ports", scalars.parse_ports, NUMBER),
    ("source", "sources", scalars.parse_network, TEXT),
    ("source_mac", "source_macs", scalars.parse_mac, TEXT),
    ("interface", "interfaces", scalars.parse_interface, TEXT),
    ("vlan", "vlans", scalars.parse_vlan, NUMBER),
)
_RULE_KEYS = ("mark", *(key for pair in CONDITIONS for key in pair[:2]))
_MAY_BE_ANY = ("addresses", "ports")


def _read_rule(item: Item) -> MarkRule | None:
    fields = fields_of(item, _RULE_KEYS)
    if fields is None:
        return None
    if "mark" not in fields:
        item.fault("a rule needs the mark that it gives; mark: 0 leaves packets alone")
    if "address" not in fields and "addresses" not in fields:
        item.fault("a rule needs addresses; address: any stands for every one")
    conditions: dict[str, Any] = {}
    for one, several, parse, accepts in CONDITIONS:
        if one in fields and several in fields:
            fields[several].fault(f"stands beside {one}; put all into {several}")
        given = fields.get(several) or fields.get(one)
        if given is not None and not _is_any(given, several):
            conditions[several] = _read_condition(given, several, parse, accepts)
    mark = value_of(fields, "mark", scalars.parse_rule_mark, 0, NUMBER)
    return MarkRule(mark=mark, **{key: values for key, values in conditions.items() if values})


def _read_condition(
    item: Item, key: str, parse: Callable[[str], object], accepts: frozenset[str]
) -> tuple[object, ...]:
    if is_empty_list(item):
        anyway = "write any" if key == "addresses" else "leave the key out"
        item.fault(f"the list is empty; {anyway} where nothing is to be compared")

    def parse_one(text: str) -> object:
        if text == "any" and key in _MAY_BE_ANY:
            raise ConfigError(f'"any" stands in a list; it says all by itself, {key}: any')
        return parse(text)

    return values_of(one_or_more(item), parse_one, accepts)


def _is_any(item: Item, key: str) -> bool:
    return key in _MAY_BE_ANY and item.node.value == "any"


def _read_service(item: Item) -> Placed | None:
    fields = fields_of(item, _SERVICE_KEYS)
    if fields is None:
        return None
    forward = value_of(fields, "forward", scalars.parse_forward, Forward.DR)
    tunnel = _read_tunnel(fields.get("tunnel"), Tunnel())
    entries = items_of(fields.get("backends"))
    read = [(entry.place, _read_backend(entry, forward, tunnel)) for entry in entries]
    backends = [(place, backend) for place, backend in read if backend is not None]
    methods = {forward, *(backend.forward for _, backend in backends)}
    if "tunnel" in fields and Forward.TUNNEL not in methods:
        fields["tunnel"].fault("no backend has forward: tunnel; give that, or leave tunnel out")
    key = _read_service_key(item, fields, [backend for _, backend in backends])
    family = key.family if key is not None else _family_of(backend for _, backend in backends)
    service = Service(
        # An illegal name or scheduler is told where it is read; no second fault may follow from it.
        name=value_of(fields, "name", scalars.parse_name, None),
        key=key or MarkKey(0, family or Family.IPV4),
        persistence=_read_persistence(fields.get("persistence"), family),
        backends=tuple(_without_own_port(key, backend) for _, backend in backends),
        one_packet=value_of(fields, "one_packet", scalars.parse_switch, False, SWITCH),
        sloppy_tcp=value_of(fields, "sloppy_tcp", scalars.parse_switch, False, SWITCH),
        **_read_scheduler(fields),
    )
    return Placed(item.place, service, tuple(place for place, _ in backends)) if key else None


def _with_rows(placed: Placed | None, rows: pieces.Rows | None) -> Placed | None:
    """The service with all its backends, of which YAML had the first."""
    if placed is None or rows is None or not placed.service.backends:
        return placed
    (first,) = placed.service.backends
    more = tuple(
        Backend(
            scalars.parse_host(address),
            weight=int(weight or 1),
            forward=first.forward,
            tunnel=first.tunnel,
        )
        for address, weight in rows.backends[1:]
    )
    places = tuple(f"{placed.place}.backends[{n}]" for n in range(len(rows.backends)))
    service = dataclasses.replace(placed.service, backends=(first, *more))
    return Placed(placed.place, service, places)


def _read_scheduler(fields: Mapping[str, Item]) -> dict[str, Any]:
    flag_items = one_or_more(fields["flags"]) if "flags" in fields else []
    flags = values_of(flag_items, scalars.parse_flag)
    if "scheduler" not in fields:
        return {"flags": flags}
    scheduler = scalar(fields["scheduler"], scalars.parse_scheduler, TEXT)
    return {"scheduler": scheduler, "flags": flags} if scheduler else {}


def _family_of(backends: Iterable[Backend]) -> Family | None:
    return next((Family.of(backend.address) for backend in backends), None)


def _read_service_key(
    item: Item, fields: Mapping[str, Item], backends: list[Backend]
) -> ServiceKey | None:
    address_keys = [key for key in ("protocol", "address", "port") if key in fields]
    if "mark" in fields:
        for key in address_keys:
            fields[key].fault("stands beside mark; a service has a mark or an address, not both")
        return _read_mark_key(item, fields, backends)
    if not address_keys:
        item.fault("a service needs a mark, or protocol, address and port")
        return None
    return _read_address_key(item, fields)


def _read_mark_key(
    item: Item, fields: Mapping[str, Item], backends: list[Backend]
) -> MarkKey | None:
    mark = scalar(fields["mark"], scalars.parse_service_mark, NUMBER)
    family = value_of(fields, "family", scalars.parse_family, None) or _family_of(backends)
    if family is None and "family" not in fields and not _has_entries(fields.get("backends")):
        item.fault("a mark service without backends needs family: ipv4 or family: ipv6")
    return MarkKey(mark, family) if mark is not None and family is not None else None


def _has_entries(item: Item | None) -> bool:
    return item is not None and bool(item.node.value)


def _read_address_key(item: Item, fields: Mapping[str, Item]) -> AddressKey | None:
    missing = [key for key in ("protocol", "address", "port") if key not in fields]
    if missing:
        hint = "; every port is port: any" if "port" in missing else ""
        item.fault(f"an address service needs {' and '.join(missing)} too{hint}")
    if "family" in fields:
        fields["family"].fault("is for mark services; here it follows from address, leave it out")
    protocol = value_of(fields, "protocol", scalars.parse_service_protocol, None)
    address = value_of(fields, "address", scalars.parse_host, None)
    port = value_of(fields, "port", scalars.parse_service_port, None, NUMBER)
    if protocol is None or address is None or port is None:
        return None
    return AddressKey(protocol, address, port)


def _read_persistence(item: Item | None, family: Family | None) -> Persistence | None:
    """What a number, true or a mapping asks for; a faulty one still counts as persistence."""
    if item is None:
        return None
    mask_family = family or Family.IPV4
    default = Persistence(DEFAULT_PERSISTENCE, full_netmask(mask_family))
    if is_switch(item):
        return None if scalar(item, scalars.parse_switch, SWITCH) is False else default
    if is_scalar(item):
        timeout = scalar(item, scalars.parse_persistence, NUMBER)
        return dataclasses.replace(default, timeout=timeout or DEFAULT_PERSISTENCE)
    fields = fields_of(item, _PERSISTENCE_KEYS) or {}

    def parse_mask(text: str) -> Address:
        # Without a family no mask can be judged, and the missing family is told elsewhere.
        return parse_netmask(text, family) if family else default.netmask

    return Persistence(
        timeout=value_of(fields, "timeout", scalars.parse_timeout, default.timeout, NUMBER),
        netmask=value_of(fields, "netmask", parse_mask, default.netmask, NUMBER),
        expiry=value_of(fields, "expiry", scalars.parse_expiry, default.expiry),
        engine=value_of(fields, "engine", scalars.parse_engine, None),
    )


def _read_tunnel(item: Item | None, default: Tunnel) -> Tunnel:
    """What a type's name or a mapping asks for, beside what the service says."""
    if item is None:
        return default
    if is_scalar(item):
        kind = scalar(item, scalars.parse_tunnel_type, TEXT)
        return default.with_options({"type": kind} if kind else {})
    fields = fields_of(item, _TUNNEL_KEYS) or {}
    automatic: Address | str = AUTO
    given = {
        "type": value_of(fields, "type", scalars.parse_tunnel_type, default.type),
        "port": value_of(fields, "port", scalars.parse_port, None, NUMBER),
        "checksum": value_of(
            fields, "checksum", scalars.parse_tunnel_checksum, TunnelChecksum.NOCSUM
        ),
        "source": value_of(fields, "source", scalars.parse_tunnel_source, automatic),
    }
    return default.with_options({key: given[key] for key in ("type", *fields)})


def _read_backend(item: Item, forward: Forward, tunnel: Tunnel) -> Backend | None:
    fields = fields_of(item, _BACKEND_KEYS)
    if fields is None:
        return None
    if "address" not in fields:
        item.fault("a backend needs an address")
    address = value_of(fields, "address", scalars.parse_host, None)
    method = value_of(fields, "forward", scalars.parse_forward, forward)
    backend = Backend(
        address=address or full_netmask(Family.IPV4),
        port=value_of(fields, "port", scalars.parse_port, None, NUMBER),
        weight=value_of(fields, "weight", parse_weight, 1, NUMBER),
        forward=method,
        draining=value_of(fields, "draining", scalars.parse_switch, False, SWITCH),
        upper_threshold=value_of(fields, "upper_threshold", scalars.parse_threshold, 0, NUMBER),
        lower_threshold=value_of(fields, "lower_threshold", scalars.parse_threshold, 0, NUMBER),
        tunnel=_read_tunnel(fields.get("tunnel"), tunnel if method is Forward.TUNNEL else Tunnel()),
    )
    return backend if address is not None else None


def _without_own_port(key: ServiceKey | None, backend: Backend) -> Backend:
    """The backend without a port that says only what its service's says."""
    if isinstance(key, AddressKey) and backend.port == key.port:
        return dataclasses.replace(backend, port=None)
    return backend

"""YAML text to a Config and back, with every fault of a file told at once."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

import yaml

from lvsxdp import checks, scalars
from lvsxdp.checks import Draft, Finding, Placed
from lvsxdp.errors import ConfigError
from lvsxdp.model import (
    ANY_PORT,
    DEFAULT_PERSISTENCE,
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
    Scheduler,
    Service,
    ServiceKey,
    Settings,
)
from lvsxdp.names import find_backend, find_service, parse_backend_name, parse_service_key
from lvsxdp.scalars import did_you_mean, full_netmask, parse_netmask, parse_weight, quote

__all__ = [
    "dump",
    "find_backend",
    "find_service",
    "load",
    "parse_backend_name",
    "parse_netmask",
    "parse_service_key",
    "parse_weight",
]

T = TypeVar("T")

_TOP_KEYS = ("interfaces", "marks", "services", "settings", "capacity", "features")
_SERVICE_KEYS = (
    "name", "mark", "family", "protocol", "address", "port",
    "scheduler", "flags", "persistence", "forward", "backends",
)  # fmt: skip
_BACKEND_KEYS = ("address", "port", "weight", "forward", "draining")
_PERSISTENCE_KEYS = ("timeout", "netmask", "expiry")
_MAX_CAPACITY = {
    "connections": 2**21,
    "persistence": 2**21,
    "services": 2**16,
    "backends": 2**16,
}

# What YAML may make of a scalar in a place; text in quotes is welcome everywhere.
_TEXT = frozenset({"str"})
_NUMBER = frozenset({"str", "int"})
_SWITCH = frozenset({"str", "int", "bool"})


# ---- from YAML ----


def load(text: str, origin: str = "<config>") -> tuple[Config, list[str]]:
    """The configuration that the text describes, and its warnings.

    ConfigError names all the faults, each as `origin:line: place: what is wrong and what is right`.
    """
    report = _Report(origin)
    draft = _read_draft(_Item(_compose(text, origin), "", report))
    report.faults.extend(checks.faults(draft))
    if report.faults:
        raise ConfigError(*report.lines(report.faults))
    return draft.config(), report.lines(list(checks.warnings(draft)))


@dataclasses.dataclass(slots=True)
class _Report:
    """The faults found so far, and the line of every place that was visited."""

    origin: str
    faults: list[Finding] = dataclasses.field(default_factory=list)
    places: dict[str, int] = dataclasses.field(default_factory=dict)

    def lines(self, findings: list[Finding]) -> list[str]:
        numbered = sorted(
            ((self._line(place), place, message) for place, message in findings),
            key=lambda finding: finding[0],
        )
        return [
            f"{self.origin}:{line}: {place + ': ' if place else ''}{message}"
            for line, place, message in numbered
        ]

    def _line(self, place: str) -> int:
        """The line of the place, or of the nearest place around it that stands in the file."""
        while place and place not in self.places:
            place = place[: max(place.rfind("."), place.rfind("["), 0)]
        return self.places.get(place, 1)


@dataclasses.dataclass(frozen=True, slots=True)
class _Item:
    """A piece of the file and its place."""

    node: yaml.Node
    place: str
    report: _Report

    def __post_init__(self) -> None:
        self.report.places[self.place] = self.node.start_mark.line + 1

    def fault(self, message: str) -> None:
        self.report.faults.append((self.place, message))

    def child(self, node: yaml.Node, suffix: str) -> _Item:
        return _Item(node, f"{self.place}{suffix}", self.report)


def _compose(text: str, origin: str) -> yaml.Node:
    """The one document of the text, as nodes that keep their line and their writing."""
    try:
        documents = list(yaml.compose_all(text, yaml.SafeLoader))
    except yaml.MarkedYAMLError as err:
        raise ConfigError(_syntax_fault(err, text, origin)) from err
    except yaml.YAMLError as err:
        raise ConfigError(f"{origin}:1: this is not YAML: {' '.join(str(err).split())}") from err
    except RecursionError as err:
        raise ConfigError(f"{origin}:1: lists and mappings are nested too deeply") from err
    if not documents or _tag(documents[0]) == "null":
        raise ConfigError(f"{origin}:1: the file is empty; {{}} is a configuration of nothing")
    if len(documents) > 1:
        line = documents[1].start_mark.line + 1
        raise ConfigError(f"{origin}:{line}: a second document starts here; leave out the ---")
    node: yaml.Node = documents[0]
    return node


def _syntax_fault(err: yaml.MarkedYAMLError, text: str, origin: str) -> str:
    mark = err.problem_mark or err.context_mark
    if mark is None:
        return f"{origin}:1: this is not YAML: {err.problem}"
    place = f"{origin}:{mark.line + 1}"
    rows = text.splitlines()
    if mark.line < len(rows) and rows[mark.line][mark.column : mark.column + 1] == "\t":
        return f"{place}: there is a tab; YAML is indented with spaces"
    return f"{place}: this is not YAML, column {mark.column + 1}: {err.problem}"


def _tag(node: yaml.Node) -> str:
    return str(node.tag).rpartition(":")[2]


def _fields(item: _Item, known: tuple[str, ...]) -> dict[str, _Item] | None:
    """The values of a mapping by their keys; None, with a fault, for anything else."""
    if not isinstance(item.node, yaml.MappingNode):
        keys = ", ".join(known)
        item.fault(f"{_shape(item.node)} stands where a mapping belongs, with keys of: {keys}")
        return None
    fields: dict[str, _Item] = {}
    for key_node, value_node in item.node.value:
        key = key_node.value if isinstance(key_node, yaml.ScalarNode) else _shape(key_node)
        suffix = f".{key}" if item.place else key
        if key not in known:
            item.child(key_node, suffix).fault(f"is no key here; {did_you_mean(key, known)}")
        elif key in fields:
            again = f"is given again in line {key_node.start_mark.line + 1}"
            fields[key].fault(f"{again}; YAML would keep only the last, leave one out")
        else:
            fields[key] = item.child(value_node, suffix)
    return fields


def _shape(node: yaml.Node) -> str:
    if isinstance(node, yaml.SequenceNode):
        return "a list"
    if isinstance(node, yaml.MappingNode):
        return "a mapping"
    return "nothing" if _tag(node) == "null" else quote(node.value)


def _entries(item: _Item | None) -> list[_Item]:
    """The items of a list; an empty list, with a fault, for anything else."""
    if item is None:
        return []
    if not isinstance(item.node, yaml.SequenceNode):
        item.fault(f"{_shape(item.node)} stands where a list belongs; an empty list is []")
        return []
    return [item.child(node, f"[{index}]") for index, node in enumerate(item.node.value)]


def _one_or_more(item: _Item) -> list[_Item]:
    """The items of a list; a scalar stands for a list of one."""
    return [item] if isinstance(item.node, yaml.ScalarNode) else _entries(item)


def _read(
    fields: Mapping[str, _Item],
    key: str,
    parse: Callable[[str], T],
    default: T,
    accepts: frozenset[str] = _TEXT,
) -> T:
    """The value of the key; the default where it is absent, or faulty and told so."""
    if key not in fields:
        return default
    value = _scalar(fields[key], parse, accepts)
    return default if value is None else value


def _scalar(item: _Item, parse: Callable[[str], T], accepts: frozenset[str]) -> T | None:
    """The value of a scalar; None, with a fault, where its text or YAML's reading is wrong."""
    if not isinstance(item.node, yaml.ScalarNode):
        item.fault(f"{_shape(item.node)} stands where one value belongs")
        return None
    trap = _trap(item.node, accepts)
    try:
        value = parse(item.node.value)
    except ConfigError as err:
        item.fault(f"{err}; YAML reads it as {trap}" if trap else str(err))
        return None
    if trap:
        raw = item.node.value
        item.fault(f"YAML reads {raw} as {trap}; write {quote(raw)}, in quotes")
        return None
    return value


def _trap(node: yaml.ScalarNode, accepts: frozenset[str]) -> str:
    """What YAML makes of the scalar where that is not what it says, else nothing."""
    tag = _tag(node)
    if tag == "str":
        return ""
    try:
        value = yaml.SafeLoader("").construct_object(node)
    except (ValueError, KeyError, AttributeError, yaml.YAMLError):
        return f"a malformed {tag}"
    if tag in accepts and (isinstance(value, bool) or str(value) == node.value):
        return ""
    if value is None:
        return "nothing"
    if isinstance(value, bool | int):
        return "a number" if str(value) == node.value else str(value).lower()
    return f"a {tag}, {value}"


def _values(
    items: list[_Item], parse: Callable[[str], T], accepts: frozenset[str] = _TEXT
) -> tuple[T, ...]:
    """The values of all items, each of which may stand there once."""
    values: list[T] = []
    for item in items:
        value = _scalar(item, parse, accepts)
        if value is not None and value in values:
            item.fault(f"{quote(item.node.value)} is listed twice")
        elif value is not None:
            values.append(value)
    return tuple(values)


def _read_draft(item: _Item) -> Draft:
    fields = _fields(item, _TOP_KEYS) or {}
    interfaces = _one_or_more(fields["interfaces"]) if "interfaces" in fields else []
    rules = [(entry.place, _read_rule(entry)) for entry in _entries(fields.get("marks"))]
    services = [_read_service(entry) for entry in _entries(fields.get("services"))]
    return Draft(
        interfaces=_values(interfaces, scalars.parse_interface),
        rules=tuple((place, rule) for place, rule in rules if rule is not None),
        services=tuple(placed for placed in services if placed is not None),
        settings=_read_settings(fields.get("settings")),
        capacity=_read_capacity(fields.get("capacity")),
        features=_read(fields, "features", scalars.parse_features, Features.USED),
    )


def _read_settings(item: _Item | None) -> Settings:
    default = Settings()
    fields = item and _fields(item, tuple(f.name for f in dataclasses.fields(Settings)))
    if not fields:
        return default
    mode = _read(fields, "conn_reuse_mode", _parse_reuse_mode, default.conn_reuse_mode, _NUMBER)
    switches = {
        key: _read(fields, key, scalars.parse_switch, getattr(default, key), _SWITCH)
        for key in ("expire_nodest_conn", "expire_quiescent_template", "require_local")
    }
    return Settings(conn_reuse_mode=mode, **switches)


def _parse_reuse_mode(text: str) -> int:
    return scalars.parse_whole(text, "a connection reuse mode", 0, 3)


def _read_capacity(item: _Item | None) -> Capacity:
    default = Capacity()
    fields = item and _fields(item, tuple(_MAX_CAPACITY))
    if not fields:
        return default

    def read(key: str, limit: int) -> int:
        def parse(text: str) -> int:
            return scalars.parse_whole(text, "a number of entries", 1, limit)

        otherwise: int = getattr(default, key)
        return _read(fields, key, parse, otherwise, _NUMBER)

    return Capacity(**{key: read(key, limit) for key, limit in _MAX_CAPACITY.items()})


# One condition of a mark rule: its key in the file for one value and for several, its field.
_CONDITIONS: tuple[tuple[str, str, Callable[[str], object], frozenset[str]], ...] = (
    ("protocol", "protocols", scalars.parse_protocol, _TEXT),
    ("address", "addresses", scalars.parse_network, _TEXT),
    ("port", "ports", scalars.parse_ports, _NUMBER),
    ("source", "sources", scalars.parse_network, _TEXT),
    ("source_mac", "source_macs", scalars.parse_mac, _TEXT),
    ("interface", "interfaces", scalars.parse_interface, _TEXT),
    ("vlan", "vlans", scalars.parse_vlan, _NUMBER),
)
_RULE_KEYS = ("mark", *(key for pair in _CONDITIONS for key in pair[:2]))
_MAY_BE_ANY = ("addresses", "ports")


def _read_rule(item: _Item) -> MarkRule | None:
    fields = _fields(item, _RULE_KEYS)
    if fields is None:
        return None
    if "mark" not in fields:
        item.fault("a rule needs the mark that it gives; mark: 0 leaves packets alone")
    if "address" not in fields and "addresses" not in fields:
        item.fault("a rule needs addresses; address: any stands for every one")
    conditions: dict[str, Any] = {}
    for one, several, parse, accepts in _CONDITIONS:
        if one in fields and several in fields:
            fields[several].fault(f"stands beside {one}; put all into {several}")
        given = fields.get(several) or fields.get(one)
        if given is not None and not _is_any(given, several):
            conditions[several] = _read_condition(given, parse, accepts)
    mark = _read(fields, "mark", scalars.parse_rule_mark, 0, _NUMBER)
    return MarkRule(mark=mark, **{key: values for key, values in conditions.items() if values})


def _read_condition(
    item: _Item, parse: Callable[[str], object], accepts: frozenset[str]
) -> tuple[object, ...]:
    if isinstance(item.node, yaml.SequenceNode) and not item.node.value:
        item.fault("the list is empty; leave the key out where nothing is to be compared")
    return _values(_one_or_more(item), parse, accepts)


def _is_any(item: _Item, key: str) -> bool:
    return key in _MAY_BE_ANY and item.node.value == "any"


def _read_service(item: _Item) -> Placed | None:
    fields = _fields(item, _SERVICE_KEYS)
    if fields is None:
        return None
    forward = _read(fields, "forward", scalars.parse_forward, Forward.DR)
    entries = _entries(fields.get("backends"))
    read = [(entry.place, _read_backend(entry, forward)) for entry in entries]
    backends = [(place, backend) for place, backend in read if backend is not None]
    key = _read_service_key(item, fields, [backend for _, backend in backends])
    family = key.family if key is not None else _family_of(backend for _, backend in backends)
    service = Service(
        # An illegal name or scheduler is told where it is read; no second fault may follow from it.
        name=_read(fields, "name", scalars.parse_name, None),
        key=key or MarkKey(0, family or Family.IPV4),
        persistence=_read_persistence(fields.get("persistence"), family),
        backends=tuple(_without_own_port(key, backend) for _, backend in backends),
        **_read_scheduler(fields),
    )
    return Placed(item.place, service, tuple(place for place, _ in backends)) if key else None


def _read_scheduler(fields: Mapping[str, _Item]) -> dict[str, Any]:
    flag_items = _one_or_more(fields["flags"]) if "flags" in fields else []
    flags = _values(flag_items, scalars.parse_flag)
    if "scheduler" not in fields:
        return {"flags": flags}
    scheduler = _scalar(fields["scheduler"], scalars.parse_scheduler, _TEXT)
    return {"scheduler": scheduler, "flags": flags} if scheduler else {}


def _family_of(backends: Iterable[Backend]) -> Family | None:
    return next((Family.of(backend.address) for backend in backends), None)


def _read_service_key(
    item: _Item, fields: Mapping[str, _Item], backends: list[Backend]
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
    item: _Item, fields: Mapping[str, _Item], backends: list[Backend]
) -> MarkKey | None:
    mark = _scalar(fields["mark"], scalars.parse_service_mark, _NUMBER)
    family = _read(fields, "family", scalars.parse_family, None) or _family_of(backends)
    if family is None and "family" not in fields and not _has_entries(fields.get("backends")):
        item.fault("a mark service without backends needs family: ipv4 or family: ipv6")
    return MarkKey(mark, family) if mark is not None and family is not None else None


def _has_entries(item: _Item | None) -> bool:
    return item is not None and bool(item.node.value)


def _read_address_key(item: _Item, fields: Mapping[str, _Item]) -> AddressKey | None:
    missing = [key for key in ("protocol", "address", "port") if key not in fields]
    if missing:
        hint = "; every port is port: any" if "port" in missing else ""
        item.fault(f"an address service needs {' and '.join(missing)} too{hint}")
    if "family" in fields:
        fields["family"].fault("is for mark services; here it follows from address, leave it out")
    protocol = _read(fields, "protocol", scalars.parse_service_protocol, None)
    address = _read(fields, "address", scalars.parse_host, None)
    port = _read(fields, "port", scalars.parse_service_port, None, _NUMBER)
    if protocol is None or address is None or port is None:
        return None
    return AddressKey(protocol, address, port)


def _read_persistence(item: _Item | None, family: Family | None) -> Persistence | None:
    """What a number, true or a mapping asks for; a faulty one still counts as persistence."""
    if item is None:
        return None
    mask_family = family or Family.IPV4
    default = Persistence(DEFAULT_PERSISTENCE, full_netmask(mask_family))
    if isinstance(item.node, yaml.ScalarNode) and _tag(item.node) == "bool":
        return None if _scalar(item, scalars.parse_switch, _SWITCH) is False else default
    if isinstance(item.node, yaml.ScalarNode):
        timeout = _scalar(item, scalars.parse_timeout, _NUMBER)
        return dataclasses.replace(default, timeout=timeout or DEFAULT_PERSISTENCE)
    fields = _fields(item, _PERSISTENCE_KEYS) or {}

    def parse_mask(text: str) -> Address:
        # Without a family no mask can be judged, and the missing family is told elsewhere.
        return parse_netmask(text, family) if family else default.netmask

    return Persistence(
        timeout=_read(fields, "timeout", scalars.parse_timeout, default.timeout, _NUMBER),
        netmask=_read(fields, "netmask", parse_mask, default.netmask, _NUMBER),
        expiry=_read(fields, "expiry", scalars.parse_expiry, default.expiry),
    )


def _read_backend(item: _Item, forward: Forward) -> Backend | None:
    fields = _fields(item, _BACKEND_KEYS)
    if fields is None:
        return None
    if "address" not in fields:
        item.fault("a backend needs an address")
    address = _read(fields, "address", scalars.parse_host, None)
    backend = Backend(
        address=address or full_netmask(Family.IPV4),
        port=_read(fields, "port", scalars.parse_port, None, _NUMBER),
        weight=_read(fields, "weight", parse_weight, 1, _NUMBER),
        forward=_read(fields, "forward", scalars.parse_forward, forward),
        draining=_read(fields, "draining", scalars.parse_switch, False, _SWITCH),
    )
    return backend if address is not None else None


def _without_own_port(key: ServiceKey | None, backend: Backend) -> Backend:
    """The backend without a port that says only what its service's says."""
    if isinstance(key, AddressKey) and backend.port == key.port:
        return dataclasses.replace(backend, port=None)
    return backend


# ---- to YAML ----


class _Row(dict[str, object]):
    """A mapping that is written on one line."""


class _List(list[object]):
    """A list that is written on one line."""


class _Dumper(yaml.SafeDumper):
    pass


def _represent_row(dumper: yaml.SafeDumper, row: _Row) -> yaml.Node:
    return dumper.represent_mapping("tag:yaml.org,2002:map", row.items(), flow_style=True)


def _represent_list(dumper: yaml.SafeDumper, values: _List) -> yaml.Node:
    return dumper.represent_sequence("tag:yaml.org,2002:seq", values, flow_style=True)


_Dumper.add_representer(_Row, _represent_row)
_Dumper.add_representer(_List, _represent_list)


def dump(config: Config) -> str:
    """The configuration as YAML without what is default; `load` gives it back unchanged."""
    tree = {
        "interfaces": _List(config.interfaces),
        "marks": [_rule_row(rule) for rule in config.marks],
        "services": [_service_tree(service) for service in config.services],
        "settings": _changed(config.settings, Settings()),
        "capacity": _changed(config.capacity, Capacity()),
        "features": "all" if config.features is Features.ALL else None,
    }
    given = {key: value for key, value in tree.items() if value}
    return str(yaml.dump(given, Dumper=_Dumper, sort_keys=False, width=100, allow_unicode=True))


def _changed(values: Settings | Capacity, default: Settings | Capacity) -> dict[str, object]:
    names = [field.name for field in dataclasses.fields(values)]
    return {n: getattr(values, n) for n in names if getattr(values, n) != getattr(default, n)}


def _rule_row(rule: MarkRule) -> _Row:
    row = _Row(mark=rule.mark)
    for one, several, _, _ in _CONDITIONS:
        values = getattr(rule, several)
        if several == "addresses" and not values:
            row[one] = "any"
        elif values != getattr(MarkRule(0), several):
            plain = _List(_plain(value) for value in values)
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
        tree["flags"] = _List(str(flag) for flag in service.flags)
    if service.persistence is not None:
        tree["persistence"] = _persistence_row(service.persistence)
    if service.backends:
        tree["backends"] = [_backend_row(backend) for backend in service.backends]
    return tree


def _key_tree(service: Service) -> dict[str, object]:
    key = service.key
    if isinstance(key, AddressKey):
        port = "any" if key.port == ANY_PORT else key.port
        return {"protocol": str(key.protocol), "address": str(key.address), "port": port}
    if key.family is Family.IPV4 and service.backends:
        return {"mark": key.mark}
    return {"mark": key.mark, "family": str(key.family)}


def _persistence_row(persistence: Persistence) -> _Row:
    row = _Row(timeout=persistence.timeout)
    mask = persistence.netmask
    if mask != full_netmask(Family.of(mask)):
        row["netmask"] = str(mask) if mask.version == 4 else int(mask).bit_count()
    if persistence.expiry is not Expiry.IPVS:
        row["expiry"] = str(persistence.expiry)
    return row


def _backend_row(backend: Backend) -> _Row:
    row = _Row(address=str(backend.address))
    if backend.port is not None:
        row["port"] = backend.port
    if backend.weight != 1:
        row["weight"] = backend.weight
    if backend.forward is not Forward.DR:
        row["forward"] = str(backend.forward)
    if backend.draining:
        row["draining"] = True
    return row

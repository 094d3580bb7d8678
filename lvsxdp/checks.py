"""Rules between values: what a configuration of legal values may still get wrong."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator

from lvsxdp import maglev, marks, sources
from lvsxdp.errors import ConfigError
from lvsxdp.model import (
    ANY_PORT,
    MAX_CAPACITY,
    AddressKey,
    Backend,
    Capacity,
    Config,
    Family,
    Features,
    Forward,
    MarkKey,
    MarkRule,
    Network,
    Protocol,
    Scheduler,
    Service,
    ServiceKey,
    Settings,
    Tunnel,
    TunnelChecksum,
    TunnelType,
)

Finding = tuple[str, str]  # a place, and what is wrong there and what would be right

CHECKSUMS = {
    TunnelType.IPIP: (TunnelChecksum.NOCSUM,),
    TunnelType.GRE: (TunnelChecksum.NOCSUM, TunnelChecksum.CSUM),
    TunnelType.GUE: tuple(TunnelChecksum),
}


@dataclasses.dataclass(frozen=True, slots=True)
class Placed:
    """A service, its place and its backends' places: of those that could be read.

    Without the latter the service by itself has been checked before.
    """

    place: str
    service: Service
    backends: tuple[str, ...] | None


@dataclasses.dataclass(frozen=True, slots=True)
class Draft:
    """All that could be read of a file, with its places."""

    interfaces: tuple[str, ...]
    rules: tuple[tuple[str, MarkRule], ...]
    services: tuple[Placed, ...]
    settings: Settings
    capacity: Capacity
    features: Features
    rules_known: bool = False  # they have been checked before, by themselves
    is_running: bool = False  # the tables are made, and as large as they are

    def config(self) -> Config:
        """The configuration, which is whole where there were no faults."""
        return Config(
            interfaces=self.interfaces,
            marks=tuple(rule for _, rule in self.rules),
            services=tuple(placed.service for placed in self.services),
            settings=self.settings,
            capacity=self.capacity,
            features=self.features,
        )


def check(config: Config, known: Config | None = None) -> list[str]:
    """The warnings about a configuration that was put together from legal values.

    ConfigError names all its faults by their places in the file that `dumping.dump` would write.
    What `known` has, the very same services and rules, is not looked at again by itself.
    """
    draft = _placed(config, known)
    found = [f"{place}: {message}" for place, message in faults(draft)]
    if found:
        raise ConfigError(*found)
    return [f"{place}: {message}" for place, message in warnings(draft)]


def _placed(config: Config, known: Config | None) -> Draft:
    same = {id(service) for service in known.services} if known else set()
    services = tuple(
        Placed(place, service, None)
        if id(service) in same
        else Placed(place, service, _places(f"{place}.backends", service.backends))
        for place, service in zip(
            _places("services", config.services), config.services, strict=True
        )
    )
    rules = tuple(zip(_places("marks", config.marks), config.marks, strict=True))
    return Draft(
        config.interfaces,
        rules,
        services,
        config.settings,
        config.capacity,
        config.features,
        rules_known=known is not None and known.marks is config.marks,
        is_running=known is not None,
    )


def _places(place: str, values: Iterable[object]) -> tuple[str, ...]:
    return tuple(f"{place}[{index}]" for index, _ in enumerate(values))


def faults(draft: Draft) -> Iterator[Finding]:
    """What makes the configuration illegal."""
    for place, rule in () if draft.rules_known else draft.rules:
        yield from _rule_faults(place, rule)
    for placed in draft.services:
        yield from _service_faults(placed)
    yield from _repeats((p.place, str(p.service.key)) for p in draft.services)
    names = [(p.place, p.service.name) for p in draft.services]
    yield from _repeats((f"{place}.name", name) for place, name in names if name is not None)
    yield from _pool_faults(draft)
    yield from _capacity_faults(draft)


def _pool_faults(draft: Draft) -> Iterator[Finding]:
    """Services with backends by fullnat for whose family the pool has no address."""
    pool = sources.addresses(draft.settings.source_pool)
    families = set(map(Family.of, pool))
    for placed in draft.services:
        family = placed.service.family
        if family not in families and Forward.FULLNAT in placed.service.forwards:
            what = f"{family} backends by fullnat need {family} addresses to get packets from"
            yield f"{placed.place}.forward", f"{what}; give some as settings.source_pool"
            families.add(family)
    if len(pool) > draft.capacity.sources:
        remedy = _more_room("sources", len(pool), running=draft.is_running)
        what = f"{draft.capacity.sources} is too few for the {len(pool)} of settings.source_pool"
        yield "capacity.sources", f"{what}; {remedy}"


def _rule_faults(place: str, rule: MarkRule) -> Iterator[Finding]:
    sources, destinations = _families(rule.sources), _families(rule.addresses)
    if sources and destinations and sources != destinations:
        what = f"{_names(sources)} beside addresses of {_names(destinations)}"
        yield f"{place}.sources", f"{what}; a packet has one family, write a rule for each"


def _families(networks: Iterable[Network]) -> set[Family]:
    return {Family.of(network) for network in networks}


def _names(families: set[Family]) -> str:
    return " and ".join(sorted(families))


def _service_faults(placed: Placed) -> Iterator[Finding]:
    place, service = placed.place, placed.service
    if placed.backends is None:
        return
    yield from _scheduler_faults(place, service)
    yield from _protocol_faults(place, service)
    yield from _engine_faults(place, service)
    is_any = isinstance(service.key, AddressKey) and service.key.port == ANY_PORT
    if is_any and service.persistence is None:
        yield f"{place}.port", "any needs persistence; give persistence, or one port"
    backends = list(zip(placed.backends, service.backends, strict=True))
    for where, backend in backends:
        yield from _backend_faults(where, backend, service)
    yield from _repeats((where, str(backend)) for where, backend in backends)


def _protocol_faults(place: str, service: Service) -> Iterator[Finding]:
    """Keys that say something about one protocol, where the service is of another."""
    key = service.key
    for name, wanted in (("one_packet", Protocol.UDP), ("sloppy_tcp", Protocol.TCP)):
        if getattr(service, name) and isinstance(key, AddressKey) and key.protocol is not wanted:
            what = f"is for {wanted} and mark services, and the service is {key.protocol}"
            yield f"{place}.{name}", f"{what}; leave it out"


def _engine_faults(place: str, service: Service) -> Iterator[Finding]:
    """An engine looks into UDP packets, which other services have none of."""
    key, kept = service.key, service.persistence
    if kept is None or kept.engine is None or not isinstance(key, AddressKey):
        return
    if key.protocol is not Protocol.UDP:
        what = f"{kept.engine} is for udp and mark services, and the service is {key.protocol}"
        yield f"{place}.persistence.engine", f"{what}; leave it out"


def _scheduler_faults(place: str, service: Service) -> Iterator[Finding]:
    foreign = [flag for flag in service.flags if flag.scheduler is not service.scheduler]
    if foreign:
        what = f"{foreign[0]} belongs to scheduler {foreign[0].scheduler}"
        yield f"{place}.flags", f"{what}, and the scheduler is {service.scheduler}"
    if service.scheduler is Scheduler.MH and len(service.backends) > maglev.SLOTS:
        what = f"{len(service.backends)} are more than the {maglev.SLOTS} slots of mh's table"
        yield f"{place}.backends", f"{what}; leave some out, or choose another scheduler"


def _backend_faults(place: str, backend: Backend, service: Service) -> Iterator[Finding]:
    family = Family.of(backend.address)
    if family is not service.family and backend.forward is not Forward.TUNNEL:
        what = f"{backend.address} is {family} and the service is {service.family}"
        yield f"{place}.address", f"{what}; each family is a service of its own"
    if backend.forward is Forward.FULLNAT and service.one_packet:
        what = "a service whose packets are scheduled one by one keeps no connection"
        yield f"{place}.forward", f"{what}, which fullnat needs; leave one_packet out"
    for key, fault in _tunnel_faults(backend):
        yield f"{place}.tunnel{key}", fault
    upper, lower = backend.upper_threshold, backend.lower_threshold
    if lower > upper:
        what = f"{lower} is above upper_threshold ({upper or 'none'})"
        yield f"{place}.lower_threshold", f"{what}; give {lower} or more as upper_threshold"
    if backend.port is None or backend.forward.may_change_port:
        return
    if isinstance(service.key, AddressKey):
        port = "any" if service.key.port == ANY_PORT else service.key.port
        what = f"{backend.port} is not the service's port ({port})"
    elif service.persistence is None:
        what = f"{backend.port} is given, and a mark service forwards to the packet's own port"
    else:
        return
    yield f"{place}.port", f"{what}, which {backend.forward} cannot change; leave port out"


def _tunnel_faults(backend: Backend) -> Iterator[Finding]:
    """Keys of `tunnel`, each with what is wrong with it."""
    tunnel, family = backend.tunnel, Family.of(backend.address)
    if backend.forward is not Forward.TUNNEL:
        if tunnel != Tunnel():
            yield "", f"is for forward: tunnel, and the method is {backend.forward}; leave it out"
        return
    if tunnel.type is TunnelType.GUE and tunnel.port is None:
        yield ".port", "gue needs the UDP port on which the backend listens for it; give port"
    if tunnel.type is not TunnelType.GUE and tunnel.port is not None:
        yield ".port", f"is for type: gue, and the type is {tunnel.type}; leave it out"
    if tunnel.checksum not in CHECKSUMS[tunnel.type]:
        known = ", ".join(CHECKSUMS[tunnel.type])
        yield ".checksum", f"{tunnel.type} has no {tunnel.checksum}; it has {known}"
    if tunnel.source is not None and Family.of(tunnel.source) is not family:
        what = f"{tunnel.source} is {Family.of(tunnel.source)}, and the backend is {family}"
        yield ".source", f"{what}; give an address of this host of the backend's family"


def _repeats(named: Iterable[tuple[str, str]]) -> Iterator[Finding]:
    first: dict[str, str] = {}
    for place, name in named:
        if name in first:
            yield place, f"{name} is already {first[name]}; each may stand there once"
        first.setdefault(name, place)


def _capacity_faults(draft: Draft) -> Iterator[Finding]:
    services, rules = len(draft.services), len(draft.rules)
    backends = sum(len(placed.service.backends) for placed in draft.services)
    for key, count, most in (
        ("services", services, draft.capacity.services),
        ("backends", backends, draft.capacity.backends),
        ("marks", rules, draft.capacity.marks),
    ):
        if count > most:
            remedy = _more_room(key, count, running=draft.is_running)
            yield f"capacity.{key}", f"{most} is too few for {count} {key}; {remedy}"


def _more_room(key: str, count: int, *, running: bool) -> str:
    if count > MAX_CAPACITY[key]:
        return f"{MAX_CAPACITY[key]} is the most, leave some out"
    more = f"raise it to {count} or more"
    return f"save, {more}, detach --all, attach -c" if running else more


def warnings(draft: Draft) -> Iterator[Finding]:
    """What is legal and probably not meant."""
    rules = () if draft.rules_known else tuple(rule for _, rule in draft.rules)
    for line in marks.warnings(rules):
        place, _, message = line.partition(": ")
        yield place, message
    yield from _idle_marks(draft)
    for placed in draft.services:
        yield from _ignored_ports(placed)


def _idle_marks(draft: Draft) -> Iterator[Finding]:
    """Marks that a rule gives and no service has, and the other way round."""
    served = {p.service.key for p in draft.services}
    given: set[ServiceKey] = set()
    for place, rule in draft.rules:
        named = _families(rule.addresses) or _families(rule.sources)
        keys = {MarkKey(rule.mark, family) for family in named or set(Family)}
        idle = keys - served - given
        given |= keys
        if rule.mark and idle and (named or not keys & served):
            names = " or ".join(sorted(map(str, idle)))
            yield f"{place}.mark", f"there is no service {names}; give one, or leave the rule out"
    for placed in draft.services:
        key = placed.service.key
        if isinstance(key, MarkKey) and key not in given:
            hint = "only packets that an earlier tc filter marked will reach it"
            yield f"{placed.place}.mark", f"no mark rule gives {key}; {hint}"


def _ignored_ports(placed: Placed) -> Iterator[Finding]:
    service = placed.service
    is_any = isinstance(service.key, MarkKey) or service.key.port == ANY_PORT
    if placed.backends is None or service.persistence is None or not is_any:
        return
    kind = "mark" if isinstance(service.key, MarkKey) else "any-port"
    for place, backend in zip(placed.backends, service.backends, strict=True):
        if backend.port is not None:
            why = f"a persistent {kind} service forwards to the packet's own port"
            yield f"{place}.port", f"{backend.port} is ignored: {why}; leave it out"

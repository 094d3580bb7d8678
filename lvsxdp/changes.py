"""Configurations compared and edited: what a command will do, and the Config it leads to."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from typing import Literal

from lvsxdp.errors import ConfigError, ConflictError, NotFoundError
from lvsxdp.model import (
    Backend,
    Capacity,
    Config,
    Engine,
    Expiry,
    MarkRule,
    Persistence,
    Scheduler,
    SchedulerFlag,
    Service,
)
from lvsxdp.scalars import full_netmask, parse_netmask


def describe(old: Config, new: Config) -> list[str]:
    """One line for each thing that `new` has otherwise than `old`; empty where they are equal."""
    lines = list(_service_lines(old, new))
    if old.marks != new.marks:
        lines.append(f"marks: {len(old.marks)} rules become {len(new.marks)}")
    for field in dataclasses.fields(new.settings):
        before, after = getattr(old.settings, field.name), getattr(new.settings, field.name)
        if before != after:
            lines.append(f"settings.{field.name}: {before} becomes {after}")
    if old.interfaces != new.interfaces:
        lines.append(f"interfaces: {_names(old.interfaces)} become {_names(new.interfaces)}")
    if old.features != new.features:
        lines.append(f"features: {old.features} becomes {new.features}")
    return lines


def _names(values: tuple[str, ...]) -> str:
    return " ".join(values) or "none"


def _service_lines(old: Config, new: Config) -> Iterator[str]:
    before = {service.key: service for service in others(old, new)}
    after = {service.key: service for service in others(new, old)}
    for key, service in before.items():
        if key not in after:
            yield f"service {service}: removed with {len(service.backends)} backends"
    for key, service in after.items():
        if key not in before:
            yield f"service {service}: added with {len(service.backends)} backends"
        else:
            yield from _edits(before[key], service)


def others(mine: Config, yours: Config) -> list[Service]:
    """The services of one configuration that are not the very same in another."""
    same = set(map(id, yours.services))
    return [service for service in mine.services if id(service) not in same]


def _edits(old: Service, new: Service) -> Iterator[str]:
    for name in ("name", "scheduler", "flags", "persistence", "one_packet", "sloppy_tcp"):
        before, after = getattr(old, name), getattr(new, name)
        if before != after:
            yield f"service {new}: {name} {_words(before)} becomes {_words(after)}"
    was = {backend.key: backend for backend in old.backends}
    now = {backend.key: backend for backend in new.backends}
    for key, backend in was.items():
        if key not in now:
            yield f"service {new}: backend {backend} removed"
    for key, backend in now.items():
        if key not in was:
            yield f"service {new}: backend {backend} added, weight {backend.weight}"
        elif was[key] != backend:
            yield f"service {new}: backend {backend} {_difference(was[key], backend)}"
    if [k for k in was if k in now] != [k for k in now if k in was]:
        yield f"service {new}: backends in another order"


def _words(value: bool | str | tuple[str, ...] | Persistence | None) -> str:
    """A service's property in the words of the file."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Persistence):
        expiry = f", expiry {value.expiry}" if value.expiry is Expiry.STRICT else ""
        engine = f", engine {value.engine}" if value.engine else ""
        return f"{value.timeout} s, netmask {value.netmask}{expiry}{engine}"
    return _names(value) if isinstance(value, tuple) else value or "none"


def _difference(old: Backend, new: Backend) -> str:
    parts = []
    for field in (field for field in dataclasses.fields(new) if field.compare):
        before, after = getattr(old, field.name), getattr(new, field.name)
        if before != after:
            parts.append(f"{field.name} {before} becomes {after}")
    return ", ".join(parts)


@dataclasses.dataclass(frozen=True, slots=True)
class Edits:
    """What a command line says of a service; None and the empty tuple leave it as it is."""

    name: str | None = None
    scheduler: Scheduler | None = None
    flags: tuple[SchedulerFlag, ...] = ()
    timeout: int | None = None  # seconds of persistence; 0 ends it
    netmask: str | None = None
    expiry: Expiry | None = None
    engine: Engine | Literal["none"] | None = None
    one_packet: bool | None = None
    sloppy_tcp: bool | None = None


def edit_service(service: Service, edits: Edits) -> Service:
    """The service with what is edited; another scheduler has no flags but those given with it."""
    scheduler = edits.scheduler or service.scheduler
    kept = service.flags if scheduler is service.scheduler else ()
    return dataclasses.replace(
        service,
        name=edits.name or service.name,
        scheduler=scheduler,
        flags=edits.flags or kept,
        persistence=_edit_persistence(service, edits),
        one_packet=service.one_packet if edits.one_packet is None else edits.one_packet,
        sloppy_tcp=service.sloppy_tcp if edits.sloppy_tcp is None else edits.sloppy_tcp,
    )


def _edit_persistence(service: Service, edits: Edits) -> Persistence | None:
    kept = None if edits.timeout == 0 else service.persistence
    if edits.timeout:
        before = kept or Persistence(0, full_netmask(service.family))
        kept = dataclasses.replace(before, timeout=edits.timeout)
    if kept is None:
        if edits.netmask is not None or edits.expiry is not None or edits.engine is not None:
            raise ConfigError(
                f"netmask, expiry and engine are persistence's, and service {service} has none: "
                "give the seconds of persistence, too"
            )
        return None
    if edits.netmask is not None:
        try:
            netmask = parse_netmask(edits.netmask, service.family)
        except ConfigError as err:
            raise ConfigError(f"service {service}: netmask: {err}") from None
        kept = dataclasses.replace(kept, netmask=netmask)
    engine = None if edits.engine == "none" else edits.engine or kept.engine
    return dataclasses.replace(kept, expiry=edits.expiry or kept.expiry, engine=engine)


def is_of_weights(old: Config, new: Config) -> bool:
    """Whether services, their backends and the mark rules are the same ones, by their keys."""
    return (
        (old.marks is new.marks or old.marks == new.marks)
        and len(old.services) == len(new.services)
        and all(
            before is after
            or (
                before.key == after.key
                and [b.key for b in before.backends] == [b.key for b in after.backends]
            )
            for before, after in zip(old.services, new.services, strict=True)
        )
    )


def brings_rules_or_services(old: Config, new: Config) -> bool:
    """Whether `new` has other mark rules than `old`, or a service that `old` has not."""
    if old.marks is not new.marks and old.marks != new.marks:
        return True
    pairs = zip(old.services, new.services, strict=False)
    if len(new.services) <= len(old.services) and all(a is b or a.key == b.key for a, b in pairs):
        # as after most edits; of very many services the rest takes long
        return False
    return not {s.key for s in new.services} <= {s.key for s in old.services}


def add_service(config: Config, service: Service) -> Config:
    """The configuration with one service more, the last of its file."""
    if any(s.key == service.key for s in config.services):
        raise ConflictError(f"there is a service {service.key} already (service edit)")
    _refuse_taken_name(config, service)
    return dataclasses.replace(config, services=(*config.services, service))


def remove_service(config: Config, service: Service) -> Config:
    """The configuration without one service."""
    services = tuple(s for s in config.services if s.key != service.key)
    return dataclasses.replace(config, services=services)


def add_rule(config: Config, rule: MarkRule, before: int | None = None) -> Config:
    """The configuration with one mark rule more: the last, or before the one of that number."""
    place = len(config.marks) if before is None else _rule_place(config, before)
    marks = (*config.marks[:place], rule, *config.marks[place:])
    return dataclasses.replace(config, marks=marks)


def remove_rules(config: Config, numbers: Iterable[int]) -> Config:
    """The configuration without the mark rules of these numbers, counted from 1."""
    gone = {_rule_place(config, number) for number in numbers}
    marks = tuple(rule for place, rule in enumerate(config.marks) if place not in gone)
    return dataclasses.replace(config, marks=marks)


def _rule_place(config: Config, number: int) -> int:
    if not 1 <= number <= len(config.marks):
        raise NotFoundError(f"no mark rule {number}; there are {len(config.marks)} (mark list)")
    return number - 1


def _refuse_taken_name(config: Config, service: Service) -> None:
    for other in config.services if service.name is not None else ():
        if other.name == service.name and other.key != service.key:
            raise ConflictError(f'service {other.key} has the name "{other.name}" already')


def replace_service(config: Config, service: Service) -> Config:
    """The configuration with one service exchanged for its new form."""
    _refuse_taken_name(config, service)
    services = tuple(service if s.key == service.key else s for s in config.services)
    return dataclasses.replace(config, services=services)


def replace_backend(service: Service, backend: Backend) -> Service:
    """The service with one backend exchanged for its new form."""
    backends = tuple(backend if b.key == backend.key else b for b in service.backends)
    return dataclasses.replace(service, backends=backends)


def add_backend(service: Service, backend: Backend) -> Service:
    """The service with one backend more, last in the file and so first in the list."""
    if any(b.key == backend.key for b in service.backends):
        raise ConflictError(f"service {service} has the backend {backend} already (backend edit)")
    return dataclasses.replace(service, backends=(*service.backends, backend))


def remove_backend(service: Service, backend: Backend) -> Service:
    """The service without one backend."""
    backends = tuple(b for b in service.backends if b.key != backend.key)
    return dataclasses.replace(service, backends=backends)


def follow(
    running: Config, wanted: Config, *, undrain: bool = False, detach: bool = False
) -> Config:
    """`wanted` as what runs can become it: with its drains, unless `undrain`.

    Interfaces stay, all where it names none, and those that it leaves out unless `detach`.

    ConflictError where the capacity differs, which belongs to the tables as they were loaded.
    """
    capacity = capacity_of(running, wanted)
    if capacity != running.capacity:
        differing = "; ".join(capacity_lines(running, wanted))
        raise ConflictError(
            f"capacity cannot change while attached ({differing}): attach IFACE -c FILE --force "
            "makes the tables anew, without their entries"
        )
    named = wanted.interfaces
    stay = tuple(n for n in running.interfaces if n in named or not (detach and named))
    more = tuple(name for name in wanted.interfaces if name not in stay)
    wanted = dataclasses.replace(wanted, capacity=capacity, interfaces=(*stay, *more))
    return wanted if undrain else keep_drains(running, wanted)


def capacity_of(running: Config, wanted: Config) -> Capacity:
    """The capacity that `wanted` asks for: where it says nothing, what runs."""
    return dataclasses.replace(
        wanted.capacity,
        connections=wanted.capacity.connections or running.capacity.connections,
        persistence=wanted.capacity.persistence or running.capacity.persistence,
    )


def capacity_lines(running: Config, wanted: Config) -> Iterator[str]:
    """One line for each table that `wanted` asks for in another size."""
    old, new = running.capacity, capacity_of(running, wanted)
    for field in dataclasses.fields(new):
        before, after = getattr(old, field.name), getattr(new, field.name)
        if before != after:
            yield f"capacity.{field.name}: {before} runs, {after} is asked for"


def kept_sources(sources: Mapping[str, str], read: Config, wanted: Config) -> dict[str, str]:
    """What texts are known by, of the services that are to run just as they were read."""
    same = {id(service) for service in read.services}
    keys = (str(service.key) for service in wanted.services if id(service) in same)
    return {key: sources[key] for key in keys if key in sources}


def keep_drains(running: Config, wanted: Config) -> Config:
    """`wanted`, with the backends draining that drain now: a file does not end a drain."""
    same = {id(service) for service in wanted.services}
    draining = {
        (service.key, backend.key)
        for service in running.services
        if id(service) not in same
        for backend in service.backends
        if backend.draining
    }
    if not draining:
        return wanted
    draining_services = {key for key, _ in draining}
    services = tuple(
        dataclasses.replace(
            service,
            backends=tuple(
                dataclasses.replace(b, draining=b.draining or (service.key, b.key) in draining)
                for b in service.backends
            ),
        )
        if service.key in draining_services
        else service
        for service in wanted.services
    )
    return dataclasses.replace(wanted, services=services)


def keep_last_weights(running: Config, wanted: Config) -> Config:
    """`wanted`, with what backends of weight 0 weighed before they got it: no file says that."""
    before = {service.key: service for service in others(running, wanted)}
    if not before:
        return wanted
    services = tuple(_with_last_weights(before.get(s.key), s) for s in wanted.services)
    return dataclasses.replace(wanted, services=services)


def _with_last_weights(old: Service | None, new: Service) -> Service:
    if old is None or all(backend.weight for backend in new.backends):
        return new
    last = {backend.key: backend.last_weight for backend in old.backends}
    backends = tuple(
        dataclasses.replace(b, last_weight=last.get(b.key, b.last_weight)) for b in new.backends
    )
    return dataclasses.replace(new, backends=backends)

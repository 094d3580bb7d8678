"""Configurations compared and edited: what a command will do, and the Config it leads to."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

from lvsxdp.errors import ConflictError
from lvsxdp.model import Backend, Config, Expiry, Persistence, Service


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
    before = {service.key: service for service in old.services}
    after = {service.key: service for service in new.services}
    for key, service in before.items():
        if key not in after:
            yield f"service {service}: removed with {len(service.backends)} backends"
    for key, service in after.items():
        if key not in before:
            yield f"service {service}: added with {len(service.backends)} backends"
        else:
            yield from _edits(before[key], service)


def _edits(old: Service, new: Service) -> Iterator[str]:
    for name in ("name", "scheduler", "flags", "persistence"):
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


def _words(value: str | tuple[str, ...] | Persistence | None) -> str:
    """A service's property in the words of the file."""
    if isinstance(value, Persistence):
        expiry = f", expiry {value.expiry}" if value.expiry is Expiry.STRICT else ""
        return f"{value.timeout} s, netmask {value.netmask}{expiry}"
    return _names(value) if isinstance(value, tuple) else value or "none"


def _difference(old: Backend, new: Backend) -> str:
    parts = []
    for field in dataclasses.fields(new):
        before, after = getattr(old, field.name), getattr(new, field.name)
        if before != after:
            parts.append(f"{field.name} {before} becomes {after}")
    return ", ".join(parts)


def replace_service(config: Config, service: Service) -> Config:
    """The configuration with one service exchanged for its new form."""
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


def follow(running: Config, wanted: Config, *, undrain: bool = False) -> Config:
    """`wanted` as what runs can become it: with its drains, unless `undrain`.

    ConflictError where the capacity differs, which belongs to the tables as they were loaded.
    """
    capacity = dataclasses.replace(
        wanted.capacity,
        connections=wanted.capacity.connections or running.capacity.connections,
        persistence=wanted.capacity.persistence or running.capacity.persistence,
    )
    if capacity != running.capacity:
        raise ConflictError("capacity cannot change while attached: detach --all, then attach")
    wanted = dataclasses.replace(wanted, capacity=capacity)
    return wanted if undrain else keep_drains(running, wanted)


def keep_drains(running: Config, wanted: Config) -> Config:
    """`wanted`, with the backends draining that drain now: a file does not end a drain."""
    draining = {(s.key, b.key) for s in running.services for b in s.backends if b.draining}
    services = tuple(
        dataclasses.replace(
            service,
            backends=tuple(
                dataclasses.replace(b, draining=b.draining or (service.key, b.key) in draining)
                for b in service.backends
            ),
        )
        for service in wanted.services
    )
    return dataclasses.replace(wanted, services=services)

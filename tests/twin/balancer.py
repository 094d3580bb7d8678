"""The twin: lvsxdp attached to a namespace's cable, changed and read as its commands do."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lvsxdp import (
    ageing,
    attaching,
    changes,
    compiler,
    controller,
    entries,
    forgetting,
    loading,
    names,
    network,
    views,
)
from lvsxdp.book import FORGOTTEN
from lvsxdp.controller import Balancer
from lvsxdp.loading import Build
from lvsxdp.model import Address, Backend, Capacity, Config, Features, ServiceKey, Settings
from lvsxdp.network import Network
from lvsxdp.rates import Rates
from tests.twin import topology
from tests.twin.compare import Connection, Counters, Server, ServerKey, Snapshot, Template
from tests.twin.script import (
    AddRule,
    DeleteBackend,
    DeleteRule,
    DeleteService,
    PutBackend,
    PutService,
    Send,
    Set,
    Step,
    Wait,
)

NAME = "twin"
# Small tables are read soon.
EMPTY = Config(
    settings=Settings(expire_nodest_conn=False, conn_reuse_mode=1),
    capacity=Capacity(connections=1024, persistence=1024, services=64, backends=256, marks=64),
    features=Features.ALL,
)
# The guest's, so that its programs can be compiled on the host, which takes seconds.
DEFINES = {"HZ": 250, "CPUS": 1, "INTERFACE_CAPACITY": 1024}


def compile_ahead(cache: Path) -> None:
    """Compiles all that the guest is going to load."""
    build = Build(DEFINES, cache=cache)
    defines = loading.defines_of(EMPTY, build)
    loading.compile_control(defines, build)
    for hook in loading.HOOKS:
        mine = {**defines, f"HOOK_{hook.upper()}": 1}
        compiler.compile_source("lvsxdp.c", mine, cache=cache)


def edited(config: Config, step: Step) -> Config:
    """The configuration after a step of a script."""
    match step:
        case AddRule(rule):
            return changes.add_rule(config, rule)
        case DeleteRule(number):
            return changes.remove_rules(config, [number])
        case PutService(service, True):
            return changes.add_service(config, service)
        case PutService(service, False):
            known = names.find_service(config, str(service.key))
            service = dataclasses.replace(service, backends=known.backends)
            return changes.replace_service(config, service)
        case DeleteService(key):
            return changes.remove_service(config, names.find_service(config, str(key)))
        case PutBackend(key, backend, fresh):
            return _with_backend(config, key, backend, fresh)
        case DeleteBackend(key, address):
            return _without_backend(config, key, address)
        case Set(name, value):
            return _with_setting(config, name, value)
        case Send() | Wait():
            pass
    return config


def _with_setting(config: Config, name: str, value: int) -> Config:
    kind = type(getattr(config.settings, name))
    settings = dataclasses.replace(config.settings, **{name: kind(value)})
    return dataclasses.replace(config, settings=settings)


def _with_backend(config: Config, key: ServiceKey, backend: Backend, fresh: bool) -> Config:
    service = names.find_service(config, str(key))
    put = changes.add_backend if fresh else changes.replace_backend
    return changes.replace_service(config, put(service, backend))


def _without_backend(config: Config, key: ServiceKey, address: Address) -> Config:
    service = names.find_service(config, str(key))
    backend = names.find_backend(service, str(address))
    return changes.replace_service(config, changes.remove_backend(service, backend))


class Twin:
    """A running lvsxdp in its namespace, changed and read from outside."""

    def __init__(self, balancer: Balancer, net: Network) -> None:
        self.balancer, self.net = balancer, net

    @property
    def config(self) -> Config:
        """What is configured."""
        return self.balancer.state.config

    def apply(self, step: Step) -> None:
        """Does what a step of the script asks for."""
        wanted = edited(self.config, step)
        if wanted != self.config:
            self._bring(wanted)

    def _bring(self, wanted: Config) -> None:
        with topology.inside(NAME):
            self.balancer.apply(wanted, self.net, by_hand=True)

    def clear(self) -> None:
        """Nothing is configured or remembered."""
        known = self.config
        self._bring(dataclasses.replace(known, marks=(), services=(), settings=EMPTY.settings))
        tables = (*views.CONNECTIONS, *views.PERSISTENCE)
        self.balancer.reap(views.places(self.balancer, tables), force=True)
        self.sweep()
        time.sleep(FORGOTTEN)
        self.sweep()

    def sweep(self) -> None:
        """Does what `lvsxdp run` does every so often."""
        ageing.sweep(self.balancer)
        forgetting.look_and_keep(self.balancer)

    def snapshot(self) -> Snapshot:
        """All that the list commands show."""
        connections, templates = {}, {}
        for row in views.connections(self.balancer):
            found = entries.as_row(entries.CONNECTION, row)
            flow = f"{found['protocol']} {found['client']} {found['virtual']}"
            connections[flow] = Connection(
                found["backend"], found["state"], found["expires_in"], found["service"]
            )
        for row in views.persistence(self.balancer):
            found = entries.as_row(entries.PERSISTENCE, row)
            client = found["client"].partition("/")[0]
            templates[str(found["service"]), client] = Template(
                found["backend"], found["expires_in"]
            )
        servers = self._servers()
        return Snapshot(
            connections,
            templates,
            {key: _picked(Server, row) for key, row in servers.items()},
            {key: _picked(Counters, row) for key, row in servers.items()},
        )

    def servers(self) -> set[ServerKey]:
        """The backends that are configured, by service."""
        return {(str(s), str(b.address)) for s in self.config.services for b in s.backends}

    def _servers(self) -> dict[ServerKey, dict[str, Any]]:
        """The rows of `backend list` but for the roads, of which the kernel would be asked."""
        rows = {}
        for service in self.config.services:
            for backend in service.backends:
                key = str(service), str(backend.address)
                rows[key] = views._backend_row(self.balancer, service, backend, Rates())
        return rows


def _picked(kind: type[Any], row: dict[str, Any]) -> Any:
    return kind(**{field.name: row[field.name] for field in dataclasses.fields(kind)})


@contextlib.contextmanager
def twin(cache: Path) -> Iterator[tuple[Twin, topology.Wire]]:
    """lvsxdp attached in native mode, with nothing configured."""
    network.leave_private_mounts()
    with topology.wired(NAME) as wire:
        topology.pass_all(f"{NAME}-front")
        with topology.inside(NAME):
            for sysctl in controller.SYSCTLS:
                network.set_sysctl(sysctl, "1")
            where, net = controller.here(), Network()
            build = Build(DEFINES, cache=cache)
            attaching.attach(where, net, ("front",), EMPTY, "native", build=build)
        with net, Balancer.open(where) as balancer:
            yield Twin(balancer, net), wire
        with topology.inside(NAME), Network() as net:
            attaching.detach_all(where, net)

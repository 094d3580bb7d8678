"""What is seen of a twin, and in what two twins differ."""

from __future__ import annotations

import dataclasses
from collections.abc import Container, Iterator, Mapping
from typing import TypeVar

# IPVS shows whole seconds, cut off, and each twin gets its packet and is asked in its turn.
CUT_OFF = 1.6
EARLY = -0.6
# The kernel's timers of 16 to 129 s may run so much late, and IPVS's templates are armed anew from
# there, once a minute.
TIMER_LATE = 2.1
REARM = 60


@dataclasses.dataclass(frozen=True, slots=True)
class Connection:
    """A connection; `backend` and `service` are None where they are not known (any more)."""

    backend: str | None
    state: str
    left: float
    service: str | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class Template:
    """A client's backend for a service."""

    backend: str | None
    left: float


@dataclasses.dataclass(frozen=True, slots=True)
class Server:
    """A backend of a service, and what it has.

    Its templates are compared one by one; IPVS counts those that it has renamed, too.
    """

    weight: int
    active: int
    inactive: int


@dataclasses.dataclass(frozen=True, slots=True)
class Counters:
    """What a backend has been given."""

    connections: int
    packets: int
    bytes: int


# Service and client, service and backend.
TemplateKey = tuple[str, str]
ServerKey = tuple[str, str]
Key = TypeVar("Key", str, tuple[str, str])


@dataclasses.dataclass(frozen=True, slots=True)
class Snapshot:
    """What a twin shows at one moment; connections by flow."""

    connections: Mapping[str, Connection]
    templates: Mapping[TemplateKey, Template]
    servers: Mapping[ServerKey, Server]
    counters: Mapping[ServerKey, Counters]


class Drift:
    """How far IPVS's templates may have come to be late."""

    def __init__(self) -> None:
        self.exact: dict[TemplateKey, float] = {}
        self.late: dict[TemplateKey, float] = {}

    def allowed(self, key: TemplateKey, later: float, now: float) -> float:
        """By how many seconds IPVS may be later than lvsxdp, which it is by `later` now."""
        if EARLY <= -later <= CUT_OFF or key not in self.exact:
            self.exact[key] = now
        # a second is hidden by what is cut off
        self.late[key] = 1 + TIMER_LATE * (1 + (now - self.exact[key]) // REARM)
        return self.late[key]


def differences(judge: Snapshot, twin: Snapshot, drift: Drift, now: float) -> Iterator[str]:
    """A line for each thing in which the twins differ."""
    yield from _connections(judge, twin)
    yield from _templates(judge, twin, drift, now)
    yield from _unequal("backend", judge.servers, twin.servers)


def _connections(judge: Snapshot, twin: Snapshot) -> Iterator[str]:
    yield from _alone("connection", judge.connections, twin.connections)
    for flow in judge.connections.keys() & twin.connections.keys():
        ours, theirs = twin.connections[flow], judge.connections[flow]
        # a backend that has been removed has no name in lvsxdp
        same = ours.backend in (None, theirs.backend) and ours.state == theirs.state
        if not same or not EARLY <= ours.left - theirs.left <= CUT_OFF:
            yield f"connection {flow}: IPVS {theirs}, lvsxdp {ours}"


def _templates(judge: Snapshot, twin: Snapshot, drift: Drift, now: float) -> Iterator[str]:
    mine, yours = usable(twin), usable(judge)
    yield from _alone("persistence", yours, mine)
    for key in yours.keys() & mine.keys():
        ours, theirs = mine[key], yours[key]
        ahead = ours.left - theirs.left
        late = drift.allowed(key, -ahead, now)
        same = ours.backend in (None, theirs.backend)
        if not same or not EARLY - late <= ahead <= CUT_OFF:
            yield f"persistence {key}: IPVS {theirs}, lvsxdp {ours}"


def usable(snapshot: Snapshot) -> dict[TemplateKey, Template]:
    """The templates of services that are there; of others lvsxdp does not tell whose they are."""
    there = {service for service, _ in snapshot.servers}
    return {key: found for key, found in snapshot.templates.items() if key[0] in there}


def _alone(what: str, judge: Mapping[Key, object], twin: Mapping[Key, object]) -> Iterator[str]:
    for key in judge.keys() - twin.keys():
        yield f"{what} {key}: IPVS {judge[key]}, lvsxdp has none"
    for key in twin.keys() - judge.keys():
        yield f"{what} {key}: IPVS has none, lvsxdp {twin[key]}"


def _unequal(what: str, judge: Mapping[Key, object], twin: Mapping[Key, object]) -> Iterator[str]:
    yield from _alone(what, judge, twin)
    for key in judge.keys() & twin.keys():
        if judge[key] != twin[key]:
            yield f"{what} {key}: IPVS {judge[key]}, lvsxdp {twin[key]}"


def counted_differences(
    judge: Snapshot, twin: Snapshot, uncertain: Container[ServerKey]
) -> Iterator[str]:
    """A line for each backend that has other counters; IPVS's are two seconds old.

    A removed backend is forgotten with its counters two minutes or more after its last entry: of
    those that came back then, it is `uncertain` what they have.
    """
    ours, theirs = (
        {key: found for key, found in seen.counters.items() if key not in uncertain}
        for seen in (twin, judge)
    )
    return _unequal("counters", theirs, ours)


def differing_answers(judge: list[str], twin: list[str]) -> Iterator[str]:
    """A line where a packet became other frames."""
    if judge != twin:
        yield f"IPVS {judge or 'nothing'}, lvsxdp {twin or 'nothing'}"

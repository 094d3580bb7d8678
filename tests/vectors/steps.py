"""What a case does and what it expects, step by step, with no trace of YAML or of the kernel."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from tests.vectors.commands import Command
from tests.vectors.services import Mark, Server, Service
from tests.vectors.words import Flow, Kind, Packet


@dataclasses.dataclass(frozen=True)
class Entry:
    """A connection or template as ipvsadm lists it; None where nothing is said."""

    protocol: int
    client: tuple[str, int] | None
    virtual: tuple[str, int]
    server: tuple[str, int]
    state: str | None = None
    seconds: float | None = None


# ------------------------------------------------------------------------------------------- acts


@dataclasses.dataclass(frozen=True)
class Reach:
    """Time passes until `seconds` after the beginning."""

    seconds: float


@dataclasses.dataclass(frozen=True)
class Wait:
    """So many seconds pass."""

    seconds: float


@dataclasses.dataclass(frozen=True)
class Send:
    """Flows of packets; where each goes, and what becomes of the last (an outcome's name).

    `servers` has one letter a packet, or a flow; `-` is no destination.
    """

    flows: tuple[Flow, ...]
    servers: tuple[str, ...] | None = None
    outcome: str | None = None


@dataclasses.dataclass(frozen=True)
class Picks:
    """One new connection a letter; each client is an address, a port and a destination."""

    letters: str
    clients: tuple[tuple[str, int, str], ...]
    kind: Kind
    port: int


@dataclasses.dataclass(frozen=True)
class Carry:
    """A command of ipvsadm; `refused` where it is to fail."""

    command: Command
    refused: bool = False


@dataclasses.dataclass(frozen=True)
class Set:
    """Settings of net.ipv4.vs."""

    values: Mapping[str, int]


@dataclasses.dataclass(frozen=True)
class EditServers:
    """A server is added, edited or deleted, as a scheduler's steps say it."""

    verb: str
    server: Server


@dataclasses.dataclass(frozen=True)
class Serve:
    """Other services take the place of those that there were, with nothing left of before."""

    services: tuple[Service, ...]


@dataclasses.dataclass(frozen=True)
class Reply:
    """The last connection's server answers with TCP's flags, through the balancer."""

    flags: str


@dataclasses.dataclass(frozen=True)
class Kept:
    """New connections, a packet each, and which of the packets a server gets."""

    kind: Kind
    kept: tuple[bool, ...]


@dataclasses.dataclass(frozen=True)
class Continued:
    """The last connection goes on with so many packets, and so many of them arrive."""

    packets: int
    kept: int


@dataclasses.dataclass(frozen=True)
class Load:
    """Connections that exist before: active and inactive by server."""

    counts: Mapping[str, tuple[int, int]]


@dataclasses.dataclass(frozen=True)
class Close:
    """Connections of a server are reset by their clients; `gone`: and their entries end."""

    server: str
    count: int | None
    gone: bool


@dataclasses.dataclass(frozen=True)
class Leaves:
    """A packet as YAML describes it, and what leaves of it; `mtu` is what its road takes."""

    service: Service
    request: Mapping[str, Any]
    mtu: int | None
    expected: Mapping[str, Any]
    is_local: bool


@dataclasses.dataclass(frozen=True)
class Error:
    """An ICMP error as a case says it, and what becomes of it for its client or server."""

    said: Mapping[str, str | None]
    to: str
    expected: Mapping[str, str]


# ----------------------------------------------------------------------------------------- checks


@dataclasses.dataclass(frozen=True)
class Templates:
    """The templates of the entries' clients; `exact`: these and no others."""

    entries: tuple[Entry, ...]
    exact: bool = False


@dataclasses.dataclass(frozen=True)
class NoTemplate:
    """There is no template, of the last client or of anybody."""


@dataclasses.dataclass(frozen=True)
class Connection:
    """The last flow's connection; `state` None: there is none."""

    state: str | None
    seconds: float | None = None


@dataclasses.dataclass(frozen=True)
class Destination:
    """The last packet's connection: protocol, virtual port, and the server with its port.

    `template_port` is the server's port in the template that controls it.
    """

    protocol: int | None = None
    virtual_port: int | None = None
    server: str | None = None
    server_port: int | None = None
    template_port: int | None = None


@dataclasses.dataclass(frozen=True)
class Connections:
    """How many connections there are, of one server or of all; templates too where it says so."""

    count: int
    server: str | None = None
    templates: bool = False


@dataclasses.dataclass(frozen=True)
class Counts:
    """A server's columns in a listing: connections, packets, active, ..."""

    server: str | None
    columns: Mapping[str, int]


@dataclasses.dataclass(frozen=True)
class Listed:
    """An entry that a listing shows; time passes until it shows these seconds."""

    entry: Entry


@dataclasses.dataclass(frozen=True)
class ServiceListed:
    """A service that a listing shows, by its key."""

    service: Service
    columns: Mapping[str, object]


@dataclasses.dataclass(frozen=True)
class Answers:
    """What the client gets on the wire for a packet: an outcome's name."""

    packet: Packet
    answer: str


@dataclasses.dataclass(frozen=True)
class Bucket:
    """Where a hash sends a client or destination: the slot of the scheduler's table."""

    scheduler: str
    flags: tuple[str, ...]
    address: str
    port: int
    bucket: int


@dataclasses.dataclass(frozen=True)
class Table:
    """A scheduler's whole table, from its start, as letters."""

    first: str
    owners: Mapping[str, int]
    sha256: str | None


@dataclasses.dataclass(frozen=True)
class Walk:
    """Where Maglev's walk of a server begins and how far it steps; a partner's name and walk."""

    server: Server
    start: int
    step: int
    partner: tuple[str, int, int]


@dataclasses.dataclass(frozen=True)
class Transitions:
    """A row of a transition table: the next state, its seconds and whether it is active."""

    protocol: str
    view: str
    secure: bool
    event: str
    cells: tuple[tuple[str, str, int, bool], ...]


Act = (
    Reach
    | Wait
    | Send
    | Picks
    | Carry
    | Set
    | EditServers
    | Serve
    | Reply
    | Kept
    | Continued
    | Load
    | Close
    | Leaves
    | Error
    | Templates
    | NoTemplate
    | Connection
    | Destination
    | Connections
    | Counts
    | Listed
    | ServiceListed
    | Answers
    | Bucket
    | Table
    | Walk
    | Transitions
)


@dataclasses.dataclass(frozen=True)
class Step:
    """An act, and where in the case it stands."""

    place: str
    act: Act


@dataclasses.dataclass(frozen=True)
class Case:
    """A case with its services; `left` says why it is not run yet, and is empty where it is."""

    section: str
    name: str
    services: tuple[Service, ...] = ()
    marks: tuple[Mark, ...] = ()
    steps: tuple[Step, ...] = ()
    left: str = ""

    @property
    def id(self) -> str:
        """What names it among all cases of a file."""
        return f"{self.section}/{self.name}"

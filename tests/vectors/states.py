"""State machines: rows of packets, reuse of ports, whole transition tables."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

from tests.vectors import listings, words
from tests.vectors.places import Node
from tests.vectors.services import VIPS, Server, Service, server_address
from tests.vectors.steps import (
    Act,
    Case,
    Connection,
    Counts,
    EditServers,
    Reply,
    Send,
    Set,
    Step,
    Transitions,
)
from tests.vectors.timelines import SYSCTLS, connection
from tests.vectors.words import CHUNKS, End, Flow, Kind, Packet

SERVERS = tuple(Server(name, server_address(name, "ipv4")) for name in "ABC")
CLIENT = End("10.0.0.1", 1001)
# how a client alone brings a connection into a state, in the half-open view
ROADS = {
    **{"SYN_RECV": "S", "ESTABLISHED": "S A", "FIN_WAIT": "S A FA", "TIME_WAIT": "S FA"},
    **{"CLOSE": "S A R"},
}
TCP_ROWS = {"input_only": 0, "input_only_secure_tcp": 3}
NAT_ROWS = {"nat": 0, "nat_secure_tcp": 3}
ROW_KEYS = {"packets", "result", "active", "inactive", *SYSCTLS}
REUSE_KEYS = {"before", "server", "weight_of_server", *SYSCTLS}
VIEWS = {"input", "output", "input_only"}


def _service(protocol: str) -> Service:
    port = {"tcp": 80, "sctp": 80}[protocol]
    return Service(protocol, VIPS["ipv4"], port, scheduler="rr", servers=SERVERS)


def _flow(kinds: list[Kind]) -> Flow:
    return Flow(tuple(Packet(each, CLIENT) for each in kinds))


# ------------------------------------------------------------------------------------- TCP, SCTP


def tcp(node: Node) -> Iterator[Case]:
    """The cases of `tcp_states`."""
    for name, rows in node.fields({*TCP_ROWS, *NAT_ROWS, "reuse"}).items():
        for number, row in enumerate(rows.entries()):
            if name in NAT_ROWS:
                yield _nat_row(name, number, rows.entries()[: number + 1])
            elif name == "reuse":
                yield _reuse(number, row)
            else:
                yield _tcp_row(name, number, row)


def _nat_row(name: str, number: int, rows: list[Node]) -> Case:
    """A connection by nat from its beginning to this row: client and server take turns."""
    service = dataclasses.replace(_service("tcp"), forward="nat")
    steps = [Step("settings", Set({"secure_tcp": NAT_ROWS[name]}))]
    for place, row in enumerate(rows):
        fields = row.fields({"step", "result", "active", "inactive"})
        if not {"step", "result"} <= fields.keys():
            raise row.error("a row has a step and a result")
        side, _, flags = fields["step"].text().partition(":")
        if side not in ("c", "s"):
            raise fields["step"].error("c: the client sends, s: the server does")
        kind = Kind("tcp", fields["step"].read(words.flags, flags))
        steps.append(
            Step(f"step {place}", Send((_flow([kind]),)) if side == "c" else Reply(kind.what))
        )
    steps.append(Step("result", connection(fields["result"])))
    for key in ("active", "inactive"):
        if key in fields:
            steps.append(Step(key, _counted(key, fields[key].whole())))
    return Case("tcp_states", f"{name}[{number}]", (service,), (), tuple(steps))


def _tcp_row(name: str, number: int, row: Node) -> Case:
    fields = row.fields(ROW_KEYS)
    if not {"packets", "result"} <= fields.keys():
        raise row.error("a row has packets and a result")
    kinds = [Kind("tcp", each.read(words.flags)) for each in fields["packets"].entries()]
    settings = {"secure_tcp": 3} if TCP_ROWS[name] else {}
    return _row("tcp_states", f"{name}[{number}]", row, kinds, settings)


def sctp(node: Node) -> Iterator[Case]:
    """The cases of `sctp_states`."""
    fields = node.fields({"rows"})
    for number, row in enumerate(fields["rows"].entries() if "rows" in fields else []):
        keys = row.fields({"chunks", *ROW_KEYS} - {"packets"})
        if not {"chunks", "result"} <= keys.keys():
            raise row.error("a row has chunks and a result")
        kinds = [
            each.read(lambda text: words.kind(text, "sctp")) for each in keys["chunks"].entries()
        ]
        yield _row("sctp_states", f"rows[{number}]", row, kinds, {})


def _row(section: str, name: str, row: Node, kinds: list[Kind], settings: dict[str, int]) -> Case:
    """One client's packets, and its connection then."""
    fields = row.fields()
    if not kinds:
        raise row.error("a row needs a packet")
    settings |= {key: fields[key].whole() for key in SYSCTLS & fields.keys()}
    steps = [Step("settings", Set(settings))] if settings else []
    steps.append(Step("packets", Send((_flow(kinds),))))
    steps.append(Step("result", connection(fields["result"])))
    for key in ("active", "inactive"):
        if key in fields:
            steps.append(Step(key, _counted(key, int(fields[key].value))))
    title = "-".join(kind.what.upper() or "none" for kind in kinds)
    return Case(section, f"{name}-{title}", (_service(kinds[0].protocol),), (), tuple(steps))


def _counted(column: str, number: int) -> Act:
    return Counts(None, {column: number})


def _reuse(number: int, row: Node) -> Case:
    """A connection is brought into a state; then the same client's SYN comes again."""
    fields = row.fields(REUSE_KEYS)
    if not {"before", "server"} <= fields.keys():
        raise row.error("a row has `before` and `server`")
    before = fields["before"].text()
    if before not in ROADS:
        raise fields["before"].error(
            f"a client alone brings no connection there ({', '.join(ROADS)})"
        )
    road = [Kind("tcp", flags) for flags in ROADS[before].split()]
    settings = {key: fields[key].whole() for key in SYSCTLS & fields.keys()}
    steps = [
        Step("before", Send((_flow(road),), ("C",) * len(road))),
        Step("before", Connection(before)),
    ]
    if "weight_of_server" in fields:
        weight = fields["weight_of_server"].whole()
        quiesced = Server("C", server_address("C", "ipv4"), weight=weight)
        steps.append(Step("weight_of_server", EditServers("edit", quiesced)))
    steps.append(Step("settings", Set(settings)))
    again = (_flow([Kind("tcp", "S")]),)
    steps.append(Step("the same SYN again", Send(again, (fields["server"].text(),))))
    name = f"reuse[{number}]-{before}"
    return Case("tcp_states", name, (_service("tcp"),), (), tuple(steps))


# ----------------------------------------------------------------------------- transition tables


def transitions(node: Node) -> Iterator[Case]:
    """A case for each row of each table."""
    for protocol, table in node.fields({"tcp", "sctp"}).items():
        described = {"columns", "names", "timeouts", "active", "event_order", "events"}
        parts = {"normal", "secure_tcp"} if protocol == "tcp" else VIEWS
        fields = table.fields(described | parts)
        missing = {"columns", "names", "timeouts", "active"} - fields.keys()
        if missing:
            raise table.error(f"{', '.join(sorted(missing))} is missing")
        states = _states(fields)
        for name in (name for name in fields if name in parts):
            if protocol == "sctp":
                yield from _view(protocol, False, name, fields[name], states)
                continue
            for view, rows in fields[name].fields(VIEWS).items():
                yield from _view(protocol, name == "secure_tcp", view, rows, states)


def _states(fields: dict[str, Node]) -> dict[str, tuple[str, int, bool]]:
    """Each column's state with its seconds and whether it is active, in the columns' order."""
    names, timeouts = fields["names"].fields(), fields["timeouts"].fields()
    active = fields["active"].words()
    found: dict[str, Any] = {}
    for column in fields["columns"].words():
        if column not in names or column not in timeouts:
            raise fields["columns"].error(f"{column} has no name or no timeout")
        name = names[column].read(listings.state)
        found[column] = (name, timeouts[column].whole(), column in active)
    if extra := ({*names, *timeouts, *active} - found.keys()):
        raise fields["columns"].error(f"{', '.join(sorted(extra))} is no column")
    return found


def _view(
    protocol: str, secure: bool, view: str, rows: Node, states: dict[str, tuple[str, int, bool]]
) -> Iterator[Case]:
    events = set(CHUNKS) if protocol == "sctp" else {"syn", "fin", "ack", "rst"}
    for event, row in rows.fields(events).items():
        nexts = row.words()
        if len(nexts) != len(states) or not set(nexts) <= states.keys():
            raise row.error(f"{len(states)} of the columns' states stand in a row")
        cells = tuple(
            (present[0], *states[after])
            for present, after in zip(states.values(), nexts, strict=True)
        )
        kind = f"{protocol}-{'secure-' if secure else ''}{view}-{event}"
        steps = (Step(event, Transitions(protocol, view, secure, event, cells)),)
        yield Case("transition_tables", kind, steps=steps)

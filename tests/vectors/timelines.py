"""Timelines of events: thresholds, persistence and marks."""

from __future__ import annotations

import contextlib
import dataclasses
import re
from collections.abc import Iterator

from tests.vectors import commands, listings, outcomes
from tests.vectors.places import Node
from tests.vectors.services import (
    Server,
    Service,
    mark_rule,
    server,
    server_address,
    server_end,
    service,
)
from tests.vectors.steps import (
    Act,
    Carry,
    Case,
    Close,
    Connection,
    Connections,
    Counts,
    Destination,
    NoTemplate,
    Reach,
    Send,
    Serve,
    Set,
    Step,
    Templates,
    Wait,
)
from tests.vectors.words import NUMBER, bare, count, flows

CASE_KEYS = {
    *("id", "service", "services", "servers", "marks", "continues", "events", "shows"),
    *("command", "expect", "sysctl"),
}
EVENT_KEYS = {
    *("t", "wait", "packet", "do", "command", "sysctl", "show", "server", "expect"),
    *("expect_next", "template", "templates", "template_proc", "template_dport", "conn"),
    *("conn_state", "conn_dport", "connections", "connections_shown", "connections_of"),
    *("result", "service"),
}
ACTS = ("packet", "do", "command", "sysctl", "show", "connections_of", "wait")
SYSCTLS = {
    *("expire_nodest_conn", "expire_quiescent_template", "conn_reuse_mode", "sloppy_tcp"),
    *("sloppy_sctp", "secure_tcp", "lblc_expiration", "lblcr_expiration"),
}
OWN_MARK = 7


# ------------------------------------------------------------------------------------------- cases


def timeline(section: str, node: Node, before: dict[str, Case]) -> Case:
    """A case of a timeline; `before` are those of its section that it may continue."""
    fields = node.fields(CASE_KEYS)
    if "id" not in fields:
        raise node.error("a case needs an id")
    name = fields["id"].text()
    services = _services(node, fields)
    marks = (
        tuple(mark_rule(rule) for rule in fields["marks"].entries()) if "marks" in fields else ()
    )
    if _is_nat(node):
        services = tuple(_by_nat(node, each) for each in services)
    steps = [*_continued(fields, before), *_steps(node, fields, services)]
    if not steps:
        raise node.error("nothing happens in this case")
    node.read(lambda _: _rehearse(services, steps), "")
    return Case(section, name, services, marks, tuple(steps))


def _rehearse(services: tuple[Service, ...], steps: list[Step]) -> None:
    """Carries the commands out on paper: ValueError where one is not understood."""
    for step in steps:
        if isinstance(step.act, Carry):
            with contextlib.suppress(commands.Refused):
                services = commands.carried_out(step.act.command, services)


def _is_nat(node: Node) -> bool:
    """The case's remark says that its servers are by nat."""
    return "-m" in f"{node.remark('comment')} {node.remark('note')}".split()


def _services(node: Node, fields: dict[str, Node]) -> tuple[Service, ...]:
    if "services" in fields:
        return tuple(service(entry) for entry in fields["services"].entries())
    if "service" not in fields and "command" not in fields and not _has_own(fields):
        raise node.error("a case needs a service")
    made = service(fields["service"]) if "service" in fields else Service(scheduler="rr")
    if "servers" in fields:
        found = tuple(server(entry, made.family) for entry in fields["servers"].entries())
        made = dataclasses.replace(made, servers=found)
    return (made,)


def _has_own(fields: dict[str, Node]) -> bool:
    """Every event of the case names a service of its own."""
    events = fields["events"].entries() if "events" in fields else []
    return bool(events) and all("service" in event.fields() for event in events)


_SERVER_PORT = re.compile(r"\bport (\d+)\b")


def _by_nat(node: Node, made: Service) -> Service:
    """The service with servers by nat, on the port that the case's remark names."""
    found = _SERVER_PORT.search(node.remark("comment"))
    port = int(found[1]) if found else None
    servers = made.servers or tuple(Server(n, server_address(n, made.family)) for n in "ABC")
    servers = tuple(
        server if server.port is not None else dataclasses.replace(server, port=port)
        for server in servers
    )
    return dataclasses.replace(made, forward="nat", servers=servers)


_OWN = re.compile(
    r"(?:(?P<protocol>tcp|udp|sctp) VIP:(?P<port>\d+)|fwmark),?\s*(?P<kept>(?:not )?persistent)"
    r"(?:,\s*server port (?P<server>\d+))?"
)


def _own_service(text: str, like: Service) -> Service:
    """An event's own service: `tcp VIP:80 persistent`, `fwmark, not persistent, server port 0`."""
    found = _OWN.fullmatch(text)
    if found is None:
        raise ValueError(f"{text!r} is no service (tcp VIP:80 persistent, fwmark, not persistent)")
    servers = like.servers
    if found["server"] is not None:
        port = int(found["server"])
        servers = tuple(dataclasses.replace(server, port=port) for server in servers)
    return dataclasses.replace(
        like,
        protocol=found["protocol"] or "tcp",
        port=int(found["port"] or 0),
        mark=None if found["protocol"] else OWN_MARK,
        persistent=None if found["kept"] == "not persistent" else 360,
        servers=servers,
    )


def _continued(fields: dict[str, Node], before: dict[str, Case]) -> tuple[Step, ...]:
    if "continues" not in fields:
        return ()
    name = fields["continues"].text()
    if name not in before:
        raise fields["continues"].error(f"there is no case {name!r} before this one")
    if before[name].left:
        raise fields["continues"].error(f"{name!r} is not run yet")
    return tuple(Step(f"{name}: {step.place}", step.act) for step in before[name].steps)


def _steps(node: Node, fields: dict[str, Node], services: tuple[Service, ...]) -> Iterator[Step]:
    if "sysctl" in fields:
        yield Step("sysctl", _sysctl(fields["sysctl"]))
    if "command" in fields:
        yield Step("command", _command(fields["command"], fields.get("expect")))
    elif "expect" in fields:
        raise fields["expect"].error("there is no command that this could be of")
    for number, event in enumerate(fields["events"].entries() if "events" in fields else []):
        place = f"events[{number}]"
        yield from (Step(place, act) for act in _event(event, services))
    for number, shown in enumerate(fields["shows"].entries() if "shows" in fields else []):
        yield Step(f"shows[{number}]", _shown(shown, services))


# ------------------------------------------------------------------------------------------ events


def _event(node: Node, services: tuple[Service, ...]) -> Iterator[Act]:
    """Time, then what happens, then what is to be seen."""
    fields = node.fields(EVENT_KEYS)
    if "service" in fields:
        home = services[0]
        services = (fields["service"].read(lambda text: _own_service(text, home)),)
        yield Serve(services)
    happening = [key for key in ACTS if key in fields]
    if len(happening) > 1:
        raise node.error(f"{' and '.join(happening)} are two events")
    if "t" in fields:
        yield Reach(fields["t"].number())
    yield from _happening(node, fields, services)
    yield from _templates(fields, services)
    yield from _connections(fields, services)
    if "expect_next" in fields:
        letter = fields["expect_next"].text()
        found = fields["expect_next"].read(flows, f"{services[0].protocol}_open")
        yield Send(found, ("-" if letter == "none" else letter,) * len(found[0].packets))


def _happening(node: Node, fields: dict[str, Node], services: tuple[Service, ...]) -> Iterator[Act]:
    expect = fields.get("expect")
    for key in {"server", "result"} & fields.keys():
        if not {"packet", "do"} & fields.keys():
            raise fields[key].error("there is no packet that this could be of")
    if "packet" in fields:
        if expect is not None:
            raise expect.error("of a packet, `server` or `result` is expected")
        yield _send(fields["packet"], fields.get("server"), fields.get("result"))
    elif "do" in fields:
        yield from _do(fields["do"], fields, services)
    elif "command" in fields:
        yield from _line(fields["command"], expect)
    elif "show" in fields:
        yield from _show(fields["show"], expect)
    elif "connections_of" in fields:
        yield _of(fields["connections_of"], expect)
    elif expect is not None:
        raise expect.error("there is nothing that this could be of")
    elif "sysctl" in fields:
        yield _sysctl(fields["sysctl"])
    elif "wait" in fields:
        yield Wait(fields["wait"].number())


def _send(node: Node, server: Node | None, result: Node | None = None) -> Send:
    found = node.read(flows)
    packets = sum(len(flow.packets) for flow in found)
    if result is not None:
        if server is not None:
            raise result.error("a packet that a server gets has no other result")
        return Send(found, None, result.read(outcomes.outcome))
    if server is None:
        return Send(found)
    letters = tuple("-" if word in ("none", "-") else word for word in server.words())
    if not isinstance(server.value, list):
        letters *= packets
    if len(letters) == len(found) != packets:
        letters = tuple(x for x, flow in zip(letters, found, strict=True) for _ in flow.packets)
    if len(letters) != packets:
        raise server.error(f"{len(letters)} servers for {packets} packets")
    return Send(found, letters)


_CLOSES = re.compile(
    rf"(?P<count>{NUMBER}|all)\s+(?:more\s+|other\s+)?(?P<server>\w+)\s+connections?\s+"
    r"(?P<verb>ends?|expires?|goe?s?\s+away|(?:is|are)\s+(?:gone|reset|over)|resets?)",
    re.IGNORECASE,
)
_RESETS = re.compile(
    rf"rst\s+(?:of|on|from)?\s*(?P<count>{NUMBER}|all)\s+(?P<server>\w+)\s+connections?",
    re.IGNORECASE,
)
_WAITS = re.compile(
    r"(?:wait\s+)?(\d+(?:\.\d+)?)\s*s(?:econds?)?(?:\s+(?:pass|later|go by))?", re.I
)


def _do(node: Node, fields: dict[str, Node], services: tuple[Service, ...]) -> Iterator[Act]:
    """A deed in words, and what it says in parentheses of counts."""
    text = bare(node.text())
    expect = fields.get("expect") or fields.get("server")
    if text.startswith("ipvsadm"):
        yield from _line(node, expect)
        return
    if found := _CLOSES.fullmatch(text) or _RESETS.fullmatch(text):
        number = None if found["count"].lower() == "all" else count(found["count"])
        verb = found.groupdict().get("verb") or "reset"
        yield Close(found["server"], number, "reset" not in verb)
        yield from _counted(node.text())
    elif found := _WAITS.fullmatch(text):
        yield Wait(float(found[1]))
    else:
        yield _send(node, expect, fields.get("result"))
        return
    if expect is not None:
        raise expect.error("no packet is sent that this could be of")


def _counted(text: str) -> Iterator[Act]:
    """What a remark such as `(A has 3)` says of connections."""
    for name, number in re.findall(r"\b(\w+) has (\d+)\b", text):
        yield Connections(int(number), name)


def _line(node: Node, expect: Node | None) -> Iterator[Act]:
    """A command of ipvsadm: a change, or a listing with what it shows."""
    command = node.read(commands.command)
    if command.verb == "list":
        yield from _show(node, expect)
    elif command.verb == "set":
        yield Set(commands.settings(command))
    else:
        yield _command(node, expect)


def _command(node: Node, expect: Node | None) -> Carry:
    command = node.read(commands.command)
    refused = False
    if expect is not None:
        fields = expect.fields({"exit", "stderr", "stdout"})
        refused = "exit" in fields and fields["exit"].whole() != 0
        if "stdout" in fields:
            raise fields["stdout"].error("what ipvsadm prints is compared by later cases")
    return Carry(command, refused)


def _sysctl(node: Node) -> Set:
    return Set({name: value.whole() for name, value in node.fields(SYSCTLS).items()})


def _show(node: Node, expect: Node | None) -> list[Counts]:
    text = node.text()
    listing = text if re.search(r"(^|\s)(-\w*[Ll]|--list)", text) else f"-L {text}"
    if node.read(commands.command, listing).verb != "list":
        raise node.error("that lists nothing")
    if expect is None:
        raise node.error("it is not said what is to be seen")
    return listings.expected_columns(expect)


def _of(node: Node, expect: Node | None) -> Connections:
    if expect is None:
        raise node.error("it is not said how many there are to be")
    number = 0 if expect.value == "none" else expect.whole()
    return Connections(number, node.text(), templates=True)


# ------------------------------------------------------------------------------------------ checks


def _templates(fields: dict[str, Node], services: tuple[Service, ...]) -> Iterator[Act]:
    if "template" in fields:
        node = fields["template"]
        if node.value is None or node.value == "none":
            yield NoTemplate()
        else:
            yield Templates((listings.template(node, services),))
    if "templates" in fields:
        rows = fields["templates"].entries()
        yield Templates(tuple(listings.template(row, services) for row in rows), exact=True)
    if "template_proc" in fields:
        yield fields["template_proc"].read(lambda text: listings.proc_line(text, services))


def _connections(fields: dict[str, Node], services: tuple[Service, ...]) -> Iterator[Act]:
    if "conn" in fields:
        yield _destination(fields["conn"], services)
    if "conn_dport" in fields:
        yield Destination(server_port=fields["conn_dport"].whole())
    if "template_dport" in fields:
        port = fields["template_dport"]
        yield NoTemplate() if port.value is None else Destination(template_port=port.whole())
    if "conn_state" in fields:
        yield connection(fields["conn_state"])
    for key in ("connections", "connections_shown"):
        if key in fields:
            yield Connections(fields[key].whole())


def connection(node: Node) -> Connection:
    """`[CLOSE, 10]`, a state alone, or `none`."""
    if node.value is None or node.value == "none":
        return Connection(None)
    if not isinstance(node.value, list):
        return Connection(node.read(listings.state))
    parts = node.entries()
    if not 1 <= len(parts) <= 2:
        raise node.error("a connection's state is [state, seconds]")
    return Connection(parts[0].read(listings.state), parts[1].number() if parts[1:] else None)


def _destination(node: Node, services: tuple[Service, ...]) -> Destination:
    parts = node.entries()
    if len(parts) != 3:
        raise node.error("a connection is [protocol, virtual port, server with its port]")
    letter, port = parts[2].read(lambda text: server_end(text, services))
    return Destination(parts[0].read(listings.protocol), parts[1].whole(), letter, port)


def _shown(node: Node, services: tuple[Service, ...]) -> Act:
    fields = node.fields({"command", "file", "line"})
    if "line" not in fields or len(fields) != 2:
        raise node.error("a listing has a command or a file, and a line")
    if "file" in fields:
        if fields["file"].text().rpartition("/")[2] != "ip_vs_conn":
            raise fields["file"].error("of files, ip_vs_conn is known")
        return fields["line"].read(lambda text: listings.proc_line(text, services))
    command = fields["command"].read(commands.command)
    if command.verb != "list":
        raise fields["command"].error("that lists nothing")
    parse = listings.connection_line if command.get("-c") is not None else listings.service_line
    return fields["line"].read(lambda text: parse(text, services))

"""Schedulers' cases: picks, tables, hash values and Maglev's walks."""

from __future__ import annotations

import dataclasses
import ipaddress
import re
from collections.abc import Iterator

from tests.vectors import services
from tests.vectors.places import Node
from tests.vectors.services import VIPS, Mark, Server, Service
from tests.vectors.steps import (
    Bucket,
    Case,
    EditServers,
    Load,
    Picks,
    Reach,
    Step,
    Table,
    Wait,
    Walk,
)

CASE_KEYS = {
    *("id", "scheduler", "flags", "proto", "family", "servers", "clients", "initial", "picks"),
    *("steps", "port"),
}
STEP_KEYS = {
    "picks",
    "clients",
    "edit",
    "add",
    "delete",
    "w",
    "u",
    "l",
    "addr",
    "port",
    "t",
    "wait",
}
TABLE_KEYS = {"id", "scheduler", "weights", "first_32", "owners", "sha256_of_letters", "family"}
CLIENTS = {"ipv4": "10.0.0.1", "ipv6": "2001:db8:1::1"}
FIRST_PORT = 20000
# the mark of a service whose clients ask for more than one address
MARK = 1
# two walks that are known, and the sum of address and port that each is of
KNOWN = (("Y", 2684, 2584), ("Y", 183, 1302))
SUMS = (0xC0A80101 + 80, 0xC0A80102 + 80)
HASHED = {"sh": 256, "dh": 256, "mh": 4093}


# ------------------------------------------------------------------------------------------- picks


def case(node: Node) -> Case:
    """A case of `schedulers`."""
    fields = node.fields(CASE_KEYS)
    missing = {"id", "scheduler", "servers", "picks"} - fields.keys()
    if missing:
        raise node.error(f"{', '.join(sorted(missing))} is missing")
    family = services.family_of(fields)
    clients = _clients(fields, family)
    steps = [Step("initial", Load(_loads(fields["initial"])))] if "initial" in fields else []
    service = _service(fields, family)
    reader = _Picks(service, clients, bool(clients))
    steps.append(Step("picks", reader.take(fields["picks"], None)))
    for number, step in enumerate(fields["steps"].entries() if "steps" in fields else []):
        steps += [Step(f"steps[{number}]", act) for act in _step(step, reader)]
    _check_names(node, service, steps)
    marks, service = _addressed(service, steps)
    return Case("schedulers", fields["id"].text(), (service,), marks, tuple(steps))


def _service(fields: dict[str, Node], family: str) -> Service:
    protocol = fields["proto"].text().lower() if "proto" in fields else "tcp"
    if protocol not in services.PORTS:
        raise fields["proto"].error(f"{protocol!r} is no protocol (tcp, udp, sctp)")
    return Service(
        protocol,
        VIPS[family],
        fields["port"].whole() if "port" in fields else 80,
        scheduler=services.scheduler(fields["scheduler"]),
        flags=services.flags(fields.get("flags")),
        servers=tuple(services.server(each, family) for each in fields["servers"].entries()),
    )


def _loads(node: Node) -> dict[str, tuple[int, int]]:
    found = {}
    for name, pair in node.fields().items():
        counts = [each.whole() for each in pair.entries()]
        if len(counts) != 2:
            raise pair.error("a server has [active, inactive] connections")
        found[name] = (counts[0], counts[1])
    return found


def _clients(fields: dict[str, Node], family: str) -> list[tuple[str, int, str]]:
    """Each pick's source address, source port and destination."""
    found = []
    for node in fields["clients"].entries() if "clients" in fields else []:
        parts = node.entries()
        if not 2 <= len(parts) <= 3:
            raise node.error("a client is [source address, source port, destination address]")
        virtual = parts[2].address() if parts[2:] else VIPS[family]
        found.append((parts[0].address(), parts[1].whole(), virtual))
    return found


class _Picks:
    """Hands each pick its client: those of the case one after the other, or the next port."""

    def __init__(self, service: Service, clients: list[tuple[str, int, str]], listed: bool) -> None:
        self.service = service
        self.clients = clients
        self.listed = listed
        self.taken = 0

    def take(self, node: Node, clients: Node | None) -> Picks:
        """The picks that a text of letters stands for."""
        letters = node.text()
        if not re.fullmatch("[A-Z-]*", letters):
            raise node.error(f"{letters!r}: picks are letters, or - for no destination")
        family, own = self.service.family, self.clients
        if clients is not None:
            own = _clients({"clients": clients}, family)
            if len(own) < len(letters):
                raise clients.error(f"{len(own)} clients for {len(letters)} picks")
            return self._picks(letters, own)
        begin, self.taken = self.taken, self.taken + len(letters)
        if self.listed:
            if len(own) < self.taken:
                raise node.error(f"{len(own)} clients for {self.taken} picks")
            return self._picks(letters, own[begin : self.taken])
        fresh = range(FIRST_PORT + begin, FIRST_PORT + self.taken)
        return self._picks(
            letters, [(CLIENTS[family], port, self.service.address) for port in fresh]
        )

    def _picks(self, letters: str, clients: list[tuple[str, int, str]]) -> Picks:
        chosen = tuple(clients[: len(letters)])
        return Picks(letters, chosen, self.service.opening(), self.service.port)


def _step(node: Node, reader: _Picks) -> Iterator[EditServers | Picks | Reach | Wait]:
    fields = node.fields(STEP_KEYS)
    verbs = [verb for verb in ("picks", "edit", "add", "delete") if verb in fields]
    if len(verbs) > 1 or not (verbs or {"t", "wait"} & fields.keys()):
        raise node.error("a step has one of picks, edit, add, delete, t, wait")
    if "t" in fields:
        yield Reach(fields["t"].number())
    if "wait" in fields:
        yield Wait(fields["wait"].number())
    if "picks" in fields:
        yield reader.take(fields["picks"], fields.get("clients"))
    elif verbs:
        yield EditServers(verbs[0], _named_server(fields, verbs[0], reader.service.family))


def _named_server(fields: dict[str, Node], verb: str, family: str) -> Server:
    """The server of an edit: by its name, with what is given."""
    row = {key: fields[key] for key in ("w", "u", "l", "addr", "port") if key in fields}
    node = fields[verb]
    if verb == "delete":
        return Server(node.text(), "")
    if verb == "edit" and "w" not in row and not {"u", "l"} & row.keys():
        raise node.error("it is not said what is edited")
    known = Node({"name": node, **row}, node.path, node.line)
    return services.server(known, family)


def _check_names(node: Node, service: Service, steps: list[Step]) -> None:
    """Every server that is edited or has connections is there, and one that is added is not."""
    names = {server.name for server in service.servers}
    for step in steps:
        if isinstance(step.act, Load) and not step.act.counts.keys() <= names:
            raise node.error(f"{step.place}: there is no such server")
        if isinstance(step.act, EditServers):
            name, verb = step.act.server.name, step.act.verb
            if (name in names) == (verb == "add"):
                there = "already a" if verb == "add" else "no"
                raise node.error(f"{step.place}: there is {there} server {name!r}")
            names = names - {name} if verb == "delete" else names | {name}


def _addressed(service: Service, steps: list[Step]) -> tuple[tuple[Mark, ...], Service]:
    """By its address; by a mark where its clients ask for more than one address."""
    picks = [step.act for step in steps if isinstance(step.act, Picks)]
    asked = {virtual for each in picks for _, _, virtual in each.clients}
    if len(asked) <= 1:
        address = next(iter(asked), service.address)
        return (), dataclasses.replace(service, address=address)
    marks = tuple(Mark(MARK, address, (service.protocol,)) for address in sorted(asked))
    return marks, dataclasses.replace(service, mark=MARK)


# ------------------------------------------------------------------------------------------ tables


def tables(node: Node) -> Iterator[Case]:
    """The cases of `tables`: a scheduler's whole table over servers A, B, C, ..."""
    for number, row in enumerate(node.entries()):
        fields = row.fields(TABLE_KEYS)
        if not {"scheduler", "weights"} <= fields.keys() or len(fields) < 3:
            raise row.error("a table has a scheduler, weights, and letters that are expected")
        service = _table_service(fields)
        owners = fields["owners"].fields() if "owners" in fields else {}
        table = Table(
            fields["first_32"].text() if "first_32" in fields else "",
            {name: count.whole() for name, count in owners.items()},
            fields["sha256_of_letters"].text() if "sha256_of_letters" in fields else None,
        )
        weights = "-".join(str(each.weight) for each in service.servers)
        name = fields["id"].text() if "id" in fields else f"{service.scheduler}-{weights}"
        yield Case("tables", f"[{number}]-{name}", (service,), (), (Step("table", table),))


def _table_service(fields: dict[str, Node]) -> Service:
    family = services.family_of(fields)
    weights = [each.whole() for each in fields["weights"].entries()]
    names = (chr(ord("A") + place) for place in range(len(weights)))
    servers = tuple(
        Server(name, services.server_address(name, family), weight=weight)
        for name, weight in zip(names, weights, strict=True)
    )
    scheduler = _hashed(fields["scheduler"])
    return Service("tcp", VIPS[family], 80, scheduler=scheduler, servers=servers)


def _hashed(node: Node) -> str:
    if (name := node.text()) not in HASHED:
        raise node.error(f"{name!r} has no table ({', '.join(HASHED)})")
    return name


# ------------------------------------------------------------------------------------------ hashes


def hashes(node: Node) -> Iterator[Case]:
    """The cases of `hash_values`: where an address falls in each table."""
    for number, row in enumerate(node.entries()):
        fields = row.fields()
        if "addr" not in fields:
            raise row.error("a row of hash values has an address")
        address = fields["addr"].address()
        steps = [
            Step(name, _hash(name, value, address))
            for name, value in fields.items()
            if name != "addr"
        ]
        yield Case("hash_values", f"[{number}]-{address}", steps=tuple(steps))


_BUCKET = re.compile(r"(?:(sh|dh)|(mh)_slot)(?:_port_(\d+))?")


def _hash(name: str, node: Node, address: str) -> Bucket:
    """A named value: `fold`, `sh`, `sh_port_20000`, `dh`, `mh_h1`, `mh_slot`, ..."""
    if node.whole() >= 2**32:
        raise node.error(f"{node.value} has more than 32 bits")
    if name in ("fold", "mh_h1"):
        return Bucket(name, (), address, 0, node.whole())
    found = _BUCKET.fullmatch(name)
    if found is None or (found[1] == "dh" and found[3]):
        raise node.error(f"{name!r} is no hash value (fold, sh, dh, mh_h1, mh_slot, sh_port_20000)")
    scheduler = found[1] or found[2]
    flags = (f"{scheduler}-port",) if found[3] else ()
    return Bucket(scheduler, flags, address, int(found[3] or 0), node.whole())


def walks(node: Node) -> Iterator[Case]:
    """The cases of `mh_servers`: a server's walk, met in a table that it shares with another."""
    for number, row in enumerate(node.entries()):
        fields = row.fields({"addr", "port", "start", "step"})
        missing = {"addr", "start", "step"} - fields.keys()
        if missing:
            raise row.error(f"{', '.join(sorted(missing))} is missing")
        server = Server("X", fields["addr"].address(), 80)
        if "port" in fields:
            server = dataclasses.replace(server, port=fields["port"].whole())
        walk = Walk(server, _below(fields["start"], 0), _below(fields["step"], 1), KNOWN[0])
        partner = _partner(server, SUMS[0])
        if partner.address == server.address:
            partner, walk = _partner(server, SUMS[1]), dataclasses.replace(walk, partner=KNOWN[1])
        family = "ipv6" if ":" in server.address else "ipv4"
        service = Service(
            "tcp", VIPS[family], server.port or 80, scheduler="mh", servers=(partner, server)
        )
        name = f"[{number}]-{server.address}"
        yield Case("mh_servers", name, (service,), (), (Step("walk", walk),))


def _below(node: Node, least: int) -> int:
    """A slot's number, or a step between slots."""
    if not least <= node.whole() < HASHED["mh"]:
        raise node.error(f"{node.value} is not from {least} to {HASHED['mh'] - 1}")
    return node.whole()


def _partner(server: Server, known: int) -> Server:
    """A server of the same family and port whose address and port sum up to a known walk's."""
    folded = known - (server.port or 0)
    if ":" in server.address:
        return Server("Y", str(ipaddress.IPv6Address(0x20010DB8 << 96 | folded ^ 0x20010DB8)))
    return Server("Y", str(ipaddress.IPv4Address(folded)))

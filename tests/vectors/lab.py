"""The balancer as a case sees it: its services as lvsxdp's file, packets in, entries out."""

from __future__ import annotations

import dataclasses
import ipaddress
import struct
from collections.abc import Iterator, Mapping
from typing import Any

import yaml
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import ICMPv6EchoRequest, IPv6
from scapy.layers.l2 import Ether
from scapy.layers.sctp import SCTP

from lvsxdp import ageing, entries, records, show, views
from tests.datapath.harness import ROUTER_MAC, Datapath, Verdict
from tests.vectors import services
from tests.vectors.services import Mark, Service
from tests.vectors.stage import Stage, unreachable
from tests.vectors.steps import Case, Entry
from tests.vectors.words import CHUNKS, PROTOCOLS, Kind

# IPVS's own settings, where lvsxdp's differ or might
IPVS = {"expire_nodest_conn": 0, "expire_quiescent_template": 0, "conn_reuse_mode": 1}
FIRST_PORT = 40000
# what every packet of a mark service without rules is given
ANY = "any"


@dataclasses.dataclass(frozen=True)
class Flow:
    """A packet's kind and its two ends."""

    kind: Kind
    client: tuple[str, int]
    virtual: tuple[str, int]

    @property
    def key(self) -> tuple[str, tuple[str, int], tuple[str, int]]:
        """What names its connection."""
        return (self.kind.protocol, self.client, self.virtual)


@dataclasses.dataclass(frozen=True)
class Sent:
    """A packet that was sent: the server that it went to, `-` where the client is refused."""

    flow: Flow
    verdict: Verdict
    server: str | None

    @property
    def became(self) -> str:
        """What became of it, for a reader."""
        return self.server or {"pass": "accepted", "drop": "dropped"}.get(
            self.verdict.action, self.verdict.action
        )


class Lab:
    """One case's services on the running programs, and a clock that starts at 0."""

    def __init__(self, stage: Stage) -> None:
        self.stage = stage
        self.datapath: Datapath = stage.datapath
        self.balancer = self.datapath.balancer
        self.hz = self.balancer.schema.hz

    def begin(self, case: Case) -> None:
        """Nothing is left of the case before; this one's services are there."""
        self.datapath.clear()
        self.services, self.marks = case.services, case.marks
        self.settings: dict[str, int] = dict(IPVS)
        self.letters: dict[str, str] = {}
        self.began, self.seconds, self.fresh = self.balancer.clock(), 0.0, 0
        self.refused = self._refusals()
        self.apply()

    # --------------------------------------------------------------------------- control

    def apply(self) -> None:
        """Brings the balancer to the services, marks and settings."""
        known = [server.address for each in self.services for server in each.servers]
        self.stage.settle((each.address for each in self.services), known)
        found = services.configuration(self.services, self._rules(), self.settings)
        self.datapath.apply(yaml.safe_dump(found))
        self.letters |= services.letters(self.services)

    def letter(self, name: str | None) -> str:
        """The letter of a backend by its name in lists; `gone` where that has none any more."""
        if name is None:
            return "gone"
        address = name if name in self.letters else name.rpartition(":")[0].strip("[]")
        return self.letters.get(address, name)

    def _identities(self) -> dict[int, str]:
        """The letter of each backend's id."""
        return {
            backend.id: self.letter(name)
            for place in self.balancer.state.book.services.values()
            for name, backend in place.backends.items()
        }

    def _rules(self) -> tuple[Mark, ...]:
        """The case's rules; without any, every packet has the mark of the first mark service."""
        marked = [each.mark for each in self.services if each.mark is not None]
        return self.marks or tuple(Mark(mark, ANY) for mark in marked[:1])

    def advance(self, seconds: float) -> None:
        """Moves the clock, with every next hop confirmed as by other traffic.

        Then the daemon sweeps: counts fall at once where IPVS's timers have gone off.
        """
        self.seconds += seconds
        self.datapath.later(seconds)
        ageing.sweep(self.balancer)

    def slack(self) -> float:
        """How many seconds went by themselves since the case began."""
        return (self.balancer.clock() - self.began) / self.hz - self.seconds + 1 / self.hz

    def give_load(self, counts: Mapping[str, tuple[int, int]]) -> None:
        """Sets the counts that a case begins with: active and inactive by server."""
        for identity, letter in self._identities().items():
            if letter in counts:
                active, inactive = counts[letter]
                self.balancer.map("loads").store_word(identity, active, 0)
                self.balancer.map("loads").store_word(identity, active + inactive, 8)

    # --------------------------------------------------------------------------- packets

    def fresh_client(self, address: str | None, family: str) -> tuple[str, int]:
        """A client with a port that nobody had: of this address, or of one that nobody had."""
        self.fresh += 1
        other = f"2001:db8:1:f::{self.fresh:x}" if family == "ipv6" else None
        other = other or str(ipaddress.IPv4Address("10.0.128.0") + self.fresh)
        return address or other, FIRST_PORT + self.fresh

    def send(self, flow: Flow, *, local: bool = True) -> Sent:
        """Runs the program on a packet of a flow, whose destination is made this host's."""
        if local:
            self.stage.settle([flow.virtual[0]], ())
        verdict = self.datapath.deliver(packet(flow))
        return Sent(flow, verdict, self._server(verdict))

    def reply(self, flow: Flow, flags: str) -> Verdict:
        """Runs the program on what a flow's server sends back: it comes in where servers are."""
        known = {(e.protocol, e.client, e.virtual): e.server for e in self.connections()}
        server, port = known[PROTOCOLS[flow.kind.protocol], flow.client, flow.virtual]
        address = next(address for address, letter in self.letters.items() if letter == server)
        mac = next(mac for mac, at in self.stage.macs.items() if at == address)
        back = Flow(Kind(flow.kind.protocol, flags), (address, port), flow.client)
        frame = Ether(src=mac, dst=self.datapath.mac["lb1"]) / packet(back)
        return self.datapath.send(frame, "lb1")

    def _server(self, verdict: Verdict) -> str | None:
        is_sent = verdict.action in ("tx", "redirect")
        is_answer = is_sent and verdict.frame[:6].hex(":") == ROUTER_MAC
        if is_sent and not is_answer:
            address = self.stage.macs.get(verdict.frame[:6].hex(":"))
            return self.letter(address)
        told = verdict.handover or {}
        if told.get("reason") == "forwarded":
            # once a second a next hop's packet takes the kernel's road, by the same decision
            return self._identities()[told["backend"]]
        refused = is_answer and unreachable(verdict.frame)
        before, self.refused = self.refused, self._refusals()
        # answers have a rate, beyond which a packet without a server is dropped
        without = verdict.action == "drop" and self.refused > before
        return "-" if refused or without else None

    def _refusals(self) -> int:
        number = self.balancer.schema.enums["reason"]["no_backend"]
        return self.balancer.total("reasons", number)["value"]

    def answer(self, flow: Flow) -> str:
        """What a client gets on the wire for a packet of a flow: an outcome's name."""
        self.stage.settle([flow.virtual[0]], ())
        got = self.stage.answer(packet(flow), flow.client[0])
        self.refused = self._refusals()
        return got

    def forget(self) -> None:
        """Removes every entry."""
        tables = (*views.CONNECTIONS, *views.PERSISTENCE)
        self.balancer.reap(views.places(self.balancer, tables), force=True)

    # ----------------------------------------------------------------------------- reads

    def templates(self) -> list[Entry]:
        """Every live persistence entry, as a template."""
        shown = {
            (row["service"], row["client"].partition("/")[0]): row
            for row in self.datapath.persistence()
        }
        names = show.Names(self.balancer.state)
        found = []
        for row in self._rows(views.PERSISTENCE):
            said = shown.get((names.service(int(row["service"])), _address(row["client"])))
            if said is not None:
                found.append(self._entry(row, said))
        return found

    def connections(self) -> list[Entry]:
        """Every live connection."""
        shown = {
            (PROTOCOLS[row["protocol"]], row["client"], row["virtual"]): row
            for row in self.datapath.connections()
        }
        found = []
        for row in self._rows(views.CONNECTIONS):
            ends = written(_end(row, "client")), written(_end(row, "virtual"))
            said = shown.get((int(row["protocol"]), *ends))
            if said is not None:
                entry = self._entry(row, said)
                found.append(dataclasses.replace(entry, state=said["state"]))
        return found

    def _rows(self, tables: tuple[str, ...]) -> Iterator[Any]:
        """The entries of tables, live or not, as the programs see them."""
        for table in tables:
            memory = self.balancer.map(table).memory()
            for _, rows in entries.chunks(self.balancer.schema, table, memory):
                yield from rows

    def _entry(self, row: Any, said: dict[str, Any]) -> Entry:
        """An entry by its slot, and by what a list says of it."""
        confirmed = int(row["word"]) >> 48 & self.balancer.schema.enums["slot_flag"]["confirmed"]
        protocol, virtual = int(row["protocol"]), _end(row, "virtual")
        # IPVS's are assured for UDP by a reply alone, which under dr nobody sees
        state = "ASSURED" if confirmed and protocol != PROTOCOLS["udp"] else "NONE"
        server = self.letter(said["backend"]), self._server_port(row, said, virtual[1])
        return Entry(protocol, _end(row, "client"), virtual, server, state, said["expires_in"])

    def _server_port(self, row: Any, said: dict[str, Any], virtual: int) -> int:
        """The port in a connection; in a template the server's, where it is for one port."""
        if int(row["word"]) >> 44 & 0x4F != self.balancer.schema.enums["state"]["bound"]:
            return int.from_bytes((int(row["word"]) & 0xFFFF).to_bytes(2, "little"), "big")
        _, _, port = (said["backend"] or "").rpartition(":")
        own = int(port) if port.isdigit() and ":" not in said["backend"].strip("[]") else 0
        own = int(port) if port.isdigit() and said["backend"].count(":") == 1 else own
        return (own or virtual) if virtual else 0

    def backends(self) -> list[dict[str, Any]]:
        """What `backend list` shows, with letters."""
        rows = views.backends(self.balancer, self.datapath.net)
        return [{**row, "letter": self.letter(row["address"])} for row in rows]

    # ----------------------------------------------------------------------------- slots

    def slots(self, service: Service, count: int) -> list[str]:
        """The letters of a scheduler's table, as the program reads it."""
        offset, first, width = self._ranges(service)
        table, members = self.balancer.map("slots"), self.balancer.map("members")
        letters, identities = {}, self._identities()
        for place in range(len(service.servers)):
            row = members.look_up(records.number(first + place)) or b""
            identity = self.balancer.schema.values["members"].number(row, "backend")
            letters[place] = identities[identity]
        rows = (table.look_up(records.number(offset + n)) or b"" for n in range(count))
        return [letters[int.from_bytes(row[:width], "little")] for row in rows]

    def write_slots(self, service: Service, places: list[int]) -> None:
        """Puts other places into a scheduler's table, to see by them where a packet falls."""
        offset, _, width = self._ranges(service)
        kind = {2: "H", 4: "I"}[width]
        rows = struct.pack(f"<{len(places)}{kind}", *places)
        self.balancer.map("slots").update_rows(offset, rows)

    def _ranges(self, service: Service) -> tuple[int, int, int]:
        """Where the service's slots and members begin, and how wide a slot is."""
        names = {
            str(each.key): place
            for each in self.balancer.state.config.services
            if (place := self.balancer.state.book.services[str(each.key)])
        }
        key = f"mark{'6' if service.family == 'ipv6' else ''}:{service.mark}"
        if service.mark is None:
            key = f"{service.protocol}:{written((service.address, service.port))}"
        row = self.balancer.map("service_configs").look_up(records.number(names[key].row)) or b""
        layout = self.balancer.schema.values["service_configs"]
        width = self.balancer.map("slots").value_size
        return layout.number(row, "slots_offset"), layout.number(row, "list_offset"), width


# ------------------------------------------------------------------------------------------ packets


def packet(flow: Flow) -> Any:
    """The IP packet of a flow."""
    ipv6 = ":" in flow.virtual[0]
    layer = IPv6 if ipv6 else IP
    lower = layer(src=flow.client[0], dst=flow.virtual[0])
    ports: dict[str, Any] = {"sport": flow.client[1], "dport": flow.virtual[1]}
    if flow.kind.protocol == "udp":
        return lower / UDP(**ports) / flow.kind.data
    if flow.kind.protocol == "sctp":
        chunk = struct.pack("!BBHI", CHUNKS[flow.kind.what], 0, 8, 0)
        return lower / SCTP(**ports) / chunk
    if flow.kind.protocol == "icmp":
        return lower / (ICMPv6EchoRequest() if ipv6 else ICMP())
    return lower / TCP(flags=flow.kind.what, **ports)


def destination_port(frame: bytes) -> int | None:
    """The port that a forwarded frame goes to."""
    version = frame[14] >> 4
    start = 14 + (frame[14] & 15) * 4 if version == 4 else 54
    return int.from_bytes(frame[start + 2 : start + 4], "big") if len(frame) > start + 3 else None


def _end(row: Any, name: str) -> tuple[str, int]:
    """The client's or the virtual end of an entry."""
    return _address(row[name]), int(row[f"{name}_port"])


def _address(raw: Any) -> str:
    return str(ipaddress.ip_address(bytes(raw)))


def written(end: tuple[str, int] | None) -> str:
    """An end as lists write it."""
    if end is None:
        return "?"
    return f"[{end[0]}]:{end[1]}" if ":" in end[0] else f"{end[0]}:{end[1]}"

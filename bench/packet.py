"""`scripts/bench packet`: nanoseconds a packet, all cases interleaved in one run."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import ipaddress
import os
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bench import record
from lvsxdp import (
    attaching,
    bytecode,
    compiler,
    config,
    controller,
    loading,
    maps,
    network,
    records,
    views,
)
from lvsxdp.controller import Balancer
from lvsxdp.entries import Wanted
from lvsxdp.loading import Build
from lvsxdp.maps import Map
from lvsxdp.model import Config
from lvsxdp.network import Link, Network

CLIENT = "172.31.0.21"
BACKEND = "172.31.0.11"
HERE = Path(__file__).resolve().parent
FRAME_BYTES = 80
SYN, ACK = 0x02, 0x10
PASS, TX = 2, 3
BACKEND_MAC = "02:00:00:00:01:0b"
CLIENT_MAC = "02:00:00:00:03:15"
STEP = 1 << 17
MILLION = """
features: all
capacity: {connections: 1048576, persistence: 1024}
services:
  - {protocol: tcp, address: 192.0.2.12, port: 80, scheduler: rr,
     backends: [{address: 172.31.0.11}]}
"""
NAT = """
features: all
services:
  - {protocol: tcp, address: 192.0.2.12, port: 80, scheduler: rr, forward: nat,
     backends: [{address: 172.31.0.11, port: 8080}]}
"""
# the pool has one port, so that it is known which one the flow gets
FULLNAT = """
features: all
settings: {source_pool: 172.31.0.200, source_ports: 7000-7000}
services:
  - {protocol: tcp, address: 192.0.2.12, port: 80, scheduler: rr, forward: fullnat,
     backends: [{address: 172.31.0.11, port: 8080}]}
"""
TUNNEL = """
features: all
services:
  - {protocol: tcp, address: 192.0.2.12, port: 80, scheduler: rr, forward: tunnel,
     backends: [{address: 172.31.0.11}]}
  - {protocol: tcp, address: "2001:db8::12", port: 80, scheduler: rr, forward: tunnel,
     backends: [{address: "2001:db8:0:1::11"}]}
  - {protocol: tcp, address: 192.0.2.10, port: 80, scheduler: rr, forward: tunnel,
     tunnel: {type: gue, port: 6080, checksum: csum}, backends: [{address: 172.31.0.11}]}
  - {protocol: tcp, address: 192.0.2.11, port: 80, scheduler: rr, forward: tunnel,
     tunnel: gre, backends: [{address: 172.31.0.11}]}
"""
CONFIG = """
features: all
marks:
  - {mark: 1, protocol: tcp, address: 192.0.2.10, ports: [80, 443]}
  - {mark: 2, protocol: tcp, address: 192.0.2.11, ports: [80, 443]}
services:
  - {mark: 1, scheduler: rr, persistence: {timeout: 3600, netmask: 255.0.0.0},
     backends: [{address: 172.31.0.11}]}
  - {mark: 2, scheduler: rr, persistence: {timeout: 3600}, backends: [{address: 172.31.0.11}]}
  - {protocol: tcp, address: 192.0.2.12, port: 80, scheduler: rr,
     backends: [{address: 172.31.0.11}]}
  - {protocol: tcp, address: "2001:db8::12", port: 80, scheduler: rr,
     backends: [{address: "2001:db8:0:1::11"}]}
"""

# Balancers: one with tables of the default size, one by each other method, two for a million flows.
BALANCERS = {
    "lvsxdp": CONFIG,
    "million": MILLION,
    "nat": NAT,
    "fullnat": FULLNAT,
    "tunnel": TUNNEL,
    "tunnel_million": MILLION.replace("rr,", "rr, forward: tunnel,"),
}


@dataclasses.dataclass
class Case:
    """One case: the packets, which program, what they must do, and what was measured."""

    name: str
    subject: str
    virtual: str
    source: str
    flows: int
    flags: int
    verdict: int
    reason: str | None
    connections: int  # new ones for each packet
    packets: int  # a round
    port: int = 80
    source_port: int = 1024
    service: str = ""  # that gets a new connection for every packet of every round
    targets: int = 1  # destinations, in random order
    clients: bool = False  # every flow is a client of its own, else 16 flows are
    counter: int = 0
    samples: list[int] = dataclasses.field(default_factory=list)

    @property
    def fresh(self) -> bool:
        """Every packet of every round is a flow of its own."""
        return bool(self.service)


def all_cases() -> list[Case]:
    """The cases in the order in which a round runs them."""
    vip = "192.0.2.12"
    return [
        Case("floor", "floor", vip, "10.1.0.1", 1, ACK, PASS, None, 0, 200_000),
        Case("reference", "reference", vip, "10.1.0.1", 1, ACK, TX, None, 0, 200_000),
        Case("line_1", "line", vip, "10.2.0.1", 1, ACK, TX, None, 0, 200_000),
        Case("line_16k", "line", vip, "10.3.0.0", 1 << 14, ACK, TX, None, 0, 200_000),
        Case("line_1m", "line", vip, "10.16.0.0", 1 << 20, ACK, TX, None, 0, 200_000),
        _established("dr_established_1", "10.2.0.1", 1),
        _established("dr_established_16k", "10.3.0.0", 1 << 14),
        _established("dr_established_1m", "10.16.0.0", 1 << 20, "million"),
        _established("dr6_established_1", "2001:db8:1::7", 1, virtual="2001:db8::12"),
        _established("nat_request_1", CLIENT, 1, "nat"),
        Case(
            *("nat_reply_1", "nat", CLIENT, BACKEND, 1, ACK, TX, "answered", 0, 200_000),
            port=1024,
            source_port=8080,
        ),
        _established("fullnat_request_1", CLIENT, 1, "fullnat"),
        Case(
            *("fullnat_reply_1", "fullnat", "172.31.0.200", BACKEND, 1, ACK, TX, "answered"),
            *(0, 200_000),
            port=7000,
            source_port=8080,
        ),
        Case("room", "room", vip, "10.1.0.1", 1, ACK, TX, None, 0, 200_000),
        _established("tunnel_established_1", "10.2.0.1", 1, "tunnel"),
        _established("tunnel_established_1m", "10.16.0.0", 1 << 20, "tunnel_million"),
        _established("tunnel6_established_1", "2001:db8:1::7", 1, "tunnel", "2001:db8::12"),
        _established("tunnel_gue_csum_1", "10.2.0.1", 1, "tunnel", "192.0.2.10"),
        _established("tunnel_gre_1", "10.2.0.1", 1, "tunnel", "192.0.2.11"),
        fresh("new_persistent_hit", "lvsxdp", "192.0.2.10", "20.0.0.0", "mark:1", 20_000),
        dataclasses.replace(
            fresh("new_persistent_miss", "lvsxdp", "192.0.2.11", "30.0.0.0", "mark:2", 20_000),
            clients=True,
        ),
        Case(
            "not_ours",
            "lvsxdp",
            vip,
            "10.1.0.1",
            1 << 14,
            ACK,
            PASS,
            "no_service",
            0,
            200_000,
            port=22,
        ),
    ]


def fresh(name: str, subject: str, virtual: str, source: str, service: str, packets: int) -> Case:
    """A case of new connections of a service, each of 16 of a client."""
    flows = 1 << 30
    return Case(
        *(name, subject, virtual, source, flows, SYN, TX, "forwarded", 1, packets),
        service=service,
    )


def _established(
    name: str, source: str, flows: int, subject: str = "lvsxdp", virtual: str = "192.0.2.12"
) -> Case:
    return Case(name, subject, virtual, source, flows, ACK, TX, "forwarded", 0, 200_000)


def frame(case: Case, mac: str, flags: int) -> bytes:
    """The case's first packet: Ethernet, IP, TCP, padded to FRAME_BYTES."""
    source, virtual = ipaddress.ip_address(case.source), ipaddress.ip_address(case.virtual)
    tcp = struct.pack("!HHIIBBHHH", case.source_port, case.port, 1, 1, 5 << 4, flags, 65535, 0, 0)
    macs = bytes.fromhex(mac.replace(":", "")) + bytes.fromhex("0200000000fe")
    if virtual.version == 6:
        length = FRAME_BYTES - 54
        header = struct.pack("!IHBB", 6 << 28, length, 6, 64) + source.packed + virtual.packed
        return (macs + b"\x86\xdd" + header + tcp).ljust(FRAME_BYTES, b"\0")
    total = FRAME_BYTES - 14
    header = struct.pack("!BBHHHBBH", 0x45, 0, total, 1, 0x4000, 64, 6, 0)
    return (macs + b"\x08\0" + header + source.packed + virtual.packed + tcp).ljust(
        FRAME_BYTES, b"\0"
    )


def take_for_nic(balancer: Balancer, link: Link) -> None:
    """Has the programs send back by XDP_TX, as they do on a real interface: this one is a veth."""
    layout, flag = balancer.schema.values["interfaces"], balancer.schema.enums["interface_flag"]
    table, key = balancer.map("interfaces"), records.number(link.index)
    row = table.look_up(key) or b""
    flags = layout.number(row, "flags") & ~flag["no_tx"]
    table.update(key, layout.encode(mac=layout.number(row, "mac"), flags=flags))


class Rig:
    """One loaded balancer, the driver, and the way to run a case."""

    def __init__(self, balancer: Balancer, net: Network, cache: Path, namespace: str) -> None:
        """Loads the driver, the floor and the reference."""
        self.balancer, self.net, self.namespace = balancer, net, namespace
        self.link = net.link("lb0")
        take_for_nic(balancer, self.link)
        compiled = compiler.compile_source("driver.c", {}, cache=cache, folder=HERE)
        names = ("driver", "floor_program", "reference_program", "line_program", "room_program")
        loaded, tables = bytecode.load_alone(compiled, names)
        self.driver = loaded["driver"]
        self.subjects = {
            "floor": loaded["floor_program"],
            "reference": loaded["reference_program"],
            "line": loaded["line_program"],
            "room": loaded["room_program"],
            **{name: balancer.program("xdp_entry") for name in BALANCERS},
        }
        self.cases, self.places = tables["cases"], tables["subjects"]
        self._fill_reference(tables["reference_table"])

    def _fill_reference(self, table: Map) -> None:
        case = all_cases()[1]
        source, virtual = ipaddress.ip_address(case.source), ipaddress.ip_address(case.virtual)
        key = source.packed + virtual.packed + struct.pack("!HH", 1024, 80) + struct.pack("<I", 6)
        table.update(key, bytes.fromhex("02000000010b0200000000fd00000000"))

    def run(self, case: Case, packets: int, *, flags: int, spread: bool) -> maps.Run:
        """Sends packets of a case; the kernel's own average time a packet."""
        sent = frame(case, self.link.mac, flags)
        ipv6 = ipaddress.ip_address(case.virtual).version == 6
        value = (
            struct.pack("<Q", case.counter)
            + struct.pack("<4I", case.flows - 1, ipv6, spread, case.clients)
            + struct.pack("<2I", case.targets - 1, 0)
            + sent
        )
        self.cases.update(records.number(0), value)
        self.places.update(records.number(0), records.number(self.subjects[case.subject]))
        network.enter_namespace(self.namespace)
        run = maps.run_program(self.driver, sent, ifindex=self.link.index, repeat=packets)
        case.counter += packets
        return run

    def apply(self, wanted: Config) -> None:
        """Brings the balancer to another configuration."""
        network.enter_namespace(self.namespace)
        self.balancer.apply(wanted, self.net)
        take_for_nic(self.balancer, self.link)

    def prepare(self, case: Case) -> None:
        """Opens the flows of an established case, and confirms the next hop."""
        self.confirm()
        if case.reason == "forwarded" and not case.fresh:
            for flags in (SYN, ACK):
                for _ in range(0, case.flows, STEP):
                    self.run(case, min(case.flows, STEP), flags=flags, spread=False)

    def confirm(self) -> None:
        """Notes every next hop as confirmed now: for a second no packet takes the kernel's road."""
        stamp = struct.pack("<Q", self.balancer.clock())
        for probes in map(self.balancer.map, ("nexthop_probes", "way_probes")):
            probes.write(0, stamp * probes.capacity)

    def measure(self, case: Case) -> None:
        """One round of a case; raises where the packets did not do the case's work."""
        self.confirm()
        before, opened, bound = self.balancer.reasons(), self.opened(), self.bound(case)
        run = self.run(case, case.packets, flags=case.flags, spread=not case.fresh)
        after = self.balancer.reasons()
        moved = {name: count - before.get(name, 0) for name, count in after.items()}
        moved = {name: count for name, count in moved.items() if count}
        expected = {case.reason: case.packets} if case.reason else {}
        made = self.opened() - opened
        if run.verdict != case.verdict or moved != expected:
            raise SystemExit(f"{case.name} did not do its work: verdict {run.verdict}, {moved}")
        if made != case.connections * case.packets:
            raise SystemExit(f"{case.name} did not do its work: {made} new connections")
        entries = self.bound(case) - bound
        if case.fresh and (entries == case.packets) != case.clients:
            raise SystemExit(f"{case.name} did not do its work: {entries} new persistence entries")
        to = CLIENT_MAC if case.reason == "answered" else BACKEND_MAC
        if case.verdict == TX and case.subject in BALANCERS and run.data[:6].hex(":") != to:
            raise SystemExit(f"{case.name} did not reach {to}")
        case.samples.append(run.nanoseconds)
        if case.fresh:
            self.forget(case)

    def forget(self, case: Case) -> None:
        """Removes what a round of new connections has made."""
        wanted = Wanted(service=self.balancer.state.book.services[case.service].id)
        tables = (*views.CONNECTIONS, *views.PERSISTENCE)
        self.balancer.reap(views.places(self.balancer, tables, wanted), force=True)
        for table in tables:
            self.balancer.sweep(table)

    def bound(self, case: Case) -> int:
        """How many persistence entries the service of a case of new connections has."""
        if not case.fresh:
            return 0
        fields = self.balancer.schema.values["shares"].fields
        service = self.balancer.state.book.services[case.service].id
        return self.balancer.map("shares").read_word(service, fields["persistence4"].offset)

    def opened(self) -> int:
        """How many connections all services have opened."""
        places = self.balancer.state.book.services.values()
        return sum(self.balancer.total("service_counters", p.id)["connections"] for p in places)


def results(cases: list[Case]) -> list[record.Result]:
    """Nanoseconds a packet of each case; net of the floor."""
    floor, reference = min(cases[0].samples), min(cases[1].samples)
    found = []
    for case in cases:
        net = min(case.samples) - floor
        target, stretch = record.TARGETS.get(case.name, (None, None))
        more = {
            "flows": None if case.fresh else case.flows,
            "ratio": round(net / max(reference - floor, 1), 2),
        }
        found.append(record.Result(case.name, "ns", case.samples, net, target, stretch, more))
    return found


@contextmanager
def namespace(name: str) -> Iterator[None]:
    """A namespace with one interface whose neighbour is the backend; removed at the end."""

    def ip(*arguments: str) -> None:
        subprocess.run(["ip", "-n", name, *arguments], check=True)

    subprocess.run(["ip", "netns", "add", name], check=True)
    try:
        ip("link", "set", "lo", "up")
        ip("link", "add", "lb0", "type", "veth", "peer", "name", "peer0")
        # the peer is to send nothing of its own: every packet counted is the bench's
        ip("link", "set", "peer0", "addrgenmode", "none")
        for device in ("lb0", "peer0"):
            ip("link", "set", device, "up")
        for address in ("172.31.0.1/24", "192.0.2.10/32", "192.0.2.11/32", "192.0.2.12/32"):
            ip("addr", "add", address, "dev", "lb0")
        for address in ("2001:db8:0:1::1/64", "2001:db8::12/128"):
            ip("addr", "add", address, "dev", "lb0", "nodad")
        for address in ("172.31.0.11", "2001:db8:0:1::11"):
            ip("neigh", "add", address, "lladdr", BACKEND_MAC, "dev", "lb0", "nud", "permanent")
        ip("neigh", "add", CLIENT, "lladdr", CLIENT_MAC, "dev", "lb0", "nud", "permanent")
        network.enter_namespace(name)
        yield
    finally:
        subprocess.run(["ip", "netns", "del", name], capture_output=True)


@contextmanager
def rig(subject: str, text: str, cache: Path, build: Build | None = None) -> Iterator[Rig]:
    """A balancer with this configuration in its own namespace, removed at the end."""
    name = f"lvxrig-{os.getpid()}-{subject}"
    with namespace(name):
        where = controller.here()
        try:
            for sysctl in controller.SYSCTLS:
                network.set_sysctl(sysctl, "1")
            with Network() as net:
                loaded = config.load(text)[0]
                attaching.attach(where, net, ("lb0",), loaded, "native", build=build)
                with Balancer.open(where) as balancer:
                    yield Rig(balancer, net, cache, name)
                network.enter_namespace(name)
                attaching.detach_all(where, net)
        finally:
            loading.remove_pins(where.pins)
            shutil.rmtree(where.files, ignore_errors=True)


def measured(cases: list[Case], rounds: int, cache: Path) -> list[record.Result]:
    """All cases in turn, so many times."""
    with contextlib.ExitStack() as stack:
        rigs = {
            name: stack.enter_context(rig(name, text, cache))
            for name, text in BALANCERS.items()
            if name == "lvsxdp" or name in {case.subject for case in cases}
        }
        for case in cases:
            rigs.get(case.subject, rigs["lvsxdp"]).prepare(case)
        for _ in range(rounds):
            for case in cases:
                rigs.get(case.subject, rigs["lvsxdp"]).measure(case)
    return results(cases)


@contextmanager
def workplace() -> Iterator[Path]:
    """A folder for what is compiled; at the end, SIGTERM's too, it and all that was made go."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    network.leave_private_mounts()
    cache = Path(tempfile.mkdtemp(prefix="lvsxdp-bench-"))
    try:
        yield cache
    finally:
        shutil.rmtree(cache, ignore_errors=True)


def main() -> None:
    """Runs all cases and prints their times."""
    parser = argparse.ArgumentParser(prog="scripts/bench packet", description=__doc__)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--stages", action="store_true", help="up to each stage of the journey")
    parser.add_argument("--only", default="", help="names of cases, with commas between")
    options = parser.parse_args()
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    cases = all_cases()
    if options.only:
        cases = [c for c in cases if c.name in ("floor", "reference", *options.only.split(","))]
    with workplace() as cache:
        if options.stages:
            from bench import stages

            found = stages.run(options.rounds, cache)
        else:
            found = measured(cases, options.rounds, cache)
    name = "stages" if options.stages else "packet"
    record.write(record.document(name, options.rounds, found), options.json)


if __name__ == "__main__":
    main()

"""`scripts/bench flood`: SYNs from a million sources beside flows and clients that must stay.

Exit code 1 where an established flow moved or broke, or where the entry of a client that had
answered was lost.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import ipaddress
import multiprocessing
import os
import sys
import time
from collections.abc import Iterator
from multiprocessing.synchronize import Event
from pathlib import Path

from bench import live, packet, record, throughput
from bench.live import Ends, Flows
from bench.packet import ACK, SYN
from lvsxdp import controller, maps, network, records, views
from lvsxdp.entries import Wanted
from lvsxdp.model import Network

SOURCES = 1 << 20
CHUNK = 500_000
REDIRECT = 4
# How long a new client takes to answer, and how many begin in each tick.
DELAYS = (0.02, 0.1, 0.3)
TICK = 0.05
NEW_A_TICK = 4
PLAIN, PERSISTENT = live.VIPS
FLOW_NETWORK, CLIENT_NETWORK, NEW_NETWORK = (
    ipaddress.ip_network(text) for text in ("10.1.0.0/16", "10.2.0.0/16", "10.128.0.0/12")
)
CONFIG = f"""
capacity: {{connections: %d, persistence: %d}}
services:
  - {{protocol: tcp, address: {PLAIN}, port: 80, scheduler: rr,
     backends: [{{address: 10.0.0.11}}, {{address: 10.0.0.12}}]}}
  - {{protocol: tcp, address: {PERSISTENT}, port: 80, scheduler: rr, persistence: 3600,
     backends: [{{address: 10.0.0.11}}, {{address: 10.0.0.12}}]}}
"""


@dataclasses.dataclass
class New:
    """A client that comes during the flood and answers after a while."""

    client: str
    virtual: str
    delay: float
    due: float
    chosen: int | None
    answered: bool = False
    connected: bool = False
    bound: bool = False


class Clients:
    """Real clients: one packet at a time, and where it goes."""

    def __init__(self, balancer: controller.Balancer, outer: live.Balancer) -> None:
        """`balancer` is lvsxdp in that namespace."""
        self.balancer, self.mac = balancer, outer.mac
        network.enter_namespace(outer.namespace)
        with network.Network() as net:
            self.ifindex = net.link("lb0").index
        self.entry = balancer.program("xdp_entry")

    def confirm(self) -> None:
        """Notes every next hop as confirmed now, so that no packet takes the kernel's road."""
        stamp = self.balancer.clock().to_bytes(8, "little")
        for place in self.balancer.state.book.services.values():
            for backend in place.backends.values():
                self.balancer.map("nexthop_probes").update(records.number(backend.id), stamp)

    def send(self, client: str, virtual: str, flags: int) -> int | None:
        """The last byte of the MAC of the backend that gets the packet, None where none does."""
        case = packet.Case("", "", virtual, client, 1, flags, 0, None, 0, 0)
        frame = packet.frame(case, self.mac, flags)
        for _ in range(2):
            run = maps.run_program(self.entry, frame, ifindex=self.ifindex)
            if run.verdict == REDIRECT:
                return run.data[5]
            self.confirm()
        return None

    def open(self, clients: list[str], virtual: str) -> dict[str, int | None]:
        """Each client's backend, after a connection that it has answered."""
        self.confirm()
        for client in clients:
            self.send(client, virtual, SYN)
        return {client: self.send(client, virtual, ACK) for client in clients}

    def connected(self, where: Network) -> set[str]:
        """Clients in a network that have an established connection."""
        rows = views.connections(self.balancer, Wanted(client=where))
        return {row[2].rpartition(":")[0] for row in rows if row[5] == "ESTABLISHED"}

    def bound(self, where: Network) -> dict[str, str]:
        """Clients in a network that have a persistence entry, and its backend."""
        rows = views.persistence(self.balancer, Wanted(client=where))
        return {row[1]: row[2] for row in rows}


def addresses(where: Network, count: int) -> list[str]:
    """The first so many addresses of a network."""
    return [str(where.network_address + n) for n in range(count)]


def overrun(outer: Ends, balancer: live.Balancer, cpu: int, stop: Event) -> None:
    """The flood itself: SYNs at the full rate of this CPU, to both services in turn."""
    os.sched_setaffinity(0, {cpu})
    turn = 0
    while not stop.is_set():
        flows = Flows("64.0.0.0", SOURCES, SYN, live.VIPS[turn % 2], clients=True)
        outer.send(balancer, flows, CHUNK)
        turn += 1


@contextlib.contextmanager
def flooding(outer: Ends, balancer: live.Balancer, cpu: int) -> Iterator[None]:
    """A flood, meanwhile, by another process."""
    fork = multiprocessing.get_context("fork")
    stop = fork.Event()
    process = fork.Process(target=overrun, args=(outer, balancer, cpu, stop), daemon=True)
    process.start()
    try:
        yield
    finally:
        stop.set()
        process.join(30)
        process.terminate()


def come(clients: Clients, seconds: float) -> list[New]:
    """New clients at a steady rate for so long; each answers after its delay."""
    made: list[New] = []
    waiting: list[New] = []
    ending = time.monotonic() + seconds
    while (now := time.monotonic()) < ending or waiting:
        clients.confirm()
        begun = _begin(clients, len(made), now) if now < ending else []
        made, waiting = made + begun, waiting + begun
        while time.monotonic() < now + TICK:
            for new in [n for n in waiting if n.due <= time.monotonic()]:
                answer = clients.send(new.client, new.virtual, ACK)
                new.answered = answer is not None and answer == new.chosen
                waiting.remove(new)
            time.sleep(0.002)
    return made


def _begin(clients: Clients, first: int, now: float) -> list[New]:
    """One tick's new clients, half of them for each service, each with its delay."""
    begun = []
    for number in range(first, first + NEW_A_TICK * len(DELAYS)):
        delay, virtual = DELAYS[number % len(DELAYS)], live.VIPS[number % 2]
        client = str(NEW_NETWORK.network_address + number)
        chosen = clients.send(client, virtual, SYN)
        begun.append(New(client, virtual, delay, now + delay, chosen))
    return begun


def settle(clients: Clients, made: list[New]) -> None:
    """Notes what each new client has in the end."""
    connected, bound = clients.connected(NEW_NETWORK), clients.bound(NEW_NETWORK)
    for new in made:
        new.connected = new.client in connected
        new.bound = new.virtual == PLAIN or new.client in bound


def shares(made: list[New]) -> dict[str, float]:
    """Which share of the new clients got in and kept connection and entry, by their delay."""
    found = {}
    for delay in DELAYS:
        group = [new for new in made if new.delay == delay]
        kept = [new for new in group if new.answered and new.connected and new.bound]
        found[f"{round(delay * 1000)}_ms"] = round(len(kept) / max(len(group), 1), 4)
    return found


@dataclasses.dataclass(frozen=True)
class Before:
    """What has to be there after the flood as it was before."""

    flows: dict[str, int | None]
    clients: dict[str, int | None]
    entries: dict[str, str]


def losses(clients: Clients, before: Before, made: list[New]) -> dict[str, int]:
    """What the flood has taken from those who had answered; all zero where it is as promised."""
    entries_now = clients.bound(CLIENT_NETWORK)
    clients.confirm()
    flows = {client: clients.send(client, PLAIN, ACK) for client in before.flows}
    settle(clients, made)
    return {
        "flows_lost": sum(backend is None for backend in flows.values()),
        "flows_moved": _moved(flows, before.flows),
        "entries_lost": sum(client not in entries_now for client in before.entries),
        "entries_moved": sum(entries_now.get(c, b) != b for c, b in before.entries.items()),
        "new_flows_lost": sum(new.answered and not new.connected for new in made),
    }


def _moved(now: dict[str, int | None], before: dict[str, int | None]) -> int:
    return sum(b is not None and b != before[client] for client, b in now.items())


def counted(balancer: controller.Balancer) -> tuple[int, int]:
    """Packets sent on, and how many of them without an entry."""
    reasons = balancer.reasons()
    full = reasons.get("table_full", 0)
    return reasons.get("forwarded", 0) + full, full


def flood(options: argparse.Namespace, cache: Path) -> tuple[list[record.Result], dict[str, int]]:
    """Sets up, floods, and looks what is left: the figures, and the losses."""
    text = CONFIG % (options.capacity, options.capacity)
    with (
        live.ends(cache) as outer,
        live.balancer(outer, 0) as made,
        throughput.lvsxdp(made, cache, text) as balancer,
    ):
        clients = Clients(balancer, made)
        before = Before(
            clients.open(addresses(FLOW_NETWORK, options.flows), PLAIN),
            clients.open(addresses(CLIENT_NETWORK, options.flows), PERSISTENT),
            clients.bound(CLIENT_NETWORK),
        )
        if None in before.flows.values() or len(before.entries) != options.flows:
            raise SystemExit("flood: not every client got its connection before the flood")
        start, began = counted(balancer), time.monotonic()
        with flooding(outer, made, max(os.sched_getaffinity(0))):
            os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
            news = come(clients, options.seconds)
        rate = (counted(balancer)[0] - start[0]) / (time.monotonic() - began)
        lost = losses(clients, before, news)
        more = {
            **lost,
            "table_full": counted(balancer)[1] - start[1],
            "packets": counted(balancer)[0] - start[0],
            "new_clients": len(news),
            "new_clients_in": shares(news),
        }
        return [record.Result("syn_flood", "packets/s", [round(rate)], more=more)], lost


def main() -> None:
    """Floods once, prints, and fails where the flood took what it must not."""
    parser = argparse.ArgumentParser(prog="scripts/bench flood", description=__doc__)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--capacity", type=int, default=65536, help="of each table")
    parser.add_argument("--flows", type=int, default=1000, help="and as many persistent clients")
    options = parser.parse_args()
    with packet.workplace() as cache:
        found, lost = flood(options, cache)
    how = {"seconds": options.seconds, "capacity": options.capacity, "sources": SOURCES}
    how |= {"flows": options.flows, "persistent_clients": options.flows}
    record.write(record.document("flood", 1, found, **how), options.json)
    if any(lost.values()):
        sys.exit(1)


if __name__ == "__main__":
    main()

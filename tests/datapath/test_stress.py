"""All CPUs insert and renew in the same buckets while sweeps run, and nothing goes wrong."""

from __future__ import annotations

import os
import struct
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from bench import packet as bench
from lvsxdp import ageing, compiler, entries, maps, records
from lvsxdp.maps import Map, ProgramType
from tests.datapath.harness import Datapath

A, B, C = "10.0.0.11", "10.0.0.12", "10.0.0.13"
VIP = "192.0.2.10"
TURNS = 150
SYN, ACK, RST = 0x02, 0x10, 0x04
REAL, FLOOD = 1024, 2048  # clients; eight floods are more than the tables hold
CONFIG = f"""
services:
  - protocol: tcp
    address: {VIP}
    port: 80
    scheduler: wlc
    persistence: 600
    backends: [{{address: {A}}}, {{address: {B}}}, {{address: {C}}}]
"""


class Sender:
    """One CPU's driver: the same frame from many clients in turn, thousands in one call."""

    def __init__(self, datapath: Datapath, cache: Path) -> None:
        module = compiler.Module("driver.c", {}, cache=cache, folder=bench.HERE)
        self.driver = compiler.load_all(module, ("driver",), ProgramType.XDP)["driver"]
        self.cases = Map(os.dup(module.table_descriptor("cases")))
        subjects = Map(os.dup(module.table_descriptor("subjects")))
        subjects.update(records.number(0), records.number(datapath.entry["xdp"]))
        self.ifindex, self.mac = datapath.ifindex["lb0"], datapath.mac["lb0"]

    def send(self, source: str, clients: int, flags: int, *, mixed: bool = False) -> None:
        """One frame from each of so many clients, in their order or mixed up."""
        case = bench.Case("", "", VIP, source, clients, flags, 0, None, 0, 0)
        frame = bench.frame(case, self.mac, flags)
        header = struct.pack("<QIIII", 0, clients - 1, 0, mixed, 1)
        self.cases.update(records.number(0), header + frame)
        maps.run_program(self.driver, frame, ifindex=self.ifindex, repeat=clients)


def at_once(works: list[Callable[[], None]]) -> None:
    """Runs each work in a thread, and raises what one of them raised."""
    failures: list[BaseException] = []

    def run(work: Callable[[], None]) -> None:
        try:
            work()
        except BaseException as err:
            failures.append(err)

    threads = [threading.Thread(target=run, args=(work,)) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]


@pytest.fixture
def senders(datapath: Datapath, tmp_path: Path) -> Iterator[list[Sender]]:
    """One sender a CPU."""
    made = [Sender(datapath, tmp_path) for _ in range(os.cpu_count() or 1)]
    yield made
    for sender in made:
        os.close(sender.driver)
        sender.cases.close()


def hammer(
    datapath: Datapath, sender: Sender, cpu: int, together: threading.Barrier
) -> Callable[[], None]:
    """Opens, renews and closes over and over, all CPUs the same flows at the same time."""

    # the one goes through the clients in order, the other not: they meet over and over
    mixed = cpu % 2 == 1

    def work() -> None:
        os.sched_setaffinity(0, {cpu})
        for turn in range(TURNS):
            datapath.confirm()
            sender.send("10.0.0.0", REAL, (SYN, ACK)[(turn + cpu) % 2], mixed=mixed)
            for flags in (SYN, (ACK, SYN)[cpu % 2], RST):
                together.wait(30)
                sender.send(f"20.{turn % 8}.0.0", FLOOD, flags, mixed=mixed)

    return work


def sweeping(datapath: Datapath, stop: threading.Event) -> Callable[[], None]:
    def work() -> None:
        drift: dict[ageing.Count, int] = {}
        while not stop.wait(0.01):
            drift = ageing.sweep(datapath.balancer, drift).drift

    return work


def keys_and_backends(datapath: Datapath, table: str) -> list[tuple[bytes, int]]:
    """Key and backend of every slot that is in use."""
    found = []
    memory = datapath.balancer.map(table).memory()
    for _, part in entries.chunks(datapath.balancer.schema, table, memory):
        fields = zip(
            map(bytes, part["client"]),
            part["client_port"].tolist(),
            part["virtual_port"].tolist(),
            part["backend"].tolist(),
            strict=True,
        )
        found += [
            (client + bytes(divmod(p, 256)) + bytes(divmod(v, 256)), backend)
            for client, p, v, backend in fields
        ]
    return found


def test_no_entry_is_lost_doubled_or_mixed_whatever_the_cpus_do_at_once(
    datapath: Datapath, senders: list[Sender]
) -> None:
    datapath.apply(CONFIG)
    for flags in (SYN, ACK):  # the real clients' connections are established
        senders[0].send("10.0.0.0", REAL, flags)
    before = dict(keys_and_backends(datapath, "persistence4"))
    assert len(before) == REAL
    together = threading.Barrier(len(senders))
    works = [hammer(datapath, sender, cpu, together) for cpu, sender in enumerate(senders)]
    stop = threading.Event()
    sweeper = threading.Thread(target=sweeping(datapath, stop))
    sweeper.start()
    try:
        at_once(works)
    finally:
        stop.set()
        sweeper.join()
    assert "internal" not in datapath.reasons()
    connections = keys_and_backends(datapath, "connections4")
    bound = keys_and_backends(datapath, "persistence4")
    # doubled
    assert max(Counter(key for key, _ in connections).values()) == 1
    assert max(Counter(key for key, _ in bound).values()) == 1
    # lost: the real clients have what they had
    real = {key: backend for key, backend in bound if key[0] == 10}
    assert real == before
    assert sum(key[0] == 10 for key, _ in connections) == REAL
    # mixed: a connection goes where its client is bound
    clients = {key[:4]: backend for key, backend in bound}
    astray = [key for key, backend in connections if clients.get(key[:4], backend) != backend]
    assert astray == []
    # wrongly freed or counted: the counts are those of the entries
    assert ageing.sweep(datapath.balancer, {}).drift == {}

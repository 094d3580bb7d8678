"""All CPUs insert and renew in the same buckets while sweeps run, and nothing goes wrong."""

from __future__ import annotations

import multiprocessing
import os
from collections import Counter
from collections.abc import Callable, Iterator
from multiprocessing.synchronize import Barrier, Event
from pathlib import Path
from typing import Any

import pytest
from scapy.layers.inet import IP, TCP

from lvsxdp import ageing, bytecode, compiler, entries, maps, records
from tests.datapath.conftest import running
from tests.datapath.harness import Datapath

pytestmark = pytest.mark.alone
A, B, C = "10.0.0.11", "10.0.0.12", "10.0.0.13"
VIP = "192.0.2.10"
TURNS = 40
# All but established connections are over after a step without a packet, and these after seven; of
# the packets in between each real client sends a hundred.
STEP_SECONDS, STEP_PACKETS = 130, 50_000
# A turn is long, as the kernel sets each run up apart from all others, which takes up to 60 ms.
PACKETS = 1 << 18
REAL = 16  # clients, of 10.0.0.0/8: stress.c
# A persistence entry's counts have 24 bits each, and its generation begins there (bpf/expiry.h);
# the flag of a connection that has one; the states in which a connection holds its entry.
COUNTS, COUNTS_GENERATION, CONTROLLED = (1 << 24) - 1, 49, 2
LASTING = ("established", "syn_sent", "syn_recv", "synack", "udp")
HERE = Path(__file__).parent
SMALL = """
capacity: {connections: 64, persistence: 64}
features: all
"""
SERVICE = f"""
  - protocol: tcp
    address: {VIP}
    port: %d
    scheduler: wlc
    persistence: 20
    backends: [{{address: {A}}}, {{address: {B}}}, {{address: {C}}}]
"""
CONFIG = f"services:{SERVICE % 80}{SERVICE % 81}"


class Sender:
    """One CPU's driver, which sends packets of any flow with any flags: stress.c."""

    def __init__(self, datapath: Datapath, cache: Path) -> None:
        compiled = compiler.compile_source("stress.c", {}, cache=cache, folder=HERE)
        programs, tables = bytecode.load_alone(compiled, ("driver",))
        self.driver, self.subjects = programs["driver"], tables["subjects"]
        self.subjects.update(records.number(0), records.number(datapath.entry["xdp"]))
        self.ifindex = datapath.ifindex["lb0"]
        packet = IP(src="10.0.0.0", dst=VIP) / TCP(sport=1024, dport=80) / bytes(26)
        self.frame = bytes(datapath.to_host(packet))
        tables["frames"].update(records.number(0), self.frame)
        tables["frames"].close()

    def send(self, packets: int) -> None:
        """Sends so many packets."""
        maps.run_program(self.driver, self.frame, ifindex=self.ifindex, repeat=packets)

    def close(self) -> None:
        """Lets go of the driver."""
        os.close(self.driver)
        self.subjects.close()


def at_once(works: list[Callable[[], None]]) -> None:
    """Does each work in a process of its own, as threads of one would wait for each other."""
    fork = multiprocessing.get_context("fork")
    processes = [fork.Process(target=work) for work in works]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * len(works)


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Datapath]:
    """Programs that wait where it is dangerous, with tables of two buckets."""
    with running(f"lvxstress-{os.getpid()}", SMALL, tmp_path, {"TEST_RACES": 1}) as datapath:
        yield datapath


@pytest.fixture
def senders(small: Datapath, tmp_path: Path) -> Iterator[list[Sender]]:
    """One sender a CPU."""
    made = [Sender(small, tmp_path) for _ in range(os.cpu_count() or 1)]
    yield made
    for sender in made:
        sender.close()


def hammer(sender: Sender, cpu: int, together: Barrier, stop: Event) -> Callable[[], None]:
    """Opens, renews and closes over and over, all CPUs the same flows at the same time."""

    def work() -> None:
        os.sched_setaffinity(0, {cpu})
        try:
            for _ in range(TURNS):
                together.wait(30)
                sender.send(PACKETS)
        finally:
            stop.set()

    return work


def sweeping(datapath: Datapath, stop: Event) -> Callable[[], None]:
    """Sweeps, and moves the clock, all the time.

    A sweep that knows of none before mends nothing, so that no mistake of a count goes unseen.
    """

    def work() -> None:
        seen = 0
        while not stop.wait(0.005):
            ageing.sweep(datapath.balancer)
            packets = sum(datapath.reasons().values())
            if packets > seen + STEP_PACKETS:
                # the packets find what is over now, before the next sweep does
                datapath.later(STEP_SECONDS)
                seen = packets

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


def slots(datapath: Datapath, table: str) -> Iterator[tuple[int, Any]]:
    """Place and record of every slot that is in use."""
    memory = datapath.balancer.map(table).memory()
    for places, part in entries.chunks(datapath.balancer.schema, table, memory):
        yield from zip(places.tolist(), part, strict=True)


def counted_by_entries(datapath: Datapath) -> dict[int, tuple[int, int]]:
    """Reference of each persistence entry -> its connections, as it counts them: all, lasting."""
    found = {}
    for place, slot in slots(datapath, "persistence4"):
        counts = int(slot["counts"])
        found[counts >> COUNTS_GENERATION << 32 | place] = counts & COUNTS, counts >> 24 & COUNTS
    return found


def counted_in_connections(datapath: Datapath) -> dict[int, tuple[int, int]]:
    """The same, by the connections that name the entry."""
    lasting = {datapath.balancer.schema.enums["state"][name] for name in LASTING}
    found: dict[int, tuple[int, int]] = {}
    for _, slot in slots(datapath, "connections4"):
        word = int(slot["word"])
        if not word >> 48 & CONTROLLED:
            continue
        reference = int(slot["persistence"])
        connections, active = found.get(reference, (0, 0))
        found[reference] = connections + 1, active + ((word >> 44 & 15) in lasting)
    return found


def test_no_entry_is_lost_doubled_or_mixed_whatever_the_cpus_do_at_once(
    small: Datapath, senders: list[Sender]
) -> None:
    small.apply(CONFIG)
    for flags in "SA":  # the real clients' connections are established
        for client in range(REAL):
            source = IP(src=f"10.0.0.{client}", dst=VIP)
            small.deliver(source / TCP(sport=1024, dport=80, flags=flags))
    before = dict(keys_and_backends(small, "persistence4"))
    assert len(before) == REAL
    together, stop = multiprocessing.Barrier(len(senders)), multiprocessing.Event()
    hammers = [hammer(sender, cpu, together, stop) for cpu, sender in enumerate(senders)]
    at_once([*hammers, sweeping(small, stop)])
    assert "internal" not in small.reasons()
    connections = keys_and_backends(small, "connections4")
    bound = keys_and_backends(small, "persistence4")
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
    swept = ageing.sweep(small.balancer)
    assert swept.drift == {}
    told, there = counted_by_entries(small), counted_in_connections(small)
    # a half-open client's entry may have gone before its connection
    assert told == {reference: there.get(reference, (0, 0)) for reference in told}

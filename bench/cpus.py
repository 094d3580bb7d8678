"""`scripts/bench cpus`: what two CPUs forward beside what one does, all cases interleaved."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import multiprocessing
import os
import statistics
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path

from bench import packet, record
from bench.packet import ACK, PASS, TX, Case, Rig
from lvsxdp import network
from lvsxdp.controller import Balancer
from lvsxdp.network import Network

WANTED = 1.8
# Packets of one run that may take the kernel's road, one a second and backend.
PROBES = 8
CONFIG = f"""
capacity: {{connections: 1048576, persistence: 1048576}}
{packet.CONFIG}
  - {{protocol: tcp, address: 192.0.2.12, port: 8080, scheduler: rr,
     backends: [{{address: 172.31.0.11}}]}}
"""
# Their entries go after each round.
PLAIN, PERSISTENT = FRESH_SERVICES = ("tcp:192.0.2.12:8080", "mark:2")


def cases(cpu: int) -> list[Case]:
    """What one CPU sends; no two CPUs send for the same flow."""
    known, clients = f"10.{3 + cpu}.0.0", f"{64 * (cpu + 1)}.0.0.0"
    vip = "192.0.2.12"
    new = packet.fresh("new", "lvsxdp", vip, clients, PLAIN, 200_000)
    bound = packet.fresh("new_persistent", "lvsxdp", "192.0.2.11", clients, PERSISTENT, 200_000)
    return [
        Case("floor", "floor", vip, known, 1 << 14, ACK, PASS, None, 0, 4_000_000),
        Case("established", "lvsxdp", vip, known, 1 << 14, ACK, TX, "forwarded", 0, 2_000_000),
        dataclasses.replace(new, port=8080, flows=1 << 29),
        dataclasses.replace(bound, clients=True, flows=1 << 29),
    ]


@dataclasses.dataclass
class Worker:
    """A process on one CPU that runs a case when it is told to."""

    process: multiprocessing.process.BaseProcess
    told: Connection

    def start(self, place: int) -> None:
        """Begins a case."""
        self.told.send(place)

    def result(self) -> int:
        """Nanoseconds a packet of the case that was begun."""
        found = self.told.recv()
        if not isinstance(found, int):
            raise SystemExit(f"a worker failed: {found}")
        return found


def work(cpu: int, told: Connection, where: str, cache: Path) -> None:
    """The worker: a driver of its own before the balancer that all share."""
    os.sched_setaffinity(0, {cpu})
    network.enter_namespace(where)
    from lvsxdp import controller

    with Network() as net, Balancer.open(controller.here()) as balancer:
        rig = Rig(balancer, net, cache, where)
        mine = cases(cpu)
        for case in mine:
            rig.prepare(case)
        told.send(0)
        while (place := told.recv()) is not None:
            case = mine[place]
            run = rig.run(case, case.packets, flags=case.flags, spread=not case.fresh)
            told.send(run.nanoseconds if run.verdict == case.verdict else f"verdict {run.verdict}")


@contextlib.contextmanager
def workers(cpus: list[int], where: str, cache: Path) -> Iterator[list[Worker]]:
    """One worker a CPU, all prepared."""
    spawn = multiprocessing.get_context("spawn")
    made = []
    try:
        for cpu in cpus:
            here, there = spawn.Pipe()
            process = spawn.Process(target=work, args=(cpu, there, where, cache), daemon=True)
            process.start()
            made.append(Worker(process, here))
            made[-1].result()
        yield made
    finally:
        for worker in made:
            worker.process.terminate()
            worker.process.join()


def reasons(rig: Rig) -> dict[str, int]:
    """Packets by reason, and how many connections were opened."""
    return {**rig.balancer.reasons(), "opened": rig.opened()}


def measure(rig: Rig, working: list[Worker], place: int) -> float:
    """Packets a second of these CPUs together; raises where they did not do the case's work."""
    case = cases(0)[place]
    rig.confirm()
    before = reasons(rig)
    for worker in working:
        worker.start(place)
    found = [worker.result() for worker in working]
    moved = {n: c - before.get(n, 0) for n, c in reasons(rig).items() if c != before.get(n, 0)}
    _require(case, moved, case.packets * len(working))
    if case.fresh:
        book = rig.balancer.state.book
        for key in FRESH_SERVICES:
            rig.balancer.evict(book.services[key].id)
            rig.balancer.evict(book.services[key].id)  # frees what was removed
    return sum(1e9 / nanoseconds for nanoseconds in found)


def _require(case: Case, moved: dict[str, int], sent: int) -> None:
    """Raises where packets had another reason, but for a few that took the kernel's road."""
    wanted = {case.reason: sent} if case.reason else {}
    if case.connections:
        wanted["opened"] = sent
    short = [wanted[name] - moved.get(name, 0) for name in wanted]
    if moved.keys() != wanted.keys() or any(not 0 <= missing <= PROBES for missing in short):
        raise SystemExit(f"{case.name} did not do its work: {moved} in place of {wanted}")


def results(rates: dict[tuple[str, int], list[float]]) -> list[record.Result]:
    """A case on one and on two CPUs; the ratio is of medians, what else runs may spoil the best."""
    found = []
    for (name, count), samples in rates.items():
        alone = rates[name, 1]
        target = WANTED if name == "established" and count > 1 else None
        more = {
            "cpus": count,
            "ratio": round(statistics.median(samples) / statistics.median(alone), 2),
            "ratio_of_best": round(max(samples) / max(alone), 2),
            "wanted_ratio": target,
        }
        rounded = [round(rate) for rate in samples]
        found.append(record.Result(f"{name}_{count}", "packets/s", rounded, more=more))
    return found


def main() -> None:
    """Runs every case on one CPU and on all, in turn."""
    parser = argparse.ArgumentParser(prog="scripts/bench cpus", description=__doc__)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--rounds", type=int, default=20)
    options = parser.parse_args()
    cpus = sorted(os.sched_getaffinity(0))[:2]
    if len(cpus) < 2:
        raise SystemExit("bench cpus: there is one CPU only")
    rates: dict[tuple[str, int], list[float]] = {}
    with (
        packet.workplace() as cache,
        packet.rig("lvsxdp", CONFIG, cache) as rig,
        workers(cpus, rig.namespace, cache) as made,
    ):
        for turn in range(options.rounds):
            for place, case in enumerate(cases(0)):
                for working in ([made[turn % 2]], made):
                    rate = measure(rig, working, place)
                    rates.setdefault((case.name, len(working)), []).append(rate)
    how = {"flows_a_cpu": 1 << 14, "wanted_ratio": WANTED}
    record.write(record.document("cpus", options.rounds, results(rates), **how), options.json)


if __name__ == "__main__":
    main()

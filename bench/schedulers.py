"""`scripts/bench schedulers`: what a scheduler's choice costs, among 10 and among 1,000 backends.

All services are of one balancer, and all backends have connections of both kinds, so that no scan
ends early.  Two entries go no further than a stage of the journey: up to the scheduler, and up to
its choice.  `net` is what the second takes beyond the first; `connection` is a whole new
connection, less the floor.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import ipaddress
import os
import secrets
import subprocess
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from bench import packet, record, stages
from bench.packet import Case, Rig
from bench.stages import Stop
from lvsxdp import compiler, loading
from lvsxdp.loading import Build
from lvsxdp.model import AddressKey, Backend, Protocol, Scheduler, Service

SIZES = {"": 10, "_1000": 1000}
FIRST_PORT = 1000
PACKETS = 4000
VIRTUAL = ipaddress.ip_address("192.0.2.12")
BACKENDS = ipaddress.IPv4Network("10.64.0.0/10")
GATEWAY = "172.31.0.11"
# Beyond the connections of a round, and a multiple of what wrr's rounds then fall by.
WEIGHT = 100_000
CONFIG = """
features: all
capacity: {connections: 131072, persistence: 1024, backends: 16384}
"""
BEFORE, AFTER, WHOLE = "persistent", "scheduled", stages.ALL


@dataclasses.dataclass(frozen=True)
class Choice:
    """One case: a scheduler and how many backends it chooses among; `number` tells it apart."""

    name: str
    scheduler: Scheduler
    backends: int
    number: int


def choices(only: str = "") -> list[Choice]:
    """All cases, or those of these names."""
    pairs = [(suffix, count, each) for suffix, count in SIZES.items() for each in Scheduler]
    found = [
        Choice(f"schedule_{scheduler}{suffix}", scheduler, count, number)
        for number, (suffix, count, scheduler) in enumerate(pairs)
    ]
    return [choice for choice in found if not only or choice.name in only.split(",")]


def services(wanted: Iterable[Choice]) -> tuple[Service, ...]:
    """One service for each case, all their backends behind one gateway."""
    hosts = iter(BACKENDS)
    return tuple(
        Service(
            AddressKey(Protocol.TCP, VIRTUAL, FIRST_PORT + choice.number),
            choice.name,
            choice.scheduler,
            backends=tuple(
                Backend(next(hosts), weight=WEIGHT * (1 + n % 7)) for n in range(choice.backends)
            ),
        )
        for choice in wanted
    )


def stop(choice: Choice, stage: str) -> Stop:
    """The new connections of a case's service, as far as a stage."""
    port = FIRST_PORT + choice.number
    source = str(ipaddress.ip_address("20.0.0.0") + (choice.number << 20))
    case = packet.fresh(
        *(choice.name, "lvsxdp", str(VIRTUAL), source, f"tcp:{VIRTUAL}:{port}", PACKETS)
    )
    subject = "lvsxdp" if stage == WHOLE else stage
    return Stop(dataclasses.replace(case, port=port, subject=subject), stage)


@contextlib.contextmanager
def rig(cache: Path, wanted: Iterable[Choice]) -> Iterator[Rig]:
    """A balancer with all services, and an entry for each of the two stages."""
    keys = tuple(secrets.randbits(64) for _ in range(loading.HASH_KEYS))
    build = Build({"INTERFACE_CAPACITY": stages.INTERFACES}, cache=cache, keys=keys)
    known = stages.numbers(compiler.sources())
    with packet.rig("schedulers", CONFIG, cache, build) as found:
        route = ["ip", "-n", found.namespace, "route", "add", str(BACKENDS), "via", GATEWAY]
        subprocess.run(route, check=True)
        state = found.balancer.state
        found.apply(dataclasses.replace(state.config, services=services(wanted)))
        _give_load(found)
        defines = loading.defines_of(state.config, build)
        for stage in (BEFORE, AFTER):
            entry = loading.load_entries(
                "xdp",
                (found.balancer.where.pins,),
                {**defines, "STOP_AFTER": known[stage]},
                build,
                state.schema.enums,
            )
            found.subjects[stage] = entry["entry"]
        yield found


def _give_load(found: Rig) -> None:
    """Some connections for every backend that no table knows of."""
    loads = found.balancer.map("loads")
    for place in found.balancer.state.book.services.values():
        for number, backend in enumerate(place.backends.values()):
            active = 1000 + number * 7919 % 101
            loads.store_word(backend.id, active, 0)
            loads.store_word(backend.id, active + number % 13, 8)


def _be_aged(found: Rig) -> None:
    """No choice by counts has the tables aged first, as the first one of ten seconds would."""
    rounds, now = found.balancer.map("rounds"), found.balancer.clock()
    for table in range(rounds.capacity):
        rounds.store_word(table, now)


def result(choice: Choice, stops: Mapping[str, Stop], floor: Case) -> record.Result:
    """What a choice takes beyond the way to it."""
    least = {stage: min(stop.case.samples) for stage, stop in stops.items()}
    target, stretch = record.SCHEDULER_TARGETS.get(choice.name, (None, None))
    more = {
        "backends": choice.backends,
        "connection": least[WHOLE] - min(floor.samples),
    }
    samples, net = stops[AFTER].case.samples, least[AFTER] - least[BEFORE]
    return record.Result(choice.name, "ns", samples, net, target, stretch, more)


def measured(rounds: int, cache: Path, wanted: list[Choice]) -> list[record.Result]:
    """Every case as far as each stage, in turn, so many times."""
    floor = packet.all_cases()[0]
    stops = {c: {stage: stop(c, stage) for stage in (BEFORE, AFTER, WHOLE)} for c in wanted}
    with rig(cache, wanted) as found:
        for _ in range(rounds):
            found.measure(floor)
            for each in [each for of_choice in stops.values() for each in of_choice.values()]:
                _be_aged(found)
                each.measure(found)
    return [result(choice, of_choice, floor) for choice, of_choice in stops.items()]


def main() -> None:
    """Runs all cases and prints their times."""
    parser = argparse.ArgumentParser(prog="scripts/bench schedulers", description=__doc__)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--only", default="", help="names of cases, with commas between")
    options = parser.parse_args()
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    with packet.workplace() as cache:
        found = measured(options.rounds, cache, choices(options.only))
    record.write(record.document("schedulers", options.rounds, found), options.json)


if __name__ == "__main__":
    main()

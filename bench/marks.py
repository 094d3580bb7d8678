"""`scripts/bench marks`: what 10,000 mark rules cost a new connection, beside what one rule costs.

Each case is a balancer of its own with one set of rules, of which every packet meets one; the
connections are the same.  Of the larger sets `net` is what is beyond the set of one rule.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import ipaddress
import os
from collections.abc import Callable, Iterator
from pathlib import Path

from bench import packet, record
from bench.packet import Case, Rig
from lvsxdp.model import MarkRule, Ports, Protocol

RULES = 10_000
# Destinations of each case's packets, in random order.
TARGETS = 4096
FIRST = ipaddress.ip_network("198.18.0.0/16")
CLIENTS = ipaddress.ip_network("16.0.0.0/4")
ELSEWHERE = ipaddress.ip_address("99.0.0.0")
LOW = (Ports(1, 999),)
PACKETS = 20_000
CONFIG = """
features: all
capacity: {connections: 131072, persistence: 1024, marks: 16384}
settings: {require_local: false}
services:
  - {mark: 1, scheduler: rr, family: ipv4, backends: [{address: 172.31.0.11}]}
"""
# Case -> the one that it is compared with.
AGAINST = {
    "mark_rules_10000_exact": "mark_rules_1_exact",
    "mark_rules_10000_mixed": "mark_rules_1_mixed",
}


def exact(count: int) -> tuple[MarkRule, ...]:
    """An address with a port for each rule."""
    ports = (Ports(80, 80),)
    return tuple(
        MarkRule(1, (Protocol.TCP,), (ipaddress.ip_network(FIRST[n]),), ports) for n in range(count)
    )


def mixed() -> tuple[MarkRule, ...]:
    """Five rules for every two destinations, 10,240 in all; a packet meets the last of five.

    They name prefixes of four lengths, ranges of ports, sources, VLANs and interfaces.
    """
    tcp, found = (Protocol.TCP,), []
    for group in range(TARGETS // 2):
        about = [ipaddress.ip_network((FIRST[2 * group], n), strict=False) for n in range(28, 32)]
        stranger = ipaddress.ip_network((ELSEWHERE + 4 * group, 30))
        found += [
            MarkRule(2, tcp, (about[0],), (Ports(1000 + group, 1100 + group),)),
            MarkRule(2, addresses=(about[1],), vlans=(group,)),
            MarkRule(2, addresses=(about[2],), sources=(stranger,)),
            MarkRule(2, addresses=(about[3],), interfaces=("peer0",)),
            MarkRule(1, tcp, (about[3],), LOW, (CLIENTS,), interfaces=("lb0",)),
        ]
    return tuple(found)


def one_wide() -> tuple[MarkRule, ...]:
    """What the last rule of each five is, for all destinations at once."""
    return (MarkRule(1, (Protocol.TCP,), (FIRST,), LOW, (CLIENTS,), interfaces=("lb0",)),)


SETS: dict[str, tuple[Callable[[], tuple[MarkRule, ...]], int]] = {
    "mark_rules_1_exact": (lambda: exact(1), 1),
    "mark_rules_10000_exact": (lambda: exact(RULES), TARGETS),
    "mark_rules_1_mixed": (one_wide, TARGETS),
    "mark_rules_10000_mixed": (mixed, TARGETS),
}


@contextlib.contextmanager
def rigs(cache: Path) -> Iterator[dict[str, tuple[Rig, Case]]]:
    """A balancer for each case, with its rules."""
    with contextlib.ExitStack() as stack:
        found = {}
        for name, (rules, targets) in SETS.items():
            rig = stack.enter_context(packet.rig(name.replace("mark_rules_", ""), CONFIG, cache))
            wanted = dataclasses.replace(rig.balancer.state.config, marks=rules())
            rig.apply(wanted)
            source = str(CLIENTS[0])
            found[name] = (
                rig,
                dataclasses.replace(
                    packet.fresh(name, "lvsxdp", str(FIRST[0]), source, "mark:1", PACKETS),
                    targets=targets,
                ),
            )
        yield found


def results(floor: Case, cases: dict[str, Case]) -> list[record.Result]:
    """Nanoseconds a packet of each case; net of the floor, or of the set of one rule."""
    found = []
    for name, case in cases.items():
        beyond = cases[AGAINST[name]] if name in AGAINST else floor
        net = min(case.samples) - min(beyond.samples)
        target, stretch = record.MARK_TARGETS.get(name, (None, None))
        more = {"beyond": beyond.name}
        found.append(record.Result(name, "ns", case.samples, net, target, stretch, more))
    return found


def main() -> None:
    """Runs all cases and prints their times."""
    parser = argparse.ArgumentParser(prog="scripts/bench marks", description=__doc__)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--rounds", type=int, default=40)
    options = parser.parse_args()
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    with packet.workplace() as cache, rigs(cache) as made:
        floor = packet.all_cases()[0]
        rig = made["mark_rules_1_exact"][0]
        for _ in range(options.rounds):
            rig.measure(floor)
            for of_case, case in made.values():
                of_case.measure(case)
        found = results(floor, {name: case for name, (_, case) in made.items()})
    record.write(record.document("marks", options.rounds, found), options.json)


if __name__ == "__main__":
    main()

"""`scripts/bench packet --stages`: what a packet takes up to each stage of its journey.

A balancer is built for each stage, whose packets go no further than that.
"""

from __future__ import annotations

import contextlib
import dataclasses
import re
import secrets
from collections.abc import Iterator
from pathlib import Path

from bench import packet, record
from bench.packet import Case, Rig
from lvsxdp import compiler, loading
from lvsxdp.loading import Build

CAPACITY = 262144
CONFIG = f"capacity: {{connections: {CAPACITY}, persistence: {CAPACITY}}}\n{packet.CONFIG}"
ALL = "all"
NEW = ("begun", "classified", "local", "persistent")
STAGES = {
    "dr_established_1": ("parsed", "concerned", "found", "refreshed", ALL),
    "new_persistent_hit": (*NEW, "created", ALL),
    "new_persistent_miss": (*NEW, "scheduled", "bound", "created", ALL),
}
INTERFACES = 4096
# Stages that leave entries behind.
MAKING = ("bound", "created", ALL)


@dataclasses.dataclass
class Stop:
    """One case as far as one stage."""

    case: Case
    stage: str

    def measure(self, rig: Rig) -> None:
        """One round; a packet that stops short has no verdict or reason that could be checked."""
        if self.stage == ALL:
            rig.measure(self.case)
            return
        rig.confirm()
        case = self.case
        run = rig.run(case, case.packets, flags=case.flags, spread=not case.fresh)
        case.samples.append(run.nanoseconds)
        if case.fresh and self.stage in MAKING:
            rig.forget(case)


def numbers(folder: Path) -> dict[str, int]:
    """Each stage's number, by bpf/config.h."""
    found = re.findall(r"#define STAGE_(\w+) (\d+)", (folder / "config.h").read_text())
    return {ALL: 0, **{name.lower(): int(number) for name, number in found}}


@contextlib.contextmanager
def rig(cache: Path) -> Iterator[Rig]:
    """A balancer, and before its tables an entry for each stage, which the rig has as subjects."""
    keys = tuple(secrets.randbits(64) for _ in range(loading.HASH_KEYS))
    build = Build({"INTERFACE_CAPACITY": INTERFACES}, cache=cache, keys=keys)
    known = numbers(compiler.sources())
    with packet.rig("stages", CONFIG, cache, build) as found:
        state = found.balancer.state
        defines = loading.defines_of(state.config, build)
        stages = dict.fromkeys(name for names in STAGES.values() for name in names)
        for stage in [name for name in stages if name != ALL]:
            stopped = {**defines, "STOP_AFTER": known[stage]}
            # the array stays open until this process ends
            entry = loading.load_entries(
                "xdp", (found.balancer.where.pins,), stopped, build, state.schema.enums
            )
            found.subjects[stage] = entry["entry"]
        yield found


def results(floor: Case, stops: list[Stop]) -> list[record.Result]:
    """Nanoseconds up to each stage, and those since the one before."""
    least = min(floor.samples)
    found, before = [record.Result("floor", "ns", floor.samples, net=0)], 0
    for each in stops:
        net = min(each.case.samples) - least
        before = 0 if each.stage == STAGES[each.case.name][0] else before
        name = f"{each.case.name}/{each.stage}"
        more = {"step": net - before}
        found.append(record.Result(name, "ns", each.case.samples, net=net, more=more))
        before = net
    return found


def run(rounds: int, cache: Path) -> list[record.Result]:
    """Every case as far as every stage, interleaved."""
    cases = {case.name: case for case in packet.all_cases()}
    with rig(cache) as found:
        found.prepare(cases["dr_established_1"])
        stops = [stop(cases[name], stage) for name in STAGES for stage in STAGES[name]]
        for _ in range(rounds):
            found.measure(cases["floor"])
            for each in stops:
                _remember(found, cases["new_persistent_hit"])
                each.measure(found)
    return results(cases["floor"], stops)


def stop(case: Case, stage: str) -> Stop:
    """The case, sent to the entry that goes as far as the stage.

    New connections of one stage are not those of another, whose slots would be in the caches.
    """
    subject = case.subject if stage == ALL else stage
    first = STAGES[case.name].index(stage) << 22 if case.fresh else 0
    return Stop(dataclasses.replace(case, subject=subject, counter=first, samples=[]), stage)


def _remember(found: Rig, hit: Case) -> None:
    """Makes the entry that hits find: a round before has removed it with its own."""
    client = dataclasses.replace(hit, source="20.200.0.0", counter=0)
    found.run(client, 1, flags=hit.flags, spread=False)

"""Runs scripts against both twins in one guest, and says in what they differ.

python -m tests.twin.run --seed 1 --scripts 10 --steps 50
python -m tests.twin.run --replay FILE
"""

from __future__ import annotations

import argparse
import contextlib
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

from lvsxdp.errors import LvsxdpError
from tests.twin import balancer, compare, frames, generator, ipvs, timing, topology
from tests.twin.balancer import Twin
from tests.twin.compare import Drift, ServerKey, Snapshot
from tests.twin.ipvs import Judge
from tests.twin.script import Send, Step, Wait, parse
from tests.twin.topology import Wire

CACHE = Path("/var/cache/lvsxdp")
# For how many seconds ends are waited for at a time: all in all for the latest timers, and what is
# then near.
SETTLE = (1, 1, 2, 2, *(3,) * 12)
TIES = 40
# A backend that was removed so many seconds ago has certainly not been forgotten.
CERTAIN = 110
# IPVS's counters are shown two seconds late.
ESTIMATED = 3
WARM_UP = (
    "mark add 1 udp 192.0.2.10 53-53",
    "service add mark:1 scheduler rr persistence 10 255.255.255.0",
    "backend add mark:1 10.0.0.11 weight 1",
    "backend edit mark:1 10.0.0.11 weight 2",
    "send udp 198.51.100.1:20000 192.0.2.10:53 - x1",
    "set expire_quiescent_template 1",
    "wait 1",
    "service delete mark:1",
)
FRONT = bytes.fromhex(topology.FRONT_MAC.replace(":", ""))


class Differs(Exception):
    """What the twins differ in, a line each."""

    def __init__(self, lines: Sequence[str], number: int = 0) -> None:
        super().__init__("\n".join(lines))
        self.number = number


class Trial:
    """Both twins, and a script on its way through them."""

    def __init__(self, judge: tuple[Judge, Wire], twin: tuple[Twin, Wire]) -> None:
        self.judge, self.judge_wire = judge
        self.twin, self.twin_wire = twin
        self.drift = Drift()
        self.removed: dict[ServerKey, float] = {}
        self.uncertain: set[ServerKey] = set()
        self.masks: defaultdict[str, set[int]] = defaultdict(set)
        self.outcomes: Counter[str] = Counter()
        self.seen: tuple[Snapshot, Snapshot] | None = None

    def run(self, steps: Sequence[Step]) -> None:
        """Runs a script; Differs names the step where the twins part."""
        for number, step in enumerate(steps, 1):
            try:
                self._settle()
                self._make(step)
                self._compare()
            except Differs as err:
                raise Differs([f"step {number}: {step}", str(err)], number) from None
        self._pass(ESTIMATED)
        self._settle()
        self._differ(compare.counted_differences(*self._look(), self.uncertain))

    def _look(self) -> tuple[Snapshot, Snapshot]:
        """What both show; asked anew where something was done since."""
        if self.seen is None:
            self.seen = self.judge.snapshot(), self.twin.snapshot()
        return self.seen

    def _make(self, step: Step) -> None:
        match step:
            case Wait(seconds):
                self._untie(seconds + sum(SETTLE))
                self._pass(seconds)
                self._settle()
            case Send():
                self._send(step)
            case _:
                self._change(step)

    def _change(self, step: Step) -> None:
        self.seen = None
        before = self.twin.servers()
        self.judge.apply(step)
        self.twin.apply(step)
        self._note(before)

    def _note(self, before: set[ServerKey]) -> None:
        """Notes what a change does that decides, later on, what can be compared."""
        now = time.monotonic()
        after = self.twin.servers()
        self.removed |= dict.fromkeys(before - after, now)
        come = (key for key in after - before if key in self.removed)
        self.uncertain |= {key for key in come if now - self.removed[key] > CERTAIN}
        for service in self.twin.config.services:
            if service.persistence:
                self.masks[str(service)].add(int(service.persistence.netmask))

    def _send(self, step: Send) -> None:
        self.seen = None
        for flow in step.flows:
            frame = frames.frame(flow, step.flags, FRONT)
            answers = [wire.send(frame) for wire in (self.judge_wire, self.twin_wire)]
            self.outcomes[frames.outcome(answers[0])] += 1
            self._differ(f"{flow}: {line}" for line in compare.differing_answers(*answers))

    def _pass(self, seconds: int) -> None:
        self.seen = None
        time.sleep(seconds)
        self.twin.sweep()

    def _settle(self) -> None:
        """Waits until no end is near."""
        for step in SETTLE:
            judge, twin = self._look()
            late = max(self.drift.late.values(), default=0.0)
            if timing.is_settled(judge, twin) or not timing.may_settle(judge, twin, late):
                return
            self._pass(step)

    def _untie(self, horizon: int) -> None:
        """Has connections live longer whose end would be a matter of luck."""
        for _ in range(TIES):
            found = list(timing.ties(*self._look(), self.masks, horizon))
            if not found:
                return
            for tie in found:
                self._send(tie.keep())
            self._pass(3)
            self._settle()

    def _compare(self) -> None:
        self._settle()
        judge, twin = self._look()
        self._differ(compare.differences(judge, twin, self.drift, time.monotonic()))

    @staticmethod
    def _differ(lines: Iterator[str]) -> None:
        found = list(lines)
        if found:
            raise Differs(found)


def _scripts(options: argparse.Namespace) -> Iterator[tuple[str, Sequence[Step]]]:
    if options.replay:
        yield str(options.replay), parse(options.replay.read_text().splitlines())
        return
    for seed in range(options.seed, options.seed + options.scripts):
        yield f"seed {seed}", generator.script(seed, options.steps)


def _warm_up(twin: tuple[Twin, Wire]) -> None:
    """Does everything once: what is read from disk at its first use takes the clock along."""
    with ipvs.judge() as judge, contextlib.suppress(Differs):
        twin[0].clear()
        Trial(judge, twin).run(parse(WARM_UP))


def _run(steps: Sequence[Step], twin: tuple[Twin, Wire]) -> Trial:
    """Runs a script through both; Differs where they part."""
    with ipvs.judge() as judge:
        twin[0].clear()
        trial = Trial(judge, twin)
        trial.run(steps)
        return trial


def _judge(name: str, steps: Sequence[Step], twin: tuple[Twin, Wire], shrink: bool) -> bool:
    """Whether the twins agree all through a script; says so, or how to see it again."""
    begun = time.perf_counter()
    try:
        trial = _run(steps, twin)
    except Differs as err:
        steps = steps[: err.number or len(steps)]
        print(f"{name}: the twins differ\n{err}", flush=True)
        if shrink:
            steps, err = _shrunk(steps, err, twin)
            print(f"\nin short:\n{err}")
        print(f"# {name}", *steps, sep="\n", flush=True)
        return False
    took = time.perf_counter() - begun
    packets = ", ".join(f"{count} {what}" for what, count in sorted(trial.outcomes.items()))
    print(f"{name}: {len(steps)} steps in {took:.0f} s; packets: {packets}", flush=True)
    return True


def _shrunk(
    steps: Sequence[Step], err: Differs, twin: tuple[Twin, Wire]
) -> tuple[Sequence[Step], Differs]:
    """The script without what it differs without, tried in ever smaller pieces."""
    size = len(steps) // 2
    while size:
        at = len(steps) - size
        while at >= 0:
            try:
                _run([*steps[:at], *steps[at + size :]], twin)
            except Differs as found:
                steps, err = [*steps[:at], *steps[at + size :]], found
                steps = steps[: err.number or len(steps)]
            except (LvsxdpError, OSError):
                # it names what was never added
                pass
            at = min(at, len(steps)) - size
        size //= 2
    return steps, err


def _options(words: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="twin", description=__doc__)
    parser.add_argument("--seed", type=int, default=1, help="of the first script")
    parser.add_argument("--scripts", type=int, default=10, help="how many, each of the next seed")
    parser.add_argument("--steps", type=int, default=50, help="of each script")
    parser.add_argument("--replay", type=Path, metavar="FILE", help="run this script instead")
    parser.add_argument("--shrink", action="store_true", help="a script that fails, to its core")
    parser.add_argument("--compile", action="store_true", help="compile for the guest, no more")
    parser.add_argument("--cache", type=Path, default=CACHE, help="where compiled programs are")
    return parser.parse_args(words)


def main() -> int:
    """The exit code: 0 where no script finds a difference."""
    options = _options()
    if options.compile:
        balancer.compile_ahead(options.cache)
        return 0
    ipvs.load_modules()
    passed = failed = 0
    with topology.outside(), balancer.twin(options.cache) as twin:
        _warm_up(twin)
        for name, steps in _scripts(options):
            if _judge(name, steps, twin, options.shrink):
                passed += 1
            else:
                failed += 1
    print(f"{passed} scripts passed, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    with contextlib.suppress(BrokenPipeError):
        sys.exit(main())

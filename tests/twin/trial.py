"""A script on its way through both twins, and what is compared when."""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence

from tests.twin import compare, frames, timing, topology
from tests.twin.balancer import Twin
from tests.twin.compare import Drift, ServerKey, Snapshot
from tests.twin.ipvs import Judge
from tests.twin.script import Send, Step, Wait
from tests.twin.topology import Wire

# For how many seconds ends are waited for at a time: all in all for the latest timers, and what is
# then near.
SETTLE = (1, 1, 2, 2, *(3,) * 12)
TIES = 40
# A backend that was removed so many seconds ago has certainly not been forgotten.
CERTAIN = 110
# IPVS's counters are shown two seconds late.
ESTIMATED = 3
FRONT = bytes.fromhex(topology.FRONT_MAC.replace(":", ""))


class Differs(Exception):
    """What the twins differ in, a line each."""

    def __init__(self, lines: Sequence[str], number: int = 0) -> None:
        super().__init__("\n".join(lines))
        self.number = number


class Trial:
    """Both twins, and a script on its way through them."""

    def __init__(
        self, judge: tuple[Judge, Wire], twin: tuple[Twin, Wire], aloud: bool = False
    ) -> None:
        """`aloud` is said what IPVS does with each packet."""
        self.judge, self.judge_wire = judge
        self.twin, self.twin_wire = twin
        self.aloud = aloud
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
            if self.aloud:
                print(f"{flow} {step.flags}: {frames.whom(answers[0])}")
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

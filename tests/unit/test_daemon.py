"""What the daemon tells one sweep of the one before, and when it estimates rates."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar

import pytest

from lvsxdp import daemon
from lvsxdp.ageing import Sweep
from lvsxdp.errors import DatapathError
from lvsxdp.state import Folders


class Turns:
    """An event that a signal sets after so many seconds, which waiting makes pass."""

    seconds = 4.5
    now: ClassVar[float] = 0
    handlers: ClassVar[dict[int, Callable[[int, None], None]]] = {}

    def wait(self, seconds: float) -> None:
        Turns.now += seconds
        if Turns.now > self.seconds:
            self.handlers[signal.SIGTERM](signal.SIGTERM, None)

    def set(self) -> None:
        """The signal's doing."""

    def clear(self) -> None:
        """The waiting side's."""


class Ticks:
    """Estimates that fail at first."""

    told: ClassVar[list[tuple[float, int]]] = []

    def __init__(self, _: Folders) -> None:
        self.told.clear()

    def tick(self, intervals: int) -> None:
        self.told.append((Turns.now, intervals))
        if len(self.told) < 3:
            raise DatapathError("not yet")
        # the next one comes late
        Turns.now += 4.5


@pytest.fixture
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Folders:
    """The daemon's folders, with nothing around it but a clock."""
    monkeypatch.setattr(Turns, "now", 0.0)
    monkeypatch.setattr("lvsxdp.daemon.threading.Event", Turns)
    monkeypatch.setattr("lvsxdp.daemon.signal.signal", Turns.handlers.__setitem__)
    monkeypatch.setattr("lvsxdp.daemon.state.locked", lambda *_: contextlib.nullcontext())
    monkeypatch.setattr("lvsxdp.daemon.Balancer.open", lambda _: contextlib.nullcontext())
    monkeypatch.setattr("lvsxdp.daemon.Estimates", Ticks)
    return Folders(tmp_path, tmp_path)


def test_a_sweep_knows_of_the_one_before_unless_that_failed(
    alone: Folders, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[tuple[Sweep | None, bool]] = []
    drifted = Sweep(0, 0, {("loads", 1, "total"): 2}, 0)

    def sweep_once(_: object, before: Sweep | None, whole: bool, __: object) -> Sweep:
        told.append((before, whole))
        if len(told) == 3:
            raise DatapathError("interrupted")
        return drifted

    monkeypatch.setattr(daemon, "_sweep_once", sweep_once)
    monkeypatch.setattr(Ticks, "tick", lambda *_: None)
    said: list[str] = []
    daemon.run(alone, 1, said.append, clock=lambda: Turns.now)
    assert told == [(None, True), (drifted, True), (drifted, True), (None, False)]
    assert said[1:-1] == ['event=sweep_failed error="interrupted"']


def test_rates_are_estimated_every_two_seconds_and_none_is_left_out(
    alone: Folders, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Turns, "seconds", 12.5)
    said: list[str] = []
    daemon.run(alone, 3600, said.append, clock=lambda: Turns.now)
    # the third took 4.5 s: the one after it is for two intervals
    assert Ticks.told == [(0, 1), (2, 1), (4, 1), (8.5, 2)]
    assert said[1:-1] == ['event=rates_unknown error="not yet"']

"""What the daemon tells one sweep of the one before."""

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
    """An event that a signal sets after so many waits."""

    left = 4
    handlers: ClassVar[dict[int, Callable[[int, None], None]]] = {}

    def wait(self, _: float) -> None:
        self.left -= 1
        if self.left < 0:
            self.handlers[signal.SIGTERM](signal.SIGTERM, None)

    def set(self) -> None:
        """The signal's doing."""

    def clear(self) -> None:
        """The waiting side's."""


def test_a_sweep_knows_of_the_one_before_unless_that_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[tuple[Sweep | None, bool]] = []
    drifted = Sweep(0, 0, {("loads", 1, "total"): 2}, 0)

    def sweep_once(_: object, before: Sweep | None, whole: bool, __: object) -> Sweep:
        told.append((before, whole))
        if len(told) == 3:
            raise DatapathError("interrupted")
        return drifted

    monkeypatch.setattr(daemon, "_sweep_once", sweep_once)
    monkeypatch.setattr("lvsxdp.daemon.threading.Event", Turns)
    monkeypatch.setattr("lvsxdp.daemon.signal.signal", Turns.handlers.__setitem__)
    monkeypatch.setattr("lvsxdp.daemon.state.locked", lambda *_: contextlib.nullcontext())
    monkeypatch.setattr("lvsxdp.daemon.Balancer.open", lambda _: contextlib.nullcontext())
    said: list[str] = []
    daemon.run(Folders(tmp_path, tmp_path), 1, said.append)
    assert told == [(None, True), (drifted, True), (drifted, True), (None, False)]
    assert said[1:-1] == ['event=sweep_failed error="interrupted"']

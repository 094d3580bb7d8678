"""`lvsxdp run`: sweeps and estimates rates, in the foreground, until it is told to stop.

Under systemd it says when it is ready, that it is alive, and that it stops (sd_notify).
"""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import socket
import threading
import time
from collections.abc import Callable

from lvsxdp import ageing, forgetting, state, tunnels
from lvsxdp.ageing import Sweep
from lvsxdp.controller import Balancer
from lvsxdp.errors import LvsxdpError
from lvsxdp.estimating import Estimates
from lvsxdp.network import Network
from lvsxdp.rates import INTERVAL
from lvsxdp.state import Folders

LOCK_WAIT = 10.0
# Of so many sweeps one goes over empty tables, too, and tidies what searches there still pass.
WHOLE = 12
STOPPING = frozenset({signal.SIGTERM, signal.SIGINT})


def run(
    where: Folders,
    interval: float,
    say: Callable[[str], None],
    reload: Callable[[], None] | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> None:
    """Sweeps every `interval` seconds until SIGTERM or SIGINT; says and retries a failed sweep.

    Every two seconds it estimates rates.  SIGHUP has it `reload`; what that raises is said, and
    changes nothing.
    """
    woken, wanted = threading.Event(), set[int]()

    def wake(number: int, _: object) -> None:
        wanted.add(number)
        woken.set()

    def listen() -> None:
        for number in (*STOPPING, signal.SIGHUP):
            signal.signal(number, wake)

    listen()
    with state.locked(where, LOCK_WAIT), Balancer.open(where):
        pass
    say(f"event=started interval={interval:g}")
    notify("READY=1")
    sweeping, estimating = Sweeping(where, say), Estimating(where, say, clock)
    sweep_at = clock() + interval
    while True:
        notify("WATCHDOG=1")
        woken.wait(max(min(sweep_at, estimating.at) - clock(), 0))
        woken.clear()
        if wanted & STOPPING:
            break
        if signal.SIGHUP in wanted:
            wanted.clear()
            done = _reloaded(reload)
            # a command ends at SIGTERM in its own way, and this goes on after it
            listen()
            say(done)
            continue
        estimating.go_on()
        if clock() >= sweep_at:
            sweeping.go_on()
            sweep_at = clock() + interval
    notify("STOPPING=1")
    say("event=stopped")


class Sweeping:
    """One sweep after the other."""

    def __init__(self, where: Folders, say: Callable[[str], None]) -> None:
        """The first sweep is whole."""
        self._where, self._say = where, say
        self._before: Sweep | None = None
        self._turns = itertools.cycle(range(WHOLE))

    def go_on(self) -> None:
        """Sweeps once; what fails is said."""
        before = self._before
        try:
            # what one sweep saw wrong the next must see, too
            whole = next(self._turns) == 0 or (before is not None and bool(before.drift))
            self._before = _sweep_once(self._where, before, whole, self._say)
        except (LvsxdpError, OSError) as err:
            self._say(f'event=sweep_failed error="{err}"')
            # it may have counted a part; nothing is healed by that
            self._before = None


class Estimating:
    """Rates, from tick to tick; `at` is when the next one is due."""

    def __init__(
        self, where: Folders, say: Callable[[str], None], clock: Callable[[], float]
    ) -> None:
        """The first tick is due at once."""
        self._estimates = Estimates(where)
        self._say, self._clock = say, clock
        self.at = clock()
        self._has_failed = False

    def go_on(self) -> None:
        """Estimates by as many intervals as have passed; what fails is said once."""
        intervals = int((self._clock() - self.at) // INTERVAL) + 1
        if intervals < 1:
            return
        self.at += intervals * INTERVAL
        try:
            self._estimates.tick(intervals)
            self._has_failed = False
        except (LvsxdpError, OSError) as err:
            if not self._has_failed:
                self._say(f'event=rates_unknown error="{err}"')
            self._has_failed = True


def _reloaded(reload: Callable[[], None] | None) -> str:
    if reload is None:
        return 'event=not_reloaded error="there is no file to reload (run -c)"'
    try:
        reload()
    except LvsxdpError as err:
        return f'event=not_reloaded error="{err}"'
    return "event=reloaded"


def notify(text: str) -> None:
    """Tells systemd, where that has started this process; a socket that is gone is no fault."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    with (
        contextlib.suppress(OSError),
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as told,
    ):
        told.connect(f"\0{address[1:]}" if address[0] == "@" else address)
        told.send(text.encode())


def _sweep_once(
    where: Folders, before: Sweep | None, whole: bool, say: Callable[[str], None]
) -> Sweep:
    with state.locked(where, LOCK_WAIT), Balancer.open(where) as balancer:
        done = ageing.sweep(balancer, before, whole=whole)
        forgetting.look_and_keep(balancer)
        if next(tunnels.following(balancer.state.config), None):
            with Network() as net:
                balancer.write_sources(net)
        (where.files / "last_sweep").write_text(f"{time.time():.1f}")
    if done.removed or done.healed:
        say(f"event=swept removed={done.removed} healed={done.healed}")
    return done

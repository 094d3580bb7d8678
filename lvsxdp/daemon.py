"""`lvsxdp run`: sweeps at an interval, in the foreground, until it is told to stop."""

from __future__ import annotations

import itertools
import signal
import threading
import time
from collections.abc import Callable

from lvsxdp import ageing, state
from lvsxdp.ageing import Sweep
from lvsxdp.controller import Balancer
from lvsxdp.errors import LvsxdpError
from lvsxdp.state import Folders

LOCK_WAIT = 10.0
# Of so many sweeps one goes over empty tables, too, and tidies what searches there still pass.
WHOLE = 12


def run(where: Folders, interval: float, say: Callable[[str], None]) -> None:
    """Sweeps every `interval` seconds until SIGTERM or SIGINT; says and retries a failed sweep."""
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    with state.locked(where, LOCK_WAIT), Balancer.open(where):
        pass
    say(f"event=started interval={interval:g}")
    before: Sweep | None = None
    turns = itertools.cycle(range(WHOLE))
    while not stop.wait(interval):
        try:
            # what one sweep saw wrong the next must see, too
            whole = next(turns) == 0 or (before is not None and bool(before.drift))
            before = _sweep_once(where, before, whole, say)
        except LvsxdpError as err:
            say(f'event=sweep_failed error="{err}"')
            # it may have counted a part; nothing is healed by that
            before = None
    say("event=stopped")


def _sweep_once(
    where: Folders, before: Sweep | None, whole: bool, say: Callable[[str], None]
) -> Sweep:
    with state.locked(where, LOCK_WAIT), Balancer.open(where) as balancer:
        done = ageing.sweep(balancer, before, whole=whole)
        (where.files / "last_sweep").write_text(f"{time.time():.1f}")
    if done.removed or done.healed:
        say(f"event=swept removed={done.removed} healed={done.healed}")
    return done

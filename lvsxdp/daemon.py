"""`lvsxdp run`: sweeps at an interval, in the foreground, until it is told to stop.

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

from lvsxdp import ageing, forgetting, state
from lvsxdp.ageing import Sweep
from lvsxdp.controller import Balancer
from lvsxdp.errors import LvsxdpError
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
) -> None:
    """Sweeps every `interval` seconds until SIGTERM or SIGINT; says and retries a failed sweep.

    SIGHUP has it `reload`; what that raises is said, and changes nothing.
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
    before: Sweep | None = None
    turns = itertools.cycle(range(WHOLE))
    while True:
        notify("WATCHDOG=1")
        woken.wait(interval)
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
        try:
            # what one sweep saw wrong the next must see, too
            whole = next(turns) == 0 or (before is not None and bool(before.drift))
            before = _sweep_once(where, before, whole, say)
        except (LvsxdpError, OSError) as err:
            say(f'event=sweep_failed error="{err}"')
            # it may have counted a part; nothing is healed by that
            before = None
    notify("STOPPING=1")
    say("event=stopped")


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
        (where.files / "last_sweep").write_text(f"{time.time():.1f}")
    if done.removed or done.healed:
        say(f"event=swept removed={done.removed} healed={done.healed}")
    return done

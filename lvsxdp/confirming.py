"""Changes that undo themselves unless they are confirmed: for the interface one is logged in by.

The way back is on record before the change is made.  A process of its own goes it when the time is
up, whatever has become of the shell; if that is killed, the next command does.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import subprocess
import sys
import syslog
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from lvsxdp import applying, attaching, backup, controller, snapshot, state
from lvsxdp.applying import How
from lvsxdp.controller import Balancer
from lvsxdp.errors import ConflictError, LvsxdpError, NotFoundError
from lvsxdp.model import Config
from lvsxdp.network import Network
from lvsxdp.state import Folders

POLL = 0.2
LOCK_WAIT = 60.0


@dataclasses.dataclass(frozen=True, slots=True)
class Pending:
    """A change that waits for confirmation until `deadline`, seconds since the machine started.

    Undone, `config` is what runs, on its interfaces in their `modes`; None: nothing ran before.
    `applied` is as in State.
    """

    deadline: float
    config: Config | None
    applied: Config | None
    modes: dict[str, str]


def now() -> float:
    """Seconds since the machine started, those asleep included."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def _file(where: Folders) -> Path:
    return where.files / "confirm.json"


def pending_of(where: Folders) -> Pending | None:
    """The change that waits for confirmation, None without one."""
    try:
        plain = json.loads(_file(where).read_text())
        config, applied = (
            snapshot.from_plain(plain[n]) if plain[n] else None for n in ("config", "applied")
        )
        return Pending(plain["deadline"], config, applied, plain["modes"])
    except FileNotFoundError:
        return None
    except (ValueError, LookupError, TypeError) as err:
        raise state.damaged(_file(where), err) from err


def warnings(where: Folders) -> list[str]:
    """A line for a change that waits, with what it waits for."""
    pending = pending_of(where)
    if pending is None:
        return []
    left = max(pending.deadline - now(), 0)
    return [f"a change waits for its confirmation, and is undone in {left:.0f} s (lvsxdp confirm)"]


def refuse(where: Folders) -> None:
    """Raises ConflictError while a change waits for confirmation: undoing it would undo others."""
    for warning in warnings(where):
        raise ConflictError(warning)


@contextlib.contextmanager
def until_confirmed(where: Folders, seconds: int) -> Iterator[None]:
    """Has the change that is made meanwhile undone after so many seconds."""
    refuse(where)
    pending = Pending(now() + seconds, None, None, {})
    if attaching.is_running(where):
        with Balancer.open(where) as balancer:
            modes = {a.interface: a.mode for a in balancer.state.attachments}
            config, applied = applying.running(balancer), balancer.state.applied
        pending = Pending(pending.deadline, config, applied, modes)
    _put(where, pending)
    argv = [sys.executable, "-m", "lvsxdp.confirming", str(pending.deadline)]
    quiet = subprocess.DEVNULL
    subprocess.Popen(argv, stdin=quiet, stdout=quiet, stderr=quiet, cwd="/", start_new_session=True)
    try:
        yield
    except BaseException:
        end(where)
        raise


def _put(where: Folders, pending: Pending) -> None:
    plain = {
        "deadline": pending.deadline,
        "config": snapshot.to_plain(pending.config) if pending.config else None,
        "applied": snapshot.to_plain(pending.applied) if pending.applied else None,
        "modes": pending.modes,
    }
    state.write_bytes(_file(where), json.dumps(plain).encode())


def end(where: Folders) -> None:
    """Nothing waits any more."""
    _file(where).unlink(missing_ok=True)


def confirm(where: Folders) -> None:
    """Keeps the change that waits; NotFoundError where none does."""
    if pending_of(where) is None:
        raise NotFoundError("no change waits for confirmation")
    end(where)


def undo_what_is_overdue(where: Folders, net: Network, say: Callable[[str], None]) -> None:
    """Undoes a change that was not confirmed in time; may be done twice."""
    pending = pending_of(where)
    if pending is None or now() < pending.deadline:
        return
    if attaching.is_running(where):
        _undo(where, net, pending)
        say("a change that was not confirmed in time is undone")
    end(where)


def _undo(where: Folders, net: Network, pending: Pending) -> None:
    if pending.config is None:
        attaching.detach_all(where, net)
        return
    how = How(undrain=True, detach=True, covering=True, modes=pending.modes)
    with Balancer.open(where) as balancer:
        applying.bring(balancer, net, pending.config, how)
        balancer.state.applied = pending.applied
        backup.put_on_record(where, balancer.state)


def main() -> None:
    """Waits for the deadline that it is given, and undoes the change that still waits then."""
    deadline = float(sys.argv[1])
    where = controller.here()
    while (pending := pending_of(where)) and pending.deadline == deadline:
        left = deadline - now()
        if left > 0:
            time.sleep(min(left, POLL))
            continue
        try:
            with state.locked(where, LOCK_WAIT), Network() as net:
                undo_what_is_overdue(where, net, syslog.syslog)
        except LvsxdpError as err:
            syslog.syslog(syslog.LOG_ERR, f"undoing a change failed: {err}")
            time.sleep(1)


if __name__ == "__main__":
    main()

"""Rates from the daemon to the commands: it estimates them every 2 s and keeps them in a file.

The file counts only while the daemon holds its lock, which the kernel takes from it when it ends,
however it ends: rates that nobody goes on estimating are unknown and not old.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import time
from typing import IO

from lvsxdp import state
from lvsxdp.controller import Balancer
from lvsxdp.counting import Reader
from lvsxdp.errors import LvsxdpError
from lvsxdp.rates import INTERVAL, Estimator, Rates
from lvsxdp.state import Folders

LOCK_WAIT = 10.0
# A daemon that has been stopped holds its lock and estimates nothing.
OLDEST = 3 * INTERVAL


class Estimates:
    """The daemon's part: a balancer's rates, a tick after the other."""

    def __init__(self, where: Folders) -> None:
        """Nothing is opened before the first tick."""
        self.where = where
        self._lock: IO[bytes] | None = None
        self._balancer: Balancer | None = None
        self._reader: Reader | None = None
        self._record: tuple[int, ...] = ()
        self._estimator: Estimator | None = None

    def tick(self, intervals: int = 1) -> None:
        """Goes on by so many intervals; the first tick finds what has been counted till then.

        After an error, which it raises, rates are unknown, and the next tick is the first again.
        """
        try:
            reader = self._opened()
            if self._is_mine():
                self._tick(reader, intervals)
        except (LvsxdpError, OSError):
            self.close()
            raise

    def _tick(self, reader: Reader, intervals: int) -> None:
        changed = reader.changed()
        if self._estimator is None:
            self._estimator = Estimator(changed)
            return
        self._estimator.tick(changed, intervals)
        content = {"at": time.monotonic(), "rates": self._estimator.rates()}
        state.write_bytes(self.where.files / "rates", json.dumps(content).encode())

    def _is_mine(self) -> bool:
        """Whether this process is the one that estimates here; a second one waits for its turn."""
        if self._lock is not None and os.fstat(self._lock.fileno()).st_nlink:
            return True
        self._give_up()
        with contextlib.suppress(FileNotFoundError):
            lock = (self.where.files / "estimator").open("ab")
            with contextlib.suppress(BlockingIOError):
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                # from a daemon before
                (self.where.files / "rates").unlink(missing_ok=True)
                self._lock = lock
                return True
            lock.close()
        return False

    def _opened(self) -> Reader:
        """What reads the balancer as it is now; another one's rates are estimated anew."""
        record = _identity(self.where)
        if self._reader is not None and record and record == self._record:
            return self._reader
        keys = self._balancer and self._balancer.state.described["hash_keys"]
        self._let_go()
        with state.locked(self.where, LOCK_WAIT):
            self._record, self._balancer = _identity(self.where), Balancer.open(self.where)
        self._reader = Reader(self._balancer)
        # drawn whenever the tables are made anew
        if keys != self._balancer.state.described["hash_keys"]:
            self._estimator = None
        elif self._estimator is not None:
            self._estimator.keep(self._reader.keys)
        return self._reader

    def _let_go(self) -> None:
        if self._balancer is not None:
            self._balancer.close()
            self._balancer = self._reader = None

    def close(self) -> None:
        """Rates are unknown from here on."""
        self._let_go()
        self._give_up()

    def _give_up(self) -> None:
        self._estimator = None
        if self._lock is not None:
            self._lock.close()
            self._lock = None


def _identity(where: Folders) -> tuple[int, ...]:
    """What tells the record from an earlier or later one: it is never changed but exchanged."""
    try:
        found = where.state_file.stat()
    except FileNotFoundError:
        return ()
    return found.st_ino, found.st_mtime_ns, found.st_size


def read(where: Folders) -> Rates:
    """The rates that the daemon keeps; none where no daemon does."""
    if not _is_held(where):
        return Rates()
    with contextlib.suppress(FileNotFoundError):
        content = json.loads((where.files / "rates").read_bytes())
        if time.monotonic() - content["at"] <= OLDEST:
            return Rates({key: (i, tuple(rate)) for key, (i, rate) in content["rates"].items()})
    return Rates()


def _is_held(where: Folders) -> bool:
    """Whether a process that lives estimates the rates."""
    with (
        contextlib.suppress(FileNotFoundError),
        (where.files / "estimator").open("rb") as lock,
    ):
        try:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False

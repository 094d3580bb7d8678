"""What a laboratory has made, kept in a file, so that any later run can take it down again."""

import contextlib
import fcntl
import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from lab.errors import LabError
from lab.layout import ROLES

STATE = Path("/run/lvsxdp-lab")
NAMESPACES = Path("/run/netns")
PATIENCE = 3.0


@dataclass(frozen=True)
class Process:
    """A process by id and start time; both, since ids are reused."""

    pid: int
    started: int

    @classmethod
    def of(cls, pid: int) -> "Process":
        """Return the process that has this id now; LabError if there is none."""
        started = _started(pid)
        if started is None:
            raise LabError(f"process {pid} ended at once")
        return cls(pid, started)

    def is_alive(self) -> bool:
        """Return whether it still runs; a zombie does not."""
        return _started(self.pid) == self.started


@dataclass(frozen=True)
class Record:
    """One laboratory: its files, its processes, and whether it stands without its maker."""

    prefix: str
    directory: str = ""
    options: dict[str, str | bool] = field(default_factory=dict)
    processes: tuple[Process, ...] = ()
    is_standing: bool = False

    def with_process(self, pid: int) -> "Record":
        """Return the record with one process more."""
        return replace(self, processes=(*self.processes, Process.of(pid)))

    def save(self) -> None:
        """Write the record whole; a reader sees the old one or the new one."""
        STATE.mkdir(parents=True, exist_ok=True)
        draft = STATE / f"{self.prefix}.json.new"
        draft.write_text(json.dumps(asdict(self), indent=1) + "\n")
        draft.rename(STATE / f"{self.prefix}.json")


def load(prefix: str) -> Record:
    """Return the record of a laboratory; an empty one if there is none."""
    try:
        fields = json.loads((STATE / f"{prefix}.json").read_text())
    except FileNotFoundError:
        return Record(prefix)
    fields["processes"] = tuple(Process(**process) for process in fields["processes"])
    return Record(**fields)


def netns(prefix: str, ns: str) -> str:
    """Return the full name of a namespace, such as `lvx-lb`."""
    return f"{prefix}-{ns}"


def namespaces(prefix: str) -> list[str]:
    """Return the roles whose namespaces exist; names that we never give are not looked at."""
    return [ns for ns in ROLES if (NAMESPACES / netns(prefix, ns)).exists()]


@contextlib.contextmanager
def locked(prefix: str) -> Iterator[None]:
    """Hold the laboratory's name; LabError while another process holds it."""
    STATE.mkdir(parents=True, exist_ok=True)
    with (STATE / f"{prefix}.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as err:
            raise LabError(f'lab "{prefix}" is in use; wait, or choose another prefix') from err
        yield


@contextlib.contextmanager
def uninterrupted() -> Iterator[None]:
    """Keep signals that would stop us waiting until the block is done."""
    old = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM, signal.SIGHUP})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, old)


def take_down(prefix: str) -> None:
    """Remove all that the laboratory of this name made; nothing to do is fine."""
    with uninterrupted():
        record = load(prefix)
        _end([process for process in record.processes if process.is_alive()], group=True)
        _end(_inhabitants(prefix), group=False)
        for ns in namespaces(prefix):
            subprocess.run(["ip", "netns", "del", netns(prefix, ns)], check=True)
        if record.directory:
            shutil.rmtree(record.directory, ignore_errors=True)
        (STATE / f"{prefix}.json").unlink(missing_ok=True)


def wait_until(is_true: Callable[[], bool], patience: float = PATIENCE) -> bool:
    """Return whether it became true in time, asking every few milliseconds."""
    deadline = time.monotonic() + patience
    while not is_true():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.005)
    return True


def _end(processes: list[Process], *, group: bool) -> None:
    """End processes, politely first; with `group`, those that they started as well."""
    send = os.killpg if group else os.kill
    for how in (signal.SIGTERM, signal.SIGKILL):
        for process in processes:
            if process.is_alive():
                with contextlib.suppress(ProcessLookupError):
                    send(process.pid, how)
        if wait_until(lambda: not any(process.is_alive() for process in processes)):
            return
    raise LabError(f"these processes do not end: {[process.pid for process in processes]}")


def _inhabitants(prefix: str) -> list[Process]:
    """Return the processes that live in our namespaces: orphans of what we started there."""
    ours = {_identity(NAMESPACES / netns(prefix, ns)) for ns in namespaces(prefix)}
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        with contextlib.suppress(OSError, LabError):
            if _identity(entry / "ns/net") in ours:
                found.append(Process.of(int(entry.name)))
    return found


def _identity(path: Path) -> tuple[int, int]:
    stat = path.stat()
    return stat.st_dev, stat.st_ino


def _started(pid: int) -> int | None:
    """Return when the process started (proc(5), field 22); None for no process or a zombie."""
    try:
        # The name in parentheses may hold blanks: count from its end.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if fields[0] in "ZX" else int(fields[19])

"""What is remembered between commands: the lock, the configuration, ids, layouts, attachments."""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TextIO

from lvsxdp import features, records, snapshot
from lvsxdp.book import BackendPlace, Book, ServicePlace
from lvsxdp.errors import ConflictError, DatapathError
from lvsxdp.features import Feature
from lvsxdp.filtering import Hashing
from lvsxdp.model import Config
from lvsxdp.schema import Schema

VERSION = 3


@dataclasses.dataclass(slots=True)
class Attachment:
    """One interface that is attached."""

    interface: str
    ifindex: int
    mode: str
    program: int
    made_clsact: bool


@dataclasses.dataclass(slots=True)
class State:
    """All that a later command needs; `described` is what the compiler said of the maps.

    `applied` is the configuration that was last applied from a file, None where that is `config`.
    """

    config: Config
    book: Book
    attachments: list[Attachment]
    described: dict[str, Any]
    applied: Config | None = None

    @property
    def schema(self) -> Schema:
        """Layouts and enums of the maps as they were compiled."""
        tables = self.described["tables"]
        return Schema(
            keys={name: records.layout_of(table["key"]) for name, table in tables.items()},
            values={name: records.layout_of(table["value"]) for name, table in tables.items()},
            enums=self.described["enums"],
            hz=self.described["hz"],
            flat={n: records.Shape(**t["flat"]) for n, t in tables.items() if "flat" in t},
            hashing=Hashing(tuple(self.described["hash_keys"]), self.described["filter_bits"]),
        )

    @property
    def features(self) -> frozenset[Feature]:
        """What is compiled into the programs."""
        return features.compiled(self.described["defines"])


@dataclasses.dataclass(frozen=True, slots=True)
class Folders:
    """Where one network namespace's pins and files are."""

    pins: Path
    files: Path

    @property
    def state_file(self) -> Path:
        """The file that holds the State."""
        return self.files / "state.json"


def folders(cookie: int, pins: Path, files: Path) -> Folders:
    """The folders of the namespace with this cookie."""
    return Folders(pins / str(cookie), files / str(cookie))


def make_folder(folder: Path, mode: int = 0o777) -> None:
    """Makes a folder, and the root that it is in, which others may remove at any moment.

    FileExistsError where the folder is there already.
    """
    while True:
        with contextlib.suppress(FileExistsError):
            folder.parent.mkdir(parents=True)
        with contextlib.suppress(FileNotFoundError):
            return folder.mkdir(mode)


def remove_root(root: Path) -> None:
    """Removes the folder that held those of all namespaces, unless something is in it."""
    with contextlib.suppress(OSError):
        root.rmdir()


def read(where: Folders) -> State | None:
    """The state that is on record, None where there is none."""
    plain = read_plain(where.state_file)
    try:
        return None if plain is None else from_plain(plain)
    except (ValueError, LookupError, TypeError) as err:
        raise DatapathError(f"{where.state_file} is damaged: {err!r}") from err


def read_plain(path: Path) -> dict[str, Any] | None:
    """What a file of state holds, None where there is none."""
    try:
        plain = json.loads(path.read_text())
        version = plain["version"]
    except FileNotFoundError:
        return None
    except (ValueError, LookupError, TypeError) as err:
        raise DatapathError(f"{path} is damaged: {err!r}") from err
    if version == VERSION:
        return dict(plain)
    raise ConflictError(
        f"{path} is of version {version}, not {VERSION}: "
        "detach --all with the lvsxdp that attached, then attach with this one"
    )


def from_plain(plain: dict[str, Any]) -> State:
    """The state that to_plain was given."""
    return State(
        config=snapshot.from_plain(plain["config"]),
        book=_book_from(plain["book"]),
        attachments=[Attachment(**attached) for attached in plain["attachments"]],
        described=plain["described"],
        applied=snapshot.from_plain(plain["applied"]) if plain.get("applied") else None,
    )


def write(where: Folders, state: State) -> None:
    """Puts the state on record: a new file renamed over the old."""
    write_plain(where.state_file, to_plain(state))


def to_plain(state: State) -> dict[str, Any]:
    """The state as plain JSON values."""
    return {
        "version": VERSION,
        "config": snapshot.to_plain(state.config),
        "book": _book_to(state.book),
        "attachments": [dataclasses.asdict(attached) for attached in state.attachments],
        "described": state.described,
        "applied": snapshot.to_plain(state.applied) if state.applied else None,
    }


def write_plain(path: Path, plain: dict[str, Any]) -> None:
    """Writes a file of state: a new one renamed over the old."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    temporary = path.with_suffix(".new")
    with temporary.open("w") as file:
        # in one go: piece by piece Python's own encoder would do it, not the one in C
        file.write(json.dumps(plain))
        file.flush()
        os.fsync(file.fileno())
    temporary.rename(path)


def _book_to(book: Book) -> dict[str, Any]:
    # dataclasses.asdict copies all that is in it, which takes ten times as long
    services = {key: {**_fields(place), "backends": {}} for key, place in book.services.items()}
    for key, place in book.services.items():
        services[key]["backends"] = {n: [b.id, b.generation] for n, b in place.backends.items()}
    return {**_fields(book), "services": services}


def _fields(of: Any) -> dict[str, Any]:
    return {field.name: getattr(of, field.name) for field in dataclasses.fields(of)}


def _book_from(plain: dict[str, Any]) -> Book:
    services = {}
    for key, place in plain["services"].items():
        backends = {name: BackendPlace(*b) for name, b in place.pop("backends").items()}
        services[key] = ServicePlace(**place, backends=backends)
    return Book(
        services=services,
        service_generations={int(k): v for k, v in plain["service_generations"].items()},
        backend_generations={int(k): v for k, v in plain["backend_generations"].items()},
        mark_generation=plain["mark_generation"],
        epoch=plain["epoch"],
    )


@contextlib.contextmanager
def locked(
    where: Folders,
    wait: float,
    clock: Callable[[], float] = time.monotonic,
    pause: Callable[[float], None] = time.sleep,
) -> Iterator[None]:
    """The namespace's lock, held meanwhile; ConflictError names who holds it after `wait` s."""
    limit = clock() + wait
    while True:
        file = _open_lock(where)
        if _take(file):
            break
        holder = file.read().strip() or "another command"
        file.close()
        if clock() >= limit:
            raise ConflictError(f"the lock is held by {holder} (--wait)")
        pause(0.02)
    with file:
        file.truncate(0)
        file.write(f"process {os.getpid()}")
        file.flush()
        try:
            yield
        finally:
            if not where.state_file.exists():
                shutil.rmtree(where.files, ignore_errors=True)
                remove_root(where.files.parent)


def _open_lock(where: Folders) -> TextIO:
    """The lock's file, made where it is missing; another command may remove it at any moment."""
    while True:
        with contextlib.suppress(FileExistsError):
            make_folder(where.files, 0o700)
        with contextlib.suppress(FileNotFoundError):
            file = (where.files / "lock").open("a+")
            file.seek(0)
            return file


def _take(file: TextIO) -> bool:
    """Whether the lock is now this process's, and still the one that others would open."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    # `detach --all` removes the file, and whoever waited for it would hold a lock of its own
    return os.fstat(file.fileno()).st_nlink > 0

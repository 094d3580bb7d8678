"""What is remembered between commands: the lock, the configuration, ids, layouts, attachments."""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import json
import os
import shutil
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TextIO

from lvsxdp import features, records, snapshot, stored
from lvsxdp.book import Book, Generations, Parted, Removed, by_id, listed
from lvsxdp.errors import ConflictError, DatapathError
from lvsxdp.features import Feature
from lvsxdp.filtering import Hashing
from lvsxdp.model import Config, Service
from lvsxdp.schema import Schema

VERSION = 6


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

    `applied` is the configuration that was last applied from a file, None where that is `config`;
    `sources` is what the text of services that run as it says is known by, by their keys.
    """

    config: Config
    book: Book
    attachments: list[Attachment]
    described: dict[str, Any]
    applied: Config | None = None
    sources: Mapping[str, str] = dataclasses.field(default_factory=dict)

    @property
    def known(self) -> dict[str, Service]:
        """The services that run as a text says, by what it is known by."""
        found = ((self.sources.get(str(service.key)), service) for service in self.config.services)
        return {digest: service for digest, service in found if digest}

    def sources_of(self, other: Config) -> dict[str, str]:
        """`sources` for another configuration, of the services that are the same there."""
        same = {id(service) for service in self.config.services}
        keys = (str(service.key) for service in other.services if id(service) in same)
        return {key: self.sources[key] for key in keys if key in self.sources}

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
    found = read_file(where.state_file)
    return found and found[0]


def read_file(path: Path) -> tuple[State, bytes] | None:
    """The state that write_file was given, and what else as JSON; None without such a file."""
    try:
        first, *lines = path.read_bytes().split(b"\n")
        header = json.loads(first)
        version = header["version"]
    except FileNotFoundError:
        return None
    except (ValueError, LookupError, TypeError) as err:
        raise damaged(path, err) from err
    if version != VERSION:
        raise ConflictError(
            f"{path} is of version {version}, not {VERSION}: detach --all, then attach"
        )
    try:
        if header["checksum"] != _checksum(lines):
            raise ValueError("its lines are not those that were written")
        return _decode(header, lines[:-2], lines[-2]), lines[-1]
    except (ValueError, LookupError, TypeError) as err:
        raise damaged(path, err) from err


def damaged(path: Path, err: Exception) -> DatapathError:
    """The error of a file of ours that holds something else than was written."""
    remedy = {"links": "remove it, then apply", "confirm.json": "remove it; nothing is undone then"}
    told = remedy.get(path.name, "detach --all, then attach")
    return DatapathError(f"{path} is damaged ({err!r}): {told}")


def write(where: Folders, state: State) -> None:
    """Puts the state on record: a new file renamed over the old."""
    write_file(where.state_file, state)


def write_file(path: Path, state: State, more: Any = None) -> None:
    """Writes a state, and `more`, which is JSON: a header, a line for each service, the rest.

    Before the last line come the generations of backends' ids.
    """
    places = state.book.services
    keyed = [(str(service.key), service) for service in state.config.services]
    lines = [stored.encode(s, places[key], state.sources.get(key)) for key, s in keyed]
    lines += [state.book.backend_generations.line(), json.dumps(more).encode()]
    header = {
        "version": VERSION,
        "checksum": _checksum(lines),
        "config": snapshot.frame_to(state.config),
        "book": _book_to(state.book),
        "attachments": [dataclasses.asdict(attached) for attached in state.attachments],
        "described": state.described,
        "applied": state.applied and _applied_to(state.applied, state.config),
    }
    # json.dump would have Python's encoder do it, piece by piece, not the one in C
    write_bytes(path, b"\n".join([json.dumps(header).encode(), *lines]))


def write_bytes(path: Path, content: bytes) -> None:
    """Writes a file: a new one renamed over the old.

    It is not flushed to a disk: it need not outlive the machine, since no map does.
    """
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    temporary = path.with_suffix(".new")
    temporary.write_bytes(content)
    temporary.rename(path)


def _checksum(lines: Iterable[bytes]) -> int:
    found = 0
    for line in lines:
        found = zlib.crc32(line, found)
    return found


def _decode(header: dict[str, Any], lines: Iterable[bytes], generations: bytes) -> State:
    found = [stored.decode(line) for line in lines]
    config = snapshot.frame_from(header["config"], tuple(service for service, _, _ in found))
    plain = header["book"]
    book = Book(
        services={str(service.key): place for service, place, _ in found},
        service_generations=by_id(plain["service_generations"]),
        backend_generations=Generations(generations),
        mark_generation=plain["mark_generation"],
        epoch=plain["epoch"],
        unprivileged_port=plain["unprivileged_port"],
        removed={key: _removed_from(kept) for key, kept in plain["removed"].items()},
        sources=plain.get("sources", {}),
    )
    return State(
        config=config,
        book=book,
        attachments=[Attachment(**attached) for attached in header["attachments"]],
        described=header["described"],
        applied=header["applied"] and _applied_from(header["applied"], config),
        sources={str(service.key): source for service, _, source in found if source},
    )


def _book_to(book: Book) -> dict[str, Any]:
    """The book without its services and without the generations of backends."""
    return {
        "service_generations": listed(book.service_generations),
        "mark_generation": book.mark_generation,
        "epoch": book.epoch,
        "unprivileged_port": book.unprivileged_port,
        "removed": {key: _removed_to(kept) for key, kept in book.removed.items()},
        "sources": book.sources,
    }


def _removed_to(kept: Removed) -> list[Any]:
    backends = {name: [b.id, b.generation, b.idle] for name, b in kept.backends.items()}
    return [kept.service, backends]


def _removed_from(plain: list[Any]) -> Removed:
    return Removed(plain[0], {name: Parted(*backend) for name, backend in plain[1].items()})


def _applied_to(applied: Config, config: Config) -> dict[str, Any]:
    """The configuration that was applied; a service that runs unchanged is its place there."""
    running = {service.key: place for place, service in enumerate(config.services)}
    services: list[Any] = []
    for service in applied.services:
        place = running.get(service.key)
        same = place is not None and config.services[place] == service
        services.append(place if same else snapshot.service_to(service))
    return {**snapshot.frame_to(applied), "services": services}


def _applied_from(plain: dict[str, Any], config: Config) -> Config:
    services = (
        config.services[service] if isinstance(service, int) else snapshot.service_from(service)
        for service in plain["services"]
    )
    return snapshot.frame_from(plain, tuple(services))


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

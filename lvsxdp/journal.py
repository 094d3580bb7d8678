"""What a command is in the middle of, on disk, so that the next one finishes or undoes it.

Three files beside the state's:

- `preparing`: rows are being written that nothing uses yet.  Undone by clearing them away.
- `next.json`: a change has begun to take effect.  Finished: its writes are done again from the
  first, and the state that is in it becomes the state on record.
- `links`: programs are being put on interfaces or taken off.  Undone where they are not on record.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from lvsxdp import state, writes
from lvsxdp.state import Folders, State
from lvsxdp.writes import Write

KINDS = {kind.__name__: kind for kind in writes.KINDS}


@dataclasses.dataclass(frozen=True, slots=True)
class Next:
    """A change that has begun to take effect: the state it leads to, and what has to be written.

    `swap` is whether programs are exchanged, not rows written.
    """

    state: State
    writes: tuple[Write, ...]
    swap: bool


def _file(where: Folders, name: str) -> Path:
    return where.files / name


def is_unfinished(where: Folders) -> bool:
    """Whether a command ended in the middle of something."""
    return any(_file(where, name).exists() for name in ("preparing", "links", "next.json"))


def clear(where: Folders) -> None:
    """Forgets whatever was begun, where the tables that it was about are gone."""
    for name in ("preparing", "links", "next.json"):
        _file(where, name).unlink(missing_ok=True)


# ------------------------------------------------------------------------------------ preparing


def begin_preparing(where: Folders) -> None:
    """Says that unused rows are being written."""
    where.files.mkdir(parents=True, exist_ok=True, mode=0o700)
    _file(where, "preparing").touch()


def end_preparing(where: Folders) -> None:
    """Says that nothing is left of such rows, or that they are in use."""
    _file(where, "preparing").unlink(missing_ok=True)


def is_preparing(where: Folders) -> bool:
    """Whether unused rows may have been written."""
    return _file(where, "preparing").exists()


# --------------------------------------------------------------------------------- taking effect


def begin_next(where: Folders, wanted: State, todo: Iterable[Write], *, swap: bool = False) -> None:
    """From here on the change will be finished, by the next command if not by this one."""
    more = {"writes": [_to_plain(write) for write in todo], "swap": swap}
    state.write_file(_file(where, "next.json"), wanted, more)


def next_of(where: Folders) -> Next | None:
    """The change that has begun to take effect, None without one."""
    begun = state.read_file(_file(where, "next.json"))
    if begun is None:
        return None
    wanted, more = begun
    todo = json.loads(more)
    return Next(wanted, tuple(map(_from_plain, todo["writes"])), todo["swap"])


def end_next(where: Folders) -> None:
    """The change has taken effect: its state is the one on record."""
    _file(where, "next.json").rename(where.state_file)
    # the next change waits from here on for programs that began before
    os.utime(where.state_file)


def forget_next(where: Folders) -> None:
    """The change has been taken back."""
    _file(where, "next.json").unlink(missing_ok=True)


def _to_plain(write: Write) -> dict[str, Any]:
    fields = {field.name: getattr(write, field.name) for field in dataclasses.fields(write)}
    texts = {name: v.hex() for name, v in fields.items() if isinstance(v, bytes)}
    return {"kind": type(write).__name__, **fields, **texts}


def _from_plain(plain: dict[str, Any]) -> Write:
    kind: Any = KINDS[plain.pop("kind")]
    hexadecimal = {field.name for field in dataclasses.fields(kind) if field.type == "bytes"}
    values = {n: bytes.fromhex(v) if n in hexadecimal else v for n, v in plain.items()}
    made: Write = kind(**values)
    return made


# ----------------------------------------------------------------------------------- interfaces


@contextlib.contextmanager
def links(where: Folders, clsact: Mapping[int, bool]) -> Iterator[None]:
    """Says that programs come or go on these interfaces until the state on record says which.

    `clsact` gives for the index of each whether it has a clsact qdisc that is not of our making.
    What is said stays where this ends by an error.
    """
    path = _file(where, "links")
    temporary = path.with_suffix(".new")
    temporary.write_text(json.dumps({str(index): had for index, had in clsact.items()}))
    temporary.rename(path)
    yield
    path.unlink()


def links_of(where: Folders) -> dict[int, bool]:
    """The interfaces on which programs came or went, as links() was told of them."""
    path = _file(where, "links")
    try:
        plain = json.loads(path.read_text())
        return {int(index): had for index, had in plain.items()}
    except FileNotFoundError:
        return {}
    except (ValueError, AttributeError) as err:
        raise state.damaged(path, err) from err


def forget_links(where: Folders) -> None:
    """Nothing on the interfaces is half done any more."""
    _file(where, "links").unlink(missing_ok=True)

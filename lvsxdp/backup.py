"""A copy of the state beside the pins, for where the folder of files is lost and the balancer runs.

It is the value of a map: the bpf file system holds nothing else.
"""

from __future__ import annotations

import contextlib
import mmap
import os

from lvsxdp import maps, state
from lvsxdp.errors import DatapathError
from lvsxdp.maps import Map
from lvsxdp.state import Folders, State

NAME, FRESH = "record", "record_new"
LENGTH_BYTES = 8


def put_on_record(where: Folders, wanted: State) -> None:
    """Writes the state's file, and keeps a copy of it."""
    state.write(where, wanted)
    keep(where)


def keep(where: Folders) -> None:
    """Keeps a copy of the state's file in the place of the one before."""
    content = where.state_file.read_bytes()
    size = LENGTH_BYTES + len(content)
    descriptor = maps.create(NAME, maps.ARRAY, 4, size, 1, maps.F_MMAPABLE)
    try:
        with mmap.mmap(descriptor, -(-size // mmap.PAGESIZE) * mmap.PAGESIZE) as memory:
            memory[:size] = len(content).to_bytes(LENGTH_BYTES, "little") + content
        fresh = where.pins / FRESH
        fresh.unlink(missing_ok=True)
        maps.pin(descriptor, fresh)
        fresh.rename(where.pins / NAME)
    finally:
        os.close(descriptor)


def read(where: Folders) -> State | None:
    """The state on record, None where there is none; out of the copy where its file is lost.

    DatapathError where the file is damaged and there is no copy.
    """
    has_copy = (where.pins / NAME).exists()
    try:
        found = state.read(where)
        if found is not None or not has_copy:
            return found
    except DatapathError:
        if not has_copy:
            raise
    _restore(where)
    return state.read(where)


def is_half_kept(where: Folders) -> bool:
    """Whether a command was killed while it kept a copy."""
    return (where.pins / FRESH).exists()


def is_pinned(where: Folders) -> bool:
    """Whether programs are pinned that interfaces may have."""
    return (where.pins / "xdp_entry").exists()


def _restore(where: Folders) -> None:
    with contextlib.closing(Map.open(where.pins / NAME)) as copy:
        memory = copy.memory()
        length = int.from_bytes(memory[:LENGTH_BYTES], "little")
        content = memory[LENGTH_BYTES : LENGTH_BYTES + length]
    state.write_bytes(where.state_file, content)

"""Maps and programs in the kernel, by ctypes on libbpf: nothing here compiles or needs bcc."""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import enum
import errno
import mmap
import os
import signal
import struct
from collections.abc import Iterator
from pathlib import Path

from lvsxdp import libbpf
from lvsxdp.errors import DatapathError
from lvsxdp.records import Shape

BPF_ANY, BPF_NOEXIST = 0, 1
F_XDP_HAS_FRAGS = 1 << 5
F_MMAPABLE = 1 << 10
ARRAY = 2
LOG_BYTES = 16 << 20
BATCH = 4096
PER_CPU_TYPES = {5, 6, 10}  # per-CPU hash, array and LRU hash


class ProgramType(enum.IntEnum):
    """The kernel's numbers for the kinds of program used here."""

    SCHED_CLS = 3
    XDP = 6
    RAW_TRACEPOINT = 17


def possible_cpus() -> int:
    """How many values an entry of a per-CPU map has."""
    return int(libbpf.library().libbpf_num_possible_cpus())


# ------------------------------------------------------------------------------------ programs


def load_program(name: str, code: bytes, kind: ProgramType) -> int:
    """A descriptor of the loaded program; DatapathError with the verifier's last lines."""
    options = libbpf.LoadOptions(size=ctypes.sizeof(libbpf.LoadOptions))
    options.flags = F_XDP_HAS_FRAGS if kind is ProgramType.XDP else 0
    descriptor = _prog_load(name, code, kind, options)
    if descriptor >= 0:
        return descriptor
    failure = libbpf.failure(f"loading program {name} failed", descriptor)
    log = ctypes.create_string_buffer(LOG_BYTES)
    options.log_level, options.log_size = 1, LOG_BYTES
    options.log = ctypes.cast(log, ctypes.c_char_p)
    again = _prog_load(name, code, kind, options)
    if again >= 0:
        return again
    lines = log.value.decode(errors="replace").strip().splitlines()
    raise DatapathError("\n".join([f"{failure}; the verifier's last lines:", *lines[-25:]]))


def _prog_load(name: str, code: bytes, kind: ProgramType, options: libbpf.LoadOptions) -> int:
    short = f"lvsxdp_{name}"[:15].encode()
    return int(
        libbpf.library().bpf_prog_load(
            int(kind), short, b"GPL", code, ctypes.c_size_t(len(code) // 8), ctypes.byref(options)
        )
    )


@dataclasses.dataclass(frozen=True, slots=True)
class Run:
    """What one test run did: verdict, packet (metadata first), its length, nanoseconds a run.

    `context` is the one that was given, as the program left it.
    """

    verdict: int
    data: bytes
    metadata: int
    nanoseconds: int
    context: bytes = b""


def run_program(
    descriptor: int,
    packet: bytes,
    *,
    ifindex: int | None = None,
    metadata: int = 0,
    repeat: int = 1,
    context: bytes | None = None,
) -> Run:
    """Runs a program on a packet.

    `ifindex` makes an XDP program see the packet arrive there; `metadata` is how many bytes of
    `packet` come before the frame; `context` is a whole __sk_buff or xdp_md instead.
    """
    if context is None and (ifindex is not None or metadata):
        fields = (metadata, len(packet), 0, ifindex or 0, 0, 0)
        context = b"".join(field.to_bytes(4, "little") for field in fields)
    output = ctypes.create_string_buffer(len(packet) + 512)
    given = ctypes.create_string_buffer(packet, len(packet))
    options = libbpf.RunOptions(size=ctypes.sizeof(libbpf.RunOptions), repeat=repeat)
    options.data_in, options.data_size_in = ctypes.addressof(given), len(packet)
    options.data_out, options.data_size_out = ctypes.addressof(output), len(output)
    if context is not None:
        before = ctypes.create_string_buffer(context, len(context))
        after = ctypes.create_string_buffer(len(context))
        options.context_in, options.context_size_in = ctypes.addressof(before), len(context)
        options.context_out, options.context_size_out = ctypes.addressof(after), len(context)
    # the kernel gives a long run up for a signal; it is for after the run
    held = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    try:
        result = libbpf.library().bpf_prog_test_run_opts(descriptor, ctypes.byref(options))
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, held)
    if result:
        raise libbpf.failure("running a program by itself failed", result)
    moved = 0
    if context is not None and len(context) == 24:
        moved = int.from_bytes(after.raw[4:8], "little") - options.data_size_out
        moved = int.from_bytes(after.raw[0:4], "little") if moved == 0 else 0
    data = output.raw[: options.data_size_out]
    left = after.raw if context is not None else b""
    return Run(options.verdict, data, moved, options.duration, left)


def open_tracepoint(name: str, program: int) -> int:
    """A descriptor of a link by which the program runs at a tracepoint, until it is closed."""
    descriptor = int(libbpf.library().bpf_raw_tracepoint_open(name.encode(), program))
    if descriptor < 0:
        raise libbpf.failure(f"attaching to the tracepoint {name} failed", descriptor)
    return descriptor


def program_info(descriptor: int) -> tuple[int, str]:
    """A program's id and name."""
    info, size = libbpf.ProgramInfo(), ctypes.c_uint32(ctypes.sizeof(libbpf.ProgramInfo))
    result = libbpf.library().bpf_obj_get_info_by_fd(
        descriptor, ctypes.byref(info), ctypes.byref(size)
    )
    if result:
        raise libbpf.failure("asking for a program's id failed", result)
    return int(info.id), info.name.decode()


def program_name(identity: int) -> str:
    """The name of a program by its id, `?` where it is gone."""
    descriptor = int(libbpf.library().bpf_prog_get_fd_by_id(ctypes.c_uint32(identity)))
    if descriptor < 0:
        return "?"
    try:
        return program_info(descriptor)[1]
    finally:
        os.close(descriptor)


# ---------------------------------------------------------------------------------------- pins


def pin(descriptor: int, path: Path) -> None:
    """Keeps a map, program or link alive by a file in the bpf file system."""
    result = libbpf.library().bpf_obj_pin(descriptor, os.fsencode(path))
    if result:
        raise libbpf.failure(f"pinning {path} failed", result)


def open_pin(path: Path) -> int:
    """A descriptor of what is pinned at `path`."""
    descriptor = int(libbpf.library().bpf_obj_get(os.fsencode(path)))
    if descriptor < 0:
        raise libbpf.failure(f"opening {path} failed", descriptor)
    return descriptor


# ---------------------------------------------------------------------------------------- maps


def create(name: str, kind: int, key_size: int, value_size: int, capacity: int, flags: int) -> int:
    """A descriptor of a new map."""
    options = libbpf.MapOptions(size=ctypes.sizeof(libbpf.MapOptions), flags=flags)
    descriptor = int(
        libbpf.library().bpf_map_create(
            kind, name[:15].encode(), key_size, value_size, capacity, ctypes.byref(options)
        )
    )
    if descriptor < 0:
        size = value_size * capacity >> 10
        raise libbpf.failure(f"making the table {name} of {size} KiB failed", descriptor)
    return descriptor


def create_flat(name: str, shape: Shape) -> int:
    """A descriptor of a new flat table, all zero."""
    return create(name, ARRAY, 4, shape.row * shape.rows * shape.cpus, 1, F_MMAPABLE)


class Map:
    """One map: entries as bytes, in and out.  A flat table's rows are its entries."""

    def __init__(self, descriptor: int, flat: Shape | None = None) -> None:
        """Takes the descriptor over; `flat` says what a flat table holds."""
        self.descriptor, self.flat = descriptor, flat
        info, size = libbpf.MapInfo(), ctypes.c_uint32(ctypes.sizeof(libbpf.MapInfo))
        result = libbpf.library().bpf_obj_get_info_by_fd(
            descriptor, ctypes.byref(info), ctypes.byref(size)
        )
        if result:
            raise libbpf.failure("asking for a map's sizes failed", result)
        self.type, self.capacity, self.flags = int(info.type), int(info.max_entries), info.flags
        self.name = info.name.decode()
        self.key_size, self.value_size = int(info.key_size), int(info.value_size)
        self.cpus = possible_cpus() if self.type in PER_CPU_TYPES else 1
        self.stride = -(-self.value_size // 8) * 8 if self.cpus > 1 else self.value_size
        if flat:
            self.capacity, self.cpus = flat.rows, flat.cpus
            self.stride = self.value_size = flat.row
        self._mapping: mmap.mmap | None = None

    @classmethod
    def open(cls, path: Path, flat: Shape | None = None) -> Map:
        """The map pinned at `path`."""
        return cls(open_pin(path), flat)

    def close(self) -> None:
        """Closes the descriptor; the map lives on where it is pinned."""
        if self._mapping is not None:
            # a view that is still in use keeps the mapping until it goes
            with contextlib.suppress(BufferError):
                self._mapping.close()
        os.close(self.descriptor)

    def look_up(self, key: bytes) -> bytes | None:
        """The value (all CPUs' values in a row), or None."""
        if self.flat:
            return b"".join(self._map()[place] for place in self._places(key))
        value = ctypes.create_string_buffer(self.stride * self.cpus)
        if libbpf.library().bpf_map_lookup_elem(self.descriptor, key, value):
            return None
        return value.raw

    def update(self, key: bytes, value: bytes, flags: int = BPF_ANY) -> None:
        """Writes an entry (all CPUs' values in a row)."""
        if self.flat:
            for number, place in enumerate(self._places(key)):
                self._map()[place] = value[number * self.stride : (number + 1) * self.stride]
            return
        result = libbpf.library().bpf_map_update_elem(
            self.descriptor, key, value, ctypes.c_uint64(flags)
        )
        if result:
            raise libbpf.failure(
                f"writing to map {self.name} ({self.capacity} entries) failed", result
            )

    def update_rows(self, index: int, value: bytes) -> None:
        """Writes entries of an array, whose values follow each other, from an index on."""
        rows = len(value) // self.stride
        if self.flat:
            self._at(index, rows)
            self.write(index * self.stride, value)
            return
        keys, count = struct.pack(f"<{rows}I", *range(index, index + rows)), ctypes.c_uint32(rows)
        result = libbpf.library().bpf_map_update_batch(
            self.descriptor, keys, value, ctypes.byref(count), None
        )
        if result:
            raise libbpf.failure(
                f"writing to map {self.name} ({self.capacity} entries) failed", result
            )

    def reset(self, index: int, count: int) -> None:
        """Sets rows of a flat table in a row to 0, each CPU's."""
        self._at(index, count)
        for cpu in range(self.cpus):
            start = (cpu * self.capacity + index) * self.stride
            self._map()[start : start + count * self.stride] = bytes(count * self.stride)

    def _at(self, index: int, count: int) -> None:
        if index + count > self.capacity:
            last = index + count - 1
            raise DatapathError(f"{self.name} has {self.capacity} rows and none at {last}")

    def delete(self, key: bytes) -> bool:
        """Deletes an entry; False where there was none."""
        return not libbpf.library().bpf_map_delete_elem(self.descriptor, key)

    def items(self) -> Iterator[tuple[bytes, bytes]]:
        """All entries of a hash map, read in batches; what changes meanwhile may be missed."""
        limit = min(self.capacity, BATCH)
        keys = ctypes.create_string_buffer(self.key_size * limit)
        values = ctypes.create_string_buffer(self.stride * self.cpus * limit)
        token, following = ctypes.create_string_buffer(64), ctypes.create_string_buffer(64)
        started = False
        while True:
            count = ctypes.c_uint32(limit)
            result = libbpf.library().bpf_map_lookup_batch(
                self.descriptor,
                token if started else None,
                following,
                keys,
                values,
                ctypes.byref(count),
                None,
            )
            number = -result if result < -1 else ctypes.get_errno()
            if result and number != errno.ENOENT:
                raise libbpf.failure(f"reading map {self.name} failed", result)
            yield from self._split(keys, values, count.value)
            if result:
                return
            token.raw, started = following.raw, True

    def _split(
        self, keys: ctypes.Array[ctypes.c_char], values: ctypes.Array[ctypes.c_char], count: int
    ) -> Iterator[tuple[bytes, bytes]]:
        width = self.stride * self.cpus
        key_bytes, value_bytes = keys.raw, values.raw
        for index in range(count):
            yield (
                key_bytes[index * self.key_size : (index + 1) * self.key_size],
                value_bytes[index * width : (index + 1) * width],
            )

    def read_word(self, index: int, offset: int = 0) -> int:
        """A 64-bit word of a mapped array."""
        place = index * self._row() + offset
        return ctypes.c_uint64.from_buffer(self._map(), place).value

    def store_word(self, index: int, value: int, offset: int = 0) -> None:
        """Stores a 64-bit word of a mapped array with one write, so that it is seen whole."""
        place = index * self._row() + offset
        ctypes.c_uint64.from_buffer(self._map(), place).value = value

    def write(self, start: int, value: bytes) -> None:
        """Writes so many bytes of a mapped array, from a byte on."""
        if start + len(value) > self._bytes():
            raise DatapathError(f"{self.name} has {self._bytes()} bytes and none beyond")
        self._map()[start : start + len(value)] = value

    def memory(self) -> mmap.mmap:
        """A mapped array's whole memory, as the programs see it; views of it end before close()."""
        return self._map()

    def clear(self) -> None:
        """Zeroes a mapped array."""
        self._map()[: self._bytes()] = bytes(self._bytes())

    def _places(self, key: bytes) -> Iterator[slice]:
        """Where a row of a flat table is, CPU by CPU."""
        index = int.from_bytes(key, "little")
        self._at(index, 1)
        for cpu in range(self.cpus):
            start = (cpu * self.capacity + index) * self.stride
            yield slice(start, start + self.stride)

    def _row(self) -> int:
        return self.stride if self.flat else -(-self.value_size // 8) * 8

    def _bytes(self) -> int:
        return self._row() * self.capacity * (self.cpus if self.flat else 1)

    def _map(self) -> mmap.mmap:
        if self._mapping is None:
            size = -(-self._bytes() // mmap.PAGESIZE) * mmap.PAGESIZE
            self._mapping = mmap.mmap(self.descriptor, size)
        return self._mapping

"""Loads the programs: sizes and constants, compiling, program arrays, pins."""

from __future__ import annotations

import concurrent.futures.process
import contextlib
import ctypes
import dataclasses
import multiprocessing
import os
import secrets
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from lvsxdp import backup, features, maps, mark_words, records, state, watching
from lvsxdp.bytecode import Compiled, Links, Table
from lvsxdp.controller import TABLES
from lvsxdp.errors import ConflictError, DatapathError
from lvsxdp.features import Feature
from lvsxdp.maps import Map
from lvsxdp.model import Capacity, Config

CACHE = Path("/var/cache/lvsxdp")
CLOCK_MONOTONIC_COARSE = 6
PR_SET_PDEATHSIG = 1
HASH_KEYS = 14
SLOT_BYTES = {"4": 64, "6": 128}
RECOUNT_BYTES = 8
# The tables take a 64th of the memory, if the configuration does not say more.
MEMORY_SHARE = 64
MOST_BY_DEFAULT = 1 << 20
# How far into a map the kernel lets a program reach.
MOST_BYTES = 1 << 29
# Slots of a bucket: bpf/config.h.
BUCKET_SLOTS = 64
# Functions that are attached: to what comes in, and with nat in TC to what this host sends.
ENTRIES = ("entry", "egress")
# Function -> its place in the program array.
STEPS = {
    "new_connection": "new",
    "connect_backend": "connect",
    "bind_client": "bind",
    "age_tables": "age",
    "make_room": "room",
    "known_connection": "known",
    "mark_packet": "rules",
    "refuse_packet": "refuse",
    "quote_packet4": "quote4",
    "quote_packet6": "quote6",
    "answer_packet": "answer",
    "mend_packet": "mend",
    "egress_answer": "egress",
    "find_call": "call",
    "wrap_packet4": "tunnel4",
    "wrap_packet6": "tunnel6",
    "sum_packet": "sum",
    "follow_packet4": "fragment4",
    "follow_packet6": "fragment6",
    "cut_packet": "cut",
    "learn_path": "learn",
    "ftp_packet4": "ftp4",
    "ftp_packet6": "ftp6",
    "ftp_send_packet": "ftp_send",
    "ftp_write_packet": "ftp_write",
    "fullnat_packet4": "fullnat4",
    "fullnat_packet6": "fullnat6",
    "return_packet4": "return4",
    "return_packet6": "return6",
    "quote_fullnat4": "quote_fullnat4",
    "quote_fullnat6": "quote_fullnat6",
}
# A folder of pins that are not complete yet; the bpf file system takes no dots in names.
UNFINISHED = "_new"
HOOKS = {"xdp": maps.ProgramType.XDP, "tc": maps.ProgramType.SCHED_CLS}
# Programs that the control plane runs by itself.
CONTROL = (
    *("read_clock", "reap", "heal", "limit_backend", "pin_client", "transition"),
    *(f"sweep_{table}" for table in TABLES),
)
# What the programs of one version hand over to each other: never another version's.
OWN_TABLES = ("journeys",)


@dataclasses.dataclass(frozen=True, slots=True)
class Build:
    """How the programs are compiled: more -D, the compiler's cache, other sources than ours.

    `keys` are the hashes' random numbers; without them, they are drawn.
    """

    defines: Mapping[str, object] = dataclasses.field(default_factory=dict)
    cache: Path = CACHE
    folder: Path | None = None
    keys: tuple[int, ...] = ()


def jiffies_per_second() -> int:
    """The kernel's HZ: its coarse clock advances once a jiffy."""
    return round(1 / time.clock_getres(CLOCK_MONOTONIC_COARSE))


def defines_of(config: Config, build: Build) -> dict[str, object]:
    """What the sources are compiled with."""
    capacity, used = config.capacity, features.features_of(config)
    return {
        "HZ": jiffies_per_second(),
        "CONNECTION_SLOTS": slots_for(capacity.connections),
        "PERSISTENCE_SLOTS": slots_for(capacity.persistence),
        "FILTER_BITS": filter_bits_for(capacity.services),
        "SERVICE_CAPACITY": power_of_two(capacity.services),
        "BACKEND_CAPACITY": power_of_two(capacity.backends),
        "MARK_WORDS": mark_words.words_for(capacity.marks),
        "CPUS": power_of_two(maps.possible_cpus()),
        **features.defines(used),
        **{of.define: of.rows(capacity) if feature in used else 1 for feature, of in FULL.items()},
        **build.defines,
    }


@dataclasses.dataclass(frozen=True, slots=True)
class Sized:
    """Tables that are made in full with the feature that uses them: their size in C, and rows."""

    tables: tuple[str, ...]
    define: str
    rows: Callable[[Capacity], int]


def power_of_two(number: int) -> int:
    """The least power of two that is not below `number`."""
    return 1 << (number - 1).bit_length()


def filter_bits_for(services: int) -> int:
    """Size of the filter, as a power of two: at least 64 bits a service."""
    return max((64 * services - 1).bit_length(), 16)


def sized(capacity: Capacity, memory: int) -> Capacity:
    """The capacity with its open numbers filled in: tables in a 64th of `memory`, in bytes.

    Both kinds of table exist for IPv4 and IPv6, with two slots an entry; sweeps count connections
    for each slot of a persistence entry.
    """
    both = 2 * sum(SLOT_BYTES.values())
    fitting = memory // MEMORY_SHARE // (2 * both + 4 * RECOUNT_BYTES)
    entries = min(max(1 << (fitting.bit_length() - 1 if fitting else 0), 1024), MOST_BY_DEFAULT)
    return dataclasses.replace(
        capacity,
        connections=capacity.connections or entries,
        persistence=capacity.persistence or entries,
    )


def memory() -> int:
    """This machine's memory in bytes."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def slots_for(entries: int) -> int:
    """Slots of a table for so many entries: a power of two, at least twice as many."""
    return max(1 << (2 * entries - 1).bit_length(), BUCKET_SLOTS)


FULL = {
    Feature.LOCALITY: Sized(("destinations",), "DESTINATION_CAPACITY", lambda c: c.destinations),
    Feature.SIP: Sized(("calls4", "calls6"), "CALL_SLOTS", lambda c: slots_for(c.persistence)),
    Feature.FULLNAT: Sized(
        ("source_ports",), "SOURCE_PORTS", lambda c: power_of_two(c.sources) << 16
    ),
}


def load(pins: Path, config: Config, build: Build) -> dict[str, Any]:
    """Compiles and loads everything and pins it in `pins`; what the compiler said of the maps."""
    keys = build.keys or tuple(secrets.randbits(64) for _ in range(HASH_KEYS))
    build = dataclasses.replace(build, keys=keys)
    return _load_all(pins, pins, defines_of(config, build), build)


def load_newer(
    into: Path, pins: Path, config: Config, described: dict[str, Any], build: Build
) -> dict[str, Any]:
    """Loads every program anew, from the C sources that are here, over the maps in `pins`.

    Programs and maps that are not there yet are pinned in `into`; what is then to be described.
    """
    build = dataclasses.replace(build, keys=tuple(described["hash_keys"]))
    defines = {**defines_of(config, build), **described["defines"]}
    return _load_all(into, pins, defines, build)


def _load_all(into: Path, pins: Path, defines: dict[str, object], build: Build) -> dict[str, Any]:
    from lvsxdp import compiler

    folder = build.folder or compiler.sources()
    enums = enums_of(folder)
    compiled = compile_control(defines, build)
    for name, table in compiled.tables.items():
        # the program array is of one hook's set of programs alone
        if name in OWN_TABLES or not (name == "programs" or (pins / name).exists()):
            _make_table(name, table, into, name in enums["flat"])
    _load_control(into, pins, compiled, build, enums["flat"])
    _load_hooks(into, pins, defines, build, enums)
    # last, since programs that these take the place of count the same until then
    with _links((into, pins), compiled, enums["flat"], build.keys) as links:
        unwatched = watching.watch(into, compiled, links)
    return {
        "tables": described_tables(compiled, enums),
        "enums": enums,
        "hz": defines["HZ"],
        "hash_keys": list(build.keys),
        "filter_bits": defines["FILTER_BITS"],
        "defines": defines,
        "sources": compiler.digest(folder),
        "unwatched": unwatched,
    }


def enums_of(folder: Path) -> dict[str, dict[str, int]]:
    """The enums of the C sources in a folder."""
    return records.enums_of((folder / "types.h").read_text())


def compile_control(defines: Mapping[str, object], build: Build) -> Compiled:
    """The control plane's own programs, and every map, whatever features the others have."""
    from lvsxdp import compiler

    every = {**defines, **features.defines(features.EVERY), "HOOK_XDP": 1}
    return compiler.compile_source("control.c", every, cache=build.cache, folder=build.folder)


def described_tables(compiled: Compiled, enums: Mapping[str, Mapping[str, int]]) -> dict[str, Any]:
    """What is to be known of each map but those that only programs look at."""
    described: dict[str, Any] = {}
    for name, table in compiled.tables.items():
        if name in ("programs", *OWN_TABLES):
            continue
        described[name] = {"key": table.key, "value": table.value}
        if name in enums["flat"]:
            described[name]["flat"] = dataclasses.asdict(_shape(table))
    return described


def pinned_names(described: Mapping[str, Any]) -> frozenset[str]:
    """All that is pinned of a version of the programs."""
    hooks = {f"{hook}_{part}" for hook in HOOKS for part in ("programs", "entry")}
    if Feature.NAT in features.compiled(described["defines"]):
        hooks.add("tc_egress")
    watches = () if described.get("unwatched", watching.OLDER) else watching.TRACEPOINTS
    tables = (*described["tables"], *OWN_TABLES, backup.NAME)
    return frozenset({*tables, *CONTROL, *hooks, *watches})


def refuse_other_sources(described: Mapping[str, Any], build: Build) -> None:
    """ConflictError where the programs that run were compiled from other C sources than these."""
    from lvsxdp import compiler

    if described["sources"] != compiler.digest(build.folder or compiler.sources()):
        raise ConflictError(
            "features are compiled in from the C sources that were loaded, and those here are "
            "others: attach first takes these over (lvsxdp attach)"
        )


def load_wider(
    into: Path,
    pins: Path,
    config: Config,
    described: dict[str, Any],
    wanted: frozenset[Feature],
    build: Build,
) -> dict[str, Any]:
    """Loads both hooks' programs anew with these features; what is then to be described.

    They are pinned in `into` and use the maps in `pins`, but for what only a new feature needs.
    """
    refuse_other_sources(described, build)
    defines = {**described["defines"], **features.defines(wanted)}
    build = dataclasses.replace(build, keys=tuple(described["hash_keys"]))
    made = [FULL[f] for f in wanted - features.compiled(described["defines"]) if f in FULL]
    defines |= {each.define: each.rows(config.capacity) for each in made}
    tables = dict(described["tables"])
    for name in (name for each in made for name in each.tables):
        compiled, flat = compile_control(defines, build), name in described["enums"]["flat"]
        _make_table(name, compiled.tables[name], into, flat)
        tables[name] = described_tables(compiled, described["enums"])[name]
    _load_hooks(into, pins, defines, build, described["enums"])
    return {**described, "defines": defines, "tables": tables}


def _load_control(
    into: Path, pins: Path, compiled: Compiled, build: Build, numbers: Mapping[str, int]
) -> None:
    """Pins the programs that the control plane runs by itself."""
    with _links((into, pins), compiled, numbers, build.keys) as links:
        loaded = compiled.load_all(CONTROL, maps.ProgramType.XDP, links)
    for name, descriptor in loaded.items():
        _pin_and_close(descriptor, into / name)


def _make_table(name: str, table: Table, into: Path, flat: bool) -> None:
    """Pins a new map.  Of a flat table `table` is but a picture."""
    if not flat:
        _pin_and_close(table.create(name), into / name)
        return
    shape = _shape(table)
    if shape.row * shape.rows * shape.cpus > MOST_BYTES:
        raise DatapathError(
            f"the table {name} of {shape.rows} rows for {shape.cpus} CPUs is larger than the "
            f"{MOST_BYTES >> 20} MiB that a program may reach: lower capacity in the configuration"
        )
    _pin_and_close(maps.create_flat(name, shape), into / name)


def _shape(table: Table) -> records.Shape:
    """The shape of the flat table that `table` is a picture of."""
    cpus = power_of_two(maps.possible_cpus()) if table.type in maps.PER_CPU_TYPES else 1
    return records.Shape(table.value_size, table.capacity, cpus)


def _pin_and_close(descriptor: int, path: Path) -> None:
    try:
        maps.pin(descriptor, path)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _links(
    folders: Sequence[Path],
    compiled: Compiled,
    numbers: Mapping[str, int],
    keys: Sequence[int],
) -> Iterator[Links]:
    """The maps in the first of the folders that has them, and a new program array."""
    with contextlib.ExitStack() as stack:

        def opened(descriptor: int) -> int:
            stack.callback(os.close, descriptor)
            return descriptor

        def pinned(name: str) -> int:
            places = [folder / name for folder in folders]
            return opened(maps.open_pin(next(filter(Path.exists, places), places[-1])))

        flat = {number: pinned(name) for name, number in numbers.items()}
        shared = [name for name in compiled.tables if name not in (*numbers, "programs")]
        found = {name: pinned(name) for name in shared}
        found["programs"] = opened(compiled.tables["programs"].create("programs"))
        yield Links(found, flat, keys)


def _load_hooks(
    into: Path,
    pins: Path,
    defines: Mapping[str, object],
    build: Build,
    enums: Mapping[str, Mapping[str, int]],
) -> None:
    """Both hooks' programs, TC's in a process of its own: each takes the compiler seconds."""
    fork = multiprocessing.get_context("fork")
    ours = (os.getpid(),)
    with concurrent.futures.ProcessPoolExecutor(1, fork, end_with_parent, ours) as aside:
        tc = aside.submit(_load_hook, "tc", into, pins, defines, build, enums)
        _load_hook("xdp", into, pins, defines, build, enums)
        try:
            tc.result()
        except concurrent.futures.process.BrokenProcessPool as err:
            raise DatapathError("compiling the tc programs was killed (is memory short?)") from err


def end_with_parent(parent: int) -> None:
    """Has the kernel end this process when the one that made it is gone; now, if it is already."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGKILL)


def _load_hook(
    hook: str,
    into: Path,
    pins: Path,
    defines: Mapping[str, object],
    build: Build,
    enums: Mapping[str, Mapping[str, int]],
) -> None:
    """Loads one hook's programs over the maps in `pins`; pins entry and program array in `into`."""
    for name, descriptor in load_entries(hook, (into, pins), defines, build, enums).items():
        _pin_and_close(descriptor, into / f"{hook}_{name}")


def load_entries(
    hook: str,
    folders: Sequence[Path],
    defines: Mapping[str, object],
    build: Build,
    enums: Mapping[str, Mapping[str, int]],
) -> dict[str, int]:
    """Descriptors of a hook's entries and of its program array, over the maps in `folders`.

    The kernel empties the array when it is neither open nor pinned.
    """
    from lvsxdp import compiler

    mine = {**defines, f"HOOK_{hook.upper()}": 1}
    compiled = compiler.compile_source("lvsxdp.c", mine, cache=build.cache, folder=build.folder)
    schedulers = {
        name: number
        for name, number in enums["scheduler"].items()
        if f"scheduler_{name}" in compiled.programs
    }
    # some come with a feature
    steps = {function: name for function, name in STEPS.items() if function in compiled.programs}
    entries = [name for name in ENTRIES if name in compiled.programs]
    functions = (*entries, *steps, *(f"scheduler_{name}" for name in schedulers))
    with _links(folders, compiled, enums["flat"], build.keys) as links:
        loaded = compiled.load_all(functions, HOOKS[hook], links)
        array = Map(os.dup(links.maps["programs"]))
    places = enums["program"]
    indices = {function: places[name] for function, name in steps.items()}
    indices |= {f"scheduler_{n}": places["scheduler"] + i for n, i in schedulers.items()}
    for function, index in indices.items():
        array.update(records.number(index), records.number(loaded[function]))
    kept = {name: loaded.pop(name) for name in entries}
    for descriptor in loaded.values():
        os.close(descriptor)
    return {**kept, "programs": array.descriptor}


def remove_pins(folder: Path) -> None:
    """Removes a folder of pins, and its root after the last; the kernel frees what nobody holds."""
    if not folder.is_dir():
        return
    for pinned in folder.iterdir():
        pinned.unlink()
    folder.rmdir()
    state.remove_root(folder.parent)

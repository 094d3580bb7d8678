"""Takes a running balancer over to the programs of the C sources that are here."""

from __future__ import annotations

import dataclasses
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lvsxdp import changes, compiler, loading, records, swapping, views
from lvsxdp.book import Book
from lvsxdp.bytecode import Compiled
from lvsxdp.controller import Balancer
from lvsxdp.errors import ConflictError
from lvsxdp.loading import Build
from lvsxdp.model import Config
from lvsxdp.network import Network
from lvsxdp.state import Folders, State

# What tells one map's layout from another's, in words.
Facts = Mapping[str, str]
# Differences that a message names.
MOST_TOLD = 3
NONE = "none"


def is_due(balancer: Balancer) -> bool:
    """Whether the programs that run are of other C sources than those that are here."""
    folder = (balancer.build or Build()).folder or compiler.sources()
    return bool(balancer.state.described["sources"] != compiler.digest(folder))


def upgrade(balancer: Balancer, net: Network, wanted: Config, *, force: bool) -> None:
    """Puts the programs that are here in the place of those that run, between two packets.

    The maps stay, with all that is in them, where their layouts are the same, and `wanted` asks for
    no other capacity.  Where they are not, ConflictError says what would be lost; with `force` it
    is: all but the configuration.
    """
    begun = time.monotonic()
    build, known = balancer.build or Build(), balancer.state
    resized = list(changes.capacity_lines(known.config, wanted))
    differing = [*resized, *_differences(balancer, build)]
    if differing and not force:
        raise ConflictError(_loss(balancer, differing))
    if not resized:
        wanted = known.config

    def load(fresh: Path) -> State:
        if differing:
            return _anew(balancer, net, fresh, build, wanted)
        described = loading.load_newer(
            fresh, balancer.where.pins, known.config, known.described, build
        )
        return dataclasses.replace(known, described=described)

    swapping.exchange(balancer, net, load)
    what = "new tables, the entries were lost" if differing else "every entry is kept"
    balancer.say(f"exchanged the programs: {what} ({time.monotonic() - begun:.1f} s)")


def _anew(balancer: Balancer, net: Network, fresh: Path, build: Build, wanted: Config) -> State:
    """The state of a balancer that is loaded beside the running one, and configured."""
    known = balancer.state
    capacity = changes.capacity_of(known.config, wanted)
    wanted = changes.keep_last_weights(known.config, changes.keep_drains(known.config, wanted))
    wanted = dataclasses.replace(wanted, capacity=capacity)
    room = {"INTERFACE_CAPACITY": known.described["defines"]["INTERFACE_CAPACITY"]}
    build = dataclasses.replace(build, defines={**room, **build.defines})
    described = loading.load(fresh, wanted, build)
    beside = Folders(fresh, balancer.where.files / "beside")
    empty = State(Config(), Book(), known.attachments, described)
    shutil.rmtree(beside.files, ignore_errors=True)
    beside.files.mkdir(0o700)
    try:
        with Balancer(beside, empty) as made:
            made.apply(wanted, net, first=True, sources=known.sources_of(wanted))
            return dataclasses.replace(made.state, applied=known.applied)
    finally:
        shutil.rmtree(beside.files, ignore_errors=True)


def _loss(balancer: Balancer, differing: list[str]) -> str:
    held = {row["name"]: row["used"] for row in views.table_rows(balancer)}
    connections = sum(held[name] for name in views.CONNECTIONS)
    clients = sum(held[name] for name in views.PERSISTENCE)
    told = "; ".join(differing[:MOST_TOLD])
    if len(differing) > MOST_TOLD:
        told += f"; and {len(differing) - MOST_TOLD} more"
    return (
        f"this takes other tables than those that run ({told}): with --force they are taken, and "
        f"{connections} connections and {clients} persistence entries are lost"
    )


# --------------------------------------------------------------------------------- what differs


def _differences(balancer: Balancer, build: Build) -> list[str]:
    """What of the tables that run has another layout or meaning in the sources that are here."""
    known = balancer.state
    folder = build.folder or compiler.sources()
    defines = {**loading.defines_of(known.config, build), **known.described["defines"]}
    enums = loading.enums_of(folder)
    compiled = loading.compile_control(defines, build)
    return [
        *differing_enums(known.schema.enums, enums),
        *differing_maps(_as_they_are(balancer), _as_compiled(compiled, enums)),
    ]


def differing_enums(
    old: Mapping[str, Mapping[str, int]], new: Mapping[str, Mapping[str, int]]
) -> list[str]:
    """Numbers that stand in maps and mean something else now; what is new means nothing yet."""
    return [
        f"{name} {value} is {number} and becomes {new.get(name, {}).get(value, 'nothing')}"
        for name, values in old.items()
        for value, number in values.items()
        if value != "max" and new.get(name, {}).get(value) != number
    ]


def differing_maps(old: Mapping[str, Facts], new: Mapping[str, Facts]) -> list[str]:
    """Maps that are in both and differ, and those that are gone with what is in them."""
    found = [f"{name} is not there any more" for name in old if name not in new]
    for name in (name for name in old if name in new):
        before, after = old[name], new[name]
        found += [
            f"{name}: {fact} {before.get(fact, NONE)} becomes {after.get(fact, NONE)}"
            for fact in dict.fromkeys((*before, *after))
            if before.get(fact) != after.get(fact)
        ]
    return found


def _as_they_are(balancer: Balancer) -> dict[str, Facts]:
    found = {}
    for name, described in balancer.state.described["tables"].items():
        opened = balancer.map(name)
        found[name] = _facts(opened, opened.flat, described)
    return found


def _as_compiled(compiled: Compiled, enums: dict[str, dict[str, int]]) -> dict[str, Facts]:
    found = {}
    for name, described in loading.described_tables(compiled, enums).items():
        shape = records.Shape(**described["flat"]) if "flat" in described else None
        found[name] = _facts(compiled.tables[name], shape, described)
    return found


def _facts(table: Any, shape: records.Shape | None, described: Mapping[str, Any]) -> Facts:
    """A map's layout.  `table` is a Map or a bytecode.Table; of a flat one the shape says all."""
    kinds = ("type", "key_size", "value_size", "capacity", "flags")
    whole = dataclasses.asdict(shape) if shape else {k: getattr(table, k) for k in kinds}
    found = {name.replace("_", " "): str(number) for name, number in whole.items()}
    for part in ("key", "value"):
        for name, field in records.layout_of(described[part]).fields.items():
            found[f"{part}.{name}"] = f"{field.count} of {field.size} bytes at {field.offset}"
    return found

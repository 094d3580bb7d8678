"""Every change and every look at one namespace's balancer: attach, apply, read, detach."""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import functools
import os
import socket
import struct
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from lvsxdp import (
    backup,
    changes,
    features,
    interfaces,
    journal,
    maps,
    network,
    records,
    state,
    tables,
    tunnels,
)
from lvsxdp import sources as pool
from lvsxdp.book import ServicePlace
from lvsxdp.errors import NotFoundError
from lvsxdp.features import Feature
from lvsxdp.maps import Map
from lvsxdp.model import Config, Family, Forward, Service
from lvsxdp.network import Network
from lvsxdp.scheduling import Cursor
from lvsxdp.state import Folders, State
from lvsxdp.tables import Host
from lvsxdp.writes import (
    FULL,
    Block,
    Delete,
    Divide,
    Evict,
    Fill,
    Grace,
    Limit,
    Raise,
    Reset,
    Rows,
    Store,
    Update,
    Write,
    Zero,
)

if TYPE_CHECKING:
    from lvsxdp.loading import Build

PIN_ROOT = network.BPF_MOUNT / "lvsxdp"
FILE_ROOT = Path("/run/lvsxdp")
# A program that began before a switch has ended long before this: its whole run takes microseconds.
GRACE = 0.02
TABLES = ("connections4", "connections6", "persistence4", "persistence6")
# Slots that one run of the sweep program does: bpf/config.h.
SWEEP_STEP = 16


def lo_forwarding(family: Family) -> str:
    """The sysctl by which the kernel's FIB answers XDP."""
    return f"net/{family}/conf/lo/forwarding"


SYSCTLS = tuple(map(lo_forwarding, Family))


def unprivileged_port() -> int:
    """Where the kernel has the ports begin that anybody may use: on these FTP's data may be."""
    return int(network.sysctl("net/ipv4/ip_unprivileged_port_start"))


def here() -> Folders:
    """The folders of the network namespace that this process is in."""
    return state.folders(network.namespace_cookie(), PIN_ROOT, FILE_ROOT)


@dataclasses.dataclass(frozen=True, slots=True)
class Swept:
    """What a sweep of one table did.

    `suspect` are the buckets of persistence entries with other counts of connections than it found.
    """

    removed: int
    suspect: int
    healed: int


class Balancer:
    """The pinned maps of a running balancer, and its state on record."""

    def __init__(
        self,
        where: Folders,
        on_record: State,
        say: Callable[[str], None] = lambda _: None,
        build: Build | None = None,
    ) -> None:
        """`on_record` is what backup.read gave for `where`; `build` is for what it compiles."""
        self.where = where
        self.state = on_record
        self.say = say
        self.build = build
        self.schema = on_record.schema
        self._maps: dict[str, Map] = {}

    @classmethod
    def open(
        cls,
        where: Folders,
        say: Callable[[str], None] = lambda _: None,
        build: Build | None = None,
    ) -> Balancer:
        """The balancer of this namespace, whole, under its lock.

        NotFoundError where nothing is attached.
        """
        found = backup.read(where)
        if found is None or not where.pins.is_dir():
            raise NotFoundError(
                "there is no record of what is pinned here: an attach that was not finished, or "
                "whose record is lost (lvsxdp attach IFACE -c CONFIG, or detach --all)"
                if backup.is_pinned(where)
                else "lvsxdp is not attached here (lvsxdp attach IFACE -c CONFIG)"
            )
        if backup.is_half_kept(where):
            backup.keep(where)
        balancer = cls(where, found, say, build)
        if journal.is_unfinished(where):
            balancer._recover()
        return balancer

    def _recover(self) -> None:
        """Finishes or undoes what a command that was killed has left."""
        from lvsxdp import recovery

        try:
            with Network() as net:
                recovery.recover(self, net)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Closes the maps."""
        for opened in self._maps.values():
            opened.close()
        self._maps.clear()

    def take_over(self, wanted: State) -> None:
        """Goes over to other programs, and to the maps that are pinned by now."""
        self.close()
        self.state, self.schema = wanted, wanted.schema

    def __enter__(self) -> Balancer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def map(self, name: str) -> Map:
        """A pinned map, opened once."""
        if name not in self._maps:
            self._maps[name] = Map.open(self.where.pins / name, self.schema.flat.get(name))
        return self._maps[name]

    def program(self, name: str) -> int:
        """A descriptor of a pinned program, which the caller closes."""
        return maps.open_pin(self.where.pins / name)

    def has_program(self, name: str) -> bool:
        """Whether there is a pinned program of this name."""
        return (self.where.pins / name).exists()

    # ------------------------------------------------------------------------------ changes

    def apply(
        self,
        new: Config,
        net: Network,
        *,
        first: bool = False,
        by_hand: bool = False,
        sources: Mapping[str, str] | None = None,
    ) -> list[Write]:
        """Brings the maps to `new` and puts it on record; what was written.

        Compiles first what `new` uses and the programs were compiled without.  What is changed
        `by_hand` is told by the next apply of a file; `sources` is what the texts of the services
        are known by, where they come from one.
        """
        new = changes.keep_last_weights(self.state.config, new)
        if first or not (by_hand and changes.is_of_weights(self.state.config, new)):
            # an edit that brings nothing that the network matters to does without
            self.follow_network(net)
        names = {name: index for index, name in socket.if_nameindex()}
        host = Host(
            *(names, self._cursor, self._cursor_generation, unprivileged_port()),
            tunnels.cached(net.source),
            functools.partial(pool.in_use, self),
        )
        if self.missing(new):
            self._widen(new, net, host)
        known, book = self.state, self.state.book.copy()
        if book.removed and not changes.is_of_weights(known.config, new):
            # what nothing refers to any more is not to come back, and its ids may be wanted
            from lvsxdp import forgetting

            forgetting.look(self, book)
        plan = tables.plan(self.schema, book, known.config, new, host, first=first)
        applied = (known.applied or known.config) if by_hand else new
        wanted = dataclasses.replace(
            known,
            config=new,
            book=book,
            applied=None if applied == new else applied,
            sources=known.sources_of(new) if sources is None else sources,
        )
        journal.begin_preparing(self.where)
        self._wait_for_readers()
        try:
            for write in plan.prepare:
                self._perform(write)
            journal.begin_next(self.where, wanted, plan.effect)
        except BaseException:
            self.undo()
            journal.end_preparing(self.where)
            raise
        journal.end_preparing(self.where)
        self.finish(wanted, plan.effect, net)
        return list(plan.writes)

    def _wait_for_readers(self) -> None:
        """Waits until no program can be reading what the change before has left behind."""
        with contextlib.suppress(FileNotFoundError):
            since = time.time() - self.where.state_file.stat().st_mtime
            time.sleep(min(max(GRACE - since, 0), GRACE))

    def finish(self, wanted: State, effect: Iterable[Write], net: Network) -> None:
        """Has a change that is prepared take effect; may be done twice."""
        for write in effect:
            self._perform(write)
        self.state = wanted
        self.write_routes(net)
        journal.end_next(self.where)
        backup.keep(self.where)

    def undo(self) -> None:
        """Takes away what a change has prepared: all else nothing finds, and is written over."""
        known = {b.id for s in self.state.book.services.values() for b in s.backends.values()}
        rows = self.map("backends")
        for index in range(rows.capacity):
            word = rows.read_word(index)
            if index not in known and word % 2**32:
                rows.store_word(index, word >> 32 << 32)

    def missing(self, new: Config) -> frozenset[Feature]:
        """What `new` uses and the programs were compiled without."""
        return features.features_of(new) - self.state.features

    def _widen(self, new: Config, net: Network, host: Host) -> None:
        from lvsxdp import loading, swapping

        # older programs have no words for what is asked of them
        loading.refuse_other_sources(self.state.described, self.build or loading.Build())
        # what cannot be applied is not compiled for
        tables.plan(self.schema, self.state.book.copy(), self.state.config, new, host)
        swapping.widen(self, net, self.missing(new))

    def _perform(self, write: Write) -> None:
        if isinstance(write, Grace):
            time.sleep(GRACE)
            return
        if isinstance(write, Evict):
            self.evict(write.service)
            return
        if isinstance(write, Zero):
            from lvsxdp import counting

            counting.note(self, write.table, write.index)
            return
        if isinstance(write, Divide):
            self.divide(write)
            return
        if isinstance(write, Limit):
            self.limit(write)
            return
        target = self.map(write.table)
        if isinstance(write, Update):
            target.update(write.key, write.value)
        elif isinstance(write, Rows):
            target.update_rows(write.index, write.value)
        elif isinstance(write, Delete):
            target.delete(write.key)
        elif isinstance(write, Reset):
            target.reset(write.index, write.count)
        elif isinstance(write, Store):
            target.store_word(write.index, write.word)
        elif isinstance(write, Raise):
            target.store_word(write.index, target.read_word(write.index) | write.bits)
        elif isinstance(write, Block):
            target.write(write.start, write.value)
        elif isinstance(write, Fill):
            for index in range(write.words):
                target.store_word(index, FULL)

    def _cursor(self, place: ServicePlace) -> Cursor:
        """Where rr and wrr of a service stand now."""
        word = self.map("service_cursors").read_word(place.id)
        if word >> 48 == place.generation & 0xFFFF:
            return Cursor(word >> 32 & 0xFFFF, word & 0xFFFFFFFF)
        row = self.map("service_configs").look_up(records.number(place.row)) or b""
        layout = self.schema.values["service_configs"]
        return Cursor(layout.number(row, "cursor_position"), layout.number(row, "cursor_weight"))

    def _cursor_generation(self, service: int) -> int:
        return self.map("service_cursors").read_word(service) >> 48

    def follow_network(self, net: Network) -> None:
        """Does refresh_network, unless nothing of that has changed since it last was done."""
        noted = self.where.files / "network"
        if not noted.exists() or noted.read_text() != network.fingerprint():
            self.refresh_network(net)

    def refresh_network(self, net: Network) -> None:
        """Writes interfaces, MACs of upper devices and local addresses."""
        seen = network.fingerprint()
        links = net.links()
        modes = {attached.ifindex: attached.mode for attached in self.state.attachments}
        rows, table = interfaces.rows(self.schema, links, modes), self.map("interfaces")
        for index in interfaces.gone(table.memory()[:], table.stride, rows):
            table.reset(index, 1)
        for index, row in rows.items():
            if index < table.capacity:
                table.update(records.number(index), row)
        macs = self.schema.keys["local_macs"]
        wanted = {
            macs.encode(mac=records.mac_word(mac), ifindex=lower)
            for lower, mac in network.upper_macs(links)
        }
        self._replace_keys("local_macs", wanted)
        addresses = self.schema.keys["local_addresses"]
        self._replace_keys(
            "local_addresses",
            {addresses.encode(address=records.wire_address(a)) for a in net.addresses()},
        )
        with contextlib.suppress(FileExistsError):
            state.make_folder(self.where.files, 0o700)
        (self.where.files / "network").write_text(seen)

    def _replace_keys(self, name: str, wanted: set[bytes]) -> None:
        target = self.map(name)
        present = {key for key, _ in target.items()}
        for key in wanted - present:
            target.update(key, records.number(1))
        for key in present - wanted:
            target.delete(key)

    def write_sources(self, net: Network) -> None:
        """Has tunnels follow the address that the routes choose for each."""
        followed = list(tunnels.following(self.state.config))
        if not followed:
            return
        layout, rows = self.schema.values["tunnels"], self.map("tunnels")
        start, source = layout.fields["source"].offset, tunnels.cached(net.source)
        for service, backend in followed:
            found, place = source(backend.address), self.state.book.services[str(service.key)]
            index = place.backends[str(backend)].id
            known = rows.look_up(records.number(index)) or b""
            wanted = layout.encode(source=records.wire_address(found) if found else 0)
            if known[start : start + 16] != wanted[start : start + 16]:
                rows.write(index * layout.size + start, wanted[start : start + 16])

    def write_routes(self, net: Network) -> None:
        """Notes what the routes say of backends and the kernel's FIB does not tell XDP."""
        self.write_sources(net)
        layout = self.schema.values["backends"]
        target = self.map("backends")
        answered = {family for family in Family if network.sysctl(lo_forwarding(family)) == "1"}
        for service in self.state.config.services:
            if service.family in answered and Forward.TUNNEL not in service.forwards:
                continue
            places = self.state.book.services[str(service.key)].backends
            for backend in service.backends:
                if Family.of(backend.address) in answered:
                    continue
                route = net.route(backend.address)
                key = records.number(places[str(backend)].id)
                row = bytearray(target.look_up(key) or b"")
                before = bytes(row)
                noted = layout.encode(
                    route_ifindex=route.ifindex if route else 0,
                    route_family=route.gateway.version if route else 0,
                    route_gateway=records.wire_address(route.gateway) if route else 0,
                )
                start, end = (layout.fields[name].offset for name in ("route_ifindex", "port"))
                row[start:end] = noted[start:end]
                if bytes(row) != before:
                    target.update(key, bytes(row))

    # -------------------------------------------------------------------------------- reads

    def clock(self) -> int:
        """The kernel's jiffies now."""
        descriptor = self.program("read_clock")
        try:
            run = maps.run_program(descriptor, bytes(64))
        finally:
            os.close(descriptor)
        return int(struct.unpack_from("<Q", run.data)[0])

    def service_of(self, identity: int) -> Service | None:
        """The configured service that has this id."""
        for service in self.state.config.services:
            if self.state.book.services[str(service.key)].id == identity:
                return service
        return None

    def total(self, name: str, index: int, wanted: Collection[str] | None = None) -> dict[str, int]:
        """The counters of one entry, or those that are wanted, all CPUs together."""
        layout = self.schema.values[name]
        raw = self.map(name).look_up(records.number(index)) or b""
        parts = records.per_cpu(raw, layout.size)
        fields = wanted or [field for field in layout.fields if field != "padding"]
        return {field: sum(layout.number(part, field) for part in parts) for field in fields}

    def reasons(self) -> dict[str, int]:
        """Packets by reason, those that occurred."""
        counted = {}
        for name, number in self.schema.enums["reason"].items():
            if name not in ("ok", "max", "handed_over", "no_metadata"):
                counted[name] = self.total("reasons", number)["value"]
        return {name: count for name, count in counted.items() if count}

    def reap(self, items: Iterator[tuple[str, int, int]], *, force: bool) -> int:
        """Removes entries (table, place, generation) by the data plane's own steps; how many."""
        descriptor = self.program("reap")
        removed = 0
        numbers = self.schema.enums["table"]
        try:
            for table, place, generation in items:
                packet = struct.pack("<4I", numbers[table], place, generation, force)
                run = maps.run_program(descriptor, packet.ljust(64, b"\0"))
                removed += int(struct.unpack_from("<I", run.data, 16)[0])
        finally:
            os.close(descriptor)
        return removed

    def divide(self, write: Divide) -> None:
        """Writes a table's division, and what is borrowed under it."""
        fields, pools = self.schema.values["pools"].fields, self.map("pools")
        pools.store_word(write.table, write.own, fields["own"].offset)
        pools.store_word(write.table, write.limit, fields["limit"].offset)
        pools.store_word(write.table, self.borrowed(write.table), fields["borrowed"].offset)

    def borrowed(self, table: int) -> int:
        """What the services have of a table beyond their own; a count below zero is none."""
        own = self.map("pools").read_word(table, self.schema.values["pools"].fields["own"].offset)
        offset = self.schema.values["shares"].fields[TABLES[table]].offset
        shares = self.map("shares")
        used = (shares.read_word(i, offset) for i in self.state.book.service_generations)
        return sum(max(ctypes.c_int64(count).value - own, 0) for count in used)

    def heal(self, name: str, index: int, word: int, change: int) -> None:
        """Adds to one word of an entry of loads, shares or pools, as packets do."""
        descriptor = self.program("heal")
        number = self.schema.enums["healed"][name]
        try:
            packet = struct.pack("<4IQ", number, index, word, 0, change % 2**64).ljust(64, b"\0")
            maps.run_program(descriptor, packet)
        finally:
            os.close(descriptor)

    def limit(self, write: Limit) -> None:
        """Writes a backend's thresholds, by the data plane's own steps."""
        descriptor = self.program("limit_backend")
        packet = struct.pack("<QII", write.thresholds, write.backend, 0).ljust(64, b"\0")
        try:
            while struct.unpack_from("<I", maps.run_program(descriptor, packet).data, 12)[0]:
                pass
        finally:
            os.close(descriptor)

    def evict(self, service: int) -> int:
        """Removes every entry of a service id; how many."""
        shares, fields = self.map("shares"), self.schema.values["shares"].fields
        holding = [name for name in TABLES if shares.read_word(service, fields[name].offset)]
        return sum(self.sweep(table, evict=service + 1).removed for table in holding)

    def sweep(self, table: str, *, evict: int = 0, heal: bool = False) -> Swept:
        """Removes every expired entry of a table and counts the others anew.

        The counts go to `recounts`, `share_recounts` and `entry_recounts`, and what connections are
        about to the filter's second half; those of persistence entries are compared, and with
        `heal` put right, when their table is swept.  `evict`, a service id + 1, removes that
        service's entries instead.
        """
        descriptor, slots = self.program(f"sweep_{table}"), self.map(table).capacity
        try:
            packet = struct.pack("<4I", 0, 0, evict, heal).ljust(64, b"\0")
            run = maps.run_program(descriptor, packet, repeat=max(slots // SWEEP_STEP, 1))
        finally:
            os.close(descriptor)
        _, removed, _, _, suspect, healed = struct.unpack_from("<6I", run.data)
        return Swept(removed, suspect, healed)

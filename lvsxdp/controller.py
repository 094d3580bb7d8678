"""Every change and every look at one namespace's balancer: attach, apply, read, detach."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shutil
import struct
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from lvsxdp import changes, maps, network, records, state, tables
from lvsxdp.errors import ConflictError, DatapathError, LvsxdpError, NotFoundError
from lvsxdp.maps import Map
from lvsxdp.model import Config, Service
from lvsxdp.network import Link, Network
from lvsxdp.scheduling import Cursor
from lvsxdp.state import Attachment, Folders, State
from lvsxdp.tables import Book, Delete, Grace, Host, Reset, Store, Update, Write

PIN_ROOT = network.BPF_MOUNT / "lvsxdp"
FILE_ROOT = Path("/run/lvsxdp")
CACHE = Path("/var/cache/lvsxdp")
CLOCK_MONOTONIC_COARSE = 6
# A program that began before a switch has ended long before this: its whole run takes microseconds.
GRACE = 0.02
LEAST_INTERFACES = 1024
# A folder of pins that are not complete yet; the bpf file system takes no dots in names.
UNFINISHED = "_new"
MODES = ("native", "generic", "tc")
STEPS = ("entry", "new_connection", "connect_backend")
SYSCTLS = ("net/ipv4/conf/lo/forwarding", "net/ipv6/conf/lo/forwarding")
PRIVATE_TABLES = {"journeys", "programs"}
HOOKS = {"xdp": maps.ProgramType.XDP, "tc": maps.ProgramType.SCHED_CLS}


@dataclasses.dataclass(frozen=True, slots=True)
class Build:
    """How the programs are compiled: more -D, where headers are kept, other sources than ours."""

    defines: Mapping[str, object] = dataclasses.field(default_factory=dict)
    cache: Path = CACHE
    folder: Path | None = None


def here() -> Folders:
    """The folders of the network namespace that this process is in."""
    return state.folders(network.namespace_cookie(), PIN_ROOT, FILE_ROOT)


def jiffies_per_second() -> int:
    """The kernel's HZ: its coarse clock advances once a jiffy."""
    return round(1 / time.clock_getres(CLOCK_MONOTONIC_COARSE))


class Balancer:
    """The pinned maps of a running balancer, and its state on record."""

    def __init__(self, where: Folders, on_record: State) -> None:
        """`on_record` is what state.read gave for `where`."""
        self.where = where
        self.state = on_record
        self.schema = on_record.schema
        self._maps: dict[str, Map] = {}

    @classmethod
    def open(cls, where: Folders) -> Balancer:
        """The balancer of this namespace; NotFoundError where nothing is attached."""
        found = state.read(where)
        if found is None or not where.pins.is_dir():
            raise NotFoundError("lvsxdp is not attached here (lvsxdp attach IFACE -c CONFIG)")
        return cls(where, found)

    def close(self) -> None:
        """Closes the maps."""
        for opened in self._maps.values():
            opened.close()
        self._maps.clear()

    def __enter__(self) -> Balancer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def map(self, name: str) -> Map:
        """A pinned map, opened once."""
        if name not in self._maps:
            self._maps[name] = Map.open(self.where.pins / name)
        return self._maps[name]

    def program(self, name: str) -> int:
        """A descriptor of a pinned program, which the caller closes."""
        return maps.open_pin(self.where.pins / name)

    # ------------------------------------------------------------------------------ changes

    def apply(self, new: Config, net: Network, *, first: bool = False) -> list[Write]:
        """Brings the maps to `new` and puts it on record; what was written."""
        self.refresh_network(net)
        host = Host(
            ifindexes={link.name: link.index for link in net.links()}, cursors=self._cursors()
        )
        writes = tables.plan(
            self.schema, self.state.book, self.state.config, new, host, first=first
        )
        for write in writes:
            self._perform(write)
        self.state.config = new
        self.write_routes(net)
        state.write(self.where, self.state)
        return writes

    def _perform(self, write: Write) -> None:
        if isinstance(write, Grace):
            time.sleep(GRACE)
            return
        target = self.map(write.table)
        if isinstance(write, Update):
            target.update(write.key, write.value)
        elif isinstance(write, Delete):
            target.delete(write.key)
        elif isinstance(write, Reset):
            target.update(write.key, bytes(target.stride * target.cpus))
        elif isinstance(write, Store):
            target.store_word(write.index, write.word)

    def _cursors(self) -> dict[int, Cursor]:
        """Where rr and wrr stand now, by service id."""
        found = {}
        for place in self.state.book.services.values():
            word = self.map("service_cursors").read_word(place.id)
            if word >> 48 == place.generation & 0xFFFF:
                found[place.id] = Cursor(word >> 32 & 0xFFFF, word & 0xFFFFFFFF)
            else:
                row = self.map("service_configs").look_up(records.number(place.row)) or b""
                layout = self.schema.values["service_configs"]
                found[place.id] = Cursor(
                    layout.number(row, "cursor_position"), layout.number(row, "cursor_weight")
                )
        return found

    def refresh_network(self, net: Network) -> None:
        """Writes interfaces, MACs of upper devices and local addresses."""
        links = net.links()
        attached = {a.ifindex: a for a in self.state.attachments}
        flag = self.schema.enums["interface_flag"]
        target, layout = self.map("interfaces"), self.schema.values["interfaces"]
        for link in links:
            if link.index >= target.capacity:
                continue
            flags = flag["transmit"] if network.can_transmit(link) else 0
            at = attached.get(link.index)
            if at is not None and at.mode != "tc":
                flags |= flag["xdp"] | (flag["generic"] if at.mode == "generic" else 0)
            value = layout.encode(mac=records.mac_word(link.mac), flags=flags)
            target.update(records.number(link.index), value)
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

    def _replace_keys(self, name: str, wanted: set[bytes]) -> None:
        target = self.map(name)
        present = {key for key, _ in target.items()}
        for key in wanted - present:
            target.update(key, records.number(1))
        for key in present - wanted:
            target.delete(key)

    def write_routes(self, net: Network) -> None:
        """Notes each backend's route in its row, for where the kernel's FIB will not say."""
        layout = self.schema.values["backends"]
        target = self.map("backends")
        for service in self.state.config.services:
            places = self.state.book.services[str(service.key)].backends
            for backend in service.backends:
                route = net.route(backend.address)
                key = records.number(places[str(backend)].id)
                row = bytearray(target.look_up(key) or b"")
                before = bytes(row)
                noted = layout.encode(
                    route_ifindex=route.ifindex if route else 0,
                    route_family=route.gateway.version if route else 0,
                    route_gateway=records.wire_address(route.gateway) if route else 0,
                )
                start = layout.fields["route_ifindex"].offset
                row[start:] = noted[start:]
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

    def total(self, name: str, index: int) -> dict[str, int]:
        """The counters of one entry, all CPUs together."""
        layout = self.schema.values[name]
        raw = self.map(name).look_up(records.number(index)) or b""
        parts = records.per_cpu(raw, layout.size)
        return {field: sum(layout.number(part, field) for part in parts) for field in layout.fields}

    def reasons(self) -> dict[str, int]:
        """Packets by reason, those that occurred."""
        counted = {}
        for name, number in self.schema.enums["reason"].items():
            if name not in ("ok", "max", "handed_over", "no_metadata"):
                counted[name] = self.total("reasons", number)["value"]
        return {name: count for name, count in counted.items() if count}

    def reap(self, items: Iterator[tuple[str, bytes]], *, force: bool) -> int:
        """Removes entries (table, key) by the data plane's own steps; how many there were."""
        descriptor = self.program("reap")
        removed = 0
        numbers = self.schema.enums["table"]
        try:
            for table, key in items:
                packet = key.ljust(40, b"\0") + struct.pack("<HHI", numbers[table], force, 0)
                run = maps.run_program(descriptor, packet.ljust(64, b"\0"))
                removed += int(struct.unpack_from("<I", run.data, 44)[0])
        finally:
            os.close(descriptor)
        return removed


# --------------------------------------------------------------------------------- attaching


def attach(
    where: Folders,
    net: Network,
    interfaces: tuple[str, ...],
    config: Config | None,
    mode: str,
    *,
    build: Build | None = None,
    force: bool = False,
    say: Callable[[str], None] = lambda _: None,
) -> None:
    """Attaches interfaces, loading everything first where nothing runs yet.

    Raises an LvsxdpError that names the step; then the machine is as it was.
    """
    links = [net.link(name) for name in interfaces]
    running = state.read(where) is not None and where.pins.is_dir()
    for link in links:
        _refuse_occupied(where, net, link, running, force)
    if running:
        with Balancer.open(where) as balancer:
            if config is not None:
                balancer.apply(changes.follow(balancer.state.config, config), net)
            _attach_links(balancer, net, links, mode, force, say)
        return
    wanted = config or Config()
    with _loaded(where, wanted, _with_room(build or Build(), net)) as balancer:
        balancer.apply(wanted, net, first=True)
        _attach_links(balancer, net, links, mode, force, say)


def _with_room(build: Build, net: Network) -> Build:
    """The build with a table for twice the interface indices that are in use."""
    highest = max(link.index for link in net.links())
    room = max(LEAST_INTERFACES, 1 << (2 * highest).bit_length())
    return dataclasses.replace(build, defines={"INTERFACE_CAPACITY": room, **build.defines})


def _refuse_occupied(where: Folders, net: Network, link: Link, running: bool, force: bool) -> None:
    """Refuses an interface that is attached already or that another program occupies."""
    known = state.read(where) if running else None
    if known and any(a.ifindex == link.index for a in known.attachments):
        raise ConflictError(f"{link.name} is attached already (lvsxdp status)")
    if force:
        return
    if link.program:
        name = maps.program_name(link.program)
        raise ConflictError(
            f"{link.name} has an XDP program already: {name}, id {link.program} "
            "(--force replaces it)"
        )
    other = net.tc_program(link)
    if other:
        raise ConflictError(
            f"{link.name} has a tc filter at priority {network.TC_PRIORITY} already: "
            f"{other[1]}, id {other[0]} (--force replaces it)"
        )


@contextlib.contextmanager
def _loaded(where: Folders, config: Config, build: Build) -> Iterator[Balancer]:
    """A balancer with everything loaded and pinned; unloaded again if the caller fails."""
    _require_bpf_file_system(where.pins.parent.parent)
    temporary = where.pins.with_name(f"{where.pins.name}{UNFINISHED}")
    _remove_pins(temporary)
    _remove_pins(where.pins)
    temporary.mkdir(parents=True)
    try:
        described = _load(temporary, config, build)
        temporary.rename(where.pins)
        # capacity belongs to the load, all else is still to be applied
        balancer = Balancer(where, State(Config(), Book(), [], described))
        with balancer:
            yield balancer
    except BaseException:
        _remove_pins(temporary)
        _remove_pins(where.pins)
        shutil.rmtree(where.files, ignore_errors=True)
        raise


def _require_bpf_file_system(mount: Path) -> None:
    if not network.is_bpf_file_system(mount):
        raise DatapathError(
            f"{mount} is no bpf file system: mount -t bpf bpf {mount} "
            "(in a namespace use lvsxdp --netns NAME)"
        )


def _defines(config: Config, build: Build) -> dict[str, object]:
    capacity = config.capacity
    return {
        "HZ": jiffies_per_second(),
        "CONNECTION_CAPACITY": capacity.connections,
        "PERSISTENCE_CAPACITY": capacity.persistence,
        "SERVICE_CAPACITY": capacity.services,
        "BACKEND_CAPACITY": capacity.backends,
        **build.defines,
    }


def _load(pins: Path, config: Config, build: Build) -> dict[str, Any]:
    """Compiles and loads everything and pins it in `pins`; what the compiler said of the maps."""
    from lvsxdp import compiler

    defines = _defines(config, build)
    header = ((build.folder or compiler.sources()) / "types.h").read_text()
    enums = records.enums_of(header)
    origin: dict[str, Any] = {"cache": build.cache, "folder": build.folder}
    fresh = compiler.Module("lvsxdp.c", {**defines, "HOOK_XDP": 1}, **origin)
    described = fresh.tables()
    for name in described:
        if name not in PRIVATE_TABLES:
            maps.pin(fresh.table_descriptor(name), pins / name)
    _load_hook(fresh, "xdp", pins, enums)
    bound = {**origin, "pins": pins}
    tc = compiler.Module("lvsxdp.c", {**defines, "HOOK_TC": 1}, **bound)
    _load_hook(tc, "tc", pins, enums)
    control = compiler.Module("control.c", {**defines, "HOOK_XDP": 1}, **bound)
    for name, loaded in compiler.load_all(
        control, ("read_clock", "reap"), maps.ProgramType.XDP
    ).items():
        maps.pin(loaded, pins / name)
        os.close(loaded)
    for module in (fresh, tc, control):
        module.close()
    public = {name: table for name, table in described.items() if name not in PRIVATE_TABLES}
    return {"tables": public, "enums": enums, "hz": defines["HZ"]}


def _load_hook(module: Any, hook: str, pins: Path, enums: Mapping[str, Mapping[str, int]]) -> None:
    """Loads one hook's programs, fills its program array, and pins both."""
    from lvsxdp import compiler

    schedulers = enums["scheduler"]
    functions = (*STEPS, *(f"scheduler_{name}" for name in schedulers))
    loaded = compiler.load_all(module, functions, HOOKS[hook])
    places = enums["program"]
    array = Map(os.dup(module.table_descriptor("programs")))
    indices = {"new_connection": places["new"], "connect_backend": places["connect"]}
    indices |= {f"scheduler_{n}": places["scheduler"] + i for n, i in schedulers.items()}
    for function, index in indices.items():
        array.update(records.number(index), records.number(loaded[function]))
    maps.pin(array.descriptor, pins / f"{hook}_programs")
    maps.pin(loaded["entry"], pins / f"{hook}_entry")
    array.close()
    for descriptor in loaded.values():
        os.close(descriptor)


def _remove_pins(folder: Path) -> None:
    """Removes a folder of pins; what nothing else holds is freed by the kernel."""
    if not folder.is_dir():
        return
    for pinned in folder.iterdir():
        pinned.unlink()
    folder.rmdir()


def _attach_links(
    balancer: Balancer,
    net: Network,
    links: list[Link],
    mode: str,
    force: bool,
    say: Callable[[str], None],
) -> None:
    """Attaches each link, or none of them."""
    before = list(balancer.state.attachments)
    done: list[Attachment] = []
    try:
        for link in links:
            done.append(_attach_link(balancer, net, link, mode, force, say))
            balancer.state.attachments = [*before, *done]
            balancer.refresh_network(net)
        state.write(balancer.where, balancer.state)
    except BaseException:
        for attached in done:
            _detach_link(balancer, net, attached)
        balancer.state.attachments = before
        balancer.refresh_network(net)
        raise


def _attach_link(
    balancer: Balancer,
    net: Network,
    link: Link,
    mode: str,
    force: bool,
    say: Callable[[str], None],
) -> Attachment:
    if link.index >= balancer.map("interfaces").capacity:
        raise DatapathError(
            f"{link.name} has index {link.index}, beyond the table made when lvsxdp was loaded: "
            "detach --all, then attach again"
        )
    if force and net.tc_program(link):
        net.detach_tc(link)
    tc = balancer.program("tc_entry")
    try:
        made = net.attach_tc(link, tc)
    finally:
        os.close(tc)
    try:
        used, program = _attach_xdp(balancer, net, link, mode, force, say)
    except LvsxdpError:
        net.detach_tc(link)
        if made:
            net.remove_clsact(link)
        raise
    return Attachment(link.name, link.index, used, program, made)


def _attach_xdp(
    balancer: Balancer,
    net: Network,
    link: Link,
    mode: str,
    force: bool,
    say: Callable[[str], None],
) -> tuple[str, int]:
    """The mode that was taken and the id of the program that serves in it."""
    entry = balancer.program("tc_entry" if mode == "tc" else "xdp_entry")
    try:
        program = maps.program_info(entry)[0]
        for choice in ("native", "generic") if mode == "auto" else (mode,):
            if choice == "tc":
                return choice, program
            try:
                net.attach_xdp(link, entry, choice, force=force)
                return choice, program
            except DatapathError as err:
                if mode != "auto":
                    raise
                say(f"{link.name}: {err}")
    finally:
        os.close(entry)
    say(f"{link.name}: XDP is not possible here, tc serves")
    return _attach_xdp(balancer, net, link, "tc", force, say)


# --------------------------------------------------------------------------------- detaching


def _detach_link(balancer: Balancer, net: Network, attached: Attachment) -> None:
    """Takes off what was attached, where it is still there and still ours."""
    link = next((found for found in net.links() if found.index == attached.ifindex), None)
    if link is None:
        return
    if attached.mode != "tc" and link.program == attached.program:
        entry = balancer.program("xdp_entry")
        try:
            net.detach_xdp(link, attached.mode, entry)
        finally:
            os.close(entry)
    tc = balancer.program("tc_entry")
    ours = maps.program_info(tc)[0]
    os.close(tc)
    if (net.tc_program(link) or (0, ""))[0] == ours:
        net.detach_tc(link)
    if attached.made_clsact:
        net.remove_clsact(link)


def detach(where: Folders, net: Network, interfaces: tuple[str, ...]) -> None:
    """Detaches these interfaces; tables and configuration stay."""
    with Balancer.open(where) as balancer:
        known = {a.interface: a for a in balancer.state.attachments}
        for name in interfaces:
            if name not in known:
                raise NotFoundError(f"{name} is not attached ({', '.join(known) or 'none is'})")
        for name in interfaces:
            _detach_link(balancer, net, known.pop(name))
        balancer.state.attachments = list(known.values())
        balancer.refresh_network(net)
        state.write(where, balancer.state)


def detach_all(where: Folders, net: Network) -> None:
    """Detaches everything and removes tables, pins and files."""
    with Balancer.open(where) as balancer:
        for attached in balancer.state.attachments:
            _detach_link(balancer, net, attached)
    _remove_pins(where.pins)
    shutil.rmtree(where.files, ignore_errors=True)


def stale(pins: Path = PIN_ROOT, files: Path = FILE_ROOT) -> list[str]:
    """Cookies of namespaces that are gone but whose pins or files are left."""
    names = {path.name for root in (pins, files) if root.is_dir() for path in root.iterdir()}
    known = {name.removesuffix(UNFINISHED) for name in names}
    return sorted(filter(str.isdigit, known - _live_cookies())) if known else []


def _live_cookies() -> set[str]:
    """Cookies of every namespace that has a name or a process."""
    found: dict[tuple[int, int], Path] = {}
    for path in [*Path("/run/netns").glob("*"), *Path("/proc").glob("[0-9]*/ns/net")]:
        with contextlib.suppress(OSError):
            seen = path.stat()
            found[seen.st_dev, seen.st_ino] = path
    alive = {str(network.namespace_cookie())}
    for path in found.values():
        with contextlib.suppress(LvsxdpError):
            alive.add(str(network.cookie_of(path)))
    return alive


def remove_stale(cookies: list[str], pins: Path = PIN_ROOT, files: Path = FILE_ROOT) -> None:
    """Removes what belonged to namespaces that are gone."""
    for cookie in cookies:
        _remove_pins(pins / cookie)
        _remove_pins(pins / f"{cookie}{UNFINISHED}")
        shutil.rmtree(files / cookie, ignore_errors=True)

"""Attaches and detaches interfaces, and removes what is left of namespaces that are gone."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

from lvsxdp import changes, journal, loading, maps, network, state
from lvsxdp.book import Book
from lvsxdp.controller import FILE_ROOT, PIN_ROOT, Balancer
from lvsxdp.errors import ConflictError, DatapathError, LvsxdpError, NotFoundError
from lvsxdp.loading import UNFINISHED, Build
from lvsxdp.model import Config
from lvsxdp.network import Link, Network
from lvsxdp.state import Attachment, Folders, State

LEAST_INTERFACES = 1024


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
    sources: Mapping[str, str] | None = None,
) -> None:
    """Attaches interfaces, loading everything first where nothing runs yet.

    Raises an LvsxdpError that names the step; then the machine is as it was.
    """
    links = [net.link(name) for name in interfaces]
    running = state.read(where) is not None and where.pins.is_dir()
    if running:
        # first of all, finishes what an earlier command has begun
        Balancer.open(where, say).close()
        links = [net.link(link.name) for link in links]
    for link in links:
        _refuse_occupied(where, net, link, running, force)
    if running:
        with Balancer.open(where, say, build) as balancer:
            if config is not None:
                wanted = changes.follow(balancer.state.config, config)
                kept = changes.kept_sources(sources or {}, config, wanted)
                balancer.apply(wanted, net, sources=kept)
            _attach_links(balancer, net, links, mode, force, say)
        return
    wanted = config or Config()
    wanted = dataclasses.replace(wanted, capacity=loading.sized(wanted.capacity, loading.memory()))
    with _loaded(where, wanted, _with_room(build or Build(), net)) as balancer:
        balancer.apply(wanted, net, first=True, sources=sources)
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
    loading.remove_pins(temporary)
    loading.remove_pins(where.pins)
    journal.clear(where)
    state.make_folder(temporary)
    try:
        described = loading.load(temporary, config, build)
        temporary.rename(where.pins)
        # capacity belongs to the load, all else is still to be applied
        balancer = Balancer(where, State(Config(), Book(), [], described))
        with balancer:
            yield balancer
    except BaseException:
        loading.remove_pins(temporary)
        loading.remove_pins(where.pins)
        where.state_file.unlink(missing_ok=True)
        raise


def _require_bpf_file_system(mount: Path) -> None:
    if not network.is_bpf_file_system(mount):
        raise DatapathError(
            f"{mount} is no bpf file system: mount -t bpf bpf {mount} "
            "(in a namespace use lvsxdp --netns NAME)"
        )


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
    with journal.links(balancer.where, {link.index: net.has_clsact(link) for link in links}):
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
            journal.forget_links(balancer.where)
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
    if link is not None:
        clean(balancer, net, link, clsact=attached.made_clsact)


def is_whole(balancer: Balancer, net: Network, link: Link, attached: Attachment) -> bool:
    """Whether a link has all the programs that are on record of it."""
    has_tc = (net.tc_program(link) or (0, ""))[0] == _program_id(balancer, "tc")
    return has_tc and attached.mode in ("tc", link.mode) and _has_xdp(balancer, link, attached)


def _has_xdp(balancer: Balancer, link: Link, attached: Attachment) -> bool:
    return attached.mode == "tc" or link.program == _program_id(balancer, "xdp")


def clean(balancer: Balancer, net: Network, link: Link, *, clsact: bool) -> None:
    """Takes what is ours off a link, whatever is on record; the `clsact` qdisc, too, if it is."""
    if link.program == _program_id(balancer, "xdp"):
        entry = balancer.program("xdp_entry")
        try:
            net.detach_xdp(link, link.mode, entry)
        finally:
            os.close(entry)
    if (net.tc_program(link) or (0, ""))[0] == _program_id(balancer, "tc"):
        net.detach_tc(link)
    if clsact:
        net.remove_clsact(link)


def _program_id(balancer: Balancer, hook: str) -> int:
    entry = balancer.program(f"{hook}_entry")
    try:
        return maps.program_info(entry)[0]
    finally:
        os.close(entry)


def detach(where: Folders, net: Network, interfaces: tuple[str, ...]) -> None:
    """Detaches these interfaces; tables and configuration stay."""
    with Balancer.open(where) as balancer:
        known = {a.interface: a for a in balancer.state.attachments}
        for name in interfaces:
            if name not in known:
                raise NotFoundError(f"{name} is not attached ({', '.join(known) or 'none is'})")
        with journal.links(where, _own_clsact(known[name] for name in interfaces)):
            for name in interfaces:
                _detach_link(balancer, net, known.pop(name))
            balancer.state.attachments = list(known.values())
            balancer.refresh_network(net)
            state.write(where, balancer.state)


def _own_clsact(attachments: Iterable[Attachment]) -> dict[int, bool]:
    """Whether each interface had its clsact qdisc before us."""
    return {attached.ifindex: not attached.made_clsact for attached in attachments}


def detach_all(where: Folders, net: Network) -> None:
    """Detaches everything and removes tables, pins and state; the lock's folder goes with the lock.

    Whoever removed that folder here would remove it under the next command's lock at the end.
    """
    with (
        Balancer.open(where) as balancer,
        journal.links(where, _own_clsact(balancer.state.attachments)),
    ):
        for attached in balancer.state.attachments:
            _detach_link(balancer, net, attached)
        # without it nothing is attached, and the next attach removes what is left of the pins
        where.state_file.unlink(missing_ok=True)
    loading.remove_pins(where.pins)
    loading.remove_pins(where.pins.with_name(f"{where.pins.name}{UNFINISHED}"))


def stale(pins: Path = PIN_ROOT, files: Path = FILE_ROOT) -> list[str]:
    """Cookies of namespaces that are gone but whose pins or files are left."""
    known = {name.removesuffix(UNFINISHED) for root in (pins, files) for name in _names_in(root)}
    return sorted(filter(str.isdigit, known - _live_cookies())) if known else []


def _names_in(root: Path) -> list[str]:
    """What a root holds; nothing where there is none, or none any more."""
    with contextlib.suppress(FileNotFoundError):
        return os.listdir(root)
    return []


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
        loading.remove_pins(pins / cookie)
        loading.remove_pins(pins / f"{cookie}{UNFINISHED}")
        shutil.rmtree(files / cookie, ignore_errors=True)

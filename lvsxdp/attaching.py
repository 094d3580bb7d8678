"""Attaches and detaches interfaces, and removes what is left of namespaces that are gone."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

from lvsxdp import (
    applying,
    backup,
    changes,
    journal,
    linking,
    listening,
    loading,
    network,
    state,
)
from lvsxdp.applying import Guard, How, Say
from lvsxdp.book import Book
from lvsxdp.controller import FILE_ROOT, PIN_ROOT, Balancer
from lvsxdp.errors import ConflictError, DatapathError, LvsxdpError, NotFoundError
from lvsxdp.loading import UNFINISHED, Build
from lvsxdp.model import Config
from lvsxdp.network import Link, Network
from lvsxdp.state import Folders, State

LEAST_INTERFACES = 1024


def is_running(where: Folders) -> bool:
    """Whether a balancer runs in this namespace."""
    return backup.read(where) is not None and where.pins.is_dir()


def attach(
    where: Folders,
    net: Network,
    interfaces: tuple[str, ...],
    config: Config | None,
    mode: str,
    *,
    build: Build | None = None,
    force: bool = False,
    sources: Mapping[str, str] | None = None,
    say: Say = lambda _: None,
    tell: Say = lambda _: None,
    guard: Guard = contextlib.nullcontext,
) -> None:
    """Attaches interfaces, loading everything first where nothing runs yet.

    Where a balancer runs already, newer programs take the place of its own, and it is brought to
    the configuration as by applying.bring, which see for `say`, `tell` and `guard`.  Raises an
    LvsxdpError that names the step; then the machine is as it was.
    """
    links = [net.link(name) for name in interfaces]
    modes = dict.fromkeys(interfaces, mode)
    if is_running(where):
        how = How(force=force, covering=force, by_hand=config is None, modes=modes)
        with Balancer.open(where, say, build) as balancer:
            _attach_more(balancer, net, links, config, how, sources, say, tell, guard)
        return
    for link in links if not force else ():
        linking.refuse_occupied(net, link)
    wanted = dataclasses.replace(config or Config(), interfaces=interfaces)
    listening.refuse_covered(Config(), wanted, net.addresses, force=force)
    wanted = dataclasses.replace(wanted, capacity=loading.sized(wanted.capacity, loading.memory()))
    with guard(), _loaded(where, wanted, _with_room(build or Build(), net)) as balancer:
        balancer.apply(wanted, net, first=True, sources=sources)
        linking.attach_links(balancer, net, links, modes, force, say)


def _attach_more(
    balancer: Balancer,
    net: Network,
    links: list[Link],
    config: Config | None,
    how: How,
    sources: Mapping[str, str] | None,
    say: Say,
    tell: Say,
    guard: Guard,
) -> None:
    """Attaches interfaces to what runs already."""
    from lvsxdp import upgrading

    whole = {
        a.ifindex
        for a in balancer.state.attachments
        for link in links
        if linking.is_whole(balancer, net, link, a)
    }
    newer = upgrading.is_due(balancer)
    for link in links:
        if link.index in whole and config is None and not newer:
            raise ConflictError(f"{link.name} is attached already (lvsxdp status)")
    known = balancer.state.config
    # before newer programs take over, as nothing may change where it is refused
    listening.refuse_covered(known, config or known, net.addresses, force=how.force)
    if newer or (config and changes.capacity_of(known, config) != known.capacity):
        upgrading.upgrade(balancer, net, config or known, force=how.force)
    names = tuple(link.name for link in links)
    wanted = dataclasses.replace(config or balancer.state.config, interfaces=names)
    applying.bring(balancer, net, wanted, how, sources=sources, say=say, tell=tell, guard=guard)


def _with_room(build: Build, net: Network) -> Build:
    """The build with a table for twice the interface indices that are in use."""
    highest = max(link.index for link in net.links())
    room = max(LEAST_INTERFACES, 1 << (2 * highest).bit_length())
    return dataclasses.replace(build, defines={"INTERFACE_CAPACITY": room, **build.defines})


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
    if not os.access(mount, os.W_OK):
        raise DatapathError(f"{mount} is read-only: mount -o remount,rw {mount}")


# --------------------------------------------------------------------------------- detaching


def detach(where: Folders, net: Network, interfaces: tuple[str, ...]) -> None:
    """Detaches these interfaces; tables and configuration stay."""
    with Balancer.open(where) as balancer:
        applying.follow_names(balancer, net.links())
        known = {a.interface: a for a in balancer.state.attachments}
        for name in interfaces:
            if name not in known:
                raise NotFoundError(f"{name} is not attached ({', '.join(known) or 'none is'})")
        linking.detach_links(balancer, net, [known[name] for name in dict.fromkeys(interfaces)])


def detach_all(where: Folders, net: Network) -> None:
    """Detaches everything and removes tables, pins and state; the lock's folder goes with the lock.

    Whoever removed that folder here would remove it under the next command's lock at the end.
    """
    try:
        with (
            Balancer.open(where) as balancer,
            journal.links(where, linking.own_clsact(balancer.state.attachments)),
        ):
            for attached in balancer.state.attachments:
                linking.detach_link(balancer, net, attached)
            # without it nothing is attached, and the next attach removes what is left of the pins
            where.state_file.unlink(missing_ok=True)
    except (NotFoundError, ConflictError, DatapathError):
        if not backup.is_pinned(where):
            raise
        _strip(where, net)
    loading.remove_pins(where.pins)
    loading.remove_pins(where.pins.with_name(f"{where.pins.name}{UNFINISHED}"))


def _strip(where: Folders, net: Network) -> None:
    """Takes off all interfaces what is pinned, where the record of them is lost or damaged."""
    nothing = {"tables": {}, "enums": {}, "hz": 0, "hash_keys": [], "filter_bits": 0}
    with Balancer(where, State(Config(), Book(), [], nothing)) as balancer:
        for link in net.links():
            linking.clean(balancer, net, link, clsact=False)
    journal.clear(where)
    where.state_file.unlink(missing_ok=True)


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

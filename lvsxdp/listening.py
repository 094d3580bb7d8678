"""Refuses what would take clients away from a process of this host: who listens, and where."""

from __future__ import annotations

import contextlib
import ipaddress
import os
import struct
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from lvsxdp import changes, covering
from lvsxdp.covering import Covered, Listener
from lvsxdp.errors import ConflictError
from lvsxdp.model import Address, Config, Protocol

PROC = Path("/proc")
# A socket that waits for clients, by the kernel's states of sockets: TCP_LISTEN; TCP_CLOSE, which
# UDP's have while they are bound and not connected.
WAITING = {Protocol.TCP: "0A", Protocol.UDP: "07"}


def refuse_covered(
    old: Config, new: Config, addresses: Callable[[], Sequence[Address]], *, force: bool
) -> None:
    """Raises ConflictError where `new` takes packets of a listener that `old` does not take.

    `addresses` gives those of this host; it is asked where `new` brings rules or services.
    """
    if force or not changes.brings_rules_or_services(old, new):
        return
    found = covering.newly_covered(old, new, listeners(), addresses())
    if found:
        raise ConflictError(explain(found, owners({c.listener.inode for c in found})))


def explain(found: Sequence[Covered], names: dict[int, str]) -> str:
    """A line for each listener that is covered, by its process, and the remedy."""
    lines = []
    for covered in found:
        one = covered.listener
        at, where = (_point(a, one.port) for a in (covered.address, one.address))
        who = names.get(one.inode, "the kernel, or a process that cannot be seen,")
        lines.append(f"{covered.place}: takes {one.protocol} {at}, where {who} listens ({where})")
    one = found[0].listener
    remedy = f"mark: 0, protocol: {one.protocol}, address: {found[0].address}, port: {one.port}"
    return "\n".join(
        [
            *lines,
            f"put {{{remedy}}} first among the mark rules, let it listen elsewhere, or --force",
        ]
    )


def _point(address: Address, port: int) -> str:
    return f"[{address}]:{port}" if address.version == 6 else f"{address}:{port}"


def listeners(proc: Path = PROC) -> list[Listener]:
    """The listeners of this network namespace: TCP sockets that listen, UDP sockets that are bound.

    Sockets that share address and port are one.
    """
    found: dict[tuple[Protocol, Address, int], Listener] = {}
    for protocol, state in WAITING.items():
        for name in (protocol, f"{protocol}6"):
            # without IPv6 there is no such file
            with contextlib.suppress(FileNotFoundError):
                for one in _listeners_in(proc / "thread-self/net" / name, protocol, state):
                    found.setdefault((one.protocol, one.address, one.port), one)
    return list(found.values())


def _listeners_in(path: Path, protocol: Protocol, state: str) -> Iterator[Listener]:
    with path.open() as lines:
        next(lines)
        for line in lines:
            words = line.split()
            if words[3] == state:
                host, _, port = words[1].partition(":")
                yield Listener(protocol, _address(host), int(port, 16), int(words[9]))


def _address(digits: str) -> Address:
    """An address as the kernel prints it: words of 32 bits, each a number of this machine's."""
    words = [int(digits[i : i + 8], 16) for i in range(0, len(digits), 8)]
    address = ipaddress.ip_address(struct.pack(f"={len(words)}I", *words))
    return getattr(address, "ipv4_mapped", None) or address


def owners(inodes: Iterable[int], proc: Path = PROC) -> dict[int, str]:
    """For each socket the first process that has it: `sshd (process 812)`; those that are seen."""
    wanted = {f"socket:[{inode}]": inode for inode in inodes if inode}
    found: dict[int, str] = {}
    for process in sorted(int(name) for name in os.listdir(proc) if name.isdigit()):
        # it may end meanwhile
        with contextlib.suppress(OSError):
            for inode in _sockets_of(proc / str(process), wanted):
                name = (proc / str(process) / "comm").read_text().strip()
                found.setdefault(inode, f"{name} (process {process})")
    return found


def _sockets_of(process: Path, wanted: dict[str, int]) -> Iterator[int]:
    for descriptor in os.listdir(process / "fd"):
        with contextlib.suppress(OSError):
            target = os.readlink(process / "fd" / descriptor)
            if target in wanted:
                yield wanted[target]

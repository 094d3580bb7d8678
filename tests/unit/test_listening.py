"""Who listens on this host, and what is said where their packets would be taken."""

from __future__ import annotations

import ipaddress
import os
import socket
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from lvsxdp import config, listening
from lvsxdp.covering import Covered, Listener
from lvsxdp.errors import ConflictError
from lvsxdp.model import Address, Config, Protocol

HEAD = (
    "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt uid timeout inode"
)
NUMBERS = "00000000:00000000 00:00000000 00000000 0 0"
TABLES = {
    "tcp": [
        f"0: 00000000:0016 00000000:0000 0A {NUMBERS} 41 1 0 100",
        f"1: 00000000:0016 00000000:0000 0A {NUMBERS} 42 1 0 100",
        f"2: 010200C0:0050 020200C0:9C40 01 {NUMBERS} 43 1 0 100",
    ],
    "tcp6": [
        f"0: 00000000000000000000000000000000:0016 {'0' * 32}:0000 0A {NUMBERS} 44 1 0 100",
        f"1: 0000000000000000FFFF0000010200C0:0051 {'0' * 32}:0000 0A {NUMBERS} 45 1 0 100",
    ],
    "udp": [f"9: 010200C0:0035 00000000:0000 07 {NUMBERS} 46 2 0 0"],
}
ETH = [ipaddress.ip_address("192.0.2.1")]


@pytest.fixture
def proc(tmp_path: Path) -> Path:
    """A /proc of a host without UDP over IPv6."""
    folder = tmp_path / "thread-self/net"
    folder.mkdir(parents=True)
    for name, lines in TABLES.items():
        (folder / name).write_text("\n".join([HEAD, *lines, ""]))
    return tmp_path


def test_listening_tcp_and_bound_udp_sockets_are_found_once_each(proc: Path) -> None:
    any4, any6, vip = (ipaddress.ip_address(a) for a in ("0.0.0.0", "::", "192.0.2.1"))
    assert listening.listeners(proc) == [
        Listener(Protocol.TCP, any4, 22, 41),
        Listener(Protocol.TCP, any6, 22, 44),
        Listener(Protocol.TCP, vip, 81, 45),
        Listener(Protocol.UDP, vip, 53, 46),
    ]


@pytest.mark.parametrize(
    ("family", "kind", "protocol"),
    [
        (socket.AF_INET, socket.SOCK_STREAM, Protocol.TCP),
        (socket.AF_INET6, socket.SOCK_STREAM, Protocol.TCP),
        (socket.AF_INET, socket.SOCK_DGRAM, Protocol.UDP),
    ],
)
def test_a_socket_of_this_process_is_found_with_its_owner(
    family: socket.AddressFamily, kind: socket.SocketKind, protocol: Protocol
) -> None:
    address = "127.0.0.1" if family == socket.AF_INET else "::1"
    with socket.socket(family, kind) as mine:
        mine.bind((address, 0))
        if kind == socket.SOCK_STREAM:
            mine.listen()
        inode, port = os.fstat(mine.fileno()).st_ino, mine.getsockname()[1]
        assert Listener(protocol, ipaddress.ip_address(address), port, inode) in (
            listening.listeners()
        )
        name = Path("/proc/self/comm").read_text().strip()
        assert listening.owners({inode}) == {inode: f"{name} (process {os.getpid()})"}
    assert listening.owners({inode}) == {}


def refused(text: str, before: Config, *, force: bool = False) -> str:
    """The message of the refusal for this process's own TCP port, with `PORT` for its number."""
    with socket.socket() as mine:
        mine.bind(("0.0.0.0", 0))
        mine.listen()
        port = str(mine.getsockname()[1])
        new, _ = config.load(text.replace("PORT", port))
        try:
            listening.refuse_covered(before, new, lambda: ETH, force=force)
        except ConflictError as err:
            return str(err).replace(port, "PORT")
        return ""


RULE = """
marks: [{mark: 1, address: 192.0.2.1, port: PORT}]
services: [{mark: 1, backends: [{address: 10.0.0.1}]}]
"""


def test_a_refusal_names_rule_socket_process_and_remedies() -> None:
    name = Path("/proc/self/comm").read_text().strip()
    assert refused(RULE, Config()) == (
        f"marks[0]: takes tcp 192.0.2.1:PORT, where {name} (process {os.getpid()}) listens "
        "(0.0.0.0:PORT)\n"
        "put {mark: 0, protocol: tcp, address: 192.0.2.1, port: PORT} first among the mark rules, "
        "let it listen elsewhere, or --force"
    )
    assert refused(RULE, Config(), force=True) == ""


def test_a_socket_that_no_process_shows_is_the_kernels() -> None:
    covered = Covered(Listener(Protocol.UDP, ETH[0], 51820, 0), ETH[0], "service vpn")
    assert listening.explain([covered], {}).startswith(
        "service vpn: takes udp 192.0.2.1:51820, where the kernel, or a process that cannot be "
        "seen, listens (192.0.2.1:51820)\n"
    )


def test_an_edit_that_brings_no_rule_or_service_looks_at_no_socket() -> None:
    before, _ = config.load(RULE.replace("PORT", "22"))
    after, _ = config.load(RULE.replace("PORT", "22").replace("10.0.0.1", "10.0.0.2"))

    def addresses() -> Sequence[Address]:
        raise AssertionError("the addresses were asked for")

    listening.refuse_covered(before, after, addresses, force=False)
    more, _ = config.load(RULE.replace("PORT", "23"))
    with pytest.raises(AssertionError):
        listening.refuse_covered(before, more, addresses, force=False)


def test_addresses_are_read_in_this_machines_byte_order() -> None:
    assert sys.byteorder == "little"
    assert str(listening._address("B80D0120000000000000000001000000")) == "2001:db8::1"

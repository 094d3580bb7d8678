"""A namespace with the compiled programs attached, where any file's addresses are at home."""

from __future__ import annotations

import contextlib
import ipaddress
import os
import random
import shutil
import socket
import subprocess
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from scapy.layers.inet import ICMP, TCP
from scapy.layers.inet6 import ICMPv6DestUnreach, ICMPv6EchoReply
from scapy.layers.l2 import Ether

from lvsxdp import attaching, config, controller, loading, maps, network
from lvsxdp.controller import Balancer
from lvsxdp.loading import Build
from lvsxdp.network import Network
from tests.datapath.harness import ROUTER_MAC, Datapath, inside, ip, remove_namespace

TEXT = "capacity: {connections: 4096, persistence: 4096}\nfeatures: all\n"
# Every interface's own addresses; what a file names is routed beside them.
LINKS = {"lb0": ("198.18.0.1/24", "fd00:18::1/64"), "lb1": ("198.18.1.1/24", "fd00:19::1/64")}
ROUTER = ("198.18.0.2", "fd00:18::2")
PATIENCE = 3.0
# mov r0, 2 (XDP_PASS); exit
PASS = bytes.fromhex("b7000000020000009500000000000000")
OUTGOING = 4  # an AF_PACKET socket's word for what it sees leave


@contextlib.contextmanager
def staged(name: str, cache: Path) -> Iterator[Stage]:
    """The programs compiled, loaded and attached in a namespace of this name, where it goes on."""
    network.leave_private_mounts()
    _build(name)
    keys = tuple(random.Random(16).getrandbits(64) for _ in range(loading.HASH_KEYS))
    with inside(name):
        where = controller.here()
        try:
            with Network() as net:
                for sysctl in controller.SYSCTLS:
                    network.set_sysctl(sysctl, "1")
                network.set_sysctl("net/ipv4/icmp_ratelimit", "0")
                build = Build({"TEST_CLOCK": 1}, cache=cache, keys=keys)
                loaded = config.load(TEXT)[0]
                attaching.attach(where, net, tuple(LINKS), loaded, "native", build=build)
                _receive(net)
                with Balancer.open(where) as balancer:
                    yield Stage(Datapath(balancer, net), name)
                attaching.detach_all(where, net)
        finally:
            loading.remove_pins(where.pins)
            shutil.rmtree(where.files, ignore_errors=True)
            remove_namespace(name)


def _build(name: str) -> None:
    """A client's side lb0, a servers' side lb1, and a router to all clients."""
    remove_namespace(name)
    subprocess.run(["ip", "netns", "add", name], check=True)
    ip("link", "set", "lo", "up", namespace=name)
    for link, addresses in LINKS.items():
        ip("link", "add", link, "type", "veth", "peer", "name", f"{link}p", namespace=name)
        ip("link", "set", f"{link}p", "addrgenmode", "none", namespace=name)
        for end in (link, f"{link}p"):
            ip("link", "set", end, "up", namespace=name)
        for address in addresses:
            extra = ["nodad"] if ":" in address else []
            ip("addr", "add", address, "dev", link, *extra, namespace=name)
    for router in ROUTER:
        ip("neigh", "add", router, "lladdr", ROUTER_MAC, "dev", "lb0", "nud", "permanent",
           namespace=name)  # fmt: skip
        family = "-6" if ":" in router else "-4"
        ip(family, "route", "add", "default", "via", router, "dev", "lb0", namespace=name)


def _receive(net: Network) -> None:
    """Has the client's end of the veth take what XDP sends: it needs a program for that."""
    program = maps.load_program("client", PASS, maps.ProgramType.XDP)
    net.attach_xdp(net.link("lb0p"), program, "native")
    os.close(program)


class Stage:
    """The running programs, and the addresses that are at home around them."""

    def __init__(self, datapath: Datapath, name: str) -> None:
        self.datapath = datapath
        self.name = name
        self.macs: dict[str, str] = {}
        self._virtual: set[str] = set()

    # --------------------------------------------------------------------------- addresses

    def settle(self, virtual: Iterable[str], servers: Iterable[str]) -> None:
        """Makes virtual addresses this host's, and gives servers a MAC behind lb1."""
        lines = []
        for address in sorted(set(virtual) - self._virtual):
            self._virtual.add(address)
            lines.append(f"route replace local {address} dev lo")
        for address in sorted(set(servers) - {*self.macs.values()}):
            mac = f"02:01:{len(self.macs) >> 24 & 255:02x}:{len(self.macs) >> 16 & 255:02x}"
            mac += f":{len(self.macs) >> 8 & 255:02x}:{len(self.macs) & 255:02x}"
            self.macs[mac] = address
            lines.append(f"route replace {address} dev lb1")
            lines.append(f"neigh replace {address} lladdr {mac} dev lb1 nud permanent")
        for family in ("-4", "-6"):
            wanted = [line for line in lines if (":" in _address(line)) == (family == "-6")]
            if wanted:
                command = ["ip", "-n", self.name, family, "-batch", "-"]
                subprocess.run(
                    command, input="\n".join(wanted), check=True, text=True, capture_output=True
                )

    # ------------------------------------------------------------------------------- wire

    def answer(self, packet: Any, client: str) -> str:
        """What comes back to a client on the wire for an IP packet: an outcome's name."""
        kind = socket.htons(3)
        with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, kind) as wire:
            wire.bind(("lb0p", 3))
            wire.send(bytes(self.datapath.to_host(packet)))
            until = time.monotonic() + PATIENCE
            while (left := until - time.monotonic()) > 0:
                wire.settimeout(left)
                with contextlib.suppress(TimeoutError):
                    frame, (_, _, direction, *_) = wire.recvfrom(65536)
                    name = _answer(frame, client) if direction != OUTGOING else None
                    if name:
                        return name
        return "nothing"


def _address(line: str) -> str:
    """The address that a line of `ip` is about."""
    words = line.split()
    return words[3] if words[2] == "local" else words[2]


def _answer(frame: bytes, client: str) -> str | None:
    """The outcome that a frame to the client tells it, None where it is none."""
    packet = Ether(frame).payload
    if str(getattr(packet, "dst", "")) != str(ipaddress.ip_address(client)):
        return None
    if TCP in packet and packet[TCP].flags.R:
        return "reset"
    if ICMP in packet and (packet[ICMP].type, packet[ICMP].code) == (3, 3):
        return "unreachable"
    if ICMPv6DestUnreach in packet and packet[ICMPv6DestUnreach].code == 4:
        return "unreachable"
    if (ICMP in packet and packet[ICMP].type == 0) or ICMPv6EchoReply in packet:
        return "echo"
    return f"something else ({packet.summary()})"


def unreachable(frame: bytes) -> bool:
    """The frame is an ICMP port unreachable."""
    return _answer(frame, str(Ether(frame).payload.dst)) == "unreachable"


def namespace() -> str:
    """A name that no other process's stage has."""
    return f"lvxvec{os.getpid()}"

"""A twin's network: a namespace between clients and backends, which are cables' far ends."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import socket
import subprocess
import time
from collections.abc import Iterator

from lvsxdp import maps, network
from lvsxdp.network import Network
from tests.twin import frames

VIRTUALS = ("192.0.2.10/32", "192.0.2.11/32", "2001:db8::10/128", "2001:db8::11/128")
BACKENDS = {f"10.0.0.{n}": f"02:00:00:00:01:{n:02x}" for n in range(11, 41)}
BACKENDS |= {f"2001:db8:0:2::{n:x}": f"02:00:00:00:06:{n:02x}" for n in range(11, 41)}
BY_MAC = {bytes.fromhex(mac.replace(":", "")): address for address, mac in BACKENDS.items()}
FRONT_MAC, BACK_MAC = "02:00:00:00:00:01", "02:00:00:00:00:02"
OUTSIDE = "outside"
ROUTERS = ("172.31.0.254", "2001:db8:0:1::fe")
ETH_P_ALL, PACKET_IGNORE_OUTGOING, SOL_PACKET = 3, 23, 263
# Both paths run to their end inside the call that sends; this is for what is put off.
SETTLED = 0.01

# mov r0, 2 (XDP_PASS); exit
PASS_ALL = bytes.fromhex("b7000000020000009500000000000000")

SYSCTLS = {
    "net/ipv4/conf/all/rp_filter": "0",
    "net/ipv4/conf/default/rp_filter": "0",
    # an answer that a limit swallows would be a difference
    "net/ipv4/icmp_ratelimit": "0",
    "net/ipv4/icmp_msgs_per_sec": "1000000",
    "net/ipv4/icmp_msgs_burst": "1000000",
    "net/ipv6/icmp/ratelimit": "0",
    # drawn from what differs
    "net/ipv6/auto_flowlabels": "0",
}


def _commands(name: str) -> Iterator[str]:
    """What `ip` is told: the same for both twins, but for the names."""
    yield f"netns add {name}"
    for end, mac in (("front", FRONT_MAC), ("back", BACK_MAC)):
        far = f"{name}-{end}"
        yield f"link add {far} type veth peer name {end} address {mac} netns {name}"
        yield f"link set {far} addrgenmode none up"


def _inner_commands() -> Iterator[str]:
    for device in ("lo", "front", "back"):
        yield f"link set {device} addrgenmode none up"
    yield "addr add 172.31.0.1/24 dev front"
    yield "addr add 2001:db8:0:1::1/64 dev front nodad"
    yield "addr add 10.0.0.1/24 dev back"
    yield "addr add 2001:db8:0:2::1/64 dev back nodad"
    for virtual in VIRTUALS:
        yield f"addr add {virtual} dev lo"
    for router in ROUTERS:
        yield f"neigh add {router} lladdr {frames.ROUTER_MAC.hex(':')} dev front nud permanent"
        yield f"route add default via {router}"
    for address, mac in BACKENDS.items():
        yield f"neigh add {address} lladdr {mac} dev back nud permanent"


def _ip(commands: Iterator[str], *options: str) -> None:
    batch = "".join(f"{line}\n" for line in commands)
    command = ["ip", *options, "-batch", "-"]
    subprocess.run(command, input=batch, text=True, check=True)


@dataclasses.dataclass(frozen=True)
class Wire:
    """The far ends of a twin's two cables."""

    clients: socket.socket
    backends: socket.socket

    def send(self, frame: bytes) -> list[str]:
        """Sends a client's frame; what came out at both ends, described."""
        self._drain()
        self.clients.send(frame)
        time.sleep(SETTLED)
        return self._drain()

    def _drain(self) -> list[str]:
        caught = [data for end in (self.clients, self.backends) for data in _received(end)]
        return sorted(frames.described(d, BY_MAC) for d in caught if frames.is_answer(d))


def _received(end: socket.socket) -> Iterator[bytes]:
    with contextlib.suppress(BlockingIOError):
        while True:
            yield end.recv(2048)


def pass_all(device: str) -> None:
    """Has a far end take what XDP sends back: where it has no program, that waits for the next.

    So veth devices are: what is sent wakes only a peer that has one.
    """
    descriptor = maps.load_program("pass_all", PASS_ALL, maps.ProgramType.XDP)
    with Network() as net:
        net.attach_xdp(net.link(device), descriptor, "native")
    os.close(descriptor)


def _far_end(device: str) -> socket.socket:
    """A socket on a device of this process's namespace that gets what others send to it."""
    end = socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_NONBLOCK)
    end.setsockopt(SOL_PACKET, PACKET_IGNORE_OUTGOING, 1)
    end.bind((device, ETH_P_ALL))
    return end


@contextlib.contextmanager
def outside() -> Iterator[None]:
    """This process in a namespace of its own, where the far ends of all cables are."""
    subprocess.run(["ip", "netns", "add", OUTSIDE], check=True)
    network.enter_namespace(OUTSIDE)
    yield
    subprocess.run(["ip", "netns", "del", OUTSIDE], check=True)


@contextlib.contextmanager
def inside(name: str) -> Iterator[None]:
    """This process in another network namespace, and then outside again."""
    network.enter_namespace(name)
    try:
        yield
    finally:
        network.enter_namespace(OUTSIDE)


@contextlib.contextmanager
def wired(name: str) -> Iterator[Wire]:
    """A twin's namespace of this name and its cables; gone at the end."""
    _ip(_commands(name))
    _ip(_inner_commands(), "-n", name)
    ends = [f"{name}-{end}" for end in ("front", "back")]
    for end in ends:
        # what is redirected into a veth device is lost unless its far end polls
        subprocess.run(["ethtool", "-K", end, "gro", "on"], check=True)
    with inside(name):
        for sysctl, value in SYSCTLS.items():
            network.set_sysctl(sysctl, value)
    with contextlib.ExitStack() as stack:
        # the kernel takes the namespace's devices away later on, when their names may be wanted
        gone = (*(f"link del {end}" for end in ends), f"netns del {name}")
        stack.callback(_ip, iter(gone))
        yield Wire(*(stack.enter_context(_far_end(end)) for end in ends))

"""Live frames: a generator, a balancer's namespace between two veth pairs, and counting ends."""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import ipaddress
import os
import struct
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NoReturn

from bench import packet
from lvsxdp import bytecode, compiler, libbpf, network, records
from lvsxdp.network import Network

LIVE_FRAMES = 1 << 1
BATCH = 64
MANY = 2**31 - 1
NANOSECONDS = 10**9
PROGRAMS = ("generate", "pace", "sink", "drain")
BACKENDS = ("10.0.0.11", "10.0.0.12")
VIPS = ("192.0.2.10", "192.0.2.11")
WRONG = len(BACKENDS)
# How long frames may be on their way after the last was generated.
PATIENCE = 2.0


def ip(namespace: str, *arguments: str) -> None:
    """Runs `ip` inside a namespace."""
    subprocess.run(["ip", "-n", namespace, *arguments], check=True)


def inside(namespace: str, *arguments: str, text: str = "") -> None:
    """Runs a command inside a namespace."""
    argv = ["ip", "netns", "exec", namespace, *arguments]
    subprocess.run(argv, check=True, input=text, text=True, stdout=subprocess.DEVNULL)


@contextlib.contextmanager
def namespace(name: str) -> Iterator[str]:
    """A network namespace that is removed at the end."""
    subprocess.run(["ip", "netns", "add", name], check=True)
    try:
        ip(name, "link", "set", "lo", "up")
        yield name
    finally:
        subprocess.run(["ip", "netns", "del", name], check=False)


@dataclasses.dataclass(frozen=True)
class Balancer:
    """A namespace with a client's side lb0 and a backends' side lb1, and its two outer ends."""

    namespace: str
    mac: str
    generator: int  # the index of lb0's other end


@dataclasses.dataclass(frozen=True)
class Flows:
    """What is sent: from how many flows, to which address, with which flags."""

    source: str
    flows: int
    flags: int
    virtual: str = VIPS[0]
    clients: bool = False
    spread: bool = True


class Ends:
    """The namespace of the outer ends: generators send from there, sinks count there."""

    def __init__(self, name: str, cache: Path) -> None:
        """Loads generators, sink and drain."""
        self.namespace, self.counter = name, 0
        compiled = compiler.compile_source("live.c", {}, cache=cache, folder=packet.HERE)
        self.programs, tables = bytecode.load_alone(compiled, PROGRAMS)
        self.cases, self.expected = tables["cases"], tables["expected"]
        self.counts, self.paces = tables["arrived"], tables["paces"]

    def expect(self, *addresses: str) -> None:
        """From now on each backend's frames have to have its address."""
        for place, address in enumerate(addresses):
            self.expected.update(records.number(place), ipaddress.ip_address(address).packed)

    def arrived(self) -> list[list[int]]:
        """Frames by backend (and those for none), each by CPU."""
        rows = [self.counts.look_up(records.number(n)) or b"" for n in range(WRONG + 1)]
        return [[int.from_bytes(p, "little") for p in records.per_cpu(row, 8)] for row in rows]

    def aim(self, balancer: Balancer, flows: Flows, place: int = 0) -> bytes:
        """Writes a case, which says what a generator sends; the frame to start it with."""
        case = packet.Case(
            "", "", flows.virtual, flows.source, flows.flows, flows.flags, 0, None, 0, 0
        )
        frame = packet.frame(case, balancer.mac, flows.flags)
        header = struct.pack(
            "<QIIIIII",
            self.counter,
            flows.flows - 1,
            flows.spread,
            flows.clients,
            balancer.generator,
            *_sums(frame),
        )
        self.cases.update(records.number(place), header + frame)
        return frame

    def send(self, balancer: Balancer, flows: Flows, packets: int) -> None:
        """Generates so many frames on this CPU and puts them into the balancer's lb0."""
        frame = self.aim(balancer, flows)
        network.enter_namespace(self.namespace)
        run_live(self.programs["generate"], frame, packets)
        self.counter += packets

    def pace(self, balancer: Balancer, kinds: Sequence[Flows], rate: int) -> NoReturn:
        """Sends so many frames a second, evenly, until a signal ends this process.

        `kinds` are the cases of pace in live.c. Where a CPU is taken away, what became due
        meanwhile is sent when it is back.
        """
        frames = [self.aim(balancer, flows, place) for place, flows in enumerate(kinds)]
        self.paces.update(records.number(0), struct.pack("<QQQ", NANOSECONDS // rate, 0, 0))
        network.enter_namespace(self.namespace)
        while True:
            run_live(self.programs["pace"], frames[0], MANY)

    def paced(self) -> tuple[int, float]:
        """What pace has sent, and for how many seconds it has been sending."""
        _, began, sent = struct.unpack("<QQQ", self.paces.look_up(records.number(0)) or bytes(24))
        return sent, time.monotonic() - began / NANOSECONDS

    def pump(self, balancer: Balancer, flows: Flows, packets: int) -> tuple[float, list[list[int]]]:
        """Sends frames and waits for the last: seconds, and what arrived, by backend and CPU."""
        before, started = self.arrived(), time.perf_counter()
        self.send(balancer, flows, packets)
        ended = time.perf_counter()
        while (found := _difference(self.arrived(), before)) and _total(found) < packets:
            if time.perf_counter() - ended > PATIENCE:
                return ended - started, found
            time.sleep(0)
        return time.perf_counter() - started, found


def _difference(after: list[list[int]], before: list[list[int]]) -> list[list[int]]:
    pairs = zip(after, before, strict=True)
    return [[a - b for a, b in zip(now, then, strict=True)] for now, then in pairs]


def _total(counts: list[list[int]]) -> int:
    return sum(map(sum, counts))


def _sums(frame: bytes) -> tuple[int, int]:
    """The checksums' parts that no flow changes, in the machine's byte order."""
    header, segment = frame[14:34], frame[34:]
    pseudo = header[16:20] + bytes([0, header[9]]) + struct.pack("!H", len(segment))
    return _sum(header[:12] + header[16:]), _sum(pseudo + segment[2:])


def _sum(part: bytes) -> int:
    """The sum of 16-bit words; checksums among them have to be zero."""
    return sum(struct.unpack(f"<{len(part) // 2}H", part))


def run_live(program: int, frame: bytes, packets: int) -> None:
    """Runs a program on frames that then really go where it sends them."""
    given = ctypes.create_string_buffer(frame, len(frame))
    options = libbpf.RunOptions(size=ctypes.sizeof(libbpf.RunOptions), repeat=packets)
    options.data_in, options.data_size_in = ctypes.addressof(given), len(frame)
    options.flags, options.batch_size = LIVE_FRAMES, BATCH
    result = libbpf.library().bpf_prog_test_run_opts(program, ctypes.byref(options))
    if result:
        raise libbpf.failure("generating live frames failed", result)


@contextlib.contextmanager
def ends(cache: Path) -> Iterator[Ends]:
    """The outer ends of this process's balancers."""
    with namespace(f"lvxlive-{os.getpid()}") as name:
        yield Ends(name, cache)


@contextlib.contextmanager
def balancer(outer: Ends, number: int) -> Iterator[Balancer]:
    """A namespace for a balancer, with routes and neighbours, and a sink behind it."""
    near, far = f"g{number}", f"s{number}"
    with namespace(f"{outer.namespace}-{number}") as name:
        for inner, end in (("lb0", near), ("lb1", far)):
            ip(name, "link", "add", inner, "type", "veth", "peer", "name", end)
            # nobody sends anything of his own
            for device in (inner, end):
                ip(name, "link", "set", device, "addrgenmode", "none")
            inside(name, "ethtool", "-K", inner, "gro", "on")
            ip(name, "link", "set", end, "netns", outer.namespace)
            ip(outer.namespace, "link", "set", end, "up")
            ip(name, "link", "set", inner, "up")
        ip(name, "addr", "add", "198.51.100.1/24", "dev", "lb0")
        ip(name, "addr", "add", "10.0.0.1/24", "dev", "lb1")
        ip(name, "neigh", "add", "198.51.100.254", "lladdr", "02:00:00:00:00:fe", "dev", "lb0")
        ip(name, "route", "add", "default", "via", "198.51.100.254")
        for place, backend in enumerate(BACKENDS):
            mac = f"02:00:00:00:01:{0x0B + place:02x}"
            ip(name, "neigh", "add", backend, "lladdr", mac, "dev", "lb1", "nud", "permanent")
        yield _attached(outer, name, near, far)


def _attached(outer: Ends, name: str, near: str, far: str) -> Balancer:
    network.enter_namespace(outer.namespace)
    with Network() as net:
        net.attach_xdp(net.link(far), outer.programs["sink"], "native")
        generator = net.link(near).index
    network.enter_namespace(name)
    with Network() as net:
        return Balancer(name, net.link("lb0").mac, generator)

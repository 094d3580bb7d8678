"""Builds the laboratory of `layout.py`, runs programs in it, and takes it down whatever happens."""

import contextlib
import functools
import json
import os
import re
import signal
import subprocess
import tempfile
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType, TracebackType
from typing import Literal, Self, get_args

from lab import layout, record
from lab.errors import LabError

PYTHON = "/usr/bin/python3"
HERE = Path(__file__).resolve().parent
Forwarding = Literal["off", "lo", "on"]

# Set before any device exists, so that each device starts with the values of "default".
EVERYWHERE = [
    "net.ipv4.ip_forward=0",
    "net.ipv6.conf.all.forwarding=0",
    "net.ipv4.conf.all.rp_filter=0",
    "net.ipv4.conf.default.rp_filter=0",
    "net.ipv4.conf.all.send_redirects=0",
    "net.ipv4.conf.default.send_redirects=0",
    "net.ipv4.conf.all.accept_redirects=0",
    "net.ipv4.conf.default.accept_redirects=0",
    "net.ipv6.conf.all.accept_redirects=0",
    "net.ipv6.conf.default.accept_redirects=0",
    "net.ipv6.conf.all.accept_dad=0",
    "net.ipv6.conf.default.accept_dad=0",
    "net.ipv6.conf.default.dad_transmits=0",
    "net.ipv6.conf.default.accept_ra=0",
    "net.ipv6.conf.default.router_solicitations=0",
]
FORWARD_ALL = ["net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1"]
FORWARD_LO = ["net.ipv4.conf.lo.forwarding=1", "net.ipv6.conf.lo.forwarding=1"]
FORWARDING = {"off": [], "lo": FORWARD_LO, "on": FORWARD_ALL}
HOLD_VIP_QUIETLY = [
    f"net.ipv4.conf.{dev}.{key}"
    for dev in ("all", "default", "lo")
    for key in ("arp_ignore=1", "arp_announce=2")
]
NO_IPV6 = ["net.ipv6.conf.all.disable_ipv6=1", "net.ipv6.conf.default.disable_ipv6=1"]


@dataclass(frozen=True)
class Counters:
    """What a device has received and sent."""

    rx_packets: int
    rx_bytes: int
    rx_dropped: int
    tx_packets: int
    tx_bytes: int
    tx_dropped: int


@dataclass(frozen=True)
class Spawned:
    """A program in the background: its process, and the file that holds all it printed."""

    popen: subprocess.Popen[bytes]
    log: Path

    def output(self) -> str:
        """Return what it has printed so far."""
        return self.log.read_text(errors="replace")

    def stop(self, how: int = signal.SIGTERM, timeout: float = 5.0) -> int:
        """Signal it, wait for its end and return its exit code; LabError if it does not end."""
        self.popen.send_signal(how)
        try:
            return self.popen.wait(timeout)
        except subprocess.TimeoutExpired as err:
            raise LabError(f"{self.popen.args!r} does not end on signal {how}") from err


class Lab:
    """A standing network for as long as the `with` block lasts.

    `offload`: whether senders leave checksums and segmentation to their device. Off, every frame
    on every wire is complete and at most 1514 bytes long, as native XDP needs it. On, balancers
    see partial checksums and frames of up to 64 KB, as TC and generic XDP meet them.
    `forwarding` of the balancers: "off", "lo" (what FIB look-ups with index 1 need) or "on".
    SIGTERM and SIGHUP end the block as Ctrl-C does: with KeyboardInterrupt.
    """

    def __init__(
        self,
        prefix: str = "lvx",
        *,
        offload: bool = False,
        second_balancer: bool = False,
        forwarding: Forwarding = "off",
    ) -> None:
        if not re.fullmatch(r"[a-z][a-z0-9-]{0,31}", prefix):
            raise LabError(f'"{prefix}" is no lab name: a letter, then letters, digits or "-"')
        if forwarding not in get_args(Forwarding):
            raise LabError(f'forwarding "{forwarding}" is none of {get_args(Forwarding)}')
        self.prefix = prefix
        self.offload = offload
        self.forwarding = forwarding
        self.roles = layout.roles(second_balancer=second_balancer)
        self.directory = Path()
        self._record = record.Record(prefix)
        self._children: list[subprocess.Popen[bytes]] = []
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Self:
        """Build the network over what an earlier, dead run may have left of this name."""
        if os.geteuid() != 0:
            raise LabError("the lab makes network namespaces: run it as root")
        with contextlib.ExitStack() as stack:
            stack.enter_context(record.locked(self.prefix))
            if record.load(self.prefix).is_standing:
                raise LabError(
                    f'lab "{self.prefix}" stands: take it down (scripts/topology down), '
                    "or choose another prefix"
                )
            stack.enter_context(_signals_as_interrupts())
            record.take_down(self.prefix)
            stack.callback(self._close)
            self._build()
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Remove processes, namespaces and files."""
        self._stack.close()

    def leave_standing(self, options: dict[str, str | bool]) -> None:
        """Keep all of it beyond the `with` block, until `record.take_down`."""
        self._record = replace(self._record, is_standing=True, options=options)
        self._record.save()

    def netns(self, ns: str) -> str:
        """Return the full name of a namespace, such as `lvx-lb`."""
        if ns not in self.roles:
            raise LabError(f'no namespace "{ns}" in this lab ({", ".join(self.roles)})')
        return record.netns(self.prefix, ns)

    def run(
        self, ns: str, argv: Sequence[str], *, timeout: float = 30.0, check: bool = False
    ) -> subprocess.CompletedProcess[str]:
        """Return the finished command and its text; LabError after `timeout` seconds.

        With `check`, an exit code other than 0 is a LabError as well.
        """
        return _finish([*self._inside(ns), *argv], timeout=timeout, check=check)

    def spawn(self, ns: str, argv: Sequence[str]) -> Spawned:
        """Start a command in the background; it ends with the lab at the latest."""
        name = f"{ns}-{Path(argv[0]).name}-{len(self._children)}.log"
        log = self.directory / name
        with log.open("wb") as out:
            popen = subprocess.Popen(
                [*self._inside(ns), *argv],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self._children.append(popen)
        self._record = self._record.with_process(popen.pid)
        self._record.save()
        return Spawned(popen, log)

    def counters(self, ns: str, dev: str) -> Counters:
        """Return the packet counters of a device."""
        shown = self._ip(ns, "-j", "-s", "link", "show", "dev", dev).stdout
        stats = json.loads(shown)[0]["stats64"]
        rx, tx = stats["rx"], stats["tx"]
        return Counters(
            rx["packets"], rx["bytes"], rx["dropped"], tx["packets"], tx["bytes"], tx["dropped"]
        )

    def neighbour(self, ns: str, address: str) -> str:
        """Return the MAC that a namespace has learnt for an address; "" if it has none."""
        found = json.loads(self._ip(ns, "-j", "neigh", "show", "to", address).stdout)
        return next((str(entry["lladdr"]) for entry in found if "lladdr" in entry), "")

    def add_vip(self, ns: str, address: str) -> None:
        """Give a balancer (on `lb0`) or a backend (on `lo`) a service's address.

        The router gets its on-link route once and keeps it, since a VIP may move.
        """
        prefix = layout.host_prefix(address)
        self._ip(ns, "address", "replace", prefix, "dev", layout.vip_device(ns), "nodad")
        self._ip("rt", "route", "replace", prefix, "dev", "front")

    def remove_vip(self, ns: str, address: str) -> None:
        """Take a service's address from a balancer or a backend."""
        prefix = layout.host_prefix(address)
        self._ip(ns, "address", "del", prefix, "dev", layout.vip_device(ns))

    def announce(self, ns: str, address: str) -> None:
        """Tell the router that a VIP is now here: gratuitous ARP, or an advertisement."""
        script = str(HERE / "announce.py")
        self.run(ns, [PYTHON, script, layout.vip_device(ns), address], check=True)

    def _inside(self, ns: str) -> list[str]:
        return ["ip", "netns", "exec", self.netns(ns)]

    def _ip(self, ns: str, *words: str) -> subprocess.CompletedProcess[str]:
        return _finish(["ip", "-n", self.netns(ns), *words])

    def _build(self) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix=f"{self.prefix}-lab-"))
        self._record = replace(self._record, directory=str(self.directory))
        self._record.save()
        # Servers drop their rights, then still read their files.
        self.directory.chmod(0o755)
        for ns in self.roles:
            _finish(["ip", "netns", "add", self.netns(ns)])
            self._set_sysctls(ns)
        self._lay_cables()
        self._set_offloads()
        self._add_addresses()
        self._wait_for_links()
        self._hold_vips()

    def _set_sysctls(self, ns: str) -> None:
        settings = list(EVERYWHERE)
        if ns == "rt":
            settings += FORWARD_ALL
        elif ns == "sw":
            settings += NO_IPV6
        elif ns in layout.BALANCERS:
            settings += FORWARDING[self.forwarding]
        elif ns in layout.BACKENDS:
            settings += HOLD_VIP_QUIETLY
        self.run(ns, ["sysctl", "-q", "-w", *settings], check=True)

    def _lay_cables(self) -> None:
        switch = [
            f"link add {name} up type bridge stp_state 0 mcast_snooping 0"
            for name in ("front", "back")
        ]
        self._batch("sw", switch)
        for cable in layout.cables(self.roles):
            self._batch(cable.end.ns, [self._veth(cable)])
        ports = [c for c in layout.cables(self.roles) if not c.other]
        self._batch("sw", [f"link set {c.port} master {c.segment}" for c in ports])

    def _veth(self, cable: layout.Cable) -> str:
        end, other = cable.end, cable.other
        near = f"link add {end.dev} address {end.mac} type veth"
        if other:
            far = f"peer name {other.dev} address {other.mac} netns {self.netns(other.ns)}"
        else:
            far = f"peer name {cable.port} netns {self.netns('sw')}"
        return f"{near} {far}"

    def _set_offloads(self) -> None:
        """Make the switch's ports take what XDP sends, and the ends send what XDP can take."""
        ports = [c.port for c in layout.cables(self.roles) if not c.other]
        # XDP_TX and XDP_REDIRECT into a veth reach a peer that has a program or GRO, no other.
        self._ethtool("sw", ports, "gro on")
        if self.offload:
            return
        self._ethtool("sw", ports, "tx off tso off gso off")
        for ns in self.roles:
            devs = [end.dev for end in layout.ends(self.roles) if end.ns == ns]
            self._ethtool(ns, devs, "tx off tso off gso off")

    def _ethtool(self, ns: str, devs: list[str], features: str) -> None:
        if devs:
            script = " && ".join(f"ethtool -K {dev} {features}" for dev in devs)
            self.run(ns, ["sh", "-c", script], check=True)

    def _add_addresses(self) -> None:
        for ns in self.roles:
            lines = ["link set lo up"]
            for end in (end for end in layout.ends(self.roles) if end.ns == ns):
                lines += [f"address add {a} dev {end.dev} nodad" for a in _in_order(end)]
                lines.append(f"link set {end.dev} up")
            if ns == "sw":
                ports = [c.port for c in layout.cables(self.roles) if not c.other]
                lines += [f"link set {port} up" for port in ports]
            self._batch(ns, lines)
        for route in layout.routes(self.roles):
            family = "-6" if ":" in route.words else "-4"
            self._ip(route.ns, family, "route", "add", *route.words.split())

    def _wait_for_links(self) -> None:
        """Wait for the kernel to start every queue; a frame sent sooner is lost without a word."""
        for ns in self.roles:
            if not record.wait_until(functools.partial(self._are_links_up, ns)):
                raise LabError(f"the links of {self.netns(ns)} do not come up")

    def _are_links_up(self, ns: str) -> bool:
        links = json.loads(self._ip(ns, "-j", "link", "show").stdout)
        return all(link["operstate"] == "UP" for link in links if link["ifname"] != "lo")

    def _hold_vips(self) -> None:
        """Give the two VIPs to the first balancer and to every backend."""
        for ns in ("lb", *layout.BACKENDS):
            self.add_vip(ns, layout.VIP4)
            self.add_vip(ns, layout.VIP6)

    def _batch(self, ns: str, lines: list[str]) -> None:
        command = ["ip", "-n", self.netns(ns), "-batch", "-"]
        _finish(command, stdin="\n".join(lines) + "\n")

    def _close(self) -> None:
        if self._record.is_standing:
            return
        record.take_down(self.prefix)
        for child in self._children:
            child.wait()


def _in_order(end: layout.End) -> list[str]:
    """Return a device's addresses so that its first of each family is the default source.

    The kernel prefers the IPv4 address that came first, and the IPv6 address that came last.
    """
    return [a for a in end.addresses if ":" not in a] + [
        a for a in reversed(end.addresses) if ":" in a
    ]


def _finish(
    argv: Sequence[str], *, timeout: float = 30.0, check: bool = True, stdin: str = ""
) -> subprocess.CompletedProcess[str]:
    """Return the finished command; LabError, with what it said, if it failed."""
    try:
        done = subprocess.run(
            argv, input=stdin, capture_output=True, text=True, timeout=timeout, check=False
        )
    except subprocess.TimeoutExpired as err:
        raise LabError(f"no end after {timeout} s: {' '.join(argv)}") from err
    if check and done.returncode != 0:
        said = (done.stderr or done.stdout).strip()
        raise LabError(f"exit code {done.returncode}: {' '.join(argv)}: {said}")
    return done


@contextlib.contextmanager
def _signals_as_interrupts() -> Iterator[None]:
    """Let SIGTERM and SIGHUP end the block as Ctrl-C does, so that it cleans up."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    signals = (signal.SIGTERM, signal.SIGHUP)
    before = [signal.signal(number, _interrupt) for number in signals]
    try:
        yield
    finally:
        for number, handler in zip(signals, before, strict=True):
            signal.signal(number, handler)


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt(f"signal {number}")

"""Small networks for the tests of loader and CLI: namespaces with one veth pair each."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PROGRAM = Path(sys.executable).parent / "lvsxdp"
PINS, FILES = Path("/sys/fs/bpf/lvsxdp"), Path("/run/lvsxdp")
HERE, PEER = "192.0.2.1", "192.0.2.2"
IP_LINKS = ("ip", "-d", "-o", "link", "show")
_COUNT = itertools.count()
Done = subprocess.CompletedProcess[str]
# mov r0, 2 (XDP_PASS); exit: the whole of somebody else's program
FOREIGN = """
import sys
from lvsxdp import maps, network
kind, mode = maps.ProgramType[sys.argv[1]], sys.argv[2]
network.leave_private_mounts()
network.enter_namespace(sys.argv[4])
code = bytes.fromhex("b700000002000000" "9500000000000000")
program = maps.load_program("other", code, kind)
with network.Network() as net:
    link = net.link("p0")
    if mode == "tc":
        network.TC_PRIORITY = int(sys.argv[3])
        net.attach_tc(link, program)
    else:
        net.attach_xdp(link, program, mode)
print(maps.program_info(program)[0])
"""


def run(*argv: object, check: bool = True, stdin: str = "", timeout: float = 60) -> Done:
    """The finished command; an AssertionError with what it said where it failed."""
    words = [str(word) for word in argv]
    done = subprocess.run(words, input=stdin, capture_output=True, text=True, timeout=timeout)
    if check and done.returncode:
        raise AssertionError(f"exit code {done.returncode}: {' '.join(words)}:\n{done.stderr}")
    return done


@dataclass(frozen=True)
class Pair:
    """A balancer's namespace with `p0` (192.0.2.1/24), and a peer with `p1` (192.0.2.2/24)."""

    ns: str
    peer: str

    def lvsxdp(self, *argv: object, check: bool = True, stdin: str = "") -> Done:
        """What lvsxdp says in the balancer's namespace."""
        return run(PROGRAM, "--netns", self.ns, *argv, check=check, stdin=stdin)

    def read(self, *argv: object) -> Any:
        """The JSON of a read command."""
        return json.loads(self.lvsxdp(*argv, "--json").stdout)

    def refused(self, *argv: object) -> tuple[int, str]:
        """Exit code and message of a command that must fail."""
        done = self.lvsxdp(*argv, check=False)
        assert done.returncode, f"{argv} was done: {done.stdout}"
        assert "Traceback" not in done.stderr, done.stderr
        return done.returncode, done.stderr

    def inside(self, *argv: object, check: bool = True, stdin: str = "") -> Done:
        """What a command says in the balancer's namespace."""
        return run("ip", "netns", "exec", self.ns, *argv, check=check, stdin=stdin)

    def send(self, port: int, count: int = 1, source_port: int = 0) -> None:
        """UDP packets from the peer to the balancer's address."""
        code = (
            "import socket; s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\n"
            f"s.bind(('{PEER}', {source_port}))\n"
            f"for _ in range({count}): s.sendto(b'x', ('{HERE}', {port}))"
        )
        run("ip", "netns", "exec", self.peer, "/usr/bin/python3", "-c", code)

    def picture(self) -> dict[str, str]:
        """All that attach may touch: links, qdiscs, filters, pins and files."""
        return {
            "links": re.sub(r"_timer +[0-9.]+", "", self.inside(*IP_LINKS).stdout),
            "qdiscs": self.inside("tc", "qdisc", "show").stdout,
            "ingress": self.inside("tc", "filter", "show", "dev", "p0", "ingress").stdout,
            "egress": self.inside("tc", "filter", "show", "dev", "p0", "egress").stdout,
            "pins": "\n".join(_listed(PINS / self.cookie())),
            "files": "\n".join(_listed(FILES / self.cookie())),
        }

    def cookie(self) -> str:
        """The namespace's cookie."""
        code = (
            "import socket; s = socket.socket();"
            "print(int.from_bytes(s.getsockopt(socket.SOL_SOCKET, 71, 8), 'little'))"
        )
        return self.inside("/usr/bin/python3", "-c", code).stdout.strip()


def _listed(folder: Path) -> list[str]:
    return sorted(str(path) for path in folder.rglob("*")) if folder.exists() else []


@contextlib.contextmanager
def pair(mtu: int = 1500) -> Iterator[Pair]:
    """A new pair, removed with all that was attached in it."""
    # Two runs at once, each by its process, do not meet.
    name = f"lvxcli-{os.getpid()}-{next(_COUNT)}"
    made = Pair(name, f"{name}-peer")
    _remove(made)
    try:
        _build(made, mtu)
        yield made
    finally:
        _remove(made)


def _build(made: Pair, mtu: int) -> None:
    for ns in (made.ns, made.peer):
        run("ip", "netns", "add", ns)
        run("ip", "-n", ns, "link", "set", "lo", "up")
        sysctl = ["net.ipv6.conf.all.disable_ipv6=1", "net.ipv6.conf.default.disable_ipv6=1"]
        run("ip", "netns", "exec", ns, "sysctl", "-qw", *sysctl)
    run("ip", "-n", made.ns, "link", "add", "p0", "mtu", mtu, "type", "veth", "peer", "p1")
    run("ip", "-n", made.ns, "link", "set", "p1", "mtu", mtu, "netns", made.peer)
    for ns, device, address in ((made.ns, "p0", HERE), (made.peer, "p1", PEER)):
        run("ip", "netns", "exec", ns, "ethtool", "-K", device, "tx", "off", "gro", "on")
        run("ip", "-n", ns, "address", "add", f"{address}/24", "dev", device)
        run("ip", "-n", ns, "link", "set", device, "up")
    run("ip", "netns", "exec", made.peer, "ping", "-c1", "-W5", HERE)


def _remove(made: Pair) -> None:
    if made.ns in _namespaces():
        made.lvsxdp("detach", "--all", check=False)
        _remove_files(made)
    for ns in (made.ns, made.peer):
        if ns in _namespaces():
            run("ip", "netns", "del", ns)


def _remove_files(made: Pair) -> None:
    cookie = made.cookie()
    # an attach that was killed has its pins beside
    for folder in (PINS / cookie, PINS / f"{cookie}_new", FILES / cookie):
        run("rm", "-rf", folder)


def _namespaces() -> set[str]:
    return {line.split()[0] for line in run("ip", "netns", "list").stdout.splitlines()}


def config(text: str, folder: Path, name: str = "lb.yaml") -> Path:
    """A configuration file."""
    path = folder / name
    path.write_text(text)
    return path


def words(argv: Sequence[object]) -> str:
    """Words as a test's id."""
    return " ".join(map(str, argv))


def foreign(lb: Pair, kind: str = "XDP", mode: str = "native", priority: int = 1000) -> int:
    """Attaches another's program to p0; its id."""
    done = run(PROGRAM.parent / "python", "-c", FOREIGN, kind, mode, priority, lb.ns)
    return int(done.stdout)

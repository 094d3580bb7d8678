"""What the traffic tests share: a laboratory with servers, and the balancer in it."""

import json
import os
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from lab import clients, layout, record, servers
from lab.topology import PYTHON, Lab, Spawned

# Two runs at once, each by its process, do not meet.
PREFIX = f"lvxe2e-{os.getpid()}"
PROGRAM = Path(sys.executable).parent / "lvsxdp"
SHOP = (Path(__file__).resolve().parents[2] / "examples/shop.yaml").read_text()
# Other work may share the cores: what a poll waits for has this long.
PATIENCE = 15.0

# A client that keeps one connection, asks every 0.1 s, and prints each answer, "eof" or "reset".
HOLDER = """
import http.client, sys, time
connection = http.client.HTTPConnection(sys.argv[1], int(sys.argv[2]), timeout=10,
                                        source_address=(sys.argv[3], 0))
connection.connect()
connection.auto_open = 0
try:
    while True:
        connection.request("GET", "/")
        print(connection.getresponse().read().decode().strip(), flush=True)
        time.sleep(0.1)
except ConnectionResetError:
    print("reset", flush=True)
except Exception as err:
    print(f"ended: {err!r}", flush=True)
"""

# A client that asks once, then ends its connection with RST.
RESETTER = """
import socket, struct, sys
held = socket.create_connection((sys.argv[1], int(sys.argv[2])), 5, (sys.argv[3], 0))
held.sendall(b"GET / HTTP/1.1\\r\\nHost: x\\r\\n\\r\\n")
answer = held.recv(4096)
held.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
held.close()
print(answer.decode().split()[-1])
"""


@dataclass(frozen=True)
class Balancer:
    """The program at work in one balancer's namespace, by its command line alone."""

    lab: Lab
    ns: str = "lb"

    def command(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Return the finished command, whatever its exit code."""
        argv = [str(PROGRAM), "--netns", self.lab.netns(self.ns), *words]
        return subprocess.run(argv, capture_output=True, text=True, timeout=120, check=False)

    def lvsxdp(self, *words: str) -> str:
        """Return what a command printed; AssertionError with its complaint if it failed."""
        done = self.command(*words)
        assert done.returncode == 0, f"lvsxdp {' '.join(words)}: {done.stderr.strip()}"
        return done.stdout

    def rows(self, *words: str) -> Any:
        """Return what a reading command found."""
        return json.loads(self.lvsxdp(*words, "--json"))

    def file(self, text: str) -> str:
        """Return the name of a file with the configuration `text`."""
        path = self.lab.directory / f"{self.ns}.yaml"
        path.write_text(textwrap.dedent(text))
        return str(path)

    def attach(self, text: str, mode: str, *interfaces: str) -> None:
        """Attach the interfaces with the configuration."""
        self.lvsxdp("attach", *interfaces, "-c", self.file(text), "--mode", mode)

    def use(self, text: str) -> None:
        """Bring the balancer to the configuration, with no client remembered."""
        self.lvsxdp("apply", "--undrain", self.file(text))
        self.lvsxdp("persistence", "flush")

    def backends(self, service: str) -> dict[str, Any]:
        """Return the backends of a service by address."""
        return {row["address"]: row for row in self.rows("backend", "list", service)}

    def entry(self, service: str, client: str) -> Any:
        """Return the persistence entry of a client of a service; None if it has none."""
        entries = self.rows("persistence", "list")
        mine = [e for e in entries if (e["service"], e["client"]) == (service, client)]
        return mine[0] if mine else None

    def reason(self, name: str) -> int:
        """Return how many packets ended under a reason."""
        return int(self.rows("status")["reasons"].get(name, 0))


@dataclass(frozen=True)
class Held:
    """A connection that a client keeps and goes on asking on."""

    spawned: Spawned

    def answers(self) -> list[str]:
        """Return all answers so far; "reset" at the end if it came to that."""
        return self.spawned.output().splitlines()

    def next_answer(self) -> str:
        """Return an answer to a question that was put from now on."""
        seen = len(self.answers())
        # The answer on its way now may be to an older question.
        wait_for(lambda: len(self.answers()) >= seen + 2 or self.has_ended())
        return self.answers()[-1]

    def has_ended(self) -> bool:
        """Return whether the connection is no more."""
        return self.spawned.popen.poll() is not None

    def end(self) -> None:
        """End the connection if it is still there."""
        if not self.has_ended():
            self.spawned.stop()


def hold(lab: Lab, ns: str, address: str, source: str, port: int = 80) -> Held:
    """Return a connection that has been answered once."""
    held = Held(lab.spawn(ns, [PYTHON, "-c", HOLDER, address, str(port), source]))
    wait_for(held.answers)
    return held


def ask_and_reset(lab: Lab, ns: str, address: str, source: str) -> str:
    """Return the backend that answered on a connection that ended with RST."""
    argv = [PYTHON, "-c", RESETTER, address, "80", source]
    return lab.run(ns, argv, check=True).stdout.strip()


def wait_for(is_true: Callable[[], object], patience: float = PATIENCE) -> None:
    """Wait until it is true; AssertionError if it does not come to that."""
    deadline = time.monotonic() + patience
    while not is_true():
        assert time.monotonic() < deadline, f"not so within {patience} s"
        time.sleep(0.05)


def url(scheme: str, address: str, rest: str = "/") -> str:
    """Return the URL of an address of either family."""
    host = f"[{address}]" if ":" in address else address
    return f"{scheme}://{host}{rest}"


def ask(lab: Lab, ns: str, address: str, source: str | None = None, rest: str = "/") -> str:
    """Return the backend that answered over HTTP."""
    return clients.http(lab, ns, url("http", address, rest), source)


@pytest.fixture(scope="session", autouse=True)
def _no_lock_is_left() -> Iterator[None]:
    """The locks of the laboratories' names are removed, since no other run has use for them."""
    yield
    for lock in record.STATE.glob(f"*-{os.getpid()}.lock"):
        lock.unlink()


@pytest.fixture(scope="module")
def lab_options() -> dict[str, Any]:
    """What the module's laboratory is built with."""
    return {"forwarding": "lo"}


@pytest.fixture(scope="module")
def lab(lab_options: dict[str, Any]) -> Iterator[Lab]:
    """A laboratory with every backend's servers."""
    with Lab(PREFIX, **lab_options) as lab:
        servers.start(lab)
        yield lab


@pytest.fixture(scope="module")
def mode() -> str:
    """How the module's balancer is attached."""
    return "native"


@pytest.fixture(scope="module")
def balancer(lab: Lab, mode: str) -> Iterator[Balancer]:
    """The balancer with the shop's configuration, attached to lb0."""
    balancer = Balancer(lab)
    try:
        balancer.attach(SHOP, mode, "lb0")
        yield balancer
    finally:
        balancer.command("detach", "--all")


def backend_named(address: str) -> str:
    """Return the name that the backend of this address answers with."""
    names = {a: n for known in (layout.BACKEND4, layout.BACKEND6) for n, a in known.items()}
    return names[address.strip("[]")]

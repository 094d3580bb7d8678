"""One case on its way: what it has sent, and how a step is carried out or compared."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

from tests.vectors.lab import Flow, Lab, Sent
from tests.vectors.services import Service
from tests.vectors.steps import Act
from tests.vectors.words import Packet


class Failed(Exception):
    """A step found something else than it expects."""

    def __init__(self, expected: object, got: object) -> None:
        super().__init__(f"expected {expected}, got {got}")
        self.expected, self.got = str(expected), str(got)


@dataclasses.dataclass
class Live:
    """A connection that a case has opened: its flow, its server, whether it was answered."""

    flow: Flow
    server: str
    opened: bool


class Run:
    """A case's connections, and the packet that it sent last."""

    def __init__(self, lab: Lab, services: tuple[Service, ...]) -> None:
        """`services` are those that the case begins with: its packets go to the first."""
        self.lab = lab
        self.home = services[0] if services else Service()
        self.live: dict[Any, Live] = {}
        self.last: Sent | None = None

    def client(self, sent: Packet) -> tuple[str, int]:
        """The packet's client; one that nobody had where it names none."""
        if sent.client.address is not None and sent.client.port is not None:
            return sent.client.address, sent.client.port
        return self.lab.fresh_client(sent.client.address, self.home.family)

    def flow(self, sent: Packet, client: tuple[str, int]) -> Flow:
        """A packet's flow; it goes to the case's first service where it names no other place."""
        address = sent.virtual.address or self.home.address
        if (":" in address) != (":" in client[0]):
            raise Failed("two ends of one family", f"{client[0]} and {address}")
        return Flow(sent.kind, client, (address, sent.virtual.port or self.home.port or 80))

    def send(self, flow: Flow) -> Sent:
        """Sends a packet and remembers what it opened."""
        self.last = sent = self.lab.send(flow)
        if sent.server and sent.server != "-":
            known = self.live.get(flow.key)
            answered = flow.kind.what in ("A", "cookie_echo") or bool(known and known.opened)
            self.live[flow.key] = Live(flow, sent.server, answered)
        return sent


@functools.singledispatch
def perform(act: Act, run: Run) -> None:
    """Carries an act out, or compares what it expects; Failed where that is something else."""
    raise TypeError(f"nothing says how {type(act).__name__} is carried out")

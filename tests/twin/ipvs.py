"""The judge: kernel IPVS in a namespace, over netlink, with nft's marks; and what it shows."""

from __future__ import annotations

import contextlib
import ipaddress
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from lvsxdp import network
from lvsxdp.model import (
    Address,
    AddressKey,
    Family,
    MarkKey,
    MarkRule,
    Protocol,
    Service,
    ServiceKey,
)
from tests.twin import genl, topology
from tests.twin.compare import Connection, Counters, Server, Snapshot, Template
from tests.twin.generator import SCHEDULERS
from tests.twin.script import (
    AddRule,
    DeleteBackend,
    DeleteRule,
    DeleteService,
    Flow,
    PutBackend,
    PutService,
    Send,
    Set,
    Step,
    Wait,
)

NAME = "judge"
MODULES = ("nf_tables", *(f"ip_vs_{name}" for name in SCHEDULERS))
# Of the entries of IPVS's table: a renamed template, which no packet can find.
RENAMED = 65535
MARKS = """
table inet marks
flush table inet marks
table inet marks {
	chain marks {
		type filter hook prerouting priority mangle
%s
	}
}
"""


def load_modules() -> None:
    """Loads what the kernel would ask for in the midst of a script; a small table is read soon."""
    subprocess.run(["modprobe", "ip_vs", "conn_tab_bits=8"], check=True)
    subprocess.run(["modprobe", "-a", *MODULES], check=True)


class Judge:
    """Kernel IPVS in its namespace, changed and read from outside."""

    def __init__(self, control: genl.Ipvs, table: TextIO) -> None:
        self.control, self.table = control, table
        self.rules: list[MarkRule] = []
        self.services: dict[ServiceKey, Service] = {}

    def apply(self, step: Step) -> None:
        """Does what a step of the script asks for; a packet is not its business."""
        match step:
            case AddRule(rule):
                self.rules.append(rule)
                self._write_rules()
            case DeleteRule(number):
                del self.rules[number - 1]
                self._write_rules()
            case PutService(service, fresh):
                self.services[service.key] = service
                self.control.put_service(service, fresh)
            case DeleteService(key):
                del self.services[key]
                self.control.delete_service(key)
            case PutBackend(key, backend, fresh):
                self.control.put_backend(key, backend, fresh)
            case DeleteBackend(key, address):
                self.control.delete_backend(key, address)
            case Set(name, value) if name in genl.TIMEOUTS:
                self.control.set_timeout(name, value)
            case Set(name, value):
                with topology.inside(NAME):
                    network.set_sysctl(f"net/ipv4/vs/{name}", str(value))
            case Send() | Wait():
                pass

    def _write_rules(self) -> None:
        """The first rule that meets a packet has the word."""
        lines = "\n".join(f"\t\t{_nft(rule)}" for rule in self.rules)
        with topology.inside(NAME):
            subprocess.run(["nft", "-f", "-"], input=MARKS % lines, text=True, check=True)

    def snapshot(self) -> Snapshot:
        """All that IPVS shows."""
        connections, templates = {}, {}
        for protocol, client, client_port, virtual, port, backend, state, left in self._entries():
            if client_port == 0:
                if port != RENAMED:
                    service = _template_of(protocol, virtual, port)
                    templates[service, str(client)] = Template(backend, left)
            else:
                flow = Flow(Protocol(protocol), client, client_port, virtual, port)
                connections[str(flow)] = Connection(backend, state, left)
        servers, counters = {}, {}
        for key in self.services:
            for found in self.control.backends(key):
                server = str(key), found.address
                servers[server] = Server(found.weight, found.active, found.inactive)
                counters[server] = Counters(found.connections, found.packets, found.bytes)
        return Snapshot(connections, templates, servers, counters)

    def _entries(self) -> Iterator[tuple[str, Address, int, Address, int, str, str, float]]:
        """Protocol, client and port, virtual address and port, backend, state, seconds left."""
        self.table.seek(0)
        next(self.table, None)
        for line in self.table:
            protocol, client, source, virtual, port, backend, _, state, left = line.split()[:9]
            yield (
                *(protocol.lower(), _address(client), int(source, 16), _address(virtual)),
                *(int(port, 16), str(_address(backend)), state, float(left)),
            )


def _address(text: str) -> Address:
    return ipaddress.ip_address(text if ":" in text else int(text, 16))


def _template_of(protocol: str, virtual: Address, port: int) -> str:
    """Whose template it is: the service, or what several services share."""
    if protocol == "ip":
        family = Family.of(virtual)
        # the mark is in the first 32 bits
        return str(MarkKey(int.from_bytes(virtual.packed[:4], "big"), family))
    return str(AddressKey(Protocol(protocol), virtual, port))


def _nft(rule: MarkRule) -> str:
    (protocol,), (target,) = rule.protocols, rule.addresses
    ports = ", ".join(
        f"{p.first}-{p.last}" if p.last > p.first else f"{p.first}" for p in rule.ports
    )
    family = "ip" if target.version == 4 else "ip6"
    return (
        f"{family} daddr {target} {protocol} dport {{ {ports} }} meta mark set {rule.mark} accept"
    )


@contextlib.contextmanager
def judge() -> Iterator[tuple[Judge, topology.Wire]]:
    """IPVS in a namespace that is new: nothing remembers anything."""
    with topology.wired(NAME) as wire:
        with topology.inside(NAME):
            control = genl.Ipvs()
            # the file is of the namespace in which it was opened
            table = Path("/proc/thread-self/net/ip_vs_conn").open()  # noqa: SIM115
        with control, table:
            yield Judge(control, table), wire

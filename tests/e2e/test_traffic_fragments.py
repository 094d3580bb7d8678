"""Datagrams that travel in fragments reach a backend whole, and so do their answers."""

import functools
from collections.abc import Iterator
from typing import Any

import pytest

from lab import layout
from lab.topology import PYTHON, Lab
from tests.e2e.conftest import Balancer, wait_for
from tests.e2e.test_traffic_modes import SIDES, Side, case_name
from tests.e2e.test_traffic_nat import GATEWAYS
from tests.e2e.test_traffic_tunnel import BACKENDS, unwrapping

PORT = 5400
LENGTHS = (100, 1400, 1473, 3000, 9000, 30000)
# Sends back whatever comes, to each of the addresses that it is given.
ECHO = """
import select, socket, sys
held = []
for address in sys.argv[2:]:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    made = socket.socket(family, socket.SOCK_DGRAM)
    made.bind((address, int(sys.argv[1])))
    held.append(made)
while True:
    for ready in select.select(held, [], [])[0]:
        data, client = ready.recvfrom(65536)
        ready.sendto(data, client)
"""
# Asks once from an address, and says whether what it sent came back.
ASKER = """
import os, socket, sys
address, port, source, length = sys.argv[1], int(sys.argv[2]), sys.argv[3], int(sys.argv[4])
family = socket.AF_INET6 if ":" in address else socket.AF_INET
asker = socket.socket(family, socket.SOCK_DGRAM)
asker.setsockopt(socket.IPPROTO_IP, 10, 0)  # IP_MTU_DISCOVER: may be cut on the way
asker.bind((source, 0))
asker.settimeout(5)
sent = os.urandom(length)
asker.sendto(sent, (address, port))
print(asker.recvfrom(65536)[0] == sent)
"""
# Mode, offloads, forwarding method: each of them with each road that differs for it.
CASES = [
    *(("native", False, forward) for forward in ("dr", "nat", "tunnel")),
    *(("generic", False, "nat"), ("tc", False, "dr")),
    *(("tc", True, "nat"), ("tc", True, "tunnel")),
]


def name_of(case: tuple[str, bool, str]) -> str:
    return f"{case_name(case[:2])}, {case[2]}"


@pytest.fixture(scope="module", params=CASES, ids=name_of)
def case(request: pytest.FixtureRequest) -> tuple[str, bool, str]:
    mode, offload, forward = request.param
    return str(mode), bool(offload), str(forward)


@pytest.fixture(scope="module")
def forward(case: tuple[str, bool, str]) -> str:
    return case[2]


@pytest.fixture(scope="module")
def lab_options(case: tuple[str, bool, str]) -> dict[str, Any]:
    return {"forwarding": "lo", "offload": case[1]}


def services(forward: str) -> str:
    """UDP of both families; by nat to another port."""

    def service(vip: str, backends: dict[str, str]) -> str:
        port = f", port: {PORT + 1}" if forward == "nat" else ""
        listed = ", ".join(f'{{address: "{a}"{port}}}' for a in backends.values())
        return (
            f'  - {{protocol: udp, address: "{vip}", port: {PORT}, scheduler: rr,\n'
            f"     forward: {forward}, backends: [{listed}]}}\n"
        )

    return (
        "capacity: {connections: 4096, persistence: 4096}\nservices:\n"
        + service(layout.VIP4, BACKENDS["ipv4"])
        + service(layout.VIP6, BACKENDS["ipv6"])
    )


def is_listening(lab: Lab, name: str, port: int) -> bool:
    return lab.run(name, ["ss", "-Hlun", f"sport = :{port}"]).stdout.count("\n") == 2


@pytest.fixture(scope="module")
def balancer(
    lab: Lab, case: tuple[str, bool, str], forward: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Balancer]:
    port = PORT + 1 if forward == "nat" else PORT
    for name in layout.BACKENDS:
        ends = [layout.VIP4, layout.VIP6]
        if forward == "nat":
            for vip in ends:
                lab.remove_vip(name, vip)
            for family, gateway in GATEWAYS.items():
                route = ["route", "replace", "default", "via", gateway]
                lab.run(name, ["ip", family, *route], check=True)
            ends = [layout.BACKEND4[name], layout.BACKEND6[name]]
        lab.spawn(name, [PYTHON, "-c", ECHO, str(port), *ends])
        wait_for(functools.partial(is_listening, lab, name, port))
    if forward == "tunnel":
        # what the client cuts leaves room for what is put before it
        for vip, gateway in ((layout.VIP4, "198.51.100.1"), (layout.VIP6, "2001:db8:1::1")):
            route = ["ip", "route", "replace", vip, "via", gateway, "mtu", "lock", "1400"]
            lab.run("c1", route, check=True)
        unwrapping(lab, tmp_path_factory.mktemp("cache"))
    balancer = Balancer(lab)
    try:
        balancer.attach(services(forward), case[0], "lb0", "lb1")
        yield balancer
    finally:
        balancer.command("detach", "--all")


def ask(balancer: Balancer, side: Side, length: int) -> None:
    """A datagram of so many bytes comes back as it was sent."""
    argv = [PYTHON, "-c", ASKER, side.vip, str(PORT), side.first, str(length)]
    done = balancer.lab.run("c1", argv)
    assert done.stdout == "True\n", (length, done.stderr, balancer.rows("status")["reasons"])


@pytest.mark.parametrize("side", [pytest.param(side, id=name) for name, side in SIDES.items()])
def test_datagrams_of_any_length_come_and_go(balancer: Balancer, side: Side) -> None:
    for length in LENGTHS:
        ask(balancer, side, length)

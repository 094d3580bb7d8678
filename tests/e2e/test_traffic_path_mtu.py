"""A router before the client takes less than a backend sends, and says so to the VIP."""

import hashlib
from collections.abc import Iterator
from typing import Any

import pytest

from lab import layout, servers
from lab.topology import PYTHON, Lab
from tests.e2e.conftest import Balancer, url
from tests.e2e.test_traffic_modes import SIDES, Side, digest, fetch
from tests.e2e.test_traffic_nat import GATEWAYS, services

# less than Ethernet's, and what IPv6 needs at least
NARROW = 1300
DR = """
capacity: {connections: 4096, persistence: 4096}
services:
"""


@pytest.fixture(scope="module", params=["native", "generic", "tc"])
def mode(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module", params=["dr", "nat"])
def forward(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def lab_options(mode: str, forward: str) -> dict[str, Any]:
    return {"forwarding": "lo"}


@pytest.fixture(scope="module")
def balancer(lab: Lab, mode: str, forward: str) -> Iterator[Balancer]:
    """The balancer, and a narrow road from the router to the client c1."""
    lab.run("rt", ["ip", "link", "set", "c1", "mtu", str(NARROW)], check=True)
    text = DR + services(layout.VIP4, layout.BACKEND4) + services(layout.VIP6, layout.BACKEND6)
    if forward == "dr":
        text = text.replace("forward: nat", "forward: dr").replace(", port: 8080}", "}")
        text = text.replace(", port: 443}", "}").replace(", port: 9000}", "}")
        text = text.replace(", port: 53}", "}")
    for name in layout.BACKENDS if forward == "nat" else ():
        for vip in (layout.VIP4, layout.VIP6):
            lab.remove_vip(name, vip)
        for family, gateway in GATEWAYS.items():
            lab.run(name, ["ip", family, "route", "replace", "default", "via", gateway], check=True)
    balancer = Balancer(lab)
    try:
        balancer.attach(text, mode, "lb0", "lb1")
        yield balancer
    finally:
        balancer.command("detach", "--all")


@pytest.mark.parametrize("side", [pytest.param(side, id=name) for name, side in SIDES.items()])
def test_a_megabyte_comes_down_over_a_road_that_takes_less(balancer: Balancer, side: Side) -> None:
    lab = balancer.lab
    down = lab.directory / "down"
    fetch(lab, "--interface", side.first, "--output", str(down), url("http", side.vip, "/big"))
    assert digest(down) == hashlib.sha256(servers.BIG_BODY).hexdigest()
    # the backend has been told, by the balancer alone
    family = "-6" if ":" in side.vip else "-4"
    told = [
        lab.run(name, ["ip", family, "route", "get", side.first]).stdout for name in layout.BACKENDS
    ]
    assert [f"mtu {NARROW}" in each for each in told].count(True) == 1


# Sends a datagram with so many hops to go, and prints who says that it went no further.
TRACER = """
import socket, struct, sys
address, source, hops = sys.argv[1], sys.argv[2], int(sys.argv[3])
six = ":" in address
level, ttl, errors = (41, 16, 25) if six else (0, 2, 11)  # IPV6_UNICAST_HOPS, IPV6_RECVERR
sender = socket.socket(socket.AF_INET6 if six else socket.AF_INET, socket.SOCK_DGRAM)
sender.bind((source, 0))
sender.setsockopt(level, ttl, hops)
sender.setsockopt(level, errors, 1)
sender.settimeout(5)
# TXT of whoami.lab
query = bytes.fromhex("123401000001000000000000" "0677686f616d69" "036c6162" "00" "00100001")
sender.sendto(query, (address, 53))
try:
    print("answer", sender.recvfrom(4096)[1][0])
except OSError:
    data, ancillary, _, _ = sender.recvmsg(4096, 512, socket.MSG_ERRQUEUE)
    said = ancillary[0][2]
    family, start, size = (socket.AF_INET6, 24, 16) if six else (socket.AF_INET, 20, 4)
    print("exceeded", socket.inet_ntop(family, said[start : start + size]))
"""


@pytest.mark.parametrize("side", [pytest.param(side, id=name) for name, side in SIDES.items()])
def test_every_hop_is_seen_up_to_the_backend(balancer: Balancer, side: Side) -> None:
    """As by traceroute: the router, the balancer by the address that was asked for, the end."""
    lab = balancer.lab
    router = "2001:db8:1::1" if ":" in side.vip else "198.51.100.1"
    expected = [f"exceeded {router}", f"exceeded {side.vip}", f"answer {side.vip}"]
    hops = []
    for number in (1, 2, 3):
        done = lab.run("c1", [PYTHON, "-c", TRACER, side.vip, side.first, str(number)])
        hops.append(done.stdout.strip() or done.stderr)
    assert hops == expected

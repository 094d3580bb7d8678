"""A router before the client takes less than a backend sends, and says so to the VIP."""

import hashlib
from collections.abc import Iterator
from typing import Any

import pytest

from lab import layout, servers
from lab.topology import Lab
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

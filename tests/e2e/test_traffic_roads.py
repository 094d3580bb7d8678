"""However the balancer's host is set up, and whatever happens to neighbours, clients are served."""

from collections.abc import Iterator
from typing import Any, cast

import pytest

from lab import clients, layout
from lab.topology import Forwarding, Lab
from tests.e2e.conftest import SHOP, Balancer, ask, url, wait_for

VIPS = {"ipv4": layout.VIP4, "ipv6": layout.VIP6}
SOURCES = {"ipv4": "198.51.100.10", "ipv6": "2001:db8:1::10"}
ROADS = {"off": "tc", "lo": "redirect", "on": "redirect"}
# A SYN that is lost is sent again after a second.
BEFORE_A_RETRY = 0.9

SPREAD = """
interfaces: [lb0]
marks:
  - {mark: 1, protocol: tcp, addresses: [192.0.2.10, "2001:db8::10"], port: 80}
  - {mark: 1, protocol: udp, addresses: [192.0.2.10, "2001:db8::10"], port: 53}
services:
  - name: spread
    mark: 1
    scheduler: rr
    backends: [{address: 10.0.0.11}, {address: 10.0.0.12}, {address: 10.0.0.13}]
  - name: spread6
    mark: 1
    family: ipv6
    scheduler: rr
    backends:
      - {address: "2001:db8:0:2::11"}
      - {address: "2001:db8:0:2::12"}
      - {address: "2001:db8:0:2::13"}
"""


@pytest.fixture(scope="module", params=["off", "on", "lo"])
def forwarding(request: pytest.FixtureRequest) -> Forwarding:
    return cast(Forwarding, request.param)


@pytest.fixture(scope="module")
def lab_options(forwarding: Forwarding) -> dict[str, Any]:
    return {"forwarding": forwarding}


@pytest.fixture
def spread(balancer: Balancer) -> Iterator[Balancer]:
    """The balancer with round robin for HTTP and DNS of both families."""
    balancer.use(SPREAD)
    yield balancer


@pytest.fixture(params=VIPS)
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def forget_neighbours(balancer: Balancer) -> None:
    for name in layout.BACKENDS:
        for address in (layout.BACKEND4[name], layout.BACKEND6[name]):
            balancer.lab.run("lb", ["ip", "neigh", "del", address, "dev", "lb1"])


def request_seconds(lab: Lab, family: str) -> float:
    """Return how long one request took, by the client's own clock."""
    argv = ["curl", "-q", "-s", "-o", "/dev/null", "-w", "%{time_total}", "-m", "10"]
    asked = url("http", VIPS[family])
    return float(lab.run("c1", [*argv, "-g", "--noproxy", "*", asked], check=True).stdout)


def test_every_backend_serves_under_each_forwarding(spread: Balancer, family: str) -> None:
    seen = [ask(spread.lab, "c1", VIPS[family], SOURCES[family]) for _ in range(6)]
    assert sorted(seen) == ["b1", "b1", "b2", "b2", "b3", "b3"]


def test_the_backends_road_is_what_forwarding_allows(
    spread: Balancer, forwarding: Forwarding
) -> None:
    roads = {row["road"] for row in spread.rows("backend", "list")}
    assert roads == {ROADS[forwarding]}


def test_an_unresolved_neighbour_loses_no_syn(spread: Balancer, family: str) -> None:
    slow = []
    for _ in range(6):
        forget_neighbours(spread)
        seconds = request_seconds(spread.lab, family)
        if seconds >= BEFORE_A_RETRY:
            slow.append(seconds)
    assert slow == []


def test_an_unresolved_neighbour_loses_no_query(spread: Balancer, family: str) -> None:
    answers = []
    for _ in range(6):
        forget_neighbours(spread)
        # dig asks once only.
        answers.append(clients.dns(spread.lab, "c1", VIPS[family], SOURCES[family]))
    assert sorted(answers) == ["b1", "b1", "b2", "b2", "b3", "b3"]


def test_a_backend_whose_mac_changed_in_silence_is_found_again(spread: Balancer) -> None:
    lab = spread.lab
    for key in ("base_reachable_time_ms=1000", "delay_first_probe_time=1", "retrans_time_ms=200"):
        lab.run("lb", ["sysctl", "-qw", f"net.ipv4.neigh.lb1.{key}"], check=True)
    for other in ("10.0.0.12", "10.0.0.13"):
        spread.lvsxdp("backend", "edit", "spread", other, "--weight", "0")
    assert ask(lab, "c1", layout.VIP4) == "b1"
    old, new = layout.mac("b1", "eth0"), "02:00:00:00:0b:99"
    try:
        change_mac(lab, new)
        wait_for(lambda: is_served(lab), patience=20)
        assert lab.neighbour("lb", "10.0.0.11") == new
    finally:
        change_mac(lab, old)
        lab.run("lb", ["ip", "neigh", "del", "10.0.0.11", "dev", "lb1"])


def change_mac(lab: Lab, mac: str) -> None:
    """Give b1 another MAC; the router is told by hand, the balancer and the rest by nobody."""
    lab.run("b1", ["sysctl", "-qw", "net.ipv4.conf.eth0.arp_notify=0"], check=True)
    lab.run("b1", ["ip", "link", "set", "dev", "eth0", "address", mac], check=True)
    neighbour = ["ip", "neigh", "replace", "10.0.0.11", "lladdr", mac, "dev", "back"]
    lab.run("rt", [*neighbour, "nud", "reachable"], check=True)


def is_served(lab: Lab) -> bool:
    argv = ["curl", "-q", "-s", "-m", "1", "--noproxy", "*", f"http://{layout.VIP4}/"]
    return lab.run("c1", argv).stdout.strip() == "b1"


def test_an_interface_to_the_backends_may_be_attached_too(balancer: Balancer) -> None:
    balancer.use(SHOP)
    balancer.lvsxdp("attach", "lb1", "--mode", "native")
    try:
        for family, vip in VIPS.items():
            answers = {ask(balancer.lab, "c1", vip, SOURCES[family]) for _ in range(3)}
            assert len(answers) == 1
        assert len({ask(balancer.lab, "c1", layout.VIP4, rest=":8080/") for _ in range(3)}) == 3
    finally:
        balancer.lvsxdp("detach", "lb1")

"""Two balancers with one file: the address moves, and the standby may be a backend as well."""

import time
from collections.abc import Iterator
from typing import Any

import pytest

from lab import layout, servers
from lab.errors import ClientError
from lab.topology import PYTHON, Lab
from tests.e2e.conftest import PREFIX, Balancer, ask, wait_for

VIP = layout.VIP4
STANDBY = "10.0.0.2"
BACKENDS = ["10.0.0.11", "10.0.0.12", "10.0.0.13"]
FAIL_OVER_SECONDS = 3
REQUESTS = 8
# More frames than that on the segment for so few requests can only go round.
BOUND = 1000

# The standby's own web server. It answers from an address that no device of its host has, which
# the kernel allows to a transparent socket alone.
WEB = """
import http.server, socket
class Named(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.send_header("Content-Length", "4")
        self.end_headers()
        self.wfile.write(b"lb2\\n")
server = http.server.ThreadingHTTPServer(("0.0.0.0", 80), Named, bind_and_activate=False)
server.socket.setsockopt(socket.SOL_IP, 19, 1)  # IP_TRANSPARENT
server.server_bind()
server.server_activate()
server.serve_forever()
"""


def config(backends: list[str]) -> str:
    """HTTP in round robin, the same for both balancers."""
    return f"""
    interfaces: [lb0, lb1]
    services:
      - name: web
        protocol: tcp
        address: {VIP}
        port: 80
        scheduler: rr
        backends: [{", ".join(f"{{address: {a}}}" for a in backends)}]
    """


@pytest.fixture(scope="module")
def pair() -> Iterator[tuple[Balancer, Balancer]]:
    """The active balancer, which holds the VIP, and its standby, both attached with one file."""
    with Lab(PREFIX, second_balancer=True, forwarding="lo") as lab:
        servers.start(lab)
        balancers = Balancer(lab, "lb"), Balancer(lab, "lb2")
        try:
            for balancer in balancers:
                balancer.attach(config(BACKENDS), "native")
            yield balancers
        finally:
            for balancer in balancers:
                balancer.command("detach", "--all")


@pytest.fixture
def moved_back(pair: tuple[Balancer, Balancer]) -> Iterator[None]:
    """The VIP is on the active balancer again afterwards."""
    yield
    lab = pair[0].lab
    lab.run("lb2", ["ip", "address", "del", f"{VIP}/32", "dev", "lb0"])
    lab.add_vip("lb", VIP)
    lab.announce("lb", VIP)


@pytest.fixture
def standby_serves(pair: tuple[Balancer, Balancer]) -> Iterator[None]:
    """The standby is a backend: it takes the VIP as its own on the backends' side alone."""
    lab = pair[1].lab
    lab.run("lb2", ["ip", "rule", "add", "iif", "lb1", "lookup", "100"], check=True)
    local = ["ip", "route", "add", "local", VIP, "dev", "lo", "table", "100"]
    lab.run("lb2", local, check=True)
    web = lab.spawn("lb2", [PYTHON, "-c", WEB])
    wait_for(lambda: ":80 " in lab.run("lb2", ["ss", "-Hltn"]).stdout)
    yield
    web.stop()
    lab.run("lb2", ["ip", "rule", "del", "iif", "lb1", "lookup", "100"])
    lab.run("lb2", ["ip", "route", "flush", "table", "100"])


def forwarded(pair: tuple[Balancer, Balancer]) -> tuple[int, int]:
    """Return how many packets each has forwarded."""
    return pair[0].reason("forwarded"), pair[1].reason("forwarded")


def answers(lab: Lab, count: int) -> list[str]:
    return [ask(lab, "c1", VIP) for _ in range(count)]


def is_answered(lab: Lab) -> bool:
    try:
        return bool(ask(lab, "c1", VIP))
    except ClientError:
        return False


def test_only_the_balancer_that_holds_the_address_forwards(
    pair: tuple[Balancer, Balancer],
) -> None:
    before = forwarded(pair)
    assert sorted(answers(pair[0].lab, 6)) == ["b1", "b1", "b2", "b2", "b3", "b3"]
    after = forwarded(pair)
    assert after[0] > before[0]
    assert after[1] == before[1]


@pytest.mark.usefixtures("moved_back")
def test_the_other_balancer_takes_over_with_the_address(
    pair: tuple[Balancer, Balancer],
) -> None:
    lab = pair[0].lab
    answers(lab, 3)
    start = time.monotonic()
    lab.remove_vip("lb", VIP)
    lab.add_vip("lb2", VIP)
    lab.announce("lb2", VIP)
    wait_for(lambda: is_answered(lab))
    took = time.monotonic() - start
    before = forwarded(pair)
    assert sorted(answers(lab, 6)) == ["b1", "b1", "b2", "b2", "b3", "b3"]
    after = forwarded(pair)
    assert took < FAIL_OVER_SECONDS
    assert after[0] == before[0]
    assert after[1] > before[1]


@pytest.mark.usefixtures("standby_serves")
def test_a_standby_that_is_a_backend_serves_its_share_and_no_frame_goes_round(
    pair: tuple[Balancer, Balancer],
) -> None:
    lab = pair[0].lab
    for balancer in pair:
        balancer.use(config([STANDBY, *BACKENDS]))
    before, frames = snapshot(pair[1]), lab.counters("lb2", "lb1").rx_packets
    seen = answers(lab, REQUESTS)
    after = snapshot(pair[1])
    assert sorted(seen) == sorted(["b1", "b2", "b3", "lb2"] * (REQUESTS // 4))
    assert after["forwarded"] == before["forwarded"]
    assert after["not_local"] > before["not_local"]
    assert lab.counters("lb2", "lb1").rx_packets - frames < BOUND


def snapshot(balancer: Balancer) -> dict[str, Any]:
    reasons = balancer.rows("status")["reasons"]
    return {name: reasons.get(name, 0) for name in ("forwarded", "not_local")}

"""Every mode, with complete frames and with offloads, serves real clients alike."""

import functools
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from lab import clients, layout, servers
from lab.topology import PYTHON, Lab
from tests.e2e.conftest import SHOP, Balancer, ask, url, wait_for

# Says which backend it is and what it was sent: "b1 SHA-256".
TAKER = """
import hashlib, http.server, socket, sys
class Taker(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        answer = f"{sys.argv[1]} {hashlib.sha256(body).hexdigest()}\\n".encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)
class Server(http.server.ThreadingHTTPServer):
    address_family = socket.AF_INET6
Server(("::", 9000), Taker).serve_forever()
"""

TWO_MARKS = """
interfaces: [lb0]
marks:
  - {mark: 1, protocol: tcp, address: 192.0.2.10, port: 80}
  - {mark: 2, protocol: tcp, address: 192.0.2.10, port: 8080}
services:
  - mark: 1
    scheduler: rr
    persistence: {timeout: 600}
    backends: [{address: 10.0.0.11}, {address: 10.0.0.12}, {address: 10.0.0.13}]
  - mark: 2
    scheduler: rr
    persistence: {timeout: 600}
    backends: [{address: 10.0.0.11}, {address: 10.0.0.12}, {address: 10.0.0.13}]
"""


@dataclass(frozen=True)
class Side:
    """A family as the clients see it."""

    vip: str
    first: str
    neighbour: str
    other: str
    network: str


SIDES = {
    "ipv4": Side(layout.VIP4, "198.51.100.10", "198.51.100.77", "203.0.113.10", "198.51.100.0/24"),
    "ipv6": Side(
        layout.VIP6, "2001:db8:1::10", "2001:db8:1::77", "2001:db8:2::10", "2001:db8:1::/64"
    ),
}

# Native with offloads is no case: a redirected frame keeps its partial checksum, with nobody left
# to complete it, which no real interface would hand to XDP.
CASES = [
    ("native", False),
    ("generic", False),
    ("tc", False),
    ("generic", True),
    ("tc", True),
]


def case_name(case: tuple[str, bool]) -> str:
    return f"{case[0]}, {'offloads' if case[1] else 'complete frames'}"


@pytest.fixture(scope="module", params=CASES, ids=case_name)
def case(request: pytest.FixtureRequest) -> tuple[str, bool]:
    mode, offload = request.param
    return str(mode), bool(offload)


@pytest.fixture(scope="module")
def mode(case: tuple[str, bool]) -> str:
    return case[0]


@pytest.fixture(scope="module")
def lab_options(case: tuple[str, bool]) -> dict[str, Any]:
    return {"forwarding": "lo", "offload": case[1]}


@pytest.fixture(scope="module")
def takers(lab: Lab) -> None:
    """Every backend takes uploads on port 9000."""
    for name in layout.BACKENDS:
        lab.spawn(name, [PYTHON, "-c", TAKER, name])
    for name in layout.BACKENDS:
        wait_for(functools.partial(is_taking, lab, name))


def is_taking(lab: Lab, name: str) -> bool:
    return ":9000" in lab.run(name, ["ss", "-Hltn"]).stdout


@pytest.fixture(params=SIDES)
def side(request: pytest.FixtureRequest) -> Side:
    return SIDES[request.param]


@pytest.fixture
def shop(balancer: Balancer) -> Lab:
    """The laboratory with the shop open, and no client remembered."""
    balancer.lvsxdp("persistence", "flush")
    return balancer.lab


@pytest.fixture
def shop_again(balancer: Balancer) -> Iterator[None]:
    """The shop is open again afterwards."""
    yield
    balancer.use(SHOP)


def test_five_protocols_of_one_client_meet_one_backend(shop: Lab, side: Side) -> None:
    source = side.first
    answers = {
        "HTTP": clients.http(shop, "c1", url("http", side.vip), source),
        "HTTPS": clients.https(shop, "c1", url("https", side.vip), source),
        "DNS": clients.dns(shop, "c1", side.vip, source),
        "passive FTP": clients.ftp_passive(shop, "c1", side.vip, source),
        "active FTP": clients.ftp_active(shop, "c1", side.vip, source),
    }
    assert answers == dict.fromkeys(answers, answers["HTTP"])


def test_a_client_of_another_network_meets_another_backend(shop: Lab, side: Side) -> None:
    first = ask(shop, "c1", side.vip, side.first)
    assert ask(shop, "c2", side.vip, side.other) != first


def test_a_neighbour_under_the_netmask_shares_the_entry(
    shop: Lab, balancer: Balancer, side: Side
) -> None:
    first = ask(shop, "c1", side.vip, side.first)
    assert ask(shop, "c1", side.vip, side.neighbour) == first
    clients_known = [entry["client"] for entry in balancer.rows("persistence", "list")]
    assert clients_known == [side.network]


def test_without_persistence_the_requests_of_one_client_go_round(shop: Lab) -> None:
    seen = [ask(shop, "c1", layout.VIP4, rest=":8080/") for _ in range(6)]
    assert sorted(seen) == ["b1", "b1", "b2", "b2", "b3", "b3"]


def test_a_megabyte_comes_down_whole(shop: Lab, side: Side) -> None:
    path = shop.directory / "down"
    fetch(shop, "--output", str(path), url("http", side.vip, "/big"))
    assert digest(path) == hashlib.sha256(servers.BIG_BODY).hexdigest()


@pytest.mark.usefixtures("takers", "shop_again")
def test_a_megabyte_goes_up_whole(balancer: Balancer, side: Side) -> None:
    balancer.use(SHOP.replace("[80, 443]", "[80, 443, 9000]"))
    path = balancer.lab.directory / "up"
    path.write_bytes(servers.BIG_BODY)
    target = url("http", side.vip, ":9000/")
    taken = fetch(balancer.lab, "--data-binary", f"@{path}", target).split()
    assert taken[1] == hashlib.sha256(servers.BIG_BODY).hexdigest()


@pytest.mark.usefixtures("shop_again")
def test_two_marks_do_not_share_an_entry(balancer: Balancer) -> None:
    balancer.use(TWO_MARKS)
    lab = balancer.lab
    # Another client goes first under mark 2, so that the two round robins are out of step.
    ask(lab, "c2", layout.VIP4, rest=":8080/")
    seen = {ask(lab, "c1", layout.VIP4), ask(lab, "c1", layout.VIP4, rest=":8080/")}
    entries = balancer.rows("persistence", "list")
    mine = sorted(e["service"] for e in entries if e["client"] == SIDES["ipv4"].first)
    assert mine == ["mark:1", "mark:2"]
    assert len(seen) == 2


def fetch(lab: Lab, *words: str) -> str:
    limits = ["--max-time", "20", "--noproxy", "*", "--globoff"]
    argv = ["curl", "-q", "--silent", "--show-error", "--fail", *limits, *words]
    return lab.run("c1", argv, check=True).stdout


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()

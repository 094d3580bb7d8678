"""Backends by nat serve real clients in every mode, with complete frames and with offloads."""

import functools
import hashlib
from collections.abc import Iterator
from typing import Any

import pytest

from lab import clients, layout, servers
from lab.topology import PYTHON, Lab
from tests.e2e.conftest import Balancer, ask, url, wait_for
from tests.e2e.test_traffic_modes import (
    SIDES,
    TAKER,
    Side,
    case_name,
    digest,
    fetch,
    is_taking,
)

GATEWAYS = {"-4": "10.0.0.1", "-6": "2001:db8:0:2::1"}


def services(vip: str, backends: dict[str, str]) -> str:
    """HTTP with another port at the backends, HTTPS, uploads and DNS, all by nat."""

    def service(protocol: str, port: int, own: int) -> str:
        listed = ", ".join(f'{{address: "{a}", port: {own}}}' for a in backends.values())
        return (
            f'  - {{protocol: {protocol}, address: "{vip}", port: {port}, scheduler: rr,\n'
            f"     forward: nat, backends: [{listed}]}}\n"
        )

    ports = (("tcp", 80, 8080), ("tcp", 443, 443), ("tcp", 9000, 9000), ("udp", 53, 53))
    return "".join(service(*each) for each in ports)


CONFIG = (
    "capacity: {connections: 4096, persistence: 4096}\nservices:\n"
    + services(layout.VIP4, layout.BACKEND4)
    + services(layout.VIP6, layout.BACKEND6)
)


# complete frames in generic and tc mode are met by test_traffic_path_mtu.py
MODES = [("native", False), ("generic", True), ("tc", True)]


@pytest.fixture(scope="module", params=MODES, ids=case_name)
def case(request: pytest.FixtureRequest) -> tuple[str, bool]:
    mode, offload = request.param
    return str(mode), bool(offload)


@pytest.fixture(scope="module")
def lab_options(case: tuple[str, bool]) -> dict[str, Any]:
    return {"forwarding": "lo", "offload": case[1]}


@pytest.fixture(scope="module")
def balancer(lab: Lab, case: tuple[str, bool]) -> Iterator[Balancer]:
    """The balancer, whose backends hold no VIP and send whatever they answer through it."""
    for name in layout.BACKENDS:
        for vip in (layout.VIP4, layout.VIP6):
            lab.remove_vip(name, vip)
        for family, gateway in GATEWAYS.items():
            lab.run(name, ["ip", family, "route", "replace", "default", "via", gateway], check=True)
        lab.spawn(name, [PYTHON, "-c", TAKER, name])
        wait_for(functools.partial(is_taking, lab, name))
    balancer = Balancer(lab)
    try:
        balancer.attach(CONFIG, case[0], "lb0", "lb1")
        yield balancer
    finally:
        balancer.command("detach", "--all")


@pytest.fixture(params=SIDES)
def side(request: pytest.FixtureRequest) -> Side:
    return SIDES[request.param]


def test_requests_go_round_to_another_port_and_the_backend_sees_the_client(
    balancer: Balancer, side: Side
) -> None:
    seen = [ask(balancer.lab, "c1", side.vip, side.first) for _ in range(6)]
    assert sorted(seen) == ["b1", "b1", "b2", "b2", "b3", "b3"]
    assert ask(balancer.lab, "c1", side.vip, side.first, "/client") == side.first
    assert clients.https(balancer.lab, "c1", url("https", side.vip), side.first) in seen


def test_datagrams_are_answered_from_the_virtual_end(balancer: Balancer, side: Side) -> None:
    seen = {clients.dns(balancer.lab, "c1", side.vip, side.first) for _ in range(3)}
    assert seen == {"b1", "b2", "b3"}


def test_a_megabyte_goes_each_way(balancer: Balancer, side: Side) -> None:
    lab = balancer.lab
    down, up = lab.directory / "down", lab.directory / "up"
    fetch(lab, "--output", str(down), url("http", side.vip, "/big"))
    assert digest(down) == hashlib.sha256(servers.BIG_BODY).hexdigest()
    up.write_bytes(servers.BIG_BODY)
    taken = fetch(lab, "--data-binary", f"@{up}", url("http", side.vip, ":9000/")).split()
    assert taken[1] == hashlib.sha256(servers.BIG_BODY).hexdigest()


def test_connections_pass_through_every_state_and_nothing_is_left_active(
    balancer: Balancer, side: Side
) -> None:
    ask(balancer.lab, "c1", side.vip, side.first)
    rows = balancer.rows("connection", "list", "--client", side.first)
    states = {row["state"] for row in rows if row["protocol"] == "tcp"}
    assert states <= {"TIME_WAIT", "CLOSE"}
    assert balancer.reason("answered") > 0


@pytest.mark.parametrize("here", list(GATEWAYS.values()), ids=["ipv4", "ipv6"])
def test_a_backend_may_be_the_balancer_itself(balancer: Balancer, here: str) -> None:
    """Its answers leave by the host's own stack, and are given the virtual end on their way out."""
    lab, vip = balancer.lab, layout.VIP6 if ":" in here else layout.VIP4
    down, big = lab.directory / "down", lab.directory / "big"
    big.write_bytes(servers.BIG_BODY)
    argv = [PYTHON, "-m", "http.server", "9100", "--bind", here, "--directory", str(lab.directory)]
    server = lab.spawn("lb", argv)
    service = f"tcp:[{vip}]:9101" if ":" in vip else f"tcp:{vip}:9101"
    backend = f"[{here}]:9100" if ":" in here else f"{here}:9100"
    balancer.lvsxdp("service", "add", service)
    try:
        wait_for(lambda: f"{here}" in lab.run("lb", ["ss", "-Hltn", "sport = :9100"]).stdout)
        balancer.lvsxdp("backend", "add", service, backend, "--forward", "nat")
        fetch(lab, "--output", str(down), url("http", vip, ":9101/big"))
        assert digest(down) == hashlib.sha256(servers.BIG_BODY).hexdigest()
        rows = balancer.rows("connection", "list", "--service", service)
        assert [row["state"] for row in rows] == ["TIME_WAIT"]
    finally:
        balancer.lvsxdp("service", "delete", service, "--now")
        server.stop()


def test_what_keeps_answers_from_their_clients_is_told_with_its_remedy(
    balancer: Balancer, case: tuple[str, bool]
) -> None:
    lab, sysctl = balancer.lab, "net.ipv4.conf.lo.forwarding"
    balancer.lvsxdp("detach", "lb1")
    lab.run("lb", ["sysctl", "-q", "-w", f"{sysctl}=0"], check=True)
    balancer.lvsxdp("service", "add", "tcp:192.0.2.10:7000", "--name", "other")
    try:
        done = balancer.command("backend", "add", "other", "10.0.0.11:80", "--forward", "nat")
        assert f"{sysctl} is 0, so no answer of a backend by nat reaches its client" in done.stderr
        assert "answers come by lb1, which is not attached, and reach no client" in done.stderr
    finally:
        lab.run("lb", ["sysctl", "-q", "-w", f"{sysctl}=1"], check=True)
        balancer.lvsxdp("service", "delete", "other", "--now")
        balancer.lvsxdp("attach", "lb1", "--mode", case[0])

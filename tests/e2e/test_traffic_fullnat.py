"""Backends by fullnat, which have no road to their clients, serve them in every mode."""

import functools
import hashlib
import json
from collections.abc import Iterator
from typing import Any

import pytest

from lab import clients, layout, servers
from lab.topology import PYTHON, Lab
from tests.e2e.conftest import Balancer, ask, url, wait_for
from tests.e2e.test_traffic_modes import SIDES, TAKER, Side, case_name, digest, fetch, is_taking

POOL = {4: "10.0.0.100-10.0.0.101", 6: "2001:db8:0:2::100-2001:db8:0:2::101"}


def services(vip: str, backends: dict[str, str]) -> str:
    """HTTP to another port at the backends, uploads and DNS, all by fullnat."""

    def service(protocol: str, port: int, own: int) -> str:
        listed = ", ".join(f'{{address: "{a}", port: {own}}}' for a in backends.values())
        return (
            f'  - {{protocol: {protocol}, address: "{vip}", port: {port}, scheduler: rr,\n'
            f"     forward: fullnat, backends: [{listed}]}}\n"
        )

    ports = (("tcp", 80, 8080), ("tcp", 9000, 9000), ("udp", 53, 53))
    return "".join(service(*each) for each in ports)


CONFIG = (
    "capacity: {connections: 4096, persistence: 4096}\n"
    f'settings: {{source_pool: "{POOL[4]}, {POOL[6]}"}}\n'
    "services:\n" + services(layout.VIP4, layout.BACKEND4) + services(layout.VIP6, layout.BACKEND6)
)
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
    """The balancer, and backends that know their own network alone and hold no VIP."""
    for name in layout.BACKENDS:
        for vip in (layout.VIP4, layout.VIP6):
            lab.remove_vip(name, vip)
        for family in ("-4", "-6"):
            lab.run(name, ["ip", family, "route", "del", "default"])
            assert not json.loads(
                lab.run(name, ["ip", "-j", family, "route", "show", "default"]).stdout or "[]"
            )
        lab.spawn(name, [PYTHON, "-c", TAKER, name])
        wait_for(functools.partial(is_taking, lab, name))
    for pool in POOL.values():
        for address in pool.split("-"):
            prefix = layout.host_prefix(address)
            lab.run("lb", ["ip", "addr", "add", prefix, "dev", "lb1", "nodad"], check=True)
    balancer = Balancer(lab)
    try:
        balancer.attach(CONFIG, case[0], "lb0", "lb1")
        yield balancer
    finally:
        balancer.command("detach", "--all")


@pytest.fixture(params=SIDES)
def side(request: pytest.FixtureRequest) -> Side:
    return SIDES[request.param]


def test_clients_are_served_and_the_backend_sees_the_pool(balancer: Balancer, side: Side) -> None:
    seen = [ask(balancer.lab, "c1", side.vip, side.first) for _ in range(6)]
    assert sorted(seen) == ["b1", "b1", "b2", "b2", "b3", "b3"]
    pool = POOL[6 if ":" in side.vip else 4].split("-")
    told = {ask(balancer.lab, "c1", side.vip, side.first, "/client") for _ in range(4)}
    assert told <= set(pool)


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


@pytest.mark.parametrize("here", ["10.0.0.1", "2001:db8:0:2::1"], ids=["ipv4", "ipv6"])
def test_a_backend_may_be_the_balancer_itself(balancer: Balancer, here: str) -> None:
    """It is sent its client's own end, and answers by the host's stack."""
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
        balancer.lvsxdp("backend", "add", service, backend, "--forward", "fullnat")
        fetch(lab, "--output", str(down), url("http", vip, ":9101/big"))
        assert digest(down) == hashlib.sha256(servers.BIG_BODY).hexdigest()
    finally:
        balancer.lvsxdp("service", "delete", service, "--now")
        server.stop()


def test_a_narrow_road_to_the_backend_is_found_out(balancer: Balancer, side: Side) -> None:
    """The balancer's own road to b1 takes less: its client is told, and sends less at a time."""
    lab = balancer.lab
    is_six = ":" in side.vip
    backends = layout.BACKEND6 if is_six else layout.BACKEND4
    mtu = "1290" if is_six else "900"
    for address in backends.values():
        argv = ["ip", "route", "add", layout.host_prefix(address), "dev", "lb1", "mtu", "lock", mtu]
        lab.run("lb", argv, check=True)
    try:
        up = lab.directory / "up"
        up.write_bytes(servers.BIG_BODY)
        taken = fetch(lab, "--data-binary", f"@{up}", url("http", side.vip, ":9000/")).split()
        assert taken[1] == hashlib.sha256(servers.BIG_BODY).hexdigest()
        assert balancer.reason("too_big") > 0
    finally:
        for address in backends.values():
            lab.run("lb", ["ip", "route", "del", layout.host_prefix(address), "dev", "lb1"])


def test_what_has_no_port_left_is_counted_and_told(balancer: Balancer) -> None:
    """One port for each of two addresses: a third connection is dropped until one ends."""
    lab = balancer.lab
    balancer.lvsxdp("settings", "set", "source_ports=40000-40000")
    try:
        before = balancer.reason("busy")
        code = lab.run(
            "c1",
            [
                *("bash", "-c"),
                f"exec 3<>/dev/tcp/{layout.VIP4}/80 4<>/dev/tcp/{layout.VIP4}/80; "
                f"timeout 2 bash -c 'exec 5<>/dev/tcp/{layout.VIP4}/80'",
            ],
        ).returncode
        assert code == 124
        assert balancer.reason("busy") > before
    finally:
        balancer.lvsxdp("settings", "set", "source_ports=1024-65535")
    assert ask(lab, "c1", layout.VIP4, SIDES["ipv4"].first) in layout.BACKENDS

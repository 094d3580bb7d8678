"""FTP through nat: active and passive, by old and new commands, in every mode and family."""

import hashlib
from collections.abc import Iterator
from typing import Any

import pytest

from lab import clients, layout, servers
from lab.topology import PYTHON, Lab
from tests.e2e.conftest import Balancer
from tests.e2e.test_traffic_modes import SIDES, Side, case_name
from tests.e2e.test_traffic_nat import GATEWAYS

CONFIG = "capacity: {connections: 4096, persistence: 4096}\nservices:\n" + "".join(
    f'  - {{protocol: tcp, address: "{vip}", port: 21, scheduler: rr, forward: nat,\n'
    + "     backends: ["
    + ", ".join(f'{{address: "{address}"}}' for address in backends.values())
    + "]}\n"
    for vip, backends in ((layout.VIP4, layout.BACKEND4), (layout.VIP6, layout.BACKEND6))
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
    """The balancer, whose backends hold no VIP and send whatever they answer through it."""
    for name in layout.BACKENDS:
        for vip in (layout.VIP4, layout.VIP6):
            lab.remove_vip(name, vip)
        for family, gateway in GATEWAYS.items():
            lab.run(name, ["ip", family, "route", "replace", "default", "via", gateway], check=True)
    balancer = Balancer(lab)
    try:
        balancer.attach(CONFIG, case[0], "lb0", "lb1")
        yield balancer
    finally:
        balancer.command("detach", "--all")


@pytest.fixture(params=SIDES)
def side(request: pytest.FixtureRequest) -> Side:
    return SIDES[request.param]


def test_files_come_over_passive_connections(balancer: Balancer, side: Side) -> None:
    """curl connects to the very address that 227 names; over IPv6 it asks for 229."""
    seen = [clients.ftp_passive(balancer.lab, "c1", side.vip, side.first) for _ in range(3)]
    assert sorted(seen) == ["b1", "b2", "b3"]


def test_files_come_over_extended_passive_connections(balancer: Balancer, side: Side) -> None:
    host = f"[{side.vip}]" if ":" in side.vip else side.vip
    argv = ["curl", "-sS", "-m", "5", "--interface", side.first, f"ftp://{host}/whoami"]
    seen = {balancer.lab.run("c1", argv, check=True).stdout.strip() for _ in range(3)}
    assert seen == {"b1", "b2", "b3"}


def test_files_come_over_active_connections(balancer: Balancer, side: Side) -> None:
    """The backend connects from port 20, and the client sees the service do so."""
    seen = [clients.ftp_active(balancer.lab, "c1", side.vip, side.first) for _ in range(3)]
    assert sorted(seen) == ["b1", "b2", "b3"]
    rows = balancer.rows("connection", "list", "--client", side.first)
    data = [row for row in rows if row["virtual"] == end(side.vip, 20)]
    assert len(data) >= 3
    assert {row["state"] for row in data} <= {"TIME_WAIT", "CLOSE"}


def end(address: str, port: int) -> str:
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


SESSION = """
import ftplib, hashlib, sys
server, source, passive = sys.argv[1:]
ftp = ftplib.FTP(timeout=10)
ftp.connect(server, 21, source_address=(source, 0))
ftp.login()
ftp.set_pasv(passive == "passive")
ftp.trust_server_pasv_ipv4_address = True
names = set()
for turn in range(6):
    lines, body = [], hashlib.sha256()
    ftp.retrlines("RETR whoami", lines.append)
    names.update(lines)
    ftp.retrbinary("RETR big", body.update)
    print(body.hexdigest())
    ftp.voidcmd("NOOP")
ftp.quit()
print(*names)
"""


@pytest.mark.parametrize("way", ["active", "passive"])
def test_one_session_fetches_files_again_and_again(
    balancer: Balancer, side: Side, way: str
) -> None:
    """A megabyte each, with commands between: not a byte of the session is lost or out of place."""
    argv = [PYTHON, "-c", SESSION, side.vip, side.first, way]
    *digests, name = balancer.lab.run("c1", argv, check=True, timeout=60).stdout.split()
    assert set(digests) == {hashlib.sha256(servers.BIG_BODY).hexdigest()}
    assert len(digests) == 6 and name in layout.BACKENDS


def test_a_server_may_be_the_balancer_itself(balancer: Balancer) -> None:
    """What it says leaves by the host's own stack, and names the service's address all the same."""
    lab = balancer.lab
    started = servers.start_vsftpd(lab, "lb")
    service = f"tcp:{layout.VIP4}:21"
    for address in layout.BACKEND4.values():
        balancer.lvsxdp("backend", "edit", service, address, "--weight", "0")
    try:
        balancer.lvsxdp("backend", "add", service, "10.0.0.1", "--forward", "nat")
        source = SIDES["ipv4"].first
        assert clients.ftp_passive(lab, "c1", layout.VIP4, source) == "lb"
        assert clients.ftp_active(lab, "c1", layout.VIP4, source) == "lb"
    finally:
        balancer.lvsxdp("backend", "delete", service, "10.0.0.1", "--now")
        for address in layout.BACKEND4.values():
            balancer.lvsxdp("backend", "edit", service, address, "--weight", "1")
        started.stop()

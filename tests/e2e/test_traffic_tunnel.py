"""Backends by tunnel serve real clients in every mode, with complete frames and with offloads."""

import contextlib
import functools
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from lab import clients, layout, servers
from lab.topology import PYTHON, Lab
from lvsxdp import bytecode, compiler, maps, records
from lvsxdp.network import Network
from tests.datapath.harness import inside
from tests.e2e.conftest import Balancer, ask, url, wait_for
from tests.e2e.test_traffic_modes import SIDES, TAKER, Side, case_name, digest, fetch, is_taking

HERE = Path(__file__).resolve().parent
MODES = [("native", False), ("generic", False), ("tc", False), ("generic", True), ("tc", True)]
BACKENDS = {"ipv4": layout.BACKEND4, "ipv6": layout.BACKEND6}
COUNTS = ("ipip", "gue", "gre", "summed", "wrong")


@dataclass(frozen=True)
class Kind:
    """A tunnel, and the family of its outer header."""

    type: str
    outer: str
    checksum: str = "nocsum"


KINDS = [
    Kind(*each)
    for each in (
        ("ipip", "ipv4"),
        ("ipip", "ipv6"),
        ("gue", "ipv4"),
        ("gue", "ipv4", "csum"),
        ("gue", "ipv6", "csum"),
        ("gre", "ipv4"),
        ("gre", "ipv6", "csum"),
    )
]


def services(kind: Kind) -> str:
    """HTTP, uploads and DNS of both families."""
    port = ", port: 6080" if kind.type == "gue" else ""
    listed = ", ".join(f'{{address: "{a}"}}' for a in BACKENDS[kind.outer].values())
    return "capacity: {connections: 4096, persistence: 4096}\nservices:\n" + "".join(
        f'  - {{protocol: {protocol}, address: "{vip}", port: {number}, scheduler: rr,\n'
        f"     forward: tunnel, tunnel: {{type: {kind.type}, checksum: {kind.checksum}{port}}},\n"
        f"     backends: [{listed}]}}\n"
        for vip in (layout.VIP4, layout.VIP6)
        for protocol, number in (("tcp", 80), ("tcp", 9000), ("udp", 53))
    )


@pytest.fixture(scope="module", params=MODES, ids=case_name)
def case(request: pytest.FixtureRequest) -> tuple[str, bool]:
    mode, offload = request.param
    return str(mode), bool(offload)


@pytest.fixture(scope="module")
def lab_options(case: tuple[str, bool]) -> dict[str, Any]:
    return {"forwarding": "lo", "offload": case[1]}


@dataclass(frozen=True)
class Ends:
    """The far ends: what arrived in tunnels."""

    counts: maps.Map

    def seen(self) -> dict[str, int]:
        """How many packets came in what, since the last time."""
        found = {}
        for place, name in enumerate(COUNTS):
            row = self.counts.look_up(records.number(place)) or b""
            found[name] = sum(int.from_bytes(p, "little") for p in records.per_cpu(row, 8))
            self.counts.update(records.number(place), bytes(len(row)))
        return found


def unwrapping(lab: Lab, cache: Path) -> Ends:
    """Programs at the backends that take packets out of tunnels before the kernel sees them."""
    compiled = compiler.compile_source("unwrap.c", {}, cache=cache, folder=HERE)
    made = {name: table.create(name) for name, table in compiled.tables.items()}
    links = bytecode.Links(maps=made)
    (program,) = compiled.load_all(("unwrap",), maps.ProgramType.SCHED_CLS, links).values()
    for name in layout.BACKENDS:
        with inside(lab.netns(name)), Network() as net:
            net.attach_tc(net.link("eth0"), program)
    return Ends(maps.Map(made["counts"]))


@pytest.fixture(scope="module")
def far_ends(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Ends:
    return unwrapping(lab, tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module")
def balancer(lab: Lab, case: tuple[str, bool], far_ends: Ends) -> Iterator[Balancer]:
    for name in layout.BACKENDS:
        lab.spawn(name, [PYTHON, "-c", TAKER, name])
        wait_for(functools.partial(is_taking, lab, name))
    if case[1]:
        # whoever cuts trains of segments has to fill in every checksum, and inside of tunnels
        lab.run("lb", ["ethtool", "-K", "lb1", "tx", "off"], check=True)
    balancer = Balancer(lab)
    try:
        balancer.attach(services(KINDS[0]), case[0], "lb0")
        yield balancer
    finally:
        balancer.command("detach", "--all")


@pytest.fixture(params=SIDES)
def side(request: pytest.FixtureRequest) -> Side:
    return SIDES[request.param]


@contextlib.contextmanager
def through(far_ends: Ends, kind: Kind, *, complete: bool) -> Iterator[None]:
    """All that is balanced meanwhile comes in this tunnel, and with checksums that are right."""
    far_ends.seen()
    yield
    seen = far_ends.seen()
    summed, wrong = seen.pop("summed"), seen.pop("wrong")
    assert seen.pop(kind.type) > 0
    assert set(seen.values()) == {0}
    assert (summed > 0) == (kind.checksum != "nocsum")
    # while the client's own checksums are still to be filled in, no sum over them says anything
    assert wrong == 0 or not complete


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_pages_uploads_and_datagrams_come_through(
    balancer: Balancer, far_ends: Ends, case: tuple[str, bool], side: Side, kind: Kind
) -> None:
    lab = balancer.lab
    balancer.use(services(kind))
    down, up = lab.directory / "down", lab.directory / "up"
    up.write_bytes(servers.BIG_BODY)
    with through(far_ends, kind, complete=not case[1]):
        seen = [ask(lab, "c1", side.vip, side.first) for _ in range(6)]
        assert sorted(seen) == ["b1", "b1", "b2", "b2", "b3", "b3"]
        names = {clients.dns(lab, "c1", side.vip, side.first) for _ in range(3)}
        assert names == {"b1", "b2", "b3"}
        fetch(lab, "--output", str(down), url("http", side.vip, "/big"))
        assert digest(down) == hashlib.sha256(servers.BIG_BODY).hexdigest()
    # too big for the road with what is put before them: the client hears of it.  The laboratory's
    # bridge joins gre's packets and cuts them again, with one checksum for all
    taken = fetch(lab, "--data-binary", f"@{up}", url("http", side.vip, ":9000/")).split()
    assert taken[1] == hashlib.sha256(servers.BIG_BODY).hexdigest()

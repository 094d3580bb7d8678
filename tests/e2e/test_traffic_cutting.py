"""Datagrams that are too large for the road to their backend reach it in smaller fragments.

Senders fill in their checksums here: what one on this very host left to a card, nobody fills in.
"""

import time
from collections.abc import Iterator

import pytest

from lab import layout
from lab.topology import Lab
from tests.e2e import test_traffic_fragments
from tests.e2e.conftest import Balancer
from tests.e2e.test_traffic_fragments import ask, name_of
from tests.e2e.test_traffic_modes import SIDES

balancer = test_traffic_fragments.balancer
NARROW = "900"
CASES = [("native", False, "dr"), ("generic", False, "nat"), ("tc", False, "nat")]
forward = test_traffic_fragments.forward
lab_options = test_traffic_fragments.lab_options


@pytest.fixture(scope="module", params=CASES, ids=name_of)
def case(request: pytest.FixtureRequest) -> tuple[str, bool, str]:
    mode, offload, forward = request.param
    return str(mode), bool(offload), str(forward)


@pytest.fixture
def narrow(lab: Lab, balancer: Balancer) -> Iterator[None]:
    """The roads to the backends take 900 bytes."""
    for address in layout.BACKEND4.values():
        route = ["ip", "route", "replace", address, "dev", "lb1", "mtu", "lock", NARROW]
        lab.run("lb", route, check=True)
    # what XDP knows of a road it asks for anew each second
    time.sleep(1.2)
    yield
    for address in layout.BACKEND4.values():
        lab.run("lb", ["ip", "route", "del", address, "dev", "lb1"], check=True)


def test_datagrams_reach_their_backend_in_smaller_fragments(
    balancer: Balancer, narrow: None
) -> None:
    for length in (800, 1400, 3000, 9000):
        ask(balancer, SIDES["ipv4"], length)
    assert balancer.reason("too_big") == 0

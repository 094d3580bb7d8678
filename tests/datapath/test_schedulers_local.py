"""What lblc and lblcr remember of a destination, for how long, and what edits leave of it."""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from lvsxdp import maps, records, views
from tests.datapath.harness import BACKENDS, Datapath, tcp

A, B, C, D = "10.0.0.11", "10.0.0.12", "10.0.0.13", "10.0.0.14"
HERE, THERE = "172.16.0.100:80", "172.16.0.101:80"
BOTH = ["lblc", "lblcr"]
SHOP = "mark:1"


def service(scheduler: str, weights: dict[str, int], **settings: Any) -> str:
    """A service of many destinations with these backends."""
    backends = [{"address": address, "weight": weight} for address, weight in weights.items()]
    rule = {"mark": 1, "protocol": "tcp", "address": "172.16.0.0/16", "port": 80}
    shop = {"mark": 1, "family": "ipv4", "scheduler": scheduler, "backends": backends}
    return yaml.safe_dump(
        {"marks": [rule], "services": [shop], "settings": {"require_local": 0, **settings}}
    )


def carry(datapath: Datapath, loads: dict[str, tuple[int, int]]) -> None:
    """Each backend carries so many active and inactive connections, and the others none."""
    balancer = datapath.balancer
    balancer.reap(views.places(balancer, views.CONNECTIONS), force=True)
    for name, place in balancer.state.book.services[SHOP].backends.items():
        active, inactive = loads.get(name, (0, 0))
        balancer.map("loads").store_word(place.id, active, 0)
        balancer.map("loads").store_word(place.id, active + inactive, 8)


class Clients:
    """Clients one after another, each of which opens a connection."""

    def __init__(self, datapath: Datapath) -> None:
        self.datapath, self.port = datapath, 1024

    def at(self, destination: str) -> str | None:
        """The backend that the next one gets at a destination."""
        self.port += 1
        self.datapath.confirm()
        return self.datapath.backend_for(tcp(f"198.51.100.7:{self.port}", destination))


@pytest.fixture
def clients(datapath: Datapath) -> Clients:
    """Nobody has come yet."""
    return Clients(datapath)


ALIKE = {A: 10, B: 10, C: 10}


@pytest.mark.parametrize("scheduler", BOTH)
def test_a_destination_keeps_its_backend_while_others_carry_less(
    datapath: Datapath, clients: Clients, scheduler: str
) -> None:
    datapath.apply(service(scheduler, ALIKE))
    assert clients.at(HERE) == C
    carry(datapath, {C: (9, 100)})
    assert (clients.at(HERE), clients.at(THERE)) == (C, B)


@pytest.mark.parametrize("scheduler", BOTH)
@pytest.mark.parametrize("setting", ["lblc_expiration", "lblcr_expiration"])
def test_a_destination_that_nobody_asks_for_is_forgotten_after_its_time(
    datapath: Datapath, clients: Clients, scheduler: str, setting: str
) -> None:
    datapath.apply(service(scheduler, ALIKE, **{setting: 1000}))
    assert clients.at(HERE) == C
    for _ in range(3):
        datapath.later(999)
        carry(datapath, {C: (0, 100)})
        assert clients.at(HERE) == C
    datapath.later(1001)
    carry(datapath, {C: (0, 100)})
    expected = B if setting == f"{scheduler}_expiration" else C
    assert clients.at(HERE) == expected


@pytest.mark.parametrize("scheduler", BOTH)
def test_without_a_setting_a_destination_is_kept_for_a_day(
    datapath: Datapath, clients: Clients, scheduler: str
) -> None:
    datapath.apply(service(scheduler, ALIKE))
    assert clients.at(HERE) == C
    for seconds, expected in ((86399, C), (86401, B)):
        datapath.later(seconds)
        carry(datapath, {C: (0, 100)})
        assert clients.at(HERE) == expected


@pytest.mark.parametrize("scheduler", BOTH)
def test_another_takes_over_only_where_one_has_more_than_its_weight_and_another_has_room(
    datapath: Datapath, clients: Clients, scheduler: str
) -> None:
    datapath.apply(service(scheduler, ALIKE))
    assert clients.at(HERE) == C
    carry(datapath, {A: (5, 0), B: (5, 0), C: (11, 0)})
    assert clients.at(HERE) == C  # 2 * 5 is not less than 10: no room
    carry(datapath, {A: (4, 0), B: (5, 0), C: (10, 0)})
    assert clients.at(HERE) == C  # 10 is not more than 10
    carry(datapath, {A: (4, 0), B: (5, 0), C: (11, 0)})
    assert clients.at(HERE) == A


@pytest.mark.parametrize("scheduler", BOTH)
def test_edits_of_others_leave_a_destination_where_it_is(
    datapath: Datapath, clients: Clients, scheduler: str
) -> None:
    """Also where each moves the backend to another place in the list."""
    datapath.apply(service(scheduler, {C: 10, **ALIKE}))
    datapath.apply(service(scheduler, {A: 10, B: 10}))
    datapath.apply(service(scheduler, ALIKE))
    assert clients.at(HERE) == C
    for weights in ({**ALIKE, D: 10}, {A: 10, C: 10, D: 10}, {C: 7, D: 10}, {D: 3, C: 7, A: 1}):
        datapath.apply(service(scheduler, weights))
        carry(datapath, {C: (1, 100)})
        assert clients.at(HERE) == C


@pytest.mark.parametrize("scheduler", BOTH)
def test_a_backend_that_is_removed_or_quiesced_is_kept_for_nobody(
    datapath: Datapath, clients: Clients, scheduler: str
) -> None:
    datapath.apply(service(scheduler, ALIKE))
    assert (clients.at(HERE), clients.at(THERE)) == (C, B)
    datapath.apply(service(scheduler, {A: 10, B: 0}))
    assert (clients.at(HERE), clients.at(THERE)) == (A, A)
    datapath.apply(service(scheduler, ALIKE))
    carry(datapath, {A: (1, 100)})
    assert clients.at(HERE) == A


@pytest.mark.parametrize("scheduler", BOTH)
def test_another_choice_of_scheduler_remembers_nothing(
    datapath: Datapath, clients: Clients, scheduler: str
) -> None:
    datapath.apply(service(scheduler, ALIKE))
    assert clients.at(HERE) == C
    for between in ("wlc", *(name for name in BOTH if name != scheduler)):
        datapath.apply(service(between, ALIKE))
        datapath.apply(service(scheduler, ALIKE))
        carry(datapath, {C: (1, 100)})
        assert clients.at(HERE) != C
        carry(datapath, {A: (1, 100), B: (1, 100)})
        datapath.apply(service("rr", ALIKE))
        datapath.apply(service(scheduler, ALIKE))
        assert clients.at(HERE) == C


@pytest.mark.parametrize("scheduler", BOTH)
def test_nobody_is_chosen_where_nobody_has_a_weight(
    datapath: Datapath, clients: Clients, scheduler: str
) -> None:
    datapath.apply(service(scheduler, ALIKE))
    assert clients.at(HERE) == C
    for weights in (dict.fromkeys(ALIKE, 0), {}):
        datapath.apply(service(scheduler, weights))
        assert clients.at(HERE) is None
    assert datapath.reasons()["no_backend"] == 2


# ---- sets ----


def test_a_set_grows_where_its_members_have_too_much_and_the_least_loaded_is_taken(
    datapath: Datapath, clients: Clients
) -> None:
    datapath.apply(service("lblcr", ALIKE))
    assert clients.at(HERE) == C
    carry(datapath, {B: (5, 0), C: (11, 0)})
    assert clients.at(HERE) == A
    carry(datapath, {A: (3, 0), C: (2, 0)})
    assert clients.at(HERE) == C  # B has less, and is not of the set
    carry(datapath, {A: (2, 0), C: (2, 0)})
    assert clients.at(HERE) == A  # of equals the one that came last


def test_a_set_that_has_not_changed_for_long_loses_its_most_loaded(
    datapath: Datapath, clients: Clients
) -> None:
    datapath.apply(service("lblcr", ALIKE, lblcr_expiration=1000))
    assert clients.at(HERE) == C
    carry(datapath, {B: (5, 0), C: (11, 0)})
    assert clients.at(HERE) == A
    for _ in range(2):
        datapath.later(501)
        carry(datapath, {C: (0, 100)})
        assert clients.at(HERE) == A
    carry(datapath, {A: (0, 100)})
    assert clients.at(HERE) == A  # C was thrown out
    datapath.later(501)
    carry(datapath, {A: (0, 100)})
    assert clients.at(HERE) == A
    datapath.later(501)
    assert clients.at(HERE) == A  # the last one stays


@pytest.fixture
def lasting(datapath: Datapath) -> Iterator[None]:
    """Connections of one packet last for as long as established ones."""
    state, table = datapath.balancer.schema.enums["state"], datapath.balancer.map("timeouts")
    key = records.number(state["syn_recv"])
    before = table.look_up(key) or b""
    table.update(key, table.look_up(records.number(state["established"])) or b"")
    yield
    table.update(key, before)


@pytest.mark.usefixtures("lasting")
@pytest.mark.parametrize("count", [8, 9, 128, 129, 1000])
def test_a_set_may_hold_every_backend_of_a_long_list(datapath: Datapath, count: int) -> None:
    """A backend joins when all others have more than their weight, 1: at the second connection."""
    names = [f"10.0.{1 + n // 200}.{1 + n % 200}" for n in range(count)]
    datapath.apply(service("lblcr", dict.fromkeys(names, 1)))
    frame = bytes(datapath.to_host(tcp("198.51.100.7:1024", HERE)))
    for port in range(1024, 1024 + 3 * count):
        sent = frame[:34] + port.to_bytes(2, "big") + frame[36:]
        maps.run_program(datapath.entry["xdp"], sent, ifindex=datapath.ifindex["lb0"])
    chosen = Counter(row["backend"] for row in datapath.connections())
    assert chosen == dict.fromkeys(names, 3)
    members = kept(datapath)
    places = datapath.balancer.state.book.services[SHOP].backends.values()
    assert sorted(members) == sorted(place.generation << 32 | place.id for place in places)


def kept(datapath: Datapath) -> list[int]:
    """The backends of all sets of the service as it is now."""
    place = datapath.balancer.state.book.services[SHOP]
    found: list[int] = []
    for key, value in datapath.balancer.map("destinations").items():
        _, service_id, since, _, _ = struct.unpack("<16s4I", key)
        if (service_id, since) == (place.id, place.since):
            found += struct.unpack("<32x" + "Q8x" * 8, value)
    return [reference for reference in found if reference]


def test_backends_of_other_services_are_kept_apart(datapath: Datapath, clients: Clients) -> None:
    datapath.apply(
        """
marks:
- {mark: 1, protocol: tcp, address: 172.16.0.0/16, port: 80}
- {mark: 2, protocol: tcp, address: 172.16.0.0/16, port: 81}
services:
- {mark: 1, scheduler: lblc, backends: [{address: 10.0.0.11}]}
- {mark: 2, scheduler: lblc, backends: [{address: 10.0.0.12}]}
settings: {require_local: 0}
"""
    )
    for _ in range(2):
        assert (clients.at(HERE), clients.at(HERE.replace(":80", ":81"))) == (A, B)
    assert {A, B, C, D} <= set(BACKENDS)

"""Ids of what is removed and comes back, and who gets them where it does not."""

from __future__ import annotations

import dataclasses
import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lvsxdp.book import FORGOTTEN, BackendPlace, Book, Parted, Removed
from lvsxdp.errors import ConflictError
from lvsxdp.model import Backend, Capacity, Config, Family, MarkKey, Service, Settings
from tests.unit.test_tables import PROPERTY, Machine, neighbours

SETTINGS = Settings(expire_nodest_conn=False)
CAPACITY = Capacity(connections=8, persistence=8, services=2, backends=4)


def service(mark: int, *numbers: int) -> Service:
    """A service by mark with the backends 10.0.0.N."""
    backends = (Backend(ipaddress.ip_address(f"10.0.0.{n}")) for n in numbers)
    return Service(MarkKey(mark, Family.IPV4), backends=tuple(backends))


def of(*services: Service) -> Config:
    return Config(services=services, settings=SETTINGS, capacity=CAPACITY)


def places(machine: Machine) -> dict[tuple[str, str], BackendPlace]:
    """Where every backend stands, by service and name."""
    return {
        (key, name): place
        for key, at in machine.book.services.items()
        for name, place in at.backends.items()
    }


@PROPERTY
@given(pair=neighbours())
def test_what_comes_back_has_its_ids_and_generations_again(pair: tuple[Config, Config]) -> None:
    """There is room for all of it at once."""
    room = dataclasses.replace(pair[0].capacity, services=64, backends=256)
    one, other = (dataclasses.replace(c, settings=SETTINGS, capacity=room) for c in pair)
    machine = Machine()
    machine.become(one)
    before, ids = places(machine), {k: s.id for k, s in machine.book.services.items() if s.backends}
    machine.become(other)
    taken = [place.id for place in places(machine).values()]
    gone = [parted.id for _, _, parted in machine.book.parted()]
    assert len({*taken, *gone}) == len(taken) + len(gone)
    machine.become(one)
    assert places(machine) == before
    assert {k: s.id for k, s in machine.book.services.items() if s.backends} == ids


def test_nothing_comes_back_where_connections_to_removed_backends_expire() -> None:
    machine = Machine()
    expiring = dataclasses.replace(SETTINGS, expire_nodest_conn=True)
    for numbers in ((1, 2), (1,), (1, 2)):
        machine.become(dataclasses.replace(of(service(1, *numbers)), settings=expiring))
        assert machine.book.removed == {}
    assert [place.generation for place in places(machine).values()] == [1, 2]


def test_a_removed_backends_id_is_given_away_where_no_other_is_free() -> None:
    machine = Machine()
    for numbers in ((1, 2, 3), (1, 2), (1, 2, 4, 5)):
        machine.become(of(service(1, *numbers)))
    assert {p.id for p in places(machine).values()} == {0, 1, 2, 3}
    assert machine.book.removed == {}
    fifth = places(machine)["mark:1", "10.0.0.5"]
    assert (fifth.id, fifth.generation) == (2, 2)


def test_an_id_is_not_given_away_in_the_change_that_removes_its_backend() -> None:
    """Packets find the backend until the change takes effect."""
    machine = Machine()
    machine.become(of(service(1, 1, 2, 3, 4)))
    with pytest.raises(ConflictError, match="all 4 backends are taken"):
        machine.plan(of(service(1, 1, 2, 3, 5)))
    machine = Machine()
    machine.become(of(service(1, 1, 2, 3, 4)))
    machine.become(of(service(1, 1, 2, 3)))
    machine.become(of(service(1, 1, 2, 3, 5)))
    assert places(machine)["mark:1", "10.0.0.5"] == BackendPlace(3, 2)


def test_a_removed_services_id_is_given_away_where_no_other_is_free() -> None:
    machine = Machine()
    for marks in ((1, 2), (2,), (2, 3)):
        machine.become(of(*(service(mark, mark) for mark in marks)))
    assert {key: at.id for key, at in machine.book.services.items()} == {"mark:2": 1, "mark:3": 0}
    assert machine.book.removed == {}


# ------------------------------------------------------------------------------------- forgetting


def kept(idle: int) -> Book:
    """A book that keeps one removed backend."""
    return Book(removed={"mark:1": Removed(4, {"10.0.0.1": Parted(7, 2, idle)})})


@given(now=st.integers(0, 10**6), idle=st.integers(1, 10**6))
def test_what_entries_refer_to_is_kept(now: int, idle: int) -> None:
    book = kept(idle)
    assert book.forget_idle({2 << 32 | 7}, now)
    assert book == kept(0)


@given(now=st.integers(0, 10**6))
def test_what_nothing_refers_to_is_kept_for_two_minutes_more(now: int) -> None:
    book = kept(0)
    assert book.forget_idle({1 << 32 | 7}, now)
    since = max(now, 1)
    assert book == kept(since)
    assert not book.forget_idle(set(), since + FORGOTTEN - 1)
    assert book.forget_idle(set(), since + FORGOTTEN)
    assert book.removed == {}


def test_a_copy_of_the_book_keeps_its_own() -> None:
    book = kept(0)
    book.copy().forget("mark:1", "10.0.0.1")
    assert book == kept(0)

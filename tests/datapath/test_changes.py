"""Changes of the configuration in the real maps: what they lead to, also where one is killed."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import pathlib
import signal
import socket
import struct
from collections.abc import Callable, Iterator, Mapping

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from lvsxdp import config, journal, maps, records, views
from lvsxdp.controller import Balancer
from lvsxdp.maps import Map
from lvsxdp.model import Capacity, Config, Features
from tests.datapath.harness import Datapath, tcp
from tests.said import assert_says
from tests.unit.strategies import CONFIGS

A, B, C = "10.0.0.11", "10.0.0.12", "10.0.0.13"
HASHES = ("services",)


class Table(Mapping[bytes, bytes]):
    """A map in the kernel as assert_says reads it."""

    def __init__(self, of: Map, is_hash: bool) -> None:
        self.of = of
        rows = dict(of.items()) if is_hash else None
        self.rows = rows

    def __getitem__(self, key: bytes) -> bytes:
        found = self.of.look_up(key) if self.rows is None else self.rows.get(key)
        if found is None:
            raise KeyError(key)
        return found

    def __iter__(self) -> Iterator[bytes]:
        every = map(records.number, range(self.of.capacity))
        return iter(every if self.rows is None else self.rows)

    def __len__(self) -> int:
        return self.of.capacity if self.rows is None else len(self.rows)


class Tables(Mapping[str, Mapping[bytes, bytes]]):
    """All maps of a balancer."""

    def __init__(self, balancer: Balancer) -> None:
        self.balancer = balancer

    def __getitem__(self, name: str) -> Table:
        return Table(self.balancer.map(name), name in HASHES)

    def __iter__(self) -> Iterator[str]:
        return iter(self.balancer.schema.values)

    def __len__(self) -> int:
        return len(self.balancer.schema.values)


def assert_is(balancer: Balancer, wanted: Config) -> None:
    """The maps and the record say this configuration, and nothing is left to be finished."""
    indices = {name: index for index, name in socket.if_nameindex()}
    assert_says(balancer.schema, Tables(balancer), balancer.state.book, wanted, indices)
    assert balancer.state.config == wanted
    assert not journal.is_unfinished(balancer.where)


# ------------------------------------------------------------------------------- any two of them


def fitted(drawn: Config, capacity: Capacity) -> Config:
    """A configuration that this balancer can have, with interfaces that are here."""
    marks = tuple(
        dataclasses.replace(rule, interfaces=("lb0", "lb1")[: len(rule.interfaces)])
        for rule in drawn.marks
    )
    return dataclasses.replace(drawn, marks=marks, capacity=capacity, features=Features.ALL)


@settings(
    max_examples=25,
    deadline=None,
    phases=[phase for phase in Phase if phase is not Phase.explain],
    suppress_health_check=[
        HealthCheck.too_slow,
        HealthCheck.filter_too_much,
        HealthCheck.function_scoped_fixture,
    ],
)
@given(drawn=st.lists(CONFIGS, min_size=2, max_size=3))
def test_whatever_was_there_the_maps_then_say_the_new_configuration(
    datapath: Datapath, drawn: list[Config]
) -> None:
    for each in drawn:
        wanted = fitted(each, datapath.capacity)
        datapath.balancer.apply(wanted, datapath.net)
        assert_is(datapath.balancer, wanted)


# ------------------------------------------------------------------------------- killed

OLD = f"""
marks:
  - {{mark: 5, protocol: tcp, address: 192.0.2.11, ports: [81, 443]}}
  - {{mark: 6, protocol: udp, address: 192.0.2.0/24}}
services:
  - {{name: stays, protocol: tcp, address: 192.0.2.10, port: 80, scheduler: wrr,
     backends: [{{address: {A}}}, {{address: {B}, weight: 3}}]}}
  - {{name: goes, protocol: tcp, address: 192.0.2.11, port: 80, backends: [{{address: {A}}}]}}
  - {{mark: 5, persistence: 300, backends: [{{address: {C}}}]}}
"""
NEW = f"""
marks:
  - {{mark: 5, protocol: tcp, address: 192.0.2.11, ports: [81, 8443]}}
  - {{mark: 7, protocol: udp, address: 192.0.2.0/25}}
services:
  - {{name: stays, protocol: tcp, address: 192.0.2.10, port: 80, scheduler: wlc, persistence: 60,
     backends: [{{address: {A}, weight: 0}}, {{address: {C}}}]}}
  - {{name: comes, protocol: udp, address: 192.0.2.12, port: any, persistence: 60,
     backends: [{{address: {B}}}]}}
  - {{name: too, protocol: tcp, address: 192.0.2.13, port: 21, backends: [{{address: {B}}}]}}
  - {{mark: 5, persistence: 300, backends: [{{address: {C}}}]}}
settings: {{require_local: false}}
"""
STEPS: list[tuple[type | object, str]] = [
    *((Map, name) for name in ("update", "update_rows", "reset", "store_word", "write", "delete")),
    *((pathlib.Path, name) for name in ("rename", "touch", "unlink", "open")),
    (os, "fsync"),
    (maps, "run_program"),
]


@contextlib.contextmanager
def counting(reached: Callable[[], None]) -> Iterator[None]:
    """Calls `reached` before every step that changes a map or a file."""
    with pytest.MonkeyPatch.context() as patch:
        for owner, name in STEPS:
            patch.setattr(owner, name, before(reached, getattr(owner, name)))
        yield


def before(reached: Callable[[], None], step: Callable[..., object]) -> Callable[..., object]:
    def both(*arguments: object, **named: object) -> object:
        reached()
        return step(*arguments, **named)

    return both


def killed_at(number: int, work: Callable[[], object]) -> bool:
    """Does the work in a process that is killed before that step; whether it came to that."""
    child = os.fork()
    if child == 0:
        left = number

        def reached() -> None:
            nonlocal left
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            left -= 1

        status = 1
        with contextlib.suppress(BaseException), counting(reached):
            work()
            status = 0
        os._exit(status)
    status = os.waitpid(child, 0)[1]
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0
    return os.WIFSIGNALED(status)


def reopened(datapath: Datapath) -> Balancer:
    """The balancer as the next command finds it."""
    datapath.balancer.close()
    datapath.balancer = Balancer.open(datapath.balancer.where)
    return datapath.balancer


def expiring(of: Config, expire: bool) -> Config:
    """The configuration under which connections to removed backends expire, or wait for them."""
    settings = dataclasses.replace(of.settings, expire_nodest_conn=expire)
    return dataclasses.replace(of, settings=settings)


def parsed(datapath: Datapath, text: str) -> Config:
    return dataclasses.replace(config.load(text)[0], capacity=datapath.capacity)


@pytest.mark.parametrize(
    ("one", "other", "expire"),
    [
        *((OLD, NEW, True), (NEW, OLD, True), ("{}", NEW, True), (NEW, "{}", True)),
        *((OLD, NEW, False), (NEW, OLD, False)),
    ],
)
def test_a_change_that_is_killed_anywhere_is_finished_or_undone_by_the_next_command(
    datapath: Datapath, one: str, other: str, expire: bool
) -> None:
    """Also where what is removed may come back, and does with each second change."""
    old, new = (expiring(parsed(datapath, text), expire) for text in (one, other))
    # what comes back takes other steps than what was never there: all rounds are alike
    for each in (old, new, old):
        datapath.balancer.apply(each, datapath.net)
    found = []
    number = 0
    while killed_at(number, lambda: datapath.balancer.apply(new, datapath.net)):
        balancer = reopened(datapath)
        found.append(balancer.state.config == new)
        assert_is(balancer, new if found[-1] else old)
        balancer.apply(old, datapath.net)
        assert_is(balancer, old)
        number += 1
    assert_is(reopened(datapath), new)
    # once it has begun to take effect it is not given up
    assert found == sorted(found)
    assert {True, False} == set(found)


def test_a_recovery_that_is_killed_itself_is_finished_by_the_next_command(
    datapath: Datapath,
) -> None:
    old, new = parsed(datapath, OLD), parsed(datapath, NEW)
    where = datapath.balancer.where
    ends = set()
    for first in (12, 30, 42, 52, 60):
        datapath.balancer.apply(old, datapath.net)
        assert killed_at(first, lambda: datapath.balancer.apply(new, datapath.net))
        number = 0
        while killed_at(number, lambda: Balancer.open(where).close()):
            number += 1
        assert number
        balancer = reopened(datapath)
        ends.add(balancer.state.config == new)
        assert_is(balancer, new if balancer.state.config == new else old)
    assert ends == {True, False}


def test_a_return_of_backends_that_is_killed_loses_neither_connection_nor_count(
    datapath: Datapath,
) -> None:
    old = expiring(parsed(datapath, OLD), expire=False)
    away = dataclasses.replace(old, services=old.services[:1])
    datapath.balancer.apply(old, datapath.net)
    datapath.confirm()

    def packet(flags: str) -> str | None:
        return datapath.backend_for(tcp("198.51.100.7:1001", "192.0.2.11:81", flags))

    assert [packet(flags) for flags in "SA"] == [C, C]
    datapath.balancer.apply(away, datapath.net)
    number = 0
    while killed_at(number, lambda: datapath.balancer.apply(old, datapath.net)):
        back = reopened(datapath).state.config == old
        datapath.confirm()
        assert packet("A") == (C if back else None)
        datapath.balancer.apply(away, datapath.net)
        assert packet("A") is None
        number += 5
    reopened(datapath)
    datapath.confirm()
    assert packet("A") == C
    row = datapath.backends()[C]
    # the service was made anew, and counts anew what it gives its backends
    assert (row["active"], row["inactive"], row["connections"]) == (1, 0, 0)


def test_a_change_for_which_there_is_no_room_leaves_everything_as_it_was(
    datapath: Datapath,
) -> None:
    old = parsed(datapath, OLD)
    datapath.balancer.apply(old, datapath.net)
    number = 0

    def reached() -> None:
        nonlocal number
        number += 1
        if number == 30:
            raise OSError("no room")

    with counting(reached), pytest.raises(OSError, match="no room"):
        datapath.balancer.apply(parsed(datapath, NEW), datapath.net)
    assert_is(datapath.balancer, old)
    assert_is(reopened(datapath), old)


def test_a_change_that_is_killed_loses_no_connection_and_no_client(datapath: Datapath) -> None:
    old, new = parsed(datapath, OLD), parsed(datapath, NEW)
    datapath.apply(OLD)

    def packet(flags: str) -> str | None:
        return datapath.backend_for(tcp("198.51.100.7:1001", "192.0.2.11:81", flags))

    assert [packet(flags) for flags in "SA"] == [C, C]
    kept = [dict(row, expires_in=None) for row in datapath.persistence()]
    for number in range(0, 60, 7):
        killed_at(number, lambda: datapath.balancer.apply(new, datapath.net))
        reopened(datapath)
        datapath.confirm()
        assert packet("A") == C
        assert [dict(row, expires_in=None) for row in datapath.persistence()] == kept
        datapath.balancer.apply(old, datapath.net)


# ---------------------------------------------------------------------- whatever its history

CLIENTS, AT_ONCE = 10_000, 2_000


def hashed(scheduler: str, servers: str) -> str:
    """A service with these backends that chooses by a hash."""
    return (
        f"services:\n- {{protocol: tcp, address: 192.0.2.10, port: 80, scheduler: {scheduler},"
        f" backends: [{servers}]}}\n"
    )


def choices(datapath: Datapath) -> dict[str, str]:
    """Client -> backend of so many clients' connections, made by the TC programs."""
    found: dict[str, str] = {}
    balancer = datapath.balancer
    known = balancer.state.attachments
    balancer.state.attachments = [dataclasses.replace(a, mode="tc") for a in known]
    balancer.refresh_network(datapath.net)
    frame = bytes(datapath.to_host(tcp("198.51.0.0:1001", "192.0.2.10:80")))
    context = bytearray(192)
    struct.pack_into("<I", context, 40, datapath.ifindex["lb0"])
    try:
        for first in range(0, CLIENTS, AT_ONCE):
            for number in range(first, first + AT_ONCE):
                sent = frame[:28] + number.to_bytes(2, "big") + frame[30:]
                maps.run_program(datapath.entry["tc"], sent, context=bytes(context))
            found |= {row["client"]: row["backend"] for row in datapath.connections()}
            balancer.reap(views.places(balancer, views.CONNECTIONS), force=True)
    finally:
        balancer.state.attachments = known
        balancer.refresh_network(datapath.net)
    return found


@pytest.mark.parametrize(
    ("scheduler", "chosen"), [("sh", {A, B, C}), ("dh", {C}), ("mh", {A, B, C})]
)
def test_choices_are_alike_built_in_one_go_or_by_edits(
    datapath: Datapath, scheduler: str, chosen: set[str]
) -> None:
    wanted = f"{{address: {A}, weight: 2}}, {{address: {B}}}, {{address: {C}, weight: 5}}"
    datapath.apply(hashed(scheduler, wanted))
    in_one_go = choices(datapath)
    datapath.clear()
    for servers in (
        f"{{address: {C}}}",
        f"{{address: {C}, weight: 0}}, {{address: 10.0.0.14}}",
        f"{{address: {B}, weight: 9}}, {{address: 10.0.0.14}}, {{address: {C}}}",
        f"{{address: {A}}}, {{address: {B}}}, {{address: {C}, weight: 5}}",
        wanted,
    ):
        datapath.apply(hashed(scheduler, servers))
    assert len(in_one_go) == CLIENTS
    assert choices(datapath) == in_one_go
    assert set(in_one_go.values()) == chosen

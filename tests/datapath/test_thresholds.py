"""Thresholds: when a backend is overloaded, whom that keeps away, and when it is over."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable

import pytest

from lvsxdp import ageing, views
from lvsxdp.entries import Wanted
from tests.datapath.harness import Datapath, tcp, udp

A, B = "10.0.0.11", "10.0.0.12"
VIP, OTHER_VIP = "192.0.2.10:80", "192.0.2.11:53"
CLIENT = "198.51.100.7"


def web(thresholds: str, scheduler: str = "fo", more: str = "") -> str:
    """A service whose backend A, with these thresholds, comes before B; and one beside it."""
    return f"""
services:
  - protocol: tcp
    address: 192.0.2.10
    port: 80
    scheduler: {scheduler}
    {more}
    backends:
      - {{address: {A}, weight: 10, {thresholds}}}
      - {{address: {B}, weight: 1}}
  - {{protocol: udp, address: 192.0.2.11, port: 53, scheduler: rr, backends: [{{address: {B}}}]}}
"""


def opened(datapath: Datapath, ports: Iterable[int], client: str = CLIENT) -> str:
    """The backends, by letter, that a client's new connections from these ports get."""
    letters = {A: "A", B: "B", None: "-"}
    found = [datapath.backend_for(tcp(f"{client}:{port}", VIP)) for port in ports]
    return "".join(letters[backend] for backend in found)


def end(datapath: Datapath, port: int) -> None:
    """A client's connection is reset, and ends ten seconds later."""
    for flags in ("A", "R"):
        datapath.deliver(tcp(f"{CLIENT}:{port}", VIP, flags))
    datapath.later(12)
    ageing.sweep(datapath.balancer)


def state(datapath: Datapath) -> tuple[str, int]:
    """What `backend list` says of A: its state, and its connections."""
    row = datapath.backends()[A]
    return row["state"], row["active"] + row["inactive"]


# ----------------------------------------------------------------------------------- hysteresis


def test_with_its_upper_threshold_it_gets_no_more_until_a_quarter_is_gone(
    datapath: Datapath,
) -> None:
    datapath.apply(web("upper_threshold: 4"))
    assert opened(datapath, range(1001, 1006)) == "AAAAB"
    end(datapath, 1001)
    assert (state(datapath), opened(datapath, [1006])) == (("overloaded", 3), "B")
    end(datapath, 1002)
    assert (state(datapath), opened(datapath, [1007])) == (("active", 2), "A")


def test_a_lower_threshold_decides_when_it_gets_some_again(datapath: Datapath) -> None:
    datapath.apply(web("upper_threshold: 3, lower_threshold: 1"))
    assert opened(datapath, range(1001, 1005)) == "AAAB"
    end(datapath, 1001)
    end(datapath, 1002)
    assert opened(datapath, [1005]) == "B"
    end(datapath, 1003)
    assert opened(datapath, range(1006, 1010)) == "AAAB"


def test_on_the_way_up_it_gets_some_though_it_is_above_the_lower_one(datapath: Datapath) -> None:
    datapath.apply(web("upper_threshold: 4, lower_threshold: 2"))
    assert opened(datapath, range(1001, 1004)) == "AAA"
    end(datapath, 1001)
    assert opened(datapath, range(1004, 1007)) == "AAB"


def test_datagrams_count_as_connections_do(datapath: Datapath) -> None:
    datapath.apply(web("upper_threshold: 2").replace("protocol: tcp", "protocol: udp"))
    got = [datapath.backend_for(udp(f"{CLIENT}:{port}", VIP)) for port in (1, 2, 3)]
    assert got == [A, A, B]


# -------------------------------------------------------------------------------- whom it keeps


def test_packets_of_its_connections_still_reach_it(datapath: Datapath) -> None:
    datapath.apply(web("upper_threshold: 1"))
    assert opened(datapath, [1001, 1002]) == "AB"
    assert datapath.backend_for(tcp(f"{CLIENT}:1001", VIP, "A")) == A
    assert opened(datapath, [1001]) == "A"


def test_its_persistent_clients_still_reach_it(datapath: Datapath) -> None:
    datapath.apply(web("upper_threshold: 2", "rr", "persistence: 30"))
    clients = [f"198.51.100.{n}" for n in range(1, 7)]
    assert "".join(opened(datapath, [1001], client) for client in clients) == "BABABB"
    assert opened(datapath, [1002, 1003, 1004], clients[1]) == "AAA"
    assert state(datapath) == ("overloaded", 5)


# all but dh, which has one bucket here, and lblc, which keeps what it has chosen, as under IPVS
ANY = [*("rr", "wrr", "lc", "wlc", "sed", "nq", "fo", "ovf"), *("sh", "mh", "twos", "lblcr")]


@pytest.mark.parametrize("scheduler", ANY)
def test_where_everyone_is_overloaded_nobody_gets_it(datapath: Datapath, scheduler: str) -> None:
    text = web("upper_threshold: 1", scheduler).replace("weight: 1}", "upper_threshold: 1}")
    datapath.apply(text)
    got = "".join(opened(datapath, [1000], f"198.51.100.{n}") for n in range(1, 40))
    assert sorted(got.replace("-", "")) == ["A", "B"]
    assert datapath.reasons()["no_backend"] == 37


# ------------------------------------------------------------------------------- how it is over


def sweep(datapath: Datapath) -> None:
    ageing.sweep(datapath.balancer)


def command(datapath: Datapath) -> None:
    """As `connection delete` does."""
    places = views.places(datapath.balancer, views.CONNECTIONS, Wanted())
    datapath.balancer.reap(places, force=True)


def same_flows(datapath: Datapath) -> None:
    """The clients come again, from the same ports: each takes its old connection out first."""
    for port in (1001, 1002):
        datapath.deliver(tcp(f"{CLIENT}:{port}", VIP, "A"))


def inserts_of_others(datapath: Datapath) -> None:
    """Connections of another service take expired ones' slots, or age them at the clock hand."""
    # a bucket of 64 slots is aged every 32 of them, and there are 8,192 slots
    for number in range(4096 + 32):
        datapath.deliver(udp(f"203.0.113.{number >> 8}:{1024 + (number & 255)}", OTHER_VIP))
    datapath.confirm()


WAYS = [sweep, command, same_flows, inserts_of_others]


@pytest.mark.parametrize("way", WAYS)
def test_it_gets_some_again_whoever_takes_its_connections_out(
    datapath: Datapath, way: Callable[[Datapath], None]
) -> None:
    datapath.apply(web("upper_threshold: 2"))
    assert opened(datapath, range(1001, 1004)) == "AAB"
    datapath.later(62)
    way(datapath)
    assert state(datapath) == ("active", 0)
    assert opened(datapath, range(1011, 1014)) == "AAB"


@pytest.mark.parametrize("scheduler", ["rr", "wrr", "wlc", "fo"])
def test_without_a_sweep_new_connections_age_what_thresholds_go_by(
    datapath: Datapath, scheduler: str
) -> None:
    datapath.apply(web("upper_threshold: 2", scheduler))
    assert opened(datapath, range(1001, 1009)).count("A") == 2
    datapath.later(62)
    # as many as it takes to look at the whole table, 8 buckets each
    assert "A" in opened(datapath, range(1101, 1118))


def test_a_count_that_a_sweep_heals_takes_the_overload_with_it(datapath: Datapath) -> None:
    datapath.apply(web("upper_threshold: 4"))
    (identity,) = (
        place.backends[A].id
        for key, place in datapath.balancer.state.book.services.items()
        if key.startswith("tcp")
    )
    opened(datapath, [1001])
    datapath.balancer.heal("loads", identity, 1, 9)
    assert (state(datapath), opened(datapath, [1002])) == (("overloaded", 10), "B")
    first = ageing.sweep(datapath.balancer)
    assert ageing.sweep(datapath.balancer, first).healed == 1
    word = datapath.balancer.map("limits").read_word(identity)
    assert (word >> 63, state(datapath), opened(datapath, [1003])) == (0, ("active", 1), "A")


def test_a_count_that_was_set_by_hand_is_believed_before_the_flag(datapath: Datapath) -> None:
    datapath.apply(web("upper_threshold: 4"))
    ids = {
        b.id for s in datapath.balancer.state.book.services.values() for b in s.backends.values()
    }
    loads = datapath.balancer.map("loads")
    for identity in ids:
        loads.store_word(identity, 4, 8)
    assert (state(datapath), opened(datapath, [1001])) == (("overloaded", 4), "B")
    for identity in ids:
        loads.store_word(identity, 0, 8)
    assert (state(datapath), opened(datapath, [1002])) == (("active", 0), "A")


# ----------------------------------------------------------------------------------------- edits

# thresholds at first, connections, thresholds then (several in turn), who gets the next one; seen
# on Linux 6.12.117, each with a service of its own
EDITS = [
    ("upper_threshold: 4", 4, ["upper_threshold: 5"], "B"),
    ("upper_threshold: 4", 4, ["upper_threshold: 0"], "A"),
    ("upper_threshold: 4", 4, ["upper_threshold: 0", "upper_threshold: 5"], "A"),
    ("upper_threshold: 4", 4, ["upper_threshold: 6, lower_threshold: 2"], "B"),
    ("upper_threshold: 4", 3, ["upper_threshold: 3"], "B"),
    ("upper_threshold: 4", 3, ["upper_threshold: 2"], "B"),
    ("upper_threshold: 4", 4, ["upper_threshold: 4, lower_threshold: 4"], "B"),
    ("upper_threshold: 4", 4, ["upper_threshold: 4"], "B"),
    ("upper_threshold: 0", 4, ["upper_threshold: 4"], "B"),
    ("upper_threshold: 4", 4, ["upper_threshold: 100"], "A"),
    (
        "upper_threshold: 9",
        4,
        ["upper_threshold: 4", "upper_threshold: 9, lower_threshold: 4"],
        "B",
    ),
]


@pytest.mark.parametrize(("before", "count", "edits", "following"), EDITS)
def test_an_edit_is_judged_at_once_by_what_it_has(
    datapath: Datapath, before: str, count: int, edits: list[str], following: str
) -> None:
    datapath.apply(web(before))
    assert opened(datapath, range(1001, 1001 + count)) == "A" * count
    for edit in edits:
        datapath.apply(web(edit))
    assert opened(datapath, [1100]) == following


def test_a_backend_that_comes_where_another_was_has_none_of_its_overload(
    datapath: Datapath,
) -> None:
    numbers = itertools.count(1001)
    text = web("upper_threshold: 2")
    for _ in range(3):
        datapath.apply(text)
        assert opened(datapath, itertools.islice(numbers, 3)) == "AAB"
        datapath.apply(
            text.replace(f"      - {{address: {A}, weight: 10, upper_threshold: 2}}\n", "")
        )
        datapath.balancer.reap(views.places(datapath.balancer, views.CONNECTIONS), force=True)

"""The tables: who finds room, who has to go, and what is counted, with no daemon at all."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from lvsxdp import ageing, loading, views
from lvsxdp.entries import Wanted
from tests.datapath.harness import Datapath, tcp, udp

A, B, C = "10.0.0.11", "10.0.0.12", "10.0.0.13"
SHOP, OTHER = "192.0.2.10", "192.0.2.11"
CAPACITY = 4096  # of the fixture
SLOTS = loading.slots_for(CAPACITY)
MOST = CAPACITY - CAPACITY // 4  # of two services: the other's own is a quarter


def services(*rows: str) -> str:
    """Services on ports of the VIP; each row is port, protocol and more keys."""
    return "services:\n" + "\n".join(f"- {{address: {SHOP}, {row}}}" for row in rows)


ONE = services(f"protocol: tcp, port: 80, scheduler: rr, backends: [{{address: {A}}}]")
TWO = services(
    f"protocol: udp, port: 53, scheduler: rr, backends: [{{address: {A}}}]",
    f"protocol: udp, port: 54, scheduler: rr, backends: [{{address: {B}}}]",
)


def client(number: int) -> str:
    """The address and port of one of many clients."""
    return f"198.{18 + number // 62500}.{number // 250 % 250}.{number % 250 + 1}:1024"


def frames(datapath: Datapath, packet: Any, numbers: range) -> list[bytes]:
    """The packet as each of these clients sends it; made from one, for speed."""
    raw = bytearray(bytes(datapath.to_host(packet)))
    made = []
    for number in numbers:
        address = client(number).partition(":")[0]
        raw[26:30] = bytes(map(int, address.split(".")))
        made.append(bytes(raw))
    return made


def flood(datapath: Datapath, packet: Any, numbers: range) -> Counter[str]:
    """Sends it as all of them; the actions that were taken."""
    actions: Counter[str] = Counter()
    for sent, frame in enumerate(frames(datapath, packet, numbers)):
        if sent % 500 == 0:
            datapath.confirm()
        actions[datapath.send(frame).action] += 1
    return actions


def live(datapath: Datapath, port: int) -> int:
    """How many connections a service of the VIP has."""
    return sum(row["virtual"] == f"{SHOP}:{port}" for row in datapath.connections())


# ------------------------------------------------------------------------------ without a daemon


@pytest.mark.parametrize("expiry", ["ipvs", "strict"])
def test_clients_whose_time_is_up_leave_their_places_to_others(
    datapath: Datapath, expiry: str
) -> None:
    persistence = f"persistence: {{timeout: 10, expiry: {expiry}}}"
    datapath.apply(ONE.replace("rr,", f"rr, {persistence},"))
    packet = tcp(client(0), f"{SHOP}:80")
    for start in range(0, 3 * SLOTS, CAPACITY // 2):
        sent = flood(datapath, packet, range(start, start + CAPACITY // 2))
        assert sent == {"redirect": CAPACITY // 2}
        datapath.later(71)
    assert "table_full" not in datapath.reasons()
    assert datapath.backend_for(tcp("203.0.113.9:1024", f"{SHOP}:80")) == A
    assert [row["client"] for row in datapath.persistence()] == ["203.0.113.9"]


def test_counts_fall_as_new_connections_come_though_nothing_sweeps(datapath: Datapath) -> None:
    datapath.apply(ONE)
    batch = CAPACITY // 2
    # an insert ages two slots, so that four batches go round the table
    for start in range(0, 5 * batch, batch):
        flood(datapath, tcp(client(0), f"{SHOP}:80"), range(start, start + batch))
        datapath.later(61)
    flood(datapath, tcp(client(0), f"{SHOP}:80"), range(5 * batch, 6 * batch))
    row = datapath.backends()[A]
    # what is counted and over is at most what has come since the hand's last round
    assert batch <= row["active"] <= 3 * batch


def test_a_choice_by_load_is_not_misled_by_connections_that_have_ended(datapath: Datapath) -> None:
    config = services(f"protocol: tcp, port: 80, scheduler: wlc, backends: [{{address: {A}}}]")
    datapath.apply(config)
    flood(datapath, tcp(client(0), f"{SHOP}:80"), range(600))
    datapath.apply(config.replace(f"[{{address: {A}}}]", f"[{{address: {A}}}, {{address: {B}}}]"))
    datapath.later(61)
    # within the bound: two rounds of the hand, at 256 slots a choice
    choices = 2 * SLOTS // 256
    for number in range(choices):
        datapath.backend_for(tcp(client(20_000 + number), f"{SHOP}:80"))
    rows = datapath.backends()
    assert rows[A]["active"] + rows[B]["active"] == choices
    difference = abs(rows[A]["active"] - rows[B]["active"])
    for number in range(difference):
        datapath.backend_for(tcp(client(30_000 + number), f"{SHOP}:80"))
    rows = datapath.backends()
    assert rows[A]["active"] == rows[B]["active"]


# ------------------------------------------------------------------------------------- who goes


def test_half_open_connections_never_take_the_place_of_established_ones(
    datapath: Datapath,
) -> None:
    datapath.apply(ONE.replace("rr,", "rr, persistence: 300,"))
    real = range(200)
    for flags in ("S", "A"):
        assert flood(datapath, tcp(client(0), f"{SHOP}:80", flags), real) == {"redirect": 200}
    flood(datapath, tcp(client(0), f"{SHOP}:80"), range(1000, 1000 + 2 * SLOTS))
    assert flood(datapath, tcp(client(0), f"{SHOP}:80", "A"), real) == {"redirect": 200}
    established = [row for row in datapath.connections() if row["state"] == "ESTABLISHED"]
    clients = {client(number) for number in real}
    assert {row["client"] for row in established} == clients
    kept = {row["client"] for row in datapath.persistence()}
    assert {name.partition(":")[0] for name in clients} <= kept


def test_a_new_client_gets_in_while_a_flood_fills_the_table(datapath: Datapath) -> None:
    datapath.apply(ONE.replace("rr,", "rr, persistence: 300,"))
    flood(datapath, tcp(client(0), f"{SHOP}:80"), range(1000, 1000 + 2 * SLOTS))
    for flags in ("S", "A", "A"):
        assert flood(datapath, tcp(client(0), f"{SHOP}:80", flags), range(200)) == {"redirect": 200}
    assert "table_full" not in datapath.reasons()


def confirmed(datapath: Datapath, port: int, numbers: range) -> None:
    """Connections of clients that have sent twice."""
    for _ in range(2):
        assert flood(datapath, udp(client(0), f"{SHOP}:{port}"), numbers) == {
            "redirect": len(numbers)
        }


def test_a_service_takes_no_more_than_is_its_own_and_everyones(datapath: Datapath) -> None:
    datapath.apply(TWO)
    confirmed(datapath, 53, range(2 * CAPACITY))
    assert live(datapath, 53) == MOST
    confirmed(datapath, 54, range(CAPACITY // 4))
    assert live(datapath, 54) == CAPACITY // 4


def test_a_packet_that_finds_no_room_is_served_and_the_want_of_room_counted(
    datapath: Datapath,
) -> None:
    datapath.apply(TWO)
    confirmed(datapath, 53, range(MOST))
    before = datapath.reasons()
    assert datapath.backend_for(udp("203.0.113.9:1024", f"{SHOP}:53")) == A
    after = datapath.reasons()
    assert {n: c - before.get(n, 0) for n, c in after.items() if c != before.get(n)} == {
        "table_full": 1
    }
    assert all(row["client"] != "203.0.113.9:1024" for row in datapath.connections())


def test_what_a_service_may_have_grows_as_others_go(datapath: Datapath) -> None:
    datapath.apply(TWO)
    confirmed(datapath, 53, range(MOST))
    datapath.apply(TWO[: TWO.rindex("\n-")])
    confirmed(datapath, 53, range(MOST, MOST + 500))
    assert live(datapath, 53) == MOST + 500


def test_shares_are_given_back_when_entries_end(datapath: Datapath) -> None:
    datapath.apply(TWO)
    for start in (0, CAPACITY, 2 * CAPACITY):
        numbers = range(start, start + MOST)
        confirmed(datapath, 53, numbers)
        datapath.later(301)
        ageing.sweep(datapath.balancer)
    assert "table_full" not in datapath.reasons()
    assert ageing.sweep(datapath.balancer).drift == {}


def words(datapath: Datapath, table: str) -> int:
    """How many slots a search of a table goes past."""
    rows = datapath.balancer.map(table)
    return sum(rows.read_word(place) != 0 for place in range(SLOTS))


def test_after_a_flood_a_sweep_frees_what_searches_would_go_past(datapath: Datapath) -> None:
    datapath.apply(ONE.replace("rr,", "rr, persistence: 600,"))
    real, tables = range(200), ("connections4", "persistence4")
    for flags in ("S", "A"):
        flood(datapath, tcp(client(0), f"{SHOP}:80", flags), real)
    flood(datapath, tcp(client(0), f"{SHOP}:80"), range(1000, 1000 + 2 * SLOTS))
    assert all(words(datapath, table) > CAPACITY for table in tables)
    # the flood's time goes by, not that of clients that send now and then
    for _ in range(2):
        datapath.later(400)
        flood(datapath, tcp(client(0), f"{SHOP}:80", "A"), real)
    assert ageing.sweep(datapath.balancer).drift == {}
    # each stands near to where its search begins, as it came first
    assert all(len(real) <= words(datapath, table) < 2 * len(real) for table in tables)
    assert flood(datapath, tcp(client(0), f"{SHOP}:80", "A"), real) == {"redirect": 200}
    assert len(datapath.persistence()) == len(real)


# ------------------------------------------------------------------------------ finding and ids


def test_every_one_of_many_connections_is_found_again(datapath: Datapath) -> None:
    datapath.apply(TWO[: TWO.rindex("\n-")])
    numbers = range(CAPACITY)
    confirmed(datapath, 53, numbers)
    assert "table_full" not in datapath.reasons()
    assert live(datapath, 53) == CAPACITY
    assert len({row["client"] for row in datapath.connections()}) == CAPACITY


def test_places_that_are_given_back_hide_nothing(datapath: Datapath) -> None:
    datapath.apply(TWO)
    stay, go = range(0, 2000), range(2000, 3000)
    for number in range(3000):
        port = 53 if number in stay else 54
        datapath.send(
            frames(datapath, udp(client(0), f"{SHOP}:{port}"), range(number, number + 1))[0]
        )
    place = datapath.balancer.state.book.services[f"udp:{SHOP}:54"]
    found = views.places(datapath.balancer, views.CONNECTIONS, Wanted(service=place.id))
    assert datapath.balancer.reap(found, force=True) == len(go)
    for _ in range(2):
        ageing.sweep(datapath.balancer)
    before = live(datapath, 53)
    confirmed(datapath, 53, stay)
    assert (before, live(datapath, 53)) == (2000, 2000)


def test_a_service_that_gets_the_id_of_another_has_none_of_its_entries(
    datapath: Datapath,
) -> None:
    datapath.apply(TWO)
    confirmed(datapath, 53, range(100))
    identity = datapath.balancer.state.book.services[f"udp:{SHOP}:53"].id
    datapath.apply("services: []")
    book = datapath.balancer.state.book
    capacity = datapath.balancer.state.config.capacity.services
    kept = dict(book.service_generations)
    # as after so many services that every id was used
    book.service_generations = {number: 1 for number in range(capacity)}
    datapath.apply(ONE)
    book = datapath.balancer.state.book
    assert book.services[f"tcp:{SHOP}:80"].id == 0
    assert identity == 0 or identity in kept
    assert datapath.connections() == [] or identity != 0
    book.service_generations = kept | {0: book.service_generations[0]}


# --------------------------------------------------------------------------------- the filter


def test_a_connection_goes_on_after_the_rule_that_let_it_in_is_gone(datapath: Datapath) -> None:
    rules = f"""
marks:
  - {{mark: 1, protocol: tcp, address: {SHOP}, ports: [80, 443]}}
services:
  - {{mark: 1, scheduler: rr, backends: [{{address: {A}}}]}}
"""
    datapath.apply(rules)
    for flags in ("S", "A"):
        assert datapath.backend_for(tcp("198.51.100.7:1001", f"{SHOP}:443", flags)) == A
    datapath.apply(rules.replace("[80, 443]", "[80]"))
    for _ in range(2):
        ageing.sweep(datapath.balancer)
        assert datapath.backend_for(tcp("198.51.100.7:1001", f"{SHOP}:443", "A")) == A
    assert datapath.backend_for(tcp("198.51.100.8:1001", f"{SHOP}:443")) is None


def test_a_rule_is_seen_at_once_by_a_packet_that_had_a_verdict_before(datapath: Datapath) -> None:
    packet = tcp("198.51.100.7:1001", f"{SHOP}:80")
    other = ONE.replace(A, B)
    seen = []
    for config in ("services: []", ONE, "services: []", other, ONE.replace("80", "81")):
        datapath.apply(config)
        datapath.balancer.reap(views.places(datapath.balancer, views.CONNECTIONS), force=True)
        seen.append(datapath.backend_for(packet))
    assert seen == [None, A, None, B, None]

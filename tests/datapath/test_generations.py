"""Ids that are used again are not mistaken for what they were, also where generations wrap."""

from __future__ import annotations

import pytest

from lvsxdp import ageing, records, views
from tests.datapath.harness import Datapath, tcp

A, B, C, D = (f"10.0.0.{n}" for n in (11, 12, 13, 14))
VIP, KEY = "192.0.2.10", "tcp:192.0.2.10:80"
CLIENT = "198.51.100.1"
LAST = 2**32 - 1
ENTRIES = 2**15  # generations of a persistence entry
STRICT = "{timeout: 10, expiry: strict}"


def use(datapath: Datapath, *backends: str, persistence: str = "") -> None:
    """A service by rr with these backends, the last of them first in its list."""
    kept = f"persistence: {persistence}, " if persistence else ""
    listed = ", ".join(f"{{address: {backend}}}" for backend in backends)
    datapath.apply(
        f"services: [{{protocol: tcp, address: {VIP}, port: 80, scheduler: rr, {kept}"
        f"backends: [{listed}]}}]"
    )


def syn(datapath: Datapath, client: str, flags: str = "S") -> str | None:
    return datapath.backend_for(tcp(client, f"{VIP}:80", flags))


# --------------------------------------------------------------------------------------- backends


def test_a_backends_generations_begin_anew_and_nobody_is_mistaken(datapath: Datapath) -> None:
    """An id goes from backend to backend while connections and entries of each are there still."""
    use(datapath, A, persistence="600")
    identity = datapath.balancer.state.book.services[KEY].backends[A].id
    datapath.balancer.state.book.backend_generations.change()[identity + 1] = LAST - 2
    given = []
    for number, backend in enumerate((B, C, D, B, C)):
        use(datapath, A, backend, persistence="600")
        place = datapath.balancer.state.book.services[KEY].backends[backend]
        given.append((place.id - identity, place.generation))
        # everybody whose backend was removed is served anew, by whoever has its turn
        for client in range(number):
            packet = tcp(f"198.51.100.{client}:1001", f"{VIP}:80", "A")
            assert datapath.deliver(packet).action == "pass"
        row = datapath.backends()[backend]
        assert (row["active"], row["persistent"], row["connections"]) == (0, 0, 0)
        assert syn(datapath, f"198.51.100.{number}:1001") == backend
        assert syn(datapath, f"198.51.100.{number}:1001", "A") == backend
        use(datapath, A, persistence="600")
    assert given == [(1, LAST - 1), (1, LAST), (1, 1), (1, 2), (1, 3)]


# --------------------------------------------------------------------------------------- services


@pytest.mark.parametrize("versions", [1, 2**16, 2**17])
def test_a_cursor_of_a_version_long_gone_is_not_taken_for_the_new_ones(
    datapath: Datapath, versions: int
) -> None:
    """The cursor has 16 bits of the version: after so many without a choice they are the same."""
    use(datapath, A, B, C)
    assert syn(datapath, f"{CLIENT}:1001") == C
    use(datapath, A, B)
    generations = datapath.balancer.state.book.service_generations
    (identity,) = (place.id for place in datapath.balancer.state.book.services.values())
    generations[identity] += versions - 2
    # C was the last pick, and IPVS goes on at the head where that is gone
    use(datapath, A, B, D)
    assert [syn(datapath, f"{CLIENT}:{port}") for port in (1002, 1003, 1004)] == [D, B, A]


def test_a_cursor_that_was_never_written_is_not_taken_for_the_65536th_version(
    datapath: Datapath,
) -> None:
    use(datapath, A, B, C)
    (identity,) = (place.id for place in datapath.balancer.state.book.services.values())
    datapath.balancer.map("service_cursors").store_word(identity, 0)
    datapath.balancer.state.book.service_generations[identity] = 2**16 - 1
    use(datapath, A, B)
    assert datapath.balancer.state.book.service_generations[identity] == 2**16 + 1
    assert [syn(datapath, f"{CLIENT}:{port}") for port in (1002, 1003)] == [B, A]


# ------------------------------------------------------------------------------------------ slots


def test_a_connections_slot_is_used_again_more_often_than_it_has_generations(
    datapath: Datapath,
) -> None:
    use(datapath, A)
    frame = datapath.to_host(tcp(f"{CLIENT}:1001", f"{VIP}:80"))
    generations = set()
    for _ in range(4096 + 16):
        datapath.confirm()
        assert datapath.send(frame).action == "redirect"
        (place,) = views.places(datapath.balancer, views.CONNECTIONS)
        generations.add(place[2])
        assert datapath.balancer.reap(iter([place]), force=True) == 1
    assert len(generations) > 2000
    row = datapath.backends()[A]
    assert (row["active"], row["inactive"]) == (0, 0)
    assert ageing.sweep(datapath.balancer).drift == {}


def entry(datapath: Datapath) -> tuple[int, int]:
    """Place and counts of the only persistence entry that there ever was."""
    found = datapath.balancer.map("persistence4")
    layout = datapath.balancer.schema.values["persistence4"]
    (place,) = (place for _, place, _ in views.places(datapath.balancer, views.PERSISTENCE))
    return place, layout.number(found.look_up(records.number(place)) or b"", "counts")


def give_generation(datapath: Datapath, generation: int) -> None:
    """As if its slot had held so many entries more."""
    place, counts = entry(datapath)
    layout = datapath.balancer.schema.values["persistence4"]
    word = counts % 2**49 | generation << 49
    offset = layout.fields["counts"].offset
    datapath.balancer.map("persistence4").store_word(place, word, offset)


def connections(datapath: Datapath) -> list[int]:
    """How many connections each live entry counts."""
    return [row["connections"] for row in datapath.persistence()]


def test_a_connection_is_not_taken_for_one_of_an_entry_long_after_its_own(
    datapath: Datapath,
) -> None:
    """Its entry ends, and its slot then has as many others as there are generations."""
    use(datapath, A, persistence=STRICT)
    assert [syn(datapath, f"{CLIENT}:1001", flag) for flag in "SA"] == [A, A]
    place, counts = entry(datapath)
    first = counts >> 49
    datapath.later(11)
    assert connections(datapath) == []
    # it hears that its entry is gone
    assert syn(datapath, f"{CLIENT}:1002") == A
    assert entry(datapath)[0] == place
    assert syn(datapath, f"{CLIENT}:1001", "A") == A
    give_generation(datapath, first)
    assert connections(datapath) == [1]
    datapath.later(2)
    for flag in "AR":
        assert syn(datapath, f"{CLIENT}:1001", flag) == A
    assert connections(datapath) == [1]
    reaped = views.places(datapath.balancer, views.CONNECTIONS)
    datapath.balancer.reap(reaped, force=True)
    # the entry's own named the generation that it had
    assert connections(datapath) == [1]


def test_an_entrys_generations_begin_anew_and_its_connections_are_its_own(
    datapath: Datapath,
) -> None:
    use(datapath, A, persistence=STRICT)
    assert [syn(datapath, f"{CLIENT}:1001", flag) for flag in "SA"] == [A, A]
    datapath.later(11)
    give = ENTRIES - 2
    found = []
    for number in range(4):
        assert syn(datapath, f"{CLIENT}:{1002 + number}") == A
        if not number:
            give_generation(datapath, give)
        found.append(entry(datapath)[1] >> 49)
        assert connections(datapath) == [1]
        datapath.later(11)
    assert found == [give, ENTRIES - 1, 0, 1]

"""Schedulers on drawn lists, weights, loads and overloads, against IPVS's rules in plain words."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterator, Sequence
from fractions import Fraction

import pytest
import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from lvsxdp.book import BackendPlace
from tests.datapath.harness import Datapath, tcp

VIP = "192.0.2.10:80"
# far beyond the connections that a test opens
MANY = 1_000_000
HEAVIEST = 2**31 - 1
DRAWN = settings(
    max_examples=40,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
FLOWS = itertools.count()


def host(place: int) -> str:
    """The backend of a place in the list."""
    return f"10.0.0.{11 + place}"


@dataclasses.dataclass
class Farm:
    """One service whose list, from its head, has these weights; after the first so many of 0."""

    datapath: Datapath
    scheduler: str
    weights: Sequence[int]
    gap: int = 0
    overloaded: frozenset[int] = frozenset()

    def build(self) -> None:
        """Makes the service from nothing, as if its backends were added one by one."""
        self.datapath.clear()
        rows = [
            {"address": host(place), "weight": weight, "upper_threshold": MANY}
            for place, weight in enumerate(self.weights)
        ]
        rows[1:1] = [{"address": f"10.0.1.{n + 1}", "weight": 0} for n in range(self.gap)]
        service = {
            **{"protocol": "tcp", "address": "192.0.2.10", "port": 80},
            **{"scheduler": self.scheduler, "backends": rows[::-1]},
        }
        self.datapath.apply(yaml.safe_dump({"services": [service]}))

    def places(self) -> Iterator[tuple[int, BackendPlace]]:
        """Where the backends stand in the maps, by their place in the list."""
        (place,) = self.datapath.balancer.state.book.services.values()
        for n in range(len(self.weights)):
            yield n, place.backends[host(n)]

    def load(self, place: int, active: int, total: int) -> None:
        """Gives a backend more connections of both kinds than it has."""
        identity = dict(self.places())[place].id
        self.datapath.balancer.heal("loads", identity, 0, active)
        self.datapath.balancer.heal("loads", identity, 1, total)

    def overload(self, wanted: frozenset[int]) -> None:
        """Has these backends overloaded, and no others."""
        for place in wanted ^ self.overloaded:
            self.load(place, 0, MANY if place in wanted else -MANY)
        self.overloaded = wanted

    def pick(self) -> int | None:
        """The place of the backend that a new connection gets."""
        number = next(FLOWS)
        client = f"198.51.{number >> 14 & 255}.7:{1024 + (number & 16383)}"
        chosen = self.datapath.backend_for(tcp(client, VIP))
        return int(chosen.rpartition(".")[2]) - 11 if chosen else None


# ------------------------------------------------------------------------------------------ wrr


@dataclasses.dataclass
class Walk:
    """wrr as IPVS does it, round by round: ipvs-behaviour 5.1; -1 is the head."""

    weights: Sequence[int]
    last: int = -1
    weight: int = 0

    def __post_init__(self) -> None:
        for count in range(1, len(self.weights) + 1):
            self.changed(self.weights[-count:])

    def changed(self, weights: Sequence[int]) -> None:
        """One was added at the head."""
        self.step = math.gcd(*weights) or 1
        self.top = max(max(weights) - (self.step - 1), 0)
        if self.weight > self.top or not self.weight:
            self.weight = self.top
        elif self.step > 1:
            self.weight = self.weight // self.step * self.step + 1

    def fall(self, overloaded: frozenset[int]) -> None:
        """The next round's weight; rounds before the last that nobody reaches are left out."""
        self.weight -= self.step
        usable = [weight for n, weight in enumerate(self.weights) if n not in overloaded]
        beyond = self.weight - max(self.step, *usable, 0)
        if beyond > 0:
            self.weight -= -(-beyond // self.step) * self.step

    def pick(self, overloaded: frozenset[int]) -> int | None:
        """The next pick; None where everyone was asked in a last round."""
        if not self.top:
            return None
        began, last_round, is_again = self.last, False, False
        at, stop = self.last, None
        while True:
            for place in range(at + 1, len(self.weights)):
                if place not in overloaded and self.weights[place] >= self.weight:
                    self.last = place
                    return place
                if place == stop:
                    self.last = place
                    return None
            at = self.last = -1
            self.fall(overloaded)
            if self.weight <= 0:
                self.weight = self.top
                if last_round or began == -1:
                    return None
                is_again = True
            last_round = self.weight <= self.step
            if last_round and is_again:
                stop = began


WEIGHTS = st.one_of(
    st.lists(st.integers(0, 6), min_size=1, max_size=8),
    st.lists(st.integers(0, 5).map(lambda n: 12 * n), min_size=1, max_size=8),
    st.lists(st.sampled_from([0, 1, 2, 1000, HEAVIEST - 1, HEAVIEST]), min_size=1, max_size=5),
)
PHASES = st.lists(
    st.tuples(st.sets(st.integers(0, 7)).map(frozenset), st.integers(1, 9)), min_size=1, max_size=5
)
ALL = frozenset(range(8))


@DRAWN
@given(weights=WEIGHTS, phases=PHASES, gap=st.sampled_from([0, 0, 0, 70]))
@example(weights=[1, 5, 3], phases=[(frozenset({1}), 7), (frozenset(), 7)], gap=0)
@example(weights=[2, 2], phases=[(frozenset(), 1), (ALL, 1), (frozenset(), 4)], gap=0)
@example(weights=[4, 8], phases=[(frozenset(), 2), (ALL, 2), (frozenset(), 6)], gap=0)
@example(weights=[HEAVIEST, 1], phases=[(frozenset({0}), 3), (frozenset(), 3)], gap=0)
def test_wrr_finds_in_one_walk_whom_ipvs_finds_in_many(
    datapath: Datapath, weights: list[int], phases: list[tuple[frozenset[int], int]], gap: int
) -> None:
    farm = Farm(datapath, "wrr", weights, gap)
    farm.build()
    walk = Walk(weights)
    for overloaded, picks in phases:
        here = frozenset(place for place in overloaded if place < len(weights))
        farm.overload(here)
        expected = [walk.pick(here) for _ in range(picks)]
        assert [farm.pick() for _ in range(picks)] == expected


# ------------------------------------------------------------------------------------- by load


@dataclasses.dataclass(frozen=True)
class Carrying:
    """A backend: weight, connections and whether it is overloaded."""

    weight: int
    active: int
    inactive: int
    overloaded: bool

    @property
    def load(self) -> int:
        """What lc and wlc compare."""
        return 257 * self.active + self.inactive


def chosen(scheduler: str, backends: Sequence[Carrying]) -> int | None:
    """Who gets the next connection: ipvs-behaviour 5; of equals `min` gives the first."""
    usable = [n for n, b in enumerate(backends) if b.weight and not b.overloaded]
    if scheduler == "ovf":
        usable = [n for n in usable if backends[n].active <= backends[n].weight]
    idle = [n for n in usable if not backends[n].active]
    if scheduler == "nq" and idle:
        return idle[0]
    rules = {
        "lc": lambda b: b.load,
        "wlc": lambda b: Fraction(b.load, b.weight),
        "sed": lambda b: Fraction(b.active + 1, b.weight),
        "nq": lambda b: Fraction(b.active + 1, b.weight),
        "fo": lambda b: -b.weight,
        "ovf": lambda b: -b.weight,
    }
    return min(usable, key=lambda n: rules[scheduler](backends[n]), default=None)


CARRYING = st.builds(
    Carrying,
    weight=st.sampled_from([0, 1, 1, 2, 3, 7, 1000, HEAVIEST - 1, HEAVIEST]),
    active=st.sampled_from([0, 1, 1, 2, 3, 5, 1000, 999_999]),
    inactive=st.sampled_from([0, 0, 1, 256, 257, 258, 999_999]),
    overloaded=st.booleans(),
)


@pytest.mark.parametrize("scheduler", ["lc", "wlc", "sed", "nq", "fo", "ovf"])
@DRAWN
@given(backends=st.lists(CARRYING, min_size=1, max_size=9), gap=st.sampled_from([0, 0, 0, 70]))
def test_a_choice_by_load_is_that_of_ipvs(
    datapath: Datapath, scheduler: str, backends: list[Carrying], gap: int
) -> None:
    farm = Farm(datapath, scheduler, [b.weight for b in backends], gap)
    farm.build()
    limit = datapath.balancer.map("limits")
    for place, at in farm.places():
        farm.load(place, backends[place].active, backends[place].active + backends[place].inactive)
        # thresholds between which the flag is as it was
        word = 2 * 10**9 | int(backends[place].overloaded) << 63
        limit.store_word(at.id, word)
    assert farm.pick() == chosen(scheduler, backends)

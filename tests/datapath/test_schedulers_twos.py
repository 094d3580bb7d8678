"""twos draws two servers by weight and takes the less loaded: exactly as often as its rule says."""

from __future__ import annotations

import itertools
import math
import struct
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from fractions import Fraction
from typing import Any

import pytest
import yaml

from lvsxdp import maps, views
from tests.datapath.harness import BACKENDS, Datapath, tcp

PICKS = 4000
VIP = "192.0.2.10:80"
# Of the chi-square statistic, in standard deviations: the right rule passes it once in millions.
LIMIT = 20.0
Wins = Callable[[int, int, int, int], bool]


def is_less_loaded(weight: int, load: int, other_weight: int, other_load: int) -> bool:
    """Whether the other is chosen, the second of the two."""
    return other_weight * load > weight * other_load


def share_of(
    weights: list[int], loads: list[int], least: int = 0, wins: Wins = is_less_loaded
) -> list[Fraction]:
    """How often each server, in list order, is to be chosen: the rule in the vectors' words.

    Two numbers of 0 to W, both ends included, each walk the list; the second wins where it is
    strictly less loaded.  (Who wins between equals shows in no share: both are drawn alike.)
    """
    total = sum(weights)

    def met(number: int) -> int:
        for place, weight in enumerate(weights):
            number -= weight
            if weight and number <= 0:
                return place
        raise AssertionError

    chances = Counter(met(number) for number in range(least, total + 1))
    found = [Fraction(0)] * len(weights)
    for one, other in itertools.product(chances, repeat=2):
        second = wins(weights[one], loads[one], weights[other], loads[other])
        found[other if second else one] += Fraction(chances[one] * chances[other])
    return [share / (total + 1 - least) ** 2 for share in found]


def deviation(counted: Mapping[int, int], shares: list[Fraction]) -> float:
    """How far the counts are from the shares: 0 on average, in standard deviations."""
    total = sum(counted.values())
    expected = {place: float(share * total) for place, share in enumerate(shares) if share}
    square = sum((counted.get(p, 0) - e) ** 2 / e for p, e in expected.items())
    freedom = len(expected) - 1
    return (square - freedom) / math.sqrt(2 * freedom)


def service(servers: Mapping[str, int]) -> str:
    """A service whose list, from its head, is these servers: the file's last is the head."""
    backends = [{"address": address, "weight": w} for address, w in reversed([*servers.items()])]
    key = {"protocol": "tcp", "address": "192.0.2.10", "port": 80, "scheduler": "twos"}
    return yaml.safe_dump({"services": [{**key, "backends": backends}]})


def addresses(count: int) -> list[str]:
    """So many backends with a next hop."""
    return [address for address in BACKENDS if ":" not in address][:count]


def choices(datapath: Datapath, loads: Mapping[str, int], count: int) -> Iterator[str]:
    """The backends of so many new connections, each of which finds so many inactive ones.

    Told by whose count has changed, which then is as before.
    """
    balancer, index = datapath.balancer, datapath.ifindex["lb0"]
    (place,) = balancer.state.book.services.values()
    memory = balancer.map("loads").memory()
    rows = {
        name: slice(16 * place.backends[name].id, 16 * place.backends[name].id + 16)
        for name in loads
    }
    before = {name: struct.pack("<QQ", 0, load) for name, load in loads.items()}
    frame = bytes(datapath.to_host(tcp("198.51.100.7:1001", VIP)))
    for number in range(count):
        if number % 1000 == 0:
            balancer.reap(views.places(balancer, views.CONNECTIONS), force=True)
            for name, row in rows.items():
                memory[row] = before[name]
        sent = frame[:34] + (1024 + number).to_bytes(2, "big") + frame[36:]
        maps.run_program(datapath.entry["xdp"], sent, ifindex=index)
        (chosen,) = (name for name, row in rows.items() if memory[row] != before[name])
        memory[rows[chosen]] = before[chosen]
        yield chosen


CASES = {
    # weights and inactive connections in list order
    "all alike: the first has one chance more": ([1, 1, 1], [5, 5, 5]),
    "one is less loaded": ([1, 1, 1], [5, 5, 4]),
    "weights draw, and divide the load": ([1, 2, 4], [9, 20, 30]),
    "equals in load for their weight: the first drawn stays": ([2, 4], [10, 20]),
    "the first has no weight: the next has the chance more": ([0, 1, 1], [0, 5, 5]),
    "heavy weights": ([3, 0, 2**31 - 1, 2**31 - 1], [0, 0, 7, 7]),
}


@pytest.mark.parametrize("case", CASES)
def test_each_server_is_chosen_as_often_as_the_rule_says(datapath: Datapath, case: str) -> None:
    weights, loads = CASES[case]
    names = addresses(len(weights))
    datapath.apply(service(dict(zip(names, weights, strict=True))))
    chosen = choices(datapath, dict(zip(names, loads, strict=True)), PICKS)
    counted = Counter(names.index(name) for name in chosen)
    wanted = light_shares() if max(weights) > 100 else share_of(weights, loads)
    assert deviation(counted, wanted) < LIMIT
    assert not any(counted[p] for p, share in enumerate(wanted) if not share)


def light_shares() -> list[Fraction]:
    """The last case's: a weight of 3 is nothing beside such."""
    return [Fraction(0), Fraction(0), Fraction(1, 2), Fraction(1, 2)]


WRONG: dict[str, dict[str, Any]] = {
    "the first has no chance more": {"least": 1},
    "the load is not divided by the weight": {"wins": lambda _, load, __, other: load > other},
    "the more loaded wins": {"wins": lambda *two: is_less_loaded(*two[2:], *two[:2])},
    "there is but one draw": {"wins": lambda *_: False},
}


@pytest.mark.parametrize("rule", WRONG)
def test_a_wrong_rule_would_be_told_by_so_many_picks(rule: str) -> None:
    worst = 0.0
    for weights, loads in (each for each in CASES.values() if max(each[0]) < 100):
        wrong = share_of(weights, loads, **WRONG[rule])
        counted = {place: round(share * PICKS) for place, share in enumerate(wrong)}
        worst = max(worst, deviation(counted, share_of(weights, loads)))
    assert worst > 2 * LIMIT


@pytest.mark.parametrize("count", [63, 64, 65, 200, 1000])
def test_of_a_long_list_each_step_is_drawn_by_its_weights(datapath: Datapath, count: int) -> None:
    one, two, three = addresses(3)
    idle = [f"10.0.{1 + n // 200}.{1 + n % 200}" for n in range(count - 3)]
    half = len(idle) // 2
    servers = {
        **{one: 1},
        **dict.fromkeys(idle[:half], 0),
        **{two: 2},
        **dict.fromkeys(idle[half:], 0),
        **{three: 3},
    }
    datapath.apply(service(servers))
    loads = {one: 6, two: 12, three: 18}
    counted = Counter((one, two, three).index(n) for n in choices(datapath, loads, PICKS))
    assert deviation(counted, share_of([1, 2, 3], [6, 12, 18])) < LIMIT


@pytest.mark.parametrize("servers", [{}, {"10.0.0.11": 0}, {"10.0.0.11": 0, "10.0.0.12": 0}])
def test_nobody_is_chosen_where_nobody_has_a_weight(
    datapath: Datapath, servers: dict[str, int]
) -> None:
    datapath.apply(service(servers))
    assert datapath.backend_for(tcp("198.51.100.7:1001", VIP)) is None
    assert datapath.reasons() == {"no_backend": 1}

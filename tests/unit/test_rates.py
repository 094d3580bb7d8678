"""Rates as IPVS estimates them, and who may be believed."""

from __future__ import annotations

import fcntl
import json
import time
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lvsxdp import estimating, rates
from lvsxdp.rates import NOTHING, Counts, Estimator, Rates, Seen
from lvsxdp.state import Folders

NAME = rates.of_service(7)
COUNTS = st.tuples(*[st.integers(0, 2**40)] * 5)


def seen(*counts: int, identity: int = 0) -> dict[str, Seen]:
    """So many connections, packets and bytes, and of the latter two as many that came back."""
    connections, packets, data = counts
    return {NAME: Seen(identity, (connections, packets, data, packets, data))}


def shown(estimator: Estimator, identity: int = 0) -> Counts | None:
    return Rates(estimator.rates()).of(NAME, identity)


def test_a_constant_rate_is_approached_as_ipvs_does() -> None:
    estimator = Estimator(seen(5, 50, 500))
    found = []
    for tick in range(1, 9):
        count = 200 * tick
        estimator.tick(seen(5 + count, 50 + count, 500 + count))
        found.append(shown(estimator))
    assert found == [(rate,) * 5 for rate in (25, 44, 58, 68, 76, 82, 87, 90)]


def test_a_rate_falls_by_a_quarter_and_ends_at_nothing() -> None:
    estimator = Estimator(seen(0, 0, 0))
    estimator.tick(seen(0, 8000, 0))
    found = [shown(estimator)]
    for _ in range(50):
        estimator.tick(seen(0, 8000, 0))
        found.append(shown(estimator))
    assert found[:4] == [
        (0, 1000, 0, 1000, 0),
        (0, 750, 0, 750, 0),
        (0, 562, 0, 562, 0),
        (0, 422, 0, 422, 0),
    ]
    assert found[-1] == NOTHING
    assert estimator.rates() == {}


@given(st.lists(st.integers(0, 2**40), max_size=40), st.sampled_from(rates.SCALES))
def test_no_rate_is_further_from_the_exact_one_than_the_bits_that_are_cut_off(
    counted: list[int], scale: int
) -> None:
    exact, scaled = Fraction(0), 0
    for each in counted:
        exact += (Fraction(each, 2) - exact) / 4
        scaled = rates.stepped(scaled, each, scale)
        # less than one unit is cut off a tick, and three quarters of what was cut off before stay
        assert 0 <= exact - Fraction(scaled, 2**scale) < Fraction(4, 2**scale)


@given(st.lists(COUNTS, min_size=1, max_size=5), st.sampled_from([1, 2, 7, 500]))
def test_intervals_that_were_missed_share_what_was_counted(
    counted: list[Counts], intervals: int
) -> None:
    late, timely = Estimator(seen(0, 0, 0)), Estimator(seen(0, 0, 0))
    total = NOTHING
    for each in counted:
        for _ in range(intervals):
            total = rates.counts(sum(pair) for pair in zip(total, each, strict=True))
            timely.tick({NAME: Seen(0, total)})
        late.tick({NAME: Seen(0, total)}, intervals)
    assert shown(late) == shown(timely)


def test_what_was_set_to_zero_begins_anew() -> None:
    estimator = Estimator(seen(0, 0, 0))
    estimator.tick(seen(200, 200, 200))
    assert Rates(estimator.rates()).of(NAME, 1) == NOTHING
    estimator.tick(seen(0, 400, 0, identity=1))
    assert shown(estimator, identity=1) == (0, 50, 0, 50, 0)


def test_a_count_that_falls_begins_anew() -> None:
    estimator = Estimator(seen(900, 900, 900))
    estimator.tick(seen(0, 400, 0))
    assert shown(estimator) == (0, 50, 0, 50, 0)


def test_what_comes_later_counts_from_nothing_and_what_goes_is_forgotten() -> None:
    estimator = Estimator({})
    estimator.tick(seen(0, 400, 0))
    assert shown(estimator) == (0, 50, 0, 50, 0)
    estimator.keep({rates.TOTAL})
    assert estimator.rates() == {}


def test_what_has_not_changed_has_counted_nothing() -> None:
    one, other = Estimator(seen(0, 0, 0)), Estimator(seen(0, 0, 0))
    for estimator in (one, other):
        estimator.tick(seen(0, 400, 0))
    one.tick({})
    other.tick(seen(0, 400, 0))
    assert shown(one) == shown(other) == (0, 37, 0, 37, 0)


# ------------------------------------------------------------------------------ who is believed


@pytest.fixture
def where(tmp_path: Path) -> Folders:
    (tmp_path / "estimator").touch()
    content = {"at": time.monotonic(), "rates": {NAME: (3, (102400, 51200, 3200, 1024, 32))}}
    (tmp_path / "rates").write_text(json.dumps(content))
    return Folders(tmp_path, tmp_path)


def test_rates_are_known_while_somebody_estimates_them(where: Folders) -> None:
    with (where.files / "estimator").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert estimating.read(where).of(NAME, 3) == (100, 50, 100, 1, 1)
        assert estimating.read(where).of(NAME, 4) == NOTHING
        assert estimating.read(where).of(rates.TOTAL, 0) == NOTHING
    assert estimating.read(where).of(NAME, 3) is None


def test_rates_that_nobody_goes_on_estimating_are_unknown(
    where: Folders, monkeypatch: pytest.MonkeyPatch
) -> None:
    later = time.monotonic() + estimating.OLDEST + 1
    monkeypatch.setattr(time, "monotonic", lambda: later)
    with (where.files / "estimator").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert estimating.read(where) == Rates()


@pytest.mark.parametrize("name", ["estimator", "rates"])
def test_rates_that_were_never_estimated_are_unknown(where: Folders, name: str) -> None:
    with (where.files / "estimator").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        (where.files / name).unlink()
        assert estimating.read(where) == Rates()

"""The word that holds a backend's thresholds, against IPVS's own rule."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lvsxdp import thresholds
from lvsxdp.model import MAX_THRESHOLD, Backend

HOST = ipaddress.ip_address("10.0.0.11")
COUNTS = st.integers(0, MAX_THRESHOLD)


def word(upper: int, lower: int = 0) -> int:
    return thresholds.word_of(Backend(HOST, upper_threshold=upper, lower_threshold=lower))


@pytest.mark.parametrize(
    ("upper", "lower", "off_below"),
    [(4, 0, 3), (1, 0, 1), (3, 0, 3), (100, 0, 75), (MAX_THRESHOLD, 0, 1610612736), (7, 2, 2)],
)
def test_without_a_lower_threshold_it_is_three_quarters_of_the_upper_one(
    upper: int, lower: int, off_below: int
) -> None:
    limit = word(upper, lower) | thresholds.OVERLOADED
    assert thresholds.is_overloaded(limit, off_below)
    assert not thresholds.is_overloaded(limit, off_below - 1)


@given(total=COUNTS)
def test_without_an_upper_threshold_nothing_overloads(total: int) -> None:
    assert word(0) == 0
    assert not thresholds.is_overloaded(0, total)


@given(pair=st.tuples(st.integers(1, MAX_THRESHOLD), COUNTS), total=COUNTS, was=st.booleans())
def test_between_the_thresholds_it_is_as_it_was(
    pair: tuple[int, int], total: int, was: bool
) -> None:
    upper, lower = max(pair), min(pair)
    limit = word(upper, lower) | (thresholds.OVERLOADED if was else 0)
    off = lower if lower else -(-3 * upper // 4)
    expected = total >= upper or (was and total >= off)
    assert thresholds.is_overloaded(limit, total) == expected

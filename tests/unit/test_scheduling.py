"""What the control plane prepares for the schedulers, against IPVS's own tables."""

from __future__ import annotations

import hashlib
import ipaddress
import pathlib
from collections import Counter
from collections.abc import Sequence
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from lvsxdp import scheduling
from lvsxdp.model import Backend, Scheduler
from lvsxdp.scheduling import Cursor, Member, Rounds

VECTORS = pathlib.Path(__file__).parents[1] / "vectors/ipvs-vectors.yaml"
TABLES = yaml.safe_load(VECTORS.read_text())["tables"]
SH_TABLES = [table for table in TABLES if table["scheduler"] == "sh"]
DH_TABLES = [table for table in TABLES if table["scheduler"] == "dh"]
WEIGHTS = st.lists(st.integers(0, 2**31 - 1), min_size=1, max_size=6)


def members(text: str) -> tuple[Member, ...]:
    """`A1 B3`: the list from its head, each with its weight."""
    return tuple(Member(word[0], int(word[1:])) for word in text.split())


# ---- the list ----


def test_the_last_backend_of_the_file_is_the_head_and_draining_ones_are_left_out() -> None:
    hosts = [ipaddress.ip_address(f"10.0.0.{n}") for n in (1, 2, 3)]
    backends = [Backend(hosts[0], weight=4), Backend(hosts[1], draining=True), Backend(hosts[2])]
    assert scheduling.members_of(backends) == (Member("10.0.0.3", 1), Member("10.0.0.1", 4))


# ---- sh and dh ----


@pytest.mark.parametrize("vector", SH_TABLES, ids=lambda vector: str(vector["weights"]))
def test_the_table_of_sh_is_that_of_ipvs(vector: dict[str, Any]) -> None:
    assert_is_of_ipvs(scheduling.sh_table(list(reversed(vector["weights"]))), vector)


@pytest.mark.parametrize("vector", DH_TABLES, ids=lambda vector: str(vector["weights"]))
def test_the_table_of_dh_is_that_of_ipvs(vector: dict[str, Any]) -> None:
    assert_is_of_ipvs(scheduling.dh_table(len(vector["weights"])), vector)


def assert_is_of_ipvs(table: list[int], vector: dict[str, Any]) -> None:
    names = "ABCDEFGH"[: len(vector["weights"])]
    letters = "".join(names[::-1][place] for place in table)
    assert letters[:32] == vector["first_32"]
    assert Counter(letters) == vector["owners"]
    assert hashlib.sha256(letters.encode()).hexdigest() == vector["sha256_of_letters"]


def test_without_backends_the_tables_are_empty() -> None:
    assert scheduling.sh_table([]) == scheduling.dh_table(0) == []


@given(weights=WEIGHTS)
def test_the_table_of_sh_has_256_buckets_that_name_members(weights: list[int]) -> None:
    table = scheduling.sh_table(weights)
    assert len(table) == scheduling.SH_BUCKETS
    assert set(table) <= set(range(len(weights)))


# ---- wrr ----


@pytest.mark.parametrize(
    ("weights", "rounds"),
    [
        ([4, 3, 2], Rounds(1, 4)),
        ([10, 0, 5], Rounds(5, 6)),
        ([6, 6], Rounds(6, 1)),
        ([7], Rounds(7, 1)),
        ([0, 0], Rounds(1, 0)),
        ([], Rounds(1, 0)),
    ],
)
def test_a_round_of_wrr_starts_at_the_greatest_weight_and_falls_by_the_divisor(
    weights: list[int], rounds: Rounds
) -> None:
    assert scheduling.wrr_rounds(weights) == rounds


@pytest.mark.parametrize(
    ("weights", "before", "after"),
    [
        ([1, 3, 2], 4, 3),  # beyond the new top: the top
        ([4, 3, 2], 0, 4),  # nobody chosen yet: the top
        ([4, 3, 2], 2, 2),  # within: as it was
        ([4, 8], 4, 5),  # onto the grid of the new step
        ([4, 8], 3, 1),
        ([0], 3, 0),
    ],
)
def test_the_weight_of_wrr_goes_on_after_a_change(
    weights: list[int], before: int, after: int
) -> None:
    assert scheduling.wrr_step(weights, before) == after


@given(weights=WEIGHTS, weight=st.integers(0, 2**31 - 1))
def test_the_weight_of_wrr_stays_where_a_round_can_reach_everybody(
    weights: list[int], weight: int
) -> None:
    rounds = scheduling.wrr_rounds(weights)
    after = scheduling.wrr_step(weights, weight)
    assert 0 <= after <= rounds.top
    assert rounds.top == 0 or (rounds.top - after) % rounds.step == 0


# ---- cursors ----

RR_CASES = {
    "nothing changed": ("C1 B1 A1", "C1 B1 A1", 2, 2),
    "nobody was picked yet": ("C1 B1 A1", "B1 A1", 0, 0),
    "another was deleted before it": ("C1 B1 A1", "B1 A1", 2, 1),
    "another was deleted after it": ("C1 B1 A1", "C1 B1", 2, 2),
    "the last pick was deleted": ("C1 B1 A1", "C1 A1", 2, 1),
    "the head was picked and deleted": ("C1 B1 A1", "B1 A1", 1, 0),
    "the last pick and its predecessor were deleted": ("D1 C1 B1 A1", "D1 A1", 3, 1),
    "one was added at the head": ("C1 B1 A1", "D1 C1 B1 A1", 2, 3),
    "a weight was edited": ("C1 B1 A1", "C1 B7 A1", 2, 2),
    "all were deleted": ("C1 B1 A1", "", 3, 0),
}


@pytest.mark.parametrize("case", RR_CASES)
def test_rr_goes_on_behind_its_last_pick_when(case: str) -> None:
    before, after, position, expected = RR_CASES[case]
    cursor = scheduling.next_cursor(Scheduler.RR, members(before), members(after), Cursor(position))
    assert cursor == Cursor(expected)


WRR_CASES = {
    "nothing changed": ("C2 B3 A4", "C2 B3 A4", Cursor(2, 3), Cursor(2, 3)),
    # A alone has the divisor 4 and so starts at 1; the others do not raise it.
    "it starts": ("", "C2 B3 A4", Cursor(), Cursor(0, 1)),
    "the greatest weight fell": ("C2 B3 A4", "C2 B3 A1", Cursor(3, 4), Cursor(0, 3)),
    "one was added": ("C2 B3 A1", "D3 C2 B3 A1", Cursor(1, 2), Cursor(0, 2)),
    "a divisor came to be": ("B3 A4", "A4", Cursor(1, 3), Cursor(0, 1)),
    "all were deleted": ("B3 A4", "", Cursor(1, 3), Cursor(0, 0)),
}


@pytest.mark.parametrize("case", WRR_CASES)
def test_wrr_goes_on_from_the_head_with_its_weight_when(case: str) -> None:
    before, after, cursor, expected = WRR_CASES[case]
    assert (
        scheduling.next_cursor(Scheduler.WRR, members(before), members(after), cursor) == expected
    )


@pytest.mark.parametrize("scheduler", [Scheduler.WLC, Scheduler.SH, Scheduler.MH])
def test_a_scheduler_without_a_cursor_has_none(scheduler: Scheduler) -> None:
    assert (
        scheduling.next_cursor(scheduler, members("A1"), members("B1 A1"), Cursor(1, 1)) == Cursor()
    )


def _next_of_rr(
    lists: tuple[Sequence[Member], Sequence[Member]], position: int
) -> tuple[str | None, str | None]:
    """Who would be picked next before and after, of those who are in both lists."""
    before, after = lists
    cursor = scheduling.next_cursor(Scheduler.RR, before, after, Cursor(position))
    shared = {member.name for member in before} & {member.name for member in after}
    old = [m.name for m in (*before[position:], *before[:position]) if m.name in shared]
    new = [
        m.name for m in (*after[cursor.position :], *after[: cursor.position]) if m.name in shared
    ]
    return next(iter(old), None), next(iter(new), None)


@given(
    kept=st.lists(st.booleans(), min_size=1, max_size=6),
    added=st.integers(0, 3),
    position=st.integers(0, 6),
)
def test_rr_never_loses_whose_turn_it_is_among_those_that_stay(
    kept: list[bool], added: int, position: int
) -> None:
    before = [Member(f"m{n}", 1) for n in range(len(kept))]
    stay = [member for member, keep in zip(before, kept, strict=True) if keep]
    after = [*(Member(f"n{n}", 1) for n in range(added)), *stay]
    old, new = _next_of_rr((before, after), min(position, len(before)))
    assert old == new

"""What a command is in the middle of comes back from disk as it was said."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lvsxdp import journal, state, writes
from lvsxdp.book import Book
from lvsxdp.errors import DatapathError
from lvsxdp.model import Config
from lvsxdp.state import Folders, State
from lvsxdp.writes import Write

STATE = State(Config(), Book(epoch=7), [], {"hz": 250})
WRITES: st.SearchStrategy[Write] = st.one_of(*(st.from_type(kind) for kind in writes.KINDS))


@pytest.fixture
def where(tmp_path: Path) -> Folders:
    return Folders(tmp_path / "pins", tmp_path / "files")


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(todo=st.lists(WRITES).map(tuple), swap=st.booleans())
def test_a_change_that_has_begun_comes_back_with_its_writes(
    where: Folders, todo: tuple[Write, ...], swap: bool
) -> None:
    journal.begin_next(where, STATE, todo, swap=swap)
    assert journal.next_of(where) == journal.Next(STATE, todo, swap)


def test_a_change_that_has_ended_is_the_state_on_record(where: Folders) -> None:
    assert not journal.is_unfinished(where)
    journal.begin_next(where, STATE, ())
    assert journal.is_unfinished(where)
    assert not where.state_file.exists()
    journal.end_next(where)
    assert not journal.is_unfinished(where)
    assert state.read(where) == STATE


def test_a_change_that_was_taken_back_is_none(where: Folders) -> None:
    journal.begin_next(where, STATE, ())
    journal.forget_next(where)
    journal.forget_next(where)
    assert journal.next_of(where) is None
    assert not journal.is_unfinished(where)


def test_a_damaged_change_is_named(where: Folders) -> None:
    journal.begin_next(where, STATE, ())
    path = where.files / "next.json"
    path.write_text(path.read_text()[:-9])
    with pytest.raises(DatapathError, match=r"next\.json is damaged"):
        journal.next_of(where)


def test_preparing_is_on_record_until_it_ends(where: Folders) -> None:
    journal.begin_preparing(where)
    assert (journal.is_preparing(where), journal.is_unfinished(where)) == (True, True)
    journal.end_preparing(where)
    journal.end_preparing(where)
    assert (journal.is_preparing(where), journal.is_unfinished(where)) == (False, False)


def test_links_are_on_record_until_their_work_ends_well(where: Folders) -> None:
    where.files.mkdir()
    with journal.links(where, {3: True, 12: False}):
        assert journal.links_of(where) == {3: True, 12: False}
    assert (journal.links_of(where), journal.is_unfinished(where)) == ({}, False)
    with pytest.raises(RuntimeError), journal.links(where, {4: False}):
        raise RuntimeError
    assert (journal.links_of(where), journal.is_unfinished(where)) == ({4: False}, True)
    journal.forget_links(where)
    assert not journal.is_unfinished(where)


def test_what_was_begun_can_be_forgotten(where: Folders) -> None:
    journal.begin_preparing(where)
    journal.begin_next(where, STATE, ())
    with pytest.raises(RuntimeError), journal.links(where, {4: False}):
        raise RuntimeError
    journal.clear(where)
    assert not journal.is_unfinished(where)

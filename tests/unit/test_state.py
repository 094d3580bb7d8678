"""What is remembered between commands, and the lock that keeps them apart."""

from __future__ import annotations

import dataclasses
import ipaddress
import json
import os
import pathlib
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest

from lvsxdp import state
from lvsxdp.book import BackendPlace, Book, Generations, Parted, Removed, ServicePlace
from lvsxdp.errors import ConflictError, DatapathError
from lvsxdp.filtering import Hashing
from lvsxdp.model import Backend, Config, Family, MarkKey, Service
from lvsxdp.state import Attachment, Folders, State
from tests.unit.headers import described


def remembered() -> State:
    place = ServicePlace(3, 2, 5, 8, 1, None, {"10.0.0.1": BackendPlace(4, 6)})
    sh = ServicePlace(4, 1, 0, 0, 0, 2, {})
    services = (
        Service(MarkKey(1, Family.IPV4), backends=(Backend(ipaddress.ip_address("10.0.0.1")),)),
        Service(MarkKey(2, Family.IPV6), name="six"),
    )
    generations = Generations(json.dumps([0, 0, 0, 0, 6, 0, 0, 0, 0, 1]).encode())
    removed = {"mark:9": Removed(4, {"10.0.0.7": Parted(6, 3, 55)})}
    return State(
        config=Config(interfaces=("eth0",), services=services),
        book=Book({"mark:1": place, "mark6:2": sh}, {3: 2, 4: 1}, generations, 7, 12, 80, removed),
        attachments=[Attachment("eth0", 2, "native", 41, True)],
        described={"tables": {}, "enums": {}, "hz": 250},
    )


@pytest.fixture
def where(tmp_path: pathlib.Path) -> Folders:
    return state.folders(77, tmp_path / "pins", tmp_path / "files")


class Clock:
    """A clock that only pauses move."""

    def __init__(self) -> None:
        self.now = 0.0
        self.pauses = 0

    def read(self) -> float:
        return self.now

    def pause(self, seconds: float) -> None:
        self.now += seconds
        self.pauses += 1


# ---- the file ----


def test_folders_are_named_by_the_namespaces_cookie(where: Folders, tmp_path: pathlib.Path) -> None:
    assert where == Folders(tmp_path / "pins/77", tmp_path / "files/77")
    assert where.state_file == tmp_path / "files/77/state.json"


def test_generations_are_kept_as_a_line_until_they_are_changed() -> None:
    kept = Generations(b"[0, 0, 3]")
    copy = kept.copy()
    assert copy.change() == {2: 3}
    copy.change()[0] = 1
    assert (kept.line(), copy.line()) == (b"[0, 0, 3]", b"[1,0,3]")
    assert (kept == copy, kept == Generations(b"[0, 0, 3]")) == (False, True)


def test_what_was_written_is_read_again(where: Folders) -> None:
    state.write(where, remembered())
    assert state.read(where) == remembered()


def test_where_nothing_was_written_there_is_no_state(where: Folders) -> None:
    assert state.read(where) is None


def test_a_write_leaves_no_other_file(where: Folders) -> None:
    state.write(where, remembered())
    state.write(where, remembered())
    assert [path.name for path in where.files.iterdir()] == ["state.json"]


def test_only_the_owner_reads_the_folder(where: Folders) -> None:
    state.write(where, remembered())
    assert where.files.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("text", ["", "{", '{"version"', "[]", "{}", '{"version": 6}', "\x00"])
def test_a_damaged_file_is_named(where: Folders, text: str) -> None:
    where.files.mkdir(parents=True)
    where.state_file.write_text(text)
    with pytest.raises(DatapathError, match=r"state\.json is damaged"):
        state.read(where)


def test_a_file_of_another_version_is_refused(where: Folders) -> None:
    where.files.mkdir(parents=True)
    where.state_file.write_text('{"version": 9}')
    with pytest.raises(ConflictError, match=r"state\.json is of version 9, not 6: detach --all"):
        state.read(where)


def test_the_schema_is_what_the_compiler_described() -> None:
    kept = remembered()
    kept.described = {
        "tables": {"loads": {"key": "unsigned int", "value": described("struct load")}},
        "enums": {"family": {"ipv4": 4}},
        "hz": 1000,
        "hash_keys": [3, 5],
        "filter_bits": 16,
    }
    assert (kept.schema.keys["loads"].size, kept.schema.values["loads"].size) == (4, 16)
    assert (kept.schema.enums, kept.schema.hz) == ({"family": {"ipv4": 4}}, 1000)
    assert kept.schema.hashing == Hashing((3, 5), 16)


# ---- the lock ----


def test_a_second_command_waits_then_names_the_process_that_holds_the_lock(where: Folders) -> None:
    clock = Clock()
    told = f"the lock is held by process {os.getpid()} "
    with (
        state.locked(where, 0),
        pytest.raises(ConflictError, match=told),
        state.locked(where, 10, clock.read, clock.pause),
    ):
        pytest.fail("two commands hold one lock")
    assert clock.now == pytest.approx(10, abs=0.1)


def test_a_command_that_does_not_wait_is_refused_at_once(where: Folders) -> None:
    clock = Clock()
    with (
        state.locked(where, 0),
        pytest.raises(ConflictError),
        state.locked(where, 0, clock.read, clock.pause),
    ):
        pytest.fail("two commands hold one lock")
    assert clock.pauses == 0


def test_a_second_command_goes_on_when_the_first_has_ended(where: Folders) -> None:
    clock = Clock()
    first = state.locked(where, 0)
    first.__enter__()

    def end_first(seconds: float) -> None:
        clock.pause(seconds)
        if clock.pauses == 3:
            first.__exit__(None, None, None)

    with state.locked(where, 10, clock.read, end_first):
        assert clock.pauses == 3


def test_a_lock_that_was_removed_meanwhile_is_not_taken_for_the_lock(where: Folders) -> None:
    """`detach --all` removes the folder with the lock in it while another command waits."""
    clock = Clock()
    first = state.locked(where, 0)
    first.__enter__()
    lock = where.files / "lock"

    def remove(seconds: float) -> None:
        clock.pause(seconds)
        if lock.exists():
            lock.unlink()
            first.__exit__(None, None, None)

    with state.locked(where, 10, clock.read, remove):
        assert lock.read_text() == f"process {os.getpid()}"
        with pytest.raises(ConflictError), state.locked(where, 0):
            pytest.fail("two commands hold one lock")


def test_a_command_that_leaves_no_state_leaves_no_folder(where: Folders) -> None:
    with state.locked(where, 0):
        assert where.files.is_dir()
    assert not where.files.exists()


def test_the_last_namespaces_folder_goes_with_the_root(where: Folders) -> None:
    other = dataclasses.replace(where, files=where.files.with_name("78"))
    with state.locked(where, 0):
        with state.locked(other, 0):
            pass
        assert [path.name for path in where.files.parent.iterdir()] == ["77"]
    assert not where.files.parent.exists()


def test_what_others_put_into_the_root_keeps_it(where: Folders) -> None:
    with state.locked(where, 0):
        (where.files.parent / "note").touch()
    assert [path.name for path in where.files.parent.iterdir()] == ["note"]


@pytest.mark.parametrize("same", [True, False], ids=["one namespace", "three namespaces"])
def test_commands_that_leave_no_state_do_not_fail_by_each_others_removals(
    where: Folders, same: bool
) -> None:
    """One at a time holds a namespace's lock, and its folder is there, whoever removes the root."""
    names = ["77"] * 3 if same else ["77", "78", "79"]
    places = [dataclasses.replace(where, files=where.files.with_name(name)) for name in names]

    holders: Counter[pathlib.Path] = Counter()

    def work(place: Folders) -> None:
        for _ in range(300):
            with state.locked(place, 60, pause=lambda _: None):
                holders[place.files] += 1
                assert (place.files / "lock").read_text() == f"process {os.getpid()}"
                assert holders[place.files] == 1
                holders[place.files] -= 1

    with ThreadPoolExecutor(len(places)) as pool:
        for done in [pool.submit(work, place) for place in places]:
            done.result()
    assert not where.files.parent.exists()


def test_a_command_that_leaves_state_keeps_the_folder(where: Folders) -> None:
    with state.locked(where, 0):
        state.write(where, remembered())
    assert where.state_file.exists()

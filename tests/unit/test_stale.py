"""What `detach --stale` takes for gone, and what becomes of the folders."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from lvsxdp import attaching, loading, network, state


def test_only_cookies_that_no_name_and_no_process_has_are_stale(tmp_path: Path) -> None:
    pins, files = tmp_path / "pins", tmp_path / "files"
    mine, gone, unfinished = str(network.namespace_cookie()), "999999999", "999999998"
    for folder in (pins / mine, pins / gone, pins / f"{unfinished}_new", files / gone):
        folder.mkdir(parents=True)
    assert attaching.stale(pins, files) == [unfinished, gone]


def test_removing_what_is_stale_leaves_the_rest(tmp_path: Path) -> None:
    pins, files = tmp_path / "pins", tmp_path / "files"
    for folder in (pins / "7", pins / "8", pins / "8_new", files / "8"):
        folder.mkdir(parents=True)
    attaching.remove_stale(["8"], pins, files)
    assert sorted(path.name for path in (*pins.iterdir(), *files.iterdir())) == ["7"]


def test_where_no_root_is_nothing_is_stale(tmp_path: Path) -> None:
    assert attaching.stale(tmp_path / "pins", tmp_path / "files") == []


def test_the_last_pins_go_with_their_root(tmp_path: Path) -> None:
    for cookie in ("7", "8"):
        state.make_folder(tmp_path / "pins" / cookie)
        (tmp_path / "pins" / cookie / "services").touch()
    loading.remove_pins(tmp_path / "pins/7")
    assert [path.name for path in tmp_path.rglob("*")] == ["pins", "8", "services"]
    loading.remove_pins(tmp_path / "pins/8")
    assert list(tmp_path.rglob("*")) == []
    loading.remove_pins(tmp_path / "pins/8")


def test_a_folder_is_made_though_its_root_goes_again_and_again(tmp_path: Path) -> None:
    """Namespaces attach and detach side by side."""

    def work(cookie: str) -> None:
        folder = tmp_path / "pins" / cookie
        for _ in range(500):
            state.make_folder(folder)
            loading.remove_pins(folder)

    with ThreadPoolExecutor(3) as pool:
        for done in [pool.submit(work, cookie) for cookie in ("7", "8", "9")]:
            done.result()
    assert list(tmp_path.iterdir()) == []

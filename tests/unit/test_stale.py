"""What `detach --stale` takes for gone."""

from __future__ import annotations

from pathlib import Path

from lvsxdp import attaching, network


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

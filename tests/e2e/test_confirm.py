"""--confirm: what is not confirmed undoes itself, whoever is killed meanwhile."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.conftest import wait_for
from tests.e2e.pair import Pair, config, pair, run

SHOP = """
services:
  - {name: shop, protocol: udp, address: 192.0.2.1, port: 7777,
     backends: [{address: 192.0.2.2}]}
"""
WIDER = SHOP + "  - {name: more, protocol: udp, address: 192.0.2.1, port: 7778}\n"
# long enough for some commands of a machine that does other things, too
SECONDS = 6


@pytest.fixture
def lb() -> Iterator[Pair]:
    with pair() as made:
        yield made


def services(lb: Pair) -> list[str]:
    return [row["name"] for row in lb.read("service", "list")]


def is_attached(lb: Pair) -> bool:
    return "prog/xdp" in lb.inside("ip", "-d", "link", "show", "dev", "p0").stdout


def watchers(lb: Pair) -> list[int]:
    """The processes that wait to undo a change in the balancer's namespace."""
    found = []
    for pid in run("ip", "netns", "pids", lb.ns).stdout.split():
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            if "lvsxdp.confirming" in Path(f"/proc/{pid}/cmdline").read_text().split("\0"):
                found.append(int(pid))
    return found


def test_an_attach_that_is_not_confirmed_leaves_nothing(lb: Pair, tmp_path: Path) -> None:
    before = lb.picture()
    said = lb.lvsxdp("attach", "p0", "-c", config(SHOP, tmp_path), "--confirm", SECONDS).stderr
    assert f"undone in {SECONDS} s" in said
    assert is_attached(lb)
    wait_for(lambda: not is_attached(lb))
    wait_for(lambda: lb.picture() == before)
    # the one that waited has come to its end, too
    wait_for(lambda: watchers(lb) == [])


def test_an_attach_that_is_confirmed_stays(lb: Pair, tmp_path: Path) -> None:
    lb.lvsxdp("attach", "p0", "-c", config(SHOP, tmp_path), "--confirm", 60)
    assert len(watchers(lb)) == 1
    assert lb.lvsxdp("confirm").stdout == "confirmed\n"
    # the one that waited has nothing more to do
    wait_for(lambda: watchers(lb) == [])
    assert is_attached(lb)
    assert services(lb) == ["shop"]
    code, said = lb.refused("confirm")
    assert (code, "no change waits for confirmation" in said) == (3, True)


def test_an_apply_that_is_not_confirmed_is_undone_and_refuses_others_until_then(
    lb: Pair, tmp_path: Path
) -> None:
    wider = config(WIDER, tmp_path, "wider.yaml")
    lb.lvsxdp("attach", "p0", "-c", config(SHOP, tmp_path))
    lb.lvsxdp("backend", "edit", "shop", "192.0.2.2", "--weight", 7)
    before = lb.lvsxdp("save").stdout
    lb.lvsxdp("apply", wider, "--confirm", SECONDS)
    assert services(lb) == ["shop", "more"]
    assert "a change waits for its confirmation" in lb.lvsxdp("status").stdout
    for argv in (
        ("apply", config(SHOP, tmp_path, "third.yaml")),
        ("backend", "edit", "shop", "192.0.2.2", "--weight", 8),
    ):
        code, said = lb.refused(*argv)
        assert (code, "a change waits for its confirmation" in said) == (4, True)
    wait_for(lambda: watchers(lb) == [])
    assert lb.lvsxdp("save").stdout == before
    assert lb.read("status")["warnings"] == []
    # what was changed by hand before it is still known to be
    assert "changed by hand" in lb.lvsxdp("apply", wider, "--dry-run").stderr
    assert is_attached(lb)


def test_an_apply_that_fails_waits_for_nothing(lb: Pair, tmp_path: Path) -> None:
    lb.lvsxdp("attach", "p0", "-c", config(SHOP, tmp_path))
    rule = "marks: [{mark: 5, protocol: udp, address: any, interface: nowhere}]\n"
    code, said = lb.refused("apply", config(SHOP + rule, tmp_path, "bad.yaml"), "--confirm", 60)
    assert (code, "nowhere" in said) == (2, True)
    code, _ = lb.refused("confirm")
    assert code == 3
    wait_for(lambda: watchers(lb) == [])


def test_where_the_process_that_waits_is_killed_the_next_command_undoes_the_change(
    lb: Pair, tmp_path: Path
) -> None:
    lb.lvsxdp("attach", "p0", "-c", config(SHOP, tmp_path))
    lb.lvsxdp("apply", config(WIDER, tmp_path, "wider.yaml"), "--confirm", 1)
    for pid in watchers(lb):
        os.kill(pid, signal.SIGKILL)
    wait_for(lambda: services(lb) == ["shop"])
    assert is_attached(lb)

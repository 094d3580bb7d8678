"""Counters and rates at the command line, with the daemon and without."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.conftest import wait_for
from tests.e2e.pair import PROGRAM, Pair, config, pair

SHOP = """
services:
  - {name: shop, protocol: udp, address: 192.0.2.1, port: 7777,
     backends: [{address: 192.0.2.2}]}
  - {name: other, protocol: udp, address: 192.0.2.1, port: 7778,
     backends: [{address: 192.0.2.2}]}
"""
RATES = ("cps", "in_pps", "out_pps", "in_bps", "out_bps")
COUNTERS = ("connections", "packets", "out_packets", "bytes", "out_bytes")
# IPv4 and UDP headers, and one byte
BYTES = 29


@pytest.fixture
def lb(tmp_path: Path) -> Iterator[Pair]:
    with pair() as made:
        made.lvsxdp("attach", "p0", "-c", config(SHOP, tmp_path), "--set-sysctl")
        yield made


@contextlib.contextmanager
def daemon(lb: Pair) -> Iterator[subprocess.Popen[str]]:
    """The daemon at work."""
    argv = [str(PROGRAM), "--netns", lb.ns, "run"]
    process = subprocess.Popen(argv, stderr=subprocess.PIPE, text=True)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def rates(lb: Pair) -> list[object]:
    """All rates of the service, its backend and the total."""
    rows = [*lb.read("service", "list"), *lb.read("backend", "list"), lb.read("status")["total"]]
    return [row[name] for row in rows for name in RATES]


def counted(lb: Pair, name: str) -> list[int]:
    row = lb.read("service", "show", name)
    assert [row["backends"][0][each] for each in COUNTERS] == [row[each] for each in COUNTERS]
    return [row[each] for each in COUNTERS]


def test_rates_are_known_for_as_long_as_the_daemon_lives(lb: Pair) -> None:
    assert set(rates(lb)) == {None}
    with daemon(lb) as process:
        wait_for(lambda: set(rates(lb)) == {0})
        lb.send(7777, count=400)
        wait_for(lambda: lb.read("service", "list")[0]["in_pps"] > 0)
        first, second = lb.lvsxdp("service", "list", "--rate").stdout.splitlines()[1:]
        assert first.split()[:2] == ["udp:192.0.2.1:7777", "shop"]
        assert second.split() == ["udp:192.0.2.1:7778", "other", *"00000"]
        process.kill()
        process.wait()
        assert set(rates(lb)) == {None}
        assert lb.lvsxdp("backend", "list", "--rate").stdout.splitlines()[1].split()[3:] == [
            *"-----"
        ]


def test_counters_are_set_to_zero_for_a_service_or_for_all(lb: Pair) -> None:
    lb.send(7777, count=3)
    lb.send(7778, count=2)
    total = lb.read("status")["total"]
    assert [total[name] for name in COUNTERS] == [2, 5, 0, 5 * BYTES, 0]
    lb.lvsxdp("service", "zero", "shop")
    assert counted(lb, "shop") == [0] * 5
    assert counted(lb, "other") == [1, 2, 0, 2 * BYTES, 0]
    assert lb.read("status")["total"] == total
    lb.lvsxdp("service", "zero")
    lb.send(7777, count=4)
    assert counted(lb, "shop") == [1, 4, 0, 4 * BYTES, 0]
    assert counted(lb, "other") == [0] * 5
    shown = lb.lvsxdp("service", "list", "--stats").stdout.splitlines()[1].split()
    assert shown == ["udp:192.0.2.1:7777", "shop", "1", "4", "0", str(4 * BYTES), "0"]


def test_zero_names_a_service_that_there_is(lb: Pair) -> None:
    code, said = lb.refused("service", "zero", "nobody")
    assert (code, "nobody" in said) == (3, True)

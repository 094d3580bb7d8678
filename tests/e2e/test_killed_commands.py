"""Commands that are killed in the middle: interfaces, pins and record are whole after the next."""

from __future__ import annotations

import json
import signal
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
settings: {require_local: false}
capacity: {connections: 1024, persistence: 1024}
"""
SIX = SHOP.replace(
    "settings:",
    """  - {protocol: udp, address: "2001:db8::1", port: 7777,
     backends: [{address: "2001:db8::2"}]}
settings:""",
)
# lvsxdp ARGUMENTS, killed before the step of this number: each change of an interface and of the
# record, and every fortieth pin that is made or removed.
KILLED = """
import os, pathlib, signal, sys
from lvsxdp import cli, journal, loading, maps, network, state
left = int(sys.argv[1])
pins = 0

def before(owner, name):
    step = getattr(owner, name)
    def both(*arguments, **named):
        global left, pins
        if name == "unlink" and not os.path.lexists(arguments[0]):
            return step(*arguments, **named)
        is_pin = name == "pin" or str(arguments[0]).startswith("/sys/fs/bpf/")
        pins += is_pin
        if not is_pin or name == "rename" or pins % 40 == 0:
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            left -= 1
        return step(*arguments, **named)
    setattr(owner, name, both)

for name in ("_set_xdp", "_filter", "_add_clsact", "remove_clsact"):
    before(network.Network, name)
for name in ("rename", "unlink"):
    before(pathlib.Path, name)
before(maps, "pin")
cli.main(sys.argv[2:])
"""


@pytest.fixture
def lb() -> Iterator[Pair]:
    with pair() as made:
        made.inside("ip", "link", "add", "q0", "type", "veth", "peer", "q1")
        made.inside("ip", "link", "set", "q0", "up")
        yield made


def is_killed(lb: Pair, number: int, *argv: object) -> bool:
    """Runs a command that is killed before that step; whether it came to that."""
    words = [PROGRAM.parent / "python", "-c", KILLED, number, "--netns", lb.ns, *argv]
    done = subprocess.run(list(map(str, words)), capture_output=True, text=True, timeout=60)
    assert done.returncode in (0, -signal.SIGKILL), done.stderr
    return done.returncode != 0


def on_links(lb: Pair) -> dict[str, tuple[int, int]]:
    """How many XDP programs and filters each interface has."""
    found = {}
    for name in ("p0", "q0"):
        link = lb.inside("ip", "-d", "-o", "link", "show", "dev", name).stdout
        filters = lb.inside("tc", "filter", "show", "dev", name, "ingress").stdout
        found[name] = (link.count("prog/xdp"), filters.count("direct-action"))
    return found


def whole(lb: Pair) -> set[str]:
    """The interfaces attached; each has what is on record of it, and the others nothing."""
    done = lb.lvsxdp("status", "--check", "--json", check=False)
    assert done.returncode in (0, 1, 3), done.stderr
    rows = json.loads(done.stdout)["interfaces"] if done.returncode != 3 else []
    attached = {row["name"] for row in rows if row["attached"]}
    # without a mode are those that should be attached and are not
    assert attached == {row["name"] for row in rows if row["mode"]}
    there = on_links(lb)
    assert {name for name, counts in there.items() if counts == (1, 1)} == attached
    assert {name for name, counts in there.items() if counts == (0, 0)} == {"p0", "q0"} - attached
    return attached


def serves(lb: Pair) -> None:
    """A new client gets through all of the programs."""
    before = len(lb.read("connection", "list"))
    lb.send(7777)
    wait_for(lambda: len(lb.read("connection", "list")) == before + 1)


def test_attach(lb: Pair, tmp_path: Path) -> None:
    file, clean = config(SHOP, tmp_path), lb.picture()
    number, seen = 0, set()
    while is_killed(lb, number, "attach", "p0", "q0", "-c", file):
        found = whole(lb)
        seen.add(tuple(sorted(found)))
        missing = sorted({"p0", "q0"} - found)
        if missing:
            lb.lvsxdp("attach", *missing, "-c", file)
        assert whole(lb) == {"p0", "q0"}
        lb.lvsxdp("detach", "--all")
        assert lb.picture() == clean
        number += 1
    assert {(), ("p0", "q0")} <= seen <= {(), ("p0", "q0"), ("p0",)}
    serves(lb)


@pytest.mark.parametrize("what", ["p0", "--all"])
def test_detach(lb: Pair, tmp_path: Path, what: str) -> None:
    file, clean = config(SHOP, tmp_path), lb.picture()
    number, seen = 0, set()
    lb.lvsxdp("attach", "p0", "q0", "-c", file)
    while is_killed(lb, number, "detach", what):
        found = whole(lb)
        seen.add(len(found))
        if found != {"p0", "q0"}:
            lb.lvsxdp("attach", *sorted({"p0", "q0"} - found), "-c", file)
        assert whole(lb) == {"p0", "q0"}
        number += 1
    assert seen >= ({1, 2} if what == "p0" else {0, 2})
    assert whole(lb) == ({"q0"} if what == "p0" else set())
    lb.lvsxdp("detach", "--all", check=False)
    assert lb.picture() == clean


def test_apply_that_compiles_in(lb: Pair, tmp_path: Path) -> None:
    small, wide = config(SHOP, tmp_path), config(SIX, tmp_path, "six.yaml")
    clean = lb.picture()
    number, seen = 0, set()
    lb.lvsxdp("attach", "p0", "-c", small)
    pins = lb.picture()["pins"]
    while is_killed(lb, number, "apply", wide):
        assert whole(lb) == {"p0"}
        serves(lb)
        has = "ipv6" in lb.read("status")["features"]
        seen.add((has, "2001:db8::1" in lb.lvsxdp("save").stdout))
        lb.lvsxdp("apply", wide)
        assert whole(lb) == {"p0"}
        assert lb.picture()["pins"] == pins
        lb.lvsxdp("detach", "--all")
        assert lb.picture() == clean
        lb.lvsxdp("attach", "p0", "-c", small)
        number += 1
    assert seen == {(False, False), (True, False), (True, True)}

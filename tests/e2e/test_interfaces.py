"""Interfaces that go down, are renamed, vanish and come back; files that name them or do not."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.conftest import wait_for
from tests.e2e.pair import HERE, PEER, Pair, config, pair, run

SHOP = """
services:
  - {name: shop, protocol: udp, address: 192.0.2.1, port: 7777, persistence: 600,
     backends: [{address: 192.0.2.2}]}
"""


@pytest.fixture
def lb(tmp_path: Path) -> Iterator[Pair]:
    """A balancer on p0, with a second interface q0."""
    with pair() as made:
        made.inside("ip", "link", "add", "q0", "type", "veth", "peer", "q1")
        made.inside("ip", "link", "set", "q0", "up")
        made.lvsxdp("attach", "p0", "-c", config(SHOP, tmp_path), "--set-sysctl")
        yield made


def interfaces(lb: Pair) -> dict[str, tuple[str, bool]]:
    """Mode of each interface on record, and whether it is attached."""
    return {r["name"]: (r["mode"], r["attached"]) for r in lb.read("status")["interfaces"]}


def attached(lb: Pair) -> set[str]:
    """The interfaces that have an XDP program."""
    shown = lb.inside("ip", "-j", "-d", "link", "show").stdout
    return {link["ifname"] for link in json.loads(shown) if "xdp" in link}


def entries(lb: Pair) -> list[Any]:
    """Connections and persistence entries, without what time changes."""
    rows = [*lb.read("connection", "list"), *lb.read("persistence", "list")]
    return [{k: v for k, v in row.items() if k != "expires_in"} for row in rows]


def is_served(lb: Pair) -> bool:
    """Whether a packet is forwarded now."""
    before = lb.read("status")["reasons"].get("forwarded", 0)
    lb.send(7777, source_port=4000)
    return bool(lb.read("status")["reasons"].get("forwarded", 0) > before)


def make_again(lb: Pair) -> None:
    """p0 is deleted, and made again with its peer."""
    lb.inside("ip", "link", "delete", "p0")
    run("ip", "-n", lb.ns, "link", "add", "p0", "type", "veth", "peer", "p1", "netns", lb.peer)
    for ns, device, address in ((lb.ns, "p0", HERE), (lb.peer, "p1", PEER)):
        run("ip", "netns", "exec", ns, "ethtool", "-K", device, "tx", "off", "gro", "on")
        run("ip", "-n", ns, "address", "add", f"{address}/24", "dev", device)
        run("ip", "-n", ns, "link", "set", device, "up")


def test_link_down_and_up_keeps_everything(lb: Pair) -> None:
    assert is_served(lb)
    before = entries(lb)
    lb.inside("ip", "link", "set", "p0", "down")
    assert interfaces(lb) == {"p0": ("native", True)}
    lb.inside("ip", "link", "set", "p0", "up")
    wait_for(lambda: is_served(lb))
    assert entries(lb) == before


def test_a_renamed_interface_is_followed(lb: Pair) -> None:
    lb.inside("ip", "link", "set", "p0", "name", "wan0")
    assert interfaces(lb) == {"wan0": ("native", True)}
    assert lb.lvsxdp("status", "--check").returncode == 0
    assert is_served(lb)
    assert "interfaces: [wan0]" in lb.lvsxdp("save").stdout
    lb.lvsxdp("detach", "wan0")
    assert attached(lb) == set()


def test_a_file_with_the_former_name_attaches_nothing_and_detaches_nothing(
    lb: Pair, tmp_path: Path
) -> None:
    lb.inside("ip", "link", "set", "p0", "name", "wan0")
    file = config("interfaces: [p0]" + SHOP, tmp_path, "former.yaml")
    assert "there is no interface p0 here" in lb.lvsxdp("apply", file).stderr
    code, said = lb.refused("apply", file, "--detach")
    assert (code, 'no interface "p0"' in said) == (3, True)
    assert interfaces(lb) == {"wan0": ("native", True)}


def test_an_interface_that_is_made_again_is_gone_until_the_next_apply(
    lb: Pair, tmp_path: Path
) -> None:
    file = config(SHOP, tmp_path)
    assert is_served(lb)
    make_again(lb)
    assert interfaces(lb) == {"p0": ("native", False)}
    assert lb.lvsxdp("status", "--check", check=False).returncode == 1
    said = lb.lvsxdp("apply", file, "--dry-run").stdout
    assert said == "interface p0: to be attached again\n"
    lb.lvsxdp("apply", file)
    assert interfaces(lb) == {"p0": ("native", True)}
    assert lb.lvsxdp("status", "--check").returncode == 0
    wait_for(lambda: is_served(lb))
    assert lb.lvsxdp("apply", file).stdout == "nothing to do\n"


def test_an_interface_that_stays_away_is_told_and_kept_on_record(lb: Pair, tmp_path: Path) -> None:
    lb.inside("ip", "link", "delete", "p0")
    done = lb.lvsxdp("apply", config(SHOP, tmp_path))
    assert (done.stdout, "p0 was attached and is gone" in done.stderr) == ("nothing to do\n", True)
    assert lb.lvsxdp("status", "--check", check=False).returncode == 1
    lb.lvsxdp("detach", "p0")
    assert "is gone" not in lb.lvsxdp("apply", config(SHOP, tmp_path)).stderr
    assert interfaces(lb) == {}


@pytest.mark.parametrize("mode", ["native", "generic", "tc"])
def test_programs_that_somebody_took_off_are_attached_again(
    lb: Pair, tmp_path: Path, mode: str
) -> None:
    lb.lvsxdp("detach", "p0")
    lb.lvsxdp("attach", "p0", "--mode", mode)
    before = lb.picture()
    lb.inside("ip", "link", "set", "p0", "xdpgeneric" if mode == "generic" else "xdp", "off")
    lb.inside("tc", "filter", "del", "dev", "p0", "ingress")
    assert lb.lvsxdp("status", "--check", check=False).returncode == 1
    lb.lvsxdp("apply", config(SHOP, tmp_path))
    assert interfaces(lb) == {"p0": (mode, True)}
    assert lb.picture()["links"] == before["links"]
    assert is_served(lb)


def test_a_file_attaches_what_it_names_and_detaches_only_where_it_is_told_to(
    lb: Pair, tmp_path: Path
) -> None:
    both = config("interfaces: [p0, q0]" + SHOP, tmp_path, "both.yaml")
    one = config("interfaces: [q0]" + SHOP, tmp_path, "one.yaml")
    assert lb.lvsxdp("apply", both).stdout == "interfaces: p0 become p0 q0\n"
    assert attached(lb) == {"p0", "q0"}
    assert lb.lvsxdp("apply", one).stdout == "nothing to do\n"
    assert lb.lvsxdp("apply", one, "--detach").stdout == "interfaces: p0 q0 become q0\n"
    assert attached(lb) == {"q0"}
    saved = config(lb.lvsxdp("save").stdout, tmp_path, "saved.yaml")
    assert lb.lvsxdp("apply", saved, "--detach").stdout == "nothing to do\n"


def test_an_apply_that_cannot_attach_changes_nothing(lb: Pair, tmp_path: Path) -> None:
    lb.inside("tc", "qdisc", "add", "dev", "q0", "ingress")
    more = SHOP + "  - {protocol: udp, address: 192.0.2.1, port: 7778}\n"
    before, saved = lb.picture(), lb.lvsxdp("save").stdout
    code, said = lb.refused("apply", config("interfaces: [p0, q0]" + more, tmp_path, "more.yaml"))
    assert (code, "q0 has an ingress qdisc" in said) == (4, True)
    assert lb.lvsxdp("save").stdout == saved
    assert lb.picture() == before


def test_attach_with_a_file_names_what_was_changed_by_hand(lb: Pair, tmp_path: Path) -> None:
    lb.lvsxdp("backend", "edit", "shop", "192.0.2.2", "--weight", 7)
    done = lb.lvsxdp("attach", "q0", "-c", config(SHOP, tmp_path))
    assert "changed by hand since the last apply: service shop: backend" in done.stderr
    assert "weight 7 becomes 1" in done.stdout
    assert attached(lb) == {"p0", "q0"}
    assert lb.lvsxdp("apply", config(SHOP, tmp_path)).stdout == "nothing to do\n"

"""Services, mark rules and connections changed at run time, by the command line."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.pair import Pair, config, pair

SHOP = """
marks:
- {mark: 1, protocol: udp, address: 192.0.2.1, port: 5001}
- {mark: 2, protocol: udp, address: 192.0.2.1, port: 5002}
services:
- name: shop
  mark: 1
  scheduler: rr
  persistence: {timeout: 300, netmask: 255.255.255.0}
  backends: [{address: 192.0.2.2}, {address: 192.0.2.3}]
"""


@pytest.fixture(scope="module")
def attached(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    with pair() as made:
        file = config(SHOP, tmp_path_factory.mktemp("hand"))
        made.lvsxdp("attach", "p0", "-c", file, "--set-sysctl")
        yield made


@pytest.fixture
def lb(attached: Pair, tmp_path: Path) -> Pair:
    """The balancer with the configuration and empty tables that every test begins with."""
    attached.lvsxdp("apply", "--undrain", config(SHOP, tmp_path))
    attached.lvsxdp("persistence", "flush")
    attached.lvsxdp("connection", "flush")
    return attached


@pytest.fixture(scope="module")
def settled(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Pair, str]]:
    """A balancer that no test changes, and its configuration."""
    with pair() as made:
        made.lvsxdp(
            "attach", "p0", "-c", config(SHOP, tmp_path_factory.mktemp("settled")), "--set-sysctl"
        )
        yield made, saved(made)


def saved(lb: Pair) -> str:
    return lb.lvsxdp("save").stdout


# ---- services ----


def test_a_service_is_added_edited_shown_and_deleted(lb: Pair) -> None:
    before = saved(lb)
    options = [
        "--name",
        "dns",
        "--scheduler",
        "wrr",
        "--persistence",
        "60",
        "--netmask",
        "24",
        "--expiry",
        "strict",
    ]
    lb.lvsxdp("service", "add", "udp:192.0.2.1:5003", *options)
    lb.lvsxdp("backend", "add", "dns", "192.0.2.2", "--weight", "2")
    shown = lb.read("service", "show", "dns")
    backends = shown.pop("backends")
    assert [(b["address"], b["weight"], b["port"]) for b in backends] == [("192.0.2.2", 2, 5003)]
    assert shown == {
        "service": "udp:192.0.2.1:5003",
        "name": "dns",
        "scheduler": "wrr",
        "persistence": 60,
        "netmask": "255.255.255.0",
        "expiry": "strict",
        "engine": None,
        "one_packet": False,
        "sloppy_tcp": False,
        **dict.fromkeys(("connections", "packets", "bytes", "out_packets", "out_bytes"), 0),
        **dict.fromkeys(("cps", "in_pps", "out_pps", "in_bps", "out_bps")),
    }
    lb.send(5003)
    (entry,) = lb.read("persistence", "list")
    assert (entry["service"], entry["backend"]) == ("dns", "192.0.2.2")
    lb.lvsxdp("service", "edit", "dns", "--scheduler", "sh", "--flag", "sh-port")
    lb.lvsxdp("service", "edit", "udp:192.0.2.1:5003", "--persistence", "none")
    row = {r["name"]: r for r in lb.read("service", "list")}["dns"]
    assert (row["scheduler"], row["persistence"]) == ("sh sh-port", None)
    lb.lvsxdp("service", "delete", "dns", "--now")
    assert saved(lb) == before


def test_a_service_that_is_in_use_is_deleted_only_now(lb: Pair) -> None:
    lb.send(5001)
    code, said = lb.refused("service", "delete", "shop")
    assert code == 4
    assert "service shop has 1 open connections and 1 persistent clients" in said
    said = lb.lvsxdp("service", "delete", "shop", "--now").stderr
    assert "there is no service mark:1; give one, or leave the rule out" in said
    assert lb.read("service", "list") == []


# ---- mark rules ----


def test_rules_are_added_before_others_and_deleted(lb: Pair) -> None:
    before = saved(lb)
    lb.lvsxdp("mark", "add", "1", "--address", "any", "--protocol", "udp", "--port", "5000-5009")
    more = [
        "--address",
        "192.0.2.1",
        "--source",
        "192.0.2.0/24",
        "--interface",
        "p0",
        "--vlan",
        "7",
    ]
    lb.lvsxdp("mark", "add", "0", *more, "--source-mac", "02:00:00:00:00:07", "--before", "1")
    rows = [(r["number"], r["mark"], r["ports"], r["vlans"]) for r in lb.read("mark", "list")]
    assert rows == [
        (1, 0, "any", "7"),
        (2, 1, "5001", ""),
        (3, 2, "5002", ""),
        (4, 1, "5000-5009", ""),
    ]
    lb.send(5004)
    assert [row["service"] for row in lb.read("connection", "list")] == ["shop"]
    lb.lvsxdp("mark", "delete", "4", "1")
    assert saved(lb) == before


# ---- connections ----


def test_connections_are_deleted_by_service_client_and_backend(lb: Pair) -> None:
    for port in (40001, 40002):
        lb.send(5001, source_port=port)
    code, said = lb.refused("connection", "delete", "--client", "203.0.113.0/24")
    assert (code, "there is no such connection" in said) == (3, True)
    rows = lb.read("connection", "list")
    gone = lb.lvsxdp("connection", "delete", "--client", "192.0.2.2", "--service", "shop").stdout
    assert gone == f"{len(rows)} connections deleted\n"
    assert lb.read("connection", "list") == []
    lb.send(5001, source_port=40003)
    assert lb.lvsxdp("connection", "flush", "shop").stdout == "1 connections deleted\n"
    assert len(lb.read("persistence", "list")) == 1


# ---- what is told ----


def test_apply_names_what_was_changed_by_hand_and_ends_it(lb: Pair, tmp_path: Path) -> None:
    file = config(SHOP, tmp_path)
    lb.lvsxdp("backend", "edit", "shop", "192.0.2.2", "--weight", "7")
    lb.lvsxdp("mark", "delete", "2")
    by_hand = "changed by hand since the last apply: "
    changed = f"{by_hand}service shop: backend 192.0.2.2 weight 1 becomes 7\n"
    changed += f"{by_hand}marks: 2 rules become 1\n"
    dry = lb.lvsxdp("apply", "--dry-run", file)
    assert changed in dry.stderr
    done = lb.lvsxdp("apply", file)
    assert changed in done.stderr
    assert done.stdout == (
        "service shop: backend 192.0.2.2 weight 7 becomes 1\nmarks: 1 rules become 2\n"
    )
    assert by_hand not in lb.lvsxdp("apply", file).stderr


def test_what_was_changed_by_hand_and_saved_is_the_files_once_applied(lb: Pair) -> None:
    lb.lvsxdp("backend", "edit", "shop", "192.0.2.2", "--weight", "7")
    done = lb.lvsxdp("apply", "-", stdin=saved(lb))
    assert (done.stdout, "changed by hand" in done.stderr) == ("nothing to do\n", True)
    assert "changed by hand" not in lb.lvsxdp("apply", "-", stdin=saved(lb)).stderr


REFUSALS = {
    "a service that is there": (["service", "add", "mark:1"], 4, "there is a service mark:1"),
    "a name that is taken": (
        ["service", "add", "mark:2", "--name", "shop"],
        4,
        'service mark:1 has the name "shop" already',
    ),
    "a service that is none": (["service", "add", "tcp:192.0.2.1"], 2, "is not a service"),
    "any port without persistence": (
        ["service", "add", "tcp:192.0.2.1:any"],
        2,
        "service tcp:192.0.2.1:any: port: any needs persistence; give persistence, or one port",
    ),
    "flags of another scheduler": (
        ["service", "edit", "shop", "--flag", "sh-port"],
        2,
        "service shop: flags: sh-port belongs to scheduler sh, and the scheduler is rr",
    ),
    "a mask that is none": (
        ["service", "edit", "shop", "--netmask", "33"],
        2,
        'service shop: netmask: "33" is not an IPv4 netmask (255.255.255.0, or a prefix length',
    ),
    "an interface that is not there": (
        ["mark", "add", "1", "--address", "192.0.2.1", "--interface", "q9"],
        2,
        'mark rule 3: interfaces: there is no interface "q9" here (ip link)',
    ),
    "a rule that is not there": (["mark", "delete", "3"], 3, "no mark rule 3; there are 2"),
    "a rule before one that is not there": (
        ["mark", "add", "1", "--address", "any", "--before", "4"],
        3,
        "no mark rule 4; there are 2",
    ),
    "families mixed in a rule": (
        ["mark", "add", "1", "--address", "192.0.2.1", "--source", "2001:db8::/32"],
        2,
        "mark rule 3: sources: ipv6 beside addresses of ipv4; a packet has one family, write a",
    ),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_a_change_is_refused_for(settled: tuple[Pair, str], case: str) -> None:
    argv, code, told = REFUSALS[case]
    lb, before = settled
    refused = lb.refused(*argv)
    assert (refused[0], told in refused[1]) == (code, True), refused
    assert saved(lb) == before


def test_the_engine_sip_comes_and_goes_while_others_run(lb: Pair) -> None:
    lb.lvsxdp("service", "add", "udp:192.0.2.1:5060", "--name", "phone", "--persistence", "60")
    lb.lvsxdp("backend", "add", "phone", "192.0.2.2")
    told = lb.lvsxdp("service", "edit", "phone", "--engine", "sip").stderr
    assert "compiled in sip" in told
    lb.send(5060)
    assert lb.read("persistence", "list") == []
    assert lb.read("status")["reasons"]["no_call_id"] == 1
    code, said = lb.refused("persistence", "pin", "phone", "192.0.2.9", "192.0.2.2")
    assert (code, "its entries are for calls, and no call can be pinned" in said) == (4, True)
    assert "engine: sip" in lb.lvsxdp("save").stdout
    lb.lvsxdp("service", "edit", "phone", "--engine", "none")
    lb.send(5060)
    (entry,) = lb.read("persistence", "list")
    assert (entry["service"], entry["engine"], entry["data"]) == ("phone", None, None)
    code, said = lb.refused("service", "add", "tcp:192.0.2.1:5061", "--persistence", "60",
                            "--engine", "sip")  # fmt: skip
    assert (code, "sip is for udp and mark services" in said) == (2, True)

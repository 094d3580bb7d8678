"""Settings, and services' own: what the commands show, change, and leave on record."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.pair import Pair, config, pair

SHOP = """
services:
- {name: web, protocol: tcp, address: 192.0.2.1, port: 80, backends: [{address: 192.0.2.2}]}
"""


@pytest.fixture(scope="module")
def attached(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    with pair() as made:
        file = config(SHOP, tmp_path_factory.mktemp("settings"))
        made.lvsxdp("attach", "p0", "-c", file, "--set-sysctl")
        yield made


@pytest.fixture
def lb(attached: Pair, tmp_path: Path) -> Pair:
    """The balancer with no setting changed."""
    attached.lvsxdp("apply", config(SHOP, tmp_path))
    return attached


def values(lb: Pair) -> dict[str, object]:
    return {row["name"]: row["value"] for row in lb.read("settings", "list")}


def test_a_setting_has_these_keys_in_json(lb: Pair) -> None:
    rows = {row["name"]: row for row in lb.read("settings", "list")}
    assert rows["expire_nodest_conn"] == {
        "name": "expire_nodest_conn",
        **{"value": True, "default": True, "ipvs": False, "can_be_set": True},
    }
    assert rows["timeout_last_ack"]["can_be_set"] is False


def test_the_table_says_switches_in_the_words_of_the_file(lb: Pair) -> None:
    head, first, *_ = lb.lvsxdp("settings", "list").stdout.splitlines()
    assert head.split() == ["name", "value", "default", "ipvs", "can_be_set"]
    assert first.split() == ["expire_nodest_conn", "true", "true", "false", "true"]


def test_settings_that_are_set_are_listed_saved_and_planned_away(lb: Pair, tmp_path: Path) -> None:
    lb.lvsxdp("settings", "set", "secure_tcp=3", "timeout_tcp=60", "timeout_udp=0", "sloppy_tcp=1")
    found = values(lb)
    named = ("secure_tcp", "timeout_tcp", "timeout_udp", "sloppy_tcp")
    assert [found[name] for name in named] == [3, 60, 300, True]
    saved = lb.lvsxdp("save").stdout
    assert "settings:\n  sloppy_tcp: true\n  secure_tcp: 3\n  timeout_tcp: 60\n" in saved
    assert lb.lvsxdp("apply", "--dry-run", "-", stdin=saved).stdout == "nothing to do\n"
    said = lb.lvsxdp("apply", config(SHOP, tmp_path)).stdout
    assert "settings.secure_tcp: 3 becomes 0\n" in said
    assert values(lb)["secure_tcp"] == 0


def test_one_wrong_assignment_changes_nothing(lb: Pair) -> None:
    before = lb.read("settings", "list")
    code, told = lb.refused("settings", "set", "timeout_tcp=60", "secure_tcp=2")
    assert (code, "modes that IPVS switches by the memory" in told) == (2, True)
    assert lb.read("settings", "list") == before


def test_a_service_is_made_one_packet_and_no_more(lb: Pair) -> None:
    lb.lvsxdp("service", "add", "udp:192.0.2.1:53", "-o")
    lb.lvsxdp("service", "edit", "web", "--sloppy-tcp")
    rows = {row["service"]: row for row in lb.read("service", "list")}
    assert rows["udp:192.0.2.1:53"]["one_packet"] is True
    assert rows["tcp:192.0.2.1:80"]["sloppy_tcp"] is True
    assert "one_packet: true\n" in lb.lvsxdp("service", "show", "udp:192.0.2.1:53").stdout
    lb.lvsxdp("service", "edit", "udp:192.0.2.1:53", "--no-one-packet")
    lb.lvsxdp("service", "edit", "web", "--scheduler", "rr")
    saved = lb.lvsxdp("save").stdout
    assert ("one_packet" in saved, "sloppy_tcp: true" in saved) == (False, True)


def test_a_key_of_another_protocol_is_refused_by_the_services_name(lb: Pair) -> None:
    code, told = lb.refused("service", "edit", "web", "--one-packet")
    assert code == 2
    assert "web" in told
    assert "one_packet: is for udp and mark services, and the service is tcp" in told

"""As in IPVS: backends and services that are removed and come back; entries to the last detail."""

from __future__ import annotations

import math
from typing import Any

import pytest

from lvsxdp import ageing, forgetting
from tests.datapath.harness import Datapath, tcp, udp

A, B, C = "10.0.0.11", "10.0.0.12", "10.0.0.13"
A6 = "2001:db8:0:2::11"
VIP = "192.0.2.10"
CLIENT, CLIENTS = "198.51.100.1", [f"198.51.100.{n}" for n in range(1, 7)]
# IPVS's own default, where lvsxdp's differs
IPVS = "settings: {expire_nodest_conn: false}\n"


def shop(letters: str, persistence: int = 60, port: object = 80, protocol: str = "tcp") -> str:
    """A persistent service by rr with these backends; a small letter stands for weight 0."""
    addresses = {"A": A, "B": B, "C": C}
    backends = ", ".join(
        f"{{address: {addresses[n.upper()]}, weight: {int(n.isupper())}}}" for n in letters
    )
    kept = f"persistence: {persistence}, " if persistence else ""
    return (
        f"- {{protocol: {protocol}, address: {VIP}, port: {port}, {kept}scheduler: rr,"
        f" backends: [{backends}]}}\n"
    )


def use(datapath: Datapath, *services: str, settings: str = IPVS) -> None:
    """Applies the services under IPVS's own settings."""
    listed = "services:\n" + "".join(services) if services else ""
    datapath.apply(settings + listed)


def sent(datapath: Datapath, client: str, flags: str, port: int = 80) -> list[str | None]:
    """Where the TCP packets of one connection go, a letter of `flags` each."""
    packets = (tcp(client, f"{VIP}:{port}", flag) for flag in flags)
    return [datapath.backend_for(packet) for packet in packets]


def kept(datapath: Datapath) -> list[tuple[str, str | None, int]]:
    """Every persistence entry's client, backend and seconds left, by client."""
    rows = datapath.persistence()
    return sorted((row["client"], row["backend"], math.ceil(row["expires_in"])) for row in rows)


def counts(datapath: Datapath, backend: str) -> dict[str, Any]:
    """What a backend carries and got."""
    row = datapath.backends()[backend]
    return {name: row[name] for name in ("active", "inactive", "persistent", "connections")}


# ------------------------------------------------------------------------------ removed backends


def test_a_removed_backend_that_comes_back_goes_on_with_its_connections(
    datapath: Datapath,
) -> None:
    """Vector deleted-server, step by step."""
    use(datapath, shop("ABC"))
    assert sent(datapath, f"{CLIENT}:1001", "SA") == [C, C]
    before = counts(datapath, C)
    use(datapath, shop("AB"))
    assert datapath.deliver(tcp(f"{CLIENT}:1001", f"{VIP}:80", "A")).action == "drop"
    assert datapath.reasons()["backend_gone"] == 1
    assert sent(datapath, f"{CLIENT}:1002", "S") == [B]
    assert kept(datapath) == [(CLIENT, B, 60)]
    use(datapath, shop("ABC"))
    # its client is another's by now, its connection is its own
    assert counts(datapath, C) == {**before, "persistent": 0}
    assert sent(datapath, f"{CLIENT}:1001", "A") == [C]
    assert sent(datapath, f"{CLIENT}:1003", "S") == [B]
    use(datapath, shop("AC"), settings="settings: {expire_nodest_conn: true}\n")
    packet = tcp(f"{CLIENT}:1003", f"{VIP}:80", "A")
    assert datapath.deliver(packet).action == "pass"
    assert {row["backend"] for row in datapath.connections()} == {C, None}


def test_a_client_that_did_not_come_meanwhile_is_the_backends_still(datapath: Datapath) -> None:
    use(datapath, shop("ABC"))
    assert sent(datapath, f"{CLIENT}:1001", "S") == [C]
    use(datapath, shop("AB"))
    datapath.later(20)
    assert kept(datapath) == [(CLIENT, C, 40)]
    use(datapath, shop("ABC"))
    assert counts(datapath, C)["persistent"] == 1
    assert sent(datapath, f"{CLIENT}:1002", "S") == [C]
    assert kept(datapath) == [(CLIENT, C, 60)]


def test_what_ends_while_the_backend_is_away_is_not_counted_when_it_comes_back(
    datapath: Datapath,
) -> None:
    use(datapath, shop("ABC", persistence=0))
    assert [sent(datapath, f"{client}:1001", "S") for client in CLIENTS[:3]] == [[C], [B], [A]]
    assert sent(datapath, f"{CLIENTS[3]}:1001", "SA") == [C, C]
    use(datapath, shop("AB", persistence=0))
    datapath.later(70)
    ageing.sweep(datapath.balancer)
    use(datapath, shop("ABC", persistence=0))
    assert counts(datapath, C) == {"active": 1, "inactive": 0, "persistent": 0, "connections": 2}
    # what it has lost meanwhile nothing has to put right
    assert ageing.sweep(datapath.balancer).drift == {}


def test_packets_to_a_backend_that_is_away_keep_nothing_alive(datapath: Datapath) -> None:
    use(datapath, shop("ABC", persistence=0))
    assert sent(datapath, f"{CLIENT}:1001", "SA") == [C, C]
    use(datapath, shop("AB", persistence=0))
    datapath.later(800)
    assert sent(datapath, f"{CLIENT}:1001", "A") == [None]
    datapath.later(200)
    assert datapath.connections() == []
    use(datapath, shop("ABC", persistence=0))
    assert datapath.deliver(tcp(f"{CLIENT}:1001", f"{VIP}:80", "A")).action == "pass"


def test_the_same_address_in_another_service_is_another_backend(datapath: Datapath) -> None:
    use(datapath, shop("ABC"), shop("A", port=443))
    assert sent(datapath, f"{CLIENT}:1001", "SA") == [C, C]
    use(datapath, shop("AB"), shop("AC", port=443))
    assert sent(datapath, f"{CLIENT}:1001", "A") == [None]
    assert sent(datapath, f"{CLIENT}:1002", "S", 443) == [C]
    assert sent(datapath, f"{CLIENT}:1001", "A") == [None]


def test_a_backend_of_another_weight_comes_back_as_the_same(datapath: Datapath) -> None:
    use(datapath, shop("ABC"))
    assert sent(datapath, f"{CLIENT}:1001", "SA") == [C, C]
    use(datapath, shop("AB"))
    use(datapath, shop("ABc"))
    assert sent(datapath, f"{CLIENT}:1001", "A") == [C]
    assert sent(datapath, f"{CLIENT}:1002", "S") == [C]
    assert sent(datapath, f"{CLIENTS[1]}:1002", "S") == [B]


@pytest.mark.parametrize("persistence", [0, 60])
def test_without_ipvss_setting_a_backend_comes_back_as_a_new_one(
    datapath: Datapath, persistence: int
) -> None:
    for letters in ("ABC", "AB", "ABC"):
        use(datapath, shop(letters, persistence), settings="")
        if letters == "ABC":
            assert counts(datapath, C)["connections"] == 0
            assert sent(datapath, f"{CLIENT}:1001", "S") == [C]


def test_the_setting_forgets_what_was_removed_before_it(datapath: Datapath) -> None:
    use(datapath, shop("ABC"))
    assert sent(datapath, f"{CLIENT}:1001", "SA") == [C, C]
    use(datapath, shop("AB"))
    use(datapath, shop("AB"), settings="settings: {expire_nodest_conn: true}\n")
    assert datapath.balancer.state.book.removed == {}
    use(datapath, shop("ABC"))
    assert datapath.deliver(tcp(f"{CLIENT}:1001", f"{VIP}:80", "A")).action == "drop"
    assert counts(datapath, C)["active"] == 0


# ------------------------------------------------------------------------------ removed services


def test_a_service_that_comes_back_goes_on_with_connections_and_clients(
    datapath: Datapath,
) -> None:
    use(datapath, shop("ABC"), shop("A", port=443))
    assert sent(datapath, f"{CLIENT}:1001", "SA") == [C, C]
    assert sent(datapath, f"{CLIENTS[1]}:1001", "SA") == [B, B]
    use(datapath, shop("A", port=443))
    assert sent(datapath, f"{CLIENT}:1001", "A") == [None]
    assert datapath.reasons()["backend_gone"] == 1
    assert {row["backend"] for row in datapath.connections()} == {C, B}
    assert kept(datapath) == [(CLIENT, C, 60), (CLIENTS[1], B, 60)]
    use(datapath, shop("ABC"), shop("A", port=443))
    assert sent(datapath, f"{CLIENT}:1001", "A") == [C]
    assert sent(datapath, f"{CLIENT}:1002", "S") == [C]
    assert sent(datapath, f"{CLIENTS[1]}:1002", "S") == [B]
    # the service was made anew, and has given its backend one connection
    assert counts(datapath, C) == {"active": 2, "inactive": 0, "persistent": 1, "connections": 1}


def test_without_any_service_of_the_family_packets_of_connections_go_up(
    datapath: Datapath,
) -> None:
    use(datapath, shop("ABC"))
    assert sent(datapath, f"{CLIENT}:1001", "SA") == [C, C]
    six = f'- {{protocol: tcp, address: "2001:db8::10", port: 80, backends: [{{address: "{A6}"}}]}}'
    use(datapath, six)
    packet = tcp(f"{CLIENT}:1001", f"{VIP}:80", "A")
    assert datapath.deliver(packet).action == "pass"
    assert datapath.reasons()["no_service"] == 1
    use(datapath, six, "\n" + shop("ABC"))
    assert sent(datapath, f"{CLIENT}:1001", "A") == [C]


def test_a_mark_service_that_comes_back_goes_on_too(datapath: Datapath) -> None:
    rules = f"marks: [{{mark: 7, address: {VIP}, ports: [80, 443]}}]\n"
    backends = f"[{{address: {A}}}, {{address: {B}}}]"
    service = f"- {{mark: 7, persistence: 60, scheduler: rr, backends: {backends}}}\n"
    use(datapath, service, shop("C", port=81), settings=IPVS + rules)
    assert sent(datapath, f"{CLIENT}:1001", "SA") == [B, B]
    use(datapath, shop("C", port=81), settings=IPVS + rules)
    use(datapath, service, shop("C", port=81), settings=IPVS + rules)
    assert sent(datapath, f"{CLIENT}:1001", "A") == [B]
    assert sent(datapath, f"{CLIENT}:1002", "S", 443) == [B]


# ------------------------------------------------------------------------------ how long it is kept


def names_removed(datapath: Datapath) -> list[str]:
    """The removed backends that may come back."""
    return [name for _, name, _ in datapath.balancer.state.book.parted()]


def test_a_removed_backend_is_forgotten_two_minutes_after_its_last_entry(
    datapath: Datapath,
) -> None:
    use(datapath, shop("ABC", persistence=200))
    assert sent(datapath, f"{CLIENT}:1001", "S") == [C]
    use(datapath, shop("AB", persistence=200))
    found = []
    for _ in range(8):
        forgetting.look_and_keep(datapath.balancer)
        found.append(names_removed(datapath))
        datapath.later(60)
    # its connection ends after 60 s, its client's entry after 200 s, seen at 240 s
    assert found == [[C]] * 6 + [[]] * 2
    use(datapath, shop("ABC", persistence=200))
    assert counts(datapath, C)["connections"] == 0


def test_a_change_forgets_as_well(datapath: Datapath) -> None:
    use(datapath, shop("ABC"))
    use(datapath, shop("AB"))
    for letters in ("A", "AB", "A"):
        use(datapath, shop(letters))
        datapath.later(121)
    assert names_removed(datapath) == [B]


# ----------------------------------------------------------------------------- entries, in detail


def test_an_entry_that_may_not_serve_is_gone_with_the_first_connection_that_meets_it(
    datapath: Datapath,
) -> None:
    """IPVS renames it, whether or not there is a backend in its place."""
    use(datapath, shop("C"))
    assert sent(datapath, f"{CLIENT}:1001", "S") == [C]
    use(datapath, shop(""))
    assert kept(datapath) == [(CLIENT, C, 60)]
    assert datapath.deliver(tcp(f"{CLIENT}:1002", f"{VIP}:80")).action == "redirect"
    assert kept(datapath) == []
    use(datapath, shop("CA"))
    assert sent(datapath, f"{CLIENT}:1003", "S") == [A]


def test_a_syn_sent_again_to_a_backend_that_is_away_leaves_the_entry(datapath: Datapath) -> None:
    use(datapath, shop("AC"))
    assert sent(datapath, f"{CLIENT}:1001", "S") == [C]
    use(datapath, shop("A"))
    assert sent(datapath, f"{CLIENT}:1001", "S") == [None]
    assert kept(datapath) == [(CLIENT, C, 60)]


def test_a_udp_service_on_port_21_shares_its_entries_with_the_one_of_any_port(
    datapath: Datapath,
) -> None:
    use(datapath, shop("AB", port=21, protocol="udp"), shop("C", port="any", protocol="udp"))
    assert datapath.backend_for(udp(f"{CLIENT}:1001", f"{VIP}:21")) == B
    assert datapath.backend_for(udp(f"{CLIENT}:1002", f"{VIP}:53")) == B


def test_another_timeout_is_for_new_entries_alone(datapath: Datapath) -> None:
    use(datapath, shop("ABC", persistence=30))
    assert sent(datapath, f"{CLIENT}:1001", "S") == [C]
    use(datapath, shop("ABC", persistence=500))
    datapath.later(10)
    assert sent(datapath, f"{CLIENT}:1002", "S") == [C]
    assert sent(datapath, f"{CLIENTS[1]}:1001", "S") == [B]
    assert kept(datapath) == [(CLIENT, C, 30), (CLIENTS[1], B, 500)]


def test_a_backend_comes_back_with_the_thresholds_that_it_is_given(datapath: Datapath) -> None:
    def limited(letters: str, upper: int) -> str:
        return shop(letters, persistence=0).replace(
            f"{C}, weight: 1", f"{C}, weight: 1, upper_threshold: {upper}"
        )

    def picks(upper: int, port: int) -> list[str | None]:
        use(datapath, limited("C", upper))
        found = [sent(datapath, f"{client}:{port}", "S")[0] for client in CLIENTS[:3]]
        use(datapath, limited("", 0))
        return found

    # its two connections stay with it all the while
    assert picks(2, 1001) == [C, C, None]
    assert picks(3, 1002) == [C, None, None]
    assert picks(3, 1003) == [None, None, None]
    assert picks(0, 1004) == [C, C, C]


def test_an_entry_ends_at_its_time_whatever_its_last_connection_once_was_to_live(
    datapath: Datapath,
) -> None:
    """FIN gives the connection 120 s, the RST after it 10 s: found beside kernel IPVS."""
    use(datapath, shop("AB", persistence=110))
    assert sent(datapath, f"{CLIENT}:1001", "SF") == [B, B]
    datapath.later(26)
    assert sent(datapath, f"{CLIENT}:1001", "R") == [B]
    datapath.later(83)
    assert kept(datapath) == [(CLIENT, B, 1)]
    datapath.later(2)
    assert kept(datapath) == []
    assert sent(datapath, f"{CLIENT}:1002", "S") == [A]


def test_one_connection_that_ends_sooner_leaves_the_entry_to_the_others(
    datapath: Datapath,
) -> None:
    use(datapath, shop("AB", persistence=110))
    for port in (1001, 1002):
        assert sent(datapath, f"{CLIENT}:{port}", "SF") == [B, B]
    datapath.later(26)
    assert sent(datapath, f"{CLIENT}:1001", "R") == [B]
    datapath.later(85)
    assert kept(datapath) == [(CLIENT, B, 59)]

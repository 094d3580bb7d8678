"""Persistence entries to the last detail, as in IPVS."""

from __future__ import annotations

import math

from tests.datapath.harness import Datapath, tcp, udp

A, B, C = "10.0.0.11", "10.0.0.12", "10.0.0.13"
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


def test_an_entry_that_may_not_serve_is_gone_with_the_first_connection_that_meets_it(
    datapath: Datapath,
) -> None:
    """IPVS renames it, whether or not there is a backend in its place."""
    use(datapath, shop("C"))
    assert sent(datapath, f"{CLIENT}:1001", "S") == [C]
    use(datapath, shop(""))
    assert kept(datapath) == [(CLIENT, C, 60)]
    assert datapath.deliver(tcp(f"{CLIENT}:1002", f"{VIP}:80")).action == "tx"
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

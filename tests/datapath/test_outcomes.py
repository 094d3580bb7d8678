"""From a packet to its service, in IPVS's order, and what becomes of one that no backend takes."""

from __future__ import annotations

from typing import Any

import pytest

from tests.datapath.harness import Datapath, Verdict, tcp, udp

A, B, C, D = (f"10.0.0.{n}" for n in (11, 12, 13, 14))
CLIENT, VIP, OTHER, AWAY = "198.51.100.7:1001", "192.0.2.10", "192.0.2.11", "203.0.113.9"
EVERY = f"""
marks:
  - {{mark: 7, protocol: tcp, address: {VIP}, ports: [443, 2000]}}
  - {{mark: 8, protocol: tcp, address: {VIP}, ports: [80, 3000]}}
services:
  - {{mark: 7, backends: [{{address: {A}}}]}}
  - {{protocol: tcp, address: {VIP}, port: 80, backends: [{{address: {B}}}]}}
  - {{protocol: tcp, address: {VIP}, port: 443, backends: [{{address: {B}}}]}}
  - {{protocol: tcp, address: {VIP}, port: 4000, backends: [{{address: {B}}}]}}
  - {{protocol: tcp, address: {VIP}, port: 21, persistence: 60, backends: [{{address: {C}}}]}}
  - {{protocol: tcp, address: {VIP}, port: any, persistence: 60, backends: [{{address: {D}}}]}}
"""
FOUND = {
    "by mark, before its address": (443, A),
    "by mark, before FTP's data": (2000, A),
    "by address, its mark has no service": (80, B),
    "by FTP's data, its mark has no service": (3000, C),
    "by address, before FTP's data": (4000, B),
    "by FTP's data, port 20": (20, C),
    "by FTP's data, an unprivileged port": (1024, C),
    "by any port": (1023, D),
}


@pytest.mark.parametrize(("port", "backend"), FOUND.values(), ids=FOUND)
def test_a_packet_meets_its_service(datapath: Datapath, port: int, backend: str) -> None:
    datapath.apply(EVERY)
    # a client each: FTP's service and the one of any port share persistence entries
    assert datapath.backend_for(tcp(f"198.51.100.{port % 251}:1001", f"{VIP}:{port}")) == backend


def test_what_no_service_takes_goes_up(datapath: Datapath) -> None:
    datapath.apply(EVERY)
    for packet in (tcp(CLIENT, f"{OTHER}:80"), udp(CLIENT, f"{VIP}:80")):
        frame = datapath.to_host(packet)
        assert datapath.send(frame) == Verdict("pass", bytes(frame))
    assert datapath.reasons() == {"no_service": 2}


def test_ftps_data_begins_where_the_kernels_unprivileged_ports_do(datapath: Datapath) -> None:
    name = "net/ipv4/ip_unprivileged_port_start"
    service = f"protocol: tcp, address: {VIP}, port: 21, persistence: 60"
    ftp = f"services: [{{{service}, backends: [{{address: {A}}}]}}]"
    datapath.apply(ftp)
    assert datapath.backend_for(tcp(CLIENT, f"{VIP}:1500")) == A
    datapath.set_sysctl(name, 2000)
    try:
        datapath.apply(ftp)
        assert datapath.backend_for(tcp("198.51.100.7:1002", f"{VIP}:1999")) is None
        assert datapath.backend_for(tcp("198.51.100.7:1002", f"{VIP}:2000")) == A
        assert datapath.backend_for(tcp(CLIENT, f"{VIP}:1500")) == A
    finally:
        datapath.set_sysctl(name, 1024)
    assert datapath.reasons() == {"forwarded": 3, "no_service": 1}


# ------------------------------------------------------------------------ nobody takes the packet


@pytest.mark.parametrize("persistence", ["", "persistence: 60, "])
def test_ftps_data_is_the_hosts_where_the_ftp_service_has_no_backend(
    datapath: Datapath, persistence: str
) -> None:
    datapath.apply(f"services: [{{protocol: tcp, address: {VIP}, port: 21, {persistence}}}]")
    assert datapath.deliver(tcp(CLIENT, f"{VIP}:21")).action == "redirect"
    for port in (20, 1024, 50000):
        frame = datapath.to_host(tcp(CLIENT, f"{VIP}:{port}"))
        assert datapath.send(frame) == Verdict("pass", bytes(frame))
    reason = "ftp_no_backend" if persistence else "ftp_not_persistent"
    assert datapath.reasons() == {"no_backend": 1, reason: 3}


BYPASS = """
settings: {{require_local: false, cache_bypass: {on}}}
marks: [{{mark: 7, protocol: tcp, addresses: [{vip}, {away}], port: 80}}]
services:
  - {{mark: 7, family: ipv4}}
  - {{protocol: tcp, address: {away}, port: 81}}
"""


def bypassing(on: int) -> str:
    return BYPASS.format(on=on, vip=VIP, away=AWAY)


def test_what_is_addressed_to_another_machine_may_bypass_a_mark_without_a_backend(
    datapath: Datapath,
) -> None:
    datapath.apply(bypassing(1))
    frame = datapath.to_host(tcp(CLIENT, f"{AWAY}:80"))
    handover: dict[str, Any] = {"reason": "bypassed", "mark": 7, "backend": 0, "service": 0}
    assert datapath.send(frame) == Verdict("pass", bytes(frame), handover)
    assert datapath.send_tc(frame) == Verdict("pass", bytes(frame))
    assert datapath.reasons() == {"bypassed": 1}


@pytest.mark.parametrize(
    ("on", "virtual"),
    [(0, f"{AWAY}:80"), (1, f"{VIP}:80"), (1, f"{AWAY}:81")],
    ids=["not-set", "this-host", "by-address"],
)
def test_nothing_else_bypasses(datapath: Datapath, on: int, virtual: str) -> None:
    datapath.apply(bypassing(on))
    assert datapath.deliver(tcp(CLIENT, virtual)).action == "redirect"
    assert datapath.reasons() == {"no_backend": 1}

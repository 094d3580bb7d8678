"""What is counted, to the packet, and the rates that come of it, with ticks driven by hand."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Iterator
from typing import Any

import pytest

from lvsxdp import counting, state, views
from lvsxdp.estimating import Estimates
from lvsxdp.model import Service
from tests.datapath.harness import Datapath, tcp

A, B = "10.0.0.11", "10.0.0.12"
COUNTERS = ("connections", "packets", "bytes")
RATES = ("cps", "in_pps", "out_pps", "in_bps", "out_bps")
EACH = 300
BYTES = len(bytes(tcp("198.51.100.1:1001", "192.0.2.10:80")))


def shop(*addresses: str, port: int = 80) -> str:
    servers = ", ".join(f"{{address: {address}}}" for address in addresses)
    return (
        f"services:\n- {{name: shop, protocol: tcp, address: 192.0.2.10, port: {port}, "
        f"scheduler: rr, backends: [{servers}]}}\n"
    )


def counted(row: dict[str, Any]) -> tuple[int, ...]:
    return tuple(row[name] for name in COUNTERS)


def rates_of(row: dict[str, Any]) -> tuple[int | None, ...]:
    return tuple(row[name] for name in RATES)


def service_row(datapath: Datapath) -> dict[str, Any]:
    (row,) = views.services(datapath.balancer)
    return row


def total(datapath: Datapath) -> dict[str, Any]:
    row: dict[str, Any] = views.status(datapath.balancer, datapath.net)["total"]
    return row


def send(datapath: Datapath, client: str, packets: int, port: int = 80) -> None:
    """A connection of so many packets."""
    for number in range(packets):
        packet = tcp(f"{client}:1001", f"192.0.2.10:{port}", "A" if number else "S")
        # the packet of the second that is for the kernel's road, where TC would count it
        while datapath.deliver(packet).handover:
            datapath.confirm()


@pytest.fixture
def fresh(datapath: Datapath) -> Datapath:
    """Nothing counted by any service before."""
    counting.zero(datapath.balancer, None)
    return datapath


# ----------------------------------------------------------------------------------- counters


def on_cpu(cpu: int, datapath: Datapath) -> None:
    """Sends packets of a client of its own and of one that all CPUs have."""
    os.sched_setaffinity(0, {cpu})
    send(datapath, f"198.51.100.{10 + cpu}", EACH)
    send(datapath, "198.51.100.7", EACH)


def test_every_packet_of_every_cpu_is_counted_once(fresh: Datapath) -> None:
    fresh.apply(shop(A, B))
    send(fresh, "198.51.100.7", 1)
    cpus = range(os.cpu_count() or 1)
    fork = multiprocessing.get_context("fork")
    senders = [fork.Process(target=on_cpu, args=(cpu, fresh)) for cpu in cpus]
    for sender in senders:
        sender.start()
    for sender in senders:
        sender.join()
    assert [sender.exitcode for sender in senders] == [0] * len(senders)
    packets = 1 + 2 * EACH * len(senders)
    wanted = (1 + len(senders), packets, packets * BYTES)
    assert fresh.reasons() == {"forwarded": packets}
    assert counted(service_row(fresh)) == wanted
    assert counted(total(fresh)) == wanted
    each = [counted(row) for row in fresh.backends().values()]
    assert tuple(map(sum, zip(*each, strict=True))) == wanted
    assert all(packets for _, packets, _ in each)


def test_a_packet_is_as_long_as_its_ip_header_says_by_either_hook(fresh: Datapath) -> None:
    fresh.apply(shop(A))
    padded = bytes(fresh.to_host(tcp("198.51.100.7:1001", "192.0.2.10:80"))) + bytes(6)
    fresh.send(padded)
    fresh.send_tc(padded)
    assert counted(service_row(fresh)) == (1, 2, 2 * BYTES)


def test_what_a_removed_backend_counted_stays_with_its_service(fresh: Datapath) -> None:
    fresh.apply(shop(A))
    send(fresh, "198.51.100.7", 3)
    fresh.apply(shop(B))
    assert counted(service_row(fresh)) == (1, 3, 3 * BYTES)
    assert counted(fresh.backends()[B]) == (0, 0, 0)
    send(fresh, "198.51.100.8", 2)
    fresh.apply(shop(A, B))
    assert counted(fresh.backends()[A]) == (0, 0, 0)
    assert counted(fresh.backends()[B]) == (1, 2, 2 * BYTES)
    assert counted(service_row(fresh)) == (2, 5, 5 * BYTES)


def test_a_backend_that_comes_back_has_counted_for_its_own_service_alone(fresh: Datapath) -> None:
    settings = "settings: {expire_nodest_conn: 0}\n"
    fresh.apply(shop(A) + settings)
    send(fresh, "198.51.100.7", 3)
    fresh.apply(shop(B) + settings)
    fresh.apply(shop(A, B) + settings)
    assert counted(fresh.backends()[A]) == (1, 3, 3 * BYTES)
    fresh.apply(settings)
    fresh.apply(shop(A, B) + settings)
    assert counted(fresh.backends()[A]) == (0, 0, 0)
    assert counted(service_row(fresh)) == (0, 0, 0)
    send(fresh, "198.51.100.7", 2)
    assert counted(service_row(fresh)) == (0, 2, 2 * BYTES)
    assert counted(fresh.backends()[A]) == (0, 2, 2 * BYTES)
    assert counted(total(fresh)) == (1, 5, 5 * BYTES)


def test_what_a_removed_service_counted_stays_in_the_total(fresh: Datapath) -> None:
    fresh.apply(shop(A))
    send(fresh, "198.51.100.7", 3)
    fresh.apply("{}")
    assert counted(total(fresh)) == (1, 3, 3 * BYTES)
    # all ids have been used then, and the next service has one again
    ports = range(1, fresh.capacity.services + 1)
    every = (f"- {{protocol: udp, address: 192.0.2.10, port: {port}}}\n" for port in ports)
    fresh.apply(f"services:\n{''.join(every)}")
    fresh.apply("{}")
    fresh.apply(shop(A))
    assert counted(service_row(fresh)) == (0, 0, 0)
    send(fresh, "198.51.100.8", 2)
    assert counted(service_row(fresh)) == (1, 2, 2 * BYTES)
    assert counted(total(fresh)) == (2, 5, 5 * BYTES)


# ------------------------------------------------------------------------------------- to zero


def test_one_service_is_set_to_zero_with_its_backends(fresh: Datapath) -> None:
    other = shop(B, port=81).replace("shop", "other").partition("\n")[2]
    fresh.apply(shop(A) + other)
    send(fresh, "198.51.100.7", 3)
    send(fresh, "198.51.100.7", 2, port=81)
    first, second = views.services(fresh.balancer)
    counting.zero(fresh.balancer, named(fresh, "shop"))
    first, second = views.services(fresh.balancer)
    assert [counted(row) for row in (first, second)] == [(0, 0, 0), (1, 2, 2 * BYTES)]
    assert [counted(row) for row in fresh.backends().values()] == [(0, 0, 0), (1, 2, 2 * BYTES)]
    assert counted(total(fresh)) == (2, 5, 5 * BYTES)
    send(fresh, "198.51.100.8", 1)
    assert counted(views.services(fresh.balancer)[0]) == (1, 1, BYTES)


def named(datapath: Datapath, name: str) -> Service:
    return next(s for s in datapath.balancer.state.config.services if s.name == name)


def test_everything_is_set_to_zero_and_an_edit_keeps_it_so(fresh: Datapath) -> None:
    fresh.apply(shop(A, B))
    send(fresh, "198.51.100.7", 3)
    counting.zero(fresh.balancer, None)
    fresh.apply(shop(A, B).replace("rr", "wlc"))
    rows = (service_row(fresh), total(fresh), *fresh.backends().values())
    assert [counted(row) for row in rows] == [(0, 0, 0)] * 4


# --------------------------------------------------------------------------------------- rates


@pytest.fixture
def estimates(fresh: Datapath) -> Iterator[Estimates]:
    """What the daemon ticks every 2 s."""
    made = Estimates(fresh.balancer.where)
    yield made
    made.close()


def test_rates_go_the_way_that_ipvs_has_them_go(fresh: Datapath, estimates: Estimates) -> None:
    fresh.apply(shop(A))
    send(fresh, "198.51.100.6", 50)
    estimates.tick()
    assert rates_of(service_row(fresh)) == (None,) * 5
    found = []
    for turn in range(8):
        # what IPVS would see of a constant 100 packets a second
        send(fresh, f"198.51.100.{10 + turn}", 200)
        estimates.tick()
        rows = [service_row(fresh), fresh.backends()[A], total(fresh)]
        assert len({rates_of(row) for row in rows}) == 1
        found.append(rates_of(rows[0]))
    assert [row[1] for row in found] == [25, 44, 58, 68, 76, 82, 87, 90]
    assert {row[0] for row in found} == {0}
    assert {row[2::2] for row in found} == {(0, 0)}
    scaled = 0
    for _, _, _, in_bps, _ in found:
        scaled += (200 * BYTES * 16 - scaled) >> 2
        assert in_bps == (scaled + 15) >> 5


def test_rates_begin_anew_at_zero(fresh: Datapath, estimates: Estimates) -> None:
    fresh.apply(shop(A, B))
    estimates.tick()
    send(fresh, "198.51.100.7", 400)
    estimates.tick()
    assert rates_of(service_row(fresh))[1] == 50
    counting.zero(fresh.balancer, named(fresh, "shop"))
    assert rates_of(service_row(fresh)) == (0,) * 5
    assert {rates_of(row) for row in fresh.backends().values()} == {(0,) * 5}
    assert rates_of(total(fresh))[1] == 50
    send(fresh, "198.51.100.8", 200)
    estimates.tick()
    assert rates_of(service_row(fresh))[1] == 25


def test_rates_go_on_across_changes_of_what_is_configured(
    fresh: Datapath, estimates: Estimates
) -> None:
    fresh.apply(shop(A))
    estimates.tick()
    send(fresh, "198.51.100.7", 400)
    estimates.tick()
    fresh.apply(shop(A, B))
    assert rates_of(fresh.backends()[B]) == (0,) * 5
    send(fresh, "198.51.100.7", 100)
    estimates.tick()
    # a quarter of the way from 50 to 50
    assert [rates_of(row)[1] for row in (service_row(fresh), fresh.backends()[A])] == [50, 50]


def test_a_second_daemon_estimates_once_the_first_is_gone(
    fresh: Datapath, estimates: Estimates
) -> None:
    fresh.apply(shop(A))
    estimates.tick()
    second = Estimates(fresh.balancer.where)
    try:
        for each in (second, estimates):
            send(fresh, "198.51.100.7", 400)
            each.tick()
        assert rates_of(service_row(fresh))[1] == 100
        estimates.close()
        assert rates_of(service_row(fresh)) == (None,) * 5
        second.tick()
        assert rates_of(service_row(fresh)) == (None,) * 5
        second.tick()
        assert rates_of(service_row(fresh)) == (0,) * 5
    finally:
        second.close()


def test_after_an_error_rates_are_unknown_until_they_are_estimated_again(
    fresh: Datapath, estimates: Estimates, monkeypatch: pytest.MonkeyPatch
) -> None:
    fresh.apply(shop(A))
    estimates.tick()
    send(fresh, "198.51.100.7", 400)
    estimates.tick()
    with monkeypatch.context() as patch, pytest.raises(OSError, match="no room"):
        patch.setattr(state, "write_bytes", refuse)
        estimates.tick()
    found = []
    for _ in range(3):
        found.append(rates_of(service_row(fresh)))
        estimates.tick()
    assert found == [(None,) * 5, (None,) * 5, (0,) * 5]


def refuse(*_: object) -> None:
    raise OSError("no room")

"""Persistence, quiescing, draining and deleting, seen by clients with real connections."""

import signal
import time
from collections.abc import Iterator

import pytest

from lab import clients, layout
from lab.topology import Lab
from tests.e2e.conftest import (
    PROGRAM,
    Balancer,
    Held,
    ask,
    ask_and_reset,
    backend_named,
    hold,
    wait_for,
)

VIP = layout.VIP4
CLIENT = "198.51.100.10"
OTHER = "203.0.113.10"
BACKENDS = [layout.BACKEND4[name] for name in layout.BACKENDS]
ADDRESS = {name: layout.BACKEND4[name] for name in layout.BACKENDS}
STRICT_SECONDS = 2
# An RST leaves its connection 10 s in CLOSE; the entry must outlive that to end unheld.
UNHELD_SECONDS = 12


def web(persistence: str, backends: list[str] = BACKENDS) -> str:
    """One service for HTTP under a mark."""
    return f"""
    interfaces: [lb0]
    marks:
      - {{mark: 1, protocol: tcp, address: {VIP}, port: 80}}
    services:
      - name: web
        mark: 1
        scheduler: rr
        persistence: {persistence}
        backends: [{", ".join(f"{{address: {a}}}" for a in backends)}]
    """


KEPT = web("{timeout: 600}")
FTP = f"""
interfaces: [lb0]
services:
  - name: files
    protocol: tcp
    address: {VIP}
    port: 21
    scheduler: rr
    persistence: {{timeout: 600}}
    backends: [{", ".join(f"{{address: {a}}}" for a in BACKENDS)}]
"""
PLAIN = f"""
interfaces: [lb0]
services:
  - name: plain
    protocol: tcp
    address: {VIP}
    port: 8080
    scheduler: rr
    backends: [{", ".join(f"{{address: {a}}}" for a in BACKENDS)}]
"""


@pytest.fixture
def kept(balancer: Balancer) -> Iterator[Balancer]:
    """The balancer with a persistent web service, and no client remembered."""
    balancer.use(KEPT)
    yield balancer


@pytest.fixture
def held(kept: Balancer) -> Iterator[Held]:
    """A connection of the client to the persistent web service."""
    held = hold(kept.lab, "c1", VIP, CLIENT)
    yield held
    held.end()


def get(lab: Lab) -> str:
    return ask(lab, "c1", VIP, CLIENT)


def test_a_strict_entry_serves_until_its_time_and_not_after(balancer: Balancer) -> None:
    balancer.use(web(f"{{timeout: {STRICT_SECONDS}, expiry: strict}}"))
    before = {get(balancer.lab), get(balancer.lab)}
    wait_for(lambda: balancer.entry("web", CLIENT) is None)
    after = get(balancer.lab)
    assert len(before) == 1
    assert after not in before


def test_a_strict_entry_ends_under_a_live_connection_that_runs_on(balancer: Balancer) -> None:
    balancer.use(web(f"{{timeout: {STRICT_SECONDS}, expiry: strict}}"))
    held = hold(balancer.lab, "c1", VIP, CLIENT)
    try:
        wait_for(lambda: balancer.entry("web", CLIENT) is None)
        assert get(balancer.lab) != held.next_answer()
        assert len(set(held.answers())) == 1
    finally:
        held.end()


def test_a_live_connection_keeps_an_entry_beyond_its_time(balancer: Balancer) -> None:
    balancer.use(web("{timeout: 2}"))
    held = hold(balancer.lab, "c1", VIP, CLIENT)
    try:
        # Its timer ended once it shows more than it was given: it is armed for 60 s again.
        wait_for(lambda: balancer.entry("web", CLIENT)["expires_in"] > 2)
        assert get(balancer.lab) == held.next_answer()
    finally:
        held.end()


def test_an_entry_that_no_connection_holds_ends_at_its_time(balancer: Balancer) -> None:
    balancer.use(web(f"{{timeout: {UNHELD_SECONDS}}}"))
    start = time.monotonic()
    before = ask_and_reset(balancer.lab, "c1", VIP, CLIENT)
    wait_for(lambda: balancer.entry("web", CLIENT) is None, patience=UNHELD_SECONDS + 10)
    assert time.monotonic() - start >= UNHELD_SECONDS
    assert get(balancer.lab) != before


def test_a_persistent_port_21_serves_passive_ftp_without_marks(balancer: Balancer) -> None:
    balancer.use(FTP)
    first = [clients.ftp_passive(balancer.lab, "c1", VIP, CLIENT) for _ in range(2)]
    other = clients.ftp_passive(balancer.lab, "c2", VIP)
    assert first[0] == first[1]
    assert other != first[0]


def test_an_entry_survives_the_death_of_every_process(kept: Balancer) -> None:
    before = get(kept.lab)
    daemon = kept.lab.spawn("lb", [str(PROGRAM), "run", "--interval", "1"])
    wait_for(lambda: "started" in daemon.output())
    daemon.stop(signal.SIGKILL)
    assert [get(kept.lab) for _ in range(3)] == [before] * 3


def test_an_entry_survives_a_sweep(kept: Balancer) -> None:
    before = get(kept.lab)
    swept = kept.rows("status")["last_sweep"]
    daemon = kept.lab.spawn("lb", [str(PROGRAM), "run", "--interval", "0.2"])
    wait_for(lambda: kept.rows("status")["last_sweep"] != swept)
    daemon.stop()
    assert [get(kept.lab) for _ in range(3)] == [before] * 3


def test_an_entry_survives_an_apply_that_adds_a_backend(balancer: Balancer) -> None:
    balancer.use(web("{timeout: 600}", BACKENDS[:2]))
    before = get(balancer.lab)
    balancer.lvsxdp("apply", balancer.file(KEPT))
    assert [get(balancer.lab) for _ in range(3)] == [before] * 3
    assert set(balancer.backends("web")) == set(BACKENDS)


def test_weight_0_keeps_a_persistent_client_and_takes_no_new_one(kept: Balancer) -> None:
    mine = get(kept.lab)
    kept.lvsxdp("backend", "edit", "web", ADDRESS[mine], "--weight", "0")
    assert [get(kept.lab) for _ in range(3)] == [mine] * 3
    kept.lvsxdp("persistence", "flush")
    new = []
    for _ in range(3):
        new.append(get(kept.lab))
        kept.lvsxdp("persistence", "flush")
    assert mine not in new


def test_drain_moves_the_next_connection_while_a_live_one_runs_on(
    kept: Balancer, held: Held
) -> None:
    mine = held.next_answer()
    kept.lvsxdp("backend", "drain", "web", ADDRESS[mine])
    assert get(kept.lab) != mine
    assert held.next_answer() == mine


def test_undone_drain_takes_new_clients_again(kept: Balancer) -> None:
    kept.lvsxdp("backend", "drain", "web", BACKENDS[0])
    kept.lvsxdp("backend", "drain", "web", BACKENDS[0], "--undo")
    seen = set()
    for _ in BACKENDS:
        seen.add(get(kept.lab))
        kept.lvsxdp("persistence", "flush")
    assert seen == set(layout.BACKENDS)


def test_delete_refuses_while_a_client_would_be_stranded(kept: Balancer, held: Held) -> None:
    mine = held.next_answer()
    refused = kept.command("backend", "delete", "web", ADDRESS[mine])
    assert refused.returncode == 4
    assert "1 open connections and 1 persistent clients" in refused.stderr
    assert held.next_answer() == mine
    assert ADDRESS[mine] in kept.backends("web")


def test_delete_now_ends_a_held_connection_with_rst(kept: Balancer, held: Held) -> None:
    mine = held.next_answer()
    kept.lvsxdp("backend", "delete", "web", ADDRESS[mine], "--now")
    wait_for(held.has_ended)
    assert held.answers()[-1] == "reset"
    assert get(kept.lab) != mine


def test_a_backend_leaves_under_load_and_no_request_fails(balancer: Balancer) -> None:
    balancer.use(PLAIN)
    gone = BACKENDS[2]
    load = clients.start_load(balancer.lab, "c2", f"http://{VIP}:8080/", 4)
    try:
        wait_for(lambda: balancer.backends("plain")[gone]["connections"] > 20)
        balancer.lvsxdp("backend", "drain", "plain", gone)
        wait_for(lambda: balancer.backends("plain")[gone]["active"] == 0)
        balancer.lvsxdp("backend", "delete", "plain", gone)
        left = balancer.rows("service", "list")[0]["connections"]
        wait_for(lambda: balancer.rows("service", "list")[0]["connections"] > left + 50)
    finally:
        result = load.stop()
    assert result.errors == {}
    assert set(result.backends) == set(layout.BACKENDS)
    assert result.backends[backend_named(gone)] < result.ok / 3
    assert set(balancer.backends("plain")) == set(BACKENDS[:2])

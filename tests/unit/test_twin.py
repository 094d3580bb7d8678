"""Scripts for kernel IPVS and lvsxdp, and when and how what both show is compared."""

from __future__ import annotations

import ipaddress
from collections import Counter
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lvsxdp.model import Protocol, Scheduler
from tests.twin import balancer, compare, frames, generator, timing
from tests.twin.compare import Connection, Drift, Server, Snapshot, Template
from tests.twin.script import Flow, PutService, Send, Set, Step, Wait, parse

FLOW = "tcp 198.51.100.7:20000 192.0.2.10:80"
SERVICE, CLIENT, BACKEND = "tcp:192.0.2.10:80", "198.51.100.0", "10.0.0.11"
SEEDS = range(100)


def seeds(test: Callable[[int], None]) -> Callable[[], None]:
    """The test for some seeds; a script takes longer to make than hypothesis likes."""
    return settings(max_examples=25, deadline=None)(given(seed=st.integers(0, 2**32))(test))


def made_of(seed: int) -> tuple[Step, ...]:
    return generator.script(seed, 50)


# ---- scripts ----


@seeds
def test_a_seed_has_always_the_same_script(seed: int) -> None:
    assert made_of(seed) == made_of(seed)


@seeds
def test_a_script_is_read_back_from_its_lines(seed: int) -> None:
    steps = made_of(seed)
    assert parse([f"{step}  # a word" for step in steps]) == steps


@seeds
def test_a_script_asks_only_for_changes_that_can_be_made(seed: int) -> None:
    config = balancer.EMPTY
    for step in made_of(seed):
        after = balancer.edited(config, step)
        assert after != config or isinstance(step, Send | Wait | Set), step
        config = after


def test_scripts_come_to_everything() -> None:
    steps = [step for seed in SEEDS for step in made_of(seed)]
    verbs = Counter(" ".join(str(step).split()[:2]) for step in steps)
    assert {
        *("mark add", "service add", "service edit", "service delete"),
        *("backend add", "backend edit", "backend delete", "send tcp", "send udp", "send sctp"),
    } <= set(verbs)
    put = [step.service for step in steps if isinstance(step, PutService)]
    assert {service.scheduler for service in put} == set(Scheduler) - {Scheduler.TWOS}
    masks = {str(ipaddress.ip_address(mask)) for of in generator.MASKS.values() for mask in of}
    assert {str(s.persistence.netmask) for s in put if s.persistence} == masks


def test_a_line_that_is_no_step_is_refused() -> None:
    with pytest.raises(ValueError, match="'balance it' is no step"):
        parse(["balance it"])


# ---- frames ----


@pytest.mark.parametrize("protocol", [Protocol.TCP, Protocol.UDP])
@pytest.mark.parametrize(
    ("client", "virtual", "size", "ends"),
    [
        ("198.51.100.7:20000", "192.0.2.10:80", 20, 12),
        ("[2001:db8:a::7]:20000", "[2001:db8::10]:80", 40, 8),
    ],
)
def test_checksums_of_frames_are_right(
    protocol: Protocol, client: str, virtual: str, size: int, ends: int
) -> None:
    flow = Flow.parse(protocol, client, virtual)
    packet = frames.packet(flow, "S" if protocol is Protocol.TCP else "-")
    header, segment = packet[:size], packet[size:]
    pseudo = header[ends:] + bytes((0, protocol.number)) + len(segment).to_bytes(2, "big")
    assert frames.checksum(pseudo + segment) == 0
    assert size == 40 or frames.checksum(header) == 0


# ---- what is compared ----


def shown(
    *,
    backend: str | None = BACKEND,
    state: str = "ESTABLISHED",
    left: float = 800,
    template: float | None = None,
    active: int = 1,
) -> Snapshot:
    """A twin with one backend and one connection, and with a template that has so long left."""
    kept = {} if template is None else {(SERVICE, CLIENT): Template(backend, template)}
    return Snapshot(
        {FLOW: Connection(backend, state, left, SERVICE)} if left else {},
        kept,
        {(SERVICE, BACKEND): Server(1, active, 0)},
        {},
    )


def found(judge: Snapshot, twin: Snapshot) -> list[str]:
    return list(compare.differences(judge, twin, Drift(), 1000))


@pytest.mark.parametrize("ahead", [0, 1.5])
def test_seconds_that_ipvs_cuts_off_are_no_difference(ahead: float) -> None:
    judge = shown(template=30)
    assert found(judge, shown(left=800 + ahead, template=30 + ahead)) == []


def test_a_backend_without_a_name_was_removed() -> None:
    assert found(shown(), shown(backend=None)) == []


@pytest.mark.parametrize(
    "twin",
    [
        shown(backend="10.0.0.12"),
        shown(state="FIN_WAIT"),
        shown(left=797),
        shown(left=803),
        shown(left=0),
        shown(active=0),
        shown(template=30),
    ],
)
def test_whatever_else_is_not_the_same_is_a_difference(twin: Snapshot) -> None:
    for lines in (found(shown(), twin), found(twin, shown())):
        assert lines and all("IPVS" in line and "lvsxdp" in line for line in lines)


def test_a_template_of_ipvs_may_be_late_by_two_seconds_for_every_minute() -> None:
    drift = Drift()
    both = shown(template=30), shown(template=30)
    assert not list(compare.differences(*both, drift, 1000))
    late = shown(template=35), shown(template=30)
    assert list(compare.differences(*late, drift, 1059))
    assert not list(compare.differences(*late, drift, 1061))


# ---- when it is compared ----


@pytest.mark.parametrize(
    ("judge", "twin", "settled", "may"),
    [
        (shown(), shown(), True, True),
        (shown(left=1), shown(left=2), False, True),
        # IPVS's timer is late
        (shown(left=0.1), shown(left=0), False, True),
        (shown(left=20), shown(left=0), False, False),
        (shown(left=0), shown(left=20), False, False),
        # IPVS's has not been armed again yet
        (shown(template=2), shown(template=59), False, True),
        (shown(template=30), shown(template=30), True, True),
    ],
)
def test_twins_are_compared_when_no_end_is_near(
    judge: Snapshot, twin: Snapshot, settled: bool, may: bool
) -> None:
    assert timing.is_settled(judge, twin) == settled
    assert timing.may_settle(judge, twin, 0) == may


MASKS = {SERVICE: {0xFFFFFFFF, 0xFFFFFF00}}


@pytest.mark.parametrize(
    ("left", "state", "tick", "horizon", "tied"),
    [
        (100, "FIN_WAIT", 40, 200, True),  # at 40 and at 100 to 104
        (100, "FIN_WAIT", 20, 200, False),  # at 80 to 84 and at 140
        (100, "FIN_WAIT", 40, 60, False),  # later than anybody looks
        (50, "FIN_WAIT", 90, 200, False),  # the connection has gone long before
        (100, "UDP", 52, 200, True),  # at 112, while it ends at 100 to 117
        (800, "ESTABLISHED", 40, 200, False),
    ],
)
def test_a_tie_is_a_tick_at_which_the_last_connection_may_or_may_not_be_left(
    left: float, state: str, tick: float, horizon: float, tied: bool
) -> None:
    both = shown(left=left, state=state, template=tick)
    ties = list(timing.ties(both, both, MASKS, horizon))
    assert [tie.flow for tie in ties] == [FLOW] * tied


def test_connections_of_other_clients_are_no_tie() -> None:
    both = shown(left=100, state="FIN_WAIT", template=40)
    assert not list(timing.ties(both, both, {SERVICE: {255}}, 200))


@pytest.mark.parametrize(("protocol", "flags"), [("udp", "-"), ("tcp", "A"), ("sctp", "DATA")])
def test_a_tie_is_undone_by_a_packet(protocol: str, flags: str) -> None:
    flow = f"{protocol} 198.51.100.7:20000 192.0.2.10:80"
    assert str(timing.Tie((SERVICE, CLIENT), flow).keep()) == f"send {flow} {flags} x1"

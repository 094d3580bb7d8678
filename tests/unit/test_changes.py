"""Configurations compared in words, and edited."""

from __future__ import annotations

import dataclasses
import ipaddress
import re
from typing import Any

import pytest
from hypothesis import given, settings

from lvsxdp import changes
from lvsxdp.changes import Edits
from lvsxdp.errors import ConfigError, ConflictError, NotFoundError
from lvsxdp.model import (
    Backend,
    Capacity,
    Config,
    Expiry,
    Family,
    Features,
    MarkKey,
    MarkRule,
    Persistence,
    Scheduler,
    SchedulerFlag,
    Service,
    Settings,
)
from tests.unit.strategies import CONFIGS

ip = ipaddress.ip_address
A, B, C = (Backend(ip(f"10.0.0.{n}")) for n in (1, 2, 3))
SHOP = Service(MarkKey(1, Family.IPV4), name="shop", backends=(A, B))
OTHER = Service(MarkKey(2, Family.IPV6))


def of(*services: Service, **more: Any) -> Config:
    return dataclasses.replace(Config(services=services), **more)


def edited(**fields: Any) -> Config:
    return of(dataclasses.replace(SHOP, **fields))


KEPT = Persistence(60, ip("255.255.255.0"))
DIFFERENCES = {
    "a service more": (of(SHOP, OTHER), ["service mark6:2: added with 0 backends"]),
    "a service less": (of(), ["service shop: removed with 2 backends"]),
    "another name": (edited(name="mall"), ["service mall: name shop becomes mall"]),
    "another scheduler": (
        edited(scheduler=Scheduler.RR),
        ["service shop: scheduler wlc becomes rr"],
    ),
    "packets one by one": (
        edited(one_packet=True),
        ["service shop: one_packet false becomes true"],
    ),
    "a sloppy service": (
        edited(sloppy_tcp=True),
        ["service shop: sloppy_tcp false becomes true"],
    ),
    "a backend more": (
        edited(backends=(A, B, C)),
        ["service shop: backend 10.0.0.3 added, weight 1"],
    ),
    "a backend less": (edited(backends=(A,)), ["service shop: backend 10.0.0.2 removed"]),
    "a backend edited": (
        edited(backends=(A, dataclasses.replace(B, weight=3, draining=True))),
        ["service shop: backend 10.0.0.2 weight 1 becomes 3, draining False becomes True"],
    ),
    "backends in another order": (
        edited(backends=(B, A)),
        ["service shop: backends in another order"],
    ),
    "a rule more": (of(SHOP, marks=(MarkRule(1),)), ["marks: 0 rules become 1"]),
    "a setting": (
        of(SHOP, settings=Settings(conn_reuse_mode=3)),
        ["settings.conn_reuse_mode: 1 becomes 3"],
    ),
    "features": (of(SHOP, features=Features.ALL), ["features: used becomes all"]),
    "interfaces": (of(SHOP, interfaces=("a", "b")), ["interfaces: none become a b"]),
}


@pytest.mark.parametrize("case", DIFFERENCES)
def test_a_plan_says_one_line_for(case: str) -> None:
    new, lines = DIFFERENCES[case]
    assert changes.describe(of(SHOP), new) == lines


def test_a_plan_for_persistence_is_in_the_words_of_the_file() -> None:
    lines = changes.describe(of(SHOP), edited(persistence=KEPT))
    assert lines == ["service shop: persistence none becomes 60 s, netmask 255.255.255.0"]


@settings(max_examples=30, deadline=None)
@given(config=CONFIGS)
def test_a_configuration_does_not_differ_from_itself(config: Config) -> None:
    assert changes.describe(config, config) == []


def test_a_service_is_exchanged_in_its_place() -> None:
    new = dataclasses.replace(SHOP, scheduler=Scheduler.SH)
    assert changes.replace_service(of(SHOP, OTHER), new) == of(new, OTHER)


def test_a_backend_is_exchanged_in_its_place() -> None:
    new = dataclasses.replace(A, weight=9)
    assert changes.replace_backend(SHOP, new).backends == (new, B)


def test_a_backend_more_is_last_in_the_file() -> None:
    assert changes.add_backend(SHOP, C).backends == (A, B, C)


def test_a_backend_cannot_be_added_twice() -> None:
    with pytest.raises(ConflictError, match=r"service shop has the backend 10\.0\.0\.1 already"):
        changes.add_backend(SHOP, dataclasses.replace(A, weight=4))


def test_a_backend_is_removed_whatever_its_weight() -> None:
    assert changes.remove_backend(SHOP, dataclasses.replace(A, weight=4)).backends == (B,)


def test_a_file_does_not_end_a_drain() -> None:
    drained = dataclasses.replace(A, draining=True)
    running = of(dataclasses.replace(SHOP, backends=(drained, B)), OTHER)
    wanted = of(dataclasses.replace(SHOP, backends=(dataclasses.replace(A, weight=7), B, C)))
    kept = dataclasses.replace(drained, weight=7)
    assert changes.keep_drains(running, wanted) == of(
        dataclasses.replace(SHOP, backends=(kept, B, C))
    )


def test_a_file_may_begin_a_drain() -> None:
    wanted = of(dataclasses.replace(SHOP, backends=(dataclasses.replace(A, draining=True), B)))
    assert changes.keep_drains(of(SHOP), wanted) == wanted


def test_what_runs_cannot_change_its_capacity() -> None:
    wanted = dataclasses.replace(of(SHOP), capacity=Capacity(services=7))
    with pytest.raises(ConflictError) as caught:
        changes.follow(of(SHOP), wanted)
    assert str(caught.value) == (
        "capacity cannot change while attached (capacity.services: 1024 runs, 7 is asked for): "
        "attach IFACE -c FILE --force makes the tables anew, without their entries"
    )


def test_a_name_that_another_service_has_is_taken() -> None:
    named = dataclasses.replace(OTHER, name="shop")
    told = f'service {SHOP.key} has the name "shop" already'
    with pytest.raises(ConflictError, match=re.escape(told)):
        changes.add_service(of(SHOP), named)
    with pytest.raises(ConflictError, match=re.escape(told)):
        changes.replace_service(of(SHOP, OTHER), named)
    assert changes.replace_service(of(SHOP, OTHER), SHOP) == of(SHOP, OTHER)


def test_what_runs_keeps_its_drains_until_they_are_ended() -> None:
    drained = of(dataclasses.replace(SHOP, backends=(dataclasses.replace(A, draining=True), B)))
    assert changes.follow(drained, of(SHOP)) == drained
    assert changes.follow(drained, of(SHOP), undrain=True) == of(SHOP)


def test_a_backend_that_is_quiesced_keeps_its_last_weight_whoever_quiesces_it() -> None:
    heavy = Backend(A.address, weight=7)
    by_hand = dataclasses.replace(dataclasses.replace(heavy, weight=0), draining=True)
    assert (by_hand.weight, by_hand.last_weight) == (0, 7)
    running = of(dataclasses.replace(SHOP, backends=(heavy, B)))
    quiesced, added = Backend(A.address, weight=0), Backend(C.address, weight=0)
    wanted = of(dataclasses.replace(SHOP, backends=(quiesced, B, added)))
    for _ in range(2):
        running = changes.keep_last_weights(running, wanted)
        backends = running.services[0].backends
        assert [b.last_weight for b in backends] == [7, B.weight, 0]


def test_a_backend_that_is_removed_in_between_has_no_last_weight() -> None:
    quiesced = dataclasses.replace(SHOP, backends=(Backend(A.address, weight=0), B))
    without = changes.keep_last_weights(of(SHOP), of(dataclasses.replace(SHOP, backends=(B,))))
    again = changes.keep_last_weights(without, of(quiesced)).services[0].backends
    assert again[0].last_weight == 0


# ---- services and rules edited ----

PORT = (SchedulerFlag.SH_PORT,)
EDITS = {
    "a name": (Edits(name="mall"), {"name": "mall"}),
    "a scheduler and its flags": (
        Edits(scheduler=Scheduler.SH, flags=PORT),
        {"scheduler": Scheduler.SH, "flags": PORT},
    ),
    "persistence, of one address a client": (
        Edits(timeout=60),
        {"persistence": Persistence(60, ip("255.255.255.255"))},
    ),
    "persistence in every respect": (
        Edits(timeout=60, netmask="24", expiry=Expiry.STRICT),
        {"persistence": Persistence(60, ip("255.255.255.0"), Expiry.STRICT)},
    ),
    "nothing": (Edits(), {}),
}


@pytest.mark.parametrize(("edits", "fields"), EDITS.values(), ids=EDITS)
def test_a_service_gets_what_is_edited(edits: Edits, fields: dict[str, Any]) -> None:
    assert changes.edit_service(SHOP, edits) == dataclasses.replace(SHOP, **fields)


def test_what_is_not_edited_of_persistence_stays() -> None:
    kept = dataclasses.replace(SHOP, persistence=KEPT)
    longer = changes.edit_service(kept, Edits(timeout=90))
    assert longer.persistence == dataclasses.replace(KEPT, timeout=90)
    wider = changes.edit_service(kept, Edits(netmask="16"))
    assert wider.persistence == dataclasses.replace(KEPT, netmask=ip("255.255.0.0"))
    assert changes.edit_service(kept, Edits(timeout=0)) == SHOP


@pytest.mark.parametrize("edits", [Edits(netmask="24"), Edits(timeout=0, expiry=Expiry.STRICT)])
def test_a_netmask_without_persistence_is_refused(edits: Edits) -> None:
    with pytest.raises(ConfigError, match="service shop has none: give the seconds"):
        changes.edit_service(SHOP, edits)


def test_the_flags_of_a_scheduler_go_with_it() -> None:
    hashed = changes.edit_service(SHOP, Edits(scheduler=Scheduler.SH, flags=PORT))
    assert changes.edit_service(hashed, Edits(scheduler=Scheduler.SH)).flags == PORT
    assert changes.edit_service(hashed, Edits(scheduler=Scheduler.RR)).flags == ()


def test_a_service_is_added_once_and_removed() -> None:
    both = changes.add_service(of(SHOP), OTHER)
    assert both == of(SHOP, OTHER)
    with pytest.raises(ConflictError, match="there is a service mark6:2 already"):
        changes.add_service(both, OTHER)
    assert changes.remove_service(both, SHOP) == of(OTHER)


RULES = tuple(MarkRule(mark) for mark in (1, 2, 3))


@pytest.mark.parametrize(
    ("before", "marks"), [(None, [1, 2, 3, 9]), (1, [9, 1, 2, 3]), (3, [1, 2, 9, 3])]
)
def test_a_rule_is_added_last_or_before_another(before: int | None, marks: list[int]) -> None:
    found = changes.add_rule(of(marks=RULES), MarkRule(9), before)
    assert [rule.mark for rule in found.marks] == marks


def test_rules_are_removed_by_the_numbers_that_they_have_now() -> None:
    found = changes.remove_rules(of(marks=RULES), (1, 3))
    assert [rule.mark for rule in found.marks] == [2]


@pytest.mark.parametrize("number", [0, -1, 4])
def test_a_rule_that_is_not_there_is_not_found(number: int) -> None:
    with pytest.raises(NotFoundError, match=f"no mark rule {number}; there are 3"):
        changes.remove_rules(of(marks=RULES), (number,))
    with pytest.raises(NotFoundError, match=f"no mark rule {number}; there are 3"):
        changes.add_rule(of(marks=RULES), MarkRule(9), number)


@pytest.mark.parametrize(
    ("old", "new", "brings"),
    [
        (of(SHOP, OTHER), of(changes.add_backend(SHOP, C), OTHER), False),
        (of(SHOP, OTHER), of(OTHER), False),
        (of(SHOP, OTHER), of(OTHER, SHOP), False),
        (of(SHOP), of(SHOP, OTHER), True),
        (of(SHOP), of(OTHER), True),
        (of(SHOP, marks=(MarkRule(1),)), of(SHOP, marks=(MarkRule(1),)), False),
        (of(SHOP, marks=(MarkRule(1),)), of(SHOP), True),
    ],
)
def test_other_rules_and_new_keys_are_brought_and_nothing_else_is(
    old: Config, new: Config, brings: bool
) -> None:
    assert changes.brings_rules_or_services(old, new) == brings

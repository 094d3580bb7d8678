"""The rows of interfaces: which XDP sends out of, by which others, and with which tag."""

from __future__ import annotations

import dataclasses

import pytest

from lvsxdp import interfaces, records
from lvsxdp.network import Link
from tests.unit.headers import schema

SCHEMA = schema()
FLAG = SCHEMA.enums["interface_flag"]
ETH = Link("eth0", 2, "02:00:00:00:00:02", "", 1500, 0, 0, "")
BRIDGE = dataclasses.replace(ETH, name="br0", index=3, kind="bridge")
VLAN = Link("eth0.20", 5, "02:00:00:00:00:02", "vlan", 1500, 2, 0, "", vlan=20)


def row(link: Link, *others: Link, **modes: str) -> tuple[int, int, int]:
    """Lower interface, id and flags of a link's row, attached by name as `modes` says."""
    links = [link, *others]
    attached = {known.index: modes[known.name] for known in links if known.name in modes}
    found = interfaces.rows(SCHEMA, links, attached)[link.index]
    layout = SCHEMA.values["interfaces"]
    assert layout.number(found, "mac") == records.mac_word(link.mac)
    lower, vlan, flags = (layout.number(found, name) for name in ("lower", "vlan", "flags"))
    return lower, vlan, flags


def test_xdp_sends_out_of_a_plain_interface_itself() -> None:
    assert row(ETH) == (0, 0, FLAG["transmit"])
    assert row(ETH, eth0="native") == (0, 0, FLAG["transmit"] | FLAG["xdp"])
    assert row(ETH, eth0="generic")[2] == FLAG["transmit"] | FLAG["xdp"] | FLAG["generic"]
    assert row(ETH, eth0="tc") == (0, 0, FLAG["transmit"])


def test_what_leaves_by_a_vlan_device_xdp_sends_by_the_lower_one_with_its_id() -> None:
    assert row(VLAN, ETH) == (2, 20, 0)
    assert row(VLAN, ETH, eth0="native") == (2, 20, 0)
    assert row(VLAN, ETH, eth0="tc") == (2, 20, 0)


@pytest.mark.parametrize(
    ("link", "others"),
    [
        pytest.param(dataclasses.replace(VLAN, vlan=None), [ETH], id="802.1ad or a priority"),
        pytest.param(dataclasses.replace(VLAN, lower=5, index=6), [VLAN, ETH], id="VLAN in a VLAN"),
        pytest.param(dataclasses.replace(VLAN, lower=3), [BRIDGE], id="VLAN of a bridge"),
        pytest.param(dataclasses.replace(VLAN, lower=0), [ETH], id="lower one elsewhere"),
        pytest.param(BRIDGE, [ETH], id="bridge"),
    ],
)
def test_what_xdp_cannot_tag_the_kernel_sends(link: Link, others: list[Link]) -> None:
    assert row(link, *others) == (0, 0, 0)


def test_the_kernel_tags_while_an_interface_is_attached_in_generic_mode() -> None:
    other = dataclasses.replace(ETH, name="eth1", index=4)
    assert row(VLAN, ETH, other, eth0="native", eth1="generic") == (0, 0, 0)


def test_the_sender_is_who_the_row_names_while_the_row_is_of_this_device() -> None:
    rows = interfaces.rows(SCHEMA, [ETH, VLAN, BRIDGE], {})
    assert interfaces.sender(SCHEMA, rows[2], ETH) == 2
    assert interfaces.sender(SCHEMA, rows[5], VLAN) == 2
    assert interfaces.sender(SCHEMA, rows[3], BRIDGE) == 0
    another = dataclasses.replace(VLAN, mac="02:00:00:00:00:99", vlan=30)
    assert interfaces.sender(SCHEMA, rows[5], another) == 0


def test_rows_of_devices_that_are_gone_are_found() -> None:
    rows = interfaces.rows(SCHEMA, [ETH, VLAN, BRIDGE], {})
    table = b"".join(rows.get(index, bytes(16)) for index in range(8))
    assert interfaces.gone(table, 16, [2, 3]) == [5]
    assert interfaces.gone(table, 16, rows) == []

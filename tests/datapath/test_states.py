"""The tables of states: every cell of IPVS's, asked of the compiled programs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from lvsxdp import entries
from tests.datapath.harness import Datapath

VECTORS = yaml.safe_load((Path(__file__).parents[1] / "vectors/ipvs-vectors.yaml").read_text())
TABLES: dict[str, Any] = VECTORS["transition_tables"]
VIEWS = ("input", "output", "input_only")
TCP, UDP, SCTP = 6, 17, 132


def asked(
    datapath: Datapath, protocol: int, view: str, prefix: str, *, secure: bool = False
) -> dict[str, list[str]]:
    """A table as the programs have it: by event, what becomes of each state, in IPVS's names."""
    rows: dict[str, Any] = TABLES["sctp"][view] if prefix else TABLES["tcp"]["normal"][view]
    columns = TABLES["sctp" if prefix else "tcp"]
    short = {name: column for column, name in columns["names"].items()}
    found: dict[str, list[str]] = {}
    for event in rows:
        found[event] = []
        for column in columns["columns"]:
            state = prefix + columns["names"][column].lower().replace("-", "_")
            following, _, _ = datapath.transition(protocol, view, state, event, secure=secure)
            found[event].append(short[entries.state_name(following)])
    return found


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("secure", [False, True], ids=["normal", "secure_tcp"])
def test_every_cell_of_tcps_tables_is_ipvss(datapath: Datapath, view: str, secure: bool) -> None:
    table = TABLES["tcp"]["secure_tcp" if secure else "normal"][view]
    assert asked(datapath, TCP, view, "", secure=secure) == table


@pytest.mark.parametrize("view", VIEWS)
def test_every_cell_of_sctps_tables_is_ipvss(datapath: Datapath, view: str) -> None:
    assert asked(datapath, SCTP, view, "sctp_") == TABLES["sctp"][view]


@pytest.mark.parametrize("view", VIEWS)
def test_tcp_without_any_of_the_flags_closes_every_state(datapath: Datapath, view: str) -> None:
    for name in TABLES["tcp"]["names"].values():
        found = datapath.transition(TCP, view, name.lower(), "no_flags")
        assert found == ("close", 10, False)


def test_udp_has_one_state(datapath: Datapath) -> None:
    for event in ("no_flags", "syn", "rst"):
        assert datapath.transition(UDP, "input_only", "none", event) == ("udp", 300, False)


def lasting(datapath: Datapath, protocol: int, prefix: str) -> dict[str, tuple[int, bool]]:
    """Seconds of every state that some event leads to, and whether it is active."""
    enums = datapath.balancer.schema.enums
    columns = TABLES["sctp" if prefix else "tcp"]
    found = {}
    for view in VIEWS:
        for name in columns["names"].values():
            for event in enums["event"]:
                state = prefix + name.lower().replace("-", "_")
                following, seconds, active = datapath.transition(
                    protocol, view, state, event, secure=True
                )
                found[entries.state_name(following)] = seconds, active
    return found


@pytest.mark.parametrize(("name", "number", "prefix"), [("tcp", TCP, ""), ("sctp", SCTP, "sctp_")])
def test_states_last_and_count_as_active_as_in_ipvs(
    datapath: Datapath, name: str, number: int, prefix: str
) -> None:
    table = TABLES[name]
    # nothing leads to NONE
    expected = {
        table["names"][column]: (seconds, column in table["active"])
        for column, seconds in table["timeouts"].items()
        if column != "NO"
    }
    assert lasting(datapath, number, prefix) == expected

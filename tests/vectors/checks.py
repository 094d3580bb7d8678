"""What a case expects to see: templates, connections, counts, listings."""

from __future__ import annotations

import dataclasses

from lvsxdp import views
from tests.vectors.lab import Lab, destination_port, written
from tests.vectors.runs import Failed, Run, perform
from tests.vectors.steps import (
    Connection,
    Connections,
    Counts,
    Destination,
    Entry,
    Listed,
    NoTemplate,
    ServiceListed,
    Templates,
)
from tests.vectors.words import PROTOCOLS

# where IPVS keeps a template that nobody finds any more; lvsxdp has none of these
RENAMED = 65535
# lists say tenths of seconds
ROUNDED = 0.051


def told(entry: Entry) -> str:
    """An entry as a case writes it."""
    names = {number: name.upper() for name, number in PROTOCOLS.items()}
    parts = [names.get(entry.protocol, str(entry.protocol)), written(entry.client)]
    parts += [written(entry.virtual), f"{entry.server[0]}:{entry.server[1]}"]
    parts += [entry.state] if entry.state is not None else []
    parts += [f"{entry.seconds:.2f}".rstrip("0").rstrip(".")] if entry.seconds is not None else []
    return f"[{', '.join(parts)}]"


def _all(entries: list[Entry]) -> str:
    return " ".join(map(told, entries)) or "none"


def is_in_time(lab: Lab, expected: float | None, left: float | None) -> bool:
    """As many seconds are left as the rules say, less what went by itself meanwhile."""
    if expected is None:
        return True
    return left is not None and -ROUNDED <= expected - left <= lab.slack() + ROUNDED


def _fits(lab: Lab, expected: Entry, found: Entry) -> bool:
    same = (found.protocol, found.client, found.virtual, found.server) == (
        *(expected.protocol, expected.client, expected.virtual, expected.server),
    )
    state = expected.state is None or found.state == expected.state
    return same and state and is_in_time(lab, expected.seconds, found.seconds)


# --------------------------------------------------------------------------------------- templates


@perform.register
def _(act: Templates, run: Run) -> None:
    clients = {entry.client for entry in act.entries}
    found = [entry for entry in run.lab.templates() if entry.client in clients]
    wanted = [entry for entry in act.entries if entry.virtual[1] != RENAMED]
    fits = all(any(_fits(run.lab, entry, each) for each in found) for entry in wanted)
    if not fits or (act.exact and len(found) != len(wanted)):
        raise Failed(" ".join(map(told, wanted)), _all(found))


@perform.register
def _(_: NoTemplate, run: Run) -> None:
    if found := run.lab.templates():
        raise Failed("no template", _all(found))


@perform.register
def _(act: Listed, run: Run) -> None:
    """A listing's line was written at some moment: time passes until it is due."""
    wanted = act.entry

    def same(entry: Entry) -> bool:
        return (entry.protocol, entry.client, entry.virtual) == (
            *(wanted.protocol, wanted.client, wanted.virtual),
        )

    every = [*run.lab.templates(), *run.lab.connections()]
    early = [e.seconds for e in every if same(e) and e.seconds is not None]
    if wanted.seconds is not None and early and early[0] > wanted.seconds:
        run.lab.advance(early[0] - wanted.seconds)
    found = [e for e in (*run.lab.templates(), *run.lab.connections()) if same(e)]
    if not wanted.server[0]:
        wanted = dataclasses.replace(wanted, server=found[0].server if found else ("", 0))
    if not any(_fits(run.lab, wanted, each) for each in found):
        raise Failed(told(wanted), _all(found or every))


# ------------------------------------------------------------------------------------- connections


def _own(run: Run) -> Entry | None:
    """The last packet's connection."""
    if run.last is None:
        return None
    flow = run.last.flow
    for entry in run.lab.connections():
        ends = (entry.client, entry.virtual) == (flow.client, flow.virtual)
        if ends and entry.protocol == PROTOCOLS[flow.kind.protocol]:
            return entry
    return None


@perform.register
def _(act: Connection, run: Run) -> None:
    entry = _own(run)
    got = f"[{entry.state}, {entry.seconds:.2f}]" if entry and entry.seconds else "none"
    expected = f"[{act.state}, {act.seconds}]" if act.state else "none"
    if (entry.state if entry else None) != act.state:
        raise Failed(expected, got)
    if entry and not is_in_time(run.lab, act.seconds, entry.seconds):
        raise Failed(expected, got)


@perform.register
def _(act: Destination, run: Run) -> None:
    if run.last is None or run.last.server in (None, "-"):
        raise Failed("a packet that a server gets", run.last.became if run.last else "none")
    entry = _own(run)
    port = destination_port(run.last.verdict.frame)
    got = Destination(
        entry.protocol if entry else None,
        entry.virtual[1] if entry else None,
        entry.server[0] if entry else None,
        port,
        _template_port(run) if act.template_port is not None else None,
    )
    for name, value in dataclasses.asdict(act).items():
        if value is not None and getattr(got, name) != value:
            raise Failed(f"{name.replace('_', ' ')} {value}", getattr(got, name))


def _template_port(run: Run) -> int | None:
    """The port in the last client's template, or in the only one there is."""
    every = run.lab.templates()
    client = run.last.flow.client[0] if run.last else None
    own = [entry for entry in every if entry.client and entry.client[0] == client] or every
    return own[0].server[1] if len(own) == 1 else None


@perform.register
def _(act: Connections, run: Run) -> None:
    found = [*run.lab.connections(), *(run.lab.templates() if act.templates else ())]
    if act.server is not None:
        found = [entry for entry in found if entry.server[0] == act.server]
    if len(found) != act.count:
        whose = f" of {act.server}" if act.server else ""
        raise Failed(f"{act.count} connections{whose}", f"{len(found)}: {_all(found)}")


# -------------------------------------------------------------------------------------------- lists


@perform.register
def _(act: Counts, run: Run) -> None:
    rows = run.lab.backends()
    if act.server is not None:
        rows = [row for row in rows if row["letter"] == act.server]
        if len(rows) != 1:
            raise Failed(f"one server {act.server}", len(rows))
    for name, value in act.columns.items():
        got = sum(_column(row, name) for row in rows)
        if got != value:
            raise Failed(f"{act.server or 'all'}: {name} {value}", got)


def _column(row: dict[str, object], name: str) -> int:
    """A column of `backend list`; of what comes back under dr, the balancer sees nothing."""
    if name == "total":
        return _column(row, "active") + _column(row, "inactive")
    value = 0 if name == "out" else row.get(name)
    if not isinstance(value, int):
        raise Failed(f"a column {name}", f"{', '.join(row)}")
    return value


@perform.register
def _(act: ServiceListed, run: Run) -> None:
    keys = {each.key: place for place, each in enumerate(run.lab.services)}
    configured = run.lab.balancer.state.config.services[keys[act.service.key]]
    row = views.service(run.lab.balancer, configured)
    scheduler, *flags = str(row["scheduler"]).split()
    full = {"255.255.255.255", str(2**128 - 1), "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", "128"}
    mask = None if row["netmask"] is None or str(row["netmask"]) in full else str(row["netmask"])
    got = {
        "scheduler": scheduler,
        "persistence": row["persistence"],
        "flags": tuple(flags),
        "netmask": mask,
        "one_packet": bool(row.get("one_packet")),
    }
    wanted = {"flags": (), "netmask": None, "one_packet": False} | dict(act.columns)
    if got != wanted:
        raise Failed(wanted, got)

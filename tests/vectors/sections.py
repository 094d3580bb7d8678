"""A whole file as cases: each section by its name, none left out in silence."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from tests.vectors import defence, forwarding, outcomes, places, schedulers, states
from tests.vectors.places import Node
from tests.vectors.situations import situation
from tests.vectors.steps import Answers, Case, Step
from tests.vectors.timelines import timeline
from tests.vectors.words import Packet

FORMAT = 1
# what only describes the file
ABOUT = {"format", "kernel", "hash_functions"}
# sections of later issues: which of their fields hold the cases, empty for the section itself
LATER = {
    "sync": ("messages",),
    "cli": ("cases",),
    "unverified": (),
}
LATER_REASON = {
    "sync": "synchronisation is not built yet",
    "cli": "ipvsadm's command line is not built yet",
    "unverified": "what no kernel has shown is not run",
}


def read(path: Path) -> list[Case]:
    """Every case of a file; VectorsError names the place of what is not understood."""
    return list(_cases(places.load(path)))


def parse(text: str) -> list[Case]:
    """Every case of a file's text."""
    return list(_cases(places.parse(text)))


def _cases(node: Node) -> Iterator[Case]:
    sections = node.fields({*ABOUT, *LATER, *_SECTIONS})
    if "format" in sections and sections["format"].value != FORMAT:
        raise sections["format"].error(f"format {FORMAT} is the one that is known here")
    taken: set[str] = set()
    for name, section in sections.items():
        found = _SECTIONS[name](section) if name in _SECTIONS else _later(name, section)
        for case in found if name not in ABOUT else ():
            if case.id in taken:
                raise section.error(f"there are two cases {case.name!r}")
            taken.add(case.id)
            yield case


def _later(name: str, node: Node) -> Iterator[Case]:
    """Cases that are counted, not run."""
    if name in ABOUT:
        return
    groups = [node]
    if LATER[name]:
        fields = node.fields()
        groups = [fields[key] for key in LATER[name] if key in fields]
    for group in groups:
        number = len(group.value) if isinstance(group.value, list) else 1
        for place in range(number):
            where = f"{group.path.rpartition('.')[2]}[{place}]"
            yield Case(name, where, left=LATER_REASON[name])


def _timelines(section: str) -> Callable[[Node], Iterator[Case]]:
    def cases(node: Node) -> Iterator[Case]:
        before: dict[str, Case] = {}
        for entry in node.entries():
            case = timeline(section, entry, before)
            before[case.name] = case
            yield case

    return cases


def _schedulers(node: Node) -> Iterator[Case]:
    return (schedulers.case(entry) for entry in node.entries())


# --------------------------------------------------------------------------------------- no_service


def _no_service(node: Node) -> Iterator[Case]:
    """What a client gets where no server gets its packet."""
    fields = node.fields({"cases"})
    for number, entry in enumerate(fields["cases"].entries() if "cases" in fields else []):
        row = entry.fields({"id", "case", "client_gets"})
        if not {"case", "client_gets"} <= row.keys():
            raise entry.error("a case has `case` and `client_gets`")
        services, packets = row["case"].read(situation)
        answer = row["client_gets"].read(outcomes.outcome)
        steps = tuple(Step(_told(packet), Answers(packet, answer)) for packet in packets)
        title = re.sub(r"[^A-Za-z0-9]+", "-", row["case"].text()).strip("-")
        yield Case("no_service", f"cases[{number}]-{title}", services, (), steps)


def _told(packet: Packet) -> str:
    what = packet.kind.what or packet.kind.protocol
    return f"{what} to port {packet.virtual.port}" if packet.virtual.port else what


_SECTIONS: Mapping[str, Callable[[Node], Iterator[Case]]] = {
    "hash_values": schedulers.hashes,
    "mh_servers": schedulers.walks,
    "tables": schedulers.tables,
    "schedulers": _schedulers,
    "thresholds": _timelines("thresholds"),
    "persistence": _timelines("persistence"),
    "fwmark": _timelines("fwmark"),
    "tcp_states": states.tcp,
    "sctp_states": states.sctp,
    "no_service": _no_service,
    "drop_packet": defence.drops,
    "forwarding": forwarding.forwards,
    "transition_tables": states.transitions,
}

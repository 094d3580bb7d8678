"""The section `drop_packet`: which of new connections' packets IPVS drops on purpose."""

from __future__ import annotations

from collections.abc import Iterator

from tests.vectors.places import Node
from tests.vectors.services import VIPS, Server, Service, server_address
from tests.vectors.steps import Case, Continued, Kept, Set, Step
from tests.vectors.words import Kind

SERVERS = tuple(Server(name, server_address(name, "ipv4")) for name in "ABC")
SETTINGS = {"drop_packet", "am_droprate"}


def drops(node: Node) -> Iterator[Case]:
    """New connections, then packets of one that is there."""
    keys = {"setup", "twelve_new_syns_kept", "twelve_packets_of_existing_connection_kept"}
    fields = node.fields(keys)
    if fields.keys() != keys:
        raise node.error(f"the section has {', '.join(sorted(keys))}")
    setup = {name: each.whole() for name, each in fields["setup"].fields(SETTINGS).items()}
    pattern = tuple(each.switch() for each in fields["twelve_new_syns_kept"].entries())
    kept = fields["twelve_packets_of_existing_connection_kept"].whole()
    steps = (
        Step("setup", Set(setup)),
        Step("twelve_new_syns_kept", Kept(Kind("tcp", "S"), pattern)),
        Step("twelve_packets_of_existing_connection_kept", Continued(12, kept)),
    )
    service = Service("tcp", VIPS["ipv4"], 80, scheduler="rr", servers=SERVERS)
    yield Case("drop_packet", "twelve", (service,), (), steps)

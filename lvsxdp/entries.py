"""The entries of the tables, from mapped memory to rows; the only module that imports numpy."""

from __future__ import annotations

import dataclasses
import json
import socket
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

from lvsxdp import tables
from lvsxdp.model import Address, Network, Service, Settings
from lvsxdp.records import Layout
from lvsxdp.schema import Schema
from lvsxdp.show import Names

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Slots = NDArray[np.void]

REARM = 60
CHUNK = 1 << 16
PROTOCOLS = {6: "tcp", 17: "udp", 132: "sctp", 0: "ip"}
# the parts of a slot's word: bpf/word.h
EXPIRES_BITS = 44
STATES = 0x4F
GENERATION_SHIFT = 52
COUNT_MASK = (1 << 24) - 1
CONNECTION = (
    *("service", "protocol", "client", "virtual", "backend", "state", "expires_in", "mark"),
)
PERSISTENCE = ("service", "client", "backend", "expires_in", "connections", "engine", "data")
# the bytes of a row in calls4 and calls6
CALL_BYTES = 256
Row = tuple[Any, ...]
Name = TypeVar("Name", str, str | None)


@dataclasses.dataclass(frozen=True, slots=True)
class Wanted:
    """Which entries: of a service id, of some backends (generation << 32 | id), of some clients.

    An entry is of these clients where its own, an address or a network, shares an address with
    `client`.
    """

    service: int | None = None
    backends: frozenset[int] | None = None
    client: Network | None = None


ALL = Wanted()


def _slots(buffer: Any, layout: Layout) -> Slots:
    """The table as a numpy record view; ports in network byte order, addresses as bytes."""
    import numpy as np

    formats: list[Any] = []
    for name, field in layout.fields.items():
        if name in ("client", "virtual"):
            formats.append(("u1", (field.size * field.count,)))
        elif name.endswith("_port"):
            formats.append(">u2")
        else:
            kind = f"<u{field.size}"
            formats.append((kind, (field.count,)) if field.count > 1 else kind)
    offsets = [field.offset for field in layout.fields.values()]
    record = np.dtype(
        {
            "names": list(layout.fields),
            "formats": formats,
            "offsets": offsets,
            "itemsize": layout.size,
        }
    )
    return np.frombuffer(buffer, dtype=record, count=len(buffer) // layout.size)


def _state(words: Any) -> Any:
    return words >> EXPIRES_BITS & STATES


def _used(words: Any, schema: Schema) -> Any:
    return (words != 0) & (_state(words) < schema.enums["state"]["busy"])


def chunks(
    schema: Schema, table: str, buffer: Any, wanted: Wanted = ALL, masks: Any = None
) -> Iterator[tuple[NDArray[np.intp], Slots]]:
    """Places and copies of the slots that hold a wanted entry, some thousand at a time.

    `masks` is what _netmasks gives, where a client may stand for a network.
    """
    import numpy as np

    if wanted.client is not None and not table.endswith(str(wanted.client.version)):
        return
    slots = _slots(buffer, schema.values[table])
    for start in range(0, len(slots), CHUNK):
        part = slots[start : start + CHUNK]
        places = np.flatnonzero(_chosen(part, schema, wanted, masks))
        copied = part[places]
        # packets go on: a slot may have got another entry between the choice and the copy
        still = _chosen(copied, schema, wanted, masks)
        if still.any():
            yield places[still] + start, copied[still]


def _chosen(part: Slots, schema: Schema, wanted: Wanted, masks: Any) -> Any:
    """Which of the slots hold a wanted entry."""
    import numpy as np

    chosen = _used(part["word"], schema)
    if wanted.service is not None:
        chosen &= part["service"] == wanted.service
    if wanted.backends is not None:
        backends = np.array(list(wanted.backends), dtype="u8")
        chosen &= np.isin(part["backend"], backends)
    if wanted.client is not None:
        chosen &= _meets(part, wanted.client, masks)
    return chosen


def _meets(part: Slots, network: Network, masks: Any) -> Any:
    """Which of the slots' clients share an address with the network."""
    import numpy as np

    # one word an IPv4 address, two an IPv6 one; bits are the same in any byte order
    word = "u4" if network.version == 4 else "u8"
    address = np.frombuffer(network.network_address.packed, word)
    apart = (part["client"].view(word) ^ address) & np.frombuffer(network.netmask.packed, word)
    if masks is not None:
        apart &= masks.view(word)[np.minimum(part["service"], len(masks) - 1)]
    return (apart[:, 0] | apart[:, -1]) == 0


def _netmasks(names: Names, version: int) -> Any:
    """The netmask of each service's clients as a row of bytes, by service id.

    The last row is for services that have been removed: their clients are single addresses.
    """
    import numpy as np

    rows = np.full((max(names.services, default=-1) + 2, 4 if version == 4 else 16), 255, "u1")
    for number, service in names.services.items():
        mask = _netmask(service)
        if mask is not None and mask.version == version:
            rows[number] = list(mask.packed)
    return rows


def _netmask(service: Service | None) -> Address | None:
    return service.persistence.netmask if service and service.persistence else None


def count(schema: Schema, settings: Settings, table: str, buffer: Any, now: int) -> int:
    """How many live entries a table holds, under the timeouts of these settings."""
    found = 0
    for _, part in chunks(schema, table, buffer):
        found += int((_left(schema, settings, table, part, now) > 0).sum())
    return found


def referred(
    schema: Schema, settings: Settings, table: str, buffer: Any, now: int, wanted: Wanted
) -> set[int]:
    """The backends (generation << 32 | id) to which live ones of the wanted entries go."""
    found = set[int]()
    for _, part in chunks(schema, table, buffer, wanted):
        alive = _left(schema, settings, table, part, now) > 0
        found.update(part["backend"][alive].tolist())
    return found


def places(schema: Schema, table: str, buffer: Any, wanted: Wanted) -> Iterator[tuple[int, int]]:
    """Place and word generation of each wanted entry, live or not."""
    for where, part in chunks(schema, table, buffer, wanted):
        generations = part["word"] >> GENERATION_SHIFT
        yield from zip(where.tolist(), generations.tolist(), strict=True)


def _left(schema: Schema, settings: Settings, table: str, part: Slots, now: int) -> Any:
    """Jiffies until each entry's timer ends: IPVS re-arms persistence entries for 60 s."""
    import numpy as np

    if not table.startswith("persistence"):
        times = np.zeros(STATES + 1, dtype="i8")
        for state, jiffies in tables.timeouts(schema, settings).items():
            times[state] = jiffies
        return part["seen"].astype("i8") + times[_state(part["word"])] - now
    expires = (part["word"] & ((1 << EXPIRES_BITS) - 1)).astype("i8")
    held = part["inactive_until"].astype("i8")
    active = (part["counts"] >> 24 & COUNT_MASK) != 0
    held = np.where(active, np.maximum(held, part["active_until"].astype("i8")), held)
    rearm = REARM * schema.hz
    strict = (part["word"] >> 48 & schema.enums["slot_flag"]["strict"]) != 0
    end = np.where(
        strict | (held <= expires), expires, expires + -(-(held - expires) // rearm) * rearm
    )
    armed = rearm - (now - expires) % rearm
    return np.where(now < expires, expires - now, np.where(now < end, armed, 0))


def _texts(addresses: Any) -> Iterator[str]:
    """Addresses, as rows of bytes, in text."""
    width = addresses.shape[1]
    raw = addresses.tobytes()
    family = socket.AF_INET if width == 4 else socket.AF_INET6
    to_text = socket.inet_ntop
    return (to_text(family, raw[at : at + width]) for at in range(0, len(raw), width))


def _ends(addresses: Any, ports: Any) -> Iterator[str]:
    texts = zip(_texts(addresses), ports.tolist(), strict=True)
    if addresses.shape[1] == 4:
        return (f"{address}:{port}" for address, port in texts)
    return (f"[{address}]:{port}" for address, port in texts)


def _named(numbers: Any, name: Callable[[int], Name]) -> Iterator[Name]:
    """The name of each number, each asked for once."""
    known: dict[int, Name] = {}
    for number in numbers.tolist():
        if number not in known:
            known[number] = name(number)
        yield known[number]


def _connections(counts: Any) -> Any:
    """How many connections entries count; a count that is below 0 for a moment is none."""
    found = counts & COUNT_MASK
    found[found > COUNT_MASK // 2] = 0
    return found


def state_name(name: str) -> str:
    """A state as IPVS calls it."""
    if name.startswith("sctp_"):
        return name.removeprefix("sctp_").upper().replace("_", "-")
    return name.upper()


def connections(
    schema: Schema, names: Names, table: str, buffer: Any, now: int, wanted: Wanted = ALL
) -> Iterator[Row]:
    """One row of CONNECTION a live connection; expires_in in seconds."""
    states = {number: state_name(name) for name, number in schema.enums["state"].items()}
    for _, every in chunks(schema, table, buffer, wanted):
        left = _left(schema, names.settings, table, every, now)
        part, left = every[left > 0], left[left > 0]
        yield from zip(
            _named(part["service"], names.service),
            _named(part["protocol"], lambda number: PROTOCOLS.get(number, "?")),
            _ends(part["client"], part["client_port"]),
            _ends(part["virtual"], part["virtual_port"]),
            _named(part["backend"], names.backend),
            _named(_state(part["word"]), lambda number: states.get(number, "?")),
            (left / schema.hz).round(1).tolist(),
            part["mark"].tolist(),
            strict=True,
        )


def persistence(
    schema: Schema,
    names: Names,
    table: str,
    buffer: Any,
    now: int,
    wanted: Wanted = ALL,
    calls: Any = None,
) -> Iterator[Row]:
    """One row of PERSISTENCE a live persistence entry; `calls` has the Call-IDs, by place."""
    masks = _netmasks(names, wanted.client.version) if wanted.client is not None else None
    for places, every in chunks(schema, table, buffer, wanted, masks):
        left = _left(schema, names.settings, table, every, now)
        place = places[left > 0]
        part, left = every[left > 0], left[left > 0]
        suffixes = _named(part["service"], lambda number: _suffix(names.services.get(number)))
        clients = zip(_texts(part["client"]), suffixes, strict=True)
        yield from zip(
            _named(part["service"], names.service),
            (address + suffix for address, suffix in clients),
            _named(part["backend"], names.backend),
            (left / schema.hz).round(1).tolist(),
            _connections(part["counts"]).tolist(),
            *_calls(part, place, calls),
            strict=True,
        )


def _calls(part: Slots, places: Any, calls: Any) -> tuple[Iterator[str | None], ...]:
    """The engine and the data of each entry: sip and its Call-ID where it is for a call.

    The entry's own key says so (bpf/call.h), whatever its service has by now.
    """
    for_call = (part["client_port"] != 0) | part["padding"].any(axis=1)
    found = [
        _call_id(calls, place) if is_call and calls is not None else None
        for is_call, place in zip(for_call.tolist(), places.tolist(), strict=True)
    ]
    return ("sip" if data is not None else None for data in found), iter(found)


def _call_id(calls: Any, place: int) -> str:
    raw = calls[place * CALL_BYTES : (place + 1) * CALL_BYTES]
    return str(raw[1 : 1 + raw[0]].decode("latin-1"))


def _suffix(service: Service | None) -> str:
    """The prefix or mask of a client that stands for a network."""
    mask = _netmask(service)
    if mask is None or int(mask) == 2**mask.max_prefixlen - 1:
        return ""
    bits = bin(int(mask))[2:].rjust(mask.max_prefixlen, "0")
    return f"/{mask}" if "01" in bits else f"/{bits.count('1')}"


def sums(schema: Schema, table: str, buffer: Any, names: tuple[str, ...]) -> NDArray[np.int64]:
    """These fields of the rows of a flat table, all CPUs' together."""
    import numpy as np

    shape = schema.flat[table]
    every = _slots(buffer, schema.values[table])[: shape.cpus * shape.rows]
    rows = every.reshape(shape.cpus, shape.rows)
    return np.stack([rows[name].sum(axis=0).astype("i8") for name in names], axis=1)


def beside(left: NDArray[np.int64], right: NDArray[np.int64]) -> NDArray[np.int64]:
    """Rows that have the columns of both."""
    import numpy as np

    return np.hstack([left, right])


def changed(before: NDArray[np.int64] | None, now: NDArray[np.int64]) -> dict[int, list[int]]:
    """The rows that are others than before, by their indices; all that hold anything, at first."""
    import numpy as np

    differing = now if before is None else now != before
    places = np.flatnonzero(differing.any(axis=1))
    return dict(zip(places.tolist(), now[places].tolist(), strict=True))


def as_json(columns: tuple[str, ...], rows: Iterator[Row]) -> Iterator[str]:
    """The rows as the lines of one JSON array, an object a line."""
    template = "{" + ", ".join(f'"{name}": %s' for name in columns) + "}"
    quoted = json.encoder.encode_basestring_ascii
    before = "[\n"
    for row in rows:
        texts = [
            quoted(value) if value.__class__ is str else "null" if value is None else value
            for value in row
        ]
        yield before + template % tuple(texts)
        before = ",\n"
    yield "[]\n" if before == "[\n" else "\n]\n"


def as_row(columns: tuple[str, ...], row: Row) -> Mapping[str, Any]:
    """A row by its columns' names."""
    return dict(zip(columns, row, strict=True))

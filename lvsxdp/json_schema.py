"""The configuration file as a JSON Schema, by which editors complete and check it as it is typed.

It knows forms and names; rules between values (families, duplicates) only `lvsxdp check` knows.
"""

from __future__ import annotations

import enum
from typing import Any

from lvsxdp.model import (
    MAX_MARK,
    MAX_PERSISTENCE,
    MAX_WEIGHT,
    Expiry,
    Family,
    Features,
    Forward,
    Protocol,
    Scheduler,
    SchedulerFlag,
)
from lvsxdp.scalars import MAX_PORT, MAX_VLAN

Schema = dict[str, Any]

DRAFT = "https://json-schema.org/draft/2020-12/schema"
DIGITS = "^[0-9]+$"
PORTS = "^[0-9]+(-[0-9]+)?$"
MAC = "^[0-9A-Fa-f]{2}(:[0-9A-Fa-f]{2}){5}$"
SWITCH: Schema = {"enum": [True, False, 1, 0, "true", "false", "yes", "no", "on", "off", "1", "0"]}
TEXT: Schema = {"type": "string", "minLength": 1}
ANY: Schema = {"const": "any"}


def json_schema(max_capacity: dict[str, int]) -> Schema:
    """The schema of a whole file; `max_capacity` is how large each table may be made."""
    return {
        "$schema": DRAFT,
        "title": "lvsxdp configuration",
        **_mapping(
            {
                "interfaces": _one_or_more(TEXT),
                "marks": {"type": "array", "items": _rule()},
                "services": {"type": "array", "items": _service()},
                "settings": _settings(),
                "capacity": _mapping(
                    {name: _whole(1, most) for name, most in max_capacity.items()}
                ),
                "features": _choice(Features),
            }
        ),
    }


def _mapping(properties: Schema, required: tuple[str, ...] = ()) -> Schema:
    found: Schema = {
        "type": "object",
        "properties": properties,
        "additionalProperties": False,
    }
    return {**found, "required": list(required)} if required else found


def _whole(low: int, high: int) -> Schema:
    """A whole number; in quotes it may stand there, too."""
    number = {"type": "integer", "minimum": low, "maximum": high}
    return {"anyOf": [number, {"type": "string", "pattern": DIGITS}]}


def _choice(names: type[enum.StrEnum]) -> Schema:
    return {"enum": [str(name) for name in names]}


def _one_or_more(item: Schema, least: int = 0) -> Schema:
    return {"anyOf": [item, {"type": "array", "items": item, "minItems": least}]}


def _rule() -> Schema:
    port = {"anyOf": [_whole(1, MAX_PORT), {"type": "string", "pattern": PORTS}]}
    mac = {"type": "string", "pattern": MAC}
    several = {
        ("protocol", "protocols"): _one_or_more(_choice(Protocol), 1),
        ("address", "addresses"): _one_or_more(TEXT, 1),
        ("port", "ports"): {"anyOf": [*_one_or_more(port, 1)["anyOf"], ANY]},
        ("source", "sources"): _one_or_more(TEXT, 1),
        ("source_mac", "source_macs"): _one_or_more(mac, 1),
        ("interface", "interfaces"): _one_or_more(TEXT, 1),
        ("vlan", "vlans"): _one_or_more(_whole(1, MAX_VLAN), 1),
    }
    conditions = {key: schema for keys, schema in several.items() for key in keys}
    rule = _mapping({"mark": _whole(0, MAX_MARK), **conditions}, ("mark",))
    return {**rule, "anyOf": [{"required": ["address"]}, {"required": ["addresses"]}]}


def _service() -> Schema:
    service = _mapping(
        {
            "name": TEXT,
            "mark": _whole(1, MAX_MARK),
            "family": _choice(Family),
            "protocol": {"enum": [str(Protocol.TCP), str(Protocol.UDP)]},
            "address": TEXT,
            "port": {"anyOf": [_whole(1, MAX_PORT), ANY]},
            "scheduler": _choice(Scheduler),
            "flags": _one_or_more(_choice(SchedulerFlag)),
            "persistence": _persistence(),
            "forward": _choice(Forward),
            "backends": {"type": "array", "items": _backend()},
        }
    )
    by_address = {"required": ["protocol", "address", "port"]}
    return {**service, "oneOf": [{"required": ["mark"]}, by_address]}


def _persistence() -> Schema:
    timeout = _whole(1, MAX_PERSISTENCE)
    netmask = {"anyOf": [_whole(0, 128), TEXT]}
    whole = _mapping({"timeout": timeout, "netmask": netmask, "expiry": _choice(Expiry)})
    return {"anyOf": [SWITCH, timeout, whole]}


def _backend() -> Schema:
    fields = {
        "address": TEXT,
        "port": _whole(1, MAX_PORT),
        "weight": _whole(0, MAX_WEIGHT),
        "forward": _choice(Forward),
        "draining": SWITCH,
    }
    return _mapping(fields, ("address",))


def _settings() -> Schema:
    switches = ("expire_nodest_conn", "expire_quiescent_template", "require_local")
    fields = {name: SWITCH for name in switches}
    return _mapping({**fields, "conn_reuse_mode": _whole(0, 3)})

"""The configuration file as a JSON Schema, by which editors complete and check it as it is typed.

It knows forms and names; rules between values (families, duplicates) only `lvsxdp check` knows.
"""

from __future__ import annotations

import enum
from typing import Any

from lvsxdp.model import (
    MAX_MARK,
    MAX_PERSISTENCE,
    MAX_THRESHOLD,
    MAX_WEIGHT,
    Engine,
    Expiry,
    Family,
    Features,
    Forward,
    Protocol,
    Scheduler,
    SchedulerFlag,
    TunnelChecksum,
    TunnelType,
)
from lvsxdp.scalars import MAX_INTERFACE, MAX_PORT, MAX_VLAN
from lvsxdp.setting import OFF_OR_ALWAYS, SETTINGS, Setting

Schema = dict[str, Any]

DRAFT = "https://json-schema.org/draft/2020-12/schema"
DIGITS = "^(0|[1-9][0-9]*)$"
PORTS = "^[1-9][0-9]*(-[1-9][0-9]*)?$"
MAC = "^[0-9A-Fa-f]{2}(:[0-9A-Fa-f]{2}){5}$"
SWITCHES: list[Any] = [True, False, "yes", "no", "on", "off"]
SWITCH: Schema = {"enum": [*SWITCHES, 1, 0, "true", "false", "1", "0"]}
HOST: Schema = {"type": "string", "pattern": "^[0-9A-Fa-f.:]+$"}
NETWORK: Schema = {"type": "string", "pattern": "^[0-9A-Fa-f.:]+(/[0-9]+)?$"}
INTERFACE: Schema = {"type": "string", "pattern": f"^[^\\s/:]{{1,{MAX_INTERFACE}}}$"}
NAME: Schema = {"type": "string", "pattern": "^[^-:\\s][^:\\s]*$"}
ANY: Schema = {"const": "any"}


def json_schema(max_capacity: dict[str, int]) -> Schema:
    """The schema of a whole file; `max_capacity` is how large each table may be made."""
    return {
        "$schema": DRAFT,
        "title": "lvsxdp configuration",
        **_mapping(
            {
                "interfaces": _about("Where the programs are attached.", _one_or_more(INTERFACE)),
                "marks": _about(
                    "Mark rules: the first that a packet matches gives it its mark.",
                    {"type": "array", "items": _rule()},
                ),
                "services": _about(
                    "What clients reach, by mark or by address.",
                    {"type": "array", "items": _service()},
                ),
                "settings": _about("What holds for all services.", _settings()),
                "capacity": _about("How large the tables are.", _capacity(max_capacity)),
                "features": _about(
                    "What is compiled into the programs: what is used (default), or all.",
                    _choice(Features),
                ),
            }
        ),
    }


def _about(text: str, schema: Schema) -> Schema:
    """The schema with what an editor shows of it."""
    return {"description": text, **schema}


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
    several = {"type": "array", "items": item, "minItems": least, "uniqueItems": True}
    return {"anyOf": [item, several]}


def _capacity(most: dict[str, int]) -> Schema:
    texts = {
        "connections": "Connections, of IPv4 and IPv6 each; by default what the memory allows.",
        "persistence": "Persistence entries, of IPv4 and IPv6 each; by default as connections.",
        "services": "Services; 1024 by default.",
        "backends": "Backends of all services together; 4096 by default.",
        "marks": "Mark rules; 4096 by default.",
        "sources": "Addresses of settings.source_pool, half a MiB each where backends are by "
        "fullnat; 16 by default.",
        "destinations": "Destinations that lblc and lblcr remember; 32768 by default.",
    }
    return _mapping({name: _about(texts[name], _whole(1, high)) for name, high in most.items()})


def _rule() -> Schema:
    port = {"anyOf": [_whole(1, MAX_PORT), {"type": "string", "pattern": PORTS}]}
    mac = {"type": "string", "pattern": MAC}
    several = (
        ("protocol", "protocols", "tcp, udp or sctp", _one_or_more(_choice(Protocol), 1)),
        ("address", "addresses", "The destination; any is every one", _or_any(NETWORK)),
        ("port", "ports", "The destination port, or a range such as 20-21", _or_any(port)),
        ("source", "sources", "The client's address or prefix", _one_or_more(NETWORK, 1)),
        ("source_mac", "source_macs", "The sender on the link", _one_or_more(mac, 1)),
        ("interface", "interfaces", "Where the packet arrives", _one_or_more(INTERFACE, 1)),
        ("vlan", "vlans", "The VLAN id", _one_or_more(_whole(1, MAX_VLAN), 1)),
    )
    conditions = {
        key: _about(f"{text}: one value, or a list of which one has to fit.", schema)
        for *keys, text, schema in several
        for key in keys
    }
    mark = _about("The mark that the rule gives; 0 leaves packets alone.", _whole(0, MAX_MARK))
    rule = _mapping({"mark": mark, **conditions}, ("mark",))
    either = [{"not": {"required": keys}} for *keys, _, _ in several]
    addressed = {"anyOf": [{"required": ["address"]}, {"required": ["addresses"]}]}
    return {**rule, "allOf": [addressed, *either]}


def _or_any(item: Schema) -> Schema:
    return {"anyOf": [*_one_or_more(item, 1)["anyOf"], ANY]}


def _service() -> Schema:
    service = _mapping(
        {
            "name": _about("What the command line may call it.", NAME),
            "mark": _about("It serves packets of this mark.", _whole(1, MAX_MARK)),
            "family": _about("Of a mark service; by default its backends'.", _choice(Family)),
            "protocol": _about(
                "With address and port, in place of a mark.",
                _choice(Protocol),
            ),
            "address": _about("The address that clients reach.", HOST),
            "port": _about(
                "The port that clients reach; any needs persistence.",
                {"anyOf": [_whole(1, MAX_PORT), ANY]},
            ),
            "scheduler": _about("How a backend is chosen; by default wlc.", _choice(Scheduler)),
            "flags": _about(
                "Of scheduler sh, or of mh, whose names they begin with.",
                _one_or_more(_choice(SchedulerFlag)),
            ),
            "persistence": _about(
                "How long a client keeps its backend: seconds, true (360), or a mapping.",
                _persistence(),
            ),
            "forward": _about("How packets reach its backends.", _choice(Forward)),
            "tunnel": _about("How its backends by tunnel get packets.", _tunnel()),
            "one_packet": _about(
                "Every UDP packet gets a backend by itself; for udp and mark services.", SWITCH
            ),
            "sloppy_tcp": _about(
                "Any TCP packet without RST opens a connection; for tcp and mark services.", SWITCH
            ),
            "backends": _about(
                "The machines behind it; schedulers walk the list from the last to the first.",
                {"type": "array", "items": _backend()},
            ),
        }
    )
    address = ("protocol", "address", "port")
    by_mark = {"required": ["mark"], "properties": dict.fromkeys(address, False)}
    by_address = {"required": list(address), "properties": {"mark": False, "family": False}}
    return {**service, "oneOf": [by_mark, by_address]}


def _persistence() -> Schema:
    timeout = _whole(1, MAX_PERSISTENCE)
    netmask = {"anyOf": [_whole(0, 128), {"type": "string", "pattern": "^[0-9.]+$"}]}
    whole = _mapping(
        {
            "timeout": _about("Seconds; 360 by default.", timeout),
            "netmask": _about("Clients that are one: 255.255.255.0, 24, 64.", netmask),
            "expiry": _about(
                "ipvs (default): renewed while connections live; strict: ends at its time.",
                _choice(Expiry),
            ),
            "engine": _about(
                "sip: a client is one by its address and its Call-ID; udp and mark services only.",
                _choice(Engine),
            ),
        }
    )
    # 1 and 0 are seconds here
    return {"anyOf": [{"enum": SWITCHES}, timeout, whole]}


def _tunnel() -> Schema:
    whole = _mapping(
        {
            "type": _about("What a packet is put into; by default ipip.", _choice(TunnelType)),
            "port": _about("Of gue: the backend's UDP port.", _whole(1, MAX_PORT)),
            "checksum": _about(
                "Of gue and gre; by default nocsum, and remcsum is csum.", _choice(TunnelChecksum)
            ),
            "source": _about(
                "The outer header's source, of the backend's family; auto: as the routes say.",
                {"anyOf": [HOST, {"const": "auto"}]},
            ),
        }
    )
    return {"anyOf": [_choice(TunnelType), whole]}


def _backend() -> Schema:
    fields = {
        "address": _about("An address of the service's family, or by tunnel of any.", HOST),
        "port": _about("Only where it is the service's own.", _whole(1, MAX_PORT)),
        "weight": _about("Its share; 0 takes no new clients. By default 1.", _whole(0, MAX_WEIGHT)),
        "upper_threshold": _about(
            "With so many connections it gets no more; 0, the default, for no end.",
            _whole(0, MAX_THRESHOLD),
        ),
        "lower_threshold": _about(
            "With less than so many it gets some again; by default three quarters of the upper.",
            _whole(0, MAX_THRESHOLD),
        ),
        "forward": _about(
            "How packets reach it; by default as the service says.", _choice(Forward)
        ),
        "tunnel": _about("How it gets packets by tunnel; the rest as the service says.", _tunnel()),
        "draining": _about("Whether it gets no new connections at all.", SWITCH),
    }
    return _mapping(fields, ("address",))


def _settings() -> Schema:
    return _mapping({setting.name: _setting(setting) for setting in SETTINGS})


def _setting(setting: Setting) -> Schema:
    default = str(setting.default).lower()
    if setting.read is not None:
        values: Schema = {"type": ["string", "integer"]}
    elif setting.numbers is None:
        values = SWITCH
    elif setting.name in OFF_OR_ALWAYS:
        values = {"enum": [0, 3, "0", "3"]}
    else:
        values = _whole(*setting.numbers)
    return _about(f"{setting.about} By default {default}.", values)

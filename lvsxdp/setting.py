"""What holds for all services: each setting by its name, its values, and IPVS's own default."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from lvsxdp import scalars, sources
from lvsxdp.errors import ConfigError
from lvsxdp.model import DEFAULT_LOCALITY, MAX_PERSISTENCE, Settings

Value = bool | int | str
OFF_OR_ALWAYS = ("secure_tcp", "drop_packet")
AUTOMATIC = ("1", "2")
TIMEOUT = "timeout_"
MAX_DROP_RATE = 2**31 - 1


@dataclasses.dataclass(frozen=True, slots=True)
class Setting:
    """One setting: one of `numbers`, both ends included, or what `read` takes, or a switch."""

    name: str
    about: str
    ipvs: Value
    numbers: tuple[int, int] | None = None
    read: Callable[[str], str] | None = None

    @property
    def default(self) -> Value:
        """What holds where nobody says otherwise."""
        found: Value = getattr(Settings(), self.name)
        return found

    def parse(self, text: str) -> Value:
        """The value that a text stands for."""
        if self.read is not None:
            return self.read(text)
        if self.numbers is None:
            return scalars.parse_switch(text)
        if self.name in OFF_OR_ALWAYS:
            return _parse_mode(text, self.name)
        return scalars.parse_whole(text, f"a value of {self.name}", *self.numbers)


def _parse_mode(text: str, name: str) -> int:
    if text in AUTOMATIC:
        raise ConfigError(
            f'"{text}" is one of the modes that IPVS switches by the memory that is free, which '
            "lvsxdp does not have (0: off, 3: on)"
        )
    if text not in ("0", "3"):
        raise ConfigError(f"{scalars.quote(text)} is not a value of {name} (0: off, 3: on)")
    return int(text)


SECONDS = (1, MAX_PERSISTENCE)
SETTINGS = (
    Setting(
        "expire_nodest_conn",
        "A connection to a removed backend is reset or moves.",
        ipvs=False,
    ),
    Setting(
        "expire_quiescent_template",
        "Clients of a backend of weight 0 go elsewhere at their next connection.",
        ipvs=False,
    ),
    Setting(
        "conn_reuse_mode",
        "When a SYN or INIT on a known connection starts afresh: 0 to 3, as in IPVS.",
        ipvs=1,
        numbers=(0, 3),
    ),
    Setting("require_local", "Only addresses that this host has now are balanced.", ipvs=True),
    Setting(
        "cache_bypass",
        "What a mark service has no backend for goes up, to be forwarded where it is addressed to.",
        ipvs=False,
    ),
    Setting("sloppy_tcp", "Any TCP packet without RST opens a connection.", ipvs=False),
    Setting("sloppy_sctp", "Any SCTP packet opens one, unless it begins with ABORT.", ipvs=False),
    Setting(
        "secure_tcp",
        "IPVS's guarded table of TCP states: 0 is off, 3 is on.",
        ipvs=0,
        numbers=(0, 3),
    ),
    Setting(
        "drop_packet",
        "One of am_droprate packets that are to open something is dropped: 0 is off, 3 is on.",
        ipvs=0,
        numbers=(0, 3),
    ),
    Setting(
        "am_droprate", "Of how many drop_packet drops one.", ipvs=10, numbers=(1, MAX_DROP_RATE)
    ),
    Setting("timeout_tcp", "Seconds of ESTABLISHED.", ipvs=900, numbers=SECONDS),
    Setting("timeout_tcpfin", "Seconds of FIN_WAIT.", ipvs=120, numbers=SECONDS),
    Setting("timeout_udp", "Seconds of UDP.", ipvs=300, numbers=SECONDS),
    Setting(
        "lblc_expiration",
        "Seconds that lblc keeps a destination which nobody asks for.",
        ipvs=DEFAULT_LOCALITY,
        numbers=SECONDS,
    ),
    Setting(
        "lblcr_expiration",
        "The same of lblcr, and that a set of several stays as it is.",
        ipvs=DEFAULT_LOCALITY,
        numbers=SECONDS,
    ),
    Setting(
        "pmtu_disc",
        "A tunnel's packet has DF where what is in it has; else it never has, and is cut.",
        ipvs=True,
    ),
    Setting(
        "source_pool",
        "Addresses of this host's own that backends by fullnat get packets from: 192.0.2.8, "
        "192.0.2.8-192.0.2.11 or 192.0.2.8/30, or several of these with commas between them.",
        ipvs="",
        read=sources.parse_pool,
    ),
    Setting(
        "source_ports",
        "The ports of these, which nothing else on this host may use.",
        ipvs="1024-65535",
        read=sources.parse_ports,
    ),
)
BY_NAME: Mapping[str, Setting] = {setting.name: setting for setting in SETTINGS}

# Seconds, by state: IPVS's tables of timeouts.
TIMEOUTS = {
    **{"none": 2, "established": 900, "syn_sent": 120, "syn_recv": 60, "fin_wait": 120},
    **{"time_wait": 120, "close": 10, "close_wait": 60, "last_ack": 30, "listen": 120},
    **{"synack": 120, "udp": 300},
    **{"sctp_none": 2, "sctp_init1": 4, "sctp_init": 61, "sctp_c_sent": 61, "sctp_c_replied": 61},
    **{"sctp_c_wait": 61, "sctp_cookie": 61, "sctp_c_echoed": 61, "sctp_established": 900},
    **{"sctp_s_sent": 61, "sctp_s_received": 61, "sctp_s_ack_sent": 61, "sctp_rejected": 4},
    **{"sctp_closed": 61},
}
# Those that can be set, as `ipvsadm --set` does, by the setting that they are.
SETTABLE = {"timeout_tcp": "established", "timeout_tcpfin": "fin_wait", "timeout_udp": "udp"}


def timeouts(settings: Settings) -> dict[str, int]:
    """Seconds that a connection lives without a packet, by its state."""
    return TIMEOUTS | {state: getattr(settings, name) for name, state in SETTABLE.items()}


def assigned(settings: Settings, assignments: Sequence[str]) -> Settings:
    """The settings with what NAME=VALUE says of some; a timeout of 0 stays, as in IPVS."""
    values: dict[str, Value] = {}
    for assignment in assignments:
        name, equals, text = assignment.partition("=")
        if not equals:
            raise ConfigError(f"{scalars.quote(assignment)} is no NAME=VALUE (secure_tcp=3)")
        if name in values:
            raise ConfigError(f"{name} is given twice; leave one out")
        values[name] = _parse(name, text, settings)
    changed: Any = values
    return dataclasses.replace(settings, **changed)


def _parse(name: str, text: str, settings: Settings) -> Value:
    if name.startswith(TIMEOUT) and name.removeprefix(TIMEOUT) in TIMEOUTS.keys() - {"udp"}:
        raise ConfigError(f"{name} cannot be set, nor can it in IPVS ({', '.join(SETTABLE)})")
    if name not in BY_NAME:
        told = scalars.did_you_mean(name, BY_NAME)
        raise ConfigError(f"{scalars.quote(name)} is no setting; {told}")
    if name in SETTABLE and text == "0":
        kept: int = getattr(settings, name)
        return kept
    try:
        return BY_NAME[name].parse(text)
    except ConfigError as err:
        raise ConfigError(f"{name}: {err}") from None


def rows(settings: Settings) -> list[dict[str, Any]]:
    """Every setting, then the timeouts that cannot be set: value, default and IPVS's default."""
    found = [
        {
            "name": setting.name,
            "value": getattr(settings, setting.name),
            "default": setting.default,
            "ipvs": setting.ipvs,
            "can_be_set": True,
        }
        for setting in SETTINGS
    ]
    for state, seconds in TIMEOUTS.items():
        if state not in SETTABLE.values():
            name = f"{TIMEOUT}{state}"
            same = {"value": seconds, "default": seconds, "ipvs": seconds}
            found.append({"name": name, **same, "can_be_set": False})
    return found

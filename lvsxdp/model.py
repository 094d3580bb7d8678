"""The configuration as frozen values: what is asked for, with no trace of YAML or of the kernel."""

from __future__ import annotations

import dataclasses
import enum
import ipaddress
from collections.abc import Mapping, Sequence
from typing import Any

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

ANY_PORT = 0
# As a tunnel's source: what the routes say.
AUTO = "auto"
FTP_PORT = 21
DEFAULT_PERSISTENCE = 360
# Seconds that lblc and lblcr keep a destination which nobody asks for.
DEFAULT_LOCALITY = 86400
MAX_PERSISTENCE = 2678400
MAX_WEIGHT = 2**31 - 1
MAX_THRESHOLD = 2**31 - 1
MAX_MARK = 2**32 - 1
# Addresses of which backends by fullnat get packets: a connection has so many bits for one.
MAX_SOURCES = 512
MAX_CAPACITY = {
    "connections": 2**21,
    "persistence": 2**21,
    "services": 2**16,
    "backends": 2**17,
    "marks": 2**18,
    "destinations": 2**20,
    "sources": MAX_SOURCES,
}


class Family(enum.StrEnum):
    """An address family, by the name that the configuration gives it."""

    IPV4 = "ipv4"
    IPV6 = "ipv6"

    @classmethod
    def of(cls, address: Address | Network) -> Family:
        """The family of an address or network."""
        return cls.IPV4 if address.version == 4 else cls.IPV6


class Protocol(enum.StrEnum):
    """A transport protocol that a mark rule or an address service names."""

    TCP = "tcp"
    UDP = "udp"
    SCTP = "sctp"

    @property
    def number(self) -> int:
        """Its number in the IP header."""
        return {"tcp": 6, "udp": 17, "sctp": 132}[self.value]


class Scheduler(enum.StrEnum):
    """How a new connection's backend is chosen."""

    RR = "rr"
    WRR = "wrr"
    LC = "lc"
    WLC = "wlc"
    SED = "sed"
    NQ = "nq"
    FO = "fo"
    OVF = "ovf"
    SH = "sh"
    DH = "dh"
    MH = "mh"
    TWOS = "twos"
    LBLC = "lblc"
    LBLCR = "lblcr"


class Forward(enum.StrEnum):
    """How a packet reaches its backend."""

    DR = "dr"
    NAT = "nat"
    TUNNEL = "tunnel"
    FULLNAT = "fullnat"

    @property
    def may_change_port(self) -> bool:
        """Whether a backend may have another port than its service."""
        return self in ANSWERING


# The methods whose backends' answers come back by the balancer.
ANSWERING = (Forward.NAT, Forward.FULLNAT)


class TunnelType(enum.StrEnum):
    """What a packet to a backend by tunnel is put into, by ipvsadm's names."""

    IPIP = "ipip"
    GUE = "gue"
    GRE = "gre"


class TunnelChecksum(enum.StrEnum):
    """Whether gue's or gre's header has a checksum, by ipvsadm's names.

    remcsum, of gue, is csum here: IPVS's own packets differ only where a checksum is still to be
    filled in by a network card.
    """

    NOCSUM = "nocsum"
    CSUM = "csum"
    REMCSUM = "remcsum"


@dataclasses.dataclass(frozen=True, slots=True)
class Tunnel:
    """How packets to a backend by tunnel are wrapped.

    `port` is where the backend listens for gue.  Without `source` the outer header has the address
    that this host's routes choose for the backend.
    """

    type: TunnelType = TunnelType.IPIP
    port: int | None = None
    checksum: TunnelChecksum = TunnelChecksum.NOCSUM
    source: Address | None = None

    def with_options(self, given: Mapping[str, Any]) -> Tunnel:
        """The same with other options; of another type, port and checksum begin anew."""
        kept, options = self, dict(given)
        if options.get("type", self.type) is not self.type:
            kept = Tunnel(source=self.source)
        if options.get("source") == AUTO:
            options["source"] = None
        return dataclasses.replace(kept, **options)


class Engine(enum.StrEnum):
    """A persistence engine: what beside its address tells one client from another."""

    SIP = "sip"


class Expiry(enum.StrEnum):
    """When a persistence entry ends: as IPVS ends it, or at its time whatever connections live."""

    IPVS = "ipvs"
    STRICT = "strict"


class SchedulerFlag(enum.StrEnum):
    """What a scheduler does beyond its default, by ipvsadm's names."""

    SH_PORT = "sh-port"
    SH_FALLBACK = "sh-fallback"
    MH_PORT = "mh-port"
    MH_FALLBACK = "mh-fallback"

    @property
    def scheduler(self) -> Scheduler:
        """The scheduler that it belongs to."""
        return Scheduler(self.value.partition("-")[0])


@dataclasses.dataclass(frozen=True, slots=True)
class Ports:
    """Ports `first` to `last`, both included."""

    first: int
    last: int


@dataclasses.dataclass(frozen=True, slots=True)
class MarkRule:
    """Packets that match every given condition get `mark`; an empty tuple does not restrict."""

    mark: int
    protocols: tuple[Protocol, ...] = (Protocol.TCP, Protocol.UDP, Protocol.SCTP)
    addresses: tuple[Network, ...] = ()
    ports: tuple[Ports, ...] = ()
    sources: tuple[Network, ...] = ()
    source_macs: tuple[str, ...] = ()
    interfaces: tuple[str, ...] = ()
    vlans: tuple[int, ...] = ()


@dataclasses.dataclass(frozen=True, slots=True)
class Persistence:
    """One client (under `netmask`) keeps one backend for `timeout` seconds.

    `netmask` is a mask of the service's family, written as an address; for IPv4 any bits.
    """

    timeout: int
    netmask: Address
    expiry: Expiry = Expiry.IPVS
    engine: Engine | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class Backend:
    """A machine behind a service.  `port` None means the service's port, or the packet's.

    With `upper_threshold` connections it is overloaded and gets no more, until it has less than
    `lower_threshold`.  Without an upper one (0) it never is; without a lower one, three quarters
    of the upper count.
    `tunnel` counts with forward TUNNEL alone.
    `last_weight` is the last weight that was not 0, by which mh divides its table; 0 where there
    was none.  No file says it.
    """

    address: Address
    port: int | None = None
    weight: int = 1
    forward: Forward = Forward.DR
    draining: bool = False
    upper_threshold: int = 0
    lower_threshold: int = 0
    last_weight: int = dataclasses.field(default=0, compare=False)
    tunnel: Tunnel = Tunnel()
    # its name, once it was asked for: of very many backends it is asked for again and again
    _text: str = dataclasses.field(default="", init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.weight:
            object.__setattr__(self, "last_weight", self.weight)

    @property
    def key(self) -> tuple[Address, int | None]:
        """What names it among its service's backends."""
        return (self.address, self.port)

    def __str__(self) -> str:
        if not self._text:
            object.__setattr__(self, "_text", self._name())
        return self._text

    def _name(self) -> str:
        if self.port is None:
            return str(self.address)
        return (
            f"[{self.address}]:{self.port}"
            if self.address.version == 6
            else f"{self.address}:{self.port}"
        )


@dataclasses.dataclass(frozen=True, slots=True)
class MarkKey:
    """A service reached by mark: `mark:80`, or `mark6:80` for IPv6."""

    mark: int
    family: Family

    def __str__(self) -> str:
        return f"mark{'6' if self.family is Family.IPV6 else ''}:{self.mark}"


@dataclasses.dataclass(frozen=True, slots=True)
class AddressKey:
    """A service reached by address: `tcp:192.0.2.10:80`; port ANY_PORT is written `any`."""

    protocol: Protocol
    address: Address
    port: int
    _text: str = dataclasses.field(default="", init=False, repr=False, compare=False)

    @property
    def family(self) -> Family:
        """The family of the address."""
        return Family.of(self.address)

    def __str__(self) -> str:
        if not self._text:
            object.__setattr__(self, "_text", self._name())
        return self._text

    def _name(self) -> str:
        host = f"[{self.address}]" if self.address.version == 6 else str(self.address)
        return f"{self.protocol}:{host}:{self.port if self.port != ANY_PORT else 'any'}"


ServiceKey = MarkKey | AddressKey


@dataclasses.dataclass(frozen=True, slots=True)
class Service:
    """What clients reach, and how its backends are chosen.

    `backends` stands in the order of the file: IPVS's list walks it from the last to the first.
    """

    key: ServiceKey
    name: str | None = None
    scheduler: Scheduler = Scheduler.WLC
    flags: tuple[SchedulerFlag, ...] = ()
    persistence: Persistence | None = None
    backends: Sequence[Backend] = ()
    one_packet: bool = False  # UDP packets are scheduled one by one
    sloppy_tcp: bool = False  # the setting of that name, for this service

    @property
    def family(self) -> Family:
        """The family of its clients."""
        return self.key.family

    @property
    def forwards(self) -> frozenset[Forward]:
        """The methods that its backends have; many backends that nobody looked at know them."""
        known: frozenset[Forward] | None = getattr(self.backends, "forwards", None)
        return frozenset(b.forward for b in self.backends) if known is None else known

    def __str__(self) -> str:
        return self.name or str(self.key)


@dataclasses.dataclass(frozen=True, slots=True)
class Settings:
    """What holds for all services, by IPVS's names where IPVS has one."""

    expire_nodest_conn: bool = True
    expire_quiescent_template: bool = False
    conn_reuse_mode: int = 1
    require_local: bool = True
    cache_bypass: bool = False
    sloppy_tcp: bool = False
    sloppy_sctp: bool = False
    secure_tcp: int = 0
    drop_packet: int = 0
    am_droprate: int = 10
    timeout_tcp: int = 900  # seconds, as the two that follow
    timeout_tcpfin: int = 120
    timeout_udp: int = 300
    lblc_expiration: int = DEFAULT_LOCALITY
    lblcr_expiration: int = DEFAULT_LOCALITY
    pmtu_disc: bool = True
    source_pool: str = ""  # addresses, ranges and prefixes: sources.py
    source_ports: str = "1024-65535"


@dataclasses.dataclass(frozen=True, slots=True)
class Capacity:
    """How many entries each table holds, 0 for as many as the memory suggests.

    A change needs a new attach.
    """

    connections: int = 0
    persistence: int = 0
    services: int = 1024
    backends: int = 4096
    marks: int = 4096
    destinations: int = 32768
    sources: int = 16


class Features(enum.StrEnum):
    """Which features are compiled into the programs: those that the configuration uses, or all."""

    USED = "used"
    ALL = "all"


@dataclasses.dataclass(frozen=True, slots=True)
class Config:
    """A whole configuration."""

    interfaces: tuple[str, ...] = ()
    marks: tuple[MarkRule, ...] = ()
    services: tuple[Service, ...] = ()
    settings: Settings = Settings()
    capacity: Capacity = Capacity()
    features: Features = Features.USED

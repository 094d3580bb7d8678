"""A script for both twins: what is configured, what clients send, how time passes, line by line."""

from __future__ import annotations

import dataclasses
import ipaddress
from collections.abc import Iterable, Iterator

from lvsxdp.model import (
    Address,
    Backend,
    Forward,
    MarkRule,
    Persistence,
    Ports,
    Protocol,
    Scheduler,
    SchedulerFlag,
    Service,
    ServiceKey,
)
from lvsxdp.names import parse_service_key

ONE_PACKET = "ops"


@dataclasses.dataclass(frozen=True, slots=True)
class Flow:
    """A client's address and port, and the address and port that it sends to."""

    protocol: Protocol
    client: Address
    client_port: int
    virtual: Address
    virtual_port: int

    def __str__(self) -> str:
        client = _end(self.client, self.client_port)
        return f"{self.protocol} {client} {_end(self.virtual, self.virtual_port)}"

    @classmethod
    def parse(cls, protocol: str, client: str, virtual: str) -> Flow:
        """The flow of three words as `str` writes them."""
        (source, source_port), (target, port) = (
            (ipaddress.ip_address(host.strip("[]")), int(number))
            for host, _, number in (end.rpartition(":") for end in (client, virtual))
        )
        return cls(Protocol(protocol), source, source_port, target, port)


def _end(address: Address, port: int) -> str:
    return f"[{address}]:{port}" if address.version == 6 else f"{address}:{port}"


@dataclasses.dataclass(frozen=True, slots=True)
class AddRule:
    """Packets that meet the rule, and no earlier one, have its mark from now on."""

    rule: MarkRule

    def __str__(self) -> str:
        (protocol,), (network,) = self.rule.protocols, self.rule.addresses
        ports = ",".join(f"{p.first}-{p.last}" for p in self.rule.ports)
        return f"mark add {self.rule.mark} {protocol} {network.network_address} {ports}"

    @classmethod
    def parse(cls, mark: str, protocol: str, address: str, ports: str) -> AddRule:
        """The step of the words after `mark add`."""
        pairs = (part.split("-") for part in ports.split(","))
        rule = MarkRule(
            mark=int(mark),
            protocols=(Protocol(protocol),),
            addresses=(ipaddress.ip_network(address),),
            ports=tuple(Ports(int(first), int(last)) for first, last in pairs),
        )
        return cls(rule)


@dataclasses.dataclass(frozen=True, slots=True)
class DeleteRule:
    """The rule of this number, from 1, is no more."""

    number: int

    def __str__(self) -> str:
        return f"mark delete {self.number}"


@dataclasses.dataclass(frozen=True, slots=True)
class PutService:
    """A service is added, without backends, or edited: of `service` all but its backends counts."""

    service: Service
    fresh: bool

    def __str__(self) -> str:
        words = ["service", "add" if self.fresh else "edit", str(self.service.key)]
        words += ["scheduler", self.service.scheduler, *self.service.flags]
        kept = self.service.persistence
        if kept:
            words += ["persistence", str(kept.timeout), str(kept.netmask)]
        if self.service.one_packet:
            words.append(ONE_PACKET)
        return " ".join(words)

    @classmethod
    def parse(cls, verb: str, key: str, _: str, scheduler: str, *more: str) -> PutService:
        """The step of the words after `service`."""
        one_packet = ONE_PACKET in more
        more = tuple(word for word in more if word != ONE_PACKET)
        at = more.index("persistence") if "persistence" in more else len(more)
        service = Service(
            key=parse_service_key(key),
            scheduler=Scheduler(scheduler),
            flags=tuple(map(SchedulerFlag, more[:at])),
            persistence=_persistence(more[at + 1 :]),
            one_packet=one_packet,
        )
        return cls(service, verb == "add")


def _persistence(words: tuple[str, ...]) -> Persistence | None:
    if not words:
        return None
    timeout, netmask = words
    return Persistence(int(timeout), ipaddress.ip_address(netmask))


@dataclasses.dataclass(frozen=True, slots=True)
class DeleteService:
    """A service goes, with its backends."""

    key: ServiceKey

    def __str__(self) -> str:
        return f"service delete {self.key}"


@dataclasses.dataclass(frozen=True, slots=True)
class PutBackend:
    """A backend is added at the head of the list, or edited."""

    key: ServiceKey
    backend: Backend
    fresh: bool

    def __str__(self) -> str:
        words = ["backend", "add" if self.fresh else "edit", str(self.key), str(self.backend)]
        words += ["weight", str(self.backend.weight), "by", str(self.backend.forward)]
        if self.backend.upper_threshold:
            words += ["thresholds", str(self.backend.upper_threshold)]
            words.append(str(self.backend.lower_threshold))
        return " ".join(words)

    @classmethod
    def parse(
        cls, verb: str, key: str, address: str, _: str, weight: str, *more: str
    ) -> PutBackend:
        """The step of the words after `backend`; without a method it is by direct routing."""
        forward = Forward.DR
        if more[:1] == ("by",):
            forward, more = Forward(more[1]), more[2:]
        upper, lower = map(int, more[1:] or (0, 0))
        backend = Backend(
            ipaddress.ip_address(address),
            weight=int(weight),
            forward=forward,
            upper_threshold=upper,
            lower_threshold=lower,
        )
        return cls(parse_service_key(key), backend, verb == "add")


@dataclasses.dataclass(frozen=True, slots=True)
class DeleteBackend:
    """A backend is removed."""

    key: ServiceKey
    address: Address

    def __str__(self) -> str:
        return f"backend delete {self.key} {self.address}"


@dataclasses.dataclass(frozen=True, slots=True)
class Set:
    """A setting gets another value: by its name in net.ipv4.vs, or one of the three timeouts."""

    name: str
    value: int

    def __str__(self) -> str:
        return f"set {self.name} {self.value}"


@dataclasses.dataclass(frozen=True, slots=True)
class Send:
    """One packet of each of `count` flows that differ in the client's port, which rises.

    `flags` are TCP's, a letter each; SCTP's first chunk; "-" for UDP.
    """

    flow: Flow
    flags: str
    count: int = 1

    def __str__(self) -> str:
        return f"send {self.flow} {self.flags} x{self.count}"

    @classmethod
    def parse(cls, protocol: str, client: str, virtual: str, flags: str, count: str) -> Send:
        """The step of the words after `send`."""
        return cls(Flow.parse(protocol, client, virtual), flags, int(count[1:]))

    @property
    def flows(self) -> Iterator[Flow]:
        """The flows that send."""
        for more in range(self.count):
            yield dataclasses.replace(self.flow, client_port=self.flow.client_port + more)


@dataclasses.dataclass(frozen=True, slots=True)
class Wait:
    """Nothing happens for some seconds."""

    seconds: int

    def __str__(self) -> str:
        return f"wait {self.seconds}"


Rule = AddRule | DeleteRule
Step = Rule | PutService | DeleteService | PutBackend | DeleteBackend | Set | Send | Wait


def parse_step(line: str) -> Step:
    """The step that `str` writes as this line."""
    match line.split():
        case ["mark", "add", *words]:
            return AddRule.parse(*words)
        case ["mark", "delete", number]:
            return DeleteRule(int(number))
        case ["service", "delete", key]:
            return DeleteService(parse_service_key(key))
        case ["service", *words]:
            return PutService.parse(*words)
        case ["backend", "delete", key, address]:
            return DeleteBackend(parse_service_key(key), ipaddress.ip_address(address))
        case ["backend", *words]:
            return PutBackend.parse(*words)
        case ["set", name, value]:
            return Set(name, int(value))
        case ["send", *words]:
            return Send.parse(*words)
        case ["wait", seconds]:
            return Wait(int(seconds))
    raise ValueError(f"{line!r} is no step of a script")


def parse(lines: Iterable[str]) -> tuple[Step, ...]:
    """The steps of a script's lines; what follows a # is left out."""
    words = (line.partition("#")[0].strip() for line in lines)
    return tuple(parse_step(line) for line in words if line)

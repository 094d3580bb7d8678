"""How services and backends are named on the command line, and which one a name means."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import TypeVar

from lvsxdp.errors import ConfigError, ConflictError, NotFoundError
from lvsxdp.model import (
    Address,
    AddressKey,
    Backend,
    Config,
    Family,
    MarkKey,
    Protocol,
    Service,
    ServiceKey,
)
from lvsxdp.scalars import (
    did_you_mean,
    parse_host,
    parse_port,
    parse_service_mark,
    parse_service_port,
    parse_service_protocol,
    quote,
)

_SERVICE_FORMS = "mark:80, mark6:80, tcp:192.0.2.10:80, udp:[2001:db8::1]:53, tcp:192.0.2.10:any"
_BACKEND_FORMS = "10.0.0.11, 10.0.0.11:80, 2001:db8::11, [2001:db8::11]:80"

T = TypeVar("T")


def find_service(config: Config, text: str) -> Service:
    """The service of that key or name; NotFoundError names those that come close."""
    wanted = parse_service_key(text) if ":" in text else None
    for service in config.services:
        if service.key == wanted or service.name == text:
            return service
    known = [str(service.key) for service in config.services]
    known += [service.name for service in config.services if service.name is not None]
    raise NotFoundError(f"no service {quote(text)}; {did_you_mean(text, known)}")


def find_backend(service: Service, text: str) -> Backend:
    """The backend that `text` names; its port may be left out where the address is the only one.

    NotFoundError names those that come close, ConflictError those that it could be.
    """
    found = find_backends([service], text)
    if len(found) > 1:
        names = " or ".join(str(backend) for _, backend in found)
        raise ConflictError(f"{text} is ambiguous in {service}; write {names}")
    return found[0][1]


def find_backends(services: Sequence[Service], text: str) -> list[tuple[Service, Backend]]:
    """Every backend of these services that `text` names; NotFoundError names those close to it."""
    address, port = parse_backend_name(text)
    found = [(s, backend) for s in services for backend in _named(s, address, port)]
    if not found:
        known = dict.fromkeys(str(backend) for s in services for backend in s.backends)
        where = str(services[0]) if len(services) == 1 else "any service"
        raise NotFoundError(f"no backend {quote(text)} in {where}; {did_you_mean(text, known)}")
    return found


def _named(service: Service, address: Address, port: int | None) -> list[Backend]:
    """The service's backends of this address and port; of any port where none is given."""
    if isinstance(service.key, AddressKey) and port == service.key.port:
        port = None
    named = [backend for backend in service.backends if backend.address == address]
    exact = [backend for backend in named if backend.port == port]
    return exact or (named if port is None else [])


_PLACE = re.compile(r"\b(services|marks)\[(\d+)\](?:\.backends\[(\d+)\])?(?:\.(\w+))?")


def by_name(config: Config, finding: str) -> str:
    """A finding with its places as the command line names them, where there is no file."""

    def named(match: re.Match[str]) -> str:
        kind, place, backend, key = match.groups()
        if kind == "marks":
            words = [f"mark rule {int(place) + 1}"]
        elif int(place) < len(config.services):
            service = config.services[int(place)]
            words = [f"service {service}"]
            words += [f"backend {service.backends[int(backend)]}"] if backend else []
        else:
            return match.group()
        return ": ".join([*words, key] if key else words)

    return _PLACE.sub(named, finding)


def parse_service_key(text: str) -> ServiceKey:
    """The key of a service: `mark:80`, `mark6:80`, `tcp:192.0.2.10:80`, `udp:[2001:db8::1]:53`."""
    kind, _, rest = text.partition(":")
    if kind in ("mark", "mark6"):
        family = Family.IPV6 if kind == "mark6" else Family.IPV4
        return MarkKey(_within(text, parse_service_mark, rest), family)
    host, colon, port = rest.rpartition(":")
    if kind not in list(Protocol) or not colon:
        raise ConfigError(f"{quote(text)} is not a service ({_SERVICE_FORMS})")
    return AddressKey(
        _within(text, parse_service_protocol, kind),
        _within(text, _parse_bracketed, host),
        _within(text, parse_service_port, port),
    )


def parse_backend_name(text: str) -> tuple[Address, int | None]:
    """The address and, where one is given, the port of `ADDRESS`, `ADDRESS:PORT`, `[V6]:PORT`."""
    if re.fullmatch(r"\[[^]]*\]", text):
        return _within(text, _parse_bracketed, text), None
    if text.startswith("[") or text.count(":") == 1:
        host, _, port = text.rpartition(":")
        return _within(text, _parse_bracketed, host), _within(text, parse_port, port)
    if not re.search(r"[.:]", text):
        raise ConfigError(f"{quote(text)} is not a backend ({_BACKEND_FORMS})")
    return parse_host(text), None


def _parse_bracketed(host: str) -> Address:
    """An address in front of a colon and a port: IPv6 stands in brackets, IPv4 does not."""
    inside = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    address = parse_host(inside)
    if address.version == 6 and inside == host:
        raise ConfigError(f"IPv6 addresses stand in brackets: [{address}]")
    if address.version == 4 and inside != host:
        raise ConfigError(f"only IPv6 addresses stand in brackets: {address}")
    return address


def _within(whole: str, parse: Callable[[str], T], part: str) -> T:
    try:
        return parse(part)
    except ConfigError as err:
        raise ConfigError(f"{quote(whole)}: {err}") from None

"""Text to values: one parser for each kind of value, which says what would be right."""

from __future__ import annotations

import difflib
import enum
import functools
import ipaddress
import json
import re
from collections.abc import Iterable
from typing import TypeVar

from lvsxdp.errors import ConfigError
from lvsxdp.model import (
    ANY_PORT,
    AUTO,
    MAX_MARK,
    MAX_PERSISTENCE,
    MAX_THRESHOLD,
    MAX_WEIGHT,
    Address,
    Engine,
    Expiry,
    Family,
    Features,
    Forward,
    Network,
    Ports,
    Protocol,
    Scheduler,
    SchedulerFlag,
    TunnelChecksum,
    TunnelType,
)

MAX_PORT = 65535
MAX_VLAN = 4094
MAX_INTERFACE = 15
MAX_NAMED = 16
MAX_QUOTED = 60
MAX_SECONDS = 86400
MIN_INTERVAL = 0.1

_FLAGS_LATER = ("flag-1", "flag-2", "flag-3")

E = TypeVar("E", bound=enum.StrEnum)
T = TypeVar("T")


def quote(text: str) -> str:
    """The text in double quotes: long text cut short, and escaped what a terminal would act on."""
    shown = text if len(text) <= MAX_QUOTED else f"{text[:MAX_QUOTED]}..."
    plain = json.dumps(shown, ensure_ascii=False)
    return "".join(c if c.isprintable() else json.dumps(c)[1:-1] for c in plain)


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """A clause that names the nearest known words, or some of them where none is near."""
    words = list(known)
    near = difflib.get_close_matches(word, words, n=3, cutoff=0.6)
    if near:
        return f"did you mean {' or '.join(near)}?"
    more = ", ..." if len(words) > MAX_NAMED else ""
    return f"there is {', '.join(words[:MAX_NAMED])}{more}" if words else "there is none"


def parse_whole(text: str, what: str, low: int, high: int) -> int:
    """A whole number in plain decimal digits, within both bounds."""
    if not re.fullmatch(r"0|[1-9][0-9]{0,18}", text) or not low <= int(text) <= high:
        raise ConfigError(f"{quote(text)} is not {what} ({low} to {high})")
    return int(text)


def parse_choice(text: str, what: str, choices: type[E], later: Iterable[str] = ()) -> E:
    """The member of that name; names in `later` are known, but not in this version."""
    names = ", ".join(choices)
    if text in later:
        raise ConfigError(f"{quote(text)} is not available in this version ({names})")
    if text not in list(choices):
        raise ConfigError(f"{quote(text)} is not {what} ({names})")
    return choices(text)


def parse_switch(text: str) -> bool:
    """True or false, in YAML's words or as 1 or 0."""
    if text.lower() in ("true", "yes", "on", "1"):
        return True
    if text.lower() in ("false", "no", "off", "0"):
        return False
    raise ConfigError(f"{quote(text)} is not a switch (true, false, 1, 0)")


def parse_weight(text: str) -> int:
    """A backend's weight; 0 quiesces."""
    return parse_whole(text, "a weight", 0, MAX_WEIGHT)


def parse_threshold(text: str) -> int:
    """A backend's threshold in connections; 0 for none."""
    return parse_whole(text, "a number of connections", 0, MAX_THRESHOLD)


def parse_timeout(text: str) -> int:
    """The seconds of persistence."""
    return parse_whole(text, "a timeout in whole seconds", 1, MAX_PERSISTENCE)


def parse_persistence(text: str) -> int:
    """The seconds of persistence, where true and false could stand as well."""
    try:
        return parse_timeout(text)
    except ConfigError as err:
        raise ConfigError(f"{err}, nor true or false") from None


def parse_seconds(text: str) -> float:
    """Seconds to wait, with or without a fraction."""
    if not re.fullmatch(r"[0-9]{1,5}(\.[0-9]{1,9})?", text) or float(text) > MAX_SECONDS:
        raise ConfigError(f"{quote(text)} is not a number of seconds (0 to {MAX_SECONDS})")
    return float(text)


def parse_interval(text: str) -> float:
    """Seconds between what is done again and again."""
    seconds = parse_seconds(text)
    if seconds < MIN_INTERVAL:
        what = f"an interval in seconds ({MIN_INTERVAL} to {MAX_SECONDS})"
        raise ConfigError(f"{quote(text)} is not {what}")
    return seconds


def parse_confirmation(text: str) -> int:
    """The seconds in which a change has to be confirmed."""
    return parse_whole(text, "a number of whole seconds", 1, MAX_SECONDS)


def parse_timeout_or_none(text: str) -> int:
    """The seconds of persistence as a command line has them: 0 for `none`."""
    return 0 if text == "none" else parse_timeout(text)


def parse_engine_or_none(text: str) -> Engine | str:
    """A persistence engine as a command line has it: `none` stays what it is."""
    return text if text == "none" else parse_engine(text)


def parse_network_or_any(text: str) -> Network | None:
    """A network as a command line has it: None for `any`."""
    return None if text == "any" else parse_network(text)


def parse_rule_mark(text: str) -> int:
    """The mark that a rule gives; 0 ends classification."""
    return parse_whole(text, "a mark", 0, MAX_MARK)


def parse_service_mark(text: str) -> int:
    """The mark of a service."""
    return parse_whole(text, "a service's mark", 1, MAX_MARK)


def parse_vlan(text: str) -> int:
    """A VLAN id."""
    return parse_whole(text, "a VLAN id", 1, MAX_VLAN)


def parse_port(text: str) -> int:
    """One port."""
    return parse_whole(text, "a port", 1, MAX_PORT)


def parse_service_port(text: str) -> int:
    """A service's port, ANY_PORT for `any`."""
    if text == "any":
        return ANY_PORT
    try:
        return parse_port(text)
    except ConfigError:
        raise ConfigError(f"{quote(text)} is not a port (1 to {MAX_PORT}, or any)") from None


def parse_ports(text: str) -> Ports:
    """One port (`80`) or a range with both its ends (`20-21`)."""
    first, dash, last = text.partition("-")
    try:
        ports = Ports(parse_port(first), parse_port(last if dash else first))
    except ConfigError:
        what = f"a port (1 to {MAX_PORT}) or a range (20-21)"
        raise ConfigError(f"{quote(text)} is not {what}") from None
    if ports.first > ports.last:
        raise ConfigError(f"{quote(text)} runs backwards; write {ports.last}-{ports.first}")
    return ports


def parse_ports_or_any(text: str) -> Ports | None:
    """Ports as a command line has them: None for `any`."""
    return None if text == "any" else parse_ports(text)


parse_scheduler = functools.partial(parse_choice, what="a scheduler", choices=Scheduler)
parse_flag = functools.partial(
    parse_choice, what="a scheduler flag", choices=SchedulerFlag, later=_FLAGS_LATER
)
parse_forward = functools.partial(parse_choice, what="a forwarding method", choices=Forward)
parse_tunnel_type = functools.partial(parse_choice, what="a tunnel's type", choices=TunnelType)
parse_tunnel_checksum = functools.partial(
    parse_choice, what="a tunnel's checksum", choices=TunnelChecksum
)
parse_protocol = functools.partial(parse_choice, what="a protocol", choices=Protocol)
parse_service_protocol = functools.partial(
    parse_choice, what="a service's protocol", choices=Protocol
)
parse_family = functools.partial(parse_choice, what="a family", choices=Family)
parse_expiry = functools.partial(parse_choice, what="an expiry", choices=Expiry)
parse_engine = functools.partial(parse_choice, what="a persistence engine", choices=Engine)
parse_features = functools.partial(parse_choice, what="a choice of features", choices=Features)


BROADCAST = ipaddress.IPv4Address("255.255.255.255")


def parse_address(text: str) -> Address:
    """An IPv4 or IPv6 address without a zone."""
    return _address_in(text, text, "an IPv4 or IPv6 address (192.0.2.10, 2001:db8::10)")


def _address_in(text: str, part: str, what: str) -> Address:
    """The address that part of a text is, which is to be `what`."""
    try:
        address = ipaddress.ip_address(part)
    except ValueError:
        raise ConfigError(f"{quote(text)} is not {what}") from None
    if isinstance(address, ipaddress.IPv6Address) and address.scope_id is not None:
        raise ConfigError(f"{quote(text)} has a zone; leave out %{address.scope_id}")
    return address


def parse_host(text: str) -> Address:
    """An address that a service or a backend may have: unicast, and not of one link alone."""
    address = parse_address(text)
    _refuse_mapped(text, address)
    unfit = _why_no_host(address)
    if unfit:
        raise ConfigError(f"{quote(text)} is {unfit}; a service or backend needs a unicast address")
    return address


def parse_tunnel_source(text: str) -> Address | str:
    """The source of a tunnel's outer header; `auto` is as the routes say."""
    return text if text == AUTO else parse_host(text)


def _why_no_host(address: Address) -> str:
    if address.is_unspecified:
        return "the unspecified address"
    if address.is_loopback:
        return "a loopback address"
    if address.is_multicast:
        return "a multicast address"
    if address == BROADCAST:
        return "the broadcast address"
    if address.version == 4:
        return ""
    if address.is_link_local:
        return "a link-local address"
    return ""


def _refuse_mapped(text: str, address: Address) -> None:
    """Refuses ::ffff:192.0.2.1, which no packet has: those of that client are IPv4."""
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped:
        plain = address.ipv4_mapped
        raise ConfigError(f"{quote(text)} is an IPv4 address in IPv6 writing; write {plain}")


def parse_network(text: str) -> Network:
    """An address, or a prefix such as 192.0.2.0/24 without bits below it."""
    address, slash, length = text.partition("/")
    what = "an address or prefix (192.0.2.10, 192.0.2.0/24, 2001:db8::/32)"
    if slash and not re.fullmatch(r"0|[1-9][0-9]{0,2}", length):
        raise ConfigError(f"{quote(text)} is not {what}")
    host = _address_in(text, address, what)
    if not slash:
        _refuse_mapped(text, host)
    try:
        network = ipaddress.ip_network(text, strict=False)
    except ValueError:
        longest = host.max_prefixlen
        raise ConfigError(f"{quote(text)}: a prefix is 0 to {longest} bits long") from None
    if network.network_address != host:
        raise ConfigError(f"{quote(text)} has bits beyond its prefix; write {network}")
    return network


def parse_netmask(value: str | int, family: Family) -> Address:
    """A persistence netmask as an address.

    IPv4 takes dotted bits of any pattern or a prefix length of 0 to 32, IPv6 a prefix length of
    1 to 128 (as ipvsadm's -M, which however reads `24` as 0.0.0.24).
    """
    text = str(value)
    if family is Family.IPV6:
        length = parse_whole(text, "an IPv6 netmask: a prefix length", 1, 128)
        return ipaddress.IPv6Address((2**length - 1) << (128 - length))
    if re.fullmatch(r"[1-2]?[0-9]|3[0-2]", text):
        return ipaddress.IPv4Address((2 ** int(text) - 1) << (32 - int(text)))
    try:
        return ipaddress.IPv4Address(text)
    except ValueError:
        what = "an IPv4 netmask (255.255.255.0, or a prefix length of 0 to 32)"
        raise ConfigError(f"{quote(text)} is not {what}") from None


def full_netmask(family: Family) -> Address:
    """The netmask under which every client stands alone."""
    return parse_netmask(32 if family is Family.IPV4 else 128, family)


def parse_mac(text: str) -> str:
    """A MAC address in lower case."""
    if not re.fullmatch(r"[0-9A-Fa-f]{2}(:[0-9A-Fa-f]{2}){5}", text):
        raise ConfigError(f"{quote(text)} is not a MAC address (02:00:00:00:00:01)")
    return text.lower()


def parse_interface(text: str) -> str:
    """The name of an interface, by the kernel's rule for names."""
    is_short = 0 < len(text.encode("utf-8", "surrogatepass")) <= MAX_INTERFACE
    if not is_short or text in (".", "..") or re.search(r"[\s/:\0]", text):
        rule = f"1 to {MAX_INTERFACE} bytes without white space, / and :"
        raise ConfigError(f"{quote(text)} is not an interface's name ({rule})")
    return text


def parse_name(text: str) -> str:
    """A service's name, which must not look like a key or an option."""
    if ":" in text:
        raise ConfigError(f"{quote(text)} looks like a service's key; a name has no colon")
    if not text or not text.isprintable() or " " in text or text.startswith("-"):
        rule = "printable, without white space, not starting with -"
        raise ConfigError(f"{quote(text)} is not a name ({rule})")
    return text

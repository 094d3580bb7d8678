"""Random legal configurations, for the properties that hold for every one of them."""

from __future__ import annotations

import dataclasses
import ipaddress

from hypothesis import strategies as st

from lvsxdp import checks
from lvsxdp.errors import ConfigError
from lvsxdp.model import (
    ANY_PORT,
    MAX_MARK,
    MAX_PERSISTENCE,
    MAX_THRESHOLD,
    MAX_WEIGHT,
    AddressKey,
    Backend,
    Capacity,
    Config,
    Engine,
    Expiry,
    Family,
    Features,
    Forward,
    MarkKey,
    MarkRule,
    Persistence,
    Ports,
    Protocol,
    Scheduler,
    SchedulerFlag,
    Service,
    Settings,
    Tunnel,
    TunnelType,
)

V4 = st.ip_addresses(network="10.0.0.0/8")
V6 = st.ip_addresses(network="2001:db8::/32")
HOSTS = {Family.IPV4: V4, Family.IPV6: V6}
PORT = st.integers(1, 65535)
THRESHOLD = st.integers(0, MAX_THRESHOLD)
NAMES = st.one_of(
    st.sampled_from(
        ["on", "no", "80", "1e3", "~", "null", "0x1", "=", "<<", "*a", "{}", "2001-01-01"]
    ),
    st.text(st.characters(exclude_characters=": -", exclude_categories=["Z", "C"]), min_size=1),
)
INTERFACES = st.one_of(
    st.sampled_from(["on", "1", "010", "1.5", "eth0.5"]),
    st.text(
        st.characters(min_codepoint=33, max_codepoint=126, exclude_characters="/:."),
        min_size=1,
        max_size=15,
    ),
)


def tuples(values: st.SearchStrategy, least: int = 0, most: int = 2) -> st.SearchStrategy:
    return st.lists(values, min_size=least, max_size=most, unique=True).map(tuple)


def networks(family: Family) -> st.SearchStrategy:
    longest = 32 if family is Family.IPV4 else 128
    return st.builds(
        lambda address, length: ipaddress.ip_network((address, length), strict=False),
        HOSTS[family],
        st.one_of(st.just(longest), st.integers(0, longest)),
    )


@st.composite
def rules(draw: st.DrawFn) -> MarkRule:
    family = draw(st.sampled_from(Family))
    return MarkRule(
        mark=draw(st.integers(0, MAX_MARK)),
        protocols=draw(tuples(st.sampled_from(Protocol), 1, 3)),
        addresses=draw(tuples(networks(family))),
        ports=draw(tuples(st.tuples(PORT, PORT).map(lambda pair: Ports(min(pair), max(pair))))),
        sources=draw(tuples(networks(family))),
        source_macs=draw(tuples(st.from_regex(r"\A[0-9a-f]{2}(:[0-9a-f]{2}){5}\Z"), most=1)),
        interfaces=draw(tuples(INTERFACES)),
        vlans=draw(tuples(st.integers(1, 4094), most=1)),
    )


def persistences(family: Family, *, may_look_into_packets: bool) -> st.SearchStrategy:
    lengths = st.integers(1, 128).map(lambda n: ipaddress.IPv6Address((2**n - 1) << (128 - n)))
    masks = st.ip_addresses(v=4) if family is Family.IPV4 else lengths
    engines = st.none() | st.sampled_from(Engine) if may_look_into_packets else st.none()
    return st.builds(
        Persistence, st.integers(1, MAX_PERSISTENCE), masks, st.sampled_from(Expiry), engines
    )


@st.composite
def backends(draw: st.DrawFn, family: Family, ports: st.SearchStrategy, own: int) -> Backend:
    """`ports` are what a backend may have that is not by nat; none says again that it is `own`."""
    limits = st.just([0, 0]) | st.lists(THRESHOLD, min_size=2, max_size=2).map(sorted)
    lower, upper = draw(limits)
    forward = draw(st.sampled_from(Forward))
    # by tunnel it may be of the other family
    at = draw(st.sampled_from(Family)) if forward is Forward.TUNNEL else family
    any_port = (st.none() | PORT).filter(lambda port: port != own)
    return Backend(
        address=draw(HOSTS[at]),
        port=draw(any_port if forward.may_change_port else ports),
        forward=forward,
        weight=draw(st.integers(0, MAX_WEIGHT)),
        draining=draw(st.booleans()),
        upper_threshold=upper,
        lower_threshold=lower,
        tunnel=draw(tunnels(at)) if forward is Forward.TUNNEL else Tunnel(),
    )


@st.composite
def tunnels(draw: st.DrawFn, family: Family) -> Tunnel:
    kind = draw(st.sampled_from(TunnelType))
    return Tunnel(
        kind,
        draw(PORT) if kind is TunnelType.GUE else None,
        draw(st.sampled_from(checks.CHECKSUMS[kind])),
        draw(st.none() | HOSTS[family]),
    )


@st.composite
def services(draw: st.DrawFn) -> Service:
    family = draw(st.sampled_from(Family))
    address_keys = st.builds(
        AddressKey,
        st.sampled_from(Protocol),
        HOSTS[family],
        st.integers(0, 65535),
    )
    key = draw(
        st.one_of(st.builds(MarkKey, st.integers(1, MAX_MARK), st.just(family)), address_keys)
    )
    is_any = isinstance(key, AddressKey) and key.port == ANY_PORT
    is_udp = not isinstance(key, AddressKey) or key.protocol is Protocol.UDP
    kept = persistences(family, may_look_into_packets=is_udp)
    persistence = draw(kept if is_any else st.none() | kept)
    ports = st.none() | PORT if isinstance(key, MarkKey) and persistence else st.none()
    scheduler = draw(st.sampled_from(Scheduler))
    fitting = [flag for flag in SchedulerFlag if flag.scheduler is scheduler]
    flags = tuples(st.sampled_from(fitting)) if fitting else st.just(())
    own = key.port if isinstance(key, AddressKey) else ANY_PORT
    some = st.lists(
        backends(family, ports, own), max_size=4, unique_by=lambda backend: backend.key
    ).map(tuple)
    only = key.protocol if isinstance(key, AddressKey) else None
    return Service(
        key,
        draw(st.none() | NAMES),
        scheduler,
        draw(flags),
        persistence,
        draw(some),
        one_packet=only in (None, Protocol.UDP) and draw(st.booleans()),
        sloppy_tcp=only in (None, Protocol.TCP) and draw(st.booleans()),
    )


def number_unnamed(all_services: list[Service]) -> tuple[Service, ...]:
    """Names may be given once: a repeated one is taken away."""
    seen: set[str] = set()
    kept = []
    for each in all_services:
        name = each.name if each.name not in seen else None
        seen |= {name} if name else set()
        kept.append(dataclasses.replace(each, name=name))
    return tuple(kept)


# of both families in most, as backends by fullnat want them
POOLS = (
    *("", "10.0.9.8", "10.0.9.8-10.0.9.11, 2001:db8:9::8", "2001:db8:9::8/126, 10.0.9.8/30"),
    "10.0.9.9, 2001:db8:9::1-2001:db8:9::7",
)
CONFIGS = st.builds(
    Config,
    interfaces=tuples(INTERFACES),
    marks=st.lists(rules(), max_size=3).map(tuple),
    services=st.lists(services(), max_size=4, unique_by=lambda each: each.key).map(number_unnamed),
    settings=st.builds(
        Settings,
        st.booleans(),
        st.booleans(),
        st.integers(0, 3),
        st.booleans(),
        st.booleans(),
        st.booleans(),
        st.booleans(),
        st.sampled_from((0, 3)),
        st.sampled_from((0, 3)),
        st.integers(1, 2**31 - 1),
        *(st.integers(1, MAX_PERSISTENCE) for _ in range(5)),
        st.booleans(),
        st.sampled_from(POOLS),
        st.sampled_from(("1024-65535", "20000-20099", "7-7")),
    ),
    capacity=st.builds(
        Capacity,
        st.integers(1, 2**21),
        st.integers(1, 2**21),
        st.integers(4, 2**16),
        st.integers(16, 2**16),
        destinations=st.integers(1, 2**20),
        sources=st.integers(8, 512),
    ),
    features=st.sampled_from(Features),
).filter(lambda legal: checks_pass(legal))


def checks_pass(drawn: Config) -> bool:
    try:
        checks.check(drawn)
    except ConfigError:
        return False
    return True

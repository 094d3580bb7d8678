"""Which features of the data plane a configuration uses, and so which are compiled in."""

from __future__ import annotations

import enum
from collections.abc import Iterable, Iterator, Mapping

from lvsxdp import marks
from lvsxdp.model import Config, Family, Features, MarkRule


class Feature(enum.StrEnum):
    """What the programs can be compiled without: FEATURE_* in bpf/config.h."""

    IPV4 = "ipv4"
    IPV6 = "ipv6"
    RULES = "rules"

    @property
    def define(self) -> str:
        """Its name in C."""
        return f"FEATURE_{self.name}"


EVERY = frozenset(Feature)


def features_of(config: Config) -> frozenset[Feature]:
    """The features without which packets would not meet this configuration."""
    if config.features is Features.ALL:
        return EVERY
    found = {Feature(family) for family in _families(config)} or {Feature.IPV4}
    if not all(map(marks.is_exact, config.marks)):
        found.add(Feature.RULES)
    return frozenset(found)


def _families(config: Config) -> Iterator[Family]:
    for service in config.services:
        yield service.family
    for rule in config.marks:
        yield from _families_of(rule)


def _families_of(rule: MarkRule) -> Iterable[Family]:
    """A rule without addresses marks packets of both families, also where none is balanced."""
    return {Family.of(network) for network in (*rule.addresses, *rule.sources)} or Family


def defines(features: Iterable[Feature]) -> dict[str, object]:
    """What the compiler is told of every feature."""
    chosen = frozenset(features)
    return {feature.define: int(feature in chosen) for feature in Feature}


def compiled(defined: Mapping[str, object]) -> frozenset[Feature]:
    """The features that programs have which were compiled with these defines."""
    return frozenset(feature for feature in Feature if int(str(defined[feature.define])))


def names(features: Iterable[Feature]) -> str:
    """The features by name, in their usual order."""
    return " ".join(sorted(features))

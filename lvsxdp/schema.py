"""The schema: what was compiled, as user space has to know it to read and write the maps."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from lvsxdp.filtering import Hashing
from lvsxdp.records import Layout, Shape


@dataclasses.dataclass(frozen=True, slots=True)
class Schema:
    """What was compiled: layouts, enums, jiffies a second, hash numbers, shapes of flat tables."""

    keys: Mapping[str, Layout]
    values: Mapping[str, Layout]
    enums: Mapping[str, Mapping[str, int]]
    hz: int
    hashing: Hashing
    flat: Mapping[str, Shape] = dataclasses.field(default_factory=dict)

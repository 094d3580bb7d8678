"""A configuration as plain values and back."""

from __future__ import annotations

import json

from hypothesis import given, settings

from lvsxdp import snapshot
from lvsxdp.model import Config
from tests.unit.strategies import CONFIGS


@settings(max_examples=50, deadline=None)
@given(config=CONFIGS)
def test_every_configuration_is_the_same_after_it_was_json(config: Config) -> None:
    text = json.dumps(snapshot.to_plain(config))
    assert snapshot.from_plain(json.loads(text)) == config

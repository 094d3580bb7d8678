"""The options by which `backend add` and `backend edit` say how much a backend gets."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import click

from lvsxdp.command import parsed

OPTIONS = (
    click.option("--weight", callback=parsed("parse_weight"), help="0 to 2147483647."),
    click.option(
        "-x",
        "--upper-threshold",
        callback=parsed("parse_threshold"),
        help="With so many connections it gets no more; 0 for no end.",
    ),
    click.option(
        "-y",
        "--lower-threshold",
        callback=parsed("parse_threshold"),
        help="With less it gets some again; 0 for three quarters of the upper.",
    ),
    click.option(
        "--forward",
        callback=parsed("parse_forward"),
        help="How packets reach it: dr (default) or nat; connections keep what they began with.",
    ),
)
NAMES = "--weight, --upper-threshold, --lower-threshold or --forward"


def share_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Gives a command the options."""
    for option in reversed(OPTIONS):
        command = option(command)
    return command


def given(options: Mapping[str, int | str | None]) -> dict[str, Any]:
    """The options that were given, by the names of what they change."""
    return {name: value for name, value in options.items() if value is not None}

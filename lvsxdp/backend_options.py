"""The options by which `backend add` and `backend edit` say what a backend gets, and how."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import click

from lvsxdp.command import parsed
from lvsxdp.model import Backend, Forward, Tunnel, TunnelChecksum

TUNNEL = "tun_"
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
        help="How packets reach it: dr (default), nat, tunnel or fullnat; "
        "connections keep what they began with.",
    ),
    click.option(
        "--tun-type",
        callback=parsed("parse_tunnel_type"),
        help="What a tunnel's packets are put into: ipip (default), gue or gre.",
    ),
    click.option(
        "--tun-port", callback=parsed("parse_port"), help="gue: the backend's UDP port for it."
    ),
    *(
        click.option(f"--tun-{each}", "tun_checksum", flag_value=str(each), help=said)
        for each, said in (
            (TunnelChecksum.NOCSUM, "gue and gre: without a checksum (default)."),
            (TunnelChecksum.CSUM, "gue and gre: with a checksum."),
            (TunnelChecksum.REMCSUM, "gue: as --tun-csum."),
        )
    ),
    click.option(
        "--tun-source",
        callback=parsed("parse_tunnel_source"),
        help="The source of the outer header; auto (default): as the routes say.",
    ),
)
NAMES = "--weight, --upper-threshold, --lower-threshold, --forward or a --tun option"


def share_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Gives a command the options."""
    for option in reversed(OPTIONS):
        command = option(command)
    return command


def given(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options that were given, by the names of what they change."""
    return {name: value for name, value in options.items() if value is not None}


def changed(backend: Backend, named: Mapping[str, Any]) -> Backend:
    """The backend with what `given` found; another method leaves its tunnel's options behind."""
    own = {name: value for name, value in named.items() if not name.startswith(TUNNEL)}
    wrapped = {n.removeprefix(TUNNEL): value for n, value in named.items() if n not in own}
    if "checksum" in wrapped:
        wrapped["checksum"] = TunnelChecksum(wrapped["checksum"])
    moved = dataclasses.replace(backend, **own)
    kept = moved.tunnel if moved.forward is Forward.TUNNEL else Tunnel()
    return dataclasses.replace(moved, tunnel=kept.with_options(wrapped))

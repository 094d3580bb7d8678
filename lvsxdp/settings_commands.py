"""The commands for what holds for all services."""

from __future__ import annotations

import dataclasses

import click

from lvsxdp.command import Group, Options, as_json, change, opened, pass_options, print_rows
from lvsxdp.model import Config, Settings

COLUMNS = ("name", "value", "default", "ipvs", "can_be_set")


@click.group(cls=Group)
def settings() -> None:
    """Settings: what holds for all services, by IPVS's names.

    Example: lvsxdp settings list
    """


@settings.command("list")
@as_json
@pass_options
def settings_list(options: Options, json: bool) -> None:
    """List settings and timeouts with their defaults, and IPVS's where those are others.

    Example: lvsxdp settings list --json
    """
    from lvsxdp import setting

    with opened(options) as (balancer, _):
        print_rows(setting.rows(balancer.state.config.settings), COLUMNS, json)


@settings.command("set")
@click.argument("assignments", nargs=-1, required=True, metavar="NAME=VALUE...")
@pass_options
def settings_set(options: Options, assignments: tuple[str, ...]) -> None:
    """Change settings while traffic flows; a timeout of 0 stays as it is, as in ipvsadm --set.

    Example: lvsxdp settings set conn_reuse_mode=0 timeout_tcp=3600
    """
    from lvsxdp import setting

    # what is wrong by itself is told before anything is opened
    setting.assigned(Settings(), assignments)

    def edit(config: Config) -> Config:
        wanted = setting.assigned(config.settings, assignments)
        return dataclasses.replace(config, settings=wanted)

    change(options, edit)

"""The command line: nouns read, verbs change; here those for the balancer as a whole."""

from __future__ import annotations

import gc
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lvsxdp import __version__
from lvsxdp.command import (
    Group,
    Options,
    as_json,
    confirm_within,
    guarded,
    opened,
    parsed,
    pass_options,
    say,
    session,
)
from lvsxdp.entry_commands import connection, persistence
from lvsxdp.errors import NotFoundError
from lvsxdp.model import Config, Service
from lvsxdp.service_commands import backend, mark, service
from lvsxdp.settings_commands import settings

if TYPE_CHECKING:
    from lvsxdp.applying import How

INTERFACE_COLUMNS = ("name", "mode", "program_id", "attached")


@click.group(cls=Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="lvsxdp")
@click.option("--netns", metavar="NAME", help="Work in this network namespace (ip netns).")
@click.option(
    "--wait",
    default="10",
    show_default=True,
    metavar="SECONDS",
    callback=parsed("parse_seconds"),
    help="How long to wait for the lock.",
)
@click.pass_context
def main(ctx: click.Context, netns: str | None, wait: float) -> None:
    """Linux Virtual Server semantics at XDP speed: marks, persistence, schedulers.

    Example: lvsxdp --netns lb --wait 30 status
    """
    if netns == "":
        raise click.BadParameter(
            "the name is empty; without --netns it is this one", ctx, param_hint="--netns"
        )
    # of the very many objects of a large configuration, none is garbage before the command ends
    gc.disable()
    ctx.obj = Options(netns, wait)


def _read_text(path: Path) -> str:
    from lvsxdp.errors import ConfigError

    stdin = getattr(sys.stdin, "buffer", None)
    if str(path) == "-" and stdin is None:
        raise ConfigError("-: standard input is closed; name a file")
    try:
        raw: bytes = stdin.read() if str(path) == "-" and stdin else path.read_bytes()
    except OSError as err:
        raise ConfigError(f"{path}: {err.strerror}; name a file, or - for standard input") from err
    try:
        return raw.decode()
    except UnicodeDecodeError as err:
        line = raw.count(b"\n", 0, err.start) + 1
        what = f"byte 0x{raw[err.start]:02x} is not UTF-8; save the file as UTF-8"
        raise ConfigError(f"{path}:{line}: {what}") from err


def _read_config(path: Path, text: str, known: dict[str, Service]) -> tuple[Config, dict[str, str]]:
    """The configuration of a file's text, and what its services' texts are known by.

    Warnings go to standard error; what is `known` is not read again.
    """
    from lvsxdp import config

    loaded, warnings, sources = config.load_beside(text, str(path), known)
    for warning in warnings:
        click.echo(f"warning: {warning}", err=True)
    return loaded, sources


@main.command()
@click.argument("config", type=click.Path(path_type=Path))
def check(config: Path) -> None:
    """Validate CONFIG; no root needed.

    Example: lvsxdp check shop.yaml
    """
    loaded, _ = _read_config(config, _read_text(config), {})
    backends = sum(len(service.backends) for service in loaded.services)
    click.echo(
        f"{config}: {len(loaded.marks)} mark rules, {len(loaded.services)} services, "
        f"{backends} backends"
    )


@main.command()
def schema() -> None:
    """Print the JSON Schema of configuration files, which editors go by.

    Example: lvsxdp schema > lvsxdp.schema.json
    """
    from lvsxdp import config, json_schema, show

    click.echo(show.as_json(json_schema.json_schema(config.MAX_CAPACITY)))


force_all = click.option(
    "--force",
    is_flag=True,
    help="Replace what another program attached; take packets of a process that listens here.",
)


@main.command()
@click.argument("interfaces", nargs=-1, metavar="[IFACE]...")
@click.option("-c", "--config", type=click.Path(path_type=Path), help="Apply this file.")
@click.option(
    "--mode",
    type=click.Choice(["auto", "native", "generic", "tc"]),
    default="auto",
    show_default=True,
    help="How to attach; auto falls back and says so.",
)
@force_all
@click.option("--set-sysctl", is_flag=True, help="Set net.ipv4/ipv6.conf.lo.forwarding to 1.")
@confirm_within
@pass_options
def attach(
    options: Options,
    interfaces: tuple[str, ...],
    config: Path | None,
    mode: str,
    force: bool,
    set_sysctl: bool,
    confirm: int | None,
) -> None:
    """Attach interfaces; compile and load first where nothing runs yet: what the file uses.

    Example: lvsxdp attach eth0 -c shop.yaml --set-sysctl --confirm 60
    """
    from lvsxdp import attaching, netfilter, views
    from lvsxdp.controller import Balancer

    loaded, sources = _read_config(config, _read_text(config), {}) if config else (None, {})
    names = interfaces or (loaded.interfaces if loaded else ())
    if not names:
        raise NotFoundError("no interface is named, here or under interfaces: in the file")
    _refuse_repeats(names)
    with session(options) as (where, net):
        _lo_forwarding(set_sysctl)
        attaching.attach(
            where,
            net,
            names,
            loaded,
            mode,
            force=force,
            sources=sources,
            say=say,
            tell=click.echo,
            guard=lambda: guarded(where, confirm),
        )
        with Balancer.open(where) as balancer:
            of_roads = views.attached(balancer, net)
        brought = loaded or Config()
        found = (*views.warnings(brought, net), *netfilter.warnings(brought), *of_roads)
        for warning in found:
            say(f"warning: {warning}")
    click.echo(f"attached: {' '.join(names)}")
    _ask_to_confirm(confirm)


def _refuse_repeats(names: tuple[str, ...]) -> None:
    for place, name in enumerate(names):
        if name in names[:place]:
            raise click.UsageError(f"interface {name} is named twice; leave one out")


def _ask_to_confirm(seconds: int | None) -> None:
    if seconds is not None:
        say(f"undone in {seconds} s, unless it is confirmed before: lvsxdp confirm")


def _lo_forwarding(set_it: bool) -> None:
    """Sets the sysctls by which the kernel's FIB answers XDP, or says what they are for."""
    from lvsxdp import controller, network

    for name in controller.SYSCTLS:
        if network.sysctl(name) == "1":
            continue
        if set_it:
            network.set_sysctl(name, "1")
            continue
        dotted = name.replace("/", ".")
        say(
            f"note: {dotted} is 0, so XDP cannot ask for routes and tc forwards; "
            f"it lets nothing through by itself: sysctl -w {dotted}=1, or --set-sysctl"
        )


@main.command()
@click.argument("interfaces", nargs=-1, metavar="[IFACE]...")
@click.option("--all", "everything", is_flag=True, help="Detach all and remove the tables.")
@click.option("--stale", is_flag=True, help="Remove what belonged to namespaces that are gone.")
@pass_options
def detach(options: Options, interfaces: tuple[str, ...], everything: bool, stale: bool) -> None:
    """Detach interfaces; the tables stay unless --all.

    Example: lvsxdp detach eth0
    """
    from lvsxdp import attaching

    if sum(map(bool, (interfaces, everything, stale))) != 1:
        raise click.UsageError("name interfaces, or use --all or --stale: one of the three")
    _refuse_repeats(interfaces)
    with session(options) as (where, net):
        if stale:
            gone = attaching.stale()
            attaching.remove_stale(gone)
            click.echo(f"removed what was left of {len(gone)} namespaces")
        elif everything:
            attaching.detach_all(where, net)
        else:
            attaching.detach(where, net, interfaces)


@main.command()
@click.argument("config", type=click.Path(path_type=Path))
@click.option("--dry-run", is_flag=True, help="Print the plan and stop.")
@click.option("--undrain", is_flag=True, help="End drains that the file does not ask for.")
@click.option("--detach", is_flag=True, help="Detach interfaces that the file leaves out.")
@force_all
@confirm_within
@pass_options
def apply(
    options: Options,
    config: Path,
    dry_run: bool,
    undrain: bool,
    detach: bool,
    force: bool,
    confirm: int | None,
) -> None:
    """Bring the running balancer to CONFIG; prints what differs.

    Compiles in first what CONFIG is the first to use, in seconds: a family, or ordered mark rules.

    Example: lvsxdp apply shop.yaml --dry-run
    """
    from lvsxdp.applying import How

    how = How(dry_run=dry_run, undrain=undrain, detach=detach, force=force, covering=force)
    _apply(options, config, how, confirm)


def _apply(options: Options, config: Path, how: How, confirm: int | None = None) -> None:
    """Brings the running balancer to a file, and prints what differs."""
    from lvsxdp import applying, changes, netfilter, roads, views

    text = _read_text(config)
    with opened(options) as (balancer, net):
        before = balancer.state.config
        read, sources = _read_config(config, text, balancer.state.known)
        changed = applying.bring(
            balancer,
            net,
            read,
            how,
            sources=sources,
            say=say,
            tell=click.echo,
            guard=lambda: guarded(balancer.where, confirm),
        )
        # an apply in which only weights differ asks nobody, in half the time
        is_news = changes.brings_rules_or_services(before, read)
        found = (
            *views.warnings(read, net),
            *(netfilter.warnings(read) if is_news else ()),
            *roads.warnings(balancer, net, before),
        )
        for warning in found:
            say(f"warning: {warning}")
    _ask_to_confirm(confirm if changed else None)


@main.command()
@pass_options
def confirm(options: Options) -> None:
    """Keep what was attached or applied with --confirm.

    Example: lvsxdp confirm
    """
    from lvsxdp import confirming

    with session(options) as (where, _):
        confirming.confirm(where)
    click.echo("confirmed")


@main.command()
@pass_options
def save(options: Options) -> None:
    """Print the running configuration as YAML.

    Example: lvsxdp save > shop.yaml
    """
    from lvsxdp import applying, dumping

    with opened(options) as (balancer, net):
        applying.follow_names(balancer, net.links())
        click.echo(dumping.dump(applying.running(balancer)), nl=False)


@main.command()
@click.option(
    "--check",
    is_flag=True,
    help="Show interfaces alone; exit 1 when none is attached, or not all that should be.",
)
@as_json
@pass_options
@click.pass_context
def status(ctx: click.Context, options: Options, check: bool, json: bool) -> None:
    """Show interfaces, tables and packets by reason.

    Example: lvsxdp status --json
    """
    if check:
        _check_status(ctx, options, json)
        return
    from lvsxdp import attaching, show, views

    with opened(options) as (balancer, net):
        found = views.status(balancer, net)
    found["stale"] = attaching.stale()
    if json:
        click.echo(show.as_json(found))
    else:
        _print_status(found)


def _check_status(ctx: click.Context, options: Options, json: bool) -> None:
    # reads no table: what is asked every few seconds must not cost by their size
    from lvsxdp import show, views

    with opened(options) as (balancer, net):
        rows = views.interface_rows(balancer, net)
    if json:
        click.echo(show.as_json({"interfaces": rows}))
    else:
        click.echo(show.as_table(rows, INTERFACE_COLUMNS))
    if not (rows and all(row["attached"] for row in rows)):
        ctx.exit(1)


def _print_status(found: dict[str, Any]) -> None:
    from lvsxdp import rates, show

    click.echo(show.as_table(found["interfaces"], INTERFACE_COLUMNS))
    click.echo()
    click.echo(show.as_table(found["tables"], ("name", "used", "capacity")))
    click.echo()
    click.echo(show.as_table([found["total"]], (*rates.COUNTERS, *rates.RATES)))
    click.echo()
    reasons = [{"reason": name, "packets": count} for name, count in found["reasons"].items()]
    click.echo(show.as_table(reasons, ("reason", "packets")))
    click.echo(f"\ncompiled in: {' '.join(found['features'])}")
    if found["local_addresses"] == "table":
        click.echo(
            "\nnet.ipv4.conf.lo.forwarding is 0: local addresses come from a table that "
            "attach and apply write, and tc forwards"
        )
    for warning in found["warnings"]:
        click.echo(f"\nwarning: {warning}")
    for cookie in found["stale"]:
        click.echo(f"\nstate of a namespace that is gone: {cookie} (lvsxdp detach --stale)")


@main.command()
@click.option(
    "--interval",
    default="5",
    show_default=True,
    metavar="SECONDS",
    callback=parsed("parse_interval"),
    help="Time between sweeps, 0.1 to 86400.",
)
@click.option(
    "-c",
    "--config",
    type=click.Path(path_type=Path),
    help="Apply this file at SIGHUP, as lvsxdp apply does.",
)
@pass_options
def run(options: Options, interval: float, config: Path | None) -> None:
    """Sweep expired entries, heal counts and estimate rates, in the foreground.

    Example: lvsxdp run --interval 5 -c shop.yaml
    """
    from lvsxdp import controller, daemon, network
    from lvsxdp.applying import How

    def reload() -> None:
        # the namespace is entered already
        _apply(Options(None, options.wait), config or Path(), How())

    gc.enable()
    network.leave_private_mounts()
    if options.netns:
        network.enter_namespace(options.netns)
    daemon.run(controller.here(), interval, say, reload if config else None)


for noun in (service, backend, mark, persistence, connection, settings):
    main.add_command(noun)


if __name__ == "__main__":
    main()

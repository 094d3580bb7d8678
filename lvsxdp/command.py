"""What all commands share: errors and exit codes, the lock, the running balancer, output."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import inspect
import signal
import sys
from collections.abc import Callable, Iterator
from typing import Any

import click

from lvsxdp.errors import ConfigError, ConflictError, LvsxdpError
from lvsxdp.model import Config, Service

EXITS = (
    "\n\nExit codes: 0 done, 1 failed, 2 wrong configuration or usage, "
    "3 not found, 4 conflict, 5 kernel."
)


# What a file system may say, and what to do about it.
REMEDIES = {
    errno.ENOSPC: "make room there (df -h, df -i), then try again",
    errno.EDQUOT: "the quota is used up: raise it, then try again",
    errno.EROFS: "mount it read-write (mount -o remount,rw), then try again",
    errno.EIO: "the device under it fails (dmesg)",
}


def _with_exits(kwargs: dict[str, Any]) -> dict[str, Any]:
    return {**kwargs, "help": inspect.cleandoc(kwargs.get("help") or "") + EXITS}


class Command(click.Command):
    """A command whose errors end the program with their exit code and no traceback."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Adds the exit codes to the help text."""
        super().__init__(*args, **_with_exits(kwargs))

    def invoke(self, ctx: click.Context) -> Any:
        """Runs the command."""
        try:
            return super().invoke(ctx)
        except LvsxdpError as err:
            click.echo(f"lvsxdp: {err}", err=True)
            ctx.exit(err.exit_code)
        except PermissionError as err:
            click.echo(f"lvsxdp: {err} (are you root?)", err=True)
            ctx.exit(1)
        except OSError as err:
            if err.errno not in REMEDIES:
                raise
            click.echo(f"lvsxdp: {err.filename}: {err.strerror}: {REMEDIES[err.errno]}", err=True)
            ctx.exit(5)


class Group(click.Group):
    """A group of such commands."""

    command_class = Command

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Adds the exit codes to the help text."""
        super().__init__(*args, **_with_exits(kwargs))


Group.group_class = Group


@dataclasses.dataclass(frozen=True, slots=True)
class Options:
    """What stands before the command."""

    netns: str | None
    wait: float


pass_options = click.make_pass_decorator(Options)
force_covering = click.option(
    "--force", is_flag=True, help="Even if it takes packets of a process that listens here."
)
as_json = click.option("--json", "json", is_flag=True, help="Print JSON.")


def choose_columns(command: Callable[..., Any]) -> Callable[..., Any]:
    """Whether a list shows counters or rates alone."""
    for name, text in (("--rate", "Show rates alone."), ("--stats", "Show counters alone.")):
        command = click.option(name, is_flag=True, help=text)(command)
    return command


def counters_or_rates(names: tuple[str, ...], stats: bool, rate: bool) -> tuple[str, ...]:
    """The columns that were asked for, in ipvsadm's order; none where none were."""
    from lvsxdp import rates

    chosen = (*(rates.COUNTERS if stats else ()), *(rates.RATES if rate else ()))
    return (*names, *chosen) if chosen else ()


def parsed(parser: str) -> Callable[[click.Context, click.Parameter, Any], Any]:
    """A callback that has one of scalars' parsers read an option: each value of a multiple one."""

    def callback(_: click.Context, __: click.Parameter, value: Any) -> Any:
        from lvsxdp import scalars

        parse = getattr(scalars, parser)
        try:
            if isinstance(value, tuple):
                return _each_once(parse, value)
            return None if value is None else parse(value)
        except LvsxdpError as err:
            raise click.BadParameter(str(err)) from err

    return callback


def _each_once(parse: Callable[[str], Any], texts: tuple[str, ...]) -> tuple[Any, ...]:
    from lvsxdp import scalars

    values: list[Any] = []
    for text in texts:
        value = parse(text)
        if value in values:
            raise click.BadParameter(f"{scalars.quote(text)} is given twice; leave one out")
        values.append(value)
    return tuple(values)


confirm_within = click.option(
    "--confirm",
    callback=parsed("parse_confirmation"),
    metavar="SECONDS",
    help="Undo it all after so many seconds (1 to 86400), unless `lvsxdp confirm` comes first.",
)


def waits_for_confirmation(where: Any) -> bool:
    """Whether a change does; what comes after that is loaded only then."""
    return bool((where.files / "confirm.json").exists())


def refuse_while_unconfirmed(where: Any) -> None:
    """Raises ConflictError while a change waits for confirmation."""
    if waits_for_confirmation(where):
        from lvsxdp import confirming

        confirming.refuse(where)


def guarded(where: Any, confirm: int | None) -> contextlib.AbstractContextManager[None]:
    """What a change is made in: it is refused while another waits, and undone if it is to wait."""
    if confirm is None:
        refuse_while_unconfirmed(where)
        return contextlib.nullcontext()
    from lvsxdp import confirming

    return confirming.until_confirmed(where, confirm)


@contextlib.contextmanager
def session(options: Options) -> Iterator[tuple[Any, Any]]:
    """The folders and the network of the namespace that the command is for, under its lock."""
    from lvsxdp import controller, network, state

    # a command that is told to end undoes what it has half done
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    network.leave_private_mounts()
    if options.netns:
        network.enter_namespace(options.netns)
    where = controller.here()
    with state.locked(where, options.wait), network.Network(later=True) as net:
        if waits_for_confirmation(where):
            from lvsxdp import confirming

            confirming.undo_what_is_overdue(where, net, say)
        yield where, net


@contextlib.contextmanager
def opened(options: Options) -> Iterator[tuple[Any, Any]]:
    """The running balancer and its network."""
    from lvsxdp.controller import Balancer

    with session(options) as (where, net), Balancer.open(where, say) as balancer:
        yield balancer, net


def say(text: str) -> None:
    """Tells the user something beside the output: on standard error."""
    click.echo(text, err=True)


def print_rows(rows: Iterator[Any] | list[Any], columns: tuple[str, ...], json: bool) -> None:
    """Prints rows as a table of these columns, or all of them as JSON."""
    from lvsxdp import show

    found = list(rows)
    click.echo(show.as_json(found) if json else show.as_table(found, columns))


def print_entries(rows: Iterator[Any], columns: tuple[str, ...], json: bool) -> None:
    """Prints entries of a table, of which there may be a million, as print_rows does."""
    from lvsxdp import entries, show

    if not json:
        click.echo(show.as_table([entries.as_row(columns, row) for row in rows], columns))
        return
    for line in entries.as_json(columns, rows):
        sys.stdout.write(line)


def service_named(balancer: Any, text: str) -> tuple[Service, int]:
    """A service of the running configuration by key or name, with its id."""
    from lvsxdp import names

    found = names.find_service(balancer.state.config, text)
    return found, balancer.state.book.services[str(found.key)].id


def change(options: Options, edit: Callable[[Config], Config], *, force: bool = False) -> None:
    """Applies a change of the running configuration, made by hand."""
    with opened(options) as (balancer, net):
        put(balancer, net, edit(balancer.state.config), force=force)


@contextlib.contextmanager
def _told_by_name(wanted: Config) -> Iterator[None]:
    """What is wrong with a configuration that no file holds, in the command line's words."""
    from lvsxdp import names

    try:
        yield
    except ConfigError as err:
        raise ConfigError(*(names.by_name(wanted, line) for line in err.problems)) from err
    except ConflictError as err:
        raise ConflictError(names.by_name(wanted, str(err))) from err


def put(balancer: Any, net: Any, wanted: Config, *, force: bool = False) -> None:
    """Applies a configuration that an edit made; what is legal and probably not meant is told.

    What takes packets of a process that listens here is refused without `force`.
    """
    from lvsxdp import changes, checks, names, roads

    refuse_while_unconfirmed(balancer.where)
    known = balancer.state.config
    with _told_by_name(wanted):
        found = checks.check(wanted, known)
    before = set(checks.check(known) if found else ())
    for warning in found:
        if warning not in before:
            say(f"warning: {names.by_name(wanted, warning)}")
    with _told_by_name(wanted):
        if changes.brings_rules_or_services(known, wanted):
            _look_around(known, wanted, net, force)
        balancer.apply(wanted, net, by_hand=True)
    for warning in roads.warnings(balancer, net, known):
        say(f"warning: {warning}")


def _look_around(known: Config, wanted: Config, net: Any, force: bool) -> None:
    """What else this host does with the packets that the edit is about: refused, or told."""
    from lvsxdp import listening, netfilter

    listening.refuse_covered(known, wanted, net.addresses, force=force)
    for warning in netfilter.warnings(wanted, known):
        say(f"warning: {warning}")

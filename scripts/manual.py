"""Writes docs/cli.md from the commands' own help: .venv/bin/python scripts/manual.py."""

from collections.abc import Iterator
from pathlib import Path

import click

from lvsxdp.cli import main
from lvsxdp.command import EXITS

PAGE = Path(__file__).resolve().parents[1] / "docs/cli.md"
HEAD = f"""# The command line

`.venv/bin/python scripts/manual.py` writes this page from the commands' own help; text is changed
there. Reads print a table, or JSON with `--json`.{EXITS}
"""


def commands(
    group: click.Group, path: tuple[str, ...]
) -> Iterator[tuple[click.Context, click.Command]]:
    """Every command below a group, in the order of their names, with a context of its own."""
    context = click.Context(group, info_name=" ".join(path))
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        if isinstance(command, click.Group):
            yield from commands(command, (*path, name))
        elif command is not None:
            yield click.Context(command, info_name=f"{' '.join(path)} {name}"), command


def section(context: click.Context, command: click.Command) -> str:
    """One command: how it is called, what it does, its options."""
    usage = " ".join(command.collect_usage_pieces(context))
    text = (command.help or "").replace(EXITS, "").replace("\b\n", "")
    *more, example = text.strip().split("\n\n")
    lines = [f"## {context.info_name}", f"    {context.info_name} {usage}", *more]
    lines.append("Example: `" + " ".join(example.split()).removeprefix("Example: ") + "`")
    records = [
        parameter.get_help_record(context)
        for parameter in command.get_params(context)
        if isinstance(parameter, click.Option)
    ]
    options = [record for record in records if record and "--help" not in record[0]]
    if options:
        lines.append(table(options))
    return "\n\n".join(lines)


def table(options: list[tuple[str, str]]) -> str:
    """Options and what they are for."""
    rows = [f"| `{name.replace('|', chr(92) + '|')}` | {text} |" for name, text in options]
    return "\n".join(["| option | |", "|---|---|", *rows])


def page() -> str:
    """The whole page."""
    before = click.Context(main, info_name="lvsxdp")
    shared = [p.get_help_record(before) for p in main.params if isinstance(p, click.Option)]
    sections = [section(*found) for found in commands(main, ("lvsxdp",))]
    head = f"{HEAD}\nBefore the command:\n\n{table([record for record in shared if record])}"
    return "\n\n".join([head, *sections]) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page())

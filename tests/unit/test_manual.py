"""What the commands' own help says, and docs/cli.md, which is written from it."""

from __future__ import annotations

import runpy
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from lvsxdp import cli

ROOT = Path(__file__).resolve().parents[2]


def test_the_page_of_the_command_line_is_of_the_commands_as_they_are() -> None:
    written = runpy.run_path(str(ROOT / "scripts/manual.py"))["page"]()
    assert "## lvsxdp mark add" in written
    assert (ROOT / "docs/cli.md").read_text() == written, "run .venv/bin/python scripts/manual.py"


def walk(command: click.Command, *path: str) -> Iterator[tuple[str, ...]]:
    """The command and, of a group, all below it."""
    yield path
    for name, below in command.commands.items() if isinstance(command, click.Group) else ():
        yield from walk(below, *path, name)


ALL = list(walk(cli.main))


def test_the_walk_finds_the_program_groups_and_commands() -> None:
    assert {(), ("backend",), ("backend", "drain"), ("schema",)} <= set(ALL)


@pytest.mark.parametrize("path", ALL, ids=lambda path: " ".join(path) or "lvsxdp")
def test_every_help_has_an_example_and_the_exit_codes(path: tuple[str, ...]) -> None:
    shown = CliRunner().invoke(cli.main, [*path, "--help"], terminal_width=100)
    assert shown.exit_code == 0
    assert "\n   " not in shown.output.partition("\nOptions:")[0], "a paragraph is indented"
    said = " ".join(shown.output.split())
    assert f"Example: {' '.join(('lvsxdp', *path))}" in said
    assert "Exit codes: 0 done, 1 failed, 2 wrong configuration or usage, 3 not found" in said

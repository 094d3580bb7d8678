"""docs/cli.md is what the commands' own help says."""

from __future__ import annotations

import runpy
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_the_page_of_the_command_line_is_of_the_commands_as_they_are() -> None:
    written = runpy.run_path(str(ROOT / "scripts/manual.py"))["page"]()
    assert "## lvsxdp mark add" in written
    assert (ROOT / "docs/cli.md").read_text() == written, "run .venv/bin/python scripts/manual.py"

"""A short flood, larger than the tables: who has answered keeps what he has."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
PROMISES = ("flows_lost", "flows_moved", "entries_lost", "entries_moved", "new_flows_lost")


def flood(*arguments: str) -> dict[str, Any]:
    """The figures of one flood."""
    argv = [sys.executable, "-m", "bench.flood", "--json", *arguments]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, timeout=180)
    assert done.stdout, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)["cases"][0]
    return found


def test_a_flood_takes_nothing_from_those_who_have_answered() -> None:
    found = flood("--seconds", "4", "--capacity", "4096", "--flows", "200")
    assert found["packets"] > 10 * 4096  # the tables were overrun
    assert {name: found[name] for name in PROMISES} == dict.fromkeys(PROMISES, 0)
    assert found["new_clients_in"]["20_ms"] > 0

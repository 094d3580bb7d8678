"""The one form of all benches' results: the machine, the rounds, and what each case took."""

from __future__ import annotations

import dataclasses
import datetime
import json
import os
import platform
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lvsxdp import loading

RESULTS = Path(__file__).resolve().parent / "results"
# Nanoseconds above the floor: what is wanted, and what would be better still.
TARGETS = {
    "dr_established_1": (25, 15),
    "dr_established_16k": (45, 30),
    "dr_established_1m": (110, 85),
    "dr6_established_1": (40, 28),
    "nat_request_1": (50, 40),
    "nat_reply_1": (50, 40),
    "tunnel_established_1": (45, 35),
    "tunnel_established_1m": (130, 105),
    "tunnel6_established_1": (60, 45),
    "new_persistent_hit": (120, 90),
    "new_persistent_miss": (170, 120),
    "not_ours": (25, 15),
}
# Nanoseconds beyond the same connection with one mark rule.
MARK_TARGETS = {"mark_rules_10000_exact": (60, 35), "mark_rules_10000_mixed": (150, 90)}

# Nanoseconds of a choice among so many backends.
SCHEDULER_TARGETS = {"schedule_wlc_1000": (3000, 1000)}


@dataclasses.dataclass(frozen=True)
class Result:
    """What one case took; `net` is the minimum less the floor's, `more` is the bench's own."""

    case: str
    unit: str
    samples: Sequence[float]
    net: float | None = None
    target: float | None = None
    stretch: float | None = None
    more: dict[str, Any] = dataclasses.field(default_factory=dict)

    def plain(self) -> dict[str, Any]:
        """The result as JSON has it."""
        return {
            "case": self.case,
            "unit": self.unit,
            "min": min(self.samples),
            "median": statistics.median(self.samples),
            "max": max(self.samples),
            "net": self.net,
            "target": self.target,
            "stretch": self.stretch,
            **self.more,
        }


def machine() -> dict[str, Any]:
    """What the figures depend on, as far as the machine tells."""
    cpus = Path("/proc/cpuinfo").read_text().splitlines()
    models = [line.partition(":")[2].strip() for line in cpus if line.startswith("model name")]
    bcc = subprocess.run(
        ["dpkg-query", "-W", "-f", "${Version}", "python3-bpfcc"], capture_output=True, text=True
    )
    return {
        "cpu": models[0] if models else platform.machine(),
        "cpus": os.cpu_count(),
        "kernel": platform.release().split("-")[0],
        "bcc": bcc.stdout.partition("+")[0] or "?",
        "hz": loading.jiffies_per_second(),
        "date": datetime.date.today().isoformat(),
    }


def document(bench: str, rounds: int, results: Sequence[Result], **more: Any) -> dict[str, Any]:
    """A bench's results as JSON has them; `more` says how it was measured."""
    cases = [result.plain() for result in results]
    return {"bench": bench, "machine": machine(), "rounds": rounds, **more, "cases": cases}


def write(found: dict[str, Any], as_json: bool) -> None:
    """Prints a document, as JSON or as a table."""
    sys.stdout.write((json.dumps(found, indent=2) if as_json else table(found)) + "\n")


def table(found: dict[str, Any]) -> str:
    """A document's cases as text; the bench's own figures stand behind."""
    known = {field.name for field in dataclasses.fields(Result)} | {"min", "median", "max"}
    lines = [f"{'case':28} {'min':>12} {'median':>12} {'max':>12} {'net':>9} {'target':>7}"]
    for case in found["cases"]:
        numbers = [f"{number(case[name]):>12}" for name in ("min", "median", "max")]
        more = [f"{name} {number(case[name])}" for name in case if name not in known]
        lines.append(
            f"{case['case']:28} {' '.join(numbers)} {number(case['net']):>9} "
            f"{number(case['target']):>7}  {case['unit']}  {', '.join(more)}".rstrip(" ,")
        )
    return "\n".join(lines)


def number(value: Any) -> str:
    """A figure with as many places as it needs to be told from another."""
    if value is None:
        return "-"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 10 else f"{value:,.0f}"
    return str(value)

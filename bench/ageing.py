"""`scripts/bench ageing`: sweeps and lists over a million connections and persistence entries."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench.packet import ACK, SYN, TX, Case, Rig, rig
from lvsxdp import ageing, entries, network, views

ENTRIES = 1 << 20
STEP = 1 << 17
CONFIG = f"""
capacity: {{connections: {ENTRIES}, persistence: {ENTRIES}}}
services:
  - {{protocol: tcp, address: 192.0.2.12, port: 80, scheduler: rr, persistence: 3600,
     backends: [{{address: 172.31.0.11}}]}}
"""


def fill(subject: Rig) -> None:
    """Opens a connection of each of ENTRIES clients, so that each has a persistence entry."""
    case = Case("fill", "lvsxdp", "192.0.2.12", "10.0.0.0", 1 << 30, SYN, TX, None, 1, STEP)
    case.clients = True
    for flags in (SYN, ACK):
        case.counter = 0
        for _ in range(0, ENTRIES, STEP):
            subject.confirm()
            subject.run(case, STEP, flags=flags, spread=False)


def timed(rounds: int, work: Callable[[], object]) -> list[float]:
    """CPU seconds of each round."""
    found = []
    for _ in range(rounds):
        before = time.process_time()
        work()
        found.append(time.process_time() - before)
    return found


def listed(rows: Any, columns: tuple[str, ...]) -> int:
    """Writes every row as JSON to nowhere; how many there were."""
    count = 0
    with open(os.devnull, "w") as nowhere:
        for line in entries.as_json(columns, rows):
            nowhere.write(line)
            count += 1
    return count - 1


def measure(subject: Rig, rounds: int) -> list[dict[str, Any]]:
    """One object a case: CPU seconds, and lines a second where something is listed."""
    balancer = subject.balancer
    network.enter_namespace(subject.namespace)
    work: dict[str, Callable[[], object]] = {
        "sweep": lambda: ageing.sweep(balancer, {}),
        "connection_list": lambda: listed(views.connections(balancer), entries.CONNECTION),
        "persistence_list": lambda: listed(views.persistence(balancer), entries.PERSISTENCE),
    }
    kept = sum(1 for _ in views.connections(balancer)), sum(1 for _ in views.persistence(balancer))
    rows = []
    for name, call in work.items():
        seconds = timed(rounds, call)
        row: dict[str, Any] = {
            "case": name,
            "connections": kept[0],
            "persistence": kept[1],
            "min_s": round(min(seconds), 4),
            "median_s": round(statistics.median(seconds), 4),
            "rounds": rounds,
        }
        if name.endswith("_list"):
            lines = kept[0] if name.startswith("connection") else kept[1]
            row["lines_a_second"] = round(lines / min(seconds))
        rows.append(row)
    return rows


def main() -> None:
    """Fills the tables, measures, prints."""
    parser = argparse.ArgumentParser(prog="scripts/bench ageing", description=__doc__)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--rounds", type=int, default=10)
    options = parser.parse_args()
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    network.leave_private_mounts()
    cache = Path(tempfile.mkdtemp(prefix="lvsxdp-bench-"))
    try:
        with rig("lvsxdp", CONFIG, cache) as subject:
            fill(subject)
            rows = measure(subject, options.rounds)
    finally:
        shutil.rmtree(cache, ignore_errors=True)
    if options.json:
        sys.stdout.write(json.dumps(rows, indent=2) + "\n")
        return
    for row in rows:
        speed = f"  {row['lines_a_second']:9} lines/s" if "lines_a_second" in row else ""
        sys.stdout.write(
            f"{row['case']:18} min {row['min_s']:.4f} s  median {row['median_s']:.4f} s"
            f"  of {row['connections']} and {row['persistence']}{speed}\n"
        )


if __name__ == "__main__":
    main()

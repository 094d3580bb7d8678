"""`scripts/bench ageing`: sweeps and lists over a million connections and persistence entries."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench import packet, record
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
        found.append(round(time.process_time() - before, 4))
    return found


def listed(rows: Any, columns: tuple[str, ...]) -> int:
    """Writes every row as JSON to nowhere; how many there were."""
    count = 0
    with open(os.devnull, "w") as nowhere:
        for line in entries.as_json(columns, rows):
            nowhere.write(line)
            count += 1
    return count - 1


def measure(subject: Rig, rounds: int) -> list[record.Result]:
    """CPU seconds of sweeps and lists, and lines a second where something is listed."""
    balancer = subject.balancer
    network.enter_namespace(subject.namespace)
    work: dict[str, Callable[[], object]] = {
        "sweep": lambda: ageing.sweep(balancer),
        "connection_list": lambda: listed(views.connections(balancer), entries.CONNECTION),
        "persistence_list": lambda: listed(views.persistence(balancer), entries.PERSISTENCE),
    }
    kept = sum(1 for _ in views.connections(balancer)), sum(1 for _ in views.persistence(balancer))
    if kept != (ENTRIES, ENTRIES):
        raise SystemExit(f"ageing: the tables hold {kept[0]} and {kept[1]} entries, not {ENTRIES}")
    found = []
    for name, call in work.items():
        seconds = timed(rounds, call)
        more = {"lines_a_second": round(ENTRIES / min(seconds))} if name != "sweep" else {}
        found.append(record.Result(name, "s", seconds, more=more))
    return found


def cpu_seconds(process: int) -> float:
    """The CPU time that a process has had, its system calls included."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def daemon(subject: Rig, seconds: float) -> record.Result:
    """Percent of one CPU that `lvsxdp run` takes at its own interval, its start not counted."""
    program = Path(sys.executable).parent / "lvsxdp"
    argv = [str(program), "--netns", subject.namespace, "run"]
    swept = subject.balancer.where.files / "last_sweep"
    swept.unlink(missing_ok=True)
    process = subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        while not swept.exists():
            if process.poll() is not None:
                raise SystemExit(f"ageing: lvsxdp run ended with {process.returncode}")
            time.sleep(0.1)
        began, used = time.monotonic(), cpu_seconds(process.pid)
        time.sleep(seconds)
        used, passed = cpu_seconds(process.pid) - used, time.monotonic() - began
    finally:
        process.terminate()
        process.wait()
    percent = round(100 * used / passed, 2)
    return record.Result("run", "% of a CPU", [percent], target=2, more={"seconds": seconds})


def main() -> None:
    """Fills the tables, measures, prints."""
    parser = argparse.ArgumentParser(prog="scripts/bench ageing", description=__doc__)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--seconds", type=float, default=60, help="how long lvsxdp run is watched")
    options = parser.parse_args()
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    with packet.workplace() as cache, rig("ageing", CONFIG, cache) as subject:
        fill(subject)
        found = measure(subject, options.rounds)
        found.append(daemon(subject, options.seconds))
    how = {"connections": ENTRIES, "persistence": ENTRIES}
    record.write(record.document("ageing", options.rounds, found, **how), options.json)


if __name__ == "__main__":
    main()

"""`scripts/bench control`: what changes take on a large configuration, by the command line.

1,000 services with 100 backends each, whose addresses are the host's, in a namespace of its own;
wall time of whole commands, Python's start included, the kinds in turn in each round.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from bench import packet, record

SERVICES, BACKENDS = 1000, 100
HEAD = f"""\
capacity: {{connections: 65536, persistence: 1024, services: {2 * SERVICES},
           backends: {SERVICES * BACKENDS}}}
services:
"""
EMPTY = HEAD.replace("services:\n", "")
# Seconds.
TARGETS = {"apply_from_nothing": 3.0, "apply_one_backend": 0.3, "backend_edit": 0.2}
COMMAND = Path(sys.executable).with_name("lvsxdp")


def virtual(service: int) -> str:
    """A service's address."""
    return f"198.18.{service >> 8}.{service & 255}"


def backend(number: int) -> str:
    """A backend's address."""
    return f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}"


def text(weight: int) -> str:
    """The whole file; `weight` is that of one backend, all others have 1."""
    rows = [HEAD]
    for service in range(SERVICES):
        rows.append(
            f"  - name: s{service}\n    protocol: tcp\n    address: {virtual(service)}\n"
            "    port: 80\n    scheduler: rr\n    backends:\n"
        )
        for place in range(BACKENDS):
            number = service * BACKENDS + place
            own = weight if number == BACKENDS * SERVICES // 2 else 1
            rows.append(f"      - {{address: {backend(number)}, weight: {own}}}\n")
    return "".join(rows)


class Bench:
    """The files, and the commands that are timed."""

    def __init__(self, folder: Path) -> None:
        """Writes the files."""
        self.environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": ""}
        self.files = {name: folder / f"{name}.yaml" for name in ("empty", "one", "other")}
        self.files["empty"].write_text(EMPTY)
        self.files["one"].write_text(text(1))
        self.files["other"].write_text(text(2))
        self.weight = 0
        self.samples: dict[str, list[float]] = {}

    def run(self, *arguments: object) -> str:
        """What a command prints."""
        argv = [str(COMMAND), *map(str, arguments)]
        done = subprocess.run(argv, capture_output=True, text=True, env=self.environment)
        if done.returncode:
            raise SystemExit(f"{' '.join(argv)} failed: {done.stderr}")
        return done.stdout

    def time(self, name: str, lines: int, *arguments: object) -> None:
        """Times a command, which is to print so many lines."""
        began = time.monotonic()
        printed = self.run(*arguments)
        self.samples.setdefault(name, []).append(time.monotonic() - began)
        if printed.count("\n") != lines:
            raise SystemExit(f"{name} did not do its work: it printed\n{printed[:500]}")

    def round(self) -> None:
        """Each kind of change once; at the end nothing is configured."""
        files = self.files
        self.time("apply_from_nothing", SERVICES, "apply", files["one"])
        self.time("apply_nothing_new", 1, "apply", files["one"])
        self.time("apply_one_backend", 1, "apply", files["other"])
        self.weight += 3
        named = ("s7", backend(7 * BACKENDS + 5))
        self.time("backend_edit", 0, "backend", "edit", *named, "--weight", self.weight)
        self.time("service_list", SERVICES + 1, "service", "list")
        self.time("backend_list_one", BACKENDS + 1, "backend", "list", "s7")
        self.time("apply_to_nothing", SERVICES, "apply", files["empty"])


def prepared(run: Callable[..., str], files: dict[str, Path]) -> None:
    """Gives the namespace the services' addresses, and attaches."""
    rows = [f"addr add {virtual(service)}/32 dev lo\n" for service in range(SERVICES)]
    rows.append("addr add 10.255.255.254/8 dev lb0\n")
    subprocess.run(["ip", "-batch", "-"], input="".join(rows), text=True, check=True)
    run("attach", "lb0", "-c", files["empty"], "--set-sysctl")


def results(samples: dict[str, list[float]]) -> list[record.Result]:
    """Seconds of each kind of command."""
    found = []
    for name, values in samples.items():
        rounded = [round(value, 3) for value in values]
        found.append(record.Result(name, "s", rounded, target=TARGETS.get(name)))
    return found


def main() -> None:
    """Runs all commands in turn and prints their times."""
    parser = argparse.ArgumentParser(prog="scripts/bench control", description=__doc__)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--rounds", type=int, default=8)
    options = parser.parse_args()
    with packet.workplace() as folder, packet.namespace(f"lvxrig-{os.getpid()}-control"):
        bench = Bench(folder)
        try:
            prepared(bench.run, bench.files)
            for _ in range(options.rounds):
                bench.round()
        finally:
            bench.run("detach", "--all")
    record.write(record.document("control", options.rounds, results(bench.samples)), options.json)


if __name__ == "__main__":
    main()
